//! The outbox in the hands of two threads: one appends, one delivers.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use tokio::sync::Notify;

use super::{Key, Outbox, OutboxConfig, OutboxError};

/// A handle to the outbox; clones share it. [`Store::append`] wakes who delivers.
///
/// A disk may take long to make a verdict durable. Nobody else waits for it: what the store says of itself is kept apart,
/// and who delivers comes again later, so that triggers which arrive meanwhile are stamped in time.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    config: OutboxConfig,
    /// None between a failed attempt to open it again and the next.
    outbox: Mutex<Option<Outbox>>,
    wake: Notify,
    said: Said,
}

/// What can be known without waiting.
#[derive(Default)]
struct Said {
    up: AtomicBool,
    boot: AtomicU32,
    pending: AtomicU64,
    dropped: AtomicU64,
    next_seq: AtomicU64,
}

/// The outbox is in use: whoever uses it wakes who delivers when he is done.
pub(super) struct Busy;

/// The outbox for as long as this lives; says afterwards what has changed.
struct Held<'a> {
    inner: &'a Inner,
    outbox: MutexGuard<'a, Option<Outbox>>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let said = &self.inner.said;
        let outbox = self.outbox.as_ref();
        said.up.store(outbox.is_some_and(|outbox| !outbox.failed()), Ordering::Release);
        // While it is not open, what was true last is said.
        if let Some(outbox) = outbox {
            said.boot.store(outbox.boot(), Ordering::Release);
            said.pending.store(outbox.pending(), Ordering::Release);
            said.dropped.store(outbox.dropped(), Ordering::Release);
            said.next_seq.store(outbox.next_seq(), Ordering::Release);
        }
    }
}

impl Store {
    /// Opens the outbox.
    ///
    /// # Errors
    /// As [`Outbox::open`].
    pub fn open(config: &OutboxConfig) -> Result<Self, OutboxError> {
        let outbox = Mutex::new(Some(Outbox::open(config)?));
        let inner = Inner { config: config.clone(), outbox, wake: Notify::new(), said: Said::default() };
        let store = Self(Arc::new(inner));
        drop(store.hold());
        Ok(store)
    }

