//! The ELPV data set: 2,624 real EL images of cells, fetched from PyPI, never shipped.
//!
//! Buerhop-Lutz et al. 2018, Deitsch et al. 2019 and 2021; 300×300, 8 bits, one cell an image, of 44 modules, with
//! the experts' defect probability (0, 1/3, 2/3, 1) and mono or poly. The images are CC BY-NC-SA 4.0.

mod error;
mod wheel;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::dataset::Dataset;
pub use error::ElpvError;
use error::io;
use wheel::{download, sha256, unpack};

/// What pip is asked for.
pub const REQUIREMENT: &str = "elpv-dataset==1.0.0.post1";

/// SHA-256 of the wheel.
pub const WHEEL_SHA256: &str = "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c";

/// Images in the set.
pub const IMAGES: usize = 2624;

/// The variable that names the data folder.
pub const DATA_VARIABLE: &str = "CELLGATE_DATA";

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

#[cfg(test)]
mod tests {
    use super::wheel::MAX_FILE;
    use super::*;
    use std::io::Write;
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
}
