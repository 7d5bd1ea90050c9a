//! The device: a context, the kernels loaded in it, and launches of them.

use std::ffi::{CStr, c_int, c_uint, c_void};
use std::ptr::{null, null_mut};
use std::sync::Arc;

use super::CudaError;
use super::driver::{Driver, Handle, NOT_FOUND};
use super::memory::Mapped;
use crate::frame::Frame;

/// What PTX for `compute_80` runs on.
const OLDEST: (i32, i32) = (8, 0);

/// CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR and MAX_SHARED_MEMORY_PER_BLOCK_OPTIN.
const MAJOR: c_int = 75;
const MINOR: c_int = 76;
const MAX_SHARED: c_int = 97;
/// CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
const MAX_DYNAMIC_SHARED: c_int = 8;

/// The kernels, as `cargo xtask kernels --write` left them, with the 0 that the driver wants.
const MODULES: [(&str, &str); 4] = [
    ("frame", concat!(include_str!("../../kernels/ptx/frame.ptx"), "\0")),
    ("distance", concat!(include_str!("../../kernels/ptx/distance.ptx"), "\0")),
    ("heatmap", concat!(include_str!("../../kernels/ptx/heatmap.ptx"), "\0")),
    ("judge", concat!(include_str!("../../kernels/ptx/judge.ptx"), "\0")),
];

/// A CUDA device with the kernels loaded. Buffers, streams and graphs hold it, so that it outlives them.
pub struct Device {
    pub(super) driver: Driver,
    ordinal: c_int,
    context: Handle,
    modules: Vec<Handle>,
    name: String,
    capability: (i32, i32),
    max_shared: usize,
}

// SAFETY: contexts and modules of the driver may be used from any thread, each of which makes the context its current one
// (`enter`) before it uses them.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.describe())
    }
}

impl Device {
    /// Loads the driver, takes the first device and loads the kernels.
    ///
    /// # Errors
    /// If there is no driver or no device, or one of them is too old.
    pub fn open() -> Result<Arc<Self>, CudaError> {
        let driver = Driver::load()?;
        let calls = &driver.calls;
        let doing = "looking for a device";
        let (mut count, mut ordinal) = (0, 0);
        // SAFETY: places to write to.
        unsafe {
            driver.check("cuDeviceGetCount", doing, (calls.device_count)(&raw mut count))?;
            if count == 0 {
                return Err(CudaError::NoDevice);
            }
            driver.check("cuDeviceGet", doing, (calls.device)(&raw mut ordinal, 0))?;
        }
        let name = device_name(&driver, ordinal)?;
        let attribute = |attribute| {
            let mut value = 0;
            // SAFETY: a place to write to.
            let status = unsafe { (calls.device_attribute)(&raw mut value, attribute, ordinal) };
            driver.check("cuDeviceGetAttribute", doing, status).map(|()| value)
        };
        let capability = (attribute(MAJOR)?, attribute(MINOR)?);
        if capability < OLDEST {
            return Err(CudaError::OldDevice { name, capability });
        }
        let max_shared = usize::try_from(attribute(MAX_SHARED)?).unwrap_or(0);
        let mut context = null_mut();
        // SAFETY: a place to write to.
        let status = unsafe { (calls.retain)(&raw mut context, ordinal) };
        driver.check("cuDevicePrimaryCtxRetain", "opening the device", status)?;
        // From here on dropping it gives back what was taken.
        let mut device = Self { driver, ordinal, context, modules: Vec::new(), name, capability, max_shared };
        device.enter()?;
        for (name, ptx) in MODULES {
            let mut module = null_mut();
            // SAFETY: a place to write to, and a text that ends with a 0.
            let status = unsafe { (calls.load_module)(&raw mut module, ptx.as_ptr().cast()) };
            driver.check("cuModuleLoadData", &format!("loading the kernels of {name}.cu"), status)?;
            device.modules.push(module);
        }
        Ok(Arc::new(device))
    }

    /// What the device is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Compute capability, major and minor: (8, 7) is an Orin.
    #[must_use]
    pub fn capability(&self) -> (i32, i32) {
        self.capability
    }

    /// The CUDA that its driver was made for: 12060 is 12.6; 0 if it does not say.
    #[must_use]
    pub fn driver_version(&self) -> i32 {
        self.driver.version()
    }

    /// Name, compute capability and driver in a few words.
    #[must_use]
    pub fn describe(&self) -> String {
        let (major, minor) = self.capability;
        let version = self.driver_version();
        format!("{} (compute capability {major}.{minor}, CUDA {}.{})", self.name, version / 1000, version % 1000 / 10)
    }

