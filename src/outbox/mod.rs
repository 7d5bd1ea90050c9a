//! Verdicts on their way out: durable before they are announced, and kept until the broker has them.
//!
//! ```text
//!  station ──append──► Outbox (a ring in a file) ──in order, one at a time──► broker ──PUBACK──► forgotten
//!     ▲                                                                         │
//!     └────────────── Inbox: triggers, acks, commands; bounded ◄────────────────┘
//! ```
//!
//! An [`Outbox`] is a file of fixed size, made once. [`Outbox::append`] returns when the disk has the verdict; only then
//! may anything be announced. [`Store`] shares it between the thread that judges and the one that delivers.
//! [`mqtt::Delivery`] publishes in order, one verdict in flight, and lets go of it at the broker's PUBACK. So each verdict
//! comes at least once and in order; who reads them drops what he has by its [`Key`]. [`handshake`] is the conversation
//! with a PLC in the words of smart cameras, and [`sparkplug`] the other way to write what is published.

pub mod handshake;
mod medium;
pub mod mqtt;
mod shared;
mod slot;
pub mod sparkplug;
mod store;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use medium::Medium;
pub use shared::Store;
pub use slot::MAX_PAYLOAD;
pub use store::Outbox;

/// What no two verdicts have in common: consumers drop what they have seen by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Number of the station's start, up by one with each; a new file begins with the minutes since 2020, so that no file
    /// repeats the numbers of one that was moved aside.
    pub boot: u32,
    /// Number of the verdict, up by one with each, from 1; never starts again in the life of a file.
    pub seq: u64,
}

/// Where verdicts are kept, and how many.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct OutboxConfig {
    /// The file; its folder must be there. Default: `/var/lib/cellgate/outbox`.
    pub path: PathBuf,
    /// Verdicts that the file holds, 16 to 16,777,216; each takes 2 kB of disk from the first start on. When all wait for
    /// the broker, a new one takes the place of the oldest, which is counted as dropped. Holds for a file when it is made.
    /// Default: 172,800, two days at one a second.
    pub verdicts: u32,
}

impl Default for OutboxConfig {
    fn default() -> Self {
        Self { path: "/var/lib/cellgate/outbox".into(), verdicts: 172_800 }
    }
}

impl OutboxConfig {
    /// Bytes that the file takes, about.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.verdicts) * slot::SLOT as u64
    }

    /// Checks the values.
    ///
    /// # Errors
    /// Which key is wrong, its value, and what is allowed.
    pub fn validate(&self) -> Result<(), String> {
        if !(16..=1 << 24).contains(&self.verdicts) {
            return Err(format!("verdicts = {}: 16 to 16777216 are allowed", self.verdicts));
        }
        if self.path.file_name().is_none() {
            return Err(format!("path = {:?}: the name of a file is needed", self.path.display().to_string()));
        }
        Ok(())
    }
}

/// Why the outbox could not do what was asked. After an error of [`Outbox::append`] nothing may be announced.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// The system refused.
    #[error("could not {doing} the outbox {}: {source}; {remedy}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// Another process has it.
    #[error("the outbox {} is in use by another process: stop that station, or give this one its own outbox.path", .0.display())]
    InUse(PathBuf),
    /// This is no outbox, or not one any more.
    #[error("{} is not an outbox that can be read ({why}): move it aside (it may hold verdicts that were not delivered) and start again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// One verdict cannot be read back; the others can.
    #[error("verdict {seq} in the outbox {} is damaged and cannot be delivered", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Which.
        seq: u64,
    },
    /// The disk failed before: what it has is not known until the file is opened again.
    #[error("the outbox {} is not to be trusted since the disk failed: it must be opened again", .0.display())]
    Failed(PathBuf),
    /// A payload is empty or too long.
    #[error("a payload of {0} bytes does not fit into the outbox: 1 to {MAX_PAYLOAD} are allowed")]
    Payload(usize),
}
