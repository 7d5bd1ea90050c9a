//! The ELPV data set: 2,624 real EL images of cells, fetched from PyPI, never shipped.
//!
//! Buerhop-Lutz et al. 2018, Deitsch et al. 2019 and 2021; 300×300, 8 bits, one cell an image, of 44 modules, with
//! the experts' defect probability (0, 1/3, 2/3, 1) and mono or poly. The images are CC BY-NC-SA 4.0.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::dataset::{Dataset, DatasetError};

/// What pip is asked for.
pub const REQUIREMENT: &str = "elpv-dataset==1.0.0.post1";

/// SHA-256 of the wheel.
pub const WHEEL_SHA256: &str = "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c";

/// Images in the set.
pub const IMAGES: usize = 2624;

/// The variable that names the data folder.
pub const DATA_VARIABLE: &str = "CELLGATE_DATA";

/// No file of the wheel is larger when unpacked.
const MAX_FILE: u64 = 4 << 20;
/// Nor are all of them together.
const MAX_TOTAL: u64 = 256 << 20;
const MAX_ENTRIES: usize = 10_000;
const DATA_PREFIX: &str = "elpv_dataset/data/";
const TEMPORARY_PREFIX: &str = ".elpv-";

/// How far the fetch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// pip is at work (87 MB).
    Downloading,
    /// The wheel's hash is being compared.
    Checking,
    /// Files are being unpacked.
    Unpacking {
        /// Files done.
        done: usize,
        /// Files in all.
        total: usize,
    },
}

/// What a fetch found or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The data set's folder.
    pub folder: PathBuf,
    /// It was there already, and whole: nothing was done.
    pub already: bool,
}

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

fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ElpvError {
    let path = path.to_path_buf();
    move |source| match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ElpvError::DiskFull { path },
        _ => ElpvError::Io { what, path, source },
    }
}

/// The folder for data sets: `explicit`, else `CELLGATE_DATA`, else `cellgate` in the user's cache folder.
///
/// # Errors
/// If there is none of the three.
pub fn data_dir(explicit: Option<&Path>) -> Result<PathBuf, ElpvError> {
    if let Some(dir) = explicit {
        return Ok(dir.to_path_buf());
    }
    if let Some(dir) = std::env::var_os(DATA_VARIABLE).filter(|dir| !dir.is_empty()) {
        return Ok(dir.into());
    }
    dirs::cache_dir().map(|dir| dir.join("cellgate")).ok_or(ElpvError::NoDataDir)
}

/// Where the set lies in a data folder.
#[must_use]
pub fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join("elpv")
}

/// Opens the set fetched before.
///
/// # Errors
/// [`ElpvError::NotThere`] if it was not, [`ElpvError::Damaged`] if files are missing or cut off.
pub fn open(data_dir: &Path) -> Result<Dataset, ElpvError> {
    let folder = folder(data_dir);
    if !folder.exists() {
        return Err(ElpvError::NotThere { folder });
    }
    check(&folder, IMAGES)
}

/// Brings the set into `data_dir/elpv` and gives that folder; does nothing if it is there and whole.
///
/// With `wheel`, that file is unpacked; else pip downloads it. Everything happens in a temporary folder beside the
/// destination, which is renamed at the end: an interrupted run leaves no half data set.
///
/// # Errors
/// Each with its remedy: no Python, no pip, no network, another file than the published one, a full disk, or a
/// folder in the way that is not the whole set.
pub fn fetch(data_dir: &Path, wheel: Option<&Path>, mut progress: impl FnMut(Progress)) -> Result<Fetched, ElpvError> {
    let folder = folder(data_dir);
    if is_occupied(&folder) {
        check(&folder, IMAGES)?;
        return Ok(Fetched { folder, already: true });
    }
    std::fs::create_dir_all(data_dir).map_err(io("create the data folder", data_dir))?;
    remove_stale(data_dir);
    let temporary = temporary(data_dir)?;
    let wheel = match wheel {
        Some(wheel) => wheel.to_path_buf(),
        None => {
            progress(Progress::Downloading);
            download(Path::new("python3"), temporary.path())?
        }
    };
    install(&wheel, &folder, WHEEL_SHA256, IMAGES, &mut progress)?;
    Ok(Fetched { folder, already: false })
}

fn temporary(data_dir: &Path) -> Result<tempfile::TempDir, ElpvError> {
    let made = tempfile::Builder::new().prefix(TEMPORARY_PREFIX).tempdir_in(data_dir);
    made.map_err(io("create a temporary folder in", data_dir))
}

