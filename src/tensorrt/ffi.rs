//! What shim.h declares. Without `--features tensorrt` there is no shim: the same functions are there, but none is ever called,
//! since all of them need a runtime, which cannot be opened then.

use std::ffi::{c_char, c_void};

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

macro_rules! shim {
    ($(fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        #[cfg(feature = "tensorrt")]
        unsafe extern "C" {
            $(pub fn $name($($argument: $type),*) $(-> $result)?;)*
        }
        $(#[cfg(not(feature = "tensorrt"))]
        #[allow(clippy::too_many_arguments)] // as many as the shim has
        pub unsafe fn $name($(_: $type),*) $(-> $result)? {
            unreachable!("Runtime::open refuses where the shim is not compiled in")
        })*
    };
}

shim! {
    fn cellgate_trt_reason() -> *const c_char;
    fn cellgate_trt_header_version() -> i32;
    fn cellgate_trt_open(path: *const c_char, log: Log, out: *mut *mut Runtime) -> i32;
    fn cellgate_trt_version(runtime: *const Runtime) -> i32;
    fn cellgate_trt_close(runtime: *mut Runtime);
    fn cellgate_trt_build(
        runtime: *mut Runtime, parser: *const c_char, onnx: *const c_void, size: usize, options: *const Options,
        plan: Sink, timing_cache: Sink, user: *mut c_void
    ) -> i32;
    fn cellgate_trt_deserialise(runtime: *mut Runtime, plan: *const c_void, size: usize, out: *mut *mut Engine) -> i32;
    fn cellgate_trt_tensor_count(engine: *const Engine) -> i32;
    fn cellgate_trt_describe(engine: *const Engine, index: i32, out: *mut Tensor) -> i32;
    fn cellgate_trt_working_memory(engine: *const Engine) -> i64;
    fn cellgate_trt_inspect(engine: *const Engine, json: Sink, user: *mut c_void) -> i32;
    fn cellgate_trt_free_engine(engine: *mut Engine);
    fn cellgate_trt_new_context(engine: *mut Engine, memory: *mut c_void, size: i64, out: *mut *mut Context) -> i32;
    fn cellgate_trt_bind(context: *mut Context, tensor: *const c_char, address: *mut c_void) -> i32;
    fn cellgate_trt_enqueue(context: *mut Context, stream: *mut c_void) -> i32;
    fn cellgate_trt_free_context(context: *mut Context);
}
