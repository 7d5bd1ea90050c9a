//! Where threads leave what they found, each in a place of its own.

use std::sync::{Mutex, PoisonError};

/// One outcome an index.
pub struct Outcomes<T>(Vec<Mutex<Option<T>>>);

impl<T> Outcomes<T> {
    /// Places for `count` outcomes.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self((0..count).map(|_| Mutex::new(None)).collect())
    }

    /// Leaves an outcome.
    pub fn set(&self, index: usize, outcome: T) {
        *self.0[index].lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    }

    /// All outcomes in the order of their indices; none where nothing was left.
    pub fn into_all(self) -> impl Iterator<Item = Option<T>> {
        self.0.into_iter().map(|place| place.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}
