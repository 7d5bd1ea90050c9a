//! What the outbox asks of a disk, so that a test can put a bad one in its place.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes that last.
pub trait Medium: Send {
    /// Bytes there are; never changes.
    ///
    /// # Errors
    /// What the system said.
    fn size(&self) -> io::Result<u64>;

    /// Reads exactly so many.
    ///
    /// # Errors
    /// What the system said.
    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()>;

    /// Writes all of them. They may be lost in a power cut, wholly or in part, until [`Medium::sync`] has returned.
    ///
    /// # Errors
    /// What the system said; part may have been written.
    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Returns when a power cut cannot take away what was written.
    ///
    /// # Errors
    /// What the system said; then nothing is known of what was written since the last one.
    fn sync(&mut self) -> io::Result<()>;
}

impl Medium for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(bytes, at)
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

#[cfg(test)]
pub(crate) mod faulty {
    //! A disk in memory that fails as it is told.

    use super::*;
    use std::sync::{Arc, Mutex};

    const SECTOR: usize = 512;

    /// What a power cut leaves, and what the process sees before it.
    pub struct Disk {
        /// What lasts.
        pub durable: Vec<u8>,
        /// What is read: the page cache.
        pub cached: Vec<u8>,
        /// Writes since the last sync, in order.
        pub unsynced: Vec<(usize, Vec<u8>)>,
        /// Calls (writes and syncs) until the next one fails; none: all go well.
        pub fail_in: Option<u32>,
        /// Nothing can be read.
        pub unreadable: bool,
        /// How many were made.
        pub calls: u32,
    }

    /// A handle to a disk that outlives the outbox on it.
    #[derive(Clone)]
    pub struct Faulty(pub Arc<Mutex<Disk>>);

    impl Faulty {
        pub fn new(bytes: Vec<u8>) -> Self {
            let disk = Disk {
                durable: bytes.clone(),
                cached: bytes,
                unsynced: vec![],
                fail_in: None,
                unreadable: false,
                calls: 0,
            };
            Self(Arc::new(Mutex::new(disk)))
        }

        /// Pulls the plug: each sector of what was not synced is there in whole (3), in half (2) or not at all, as `kept`
        /// says, call by call.
        pub fn power_cut(&self, mut kept: impl FnMut() -> u8) {
            let mut disk = self.0.lock().unwrap();
            for (at, bytes) in std::mem::take(&mut disk.unsynced) {
                let mut from = 0;
                while from < bytes.len() {
                    let to = bytes.len().min(((at + from) / SECTOR + 1) * SECTOR - at);
                    let end = match kept() {
                        3 => to,
                        2 => from.midpoint(to),
                        _ => from,
                    };
                    disk.durable[at + from..at + end].copy_from_slice(&bytes[from..end]);
                    from = to;
                }
            }
            disk.cached = disk.durable.clone();
            disk.fail_in = None;
        }
    }

    impl Disk {
        fn call(&mut self) -> bool {
            self.calls += 1;
            match &mut self.fail_in {
                Some(0) => false,
                Some(left) => {
                    *left -= 1;
                    true
                }
                None => true,
            }
        }
    }

    impl Medium for Faulty {
        fn size(&self) -> io::Result<u64> {
            Ok(self.0.lock().unwrap().cached.len() as u64)
        }

        fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
            let disk = self.0.lock().unwrap();
            if disk.unreadable {
                return Err(io::Error::from_raw_os_error(5));
            }
            let at = at as usize;
            let from = disk.cached.get(at..at + bytes.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            bytes.copy_from_slice(from);
            Ok(())
        }

        fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
            let mut disk = self.0.lock().unwrap();
            let at = at as usize;
            assert!(at + bytes.len() <= disk.cached.len(), "a write may not make the file longer");
            let good = disk.call();
            // A write that fails may have got half way.
            let done = if good { bytes.len() } else { bytes.len() / 2 };
            disk.cached[at..at + done].copy_from_slice(&bytes[..done]);
            disk.unsynced.push((at, bytes[..done].to_vec()));
            if good { Ok(()) } else { Err(io::Error::from_raw_os_error(28)) }
        }

        fn sync(&mut self) -> io::Result<()> {
            let mut disk = self.0.lock().unwrap();
            let good = disk.call();
            // After a failed sync Linux takes the pages for clean: they are read as written and never come to the disk.
            let writes = std::mem::take(&mut disk.unsynced);
            if !good {
                return Err(io::Error::from_raw_os_error(5));
            }
            for (at, bytes) in writes {
                disk.durable[at..at + bytes.len()].copy_from_slice(&bytes);
            }
            Ok(())
        }
    }
}
