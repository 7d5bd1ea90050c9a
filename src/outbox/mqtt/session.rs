//! One connection, from CONNECT to its end.

use std::time::Duration;

use rumqttc::{
    AsyncClient, Event, EventLoop, LastWill, Outgoing, Packet, Publish, QoS, SubscribeFilter, SubscribeReasonCode,
};
use tokio::time::{Instant, sleep_until};

use super::config::{MqttConfig, PayloadKind};
use super::delivery::{Memory, Say, Shared};
use super::inbox::{Inbox, Topic};
use super::link::{self, LinkError};
use crate::clock::Moment;
use crate::outbox::Key;
use crate::outbox::shared::Busy;
use crate::outbox::sparkplug::{self, Node};
use crate::station::status::Health;

/// What the broker says of the station when it is gone.
const OFFLINE: &str = "{\"state\":\"offline\"}";
/// Time for the farewell, beyond the grace for what waits.
const FAREWELL: Duration = Duration::from_secs(2);
/// Time without ears after messages that were too long, so that verdicts come through.
const DEAF: Duration = Duration::from_secs(60);
/// Time with ears and without such a message after which they are over.
const HEALED: Duration = Duration::from_secs(10);
/// Requests that the library holds: subscriptions and one publication of each kind.
const REQUESTS: usize = 16;

/// What was sent at QoS 1 and is not acknowledged yet: one at a time.
struct Flight {
    /// The verdict; none for the farewell.
    key: Option<Key>,
    /// Its number on the wire, once the library has sent it.
    packet: Option<u16>,
    until: Instant,
}

/// One connection.
pub(super) struct Session<'a> {
    config: &'a MqttConfig,
    shared: &'a Shared,
    inbox: &'a Inbox,
    memory: &'a mut Memory,
    client: AsyncClient,
    events: Option<EventLoop>,
    topics: Topics,
    flight: Option<Flight>,
    connected: bool,
    /// When to subscribe, if not at once.
    deaf_until: Option<Instant>,
    /// When whatever was too long is taken to be gone.
    healed_at: Option<Instant>,
    /// With the other way to write.
    node: Option<Node>,
    /// Verdicts below this number waited for the connection.
    fresh_from: u64,
}

/// What became of an attempt to send a verdict.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Offer {
    Sent,
    /// None waits, or none may be sent.
    Nothing,
    /// The store or the library is busy.
    Later,
}

struct Topics {
    verdict: String,
    /// What follows a Sparkplug message, see [`Session::offer`].
    delivered: String,
    boards: [String; 3],
    inputs: [String; 3],
}

impl<'a> Session<'a> {
    pub fn new(
        config: &'a MqttConfig,
        shared: &'a Shared,
        inbox: &'a Inbox,
        memory: &'a mut Memory,
    ) -> Result<Self, LinkError> {
        let topics = Topics {
            verdict: config.topic("verdict"),
            delivered: config.topic("delivered"),
            boards: ["status", "metrics", "handshake"].map(|word| config.topic(word)),
            inputs: Topic::ALL.map(|topic| config.topic(topic.word())),
        };
        let node = (config.payload == PayloadKind::Sparkplug).then(|| Node::new(config, memory.sessions));
        memory.sessions += 1;
        let status = topics.boards[Say::Status as usize].as_str();
        let will = match &node {
            Some(node) => {
                let (topic, death) = node.death();
                LastWill::new(topic, death, QoS::AtLeastOnce, false)
            }
            None => LastWill::new(status, OFFLINE, QoS::AtLeastOnce, true),
        };
        let (client, mut events) = AsyncClient::new(link::options(config, Some(will))?, REQUESTS);
        events.set_network_options(link::network(config));
        let deaf_until = (memory.too_long > 1).then(|| Instant::now() + DEAF);
        Ok(Self {
            config,
            shared,
            inbox,
            memory,
            client,
            events: Some(events),
            topics,
            flight: None,
            connected: false,
            deaf_until,
            healed_at: None,
            node,
            fresh_from: 0,
        })
    }

    /// Delivers until the connection is lost, which is an error, or the end is wanted.
    pub async fn run(mut self) -> Result<(), LinkError> {
        let Some(mut events) = self.events.take() else { return Ok(()) };
        loop {
            // Not to be dropped half way: it may be in the midst of connecting.
            let mut event = std::pin::pin!(events.poll());
            let event = loop {
                if self.act()? {
                    return Ok(());
                }
                let wake = self.next_time();
                tokio::select! {
                    event = &mut event => break event,
                    () = self.shared.store.woken() => {}
                    () = sleep_until(wake) => {}
                }
            };
            match event {
                Ok(Event::Incoming(packet)) => self.hear(&packet)?,
                Ok(Event::Outgoing(Outgoing::Publish(packet))) if packet != 0 => {
                    if let Some(flight) = &mut self.flight {
                        flight.packet.get_or_insert(packet);
                    }
                }
                // The farewell is said.
                Ok(Event::Outgoing(Outgoing::Disconnect)) => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(LinkError::of(self.config, &error)),
            }
        }
    }

