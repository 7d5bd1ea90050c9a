//! The CUDA driver's library, opened at run time: a binary starts without it, and its absence is an error like any other.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::ptr::null;

use super::CudaError;

/// What the driver hands out and only it looks into: contexts, modules, functions, streams, graphs, events.
pub(super) type Handle = *mut c_void;

/// Names another library than the system's driver, such as a test double.
pub const LIBRARY: &str = "CELLGATE_LIBCUDA";

/// Statuses that are told apart.
pub(super) const OUT_OF_MEMORY: c_int = 2;
pub(super) const NOT_FOUND: c_int = 500;
const NO_DEVICE: c_int = 100;
const UNSUPPORTED_PTX: c_int = 222;

macro_rules! driver_calls {
    ($($call:ident = $symbol:literal ($($argument:ty),*);)*) => {
        /// The driver's functions.
        #[derive(Clone, Copy)]
        pub(super) struct Calls { $(pub(super) $call: unsafe extern "C" fn($($argument),*) -> c_int,)* }

        impl Calls {
            /// # Safety
            /// `library` is a CUDA driver.
            unsafe fn of(library: &Library) -> Result<Self, CudaError> {
                Ok(Self {
                    // SAFETY: the driver has had these symbols with these signatures since they came.
                    $($call: unsafe {
                        std::mem::transmute::<Handle, unsafe extern "C" fn($($argument),*) -> c_int>(library.symbol($symbol)?)
                    },)*
                })
            }
        }
    };
}

driver_calls! {
    init = c"cuInit" (c_uint);
    version = c"cuDriverGetVersion" (*mut c_int);
    device_count = c"cuDeviceGetCount" (*mut c_int);
    device = c"cuDeviceGet" (*mut c_int, c_int);
    device_name = c"cuDeviceGetName" (*mut c_char, c_int, c_int);
    device_attribute = c"cuDeviceGetAttribute" (*mut c_int, c_int, c_int);
    memory = c"cuMemGetInfo_v2" (*mut usize, *mut usize);
    retain = c"cuDevicePrimaryCtxRetain" (*mut Handle, c_int);
    release = c"cuDevicePrimaryCtxRelease_v2" (c_int);
    set_current = c"cuCtxSetCurrent" (Handle);
    load_module = c"cuModuleLoadData" (*mut Handle, *const c_char);
    unload_module = c"cuModuleUnload" (Handle);
    function = c"cuModuleGetFunction" (*mut Handle, Handle, *const c_char);
    set_attribute = c"cuFuncSetAttribute" (Handle, c_int, c_int);
    launch = c"cuLaunchKernel" (
        Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *const *mut c_void, *const c_void
    );
    allocate = c"cuMemAlloc_v2" (*mut u64, usize);
    free = c"cuMemFree_v2" (u64);
    allocate_host = c"cuMemHostAlloc" (*mut *mut c_void, usize, c_uint);
    free_host = c"cuMemFreeHost" (*mut c_void);
    host_address = c"cuMemHostGetDevicePointer_v2" (*mut u64, *mut c_void, c_uint);
    upload = c"cuMemcpyHtoD_v2" (u64, *const c_void, usize);
    download_async = c"cuMemcpyDtoHAsync_v2" (*mut c_void, u64, usize, Handle);
    new_stream = c"cuStreamCreate" (*mut Handle, c_uint);
    destroy_stream = c"cuStreamDestroy_v2" (Handle);
    synchronise = c"cuStreamSynchronize" (Handle);
    begin_capture = c"cuStreamBeginCapture_v2" (Handle, c_int);
    end_capture = c"cuStreamEndCapture" (Handle, *mut Handle);
    instantiate = c"cuGraphInstantiateWithFlags" (*mut Handle, Handle, u64);
    launch_graph = c"cuGraphLaunch" (Handle, Handle);
    destroy_graph = c"cuGraphDestroy" (Handle);
    destroy_executable = c"cuGraphExecDestroy" (Handle);
    new_event = c"cuEventCreate" (*mut Handle, c_uint);
    destroy_event = c"cuEventDestroy_v2" (Handle);
    record = c"cuEventRecord" (Handle, Handle);
    elapsed = c"cuEventElapsedTime" (*mut f32, Handle, Handle);
    error_name = c"cuGetErrorName" (c_int, *mut *const c_char);
    error_text = c"cuGetErrorString" (c_int, *mut *const c_char);
}

