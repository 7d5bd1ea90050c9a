//! A connection to the broker for those who look at the fleet.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rumqttc::{AsyncClient, Event, EventLoop, Outgoing, Packet, QoS, SubscribeFilter, SubscribeReasonCode};
use thiserror::Error;

use crate::outbox::mqtt::MqttConfig;
use crate::outbox::mqtt::link::{self, LinkError};

/// Bytes of a packet: more than a chunk of a bundle. A longer one ends the connection.
const MAX_PACKET: usize = 256 << 10;
/// Bytes of a topic that is looked at.
const MAX_TOPIC: usize = 256;
/// Bytes of a payload that are kept; whoever decodes it allows less.
const MAX_PAYLOAD: usize = (4 << 10) + 1;
/// Messages between the network and us; then the network waits.
const EVENTS: usize = 256;
/// Messages that wait while something is published.
const HEARD: usize = 4 << 10;
/// Publications that are not acknowledged yet.
const WINDOW: usize = 8;
/// Silence after which a broker that does not echo our marker is taken to have sent all it keeps.
const QUIET: Duration = Duration::from_secs(2);
/// Where markers go: below the fleet's topics, so that whoever may write offers may write them.
const MARKER: &str = "cellgate/fleet/marker/";

/// Why the broker could not be asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FleetError {
    /// There is no connection.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It was lost while something was published.
    #[error(
        "publishing {topic}: {source}; if it happens again, check that the broker's access list lets this user write there"
    )]
    Unacknowledged {
        /// The last topic.
        topic: String,
        /// What happened.
        source: LinkError,
    },
    /// The broker does not let us listen.
    #[error("the broker refuses the subscription to {0}; check its access list for this user")]
    NotAllowed(String),
    /// The broker does not let us write.
    #[error(
        "the broker took {0} and does not keep it; check that its access list lets this user write there, and that it \
         keeps retained messages of that size"
    )]
    NotKept(String),
    /// More comes than can be taken in while something is published.
    #[error("more than {HEARD} messages came while something was published; is somebody flooding the broker?")]
    Flood,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Its topic.
    pub topic: String,
    /// Its payload; the first few kilobytes of a longer one, which is more than any decoder here takes.
    pub payload: Vec<u8>,
}

enum Told {
    Connected,
    Heard(Heard),
    Subscribed(bool),
    Acknowledged,
}

/// One connection. When it is lost, it is over: open another, and read again what the broker keeps.
pub struct Connection {
    config: MqttConfig,
    client: AsyncClient,
    events: Receiver<Result<Told, LinkError>>,
    heard: VecDeque<Heard>,
    /// Publications without acknowledgement.
    flying: usize,
    /// Where the last publication went.
    topic: String,
}

