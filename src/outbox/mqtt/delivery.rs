//! The thread that delivers, and what others may know of it and tell it.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::config::MqttConfig;
use super::inbox::Inbox;
use super::link::LinkError;
use super::session::Session;
use crate::clock::Moment;
use crate::outbox::{Key, Store};
use crate::station::status::Health;

/// Bytes of a status, metrics or handshake text at most; a longer one is not published.
pub const MAX_TEXT: usize = 64 << 10;

/// First pause before another attempt to connect.
const RETRY: Duration = Duration::from_millis(200);
/// A connection that held so long was a good one: the next pause is the first again.
const GOOD: Duration = Duration::from_secs(10);

/// How delivery does, and what it did since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    /// The connection.
    pub health: Health,
    /// What is wrong and what to do, while there is no connection or since the last message that ended one.
    pub fault: Option<String>,
    /// Connections that were made.
    pub connections: u64,
    /// Verdicts that the broker has acknowledged.
    pub delivered: u64,
    /// Verdicts that were sent again, since their acknowledgement did not come.
    pub repeated: u64,
}

/// A text that is published when it changes: the newest wins.
#[derive(Default)]
pub(super) struct Board {
    pub text: String,
    pub changed: bool,
}

/// What the station wants said, beside verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Say {
    Status,
    Metrics,
    Handshake,
}

impl Say {
    pub const ALL: [Self; 3] = [Self::Status, Self::Handshake, Self::Metrics];
}

pub(super) struct Shared {
    pub store: Store,
    boards: [Mutex<Board>; 3],
    state: Mutex<LinkState>,
    stop: AtomicBool,
    stop_by: Mutex<Moment>,
}

