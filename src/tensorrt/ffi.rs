//! What shim.h declares.

use std::ffi::{CStr, c_char, c_void};

/// `cellgate_trt_runtime`, `cellgate_trt_engine`, `cellgate_trt_context`.
#[repr(C)]
pub struct Runtime(());
#[repr(C)]
pub struct Engine(());
#[repr(C)]
pub struct Context(());

/// `cellgate_trt_status`, as far as it is told apart.
pub const OK: i32 = 0;
pub const LIBRARY: i32 = 1;
pub const VERSION: i32 = 2;
pub const PLAN: i32 = 4;
pub const PARSE: i32 = 5;
pub const BUILD: i32 = 6;
pub const MEMORY: i32 = 8;

/// `cellgate_trt_log`.
pub type Log = extern "C" fn(severity: i32, text: *const c_char);
/// `cellgate_trt_sink`.
pub type Sink = extern "C" fn(user: *mut c_void, bytes: *const c_void, size: usize);

/// `cellgate_trt_options`.
#[repr(C)]
pub struct Options {
    pub workspace: i64,
    pub optimisation: i32,
    pub timing_cache: *const c_void,
    pub timing_cache_size: usize,
}

/// `cellgate_trt_tensor`.
#[repr(C)]
pub struct Tensor {
    pub name: *const c_char,
    pub is_input: i32,
    pub is_linear: i32,
    pub element: i32,
    pub rank: i32,
    pub size: [i64; 8],
}

/// `cellgate_trt_api`: what its comments in shim.h say holds here.
#[repr(C)]
#[derive(Debug)]
pub struct Api {
    pub header_version: i32,
    pub reason: unsafe extern "C" fn() -> *const c_char,
    pub open: unsafe extern "C" fn(path: *const c_char, log: Log, out: *mut *mut Runtime) -> i32,
    pub version: unsafe extern "C" fn(runtime: *const Runtime) -> i32,
    pub close: unsafe extern "C" fn(runtime: *mut Runtime),
    pub build: unsafe extern "C" fn(
        runtime: *mut Runtime,
        parser: *const c_char,
        onnx: *const c_void,
        size: usize,
        options: *const Options,
        plan: Sink,
        timing_cache: Sink,
        user: *mut c_void,
    ) -> i32,
    pub deserialise:
        unsafe extern "C" fn(runtime: *mut Runtime, plan: *const c_void, size: usize, out: *mut *mut Engine) -> i32,
    pub tensor_count: unsafe extern "C" fn(engine: *const Engine) -> i32,
    pub describe: unsafe extern "C" fn(engine: *const Engine, index: i32, out: *mut Tensor) -> i32,
    pub working_memory: unsafe extern "C" fn(engine: *const Engine) -> i64,
    pub inspect: unsafe extern "C" fn(engine: *const Engine, json: Sink, user: *mut c_void) -> i32,
    pub free_engine: unsafe extern "C" fn(engine: *mut Engine),
    pub new_context:
        unsafe extern "C" fn(engine: *mut Engine, memory: *mut c_void, size: i64, out: *mut *mut Context) -> i32,
    pub bind: unsafe extern "C" fn(context: *mut Context, tensor: *const c_char, address: *mut c_void) -> i32,
    pub enqueue: unsafe extern "C" fn(context: *mut Context, stream: *mut c_void) -> i32,
    pub free_context: unsafe extern "C" fn(context: *mut Context),
}

/// The shims in this program, that of the latest TensorRT first; none without `--features tensorrt`.
pub static APIS: &[&Api] = &[
    #[cfg(tensorrt_11)]
    &cellgate_trt_11,
    #[cfg(tensorrt_10)]
    &cellgate_trt_10,
];

// SAFETY: the tables are constants, laid out as `Api` is.
#[cfg(any(tensorrt_10, tensorrt_11))]
unsafe extern "C" {
    #[cfg(tensorrt_10)]
    safe static cellgate_trt_10: Api;
    #[cfg(tensorrt_11)]
    safe static cellgate_trt_11: Api;
}

/// Why the last call of this shim's on this thread failed.
pub fn reason(api: &Api) -> String {
    // SAFETY: the shim gives a text that ends with a zero and lives until its next call on this thread.
    unsafe { CStr::from_ptr((api.reason)()) }.to_string_lossy().into_owned()
}
