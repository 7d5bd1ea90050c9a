//! Sparkplug B 3.0 as another way to write what is published: births, deaths and data of an edge node with one device.
//!
//! The messages are those of the Eclipse Tahu project's `sparkplug_b.proto`, as far as they are needed, written by hand.

use prost::Message;
use serde_json::Value as Json;

use super::mqtt::MqttConfig;
use crate::clock::Date;

/// A Sparkplug message.
#[derive(Clone, PartialEq, Message)]
pub struct Payload {
    /// When it was sent, in milliseconds since 1970.
    #[prost(uint64, optional, tag = "1")]
    pub timestamp: Option<u64>,
    /// What it says.
    #[prost(message, repeated, tag = "2")]
    pub metrics: Vec<Metric>,
    /// Number of the message since the birth, 0 to 255 and again from 0.
    #[prost(uint64, optional, tag = "3")]
    pub seq: Option<u64>,
}

/// One value with its name.
#[derive(Clone, PartialEq, Message)]
pub struct Metric {
    /// Its name.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// When it was measured, in milliseconds since 1970.
    #[prost(uint64, optional, tag = "3")]
    pub timestamp: Option<u64>,
    /// Number of its type.
    #[prost(uint32, optional, tag = "4")]
    pub datatype: Option<u32>,
    /// It was measured earlier and tells nothing of now.
    #[prost(bool, optional, tag = "5")]
    pub is_historical: Option<bool>,
    /// There is no value.
    #[prost(bool, optional, tag = "7")]
    pub is_null: Option<bool>,
    /// The value.
    #[prost(oneof = "Value", tags = "10, 11, 12, 13, 14, 15")]
    pub value: Option<Value>,
}

/// A value, in the representation that its type asks for.
#[derive(Clone, PartialEq, prost::Oneof)]
#[allow(missing_docs)]
pub enum Value {
    #[prost(uint32, tag = "10")]
    Int(u32),
    #[prost(uint64, tag = "11")]
    Long(u64),
    #[prost(float, tag = "12")]
    Float(f32),
    #[prost(double, tag = "13")]
    Double(f64),
    #[prost(bool, tag = "14")]
    Boolean(bool),
    #[prost(string, tag = "15")]
    Text(String),
}

/// The types that are used, with their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Kind {
    Int64 = 4,
    UInt32 = 7,
    UInt64 = 8,
    Double = 10,
    Boolean = 11,
    String = 12,
    DateTime = 13,
}

/// The device's metrics: the keys of a verdict's JSON.
const VERDICT: [(&str, Kind); 24] = [
    ("id", Kind::String),
    ("boot", Kind::UInt32),
    ("seq", Kind::UInt64),
    ("time", Kind::DateTime),
    ("latency_us", Kind::UInt32),
    ("outcome", Kind::String),
    ("class", Kind::String),
    ("score", Kind::Double),
    ("p_not_a", Kind::Double),
    ("p_c", Kind::Double),
    ("reason", Kind::String),
    ("detail", Kind::String),
    ("top", Kind::Double),
    ("max", Kind::Double),
    ("mean", Kind::Double),
    ("regions", Kind::String),
    ("regions_total", Kind::UInt32),
    ("model", Kind::String),
    ("preprocess_us", Kind::UInt32),
    ("backbone_us", Kind::UInt32),
    ("distance_us", Kind::UInt32),
    ("heatmap_us", Kind::UInt32),
    ("classifier_us", Kind::UInt32),
    ("total_us", Kind::UInt32),
];

const REBIRTH: &str = "Node Control/Rebirth";
const BD_SEQ: &str = "bdSeq";

fn metric(name: &str, timestamp: u64, kind: Kind, value: Option<Value>) -> Metric {
    Metric {
        name: Some(name.into()),
        timestamp: Some(timestamp),
        datatype: Some(kind as u32),
        is_historical: None,
        is_null: value.is_none().then_some(true),
        value,
    }
}

/// A value of the verdict's JSON; none where it is null or not what it should be.
fn value(json: &Json, kind: Kind) -> Option<Value> {
    Some(match kind {
        Kind::String if json.is_array() => Value::Text(json.to_string()),
        Kind::String => Value::Text(json.as_str()?.into()),
        Kind::UInt32 => Value::Int(u32::try_from(json.as_u64()?).ok()?),
        Kind::UInt64 | Kind::Int64 => Value::Long(json.as_u64()?),
        Kind::Double => Value::Double(json.as_f64()?),
        Kind::Boolean => Value::Boolean(json.as_bool()?),
        Kind::DateTime => Value::Long(json.as_str()?.parse::<Date>().ok()?.as_millis()),
    })
}

