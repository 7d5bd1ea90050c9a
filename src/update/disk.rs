//! The folder in which updates live, as few operations as they need.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A flat folder. Names are the program's own, never a bundle's.
///
/// A written file lasts through a power cut once it is [`sync`](Self::sync)ed, a new or renamed name once the folder is
/// ([`sync_folder`](Self::sync_folder)).
pub trait Disk {
    /// Makes an empty file, or empties it.
    ///
    /// # Errors
    /// What the system said.
    fn create(&mut self, name: &str) -> io::Result<()>;

    /// Writes at the end of a file.
    ///
    /// # Errors
    /// What the system said; part of it may be written.
    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Makes a file's content last.
    ///
    /// # Errors
    /// What the system said.
    fn sync(&mut self, name: &str) -> io::Result<()>;

    /// Gives a file another name, in place of the file that had it.
    ///
    /// # Errors
    /// What the system said.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file; none there is no error.
    ///
    /// # Errors
    /// What the system said.
    fn remove(&mut self, name: &str) -> io::Result<()>;

    /// Makes the folder's names last.
    ///
    /// # Errors
    /// What the system said.
    fn sync_folder(&mut self) -> io::Result<()>;

    /// Bytes of a file; none if there is none.
    ///
    /// # Errors
    /// What the system said.
    fn len(&self, name: &str) -> io::Result<Option<u64>>;

    /// Fills a buffer from an offset of a file.
    ///
    /// # Errors
    /// What the system said; the end of the file is an error.
    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// A file of a [`Disk`], read from its beginning.
pub struct Reading<'a, D: Disk> {
    disk: &'a D,
    name: &'a str,
    at: u64,
    end: u64,
}

impl<'a, D: Disk> Reading<'a, D> {
    /// Begins.
    ///
    /// # Errors
    /// If there is no such file.
    pub fn new(disk: &'a D, name: &'a str) -> io::Result<Self> {
        let end = disk.len(name)?.ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { disk, name, at: 0, end })
    }
}

impl<D: Disk> Read for Reading<'_, D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let part = self.end.saturating_sub(self.at).min(buffer.len() as u64) as usize;
        if part > 0 {
            self.disk.read_at(self.name, self.at, &mut buffer[..part])?;
            self.at += part as u64;
        }
        Ok(part)
    }
}

/// A folder of the file system.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Keeps others from changing the folder as long as it lives; none for a look.
    _lock: Option<File>,
}

impl Folder {
    /// The folder, made if it is not there, for this process alone.
    ///
    /// # Errors
    /// What the system said; [`io::ErrorKind::WouldBlock`] if another process works in it.
    pub fn new(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        let lock = File::create(path.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => {
                io::Error::new(io::ErrorKind::WouldBlock, "another cellgate works in this folder")
            }
            std::fs::TryLockError::Error(error) => error,
        })?;
        Ok(Self { path: path.into(), _lock: Some(lock) })
    }

    /// The folder, to look at.
    #[must_use]
    pub fn look(path: &Path) -> Self {
        Self { path: path.into(), _lock: None }
    }

    /// Where a file of it lies.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Disk for Folder {
    fn create(&mut self, name: &str) -> io::Result<()> {
        File::create(self.path(name)).map(drop)
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new().append(true).open(self.path(name))?.write_all(bytes)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        OpenOptions::new().append(true).open(self.path(name))?.sync_all()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path(from), self.path(to))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn len(&self, name: &str) -> io::Result<Option<u64>> {
        match std::fs::metadata(self.path(name)) {
            Ok(found) => Ok(Some(found.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut file = File::open(self.path(name))?;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_does_what_a_disk_promises_and_has_one_user() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let mut folder = Folder::new(&path).unwrap();
        assert_eq!(Folder::new(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        folder.create("x").unwrap();
        folder.append("x", b"one").unwrap();
        folder.append("x", b"two").unwrap();
        folder.sync("x").unwrap();
        folder.rename("x", "y").unwrap();
        folder.sync_folder().unwrap();
        folder.remove("x").unwrap();
        assert_eq!((folder.len("x").unwrap(), folder.len("y").unwrap()), (None, Some(6)));
        let mut all = Vec::new();
        Reading::new(&folder, "y").unwrap().read_to_end(&mut all).unwrap();
        assert_eq!(all, b"onetwo");
        assert!(folder.read_at("y", 4, &mut [0; 3]).is_err());
        assert!(Reading::new(&folder, "x").is_err());
        folder.create("y").unwrap();
        assert_eq!(Folder::look(&path).len("y").unwrap(), Some(0));
        drop(folder);
        Folder::new(&path).unwrap();
    }
}
