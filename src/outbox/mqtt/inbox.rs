//! What comes from the broker: triggers, acknowledgements and commands, in a queue that never grows.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use serde::Deserialize;

use crate::camera::trigger::{CellId, Trigger};
use crate::clock::Moment;
use crate::outbox::Key;

/// Bytes of a message that is looked at; more than any of ours needs.
pub const MAX_MESSAGE: usize = 4096;

/// A message that was understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A cell lies under the camera.
    Trigger(Trigger),
    /// The PLC has taken this verdict: results ack.
    Ack(Key),
    /// Something is to be done.
    Command(Command),
}

/// The topics on which the station listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// A cell lies there.
    Trigger,
    /// The PLC has a verdict.
    Ack,
    /// Do something.
    Command,
}

impl Topic {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Trigger, Self::Ack, Self::Command];

    /// Last word of the topic.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Trigger => "trigger",
            Self::Ack => "ack",
            Self::Command => "command",
        }
    }
}

/// What can be asked of a station.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Begin a new shift: its counts start at zero.
    ShiftReset,
    /// Publish the status now.
    Status,
    /// Publish the metrics now.
    Metrics,
}

/// Why a message was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The broker had kept it: it says nothing of now.
    Retained,
    /// The broker sends it for the second time: the cell is past.
    Duplicate,
    /// Longer than [`MAX_MESSAGE`].
    TooLong,
    /// Not what this topic takes.
    Malformed,
}

/// What became of messages since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InboxCounts {
    /// Handed on.
    pub taken: u64,
    /// Dropped since the queue was full.
    pub overrun: u64,
    /// Refused for [`Why::Retained`].
    pub retained: u64,
    /// Refused for [`Why::Duplicate`].
    pub duplicate: u64,
    /// Refused for [`Why::TooLong`] or [`Why::Malformed`].
    pub malformed: u64,
}

impl InboxCounts {
    /// All that were refused, whatever the reason.
    #[must_use]
    pub fn bad(&self) -> u64 {
        self.retained + self.duplicate + self.malformed
    }
}

#[derive(Default)]
struct Counters {
    taken: AtomicU64,
    overrun: AtomicU64,
    retained: AtomicU64,
    duplicate: AtomicU64,
    malformed: AtomicU64,
}

/// The end of the queue at which messages come in. Where it is full the new message is dropped and counted: a trigger that
/// waited behind so many would be too late in any case, and its cell becomes INVALID for want of it. What is refused is
/// counted and takes no place in the queue.
#[derive(Clone)]
pub struct Inbox {
    queue: SyncSender<Incoming>,
    counters: Arc<Counters>,
}

/// A queue for so many messages: the end for [`Delivery`](super::Delivery), and the end for the station.
#[must_use]
pub fn inbox(capacity: usize) -> (Inbox, Receiver<Incoming>) {
    let (queue, receiver) = sync_channel(capacity);
    (Inbox { queue, counters: Arc::default() }, receiver)
}

impl Inbox {
    /// What became of messages so far.
    #[must_use]
    pub fn counts(&self) -> InboxCounts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        InboxCounts {
            taken: get(&self.counters.taken),
            overrun: get(&self.counters.overrun),
            retained: get(&self.counters.retained),
            duplicate: get(&self.counters.duplicate),
            malformed: get(&self.counters.malformed),
        }
    }

    /// Takes a message that arrived just now.
    pub(super) fn take(&self, topic: Topic, payload: &[u8], retained: bool, duplicate: bool, at: Moment) {
        let counter = match read(topic, payload, retained, duplicate, at) {
            Ok(message) if self.queue.try_send(message).is_ok() => &self.counters.taken,
            Ok(_) => &self.counters.overrun,
            Err(Why::Retained) => &self.counters.retained,
            Err(Why::Duplicate) => &self.counters.duplicate,
            Err(Why::TooLong | Why::Malformed) => &self.counters.malformed,
        };
        let before = counter.fetch_add(1, Ordering::Relaxed);
        // The first, and then ever fewer of a flood.
        if !std::ptr::eq(counter, &raw const self.counters.taken) && (before + 1).is_power_of_two() {
            let what = read(topic, payload, retained, duplicate, at).err();
            let what = what.map_or("found the queue full".into(), |why| format!("was refused: {why:?}"));
            log::warn!(
                "a message of {} bytes on `{}` {what}; {} of them so far",
                payload.len(),
                topic.word(),
                before + 1
            );
        }
    }
}