    fn hold(&self) -> Held<'_> {
        let outbox = self.0.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        Held { inner: &self.0, outbox }
    }

    fn try_hold(&self) -> Result<Held<'_>, Busy> {
        let outbox = match self.0.outbox.try_lock() {
            Ok(outbox) => outbox,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(Busy),
        };
        Ok(Held { inner: &self.0, outbox })
    }

    /// Makes a verdict durable; see [`Outbox::append`]. Allocates nothing.
    ///
    /// # Errors
    /// As [`Outbox::append`].
    pub fn append(&self, write: impl FnOnce(Key, &mut String)) -> Result<Key, OutboxError> {
        let mut held = self.hold();
        let key = match &mut *held.outbox {
            Some(outbox) => outbox.append(write),
            None => Err(OutboxError::Failed(self.0.config.path.clone())),
        };
        drop(held);
        self.0.wake.notify_one();
        key
    }

    /// Opens the file again after an append failed; [`Store::boot`] is new then.
    ///
    /// # Errors
    /// As [`Outbox::open`]; it may be called again.
    pub fn reopen(&self) -> Result<(), OutboxError> {
        let mut held = self.hold();
        // The lock of the file goes with the old one.
        drop(held.outbox.take());
        let opened = Outbox::open(&self.0.config).map(|outbox| *held.outbox = Some(outbox));
        drop(held);
        self.0.wake.notify_one();
        opened
    }

    /// The oldest verdict that waits; see [`Outbox::peek`].
    ///
    /// # Errors
    /// As [`Outbox::peek`].
    pub fn peek(&self, payload: &mut Vec<u8>) -> Result<Option<Key>, OutboxError> {
        let peeked = self.hold().outbox.as_mut().map_or(Ok(None), |outbox| outbox.peek(payload));
        self.0.wake.notify_one();
        peeked
    }

    /// See [`Outbox::delivered`].
    pub fn delivered(&self, seq: u64) {
        if let Some(outbox) = &mut *self.hold().outbox {
            outbox.delivered(seq);
        }
        self.0.wake.notify_one();
    }

    /// Whether appends can succeed: false after a failed one, until [`Store::reopen`] has.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.0.said.up.load(Ordering::Acquire)
    }

    /// See [`Outbox::pending`].
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.0.said.pending.load(Ordering::Acquire)
    }

    /// See [`Outbox::dropped`].
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.0.said.dropped.load(Ordering::Acquire)
    }

    /// See [`Outbox::boot`].
    #[must_use]
    pub fn boot(&self) -> u32 {
        self.0.said.boot.load(Ordering::Acquire)
    }

    /// See [`Outbox::next_seq`].
    #[must_use]
    pub fn next_seq(&self) -> u64 {
        self.0.said.next_seq.load(Ordering::Acquire)
    }

    /// Forgets `acked`, and gives the next verdict that can be read; those that cannot are given up.
    pub(super) fn try_next(&self, acked: &mut Option<u64>, payload: &mut Vec<u8>) -> Result<Option<Key>, Busy> {
        let mut held = self.try_hold()?;
        let Some(outbox) = &mut *held.outbox else { return Ok(None) };
        if let Some(seq) = acked.take() {
            outbox.delivered(seq);
        }
        loop {
            let failed = outbox.failed();
            match outbox.peek(payload) {
                Ok(next) => return Ok(next),
                Err(OutboxError::Unreadable { path, seq }) => {
                    log::error!("{}", OutboxError::Unreadable { path, seq });
                    outbox.give_up(seq);
                }
                Err(error) => {
                    if !failed {
                        log::error!("{error}");
                    }
                    return Ok(None);
                }
            }
        }
    }

    /// Wakes the thread that delivers.
    pub(super) fn wake(&self) {
        self.0.wake.notify_one();
    }

    /// Waits until there may be something to do.
    pub(super) async fn woken(&self) {
        self.0.wake.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    fn store(folder: &tempfile::TempDir) -> Store {
        Store::open(&OutboxConfig { path: folder.path().join("outbox"), verdicts: 16 }).unwrap()
    }

    #[test]
    fn nobody_waits_for_a_disk_that_takes_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        let (begun, has_begun) = channel();
        let (go_on, may_go_on) = channel::<()>();
        let theirs = store.clone();
        let slow = std::thread::spawn(move || {
            theirs.append(|_, out| {
                out.push('x');
                begun.send(()).unwrap();
                may_go_on.recv_timeout(Duration::from_secs(60)).unwrap();
            })
        });
        has_begun.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(store.is_up() && store.pending() == 0 && store.next_seq() == 1);
        let mut acked = Some(1);
        assert!(store.try_next(&mut acked, &mut vec![]).is_err() && acked == Some(1));
        go_on.send(()).unwrap();
        let key = slow.join().unwrap().unwrap();
        let mut payload = vec![];
        assert_eq!(store.try_next(&mut None, &mut payload).ok().unwrap(), Some(key));
        assert_eq!((payload.as_slice(), store.pending()), (&b"x"[..], 1));
        assert_eq!(store.try_next(&mut Some(key.seq), &mut payload).ok().unwrap(), None);
        assert_eq!((store.pending(), store.next_seq()), (0, 2));
    }

    #[test]
    fn a_store_that_is_opened_again_goes_on_with_the_next_number() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        let first = store.append(|_, out| out.push('x')).unwrap();
        store.reopen().unwrap();
        let second = store.append(|_, out| out.push('y')).unwrap();
        assert_eq!(second, Key { boot: first.boot + 1, seq: first.seq + 1 });
        assert_eq!((store.boot(), store.pending(), store.is_up()), (second.boot, 2, true));
        // The file is gone, and something else is in its place.
        std::fs::write(folder.path().join("outbox"), "no outbox").unwrap();
        assert!(store.reopen().is_err() && !store.is_up());
        assert!(matches!(store.append(|_, out| out.push('z')), Err(OutboxError::Failed(_))));
        assert_eq!(store.pending(), 2, "what waits is not forgotten in what is said");
    }
}
