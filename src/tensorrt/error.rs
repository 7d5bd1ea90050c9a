//! What can go wrong between TensorRT and us.

use thiserror::Error;

/// Why TensorRT did not do what it was asked for.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TensorRtError {
    /// The program has no shim.
    #[error(
        "opening TensorRT: this cellgate was built without it; build it with `--features tensorrt` on a machine that has \
         TensorRT's headers (docs/tensorrt.md)"
    )]
    NotBuilt,
    /// A library is missing, or is another one.
    #[error(
        "loading TensorRT {majors} from {library}: {why}; install TensorRT of this major version (JetPack has it) or name its \
         folder in LD_LIBRARY_PATH"
    )]
    Library {
        /// The library, by the path or names it was looked for.
        library: String,
        /// The major versions that the program was built for.
        majors: String,
        /// What the loader or the shim said.
        why: String,
    },
    /// The library is of a version that the program was not built for.
    #[error(
        "loading TensorRT {majors} from {library}: {why}; install one that fits, or build cellgate with the headers of the \
         TensorRT that is installed (TENSORRT_INCLUDE)"
    )]
    OtherMajor {
        /// The library.
        library: String,
        /// The major versions that the program was built for.
        majors: String,
        /// Both versions, in words.
        why: String,
    },
    /// TensorRT would not make one of its objects.
    #[error(
        "{what}: {why}; is there an NVIDIA GPU with a driver that fits, and enough free memory? (`cellgate doctor`)"
    )]
    Refused {
        /// What was attempted.
        what: &'static str,
        /// What TensorRT said.
        why: String,
    },
    /// TensorRT cannot read a plan.
    #[error(
        "reading a TensorRT engine: {why}; build it anew with `cellgate engine build`, or free device memory if that is \
         what it lacks"
    )]
    Plan {
        /// What TensorRT said.
        why: String,
    },
    /// TensorRT cannot read an ONNX model, or makes no engine of it.
    #[error("building a TensorRT engine: {why}; the log has what TensorRT says of it, more with CELLGATE_LOG=debug")]
    Build {
        /// What TensorRT said.
        why: String,
    },
    /// An engine's tensors are not those of the network.
    #[error("using the TensorRT engine of the {network}: {why}; build it anew with `cellgate engine build`")]
    Tensors {
        /// Which network.
        network: String,
        /// Which tensor, what it is and what was expected.
        why: String,
    },
    /// Too little working memory.
    #[error("making ready a TensorRT engine: {why}")]
    Memory {
        /// What was given and what is needed.
        why: String,
    },
}
