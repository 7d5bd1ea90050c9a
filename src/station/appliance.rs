//! The whole appliance: a station, and all that brings triggers to it and takes verdicts and states from it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::desk::{Desk, DeskSettings};
use super::ears::{Ears, Hearing, Watching};
use super::exchange::Exchange;
use super::host::StationHost;
use super::keeper::{self, Keeper};
use super::scribe::Scribe;
use super::start::{self, StartError};
use super::status::{Health, Status};
use super::{Line, Parts, Station, report};
use crate::backbone::Identity;
use crate::camera::pairing::Pairer;
use crate::camera::trigger::Source;
use crate::clock::Moment;
use crate::config::Config;
use crate::gpio::{EdgeConfig, Edges, Reject};
use crate::operations::http::{self, Pages, Server};
use crate::operations::machine::Readings;
use crate::operations::metrics::{self, Snapshot};
use crate::operations::progress::{Progress, Pulse};
use crate::operations::{MetricsAddress, realtime};
use crate::outbox::Store;
use crate::outbox::handshake::Happening;
use crate::outbox::mqtt::{Command, Delivery, Inbox, Incoming, LinkState, inbox};
use crate::update::agent::{Agent, AgentParts};
use crate::update::bundle::{self, Software};
use crate::verdict::payload::About;

/// Messages that can wait to be looked at.
const MESSAGES: usize = 64;
/// Threads that wait for others look up so often.
pub(super) const TURN: Duration = Duration::from_millis(100);
/// How long a thread of the station may stand still before the watchdog starves: longer than any frame, file or line takes
/// that works.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Shared {
    line: Line,
    store: Store,
    pub(super) ears: Arc<Ears>,
    pub(super) delivery: Delivery,
    inbox: Inbox,
    pub(super) progress: Progress,
    /// What the machine said last.
    pub(super) readings: Mutex<Readings>,
    /// No more cells are taken.
    pub(super) closing: AtomicBool,
    stop: AtomicBool,
}