    /// When there is something to do although nothing happens.
    fn next_time(&self) -> Instant {
        let mut next = Instant::now() + Duration::from_secs(3600);
        if let Some(flight) = &self.flight {
            next = next.min(flight.until);
        }
        // Nothing can be done about these before there is a connection.
        for time in [self.deaf_until, self.healed_at].into_iter().flatten().filter(|_| self.connected) {
            next = next.min(time);
        }
        if let Some(by) = self.shared.stop_by() {
            next = next.min(Instant::now() + (by + FAREWELL).since(Moment::now()));
        }
        next
    }

    /// Does what is to be done now; true at the end.
    fn act(&mut self) -> Result<bool, LinkError> {
        let stop = self.shared.stop_by();
        if let Some(by) = stop {
            let now = Moment::now();
            if !self.connected && now >= by || now >= by + FAREWELL {
                return Ok(true);
            }
        }
        if !self.connected {
            return Ok(false);
        }
        if self.flight.as_ref().is_some_and(|flight| Instant::now() >= flight.until) {
            let within = self.config.ack_timeout_s;
            return Err(LinkError::lost(self.config, format!("it did not acknowledge a verdict within {within} s")));
        }
        if self.deaf_until.is_some_and(|end| Instant::now() >= end) {
            self.deaf_until = None;
            self.subscribe();
        }
        if self.healed_at.is_some_and(|time| Instant::now() >= time) {
            self.healed_at = None;
            self.memory.too_long = 0;
            self.shared.state().fault = None;
        }
        self.say();
        if self.flight.is_none() {
            let offered = self.offer(stop.is_none_or(|by| Moment::now() < by));
            if stop.is_some() && offered == Offer::Nothing {
                self.farewell();
            }
        }
        Ok(false)
    }

    /// Listens to the station's topics.
    fn subscribe(&mut self) {
        let node = self.node.iter().flat_map(|node| [Some(node.commands()), node.state()]).flatten();
        let topics = self.topics.inputs.iter().cloned().chain(node);
        let filters = topics.map(|topic| SubscribeFilter::new(topic, QoS::AtLeastOnce));
        if self.client.try_subscribe_many(filters).is_err() {
            // The library's queue is full; it is not for long.
            self.deaf_until = Some(Instant::now() + Duration::from_secs(1));
        }
    }

    /// Publishes what the station wants said.
    fn say(&mut self) {
        for say in Say::ALL {
            // An edge node's births and deaths say the same, and a connection has one will.
            if self.node.is_some() && say == Say::Status {
                continue;
            }
            let mut board = self.shared.board(say);
            let topic = self.topics.boards[say as usize].as_str();
            // Whoever comes late must not take an old handshake for today's.
            let retain = say == Say::Status;
            if board.changed && self.client.try_publish(topic, QoS::AtMostOnce, retain, board.text.as_bytes()).is_ok() {
                board.changed = false;
            }
        }
    }

    /// Sends the next verdict, if one waits.
    ///
    /// Sparkplug demands QoS 0 for data, which nobody acknowledges. So a short message at QoS 1 follows on the same
    /// connection: the broker that acknowledges it has read what came before it.
    fn offer(&mut self, wanted: bool) -> Offer {
        if self.node.as_ref().is_some_and(|node| !node.born) {
            return Offer::Nothing;
        }
        let key = match self.shared.store.try_next(&mut self.memory.acked, &mut self.memory.payload) {
            Ok(Some(key)) if wanted => key,
            Ok(_) => return Offer::Nothing,
            // Whoever has it wakes us.
            Err(Busy) => return Offer::Later,
        };
        let sent = match &mut self.node {
            Some(node) => {
                let (topic, data) = node.data(&self.memory.payload, key.seq < self.fresh_from);
                let marker = format!("{{\"boot\":{},\"seq\":{}}}", key.boot, key.seq);
                let sent = self.client.try_publish(topic, QoS::AtMostOnce, false, data);
                sent.and_then(|()| {
                    self.client.try_publish(self.topics.delivered.as_str(), QoS::AtLeastOnce, false, marker)
                })
            }
            None => {
                let topic = self.topics.verdict.as_str();
                self.client.try_publish(topic, QoS::AtLeastOnce, false, self.memory.payload.as_slice())
            }
        };
        if sent.is_err() {
            return Offer::Later;
        }
        self.flight = Some(Flight { key: Some(key), packet: None, until: self.ack_by() });
        if self.memory.sent == Some(key) {
            self.shared.state().repeated += 1;
        }
        self.memory.sent = Some(key);
        Offer::Sent
    }

