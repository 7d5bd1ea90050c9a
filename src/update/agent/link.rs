//! The agent's own connection to the broker: offers and chunks come in, reports go out.
//!
//! It shares nothing with the delivery of verdicts but the settings, so that neither disturbs the other. What comes in
//! waits in a queue of fixed length; a chunk that finds no room is dropped and asked for again.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rumqttc::{AsyncClient, Event, EventLoop, Packet, Publish, QoS, SubscribeFilter};
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::outbox::mqtt::MqttConfig;
use crate::outbox::mqtt::link::{self, LinkError};
use crate::update::message::{CHUNK_BYTES, MAX_REPORT, offer_topic, report_topic};

/// Chunks that can wait.
const QUEUE: usize = 16;
/// Requests that the library holds.
const REQUESTS: usize = 32;
/// What could not be handed to the library is tried again after this.
const AGAIN: Duration = Duration::from_millis(200);
/// First pause before another attempt to connect.
const RETRY: Duration = Duration::from_millis(500);

/// What has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// There is a new offer to be [taken](Link::offers).
    Offer,
    /// A chunk, by its topic.
    Chunk(String, Vec<u8>),
}

#[derive(Default)]
struct Wishes {
    report: String,
    report_changed: bool,
    chunks: Vec<String>,
}

struct Shared {
    wishes: Mutex<Wishes>,
    /// The newest message on each group's topic that nobody has taken yet.
    offers: Mutex<Vec<Option<Vec<u8>>>>,
    wake: Notify,
    stop: AtomicBool,
}

impl Shared {
    fn wishes(&self) -> MutexGuard<'_, Wishes> {
        self.wishes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// See the [module](self). Dropping it ends the connection.
pub(super) struct Link {
    shared: Arc<Shared>,
    heard: Receiver<Heard>,
    thread: Option<JoinHandle<()>>,
}

impl Link {
    /// Connects, again and again if it must, under the station's client name with `-update` behind it.
    pub(super) fn start(mqtt: &MqttConfig, groups: &[String]) -> io::Result<Self> {
        let config = MqttConfig { client_id: format!("{}-update", mqtt.client()), ..mqtt.clone() };
        let shared = Arc::new(Shared {
            wishes: Mutex::default(),
            offers: Mutex::new(vec![None; groups.len()]),
            wake: Notify::new(),
            stop: AtomicBool::new(false),
        });
        let (to, heard) = sync_channel(QUEUE);
        let offers = groups.iter().map(|group| offer_topic(group)).collect();
        let theirs = Arc::clone(&shared);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("update-link".into()).spawn(move || {
            super::step_back();
            runtime.block_on(stay_connected(&config, &theirs, &to, offers));
            runtime.shutdown_background();
        })?;
        Ok(Self { shared, heard, thread: Some(thread) })
    }

    /// What comes within `wait`; none if nothing does.
    pub(super) fn hear(&self, wait: Duration) -> Option<Heard> {
        match self.heard.recv_timeout(wait) {
            Ok(heard) => Some(heard),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                // The thread has died: do not spin.
                std::thread::sleep(wait);
                None
            }
        }
    }

    /// The newest messages on the offer topics that were not taken yet, each with the number of its group.
    pub(super) fn offers(&self) -> Vec<(usize, Vec<u8>)> {
        let mut offers = self.shared.offers.lock().unwrap_or_else(PoisonError::into_inner);
        offers.iter_mut().enumerate().filter_map(|(group, offer)| Some((group, offer.take()?))).collect()
    }

    /// Publishes the station's report, now and after each new connection.
    pub(super) fn report(&self, text: String) {
        let mut wishes = self.shared.wishes();
        (wishes.report, wishes.report_changed) = (text, true);
        drop(wishes);
        self.shared.wake.notify_one();
    }

