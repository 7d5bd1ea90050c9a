//! The agent: what takes a new model from an offer to good, beside a running station.
//!
//! ```text
//!  broker ──offers, chunks──► Link ─► Post ─► Plan: which offer, and when
//!  HTTP server ─────────────► Inflow ─► Slots: download, verify, stage ─► Host: prove, shadow, activate, watch
//!  inbox folder ────────────────────────┘
//! ```
//!
//! Two threads of low priority, `update` and `update-link`, with a connection of their own to the broker. The agent knows
//! the station only as its [`Host`], and the host's judge never waits for the agent.

mod config;
mod http;
mod inbox;
mod inflow;
mod link;
mod plan;
mod post;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

pub use config::{ProbationConfig, ShadowConfig, UpdateConfig};
pub use http::{Body, Http, HttpError};
pub use inbox::{Errand, Inbox};
pub use plan::{Plan, Step, View};

use super::bundle::{BundleError, Station};
use super::disk::Folder;
use super::install::{NotProven, Staged, Wanted};
use super::message::{Offer, Shadow, State};
use super::slots::{Phase, Seen, Slots, UpdateError};
use crate::clock::{Date, Moment};
use crate::outbox::mqtt::MqttConfig;
use inflow::Inflow;
use link::Link;
use post::Post;

/// The agent looks up so often.
const TURN: Duration = Duration::from_millis(200);
/// What was seen of a model on probation is written down so often.
const WATCH: Duration = Duration::from_secs(2);
/// A model that could not be put back is tried again after this.
const AGAIN: Duration = Duration::from_secs(5);

/// What the agent needs of the station that it serves. Called from the agent's thread alone.
pub trait Host: Send {
    /// The model that judges, as verdicts name it.
    fn model(&self) -> String;

    /// Opens a model and has it judge the golden frames, in the station's own engine. It is the candidate from then on.
    ///
    /// # Errors
    /// Why it must not be used.
    fn prove(&mut self, model: &Path, golden: &Path) -> Result<(), NotProven>;

    /// Has the candidate judge live frames beside the model in force. `heard` is told after each frame, or several times a
    /// second while none comes, and says why to break off, if there is a reason.
    ///
    /// # Errors
    /// Why it must not be used, or why it was broken off.
    fn shadow(&mut self, heard: &mut dyn FnMut(Shadow) -> Option<&'static str>) -> Result<(), NotProven>;

    /// Puts the candidate in force between two cells.
    ///
    /// # Errors
    /// Why it could not; the model before is in force then.
    fn activate(&mut self) -> Result<(), String>;

    /// Puts the model of a file in force between two cells; none: the one that the configuration names.
    ///
    /// # Errors
    /// Why it could not.
    fn go_back(&mut self, model: Option<&Path>) -> Result<(), String>;

    /// What the model in force has judged since it was asked last. The seconds are counted by the agent.
    fn seen(&mut self) -> Seen;
}

/// What an agent is made of.
pub struct AgentParts {
    /// The section `[update]`.
    pub config: UpdateConfig,
    /// The broker; without a host only the inbox brings updates.
    pub mqtt: MqttConfig,
    /// The state folder, locked.
    pub slots: Slots<Folder>,
    /// What bundles ask of the station.
    pub station: Station,
    /// The station.
    pub host: Box<dyn Host>,
}

/// A running agent. Dropping it ends it; a download goes on at the next start.
pub struct Agent {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    /// Starts the threads.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(parts: AgentParts) -> io::Result<Self> {
        let AgentParts { config, mqtt, slots, station, host } = parts;
        let stop = Arc::new(AtomicBool::new(false));
        let link = if mqtt.host.is_empty() { None } else { Some(Link::start(&mqtt, &config.groups)?) };
        let (spread, longest) = (Duration::from_secs(config.spread_s.into()), config.retry_max_s.into());
        let plan = Plan::new(&mqtt.line, &mqtt.station, config.groups.len(), spread, Duration::from_secs(longest));
        let post = Post::new(link, plan, config.groups.clone(), Arc::clone(&stop));
        let (inbox, http) = (Inbox::new(&config.state), Http::new(&config.ca, config.allow_http));
        let now = Moment::now();
        let mut work = Work {
            config,
            slots,
            station,
            host,
            post,
            inbox,
            http,
            watched: now,
            unwritten: Seen::default(),
            astray: None,
        };
        let thread = std::thread::Builder::new().name("update".into()).spawn(move || {
            step_back();
            work.run();
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Lets everybody else go first.
fn step_back() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, 15) {
        log::warn!("updates: the thread keeps its priority: {error}");
    }
}

struct Work {
    config: UpdateConfig,
    slots: Slots<Folder>,
    station: Station,
    host: Box<dyn Host>,
    post: Post,
    inbox: Inbox,
    http: Http,
    watched: Moment,
    /// What was seen of a model on probation and is not in the record yet: the disk was full.
    unwritten: Seen,
    /// The model in force by the record is not the one that judges: when to try again.
    astray: Option<Moment>,
}

impl Work {
    fn run(&mut self) {
        while !self.post.stopped() {
            self.post.turn(TURN);
            let now = Moment::now();
            self.find_back(now);
            self.watch(now);
            self.mind_inbox();
            self.follow(now);
        }
        // What was seen since is not lost.
        self.watched = Moment::default();
        self.watch(Moment::now());
    }

