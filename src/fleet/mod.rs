//! The fleet as the engineer's desk sees it: what stations report, what they are offered, and how far an offer goes.
//!
//! ```text
//!  engineer ──► offer (retained) ──► stations of a wave ──► reports (retained) ──┐
//!     ▲                                                                          │
//!     └── rollout: raise, hold, halt ◄── tally ◄── view ◄────────────────────────┘
//! ```
//!
//! [`connection`] reads and writes what the broker keeps, [`view`] holds what it says in bounded memory, [`reach`] tells
//! whom a bundle is for, [`publish`] brings offers and chunks to the broker, [`rollout`] decides how far an offer goes.
//! Nothing else is kept: whoever is killed begins again from what the broker retains. All trust lies in the bundle's
//! signatures; what is read here decides only who is asked when.

pub mod connection;
pub mod publish;
pub mod reach;
pub mod rollout;
pub mod view;
