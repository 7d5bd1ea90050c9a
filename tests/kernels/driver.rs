//! A CUDA driver, real or fake, by the few calls that the kernels' suite needs of it.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::ptr::{null, null_mut};
use std::sync::{Mutex, PoisonError};

use super::Shape;

type Handle = *mut c_void;

/// CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
const MAX_DYNAMIC_SHARED: c_int = 8;
/// CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, in kHz
const CLOCK_OF_MEMORY: c_int = 36;
/// CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH, in bits
const WIDTH_OF_BUS: c_int = 37;

macro_rules! driver_calls {
    ($($call:ident = $symbol:literal ($($argument:ty),*);)*) => {
        struct Calls { $($call: unsafe extern "C" fn($($argument),*) -> c_int,)* }

        impl Calls {
            /// # Safety
            /// `library` is a CUDA driver.
            unsafe fn of(library: Handle) -> Self {
                // SAFETY: these symbols have had these signatures since CUDA 4.
                unsafe { Self { $($call: std::mem::transmute::<Handle, unsafe extern "C" fn($($argument),*) -> c_int>(
                    symbol(library, $symbol)),)* } }
            }
        }
    };
}

driver_calls! {
    init = c"cuInit" (c_uint);
    device = c"cuDeviceGet" (*mut c_int, c_int);
    name = c"cuDeviceGetName" (*mut c_char, c_int, c_int);
    attribute = c"cuDeviceGetAttribute" (*mut c_int, c_int, c_int);
    retain = c"cuDevicePrimaryCtxRetain" (*mut Handle, c_int);
    enter = c"cuCtxSetCurrent" (Handle);
    synchronise = c"cuCtxSynchronize" ();
    load = c"cuModuleLoadData" (*mut Handle, *const c_char);
    function = c"cuModuleGetFunction" (*mut Handle, Handle, *const c_char);
    set_attribute = c"cuFuncSetAttribute" (Handle, c_int, c_int);
    launch = c"cuLaunchKernel" (Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *const *mut c_void, *const c_void);
    allocate = c"cuMemAlloc_v2" (*mut u64, usize);
    free = c"cuMemFree_v2" (u64);
    upload = c"cuMemcpyHtoD_v2" (u64, *const c_void, usize);
    download = c"cuMemcpyDtoH_v2" (*mut c_void, u64, usize);
    new_event = c"cuEventCreate" (*mut Handle, c_uint);
    record = c"cuEventRecord" (Handle, Handle);
    elapsed = c"cuEventElapsedTime" (*mut f32, Handle, Handle);
    error_name = c"cuGetErrorName" (c_int, *mut *const c_char);
}

/// # Safety
/// `library` is loaded.
unsafe fn symbol(library: Handle, name: &CStr) -> Handle {
    // SAFETY: as the caller promised.
    let found = unsafe { libc::dlsym(library, name.as_ptr()) };
    assert!(!found.is_null(), "the driver has no {}", name.to_string_lossy());
    found
}

/// A driver with the committed PTX loaded on its first device.
pub struct Driver {
    calls: Calls,
    context: Handle,
    device: c_int,
    functions: HashMap<String, Handle>,
    /// A function's limit of shared memory is set before each of its launches, and tests run at the same time.
    launching: Mutex<()>,
}

// SAFETY: contexts and functions of the driver may be used from any thread.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}

impl Driver {
    /// Loads the driver of this name or path, and every kernel of these PTX texts.
    pub fn open(library: &OsStr, ptx: &[String]) -> Self {
        let path = CString::new(library.as_bytes()).unwrap();
        let mut this = Self {
            // SAFETY: who names a driver names one.
            calls: unsafe {
                let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
                assert!(!library.is_null(), "{}", CStr::from_ptr(libc::dlerror()).to_string_lossy());
                Calls::of(library)
            },
            context: null_mut(),
            device: 0,
            functions: HashMap::new(),
            launching: Mutex::new(()),
        };
        // SAFETY: places to write to, of the right types, and texts that end with a 0.
        unsafe {
            this.check("cuInit", (this.calls.init)(0));
            let status = (this.calls.device)(&raw mut this.device, 0);
            this.check("cuDeviceGet", status);
            let status = (this.calls.retain)(&raw mut this.context, this.device);
            this.check("cuDevicePrimaryCtxRetain", status);
            this.enter();
            for text in ptx {
                let (image, mut module) = (CString::new(text.as_str()).unwrap(), null_mut());
                this.check("cuModuleLoadData", (this.calls.load)(&raw mut module, image.as_ptr()));
                for entry in text.split(".entry ").skip(1) {
                    let name = entry.split('(').next().unwrap();
                    let (symbol, mut function) = (CString::new(name).unwrap(), null_mut());
                    this.check(name, (this.calls.function)(&raw mut function, module, symbol.as_ptr()));
                    this.functions.insert(name.to_owned(), function);
                }
            }
        }
        this
    }

    fn check(&self, what: &str, status: c_int) {
        assert!(status == 0, "{what}: {}", self.error(status));
    }

    fn error(&self, status: c_int) -> String {
        let mut name = null();
        // SAFETY: the driver's names are constants.
        unsafe {
            (self.calls.error_name)(status, &raw mut name);
            if name.is_null() { status.to_string() } else { CStr::from_ptr(name).to_string_lossy().into_owned() }
        }
    }

