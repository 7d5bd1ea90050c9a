//! The doubles of TensorRT's libraries: built from the headers that the shim was compiled with, loaded, and told what to do.
#![allow(dead_code)]

use std::ffi::{CString, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use half::f16;

use cellgate::tensorrt::{Runtime, Source, TensorRtError};

/// The library, in both parts, and its controls.
pub struct Double {
    library: *mut c_void,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

// SAFETY: the controls are used by one test at a time.
unsafe impl Send for Double {}
// SAFETY: as above.
unsafe impl Sync for Double {}

/// One test's use of the double.
pub struct Use {
    pub double: &'static Double,
    networks: Box<Networks>,
    _alone: MutexGuard<'static, ()>,
}

type Compute = Box<dyn Fn(&[f32], &mut [Vec<f16>])>;

#[derive(Default)]
struct Networks(Vec<Network>);

struct Network {
    hash: u64,
    input: usize,
    outputs: Vec<usize>,
    compute: Compute,
}

/// The folder of a source tree's tests.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tensorrt")
}

/// Where TensorRT's headers are, a folder for each major version, if the test's caller says.
pub fn headers() -> Vec<PathBuf> {
    std::env::var_os("TENSORRT_INCLUDE").map(|list| std::env::split_paths(&list).collect()).unwrap_or_default()
}

/// Writes `stubs.h` of these headers into a folder; whether there is a Python to do it.
pub fn write_stubs(headers: &Path, folder: &Path) -> bool {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let mut command = Command::new(python);
    let Ok(status) = command.arg(sources().join("stubs.py")).arg(headers).arg(folder.join("stubs.h")).status() else {
        return false;
    };
    assert!(status.success(), "stubs.py failed");
    true
}

/// A compiler's call with the flags that all C++ of these tests wants.
pub fn compile(compiler: &str, headers: &Path, stubs: &Path) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(compiler);
    command.args(["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-fvisibility=hidden", "-I"]);
    command.arg(stubs).arg("-isystem").arg(headers).arg("-idirafter").arg(root.join("src/tensorrt/cuda"));
    command
}

/// The double of the TensorRT that these headers are of; none if a tool is missing.
pub fn build(headers: &Path) -> Option<Double> {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    if !write_stubs(headers, folder.path()) {
        return None;
    }
    let path = folder.path().join("libtensorrt_double.so");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".into());
    let mut compiler = compile(&compiler, headers, folder.path());
    compiler.args(["-fPIC", "-shared"]).arg(sources().join("fake.cpp")).arg("-o").arg(&path);
    assert!(compiler.status().ok()?.success(), "fake.cpp was not compiled");
    let name = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the library was just built, runs nothing when it is loaded, and stays loaded.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
    assert!(!library.is_null());
    Some(Double { library, path, _folder: folder })
}

fn double() -> Option<&'static Double> {
    static DOUBLE: OnceLock<Option<Double>> = OnceLock::new();
    DOUBLE.get_or_init(|| build(headers().first()?)).as_ref()
}

/// The double for one test, or none after it was said what is missing.
pub fn take(test: &str) -> Option<Use> {
    static ALONE: Mutex<()> = Mutex::new(());
    let Some(double) = double() else {
        super::common::skip(test, "g++, python3 and TENSORRT_INCLUDE, which `cargo xtask tensorrt-headers` prints");
        return None;
    };
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    double.fail(0);
    double.version(0);
    Some(Use { double, networks: Box::default(), _alone: alone })
}

impl Double {
    fn control<F: Copy>(&self, name: &str) -> F {
        let name = CString::new(name).unwrap();
        // SAFETY: the library is loaded, and the callers below ask for what fake.hpp declares.
        unsafe {
            let symbol = libc::dlsym(self.library, name.as_ptr());
            assert!(!symbol.is_null(), "the double has no {name:?}");
            std::mem::transmute_copy(&symbol)
        }
    }

    /// The library's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The n-th call from now on fails; 0 for none.
    pub fn fail(&self, n: i32) {
        self.control::<extern "C" fn(i32)>("cellgate_fake_trt_fail")(n);
    }

    /// The version that it says, or 0 for that of the headers.
    pub fn version(&self, version: i32) {
        self.control::<extern "C" fn(i32)>("cellgate_fake_trt_version")(version);
    }

    /// Calls that could fail since `fail` was called.
    pub fn calls(&self) -> i32 {
        self.control::<extern "C" fn() -> i32>("cellgate_fake_trt_calls")()
    }

    /// Objects that are alive.
    pub fn live(&self) -> i32 {
        self.control::<extern "C" fn() -> i32>("cellgate_fake_trt_live")()
    }

    /// Builds that had a timing cache.
    pub fn warm_builds(&self) -> i32 {
        self.control::<extern "C" fn() -> i32>("cellgate_fake_trt_warm_builds")()
    }

    /// TensorRT on the double.
    pub fn runtime(&self) -> Result<Runtime, TensorRtError> {
        Runtime::load(Some(&self.path), Some(&self.path))
    }
}

impl Use {
    /// Says how a network is computed: from its input to its outputs, which come as zeros of the right lengths.
    pub fn compute(&mut self, source: &Source, compute: impl Fn(&[f32], &mut [Vec<f16>]) + 'static) {
        let numbers = |shape: &[i64]| shape.iter().product::<i64>() as usize;
        let mut lengths = source.tensors().iter().map(|tensor| numbers(&tensor.shape));
        let hash = source
            .onnx()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let input = lengths.next().unwrap();
        self.networks.0.push(Network { hash, input, outputs: lengths.collect(), compute: Box::new(compute) });
        let register =
            self.double.control::<extern "C" fn(Option<Callback>, *const c_void)>("cellgate_fake_trt_compute");
        register(Some(run), std::ptr::from_ref(&*self.networks).cast());
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let register =
            self.double.control::<extern "C" fn(Option<Callback>, *const c_void)>("cellgate_fake_trt_compute");
        register(None, std::ptr::null());
    }
}

type Callback = extern "C" fn(*mut c_void, u64, *const *mut f16, usize);

extern "C" fn run(networks: *mut c_void, hash: u64, tensors: *const *mut f16, count: usize) {
    // SAFETY: `compute` registered networks that live as long as the test's `Use`; the tensors are buffers of their sizes.
    unsafe {
        let networks = &*networks.cast::<Networks>();
        let network = networks.0.iter().find(|network| network.hash == hash).expect("a network that the test knows");
        let tensors = std::slice::from_raw_parts(tensors, count);
        let input = std::slice::from_raw_parts(tensors[0], network.input);
        let input: Vec<f32> = input.iter().map(|x| x.to_f32()).collect();
        let mut outputs: Vec<Vec<f16>> = network.outputs.iter().map(|&len| vec![f16::ZERO; len]).collect();
        (network.compute)(&input, &mut outputs);
        for (output, &place) in outputs.iter().zip(&tensors[1..]) {
            std::ptr::copy_nonoverlapping(output.as_ptr(), place, output.len());
        }
    }
}