    fn ack_by(&self) -> Instant {
        Instant::now() + Duration::from_secs(self.config.ack_timeout_s.into())
    }

    fn farewell(&mut self) {
        let status = || (self.topics.boards[Say::Status as usize].clone(), OFFLINE.as_bytes().to_vec());
        let (topic, text) = self.node.as_ref().map_or_else(status, Node::death);
        if self.client.try_publish(topic, QoS::AtLeastOnce, self.node.is_none(), text).is_ok() {
            self.flight = Some(Flight { key: None, packet: None, until: Instant::now() + FAREWELL });
        }
    }

    fn hear(&mut self, packet: &Packet) -> Result<(), LinkError> {
        match packet {
            Packet::ConnAck(_) => self.begin(),
            Packet::PubAck(ack) => {
                if let Some(flight) = self.flight.take_if(|flight| flight.packet == Some(ack.pkid)) {
                    match flight.key {
                        Some(key) => {
                            self.memory.acked = Some(key.seq);
                            self.shared.state().delivered += 1;
                        }
                        None => drop(self.client.try_disconnect()),
                    }
                }
            }
            Packet::SubAck(ack) => {
                self.healed_at = (self.memory.too_long > 0).then(|| Instant::now() + HEALED);
                if ack.return_codes.contains(&SubscribeReasonCode::Failure) {
                    let text = "the broker refuses a subscription; check its access list for trigger, ack and command";
                    log::warn!("{text}");
                    self.shared.state().fault = Some(text.into());
                }
            }
            Packet::Publish(message) => self.take(message)?,
            Packet::Disconnect => return Err(LinkError::lost(self.config, "it ended the connection")),
            _ => {}
        }
        Ok(())
    }

    fn begin(&mut self) {
        self.connected = true;
        let mut state = self.shared.state();
        state.health = Health::Up;
        state.connections += 1;
        if self.memory.too_long == 0 {
            state.fault = None;
        }
        drop(state);
        log::info!("connected to the broker {}", link::broker(self.config));
        self.fresh_from = self.shared.store.next_seq();
        for say in [Say::Status, Say::Handshake] {
            let mut board = self.shared.board(say);
            board.changed = !board.text.is_empty();
        }
        if self.memory.too_long > 0 {
            // Had the broker kept it, it would come at every subscription; nothing may be retained on these topics.
            for topic in &self.topics.inputs {
                let _ = self.client.try_publish(topic.as_str(), QoS::AtMostOnce, true, "");
            }
        }
        if self.deaf_until.is_none() {
            self.subscribe();
        }
        // With a primary host, its word comes first.
        if self.node.as_ref().is_some_and(|node| node.state().is_none()) {
            self.births();
        }
    }

    fn births(&mut self) {
        for (topic, birth) in self.node.iter_mut().flat_map(Node::births) {
            if let Err(error) = self.client.try_publish(topic, QoS::AtMostOnce, false, birth) {
                log::warn!("a Sparkplug birth was not sent: {error}");
            }
        }
    }

    /// A message to the Sparkplug node; true if it was one.
    fn take_as_node(&mut self, message: &Publish) -> Result<bool, LinkError> {
        let Some(node) = &self.node else { return Ok(false) };
        if node.state().as_ref() == Some(&message.topic) {
            match sparkplug::host_is_online(&message.payload) {
                Some(true) if !node.born => self.births(),
                // The broken connection brings the node's death, and the next one waits for the host.
                Some(false) if node.born => {
                    return Err(LinkError::lost(self.config, "the primary host is offline"));
                }
                _ => {}
            }
            return Ok(true);
        }
        if node.commands() == message.topic {
            if node.born && !message.retain && sparkplug::asks_rebirth(&message.payload) {
                self.births();
            }
            return Ok(true);
        }
        Ok(false)
    }

    fn take(&mut self, message: &Publish) -> Result<(), LinkError> {
        let at = Moment::now();
        if self.take_as_node(message)? {
            return Ok(());
        }
        let topic = Topic::ALL.into_iter().zip(&self.topics.inputs).find(|(_, name)| **name == message.topic);
        let Some((topic, _)) = topic else { return Ok(()) };
        // What clears a retained message comes to its subscribers as an empty one.
        if !message.payload.is_empty() || self.memory.too_long == 0 {
            self.inbox.take(topic, &message.payload, message.retain, message.dup, at);
        }
        Ok(())
    }
}
