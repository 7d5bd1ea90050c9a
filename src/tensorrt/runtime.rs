//! The loaded library: it builds engines and reads them.

use std::ffi::{CStr, CString, c_char, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::engine::Engine;
use super::error::TensorRtError;
use super::ffi;

/// A version of TensorRT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Engines, libraries and headers of different ones do not go together.
    pub major: u32,
    /// Engines of different ones do not go together.
    pub minor: u32,
    /// As above.
    pub patch: u32,
}

impl Version {
    /// From 10000·major + 100·minor + patch.
    fn from_number(number: i32) -> Self {
        let number = u32::try_from(number).unwrap_or(0);
        Self { major: number / 10_000, minor: number / 100 % 100, patch: number % 100 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// How an engine is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildOptions {
    /// Most working memory that one layer may take, in MiB.
    pub workspace_mib: u32,
    /// From 0 to 5: how long TensorRT looks for the fastest implementation of each layer.
    pub optimisation: u8,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self { workspace_mib: 256, optimisation: 3 }
    }
}

/// What a build gave.
#[derive(Debug, Default)]
pub struct Built {
    /// The engine, as [`Runtime::deserialise`] reads it on this GPU.
    pub plan: Vec<u8>,
    /// What was measured on this GPU, to make the next build faster; may be empty.
    pub timing_cache: Vec<u8>,
}

/// TensorRT's library, loaded, with a runtime. Clones share it.
#[derive(Clone, Debug)]
pub struct Runtime(Arc<Loaded>);

#[derive(Debug)]
struct Loaded {
    api: &'static ffi::Api,
    handle: NonNull<ffi::Runtime>,
    version: Version,
    parser: Option<CString>,
}

// SAFETY: TensorRT's runtime may be used from any thread, and by several at once.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: it was opened, and engines hold the runtime that they come from.
        unsafe { (self.api.close)(self.handle.as_ptr()) }
    }
}

impl Runtime {
    /// Loads TensorRT from where the loader finds it: `libnvinfer.so.MAJOR`, for the latest major version that is there and that
    /// this program was built for. The variables `CELLGATE_LIBNVINFER` and `CELLGATE_LIBNVONNXPARSER` name other files.
    ///
    /// # Errors
    /// If the program was built without TensorRT, the library is missing or of another version, or it finds no GPU.
    pub fn open() -> Result<Self, TensorRtError> {
        let named = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
        Self::load(named("CELLGATE_LIBNVINFER").as_deref(), named("CELLGATE_LIBNVONNXPARSER").as_deref())
    }

