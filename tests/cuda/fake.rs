//! The test double of the driver, built and loaded.

#![allow(dead_code)] // each test program uses a part of it

use std::ffi::{CStr, CString, c_int, c_long, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use cellgate::cuda::LIBRARY;

use super::network::LaunchHost;
use crate::common;

/// What kernels/host/fake_cuda.cpp gives to tests.
pub struct Fake {
    fail: unsafe extern "C" fn(c_long, c_int),
    calls: unsafe extern "C" fn() -> c_long,
    alive: unsafe extern "C" fn() -> c_long,
    device: unsafe extern "C" fn(c_int, c_int, c_int, c_int, usize),
    pub launch_host: LaunchHost,
    /// There is one device: one test at a time.
    turn: Mutex<()>,
}

/// A test's turn with the device, which is an Orin again afterwards.
pub struct Turn {
    pub fake: &'static Fake,
    _turn: MutexGuard<'static, ()>,
}

/// Builds and loads the double once; none, and said so, where there is no C++ compiler.
pub fn turn(test: &str) -> Option<Turn> {
    static FAKE: OnceLock<Option<Fake>> = OnceLock::new();
    let Some(fake) = FAKE.get_or_init(load) else {
        common::skip(test, "a C++ compiler (apt-get install g++)");
        return None;
    };
    let turn = Turn { fake, _turn: fake.turn.lock().unwrap_or_else(PoisonError::into_inner) };
    turn.orin();
    Some(turn)
}

fn load() -> Option<Fake> {
    let library = match std::env::var_os("CELLGATE_FAKE_LIBCUDA") {
        Some(built) => built.into(),
        None => {
            let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap().keep();
            let library = folder.join("libcuda.so.1");
            build(&library)?;
            library
        }
    };
    // SAFETY: before any other thread of this program looks at the environment; tests that do take their turn first.
    unsafe { std::env::set_var(LIBRARY, &library) };
    let path = CString::new(library.to_str().unwrap()).unwrap();
    // SAFETY: the library was just built; these are its functions, with the types that it declares.
    unsafe {
        let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL);
        assert!(!handle.is_null(), "{}", CStr::from_ptr(libc::dlerror()).to_string_lossy());
        let symbol = |name: &CStr| {
            let found = libc::dlsym(handle, name.as_ptr());
            assert!(!found.is_null(), "{name:?}");
            found
        };
        Some(Fake {
            fail: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(c_long, c_int)>(symbol(c"fake_cuda_fail")),
            calls: std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> c_long>(symbol(c"fake_cuda_calls")),
            alive: std::mem::transmute::<*mut c_void, unsafe extern "C" fn() -> c_long>(symbol(c"fake_cuda_alive")),
            device: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(c_int, c_int, c_int, c_int, usize)>(
                symbol(c"fake_cuda_device"),
            ),
            launch_host: std::mem::transmute::<*mut c_void, LaunchHost>(symbol(c"cuLaunchHostFunc")),
            turn: Mutex::new(()),
        })
    }
}

fn build(library: &Path) -> Option<()> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
    Command::new(&compiler).arg("--version").output().ok()?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/host/fake_cuda.cpp");
    let done = Command::new(&compiler)
        .args("-std=c++17 -O2 -Wall -Wextra -Werror -Wno-unknown-pragmas -fPIC -shared".split(' '))
        .args(["-Wl,-soname,libcuda.so.1", "-ffp-contract=off", "-fno-strict-aliasing", "-DCELLGATE_HOST", "-o"])
        .args([library, &source])
        .output()
        .unwrap();
    assert!(done.status.success(), "{compiler}: {}", String::from_utf8_lossy(&done.stderr));
    Some(())
}

impl Turn {
    /// Counts calls from 1 again; call `at` fails with `status`, none if it is 0.
    pub fn fail(&self, at: usize, status: i32) {
        // SAFETY: no pointers.
        unsafe { (self.fake.fail)(at as c_long, status) }
    }

    /// Calls since then.
    pub fn calls(&self) -> usize {
        // SAFETY: as above.
        unsafe { (self.fake.calls)() as usize }
    }

    /// What was made and not given back.
    pub fn alive(&self) -> i64 {
        // SAFETY: as above.
        unsafe { (self.fake.alive)() }
    }

    /// Another device: compute capability, the driver's CUDA, how many, bytes of memory.
    pub fn device(&self, (major, minor): (i32, i32), driver: i32, count: i32, memory: usize) {
        // SAFETY: as above.
        unsafe { (self.fake.device)(major, minor, driver, count, memory) }
    }

    /// The usual one.
    pub fn orin(&self) {
        self.device((8, 7), 12060, 1, 8 << 30);
        self.fail(0, 0);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.orin();
    }
}