fn read(topic: Topic, payload: &[u8], retained: bool, duplicate: bool, at: Moment) -> Result<Incoming, Why> {
    match topic {
        _ if retained => Err(Why::Retained),
        // An acknowledgement says the same twice.
        Topic::Trigger | Topic::Command if duplicate => Err(Why::Duplicate),
        _ if payload.len() > MAX_MESSAGE => Err(Why::TooLong),
        _ => str::from_utf8(payload).map_err(|_| Why::Malformed).and_then(|text| understand(topic, text, at)),
    }
}

fn understand(topic: Topic, text: &str, at: Moment) -> Result<Incoming, Why> {
    match topic {
        Topic::Trigger => trigger(text, at).map(Incoming::Trigger),
        Topic::Ack => ack(text).map(Incoming::Ack),
        Topic::Command => command(text).map(Incoming::Command),
    }
}

#[derive(Deserialize)]
struct TriggerMessage<'a> {
    #[serde(borrow, default)]
    id: Option<Id<'a>>,
    #[serde(default)]
    n: Option<u64>,
    #[serde(default)]
    t_ms: Option<u64>,
}

/// PLCs number cells as often as they name them.
#[derive(Deserialize)]
#[serde(untagged)]
enum Id<'a> {
    Number(u64),
    Text(#[serde(borrow)] Cow<'a, str>),
}

/// `{"id":"W-11","n":123,"t_ms":4567}`, each key optional, or the id alone as plain text.
fn trigger(text: &str, at: Moment) -> Result<Trigger, Why> {
    let text = text.trim_ascii();
    if !text.starts_with('{') {
        let cell = CellId::new(text).map_err(|_| Why::Malformed)?;
        return Ok(Trigger { cell: Some(cell), at, number: None, sent_ms: None });
    }
    let message: TriggerMessage<'_> = serde_json::from_str(text).map_err(|_| Why::Malformed)?;
    let cell = match message.id {
        Some(Id::Text(name)) => Some(CellId::new(&name)),
        Some(Id::Number(number)) => Some(CellId::new(&number.to_string())),
        None => None,
    };
    // The sender's count wraps somewhere; ours wraps at 32 bits.
    let number = message.n.map(|n| n as u32);
    Ok(Trigger { cell: cell.transpose().map_err(|_| Why::Malformed)?, at, number, sent_ms: message.t_ms })
}

#[derive(Deserialize)]
struct AckMessage {
    boot: u32,
    seq: u64,
}

fn ack(text: &str) -> Result<Key, Why> {
    let AckMessage { boot, seq } = serde_json::from_str(text).map_err(|_| Why::Malformed)?;
    Ok(Key { boot, seq })
}

#[derive(Deserialize)]
struct CommandMessage {
    r#do: Command,
}

