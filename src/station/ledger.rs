//! Where verdicts become durable.

use crate::outbox::{Key, OutboxError, Store};

/// A place that keeps verdicts. What [`append`](Self::append) returned is kept through a power cut.
pub trait Ledger: Send {
    /// Keeps what `write` writes for the key that it is given. Allocates nothing.
    ///
    /// # Errors
    /// If it cannot be made durable: then nothing may be announced.
    fn append(&mut self, write: &mut dyn FnMut(Key, &mut String)) -> Result<Key, OutboxError>;

    /// After a failed append: tries to be of use again.
    ///
    /// # Errors
    /// If it is not.
    fn reopen(&mut self) -> Result<(), OutboxError>;

    /// Number of this start.
    fn boot(&self) -> u32;

    /// Verdicts that wait to be delivered.
    fn pending(&self) -> u64;

    /// Verdicts that retention dropped before they were delivered.
    fn dropped(&self) -> u64;
}

impl Ledger for Store {
    fn append(&mut self, write: &mut dyn FnMut(Key, &mut String)) -> Result<Key, OutboxError> {
        Self::append(self, write)
    }

    fn reopen(&mut self) -> Result<(), OutboxError> {
        Self::reopen(self)
    }

    fn boot(&self) -> u32 {
        Self::boot(self)
    }

    fn pending(&self) -> u64 {
        Self::pending(self)
    }

    fn dropped(&self) -> u64 {
        Self::dropped(self)
    }
}