    fn read(&mut self) {
        self.post.read(self.slots.record(), self.host.model());
    }

    /// Counts what the model on probation has judged, and takes it back or calls it good.
    fn watch(&mut self, now: Moment) {
        let since = now.since(self.watched);
        if since < WATCH || self.astray.is_some() {
            return;
        }
        self.watched = now;
        let Phase::Probation { .. } = self.slots.record().phase else { return };
        let seen = Seen { seconds: since.as_secs().min(60), ..self.host.seen() };
        self.unwritten.add(&seen);
        self.unwritten.drift &= self.config.probation.drift;
        let watched = self.slots.watch(&self.unwritten, &self.config.probation.limits());
        if watched.is_ok() {
            self.unwritten = Seen::default();
        }
        match watched {
            Ok(true) => {
                log::error!("updates: {}", self.slots.record().last);
                self.put_back();
            }
            Ok(false) if self.slots.record().phase == Phase::Good => {
                log::info!("updates: {}", self.slots.record().last)
            }
            Ok(false) => {}
            Err(error) => log::error!("updates: counting the cells of a probation: {error}"),
        }
    }

    /// Has the model judge that the record puts in force.
    fn put_back(&mut self) {
        let path = self.slots.record().in_force().map(|(slot, _)| self.slots.disk().path(slot.model()));
        self.astray = match self.host.go_back(path.as_deref()) {
            Ok(()) => None,
            Err(why) => {
                log::error!("updates: the model that is in force does not judge yet: {why}; trying again");
                Some(Moment::now() + AGAIN)
            }
        };
    }

    fn find_back(&mut self, now: Moment) {
        if self.astray.is_some_and(|at| now >= at) {
            self.put_back();
        }
    }

    fn mind_inbox(&mut self) {
        let Some(errand) = self.inbox.next() else { return };
        let said = match errand {
            Errand::Bundle(ref path) => self.install(path),
            Errand::Keys(ref path) => std::fs::File::open(path)
                .map_err(|error| error.to_string())
                .and_then(|file| self.slots.rotate(&mut io::BufReader::new(file)).map_err(|error| error.to_string())),
            Errand::Confirm(_) => self.slots.confirm().map_err(|error| error.to_string()),
            Errand::Rollback(_) => self.slots.rollback("asked for").map_err(|error| error.to_string()).map(|()| {
                self.put_back();
            }),
        };
        let text = match &said {
            Ok(()) => self.slots.record().last.clone(),
            Err(why) => why.clone(),
        };
        log::info!("updates: {} was taken from the inbox: {text}", errand.path().display());
        self.inbox.done(&errand, said.is_ok(), &text);
    }

    /// A bundle that lies in the inbox.
    fn install(&mut self, path: &Path) -> Result<(), String> {
        let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
        self.read();
        self.post.about(None);
        let Self { slots, post, host, station, config, .. } = self;
        let shadow = config.shadow.frames > 0;
        let prove = |folder: &Folder, staged: &Staged| prove(folder, staged, host.as_mut(), post, None, shadow);
        let installed = slots.install(&mut io::BufReader::new(file), station, Date::now().as_millis(), prove);
        installed.map_err(|error| error.to_string())?;
        self.put_in_force().map_err(|error| error.to_string())
    }

    /// The record first: after a power cut in between, the station comes up with the new model, on probation.
    fn put_in_force(&mut self) -> Result<(), UpdateError> {
        self.slots.activate()?;
        // What the model before has judged does not count.
        if let Err(why) = self.host.activate() {
            let Some(version) = self.slots.record().in_force().map(|(_, fitted)| fitted.version) else {
                return Err(UpdateError::NoModel);
            };
            log::error!("updates: version {version} could not be put in force: {why}");
            self.slots.rollback(&format!("it could not be put in force: {why}"))?;
            self.put_back();
            return Err(UpdateError::Proof { version, why });
        }
        self.host.seen();
        self.unwritten = Seen::default();
        self.watched = Moment::now();
        log::info!("updates: {}", self.slots.record().last);
        Ok(())
    }

