//! The kernels as a library of this machine, and memory for them that shows what was not written and what should not have
//! been.

pub mod cell;
pub mod driver;

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use driver::Driver;

/// Orders in which a block's threads run: ascending, descending, shuffled.
pub const ORDERS: [u32; 3] = [0, 1, 7];

type Entry = unsafe extern "C" fn(
    *const c_char,
    *const c_uint,
    *const c_uint,
    usize,
    c_uint,
    *mut *mut c_void,
    *mut c_char,
    usize,
) -> c_int;

/// Where the kernels run: compiled for this machine, or on a device (`CELLGATE_LIBCUDA` names its driver).
pub enum Kernels {
    Host(Entry),
    Device(Box<Driver>),
}

/// The folder of the kernels: in the package, or where the test is started without cargo (a board to which it was copied).
pub fn folder() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default().join("kernels")
}

/// The committed PTX, by its source.
pub fn ptx() -> Vec<(String, String)> {
    let files = std::fs::read_dir(folder().join("ptx")).unwrap().map(|file| file.unwrap().path());
    let mut all: Vec<_> = files
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(path).unwrap()))
        .collect();
    all.sort();
    all
}

/// Compiles a file of `kernels/host` to a shared library; none if there is no C++ compiler.
pub fn build(source: &str, to: &Path) -> Option<()> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
    Command::new(&compiler).arg("--version").output().ok()?;
    let done = Command::new(&compiler)
        .args("-std=c++17 -O2 -Wall -Wextra -Werror -Wno-unknown-pragmas -fPIC -shared".split(' '))
        .args(["-ffp-contract=off", "-fno-strict-aliasing", "-DCELLGATE_HOST", "-o"])
        .args([to, &folder().join("host").join(source)])
        .output()
        .unwrap();
    assert!(done.status.success(), "{compiler}: {}", String::from_utf8_lossy(&done.stderr));
    Some(())
}

/// The kernels; none if they must be compiled and there is no C++ compiler.
pub fn kernels() -> Option<&'static Kernels> {
    static KERNELS: OnceLock<Option<Kernels>> = OnceLock::new();
    KERNELS
        .get_or_init(|| {
            if let Some(driver) = std::env::var_os("CELLGATE_LIBCUDA") {
                let texts: Vec<String> = ptx().into_iter().map(|(_, text)| text).collect();
                return Some(Kernels::Device(Box::new(Driver::open(&driver, &texts))));
            }
            let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let library = folder.path().join("libkernels.so");
            build("launch.cpp", &library)?;
            let path = CString::new(library.to_str().unwrap()).unwrap();
            // SAFETY: the library was just built; it runs nothing when it is loaded, and stays loaded.
            let entry = unsafe {
                let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
                assert!(!library.is_null(), "{}", CStr::from_ptr(libc::dlerror()).to_string_lossy());
                libc::dlsym(library, c"cellgate_launch".as_ptr())
            };
            assert!(!entry.is_null(), "the library has no cellgate_launch");
            // SAFETY: kernels/host/launch.cpp declares it so.
            Some(Kernels::Host(unsafe { std::mem::transmute::<*mut c_void, Entry>(entry) }))
        })
        .as_ref()
}

/// The driver, where the kernels run on a device.
pub fn driver() -> Option<&'static Driver> {
    match kernels() {
        Some(Kernels::Device(driver)) => Some(driver),
        _ => None,
    }
}

/// The shape of a launch.
#[derive(Clone, Copy)]
pub struct Shape {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: usize,
}

impl Shape {
    /// Enough blocks of `block` threads for `count` of them.
    pub fn of(count: usize, block: u32) -> Self {
        Self { grid: [count.div_ceil(block as usize) as u32, 1, 1], block: [block, 1, 1], shared: 0 }
    }
}

impl Kernels {
    /// Runs a kernel; an error says what it did that it may not.
    ///
    /// # Safety
    /// The arguments are what the kernel takes, and its pointers lead to what it reads and writes.
    pub unsafe fn launch(
        &self,
        name: &str,
        shape: Shape,
        order: u32,
        arguments: &[*const c_void],
    ) -> Result<(), String> {
        let mut arguments: Vec<*mut c_void> = arguments.iter().map(|a| a.cast_mut()).collect();
        let entry = match self {
            Self::Host(entry) => entry,
            // SAFETY: as the caller promised. (A device has its own order.)
            Self::Device(driver) => return unsafe { driver.launch(name, shape, &arguments) },
        };
        let name = CString::new(name).unwrap();
        let mut error = [0; 256];
        // SAFETY: as the caller promised; the text fits, and ends with a 0.
        unsafe {
            let status = entry(
                name.as_ptr(),
                shape.grid.as_ptr(),
                shape.block.as_ptr(),
                shape.shared,
                order,
                arguments.as_mut_ptr(),
                error.as_mut_ptr(),
                error.len(),
            );
            if status == 0 { Ok(()) } else { Err(CStr::from_ptr(error.as_ptr()).to_string_lossy().into_owned()) }
        }
    }
}

/// The addresses of a kernel's arguments.
#[macro_export]
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => { &[$(std::ptr::from_ref(&$argument).cast::<std::ffi::c_void>()),*][..] };
}

/// Memory for kernels: aligned to 16 bytes, all ones (no number, in floats and halves) before and behind what is put there.
pub struct Memory<T> {
    words: Vec<u128>,
    len: usize,
    /// Where it lies on a device, once a kernel was given it; 0 on the host.
    device: u64,
    element: std::marker::PhantomData<T>,
}

const GUARD: usize = 64;

impl<T: bytemuck::Pod> Memory<T> {
    /// Room for `len` values, none of which has been written.
    pub fn new(len: usize) -> Self {
        let words = vec![u128::MAX; 2 * GUARD + (len * size_of::<T>()).div_ceil(16)];
        Self { words, len, device: 0, element: std::marker::PhantomData }
    }

    /// These values.
    pub fn of(values: &[T]) -> Self {
        let mut memory = Self::new(values.len());
        memory.bytes()[..size_of_val(values)].copy_from_slice(bytemuck::cast_slice(values));
        memory
    }

    fn bytes(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.words[GUARD..])
    }

    /// What a kernel takes; the values as they are here go to the device.
    pub fn pointer(&mut self) -> *mut T {
        let Some(driver) = driver() else { return self.bytes().as_mut_ptr().cast() };
        if self.device == 0 {
            self.device = driver.allocate(size_of_val(&self.words[..]));
        }
        driver.upload(self.device, &self.words);
        (self.device as usize + GUARD * 16) as *mut T
    }

    /// The values, after a look at what lies around them.
    pub fn values(&mut self) -> Vec<T> {
        if let (Some(driver), true) = (driver(), self.device != 0) {
            driver.download(&mut self.words, self.device);
        }
        assert!(self.words[..GUARD].iter().all(|&w| w == u128::MAX), "a kernel wrote before its memory");
        let len = self.len * size_of::<T>();
        assert!(self.bytes()[len..].iter().all(|&b| b == 0xff), "a kernel wrote behind its memory");
        bytemuck::pod_collect_to_vec(&self.bytes()[..len])
    }
}

impl<T> Drop for Memory<T> {
    fn drop(&mut self) {
        if let (Some(driver), true) = (driver(), self.device != 0) {
            driver.free(self.device);
        }
    }
}
