//! Connections to the broker for those who look at the fleet: one that listens, one that publishes.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rumqttc::{AsyncClient, Event, EventLoop, Outgoing, Packet, QoS, SubscribeFilter, SubscribeReasonCode};
use thiserror::Error;

use crate::outbox::mqtt::MqttConfig;
use crate::outbox::mqtt::link::{self, LinkError};

/// Bytes of a packet that is received. A longer one ends the connection; little of one that is shorter is kept.
const MAX_INCOMING: usize = 4 << 20;
/// Bytes of a packet that is sent: more than a chunk of a bundle.
const MAX_OUTGOING: usize = 256 << 10;
/// Bytes of a topic that is looked at.
const MAX_TOPIC: usize = 256;
/// Bytes of a payload that are kept; whoever decodes it allows less.
const MAX_PAYLOAD: usize = (4 << 10) + 1;
/// Messages between the network and us; then the network waits.
const EVENTS: usize = 256;
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
    #[error("the broker refuses a subscription to {0}; check its access list for this user")]
    NotAllowed(String),
    /// The broker does not let us write.
    #[error(
        "the broker took {0} and does not keep it; check that its access list lets this user write there, and that it \
         keeps retained messages of that size"
    )]
    NotKept(String),
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
    Subscribed(Vec<bool>),
    Acknowledged,
}

/// One connection. When it is lost, it is over.
struct Link {
    config: MqttConfig,
    client: AsyncClient,
    events: Receiver<Result<Told, LinkError>>,
}

impl Link {
    /// Connects under a name of its own.
    fn open(config: &MqttConfig) -> Result<Self, FleetError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let seed = crate::clock::Moment::now().as_nanos() & 0xff_ffff;
        let client_id = format!("cellgate-fleet-{}-{seed:06x}-{number}", std::process::id());
        let config = MqttConfig { client_id, ..config.clone() };
        let mut options = link::options(&config, None)?;
        options.set_max_packet_size(MAX_INCOMING, MAX_OUTGOING).set_inflight(WINDOW as u16);
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
        let link = Self { config, client, events: receiver };
        // The client library gives up by itself within the time-out.
        let within = Duration::from_secs(u64::from(link.config.connect_timeout_s) + 1);
        while !matches!(link.expect(within)?, Told::Connected) {}
        Ok(link)
    }

    /// What comes next; none if nothing does in time.
    fn next(&self, within: Duration) -> Result<Option<Told>, FleetError> {
        match self.events.recv_timeout(within) {
            Ok(told) => Ok(Some(told?)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(self.lost("the connection is over")),
        }
    }

    /// What comes next, and must come in time.
    fn expect(&self, within: Duration) -> Result<Told, FleetError> {
        self.next(within)?.ok_or_else(|| self.lost(&format!("it did not answer within {} s", within.as_secs())))
    }

    /// Time for an answer.
    fn patience(&self) -> Duration {
        Duration::from_secs(self.config.ack_timeout_s.into())
    }

    fn publish(&self, topic: &str, qos: QoS, retain: bool, payload: Vec<u8>) -> Result<(), FleetError> {
        let sent = self.client.try_publish(topic, qos, retain, payload);
        sent.map_err(|_| self.lost("its queue is full"))
    }

    fn lost(&self, why: &str) -> FleetError {
        LinkError::lost(&self.config, why).into()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The thread sees its own farewell and ends.
        let _ = self.client.try_disconnect();
    }
}

/// Listens to topics. When the connection is lost, open another and read again what the broker keeps.
pub struct Listener {
    link: Link,
    marker: String,
}

impl Listener {
    /// Connects, and hands over all that the broker keeps on these topics: until it echoes a marker, which it sends after
    /// them, or is silent for two seconds if it may not be written to.
    ///
    /// Listens at QoS 0: nothing but the network's buffer then bounds how many retained messages come at once.
    ///
    /// # Errors
    /// Why there is no connection, or that a subscription is refused.
    pub fn open(config: &MqttConfig, topics: &[String], mut each: impl FnMut(&Heard)) -> Result<Self, FleetError> {
        let link = Link::open(config)?;
        let marker = format!("{MARKER}{}", link.config.client_id);
        let filters = topics.iter().chain([&marker]).map(|topic| SubscribeFilter::new(topic.clone(), QoS::AtMostOnce));
        link.client.try_subscribe_many(filters).map_err(|_| link.lost("its queue is full"))?;
        let mut is_subscribed = false;
        loop {
            let within = if is_subscribed { QUIET } else { link.patience() };
            match link.next(within)? {
                Some(Told::Heard(heard)) if heard.topic == marker => break,
                Some(Told::Heard(heard)) => each(&heard),
                Some(Told::Subscribed(granted)) => {
                    // That it may not echo markers is no fault.
                    if granted.iter().zip(topics).any(|(granted, _)| !granted) {
                        return Err(FleetError::NotAllowed(topics.join(", ")));
                    }
                    is_subscribed = true;
                    link.publish(&marker, QoS::AtMostOnce, false, Vec::new())?;
                }
                Some(_) => {}
                None if is_subscribed => break,
                None => return Err(link.lost("it did not answer a subscription")),
            }
        }
        Ok(Self { link, marker })
    }

    /// The next message; none if none came in time.
    ///
    /// # Errors
    /// If the connection is lost.
    pub fn next(&mut self, within: Duration) -> Result<Option<Heard>, FleetError> {
        let end = Instant::now() + within;
        loop {
            match self.link.next(end.saturating_duration_since(Instant::now()))? {
                None => return Ok(None),
                Some(Told::Heard(heard)) if heard.topic != self.marker => return Ok(Some(heard)),
                Some(_) => {}
            }
        }
    }
}

/// Publishes.
pub struct Sender {
    link: Link,
    /// Publications without acknowledgement.
    flying: usize,
    /// Where the last one went.
    topic: String,
}

impl Sender {
    /// Connects.
    ///
    /// # Errors
    /// Why there is no connection.
    pub fn open(config: &MqttConfig) -> Result<Self, FleetError> {
        Ok(Self { link: Link::open(config)?, flying: 0, topic: String::new() })
    }

    /// Publishes a message that the broker is to keep, at QoS 1, without waiting for the acknowledgement as long as few
    /// are missing. An empty one takes the one before it away.
    ///
    /// # Errors
    /// If the connection is lost, or the broker acknowledges nothing in time.
    pub fn send(&mut self, topic: &str, payload: Vec<u8>) -> Result<(), FleetError> {
        self.settle(WINDOW - 1)?;
        self.link.publish(topic, QoS::AtLeastOnce, true, payload)?;
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
            match self.link.expect(self.link.patience()) {
                Ok(Told::Acknowledged) => self.flying -= 1,
                Ok(_) => {}
                // Some brokers end the connection of one who writes where he may not.
                Err(FleetError::Link(source)) => {
                    return Err(FleetError::Unacknowledged { topic: self.topic.clone(), source });
                }
                Err(other) => return Err(other),
            }
        }
        Ok(())
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
                let granted = ack.return_codes.iter().map(|code| *code != SubscribeReasonCode::Failure);
                Ok(Told::Subscribed(granted.collect()))
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
