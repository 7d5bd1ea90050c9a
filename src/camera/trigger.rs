//! The word that a cell lies under the camera.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::clock::Moment;
use crate::hidden::is_hidden;

/// Bytes of a cell's name at most.
pub const MAX_ID: usize = 64;

/// A cell's name, as the line gave it: 1 to 64 bytes of UTF-8 without control characters. Held in place, so that it can
/// be handed on without allocating.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CellId {
    bytes: [u8; MAX_ID],
    length: u8,
}

/// A text is no cell's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a cell's id must be 1 to {MAX_ID} bytes of UTF-8 without control characters")]
pub struct NoId;

impl CellId {
    /// The name `text`.
    ///
    /// # Errors
    /// If it is empty, too long, or holds what does not show.
    pub fn new(text: &str) -> Result<Self, NoId> {
        if text.is_empty() || text.len() > MAX_ID || text.chars().any(is_hidden) {
            return Err(NoId);
        }
        let mut bytes = [0; MAX_ID];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self { bytes, length: text.len() as u8 })
    }

    /// The name of a cell that only its number is known of: `#` and the number.
    #[must_use]
    pub fn number(number: u64) -> Self {
        let (mut bytes, mut length) = ([0; MAX_ID], 0);
        let (mut digits, mut rest) = ([0; 20], number);
        while length == 0 || rest > 0 {
            digits[length] = b'0' + (rest % 10) as u8;
            (length, rest) = (length + 1, rest / 10);
        }
        bytes[0] = b'#';
        digits[..length].iter().rev().zip(&mut bytes[1..]).for_each(|(&digit, byte)| *byte = digit);
        Self { bytes, length: length as u8 + 1 }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Whole characters were put in; if not, better no name than a panic.
        str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl fmt::Debug for CellId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for CellId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The word that a cell lies there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// What the line calls the cell; none where the trigger is an edge or a frame.
    pub cell: Option<CellId>,
    /// When it was given: the kernel's stamp of an edge, or when the message arrived.
    pub at: Moment,
    /// The sender's count of triggers, if it sends one: up by one with each cell, wraps.
    pub number: Option<u32>,
    /// The sender's clock in milliseconds, if it sends one: any zero, it only has to run evenly. Shows late messages.
    pub sent_ms: Option<u64>,
}

/// Who says that a cell lies there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The camera is triggered by hardware: every frame is a cell, without a name.
    #[default]
    Frame,
    /// A message on `cellgate/<line>/<station>/trigger` that names the cell.
    Mqtt,
    /// An edge on a GPIO line.
    Gpio,
    /// The camera runs freely: the lit frame of each pulse is the cell.
    Pulse,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_whole_or_not_at_all() {
        for good in ["7", "W-2026/11.042", "é", &"x".repeat(MAX_ID)] {
            assert_eq!(CellId::new(good).unwrap().as_str(), good);
        }
        for bad in ["", &"x".repeat(MAX_ID + 1), "a\nb", "a\u{202e}b", "\0"] {
            assert_eq!(CellId::new(bad), Err(NoId), "{bad:?}");
        }
        assert_eq!(CellId::number(0).as_str(), "#0");
        assert_eq!(CellId::number(u64::MAX).as_str(), "#18446744073709551615");
    }
}