    /// Does what the offers ask for.
    fn follow(&mut self, now: Moment) {
        let record = self.slots.record();
        let on_probation = matches!(record.phase, Phase::Probation { .. });
        let view = View { mark: record.version, on_probation, refused: &record.refused };
        let step = self.post.plan.next(&view, now);
        self.read();
        let offer = match &step {
            Step::Rest => None,
            Step::Wait { offer, .. } | Step::Refuse { offer, .. } | Step::Fetch(offer) => Some(offer),
        };
        self.post.about(offer);
        if let (true, Some((_, fitted))) = (on_probation, self.slots.record().in_force()) {
            let (version, progress) = (fitted.version, self.slots.record().progress(&self.config.probation.limits()));
            if offer.is_none() {
                let offer = self.post.plan.offer_of(version).cloned();
                self.post.about(offer.as_ref());
                self.post.report.offered = Some(version);
            }
            self.post.say(State::Probation, progress, None);
            return;
        }
        match step {
            Step::Rest => self.post.say(State::Good, None, None),
            Step::Wait { why, failed, .. } => {
                self.post.say(if failed { State::Failed } else { State::Waiting }, None, Some(&why));
            }
            Step::Refuse { why, .. } => self.post.say(State::Refused, None, Some(&why)),
            Step::Fetch(offer) => self.take(&offer),
        }
    }

    fn take(&mut self, offer: &Offer) {
        log::info!("updates: version {} is offered, bundle {}", offer.number, offer.bundle);
        self.post.say(State::Download, None, None);
        let Err(error) = self.try_to_take(offer) else { return };
        let now = Moment::now();
        let why = error.to_string();
        log::warn!("updates: version {}: {why}", offer.number);
        match &error {
            // Neither its fault nor the line's.
            UpdateError::Interrupted { .. } | UpdateError::Stopped { .. }
                if self.post.called_off(Some(offer)).is_some() => {}
            UpdateError::Interrupted { .. } | UpdateError::Stopped { .. } | UpdateError::Disk { .. } => {
                self.post.plan.failed(offer, why, false, now);
            }
            // The record remembers it.
            UpdateError::Proof { .. } => {}
            UpdateError::Bundle(error) if is_final(error) => self.post.plan.refuse(offer, why),
            _ => self.post.plan.failed(offer, why, true, now),
        }
    }

    fn try_to_take(&mut self, offer: &Offer) -> Result<(), UpdateError> {
        let wanted = Wanted { bundle: offer.bundle, version: offer.number, bytes: offer.bytes };
        let Self { slots, post, host, station, config, http, .. } = self;
        let (inner, http, pace, now) = (&mut *post, &*http, config.bandwidth_kb_s, Date::now().as_millis());
        let fetched = slots.fetch(&wanted, move |have| Inflow::open(inner, offer, http, pace, have), station, now);
        if post.gained > 0 {
            post.plan.got_on(offer);
        }
        let manifest = fetched?;
        post.say(State::Verify, None, None);
        post.say(State::Stage, None, None);
        let shadow = config.shadow.frames > 0;
        slots.settle(&manifest, Date::now().as_millis(), |folder, staged| {
            prove(folder, staged, host.as_mut(), post, Some(offer), shadow)
        })?;
        self.put_in_force()
    }
}

/// Waiting does not make a bundle another one: whom it is for, and its age and version, are signed.
fn is_final(error: &BundleError) -> bool {
    use BundleError as E;
    matches!(
        error,
        E::Target { .. }
            | E::Software { .. }
            | E::Backbone { .. }
            | E::Rollback { .. }
            | E::Expired { .. }
            | E::Base { .. }
            | E::TooFew { .. }
            | E::Manifest(_)
            | E::Format(_)
    )
}

/// A model on which the engine panics is refused like one that judges wrongly.
fn survived(trial: impl FnOnce() -> Result<(), NotProven>) -> Result<(), NotProven> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(trial))
        .unwrap_or_else(|_| Err("the engine failed on it; the log says where".into()))
}

/// Golden frames, then live ones.
fn prove(
    folder: &Folder,
    staged: &Staged,
    host: &mut dyn Host,
    post: &mut Post,
    offer: Option<&Offer>,
    shadow: bool,
) -> Result<(), NotProven> {
    post.say(State::Prove, None, None);
    survived(|| host.prove(&folder.path(staged.model), &folder.path(staged.golden)))?;
    if !shadow {
        return Ok(());
    }
    survived(|| {
        host.shadow(&mut |seen| {
            post.turn(Duration::ZERO);
            post.shadow(seen);
            post.say(State::Shadow, None, None);
            post.called_off(offer)
        })
    })?;
    // The last word before it is in force.
    post.turn(Duration::ZERO);
    match post.called_off(offer) {
        Some(why) => Err(NotProven::Stopped(why.into())),
        None => Ok(()),
    }
}