    /// Bytes of device memory that are free, and all of them.
    ///
    /// # Errors
    /// What the driver says.
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: places to write to.
        let status = unsafe { (self.driver.calls.memory)(&raw mut free, &raw mut total) };
        self.check("cuMemGetInfo", "asking for the device's memory", status)?;
        Ok((free, total))
    }

    /// A black frame that the device reads and writes where it lies, in mapped memory of the host.
    ///
    /// # Errors
    /// If there is no such memory.
    ///
    /// # Panics
    /// If `white` is 0.
    pub fn frame(self: &Arc<Self>, width: usize, height: usize, white: u16) -> Result<Frame, CudaError> {
        let pixels = Mapped::<u16>::new(self, "a frame", width * height)?;
        Ok(Frame::lent(Box::new(pixels), width, height, white))
    }

    /// Whether the other's memory is this one's: both hold the device's one primary context.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.context == other.context
    }

    /// Bytes of shared memory that a block may ask for.
    pub(super) fn max_shared(&self) -> usize {
        self.max_shared
    }

    /// Makes the device's context this thread's: before any other call on a thread.
    pub(super) fn enter(&self) -> Result<(), CudaError> {
        // SAFETY: the context is held until this is dropped.
        self.check("cuCtxSetCurrent", "using the device", unsafe { (self.driver.calls.set_current)(self.context) })
    }

    /// See [`Driver::check`].
    pub(super) fn check(&self, call: &'static str, doing: &str, status: c_int) -> Result<(), CudaError> {
        self.driver.check(call, doing, status)
    }

    /// The kernel of this name, allowed to use `shared` bytes of dynamic shared memory.
    pub(super) fn kernel(&self, name: &'static CStr, shared: usize) -> Result<Kernel, CudaError> {
        let calls = &self.driver.calls;
        let doing = || format!("preparing the kernel {}", name.to_string_lossy());
        let mut function = null_mut();
        for &module in &self.modules {
            // SAFETY: a place to write to, a loaded module and a text that ends with a 0.
            match unsafe { (calls.function)(&raw mut function, module, name.as_ptr()) } {
                0 => break,
                NOT_FOUND => function = null_mut(),
                status => self.check("cuModuleGetFunction", &doing(), status)?,
            }
        }
        if function.is_null() {
            return Err(CudaError::Call {
                doing: doing(),
                call: "cuModuleGetFunction",
                name: "not found".into(),
                text: "no module has it".into(),
            });
        }
        if shared > 0 {
            let most = c_int::try_from(shared).unwrap_or(c_int::MAX);
            // SAFETY: a function of this context.
            let status = unsafe { (calls.set_attribute)(function, MAX_DYNAMIC_SHARED, most) };
            self.check("cuFuncSetAttribute", &doing(), status)?;
        }
        Ok(Kernel { name, function, shared: shared as c_uint })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // What a broken device refuses to give back goes with the process.
        let _ = self.enter();
        for &module in &self.modules {
            // SAFETY: loaded by `open`, and nothing of it is in use: whatever could be holds the device.
            let _ = unsafe { (self.driver.calls.unload_module)(module) };
        }
        // SAFETY: retained by `open`.
        let _ = unsafe { (self.driver.calls.release)(self.ordinal) };
    }
}

fn device_name(driver: &Driver, ordinal: c_int) -> Result<String, CudaError> {
    let mut name = [0; 128];
    // SAFETY: 128 bytes, in which the driver ends its text with a 0.
    unsafe {
        let status = (driver.calls.device_name)(name.as_mut_ptr(), name.len() as c_int, ordinal);
        driver.check("cuDeviceGetName", "looking for a device", status)?;
        Ok(CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned())
    }
}

/// A kernel of the device.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    name: &'static CStr,
    function: Handle,
    shared: c_uint,
}

// SAFETY: functions of a module may be used from any thread; whoever holds one holds the device.
unsafe impl Send for Kernel {}
// SAFETY: as above; launching one changes nothing of it.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// Puts a launch on a stream.
    ///
    /// # Safety
    /// The arguments are those that the kernel takes, and its pointers lead to device memory of the sizes that they name,
    /// which lives until the stream is done with it.
    pub(super) unsafe fn launch(
        &self,
        device: &Device,
        stream: Handle,
        grid: [usize; 2],
        block: [u32; 2],
        arguments: &[*mut c_void],
    ) -> Result<(), CudaError> {
        let [x, y] = grid.map(|n| n as c_uint);
        let (list, shared) = (arguments.as_ptr(), self.shared);
        // SAFETY: as the caller promised.
        let status = unsafe {
            let launch = device.driver.calls.launch;
            launch(self.function, x, y, 1, block[0], block[1], 1, shared, stream, list, null())
        };
        match status {
            0 => Ok(()),
            _ => device.check("cuLaunchKernel", &format!("launching {}", self.name.to_string_lossy()), status),
        }
    }
}

/// The addresses of a kernel's arguments.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => { &[$(std::ptr::from_ref(&$argument).cast_mut().cast::<std::ffi::c_void>()),*][..] };
}
pub(super) use arguments;