/// Removes what killed runs left, a day later.
fn remove_stale(data_dir: &Path) {
    let Ok(entries) = std::fs::read_dir(data_dir) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX);
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|time| time.elapsed().ok());
        if ours && age.is_some_and(|age| age.as_secs() > 86_400) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether the folder is there with anything in it.
fn is_occupied(folder: &Path) -> bool {
    std::fs::read_dir(folder).map_or(folder.exists(), |mut entries| entries.next().is_some())
}

/// Opens the folder as a data set, and looks at both ends of every image: a power cut can leave a name without content.
fn check(folder: &Path, images: usize) -> Result<Dataset, ElpvError> {
    let damaged = |problem: String| ElpvError::Damaged { folder: folder.to_path_buf(), problem };
    let set = Dataset::open(folder).map_err(|error| damaged(error.to_string()))?;
    if set.items.len() != images {
        return Err(damaged(format!("{} images, not {images}", set.items.len())));
    }
    set.require_labels().map_err(|error| damaged(error.to_string()))?;
    for item in &set.items {
        if !is_whole_png(&item.path) {
            return Err(damaged(format!("{} is cut off or no PNG", item.id)));
        }
    }
    Ok(set)
}

fn is_whole_png(path: &Path) -> bool {
    let ends = || -> std::io::Result<([u8; 8], [u8; 8])> {
        let mut file = File::open(path)?;
        let (mut head, mut tail) = ([0; 8], [0; 8]);
        file.read_exact(&mut head)?;
        file.seek(SeekFrom::End(-8))?;
        file.read_exact(&mut tail)?;
        Ok((head, tail))
    };
    ends().is_ok_and(|(head, tail)| head == *b"\x89PNG\r\n\x1a\n" && tail == *b"IEND\xaeB`\x82")
}