/// The driver, loaded. It stays loaded as long as the process runs, as CUDA's own users do.
#[derive(Clone, Copy)]
pub(super) struct Driver {
    pub(super) calls: Calls,
}

impl Driver {
    /// Loads the system's driver, or the one that [`LIBRARY`] names, and starts it.
    pub(super) fn load() -> Result<Self, CudaError> {
        let path = std::env::var_os(LIBRARY).map_or_else(|| PathBuf::from("libcuda.so.1"), PathBuf::from);
        let library = Library::open(path)?;
        // SAFETY: whoever names a library here names a driver, as the loader's own path would.
        let driver = Self { calls: unsafe { Calls::of(&library)? } };
        // SAFETY: no pointers.
        driver.check("cuInit", "starting the driver", unsafe { (driver.calls.init)(0) })?;
        Ok(driver)
    }

    /// An error for a status other than 0: `call` gave it while `doing` something.
    pub(super) fn check(&self, call: &'static str, doing: &str, status: c_int) -> Result<(), CudaError> {
        match status {
            0 => Ok(()),
            NO_DEVICE => Err(CudaError::NoDevice),
            UNSUPPORTED_PTX => Err(CudaError::OldDriver { version: self.version() }),
            _ => {
                let name = self.word(self.calls.error_name, status).unwrap_or_else(|| format!("status {status}"));
                let text = self.word(self.calls.error_text, status).unwrap_or_default();
                Err(CudaError::Call { doing: doing.into(), call, name, text })
            }
        }
    }

    /// The CUDA that the driver was made for: 12060 is 12.6; 0 if it does not say.
    pub(super) fn version(&self) -> i32 {
        let mut version = 0;
        // SAFETY: a place to write to.
        if unsafe { (self.calls.version)(&raw mut version) } == 0 { version } else { 0 }
    }

    fn word(&self, call: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int, status: c_int) -> Option<String> {
        let mut text = null();
        // SAFETY: the driver's texts are constants that end with a 0.
        unsafe {
            let known = call(status, &raw mut text) == 0 && !text.is_null();
            known.then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    }
}

/// A shared library.
struct Library {
    path: PathBuf,
    #[cfg(target_os = "linux")]
    handle: Handle,
}

#[cfg(target_os = "linux")]
impl Library {
    fn open(path: PathBuf) -> Result<Self, CudaError> {
        use std::os::unix::ffi::OsStrExt as _;
        let why = |why: String| CudaError::NoDriver { library: path.clone(), why };
        let name = std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|error| why(error.to_string()))?;
        // SAFETY: a text that ends with a 0; what the library runs when it is loaded is the driver's business.
        // Global: other libraries look the driver's functions up by name.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        if handle.is_null() {
            // SAFETY: after a failure there is a text, and it ends with a 0.
            let text = unsafe {
                let text = libc::dlerror();
                if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
            };
            return Err(why(text));
        }
        Ok(Self { path, handle })
    }

    fn symbol(&self, name: &CStr) -> Result<Handle, CudaError> {
        // SAFETY: the library stays loaded.
        let found = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        if found.is_null() {
            let symbol = name.to_string_lossy().into_owned();
            return Err(CudaError::NoDriver { library: self.path.clone(), why: format!("it has no {symbol}") });
        }
        Ok(found)
    }
}

#[cfg(not(target_os = "linux"))]
impl Library {
    fn open(path: PathBuf) -> Result<Self, CudaError> {
        Err(CudaError::NoDriver { library: path, why: "only Linux is supported".into() })
    }

    fn symbol(&self, name: &CStr) -> Result<Handle, CudaError> {
        let why = format!("it has no {}", name.to_string_lossy());
        Err(CudaError::NoDriver { library: self.path.clone(), why })
    }
}