fn command(text: &str) -> Result<Command, Why> {
    serde_json::from_str(text).map(|message: CommandMessage| message.r#do).map_err(|_| Why::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn give(topic: Topic, payload: &[u8]) -> Result<Incoming, Why> {
        read(topic, payload, false, false, Moment::from_nanos(5))
    }

    #[test]
    fn triggers_come_as_json_or_as_the_bare_name() {
        let trigger = |cell: Option<&str>, number, sent_ms| {
            let cell = cell.map(|name| CellId::new(name).unwrap());
            Ok(Incoming::Trigger(Trigger { cell, at: Moment::from_nanos(5), number, sent_ms }))
        };
        for (text, expected) in [
            ("{\"id\":\"W-11\",\"n\":123,\"t_ms\":4567}", trigger(Some("W-11"), Some(123), Some(4567))),
            (" {\"t_ms\":1,\"more\":[1,{}],\"id\":\"a\\u00e9\"}\n", trigger(Some("aé"), None, Some(1))),
            ("{\"id\":4711}", trigger(Some("4711"), None, None)),
            ("{\"id\":null,\"n\":4294967297}", trigger(None, Some(1), None)),
            ("{}", trigger(None, None, None)),
            ("W-11\r\n", trigger(Some("W-11"), None, None)),
            ("4711", trigger(Some("4711"), None, None)),
        ] {
            assert_eq!(give(Topic::Trigger, text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn acks_and_commands_are_understood() {
        assert_eq!(give(Topic::Ack, b"{\"boot\":3,\"seq\":9}"), Ok(Incoming::Ack(Key { boot: 3, seq: 9 })));
        for (word, command) in
            [("shift-reset", Command::ShiftReset), ("status", Command::Status), ("metrics", Command::Metrics)]
        {
            let text = format!("{{\"do\":\"{word}\"}}");
            assert_eq!(give(Topic::Command, text.as_bytes()), Ok(Incoming::Command(command)));
        }
    }

    #[test]
    fn hostile_messages_are_refused_and_nothing_panics() {
        let deep = "[".repeat(4000);
        let deep_id = format!("{{\"id\":{}", "{\"id\":".repeat(600));
        let long = format!("{{\"id\":\"{}\"}}", "x".repeat(65));
        for topic in Topic::ALL {
            for bad in [
                &b""[..],
                b"\0",
                b"\xff\xfe{}",
                b"{",
                b"{\"id\":\"a\\u0000b\"}",
                b"{\"id\":\"\"}",
                b"{\"id\":true}",
                b"{\"id\":-1}",
                b"{\"id\":1.5}",
                b"{\"n\":-1,\"boot\":-1,\"seq\":0}",
                b"{\"n\":1e99,\"boot\":1e99,\"seq\":1}",
                b"{\"n\":\"1\",\"boot\":\"1\",\"seq\":1}",
                b"{\"t_ms\":99999999999999999999,\"seq\":99999999999999999999,\"boot\":1}",
                b"{\"do\":\"format-disk\",\"id\":[]}",
                b"{\"do\":\"status\",\"do\":\"status\",\"id\":[]}",
                b"{\"do\":\"status\",\"id\":\"\xff\"}",
                b"{}{}",
                deep.as_bytes(),
                deep_id.as_bytes(),
                long.as_bytes(),
            ] {
                assert_eq!(give(topic, bad), Err(Why::Malformed), "{:?}", String::from_utf8_lossy(bad));
            }
            let long = vec![b' '; MAX_MESSAGE + 1];
            assert_eq!(give(topic, &long), Err(Why::TooLong));
        }
    }

    #[test]
    fn what_the_broker_kept_or_repeats_is_no_trigger() {
        let (inbox, queue) = inbox(9);
        for (topic, retained, duplicate) in [
            (Topic::Trigger, true, false),
            (Topic::Trigger, false, true),
            (Topic::Command, true, true),
            (Topic::Ack, true, false),
            (Topic::Ack, false, true),
        ] {
            inbox.take(
                topic,
                b"{\"id\":\"1\",\"do\":\"status\",\"boot\":1,\"seq\":1}",
                retained,
                duplicate,
                Moment::default(),
            );
        }
        let acked = Incoming::Ack(Key { boot: 1, seq: 1 });
        assert_eq!(queue.try_iter().collect::<Vec<_>>(), [acked]);
        let expected = InboxCounts { taken: 1, retained: 3, duplicate: 1, ..InboxCounts::default() };
        assert_eq!((inbox.counts(), expected.bad()), (expected, 4));
    }

    #[test]
    fn what_is_refused_takes_no_place_from_triggers() {
        let (inbox, queue) = inbox(1);
        for _ in 0..1000 {
            inbox.take(Topic::Command, b"{", false, false, Moment::default());
        }
        inbox.take(Topic::Trigger, b"W-1", false, false, Moment::default());
        assert!(matches!(queue.try_recv(), Ok(Incoming::Trigger(_))));
        assert_eq!(inbox.counts(), InboxCounts { taken: 1, malformed: 1000, ..InboxCounts::default() });
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_bring_it_down(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), json in "[\\[{]?[\"a-z0-9:,{}\\[\\]\\\\]{0,80}") {
            for topic in Topic::ALL {
                let _ = (give(topic, &bytes), give(topic, json.as_bytes()));
            }
        }
    }

    #[test]
    fn a_full_queue_drops_the_new_message_and_counts_it() {
        let (inbox, queue) = inbox(2);
        for name in ["1", "2", "3", "4"] {
            inbox.take(Topic::Trigger, name.as_bytes(), false, false, Moment::default());
        }
        assert_eq!(inbox.counts(), InboxCounts { taken: 2, overrun: 2, ..InboxCounts::default() });
        assert_eq!(queue.try_iter().count(), 2);
    }
}
