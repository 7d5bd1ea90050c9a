//! What keeps the appliance running and tells how it does.
//!
//! Logging through the `log` facade ([`log`]); systemd's notifications and watchdog, fed only by real progress
//! ([`notify`]); `/metrics` and `/healthz` ([`metrics`], [`http`]); what the machine says of itself ([`machine`]); whether
//! the line's good cells move away from the fit ([`drift`]); memory, cores and priority ([`realtime`]); and the checks of
//! `cellgate doctor` ([`doctor`]).

mod config;
pub mod doctor;
pub mod drift;
pub mod http;
pub mod latency;
pub mod log;
pub mod machine;
pub mod metrics;
pub mod notify;
pub mod progress;
pub mod realtime;

pub use config::{Level, MetricsAddress, OperationsConfig, OperationsConfigError};