impl Shared {
    fn readings(&self) -> Readings {
        *self.readings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Asks everybody how it does.
    pub(super) fn status(&self) -> Status {
        let (mut status, counts) = (self.line.status(), self.inbox.counts());
        (status.pending, status.dropped) = (self.store.pending(), self.store.dropped());
        (status.broker, status.drift) = (self.delivery.health(), self.ears.lately().drift.alarm());
        (status.temperature, status.faults.bad_messages) = (self.readings().temperature, counts.bad() + counts.overrun);
        status
    }
}

/// A running appliance. Stop it with [`stop`](Self::stop); dropping it ends it without waiting for the broker.
pub struct Appliance {
    shared: Arc<Shared>,
    station: Option<Station>,
    threads: Vec<JoinHandle<()>>,
    server: Option<Server>,
    /// Ends first: it speaks to the judge.
    agent: Option<Agent>,
    model: Identity,
    camera: String,
}

impl Appliance {
    /// Opens everything and starts. The configuration must be valid.
    ///
    /// A camera, broker, display or metrics port that is not there does not keep it from starting: what can come later is
    /// waited for, and the log says so.
    ///
    /// # Errors
    /// What cannot be used at all: model, backbone, calibration, outbox, GPIO lines, a camera that refuses its settings.
    pub fn start(config: &Config) -> Result<Self, StartError> {
        realtime::prepare_process(&config.operations);
        let (model, updates) = start::in_force(config)?;
        // The threads that share a cell's work are made here: they get cores and priority from the one that makes them.
        let (workers, inspector) = std::thread::scope(|scope| {
            let made = scope.spawn(|| {
                realtime::prepare_thread(&config.operations);
                let workers = start::workers(config);
                let inspector = start::inspector_for(config, &model, &workers)?;
                Ok((workers, inspector))
            });
            made.join().unwrap_or_else(|_| Err(StartError::Threads(std::io::Error::other("making the judge failed"))))
        })?;
        let camera = start::open_camera(config)?;
        let mut judge = start::judge(config, inspector, camera.as_ref())?;
        let format = camera.format();
        let exchange = updates.as_ref().map(|_| Arc::new(Exchange::new(format)));
        if let Some(exchange) = &exchange {
            judge = judge.with_exchange(Arc::clone(exchange));
        }
        let sensor = judge.sensor();
        let store = Store::open(&config.outbox)?;
        let header = model.header();

        let ears = Arc::new(Ears::new(config.handshake, &config.operations.drift, &model));
        let reject = config.gpio.reject.as_ref().map(Reject::open).transpose()?.map(Arc::new);
        let edges = match (config.trigger.source, &config.gpio.trigger) {
            (Source::Gpio, Some(edge)) => Some(Edges::open(edge)?),
            _ => None,
        };

        let takt = Duration::from_millis(config.station.takt_ms.into());
        let in_time = takt - Duration::from_millis(config.station.margin_ms.into());
        let grid = header.settings.grid as usize;
        let about = About { id: None, stamp: None, model: model.id(), grid, cell_mm: config.station.cell_mm };
        let slots = config.station.slots;
        let pairer = match config.trigger.source {
            Source::Frame | Source::Pulse => None,
            Source::Mqtt => Some(Pairer::new(&config.trigger.pairing, true)),
            Source::Gpio => Some(Pairer::new(&config.trigger.pairing, false)),
        };
        let watching = Box::new(Watching { ears: Arc::clone(&ears), reject: reject.clone() });
        let desk = Desk::new(DeskSettings { slots, takt: in_time }, pairer, Some(watching));
        let hearing = Box::new(Hearing { ears: Arc::clone(&ears), reject });
        let scribe = Scribe::new(Box::new(store.clone()), Some(hearing), about, takt);

        let mut progress = Progress::default();
        let now = Moment::now();
        let beats = ["camera", "judge", "clock", "scribe"].map(|name| progress.register(name, PATIENCE, now));
        let metrics_pulse = progress.register("metrics", http::PATIENCE, now);
        let messages_pulse = progress.register("messages", PATIENCE, now);
        let edges_pulse = edges.as_ref().map(|_| progress.register("edges", PATIENCE, now));
        let described = camera.describe();
        let operations = config.operations.clone();
        let station = Station::start(Parts {
            camera,
            judge: Box::new(judge),
            desk,
            scribe,
            slots,
            on_start: Box::new(move |_| realtime::prepare_thread(&operations)),
            beat: Box::new(move |part| beats[part as usize].beat()),
        })?;

        let (inbox, messages) = inbox(MESSAGES);
        let delivery = Delivery::start(&config.mqtt, store.clone(), inbox.clone())?;
        let line = station.line();
        let shared = Arc::new(Shared {
            line,
            store,
            ears,
            delivery,
            inbox,
            progress,
            readings: Mutex::default(),
            closing: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut appliance = Self {
            shared: Arc::clone(&shared),
            station: Some(station),
            threads: Vec::new(),
            server: None,
            agent: None,
            model: model.id(),
            camera: described,
        };
        appliance.server = serve(&config.operations.metrics, &shared, metrics_pulse);
        let by_message = config.trigger.source == Source::Mqtt;
        appliance.spawn("messages", move |shared| listen(shared, &messages, by_message, messages_pulse))?;
        if let (Some(edges), Some(pulse), Some(edge)) = (edges, edges_pulse, config.gpio.trigger.clone()) {
            appliance.spawn("edges", move |shared| watch_edges(shared, edges, &edge, pulse))?;
        }
        let keeper = Keeper::new(config);
        appliance.spawn("keeper", move |shared| keeper.run(shared))?;
        if let (Some(slots), Some(exchange)) = (updates, exchange) {
            let station = bundle::Station {
                line: config.mqtt.line.clone(),
                station: config.mqtt.station.clone(),
                groups: config.update.groups.clone(),
                software: Software::own(),
                backbone: start::backbone_identity(config)?.0,
            };
            let ears = Arc::clone(&shared.ears);
            let host = Box::new(StationHost::new(config, exchange, ears, workers, format, sensor, &model));
            let (update, mqtt) = (config.update.clone(), config.mqtt.clone());
            appliance.agent = Some(Agent::start(AgentParts { config: update, mqtt, slots, station, host })?);
        }
        Ok(appliance)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce(&Shared) + Send + 'static) -> Result<(), StartError> {
        let shared = Arc::clone(&self.shared);
        self.threads.push(std::thread::Builder::new().name(name.into()).spawn(move || run(&shared))?);
        Ok(())
    }

    /// Everything at this moment.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// How delivery does.
    #[must_use]
    pub fn link(&self) -> LinkState {
        self.shared.delivery.state()
    }

    /// A handle to bring triggers by.
    #[must_use]
    pub fn line(&self) -> Line {
        self.shared.line.clone()
    }

    /// From exposure to verdict, over all cells so far.
    #[must_use]
    pub fn latencies(&self) -> crate::operations::latency::Latencies {
        self.shared.ears.recorder.latency.read()
    }

    /// The model that it started with. The one in force is in its [`status`](Self::status).
    #[must_use]
    pub fn model(&self) -> Identity {
        self.model
    }

    /// Which camera it is.
    #[must_use]
    pub fn camera(&self) -> &str {
        &self.camera
    }

    /// Where metrics are served.
    #[must_use]
    pub fn metrics_address(&self) -> Option<std::net::SocketAddr> {
        self.server.as_ref().map(Server::address)
    }

    /// Whether the camera has come to its end and every cell has its verdict.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.station.as_ref().is_none_or(Station::is_done)
    }

    /// Whether a thread of the station has died: nothing is to be hoped for but a restart.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.station.as_ref().is_some_and(Station::is_broken)
    }