/// An edge node in one connection: its numbers begin with it.
pub(super) struct Node {
    group: String,
    node: String,
    device: String,
    host: String,
    bd_seq: u64,
    seq: u8,
    /// Whether it is born: else nothing may be said.
    pub born: bool,
}

impl Node {
    /// `session` counts connections.
    pub fn new(config: &MqttConfig, session: u64) -> Self {
        let names = &config.sparkplug;
        let or = |name: &String, other: &String| if name.is_empty() { other.clone() } else { name.clone() };
        Self {
            group: or(&names.group, &config.line),
            node: or(&names.node, &config.station),
            device: names.device.clone(),
            host: names.primary_host.clone(),
            bd_seq: session % 256,
            seq: 0,
            born: false,
        }
    }

    fn node_topic(&self, kind: &str) -> String {
        format!("spBv1.0/{}/{kind}/{}", self.group, self.node)
    }

    fn device_topic(&self, kind: &str) -> String {
        format!("spBv1.0/{}/{kind}/{}/{}", self.group, self.node, self.device)
    }

    /// Where commands to the node come.
    pub fn commands(&self) -> String {
        self.node_topic("NCMD")
    }

    /// Where the primary host says whether it is there; none if any broker will do.
    pub fn state(&self) -> Option<String> {
        (!self.host.is_empty()).then(|| format!("spBv1.0/STATE/{}", self.host))
    }

    fn next(&mut self) -> Option<u64> {
        let seq = self.seq;
        self.seq = self.seq.wrapping_add(1);
        Some(seq.into())
    }

    /// Topic and message of the node's end; the broker sends it if the connection breaks.
    pub fn death(&self) -> (String, Vec<u8>) {
        let now = Date::now().as_millis();
        let metrics = vec![metric(BD_SEQ, now, Kind::Int64, Some(Value::Long(self.bd_seq)))];
        (self.node_topic("NDEATH"), Payload { timestamp: Some(now), metrics, seq: None }.encode_to_vec())
    }

    /// What makes the node and its device known, to be sent in this order. All numbers begin again.
    pub fn births(&mut self) -> [(String, Vec<u8>); 2] {
        let now = Date::now().as_millis();
        self.seq = 0;
        self.born = true;
        let version = Value::Text(env!("CARGO_PKG_VERSION").into());
        let node = vec![
            metric(BD_SEQ, now, Kind::Int64, Some(Value::Long(self.bd_seq))),
            metric(REBIRTH, now, Kind::Boolean, Some(Value::Boolean(false))),
            metric("Properties/Software", now, Kind::String, Some(Value::Text("cellgate".into()))),
            metric("Properties/Version", now, Kind::String, Some(version)),
        ];
        let node = Payload { timestamp: Some(now), metrics: node, seq: self.next() }.encode_to_vec();
        let device = VERDICT.iter().map(|(name, kind)| metric(name, now, *kind, None)).collect();
        let device = Payload { timestamp: Some(now), metrics: device, seq: self.next() }.encode_to_vec();
        [(self.node_topic("NBIRTH"), node), (self.device_topic("DBIRTH"), device)]
    }

    /// A verdict. `historical`: it waited for the connection.
    pub fn data(&mut self, verdict: &[u8], historical: bool) -> (String, Vec<u8>) {
        let now = Date::now().as_millis();
        let json: Json = serde_json::from_slice(verdict).unwrap_or_default();
        let taken = match value(&json["time"], Kind::DateTime) {
            Some(Value::Long(millis)) => millis,
            _ => now,
        };
        let metrics = VERDICT.iter().map(|(name, kind)| Metric {
            is_historical: historical.then_some(true),
            ..metric(name, taken, *kind, value(&json[*name], *kind))
        });
        let payload = Payload { timestamp: Some(now), metrics: metrics.collect(), seq: self.next() };
        (self.device_topic("DDATA"), payload.encode_to_vec())
    }
}

/// Whether a command asks for the births again.
pub(super) fn asks_rebirth(message: &[u8]) -> bool {
    let wanted =
        |metric: &Metric| metric.name.as_deref() == Some(REBIRTH) && metric.value == Some(Value::Boolean(true));
    Payload::decode(message).is_ok_and(|payload| payload.metrics.iter().any(wanted))
}

/// What the primary host says of itself; none if it is no such message.
pub(super) fn host_is_online(message: &[u8]) -> Option<bool> {
    serde_json::from_slice::<Json>(message).ok()?["online"].as_bool()
}

#[cfg(test)]
mod tests {
    use super::super::mqtt::SparkplugConfig;
    use super::*;

    fn node() -> Node {
        let sparkplug = SparkplugConfig { primary_host: "scada".into(), ..SparkplugConfig::default() };
        Node::new(&MqttConfig { sparkplug, ..MqttConfig::default() }, 258)
    }