/// Has pip download the wheel into `into`.
fn download(python: &Path, into: &Path) -> Result<PathBuf, ElpvError> {
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

fn sha256(path: &Path) -> Result<String, ElpvError> {
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

/// Checks the wheel and unpacks it beside `folder`, which then appears at once and whole.
fn install(
    wheel: &Path,
    folder: &Path,
    expected: &str,
    images: usize,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), ElpvError> {
    progress(Progress::Checking);
    let found = sha256(wheel)?;
    if found != expected {
        return Err(ElpvError::WrongHash { wheel: wheel.to_path_buf(), found, expected: expected.to_string() });
    }
    let parent = folder.parent().ok_or(ElpvError::NoDataDir)?;
    let temporary = temporary(parent)?;
    unpack(wheel, temporary.path(), progress)?;
    check(temporary.path(), images).map_err(|error| match error {
        ElpvError::Damaged { problem, .. } => ElpvError::Wheel { wheel: wheel.to_path_buf(), problem },
        other => other,
    })?;
    // A temporary folder is private to its user; a data set need not be.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(temporary.path(), open).map_err(io("open up", temporary.path()))?;
    }
    // Windows does not rename onto a folder, not even an empty one.
    let _ = std::fs::remove_dir(folder);
    std::fs::rename(temporary.path(), folder).map_err(io("move the data set to", folder))?;
    // It has moved: there is nothing to remove.
    let _ = temporary.keep();
    Ok(())
}

/// Unpacks `images/*.png`, `labels.csv` and the licence into `into`.
fn unpack(wheel: &Path, into: &Path, progress: &mut dyn FnMut(Progress)) -> Result<(), ElpvError> {
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
    if inner == super::dataset::LABELS_FILE || image.is_some_and(plain) {
        Some(Ok(inner.split('/').collect()))
    } else {
        Some(Err(format!("{name:?} has no place in the data set")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zip::write::SimpleFileOptions;

    const PNG: &[u8] = b"\x89PNG\r\n\x1a\n....IEND\xaeB`\x82";

    fn wheel(dir: &Path, entries: &[(&str, &[u8])]) -> (PathBuf, String) {
        let path = dir.join("elpv.whl");
        let mut writer = zip::ZipWriter::new(File::create(&path).unwrap());
        for (name, content) in entries {
            writer.start_file(*name, SimpleFileOptions::default()).unwrap();
            writer.write_all(content).unwrap();
        }
        writer.finish().unwrap();
        let hash = sha256(&path).unwrap();
        (path, hash)
    }

    const LABELS: (&str, &[u8]) =
        ("elpv_dataset/data/labels.csv", b"images/a.png  1.0   mono\nimages/b.png  0.0   poly\n");
    const A: (&str, &[u8]) = ("elpv_dataset/data/images/a.png", PNG);
    const B: (&str, &[u8]) = ("elpv_dataset/data/images/b.png", PNG);

    /// Installs a wheel of these entries; gives the outcome and what then lies in the data folder.
    fn installed(entries: &[(&str, &[u8])]) -> (Result<(), ElpvError>, Vec<String>) {
        let source = tempfile::tempdir().unwrap();
        let data = tempfile::tempdir().unwrap();
        let (path, hash) = wheel(source.path(), entries);
        let outcome = install(&path, &folder(data.path()), &hash, 2, &mut |_| ());
        let names = std::fs::read_dir(data.path()).unwrap();
        (outcome, names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
    }

    #[test]
    fn a_good_wheel_is_unpacked_and_opens() {
        let source = tempfile::tempdir().unwrap();
        let data = tempfile::tempdir().unwrap();
        let licence: (&str, &[u8]) = ("elpv_dataset-1.dist-info/licenses/LICENSE.md", b"CC");
        let (path, hash) = wheel(source.path(), &[LABELS, A, ("elpv_dataset/__init__.py", b""), B, licence]);
        let folder = folder(data.path());
        let mut seen = Vec::new();
        install(&path, &folder, &hash, 2, &mut |step| seen.push(step)).unwrap();
        assert_eq!(seen[0], Progress::Checking);
        assert_eq!(seen.last(), Some(&Progress::Unpacking { done: 5, total: 5 }));
        let set = check(&folder, 2).unwrap();
        assert_eq!(set.items[0].id, "images/a.png");
        assert_eq!(set.items[1].kind.as_deref(), Some("poly"));
        assert!(folder.join("LICENSE.md").is_file() && !folder.join("__init__.py").exists());
        assert_eq!(std::fs::read_dir(data.path()).unwrap().count(), 1, "no temporary folder stays");
    }

    #[test]
    fn a_wrong_hash_is_refused_before_anything_is_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = wheel(dir.path(), &[LABELS, A, B]);
        let error = fetch(&dir.path().join("data"), Some(&path), |_| ()).unwrap_err();
        assert!(matches!(error, ElpvError::WrongHash { .. }) && error.to_string().contains(WHEEL_SHA256), "{error}");
        assert_eq!(std::fs::read_dir(dir.path().join("data")).unwrap().count(), 0);
    }

    #[test]
    fn path_tricks_bombs_and_strangers_are_refused_and_leave_nothing() {
        let bomb = vec![0; MAX_FILE as usize + 1];
        let cases: [(&str, &[u8], &str); 6] = [
            ("elpv_dataset/data/images/../../../x.png", PNG, "leads out"),
            ("/etc/x.png", PNG, "leads out"),
            ("elpv_dataset/data/images/..\\x.png", PNG, "leads out"),
            ("elpv_dataset/data/images/sub/x.png", PNG, "no place"),
            ("elpv_dataset/data/run.sh", b"", "no place"),
            ("elpv_dataset/data/images/x.png", &bomb, "larger than"),
        ];
        for (name, content, problem) in cases {
            let (outcome, left) = installed(&[LABELS, A, B, (name, content)]);
            let error = outcome.expect_err(name).to_string();
            assert!(error.contains(problem), "{name}: {error}");
            assert!(left.is_empty(), "{name} left {left:?}");
        }
    }

    #[test]
    fn an_incomplete_or_cut_off_wheel_leaves_nothing() {
        let cut: (&str, &[u8]) = (B.0, &PNG[..12]);
        for entries in [vec![LABELS, A], vec![A, B], vec![LABELS, A, cut]] {
            let (outcome, left) = installed(&entries);
            assert!(matches!(outcome, Err(ElpvError::Wheel { .. })), "{outcome:?}");
            assert!(left.is_empty(), "{left:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("no.whl"), "not a zip").unwrap();
        let hash = sha256(&dir.path().join("no.whl")).unwrap();
        let error = install(&dir.path().join("no.whl"), &folder(dir.path()), &hash, 2, &mut |_| ()).unwrap_err();
        assert!(matches!(error, ElpvError::Wheel { .. }), "{error}");
    }

    #[test]
    fn a_folder_in_the_way_is_never_overwritten() {
        let data = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder(data.path())).unwrap();
        std::fs::write(folder(data.path()).join("mine.png"), PNG).unwrap();
        let error = fetch(data.path(), None, |_| panic!("nothing may start")).unwrap_err();
        assert!(matches!(error, ElpvError::Damaged { .. }), "{error}");
        assert!(folder(data.path()).join("mine.png").is_file());
        let error = open(&data.path().join("elsewhere")).unwrap_err();
        assert!(error.to_string().contains("cellgate data elpv"), "{error}");
    }

    #[test]
    fn the_data_folder_is_the_one_that_is_named() {
        assert_eq!(data_dir(Some(Path::new("here"))).unwrap(), Path::new("here"));
    }

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
