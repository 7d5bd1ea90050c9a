//! Updates of the fitted model: signed, all or nothing, proven on the station, taken back by themselves.
//!
//! ```text
//!  bundle ──► download ──► verify ──► stage ──► prove ──► active ──► probation ──► good
//!  file       part file    signature   the slot   golden    between    watched       kept as the way back
//!             as it comes  and hashes  not in use frames    two cells                of the next one
//! ```
//!
//! [`bundle`] is the file, [`slots`] the two places for a model and the one durable record of which is in force, on a
//! [`disk`] that tests cut the power of; [`install`] walks a bundle through the states, [`prove`] judges by golden frames.
//! [`message`] is what travels over the broker, [`agent`] the thread that does all of it beside a running station.

pub mod agent;
pub mod bundle;
pub mod disk;
pub mod install;
pub mod message;
pub mod prove;
mod record;
pub mod slots;

#[cfg(test)]
mod attacks;
#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod power;
#[cfg(test)]
mod resume;