    /// Each thread must say in which context it works.
    fn enter(&self) {
        // SAFETY: the context is kept as long as the process runs.
        self.check("cuCtxSetCurrent", unsafe { (self.calls.enter)(self.context) });
    }

    /// The device's name.
    pub fn name(&self) -> String {
        let mut name = [0; 128];
        // SAFETY: 128 bytes, and the driver ends the text with a 0.
        unsafe {
            self.check("cuDeviceGetName", (self.calls.name)(name.as_mut_ptr(), 128, self.device));
            CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned()
        }
    }

    /// Bytes a second of its memory, by clock and width of its bus; 0 where the driver does not say.
    pub fn peak(&self) -> f64 {
        let [clock, width] = [CLOCK_OF_MEMORY, WIDTH_OF_BUS].map(|attribute| {
            let mut value = 0;
            // SAFETY: a place to write to.
            self.check("cuDeviceGetAttribute", unsafe {
                (self.calls.attribute)(&raw mut value, attribute, self.device)
            });
            f64::from(value)
        });
        2.0 * clock * 1e3 * width / 8.0
    }

    /// Launches a kernel and waits for it.
    ///
    /// # Safety
    /// The arguments are what the kernel takes.
    pub unsafe fn launch(&self, name: &str, shape: Shape, arguments: &[*mut c_void]) -> Result<(), String> {
        // SAFETY: as the caller promised.
        unsafe { self.start(name, shape, arguments) }?;
        // SAFETY: no arguments.
        match unsafe { (self.calls.synchronise)() } {
            0 => Ok(()),
            status => Err(format!("{name}: {}", self.error(status))),
        }
    }

    /// # Safety
    /// As [`launch`](Self::launch).
    unsafe fn start(&self, name: &str, shape: Shape, arguments: &[*mut c_void]) -> Result<(), String> {
        self.enter();
        let Some(&function) = self.functions.get(name) else { return Err(format!("there is no kernel {name}")) };
        let (grid, block, shared) = (shape.grid, shape.block, shape.shared);
        let _one = self.launching.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: as the caller promised.
        let status = unsafe {
            self.check("cuFuncSetAttribute", (self.calls.set_attribute)(function, MAX_DYNAMIC_SHARED, shared as c_int));
            let [x, y, z] = grid;
            let (list, shared) = (arguments.as_ptr(), shared as c_uint);
            (self.calls.launch)(function, x, y, z, block[0], block[1], block[2], shared, null_mut(), list, null())
        };
        if status == 0 { Ok(()) } else { Err(format!("{name}: {}", self.error(status))) }
    }

    /// Milliseconds of each of `launches`, which follow one another.
    ///
    /// # Safety
    /// As [`launch`](Self::launch).
    pub unsafe fn time(&self, name: &str, shape: Shape, launches: &[Vec<*mut c_void>]) -> Vec<f32> {
        self.enter();
        let events: Vec<Handle> = (0..=launches.len())
            .map(|_| {
                let mut event = null_mut();
                // SAFETY: a place to write to.
                self.check("cuEventCreate", unsafe { (self.calls.new_event)(&raw mut event, 0) });
                event
            })
            .collect();
        let record = |event| {
            // SAFETY: an event of this context, and its default stream.
            self.check("cuEventRecord", unsafe { (self.calls.record)(event, null_mut()) });
        };
        record(events[0]);
        for (arguments, &event) in launches.iter().zip(&events[1..]) {
            // SAFETY: as the caller promised.
            unsafe { self.start(name, shape, arguments) }.unwrap();
            record(event);
        }
        // SAFETY: no arguments.
        self.check("cuCtxSynchronize", unsafe { (self.calls.synchronise)() });
        let between = |pair: &[Handle]| {
            let mut milliseconds = 0.0;
            // SAFETY: events that have happened.
            let status = unsafe { (self.calls.elapsed)(&raw mut milliseconds, pair[0], pair[1]) };
            self.check("cuEventElapsedTime", status);
            milliseconds
        };
        events.windows(2).map(between).collect()
    }

    /// Device memory of that many bytes.
    pub fn allocate(&self, bytes: usize) -> u64 {
        self.enter();
        let mut at = 0;
        // SAFETY: a place to write to.
        self.check("cuMemAlloc", unsafe { (self.calls.allocate)(&raw mut at, bytes) });
        at
    }

    /// Gives it back.
    pub fn free(&self, at: u64) {
        self.enter();
        // SAFETY: what `allocate` gave.
        unsafe { (self.calls.free)(at) };
    }

    /// Copies to device memory.
    pub fn upload(&self, at: u64, from: &[u128]) {
        self.enter();
        // SAFETY: the caller allocated as many bytes there.
        let status = unsafe { (self.calls.upload)(at, from.as_ptr().cast(), size_of_val(from)) };
        self.check("cuMemcpyHtoD", status);
    }

    /// Copies from device memory.
    pub fn download(&self, to: &mut [u128], at: u64) {
        self.enter();
        // SAFETY: as above.
        let status = unsafe { (self.calls.download)(to.as_mut_ptr().cast(), at, size_of_val(to)) };
        self.check("cuMemcpyDtoH", status);
    }
}
