//! Delivery over MQTT 3.1.1, and what comes in on the station's topics.
//!
//! Below `cellgate/<line>/<station>/`: out go `verdict` (QoS 1, never retained), `status` (retained), `metrics` and
//! `handshake`; in come `trigger`, `ack` and `command`. `docs/mqtt.md` describes them all.
//!
//! The client library forgets what waits when a session is lost, can wait for ever for an acknowledgement, and sends all
//! that it was given at once. So it is given one verdict at a time, each acknowledgement has a time limit, and every lost
//! connection takes client and event loop with it: what is to be sent is in the [`Store`](super::Store) alone.

mod config;
mod delivery;
mod inbox;
pub(crate) mod link;
mod session;

pub use config::{MqttConfig, PayloadKind, SparkplugConfig, TlsConfig};
pub use delivery::{Delivery, LinkState, MAX_TEXT};
pub use inbox::{Command, Inbox, InboxCounts, Incoming, MAX_MESSAGE, Topic, Why, inbox};
pub use link::{LinkError, try_session};