    /// Wants the chunks on these topics, and no others.
    pub(super) fn want(&self, topics: Vec<String>) {
        self.shared.wishes().chunks = topics;
        self.shared.wake.notify_one();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

async fn stay_connected(config: &MqttConfig, shared: &Shared, to: &SyncSender<Heard>, offers: Vec<String>) {
    let (mut pause, mut complained) = (RETRY, false);
    while !shared.stopped() {
        let mut was_up = false;
        match session(config, shared, to, &offers, &mut was_up).await {
            Ok(()) => return,
            Err(error) => {
                if was_up {
                    (pause, complained) = (RETRY, false);
                }
                if !complained {
                    log::warn!("updates: {error}; trying again");
                    complained = true;
                }
            }
        }
        tokio::select! {
            () = sleep(pause) => {}
            () = until_stopped(shared) => return,
        }
        pause = (2 * pause).min(Duration::from_secs(config.retry_max_s.into()).max(RETRY));
    }
}

async fn until_stopped(shared: &Shared) {
    while !shared.stopped() {
        shared.wake.notified().await;
    }
}

/// One connection, to its end; no error if the end is wanted.
async fn session(
    config: &MqttConfig,
    shared: &Shared,
    to: &SyncSender<Heard>,
    offers: &[String],
    was_up: &mut bool,
) -> Result<(), LinkError> {
    let mut options = link::options(config, None)?;
    options.set_max_packet_size(CHUNK_BYTES as usize + 1024, MAX_REPORT + 1024);
    let (client, mut events) = AsyncClient::new(options, REQUESTS);
    events.set_network_options(link::network(config));
    let mut wire = Wire { client, report: report_topic(&config.line, &config.station), asked: Vec::new() };
    let mut up = false;
    loop {
        if shared.stopped() {
            leave(&wire.client, &mut events, up).await;
            return Ok(());
        }
        if up {
            wire.tell(shared);
        }
        // Not to be dropped half way: it may be in the midst of connecting.
        let mut event = std::pin::pin!(events.poll());
        let event = loop {
            tokio::select! {
                event = &mut event => break Some(event),
                () = shared.wake.notified() => {}
                () = sleep(AGAIN) => {}
            }
            if shared.stopped() {
                break None;
            }
            if up {
                wire.tell(shared);
            }
        };
        match event {
            None => {}
            Some(Ok(Event::Incoming(Packet::ConnAck(_)))) => {
                (up, *was_up) = (true, true);
                let mut wishes = shared.wishes();
                wishes.report_changed = !wishes.report.is_empty();
                drop(wishes);
                let filters = offers.iter().map(|topic| SubscribeFilter::new(topic.clone(), QoS::AtLeastOnce));
                if !offers.is_empty() && wire.client.try_subscribe_many(filters).is_err() {
                    return Err(LinkError::lost(config, "subscribing to offers failed"));
                }
                log::info!("updates: connected to the broker {}", link::broker(config));
            }
            Some(Ok(Event::Incoming(Packet::Publish(message)))) => take(message, offers, &wire, shared, to),
            Some(Ok(Event::Incoming(Packet::Disconnect))) => {
                return Err(LinkError::lost(config, "it ended the connection"));
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(LinkError::of(config, &error)),
        }
    }
}

fn take(message: Publish, offers: &[String], wire: &Wire, shared: &Shared, to: &SyncSender<Heard>) {
    let heard = match offers.iter().position(|topic| *topic == message.topic) {
        Some(group) => {
            let mut offers = shared.offers.lock().unwrap_or_else(PoisonError::into_inner);
            offers[group] = Some(message.payload.to_vec());
            Heard::Offer
        }
        None if wire.asked.contains(&message.topic) => Heard::Chunk(message.topic, message.payload.to_vec()),
        None => return,
    };
    // A chunk that finds no room is asked for again by who waits for it, and offers are looked for at every turn.
    let _ = to.try_send(heard);
}

/// The broker hears that the end is wanted.
async fn leave(client: &AsyncClient, events: &mut EventLoop, up: bool) {
    if up && client.try_disconnect().is_ok() {
        let _ = tokio::time::timeout(AGAIN, async { while events.poll().await.is_ok() {} }).await;
    }
}

struct Wire {
    client: AsyncClient,
    report: String,
    /// Topics of chunks that are subscribed to.
    asked: Vec<String>,
}

impl Wire {
    /// Hands to the library what is wanted and not yet done.
    fn tell(&mut self, shared: &Shared) {
        let mut wishes = shared.wishes();
        if wishes.report_changed {
            let sent = self.client.try_publish(self.report.as_str(), QoS::AtLeastOnce, true, wishes.report.as_bytes());
            wishes.report_changed = sent.is_err();
        }
        let client = &self.client;
        // What cannot be handed over now stays in the list and is tried again.
        self.asked.retain(|topic| wishes.chunks.contains(topic) || client.try_unsubscribe(topic.as_str()).is_err());
        for topic in &wishes.chunks {
            if !self.asked.contains(topic) && client.try_subscribe(topic.as_str(), QoS::AtLeastOnce).is_ok() {
                self.asked.push(topic.clone());
            }
        }
    }
}
