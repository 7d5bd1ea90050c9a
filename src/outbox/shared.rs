//! The outbox in the hands of two threads: one appends, one delivers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::{Key, Outbox, OutboxConfig, OutboxError};

/// A handle to the outbox; clones share it. [`Store::append`] wakes who delivers.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    config: OutboxConfig,
    /// None between a failed attempt to open it again and the next.
    outbox: Mutex<Option<Outbox>>,
    wake: Notify,
}

impl Store {
    /// Opens the outbox.
    ///
    /// # Errors
    /// As [`Outbox::open`].
    pub fn open(config: &OutboxConfig) -> Result<Self, OutboxError> {
        let outbox = Mutex::new(Some(Outbox::open(config)?));
        Ok(Self(Arc::new(Inner { config: config.clone(), outbox, wake: Notify::new() })))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Outbox>> {
        self.0.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a verdict durable; see [`Outbox::append`]. Allocates nothing.
    ///
    /// # Errors
    /// As [`Outbox::append`].
    pub fn append(&self, write: impl FnOnce(Key, &mut String)) -> Result<Key, OutboxError> {
        let key = match &mut *self.lock() {
            Some(outbox) => outbox.append(write)?,
            None => return Err(OutboxError::Failed(self.0.config.path.clone())),
        };
        self.0.wake.notify_one();
        Ok(key)
    }

    /// Opens the file again after an append failed; [`Store::boot`] is new then.
    ///
    /// # Errors
    /// As [`Outbox::open`]; it may be called again.
    pub fn reopen(&self) -> Result<(), OutboxError> {
        let mut held = self.lock();
        // The lock of the file goes with the old one.
        drop(held.take());
        *held = Some(Outbox::open(&self.0.config)?);
        drop(held);
        self.0.wake.notify_one();
        Ok(())
    }

    /// Whether appends can succeed: false after a failed one, until [`Store::reopen`] has.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.lock().as_ref().is_some_and(|outbox| !outbox.failed())
    }

    /// The oldest verdict that waits; see [`Outbox::peek`].
    ///
    /// # Errors
    /// As [`Outbox::peek`].
    pub fn peek(&self, payload: &mut Vec<u8>) -> Result<Option<Key>, OutboxError> {
        self.lock().as_mut().map_or(Ok(None), |outbox| outbox.peek(payload))
    }

    /// See [`Outbox::delivered`].
    pub fn delivered(&self, seq: u64) {
        if let Some(outbox) = &mut *self.lock() {
            outbox.delivered(seq);
        }
    }

    /// See [`Outbox::give_up`].
    pub fn give_up(&self, seq: u64) {
        if let Some(outbox) = &mut *self.lock() {
            outbox.give_up(seq);
        }
    }

    /// See [`Outbox::pending`]; 0 while it is not open.
    #[must_use]
    pub fn pending(&self) -> u64 {
        self.lock().as_ref().map_or(0, Outbox::pending)
    }

    /// See [`Outbox::dropped`]; 0 while it is not open.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.lock().as_ref().map_or(0, Outbox::dropped)
    }

    /// See [`Outbox::boot`]; 0 while it is not open.
    #[must_use]
    pub fn boot(&self) -> u32 {
        self.lock().as_ref().map_or(0, Outbox::boot)
    }

    /// See [`Outbox::next_seq`]; 0 while it is not open.
    #[must_use]
    pub fn next_seq(&self) -> u64 {
        self.lock().as_ref().map_or(0, Outbox::next_seq)
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