    /// [`Runtime::open`] with the paths of the library and of its ONNX parser, which is loaded for a build.
    ///
    /// # Errors
    /// As [`Runtime::open`].
    pub fn load(library: Option<&Path>, parser: Option<&Path>) -> Result<Self, TensorRtError> {
        if ffi::APIS.is_empty() {
            return Err(TensorRtError::NotBuilt);
        }
        let either =
            |of: fn(u32) -> String| ffi::APIS.iter().map(|api| of(major(api))).collect::<Vec<_>>().join(" or ");
        let majors = either(|major| major.to_string());
        let text = |path: Option<&Path>| {
            let c_text = |path: &Path| {
                CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| TensorRtError::Library {
                    library: path.display().to_string(),
                    majors: majors.clone(),
                    why: "its path has a zero byte".into(),
                })
            };
            path.map(c_text).transpose()
        };
        let (path, parser) = (text(library)?, text(parser)?);
        let library = library
            .map_or_else(|| either(|major| format!("libnvinfer.so.{major}")), |library| library.display().to_string());
        let (mut missing, mut foreign) = (Vec::new(), Vec::new());
        for &api in ffi::APIS {
            let mut handle = ptr::null_mut();
            // SAFETY: a path that ends with a zero or null, a function and a place for a pointer.
            let status = unsafe { (api.open)(pointer(path.as_deref()), log, &raw mut handle) };
            match (status, NonNull::new(handle)) {
                (ffi::OK, Some(handle)) => {
                    // SAFETY: it was just opened.
                    let version = Version::from_number(unsafe { (api.version)(handle.as_ptr()) });
                    return Ok(Self(Arc::new(Loaded { api, handle, version, parser })));
                }
                (ffi::LIBRARY, _) => missing.push(ffi::reason(api)),
                (ffi::VERSION, _) => foreign.push(ffi::reason(api)),
                _ => return Err(TensorRtError::Refused { what: "starting TensorRT", why: ffi::reason(api) }),
            }
        }
        missing.dedup();
        if foreign.is_empty() {
            Err(TensorRtError::Library { library, majors, why: missing.join("; ") })
        } else {
            Err(TensorRtError::OtherMajor { library, majors, why: foreign.join("; ") })
        }
    }

    /// The shim that it was opened with.
    pub(super) fn api(&self) -> &'static ffi::Api {
        self.0.api
    }

    /// The version of the library that was loaded.
    #[must_use]
    pub fn version(&self) -> Version {
        self.0.version
    }

    /// Builds an engine of an ONNX model for this machine's GPU, in the types that the model is written in. Takes seconds to
    /// minutes, and the GPU. `timing_cache` is what an earlier build on it left, or empty.
    ///
    /// # Errors
    /// If the ONNX parser cannot be loaded, or TensorRT refuses the model.
    pub fn build(&self, onnx: &[u8], options: BuildOptions, timing_cache: &[u8]) -> Result<Built, TensorRtError> {
        let options = ffi::Options {
            workspace: i64::from(options.workspace_mib) << 20,
            optimisation: options.optimisation.into(),
            timing_cache: timing_cache.as_ptr().cast(),
            timing_cache_size: timing_cache.len(),
        };
        let mut built = Built::default();
        // SAFETY: the runtime is open; the bytes live through the call, and the two functions get the pointer to `built`.
        let status = unsafe {
            (self.api().build)(
                self.0.handle.as_ptr(),
                pointer(self.0.parser.as_deref()),
                onnx.as_ptr().cast(),
                onnx.len(),
                &raw const options,
                take_plan,
                take_timing_cache,
                (&raw mut built).cast(),
            )
        };
        match status {
            ffi::OK => Ok(built),
            ffi::LIBRARY => {
                let majors = major(self.api()).to_string();
                let name = || format!("libnvonnxparser.so.{majors}");
                let library = self.0.parser.as_ref().map_or_else(name, |path| path.to_string_lossy().into_owned());
                Err(TensorRtError::Library { library, majors, why: ffi::reason(self.api()) })
            }
            ffi::PARSE | ffi::BUILD => Err(TensorRtError::Build { why: ffi::reason(self.api()) }),
            _ => Err(TensorRtError::Refused { what: "building a TensorRT engine", why: ffi::reason(self.api()) }),
        }
    }

    /// Reads an engine that [`Runtime::build`] made: its weights are then in device memory.
    ///
    /// # Safety
    /// TensorRT trusts a plan, which holds code for the GPU: `plan` must be one that it made, whole.
    ///
    /// # Errors
    /// If TensorRT refuses it, as it does where version or GPU differ, or there is too little memory.
    pub unsafe fn deserialise(&self, plan: &[u8]) -> Result<Engine, TensorRtError> {
        let mut handle = ptr::null_mut();
        // SAFETY: the runtime is open and the plan is a whole one, as the caller says.
        let status = unsafe {
            (self.api().deserialise)(self.0.handle.as_ptr(), plan.as_ptr().cast(), plan.len(), &raw mut handle)
        };
        match (status, NonNull::new(handle)) {
            // SAFETY: the shim made it, and nobody else has it.
            (ffi::OK, Some(handle)) => unsafe { Engine::from_handle(handle, self.clone(), plan.len()) },
            (ffi::PLAN, _) => Err(TensorRtError::Plan { why: ffi::reason(self.api()) }),
            _ => Err(TensorRtError::Refused { what: "reading a TensorRT engine", why: ffi::reason(self.api()) }),
        }
    }
}

fn pointer(text: Option<&CStr>) -> *const c_char {
    text.map_or(ptr::null(), CStr::as_ptr)
}

/// Which TensorRT a shim is for.
fn major(api: &ffi::Api) -> u32 {
    Version::from_number(api.header_version).major
}

extern "C" fn log(severity: i32, text: *const c_char) {
    let level = match severity {
        0 | 1 => log::Level::Error,
        2 => log::Level::Warn,
        3 => log::Level::Debug, // a page for each engine
        _ => log::Level::Trace,
    };
    // SAFETY: the shim passes a text that ends with a zero.
    let text = unsafe { CStr::from_ptr(text) };
    log::log!(target: "cellgate::tensorrt", level, "{}", text.to_string_lossy());
}

extern "C" fn take_plan(built: *mut c_void, bytes: *const c_void, size: usize) {
    // SAFETY: `build` passes its `Built`, and the shim bytes that live through the call.
    unsafe { (*built.cast::<Built>()).plan = std::slice::from_raw_parts(bytes.cast(), size).to_vec() }
}

extern "C" fn take_timing_cache(built: *mut c_void, bytes: *const c_void, size: usize) {
    // SAFETY: as above.
    unsafe { (*built.cast::<Built>()).timing_cache = std::slice::from_raw_parts(bytes.cast(), size).to_vec() }
}