    /// Takes no more frames, gives every cell in hand its verdict, delivers for at most `grace` what waits, and ends.
    /// Gives how it did in the end.
    pub fn stop(mut self, grace: Duration) -> (Status, LinkState) {
        self.end(grace)
    }

    fn end(&mut self, grace: Duration) -> (Status, LinkState) {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.ears.take(Happening::Ready(false));
        self.agent = None;
        if let Some(station) = self.station.take() {
            station.stop();
        }
        let before = self.shared.delivery.health();
        // A broker that is away is not waited for: what it has not got is kept.
        self.shared.delivery.stop(if before == Health::Up { grace } else { Duration::ZERO });
        self.shared.stop.store(true, Ordering::Release);
        self.shared.ears.news.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
        self.server = None;
        let status = Status { broker: before, ..self.shared.status() };
        (status, LinkState { health: before, ..self.shared.delivery.state() })
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

/// Brings triggers, acknowledgements and commands from the broker.
fn listen(shared: &Shared, messages: &Receiver<Incoming>, triggers: bool, pulse: Pulse) {
    while !shared.stopped() {
        pulse.beat();
        match messages.recv_timeout(TURN) {
            Ok(Incoming::Trigger(_)) if shared.closing.load(Ordering::Acquire) => {}
            Ok(Incoming::Trigger(trigger)) if triggers => shared.line.trigger(trigger),
            Ok(Incoming::Trigger(_)) => log::warn!("a trigger came by message, but trigger.source is another one"),
            Ok(Incoming::Ack(key)) => shared.ears.take(Happening::Ack(key)),
            Ok(Incoming::Command(command)) => obey(shared, command),
            Err(RecvTimeoutError::Timeout) => {}
            // Delivery is not in use: nobody will send.
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    pulse.retire();
}

fn obey(shared: &Shared, command: Command) {
    match command {
        Command::ShiftReset => shared.line.with_desk(Desk::reset_shift),
        Command::Status => {
            let mut text = String::new();
            report::write_state(&shared.status(), &mut text);
            shared.delivery.set_status(&text);
        }
        Command::Metrics => keeper::publish_numbers(shared, &shared.status()),
    }
    log::info!("a command was obeyed: do={command:?}");
}

/// Brings the edges of a GPIO line.
fn watch_edges(shared: &Shared, edges: Edges, config: &EdgeConfig, pulse: Pulse) {
    let (mut edges, mut complained) = (Some(edges), false);
    while !shared.stopped() {
        pulse.beat();
        let next = match &mut edges {
            Some(edges) => edges.next(TURN),
            None => Edges::open(config).map(|opened| {
                edges = Some(opened);
                None
            }),
        };
        match next {
            Ok(Some(_)) if shared.closing.load(Ordering::Acquire) => {}
            Ok(Some(trigger)) => shared.line.trigger(trigger),
            Ok(None) => complained = false,
            Err(error) => {
                edges = None;
                if !complained {
                    log::error!("{error}; trying again");
                    complained = true;
                }
                std::thread::sleep(TURN);
            }
        }
    }
    pulse.retire();
}

fn serve(address: &MetricsAddress, shared: &Arc<Shared>, pulse: Pulse) -> Option<Server> {
    let MetricsAddress::At(address) = *address else {
        pulse.retire();
        return None;
    };
    let pages = Box::new(Served(Arc::clone(shared)));
    Server::start(address, pages, Some(pulse)).map_err(|error| log::error!("{error}")).ok()
}

/// What is served.
struct Served(Arc<Shared>);

impl Pages for Served {
    fn metrics(&mut self, out: &mut String) {
        let shared = &self.0;
        let (status, drift, readings) = (shared.status(), shared.ears.lately().drift.report(), shared.readings());
        let snapshot = Snapshot {
            status: &status,
            now: Moment::now(),
            recorder: &shared.ears.recorder,
            machine: &readings,
            drift: &drift,
            progress: Some(&shared.progress),
        };
        metrics::write(&snapshot, out);
    }

    fn health(&mut self, out: &mut String) -> bool {
        metrics::write_health(&self.0.status(), Some(&self.0.progress), Moment::now(), out)
    }
}
