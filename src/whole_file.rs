//! Files that appear whole or not at all: written beside their place, made durable, renamed into it.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use tempfile::NamedTempFile;

/// The folder of a path, `.` for a bare name.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file of a passing name in the folder of `path`, as readable as any other file once it is kept.
fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
    builder.prefix(".cellgate-").tempfile_in(folder(path))
}

/// Writes a file of several parts; after a power cut there is the old file or the new one.
///
/// # Errors
/// What the system said. What was there before stays, unless only the last step failed, which makes the new name last
/// through a power cut: then the new file is there.
pub fn write(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let mut file = beside(path)?;
    parts.iter().try_for_each(|part| file.write_all(part))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    #[cfg(unix)]
    File::open(folder(path))?.sync_all()?;
    Ok(())
}

/// Whether [`write()`] would find its folder there and writable, and no folder in the file's place.
///
/// # Errors
/// What the system said.
pub fn check(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder, the name of a file is needed"));
    }
    beside(path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write(&path, &[b"old"]).unwrap();
        write(&path, &[b"n", b"ew"]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        check(&path).unwrap();
        assert!(check(dir.path()).is_err());
        assert!(check(&dir.path().join("none/x")).is_err());
        assert!(write(&dir.path().join("none/x"), &[b"y"]).is_err());
    }
}
