//! Why the data set could not be brought, and the remedy.

use std::path::{Path, PathBuf};

use super::{DATA_VARIABLE, REQUIREMENT};
use crate::eval::dataset::DatasetError;

/// Why the data set could not be brought.
#[derive(Debug, thiserror::Error)]
pub enum ElpvError {
    /// Nowhere to put it.
    #[error("this user has no cache folder; name one with --data-dir or {DATA_VARIABLE}")]
    NoDataDir,
    /// Not fetched yet.
    #[error("the ELPV images are not in {folder}; fetch them with `cellgate data elpv`")]
    NotThere {
        /// Where they would be.
        folder: PathBuf,
    },
    /// The folder holds something else, or less.
    #[error("{folder} is not the whole ELPV set ({problem}); move it away or delete it, then run `cellgate data elpv`")]
    Damaged {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// No Python.
    #[error(
        "cannot run python3 to download {REQUIREMENT}; install Python 3 with pip, or download the wheel from PyPI elsewhere and give it with --wheel FILE"
    )]
    NoPython {
        /// What the system said.
        source: std::io::Error,
    },
    /// Python without pip.
    #[error(
        "python3 has no pip to download {REQUIREMENT}; install it (Debian, Ubuntu: apt install python3-pip), or download the wheel from PyPI elsewhere and give it with --wheel FILE"
    )]
    NoPip,
    /// pip found no way out.
    #[error(
        "pip cannot reach a package index to download {REQUIREMENT}; check the network, or download the wheel from PyPI elsewhere and give it with --wheel FILE. pip said: {said}"
    )]
    NoNetwork {
        /// Its last lines.
        said: String,
    },
    /// pip failed otherwise.
    #[error("pip could not download {REQUIREMENT}; or give the wheel with --wheel FILE. pip said: {said}")]
    Pip {
        /// Its last lines.
        said: String,
    },
    /// Not the file that was published.
    #[error("{wheel} is not the published {REQUIREMENT}: SHA-256 {found}, not {expected}; download it again")]
    WrongHash {
        /// The file.
        wheel: PathBuf,
        /// Its hash.
        found: String,
        /// What it must be.
        expected: String,
    },
    /// A wheel that must not be unpacked.
    #[error("refused to unpack {wheel}: {problem}")]
    Wheel {
        /// The file.
        wheel: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// No space.
    #[error(
        "the disk that holds {path} is full: ELPV needs 250 MB while it is unpacked; free some, or name another folder with --data-dir"
    )]
    DiskFull {
        /// Where it was to go.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {what} {path}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// What was unpacked does not read as a data set.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
}

pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ElpvError {
    let path = path.to_path_buf();
    move |source| match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ElpvError::DiskFull { path },
        _ => ElpvError::Io { what, path, source },
    }
}
