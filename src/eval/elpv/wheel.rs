//! The wheel that the images come in: fetched by pip, hashed, unpacked without trust.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::error::io;
use super::{ElpvError, Progress, REQUIREMENT};
use crate::eval::dataset::LABELS_FILE;

/// No file of the wheel is larger when unpacked.
pub(super) const MAX_FILE: u64 = 4 << 20;
/// Nor are all of them together.
const MAX_TOTAL: u64 = 256 << 20;
const MAX_ENTRIES: usize = 10_000;
const DATA_PREFIX: &str = "elpv_dataset/data/";

/// Has pip download the wheel into `into`.
pub(super) fn download(python: &Path, into: &Path) -> Result<PathBuf, ElpvError> {
    let output = Command::new(python)
        .args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"])
        .args(["--disable-pip-version-check", "--progress-bar", "off", REQUIREMENT, "-d"])
        .arg(into)
        .output()
        .map_err(|source| ElpvError::NoPython { source })?;
    if !output.status.success() {
        return Err(pip_error(&String::from_utf8_lossy(&output.stderr), into));
    }
    let entries = std::fs::read_dir(into).map_err(io("list", into))?;
    let mut wheels = entries.flatten().map(|entry| entry.path());
    let wheel = wheels.find(|path| path.extension().is_some_and(|ending| ending == "whl"));
    wheel.ok_or_else(|| ElpvError::Pip { said: "success, but there is no wheel".into() })
}

/// What pip's complaint means.
fn pip_error(said: &str, into: &Path) -> ElpvError {
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if has(&["No module named pip"]) {
        return ElpvError::NoPip;
    }
    if has(&["No space left", "Disk quota exceeded"]) {
        return ElpvError::DiskFull { path: into.to_path_buf() };
    }
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(3)..].join(" / ");
    let network = [
        "Could not find a version",
        "No matching distribution",
        "NewConnectionError",
        "ConnectTimeout",
        "ReadTimeout",
        "ProxyError",
        "name resolution",
        "Max retries",
        "Connection refused",
        "Network is unreachable",
        "timed out",
        "SSLError",
    ];
    if has(&network) { ElpvError::NoNetwork { said: last } } else { ElpvError::Pip { said: last } }
}

pub(super) fn sha256(path: &Path) -> Result<String, ElpvError> {
    let mut file = File::open(path).map_err(io("open the wheel", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = file.read(&mut buffer).map_err(io("read the wheel", path))?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Unpacks `images/*.png`, `labels.csv` and the licence into `into`.
pub(super) fn unpack(wheel: &Path, into: &Path, progress: &mut dyn FnMut(Progress)) -> Result<(), ElpvError> {
    let refuse = |problem: String| ElpvError::Wheel { wheel: wheel.to_path_buf(), problem };
    let file = File::open(wheel).map_err(io("open the wheel", wheel))?;
    let mut archive = zip::ZipArchive::new(std::io::BufReader::new(file)).map_err(|error| refuse(error.to_string()))?;
    if archive.len() > MAX_ENTRIES {
        return Err(refuse(format!("{} entries, more than {MAX_ENTRIES}", archive.len())));
    }
    let images = into.join("images");
    std::fs::create_dir(&images).map_err(io("create", &images))?;
    let (mut written, total) = (0, archive.len());
    for index in 0..total {
        let entry = archive.by_index(index).map_err(|error| refuse(error.to_string()))?;
        let name = entry.name().map_err(|error| refuse(error.to_string()))?.into_owned();
        let tricky = name.starts_with(['/', '\\']) || name.split(['/', '\\']).any(|part| part == "..");
        if tricky || entry.enclosed_name().is_none() || entry.is_symlink() {
            return Err(refuse(format!("{name:?} leads out of its folder")));
        }
        let Some(target) = target(&name) else { continue };
        let path = into.join(target.map_err(refuse)?);
        let mut content = Vec::new();
        entry.take(MAX_FILE + 1).read_to_end(&mut content).map_err(|error| refuse(format!("{name}: {error}")))?;
        written += content.len() as u64;
        if content.len() as u64 > MAX_FILE || written > MAX_TOTAL {
            return Err(refuse(format!("{name:?} is larger than it can be")));
        }
        let mut file = File::create_new(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => refuse(format!("{name:?} is in it twice")),
            _ => io("create", &path)(error),
        })?;
        file.write_all(&content).map_err(io("write", &path))?;
        progress(Progress::Unpacking { done: index + 1, total });
    }
    Ok(())
}

/// Where an entry goes; `None` if it is not wanted, `Err` if it has no place in a data set.
fn target(name: &str) -> Option<Result<PathBuf, String>> {
    if name.ends_with("/licenses/LICENSE.md") {
        return Some(Ok("LICENSE.md".into()));
    }
    let inner = name.strip_prefix(DATA_PREFIX)?;
    if inner.is_empty() || inner == "images/" {
        return None;
    }
    let plain =
        |stem: &str| !stem.is_empty() && stem.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let image = inner.strip_prefix("images/").and_then(|file| file.strip_suffix(".png"));
    if inner == LABELS_FILE || image.is_some_and(plain) {
        Some(Ok(inner.split('/').collect()))
    } else {
        Some(Err(format!("{name:?} has no place in the data set")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn each_way_pip_can_fail_has_its_remedy() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let error = download(&dir.path().join("no-python"), dir.path()).unwrap_err();
        assert!(matches!(error, ElpvError::NoPython { .. }) && error.to_string().contains("--wheel"), "{error}");
        let cases = [
            ("/usr/bin/python3: No module named pip", "apt install python3-pip"),
            ("ERROR: Could not find a version that satisfies the requirement", "check the network"),
            ("OSError: [Errno 28] No space left on device", "is full"),
            ("ERROR: strange", "pip said: ERROR: strange"),
        ];
        for (said, remedy) in cases {
            let error = pip_error(&format!("{said}\n"), dir.path()).to_string();
            assert!(error.contains(remedy), "{said}: {error}");
        }
        let script = dir.path().join("python");
        std::fs::write(&script, "#!/bin/sh\necho 'ERROR: strange' >&2\nexit 1\n").unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        match download(&script, dir.path()) {
            Err(ElpvError::Pip { said }) => assert_eq!(said, "ERROR: strange"),
            // Another thread's fork may hold the script open for writing.
            Err(ElpvError::NoPython { source }) => assert_eq!(source.kind(), std::io::ErrorKind::ExecutableFileBusy),
            other => panic!("{other:?}"),
        }
    }
}