impl Shared {
    pub fn board(&self, say: Say) -> MutexGuard<'_, Board> {
        self.boards[say as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn state(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When to end whatever is undone, once the end is wanted.
    pub fn stop_by(&self) -> Option<Moment> {
        let wanted = self.stop.load(Ordering::Acquire);
        wanted.then(|| *self.stop_by.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether an attempt to deliver is still wanted.
    fn goes_on(&self) -> bool {
        self.stop_by().is_none_or(|by| Moment::now() < by)
    }

    fn say(&self, say: Say, text: &str) {
        if text.len() > MAX_TEXT {
            log::error!("a {say:?} text of {} bytes is not published: {MAX_TEXT} are allowed", text.len());
            return;
        }
        let mut board = self.board(say);
        board.text.clear();
        board.text.push_str(text);
        board.changed = true;
        drop(board);
        self.store.wake();
    }
}

/// A thread that delivers what the store holds, for as long as this lives.
pub struct Delivery {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Delivery {
    /// Starts to deliver. With an empty `host` there is no thread and [`Health::Off`].
    ///
    /// # Errors
    /// If the system gives no thread. A broker that cannot be reached is no error: [`Delivery::state`] tells of it.
    pub fn start(config: &MqttConfig, store: Store, inbox: Inbox) -> io::Result<Self> {
        let health = if config.host.is_empty() { Health::Off } else { Health::Starting };
        let shared = Arc::new(Shared {
            store,
            boards: Default::default(),
            state: Mutex::new(LinkState { health, ..LinkState::default() }),
            stop: AtomicBool::new(false),
            stop_by: Mutex::default(),
        });
        // The station has not spoken yet, and this is true.
        shared.say(Say::Status, "{\"state\":\"online\"}");
        if config.host.is_empty() {
            return Ok(Self { shared, thread: Mutex::default() });
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (theirs, config) = (shared.clone(), config.clone());
        let thread = std::thread::Builder::new().name("delivery".into()).spawn(move || {
            run(&runtime, &config, &theirs, &inbox);
            // A look-up of the broker's name may hang for long.
            runtime.shutdown_background();
        })?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// How it does.
    #[must_use]
    pub fn state(&self) -> LinkState {
        self.shared.state().clone()
    }

    /// The connection alone, without allocating.
    #[must_use]
    pub fn health(&self) -> Health {
        self.shared.state().health
    }

    /// What `status` says from now on, retained: JSON with `"state":"online"`. It is published at each connection, too.
    pub fn set_status(&self, text: &str) {
        self.shared.say(Say::Status, text);
    }

    /// What `metrics` says now.
    pub fn set_metrics(&self, text: &str) {
        self.shared.say(Say::Metrics, text);
    }

    /// What `handshake` says now.
    pub fn set_handshake(&self, text: &str) {
        self.shared.say(Say::Handshake, text);
    }

    /// Delivers what waits, for at most `grace`, says `offline` and ends. What is not delivered stays in the store.
    pub fn stop(&self, grace: Duration) {
        *self.shared.stop_by.lock().unwrap_or_else(PoisonError::into_inner) = Moment::now() + grace;
        self.shared.stop.store(true, Ordering::Release);
        self.shared.store.wake();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

/// What outlives a connection.
#[derive(Default)]
pub(super) struct Memory {
    /// The last verdict that was sent.
    pub sent: Option<Key>,
    /// Connections in a row that a message ended which was too long.
    pub too_long: u32,
    /// Number of the next connection, for Sparkplug.
    pub sessions: u64,
    /// A verdict that the broker has and the store does not know of.
    pub acked: Option<u64>,
    /// The verdict in hand.
    pub payload: Vec<u8>,
}

fn run(runtime: &tokio::runtime::Runtime, config: &MqttConfig, shared: &Shared, inbox: &Inbox) {
    let payload = Vec::with_capacity(crate::outbox::MAX_PAYLOAD);
    // Each start begins with another number, so that a late death of the last one is told from ours.
    let mut memory = Memory { payload, sessions: shared.store.boot().into(), ..Memory::default() };
    let mut random = Moment::now().as_nanos() ^ u64::from(std::process::id()) << 32;
    let mut pause = RETRY;
    while shared.goes_on() {
        let start = Moment::now();
        // Whatever the client library makes of what comes from the network: the station goes on.
        let session = || runtime.block_on(Session::new(config, shared, inbox, &mut memory)?.run());
        let ended = catch_unwind(AssertUnwindSafe(session))
            .unwrap_or_else(|_| Err(LinkError::lost(config, "the MQTT client failed; please report it")));
        let Err(error) = ended else { break };
        let mut state = shared.state();
        state.health = Health::Down;
        let text = error.to_string();
        if state.fault.as_ref() != Some(&text) {
            log::warn!("{text}");
        }
        state.fault = Some(text);
        drop(state);
        if matches!(error, LinkError::TooLong(_)) {
            memory.too_long = memory.too_long.saturating_add(1);
        }
        if Moment::now().since(start) > GOOD {
            pause = RETRY;
        }
        runtime.block_on(sleep(shared, jittered(pause, &mut random)));
        pause = (2 * pause).min(Duration::from_secs(config.retry_max_s.into()));
    }
    if let Some(seq) = memory.acked {
        shared.store.delivered(seq);
    }
    shared.state().health = Health::Down;
}

/// Half of it to all of it, so that the stations of a line do not all come at once.
fn jittered(pause: Duration, random: &mut u64) -> Duration {
    *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    pause.mul_f64(0.5 + (*random >> 11) as f64 / (1_u64 << 54) as f64)
}

async fn sleep(shared: &Shared, pause: Duration) {
    let end = Instant::now() + pause;
    while shared.goes_on() && Instant::now() < end {
        let by = shared.stop_by().map_or(end, |by| Instant::now() + by.since(Moment::now()));
        tokio::select! {
            () = sleep_until(end.min(by)) => {}
            () = shared.store.woken() => {}
        }
    }
    // What woke us is still to be done.
    shared.store.wake();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_spread_from_half_to_the_whole() {
        let mut random = 1;
        let pauses: Vec<Duration> = (0..1000).map(|_| jittered(Duration::from_secs(2), &mut random)).collect();
        assert!(pauses.iter().all(|pause| (1.0..2.0).contains(&pause.as_secs_f64())));
        assert!(pauses.iter().any(|pause| pause.as_secs_f64() < 1.1));
        assert!(pauses.iter().any(|pause| pause.as_secs_f64() > 1.9));
    }
}