    fn decode(message: &[u8]) -> Payload {
        Payload::decode(message).unwrap()
    }

    #[test]
    fn a_death_carries_the_number_of_its_birth_and_no_other() {
        let mut node = node();
        let (topic, death) = node.death();
        assert_eq!(topic, "spBv1.0/line/NDEATH/station");
        let death = decode(&death);
        assert_eq!((death.seq, death.metrics.len()), (None, 1));
        let [(topic, birth), (device_topic, device)] = node.births();
        assert_eq!(topic, "spBv1.0/line/NBIRTH/station");
        assert_eq!(device_topic, "spBv1.0/line/DBIRTH/station/inspection");
        let birth = decode(&birth);
        assert_eq!(birth.metrics[0].value, death.metrics[0].value);
        assert_eq!(birth.metrics[0].value, Some(Value::Long(2)));
        assert_eq!((birth.seq, decode(&device).seq), (Some(0), Some(1)));
    }

    #[test]
    fn data_have_the_names_and_types_of_the_birth_and_count_to_255() {
        let mut node = node();
        let births = node.births();
        let declared: Vec<_> = decode(&births[1].1).metrics.iter().map(|m| (m.name.clone(), m.datatype)).collect();
        let json = b"{\"id\":\"W-1\",\"boot\":3,\"seq\":18446744073709551615,\"time\":\"2026-01-31T23:59:59.123Z\",\
            \"score\":0.25,\"class\":null,\"regions\":[[1,2,3,4,5.5]],\"regions_total\":1}";
        for (turn, seq) in (2..=255).chain(0..3).enumerate() {
            let historical = turn == 0;
            let (topic, data) = node.data(json, historical);
            assert_eq!(topic, "spBv1.0/line/DDATA/station/inspection");
            let data = decode(&data);
            assert_eq!(data.seq, Some(seq));
            let said: Vec<_> = data.metrics.iter().map(|m| (m.name.clone(), m.datatype)).collect();
            assert_eq!(said, declared);
            let get = |name: &str| data.metrics.iter().find(|m| m.name.as_deref() == Some(name)).unwrap();
            assert_eq!(get("id").value, Some(Value::Text("W-1".into())));
            assert_eq!(get("seq").value, Some(Value::Long(u64::MAX)));
            assert_eq!(get("time").value, Some(Value::Long(1_769_903_999_123)));
            assert_eq!(get("score").timestamp, Some(1_769_903_999_123));
            assert_eq!((get("class").is_null, &get("class").value), (Some(true), &None));
            assert_eq!(get("regions").value, Some(Value::Text("[[1,2,3,4,5.5]]".into())));
            assert_eq!(get("score").is_historical, historical.then_some(true));
        }
        // Births begin again.
        assert_eq!(decode(&node.births()[0].1).seq, Some(0));
        assert!(decode(&node.data(b"\xff", false).1).metrics.iter().all(|m| m.is_null == Some(true)));
    }

    #[test]
    fn only_a_true_rebirth_is_one_and_garbage_is_none() {
        let command = |name: &str, value| {
            let metrics = vec![metric(name, 1, Kind::Boolean, value)];
            Payload { timestamp: Some(1), metrics, seq: None }.encode_to_vec()
        };
        assert!(asks_rebirth(&command(REBIRTH, Some(Value::Boolean(true)))));
        assert!(!asks_rebirth(&command(REBIRTH, Some(Value::Boolean(false)))));
        assert!(!asks_rebirth(&command(REBIRTH, None)));
        assert!(!asks_rebirth(&command("Node Control/Reboot", Some(Value::Boolean(true)))));
        assert!(!asks_rebirth(b"") && !asks_rebirth(&[0xff; 300]) && !asks_rebirth(&[0x12; 4000]));
        assert_eq!(host_is_online(b"{\"online\":true,\"timestamp\":1}"), Some(true));
        assert_eq!(host_is_online(b"{\"online\":false}"), Some(false));
        assert!(host_is_online(b"ONLINE").is_none() && host_is_online(&[b'['; 3000]).is_none());
        assert_eq!(node().state().as_deref(), Some("spBv1.0/STATE/scada"));
    }

    #[test]
    fn bytes_are_those_of_the_published_definition() {
        // {timestamp: 5, metrics: [{name: "a", timestamp: 6, datatype: Boolean, value: true}], seq: 7}, by hand.
        let metrics = vec![metric("a", 6, Kind::Boolean, Some(Value::Boolean(true)))];
        let bytes = Payload { timestamp: Some(5), metrics, seq: Some(7) }.encode_to_vec();
        assert_eq!(bytes, [8, 5, 18, 9, 10, 1, b'a', 24, 6, 32, 11, 112, 1, 24, 7]);
    }
}