impl Connection {
    /// Connects under a name of its own, and listens to these topics at QoS 0: nothing but the network's buffer then
    /// bounds how many retained messages come at once.
    ///
    /// # Errors
    /// Why there is no connection, or which subscription is refused.
    pub fn open(config: &MqttConfig, filters: &[String]) -> Result<Self, FleetError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let seed = crate::clock::Moment::now().as_nanos() & 0xff_ffff;
        let client_id = format!("cellgate-fleet-{}-{seed:06x}-{number}", std::process::id());
        let config = MqttConfig { client_id, ..config.clone() };
        let mut options = link::options(&config, None)?;
        options.set_max_packet_size(MAX_PACKET, MAX_PACKET).set_inflight(WINDOW as u16);
        let (client, mut events) = AsyncClient::new(options, 2 * WINDOW);
        events.set_network_options(link::network(&config));
        let failed = |error: std::io::Error| LinkError::lost(&config, error.to_string());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let (sender, receiver) = sync_channel(EVENTS);
        let theirs = config.clone();
        std::thread::Builder::new()
            .name("fleet".into())
            .spawn(move || {
                carry(&runtime, events, &theirs, &sender);
                // A look-up of the broker's name may hang for long.
                runtime.shutdown_background();
            })
            .map_err(failed)?;
        let mut connection =
            Self { config, client, events: receiver, heard: VecDeque::new(), flying: 0, topic: String::new() };
        // The client library gives up by itself within the time-out.
        let within = Duration::from_secs(u64::from(connection.config.connect_timeout_s) + 1);
        connection.wait(within, |told| matches!(told, Told::Connected))?;
        for filter in filters {
            connection.subscribe(filter)?;
        }
        Ok(connection)
    }

    /// Listens to one more topic.
    ///
    /// # Errors
    /// If the connection is lost or the broker refuses.
    pub fn subscribe(&mut self, filter: &str) -> Result<(), FleetError> {
        let one = [SubscribeFilter::new(filter.to_owned(), QoS::AtMostOnce)];
        self.client.try_subscribe_many(one).map_err(|_| self.lost("its queue is full"))?;
        let mut allowed = false;
        self.wait(self.patience(), |told| {
            let Told::Subscribed(granted) = told else { return false };
            allowed = *granted;
            true
        })?;
        if allowed { Ok(()) } else { Err(FleetError::NotAllowed(filter.to_owned())) }
    }

    /// The next message; none if none came in time.
    ///
    /// # Errors
    /// If the connection is lost.
    pub fn next(&mut self, within: Duration) -> Result<Option<Heard>, FleetError> {
        let end = Instant::now() + within;
        loop {
            if let Some(heard) = self.heard.pop_front() {
                return Ok(Some(heard));
            }
            let left = end.saturating_duration_since(Instant::now());
            if self.step(left)?.is_none() && left.is_zero() && self.heard.is_empty() {
                return Ok(None);
            }
        }
    }

    /// Hands over all that the broker keeps on the topics listened to: until it echoes a marker, which it sends after
    /// them, or is silent for two seconds if it may not be written to.
    ///
    /// # Errors
    /// If the connection is lost.
    pub fn read_kept(&mut self, mut each: impl FnMut(&Heard)) -> Result<(), FleetError> {
        let marker = format!("{MARKER}{}", self.config.client_id);
        self.subscribe(&marker)?;
        self.client
            .try_publish(marker.as_str(), QoS::AtMostOnce, false, "")
            .map_err(|_| self.lost("its queue is full"))?;
        while let Some(heard) = self.next(QUIET)? {
            if heard.topic == marker {
                break;
            }
            each(&heard);
        }
        Ok(())
    }

    /// Publishes at QoS 1 without waiting for the acknowledgement, as long as few are missing.
    ///
    /// # Errors
    /// If the connection is lost, or the broker acknowledges nothing in time.
    pub fn send(&mut self, topic: &str, payload: Vec<u8>, retain: bool) -> Result<(), FleetError> {
        self.settle(WINDOW - 1)?;
        self.client
            .try_publish(topic, QoS::AtLeastOnce, retain, payload)
            .map_err(|_| self.lost("its queue is full"))?;
        self.flying += 1;
        topic.clone_into(&mut self.topic);
        Ok(())
    }

    /// Waits for all acknowledgements.
    ///
    /// # Errors
    /// If the connection is lost, or the broker acknowledges nothing in time.
    pub fn flush(&mut self) -> Result<(), FleetError> {
        self.settle(0)
    }

    /// Waits until at most so many publications are not acknowledged.
    fn settle(&mut self, most: usize) -> Result<(), FleetError> {
        while self.flying > most {
            self.wait(self.patience(), |told| matches!(told, Told::Acknowledged)).map_err(|error| match error {
                // Some brokers end the connection of one who writes where he may not.
                FleetError::Link(source) => FleetError::Unacknowledged { topic: self.topic.clone(), source },
                other => other,
            })?;
        }
        Ok(())
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(self.config.ack_timeout_s.into())
    }

    fn lost(&self, why: &str) -> FleetError {
        LinkError::lost(&self.config, why).into()
    }

    /// Waits for something; messages that come meanwhile are kept.
    fn wait(&mut self, within: Duration, mut is_it: impl FnMut(&Told) -> bool) -> Result<(), FleetError> {
        let end = Instant::now() + within;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.step(left)? {
                Some(told) if is_it(&told) => return Ok(()),
                None if left.is_zero() => {
                    return Err(self.lost(&format!("it did not answer within {} s", within.as_secs())));
                }
                _ => {}
            }
        }
    }

    /// Takes in what comes next; a message goes to those that wait.
    fn step(&mut self, within: Duration) -> Result<Option<Told>, FleetError> {
        let told = match self.events.recv_timeout(within) {
            Ok(told) => told?,
            Err(RecvTimeoutError::Timeout) => return Ok(None),
            Err(RecvTimeoutError::Disconnected) => return Err(self.lost("the connection is over")),
        };
        match told {
            Told::Heard(heard) if self.heard.len() < HEARD => self.heard.push_back(heard),
            Told::Heard(_) => return Err(FleetError::Flood),
            Told::Acknowledged => {
                self.flying = self.flying.saturating_sub(1);
                return Ok(Some(Told::Acknowledged));
            }
            other => return Ok(Some(other)),
        }
        // Something happened, and it is none of what is waited for.
        Ok(None)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The thread sees its own farewell and ends.
        let _ = self.client.try_disconnect();
    }
}

/// Polls the client library, which must not be left half way, on a thread of its own.
fn carry(
    runtime: &tokio::runtime::Runtime,
    mut events: EventLoop,
    config: &MqttConfig,
    out: &SyncSender<Result<Told, LinkError>>,
) {
    loop {
        let told = match runtime.block_on(events.poll()) {
            Ok(Event::Incoming(Packet::ConnAck(_))) => Ok(Told::Connected),
            Ok(Event::Incoming(Packet::SubAck(ack))) => {
                Ok(Told::Subscribed(!ack.return_codes.contains(&SubscribeReasonCode::Failure)))
            }
            Ok(Event::Incoming(Packet::PubAck(_))) => Ok(Told::Acknowledged),
            Ok(Event::Incoming(Packet::Publish(message))) if message.topic.len() <= MAX_TOPIC => {
                let payload = message.payload[..message.payload.len().min(MAX_PAYLOAD)].to_vec();
                Ok(Told::Heard(Heard { topic: message.topic, payload }))
            }
            Ok(Event::Incoming(Packet::Disconnect)) => Err(LinkError::lost(config, "it ended the connection")),
            Ok(Event::Outgoing(Outgoing::Disconnect)) => return,
            Ok(_) => continue,
            Err(error) => Err(LinkError::of(config, &error)),
        };
        let is_over = told.is_err();
        if out.send(told).is_err() || is_over {
            return;
        }
    }
}
