//! What cellgate says about a cell.

use serde::{Deserialize, Serialize};

/// The production class of a cell (paper section 2.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Class {
    /// Fully operational.
    A,
    /// Subprime: slight deterioration, still usable in a panel.
    B,
    /// Defective: to be rejected.
    C,
}
