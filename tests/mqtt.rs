//! Delivery to a real broker over networks that fail.
#![allow(missing_docs)]

#[path = "common/broker.rs"]
mod broker;
mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use broker::{Broker, PATIENCE, Plc, Wire, wait_for};
use cellgate::outbox::mqtt::{Delivery, Inbox, Incoming, MqttConfig, PayloadKind, SparkplugConfig, TlsConfig, inbox};
use cellgate::outbox::sparkplug::{Metric, Payload, Value};
use cellgate::outbox::{Key, OutboxConfig, Store};
use cellgate::station::status::Health;
use prost::Message as _;
use rumqttc::QoS;

/// A station without a camera.
struct Station {
    store: Store,
    delivery: Delivery,
    inbox: Inbox,
    incoming: Receiver<Incoming>,
    _folder: tempfile::TempDir,
}

fn config(port: u16) -> MqttConfig {
    MqttConfig {
        host: "127.0.0.1".into(),
        port,
        line: "l1".into(),
        station: "s1".into(),
        keep_alive_s: 5,
        connect_timeout_s: 2,
        ack_timeout_s: 2,
        retry_max_s: 1,
        ..MqttConfig::default()
    }
}

impl Station {
    fn start(config: &MqttConfig) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&OutboxConfig { path: folder.path().join("outbox"), verdicts: 4096 }).unwrap();
        let (inbox, incoming) = inbox(64);
        let delivery = Delivery::start(config, store.clone(), inbox.clone()).unwrap();
        Self { store, delivery, inbox, incoming, _folder: folder }
    }

    fn append(&self) -> Key {
        self.store.append(|key, out| out.push_str(&verdict(key))).unwrap()
    }

    /// Gives the last.
    fn append_many(&self, count: u64) -> Key {
        (1..count).for_each(|_| _ = self.append());
        self.append()
    }

    fn next(&self) -> Incoming {
        self.incoming.recv_timeout(PATIENCE).expect("a message in the inbox")
    }

    fn delivered(&self) {
        wait_for("delivery", || self.store.pending() == 0);
    }
}

fn verdict(key: Key) -> String {
    format!("{{\"boot\":{},\"seq\":{},\"check\":{}}}", key.boot, key.seq, key.seq * 7 % 1000)
}

/// Listens until the verdict `last` came; all from `first` on must have come too, each as it was appended, in order but
/// for repetitions.
fn all_from(first: u64, last: Key, plc: &Plc) {
    let mut seen = BTreeMap::new();
    let mut newest = first - 1;
    while !seen.contains_key(&last.seq) {
        let message = plc.next();
        assert!(!message.retain, "a verdict may not be retained");
        let value: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
        let seq = value["seq"].as_u64().unwrap();
        let key = Key { boot: last.boot, seq };
        assert_eq!(message.payload, verdict(key).as_bytes());
        if seq >= first && seen.insert(seq, ()).is_none() {
            assert_eq!(seq, newest + 1, "a verdict came before its predecessor");
            newest = seq;
        }
    }
}

const VERDICTS: &str = "cellgate/l1/s1/verdict";

#[test]
fn verdicts_arrive_in_order_and_status_is_kept_by_the_broker() {
    let Some(broker) = Broker::start() else { return common::skip("mqtt", "apt: mosquitto") };
    let plc = Plc::listen(broker.port, VERDICTS);
    let station = Station::start(&config(broker.port));
    let last = station.append_many(200);
    all_from(1, last, &plc);
    station.delivered();
    assert_eq!(station.delivery.health(), Health::Up);

    station.delivery.set_status("{\"state\":\"online\",\"model\":\"abcd\"}");
    station.delivery.set_metrics("{\"cells\":200}");
    let heard = Plc::listen(broker.port, "cellgate/l1/s1/#");
    // The status is there for whoever comes late; metrics are not.
    let status = heard.next();
    assert!(status.retain && status.topic.ends_with("/status"), "{status:?}");
    wait_for("the new status", || {
        heard.heard.try_iter().chain([status.clone()]).any(|m| m.payload.ends_with(b"\"abcd\"}"))
    });
    // Said without a verdict on the way.
    let last = station.append();
    station.delivery.stop(Duration::from_secs(10));
    let messages: Vec<_> = std::iter::from_fn(|| Some(heard.next()))
        .take_while(|m| !(m.topic.ends_with("/status") && m.payload == b"{\"state\":\"offline\"}"[..]))
        .collect();
    assert!(messages.iter().any(|m| m.payload == verdict(last).as_bytes()), "a stop delivers what waits");
}

#[test]
fn nothing_is_lost_when_the_broker_is_started_again() {
    let Some(mut broker) = Broker::start() else { return common::skip("mqtt restart", "apt: mosquitto") };
    let plc = Plc::listen(broker.port, VERDICTS);
    let station = Station::start(&config(broker.port));
    for turn in 0..3 {
        station.append_many(50);
        if turn == 1 {
            station.delivered();
        }
        broker.halt();
        station.append_many(50);
        wait_for("the loss to be seen", || station.delivery.health() == Health::Down);
        let fault = station.delivery.state().fault.unwrap();
        assert!(fault.contains(&format!("127.0.0.1:{}", broker.port)), "{fault}");
        broker.resume();
    }
    all_from(1, station.append(), &plc);
    station.delivered();
    assert!(station.delivery.state().connections >= 2 && station.store.dropped() == 0);
    assert_eq!(station.delivery.state().fault, None);
}

#[test]
fn a_connection_that_is_dead_without_a_word_is_made_anew() {
    let Some(broker) = Broker::start() else { return common::skip("mqtt half-open", "apt: mosquitto") };
    let wire = Wire::to(broker.port);
    let plc = Plc::listen(broker.port, VERDICTS);
    let station = Station::start(&MqttConfig { keep_alive_s: 1, ..config(wire.port) });
    station.append();
    station.delivered();
    // With verdicts on the way: their acknowledgement does not come.
    wire.swallow();
    station.append_many(10);
    wait_for("the time-out", || station.delivery.health() == Health::Down);
    let fault = station.delivery.state().fault.unwrap();
    assert!(fault.contains("did not acknowledge") || fault.contains("not answer"), "{fault}");
    wire.forward();
    station.delivered();
    // And without: the broker's silence shows.
    wire.swallow();
    wait_for("the silence to be heard", || station.delivery.health() == Health::Down);
    wire.forward();
    all_from(1, station.append(), &plc);
    assert!(station.delivery.state().repeated >= 1);
}

#[test]
fn the_broker_says_offline_when_the_station_is_gone() {
    let Some(broker) = Broker::start() else { return common::skip("mqtt will", "apt: mosquitto") };
    let wire = Wire::to(broker.port);
    let plc = Plc::listen(broker.port, "cellgate/l1/s1/status");
    let station = Station::start(&config(wire.port));
    assert_eq!(plc.next().payload, "{\"state\":\"online\"}");
    wire.cut();
    assert_eq!(plc.next().payload, "{\"state\":\"offline\"}");
    // And online once it is back.
    assert_eq!(plc.next().payload, "{\"state\":\"online\"}");
    drop(station);
    assert_eq!(plc.next().payload, "{\"state\":\"offline\"}");
}

#[test]
fn a_slow_broker_delays_verdicts_and_loses_none() {
    let Some(broker) = Broker::start() else { return common::skip("mqtt slow", "apt: mosquitto") };
    let wire = Wire::to(broker.port);
    let plc = Plc::listen(broker.port, VERDICTS);
    wire.delay(Duration::from_millis(150));
    let station = Station::start(&config(wire.port));
    let last = station.append_many(12);
    all_from(1, last, &plc);
    assert_eq!(station.delivery.state().repeated, 0);
    // Slower than the time-out: none is acknowledged in time, and each is sent again.
    wire.delay(Duration::from_millis(2500));
    let last = station.append_many(3);
    wait_for("the time-out", || station.delivery.health() == Health::Down);
    wire.delay(Duration::ZERO);
    wire.cut();
    all_from(13, last, &plc);
    station.delivered();
}

#[test]
fn a_wrong_password_is_named_and_the_right_one_is_taken_without_a_restart() {
    let users = |folder: &Path| {
        let file = folder.join("users");
        let made = Command::new("mosquitto_passwd").args(["-c", "-b"]).arg(&file).args(["cell", "right"]).status();
        assert!(made.is_ok_and(|status| status.success()), "mosquitto_passwd comes with mosquitto");
        format!("allow_anonymous false\npassword_file {}\n", file.display())
    };
    let Some(broker) = Broker::with(users) else { return common::skip("mqtt password", "apt: mosquitto") };
    let file = broker.folder().join("password");
    std::fs::write(&file, "wrong\n").unwrap();
    let config = MqttConfig { username: "cell".into(), password_file: Some(file.clone()), ..config(broker.port) };
    let station = Station::start(&config);
    wait_for("the refusal", || station.delivery.state().fault.is_some());
    let fault = station.delivery.state().fault.unwrap();
    assert!(fault.contains("refused") && fault.contains("mqtt.password-file") && !fault.contains("wrong\n"), "{fault}");
    station.append();
    std::fs::write(&file, "right\n").unwrap();
    station.delivered();
    std::fs::remove_file(&file).unwrap();
    let again = Station::start(&config);
    wait_for("the missing file", || again.delivery.state().fault.is_some());
    assert!(again.delivery.state().fault.unwrap().contains("check mqtt.password-file"));
}

/// Runs openssl in a folder.
fn openssl(folder: &Path, args: &str) {
    let done =
        Command::new("openssl").args(args.split(' ')).current_dir(folder).stdout(Stdio::null()).output().unwrap();
    assert!(done.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&done.stderr));
}

/// An authority, and what it signs for the broker and for the station.
fn certificates(folder: &Path) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    for authority in ["ca", "other"] {
        openssl(
            folder,
            &format!("req -x509 {key} -keyout {authority}.key -out {authority}.pem -days 30 -subj /CN={authority}"),
        );
    }
    std::fs::write(folder.join("san"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n").unwrap();
    for name in ["broker", "station"] {
        openssl(folder, &format!("req -new {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        openssl(
            folder,
            &format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile san -out {name}.pem"
            ),
        );
    }
}

#[test]
fn tls_needs_the_right_authority_and_the_stations_certificate() {
    if Command::new("openssl").arg("version").output().is_err() {
        return common::skip("mqtt tls", "apt: openssl");
    }
    let tls = |folder: &Path| {
        certificates(folder);
        let path = |name: &str| folder.join(name).display().to_string();
        format!(
            "allow_anonymous true\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n",
            path("ca.pem"),
            path("broker.pem"),
            path("broker.key")
        )
    };
    let Some(broker) = Broker::with(tls) else { return common::skip("mqtt tls", "apt: mosquitto") };
    let path = |name: &str| -> PathBuf { broker.folder().join(name) };
    let with = |ca: &str, certificate: Option<&str>, key: Option<&str>| MqttConfig {
        tls: Some(TlsConfig { ca: path(ca), certificate: certificate.map(path), key: key.map(path) }),
        ..config(broker.port)
    };
    for (config, expected) in [
        (with("other.pem", Some("station.pem"), Some("station.key")), "TLS failed"),
        (with("none.pem", None, None), "check mqtt.tls.ca"),
        (with("san", None, None), "check mqtt.tls.ca"),
        (with("ca.pem", Some("station.pem"), Some("san")), "check mqtt.tls.key"),
        (with("ca.pem", Some("station.pem"), Some("broker.key")), "TLS"),
        (with("ca.pem", None, None), "no connection"),
        // Without TLS at a port that wants it.
        (config(broker.port), "no connection"),
    ] {
        let station = Station::start(&config);
        wait_for(expected, || station.delivery.state().fault.is_some());
        let fault = station.delivery.state().fault.unwrap();
        assert!(fault.contains(expected), "{fault}, not {expected}");
        assert_eq!(station.delivery.state().connections, 0);
    }
    let station = Station::start(&with("ca.pem", Some("station.pem"), Some("station.key")));
    station.append_many(20);
    station.delivered();
}

#[test]
fn triggers_acks_and_commands_come_in_and_what_was_kept_is_refused() {
    let Some(broker) = Broker::start() else { return common::skip("mqtt inbox", "apt: mosquitto") };
    let plc = Plc::listen(broker.port, "cellgate/l1/s1/status");
    plc.client.publish("cellgate/l1/s1/trigger", QoS::AtLeastOnce, true, "{\"id\":\"old\"}").unwrap();
    let station = Station::start(&config(broker.port));
    wait_for("the old trigger", || station.inbox.counts().retained == 1);
    plc.say("cellgate/l1/s1/trigger", "{\"id\":\"W-1\",\"n\":5,\"t_ms\":77}");
    plc.say("cellgate/l1/s2/trigger", "{\"id\":\"another station\"}");
    plc.say("cellgate/l1/s1/ack", "{\"boot\":1,\"seq\":2}");
    plc.say("cellgate/l1/s1/command", "{\"do\":\"shift-reset\"}");
    let Incoming::Trigger(trigger) = station.next() else { panic!("a trigger was given") };
    assert_eq!((trigger.cell.unwrap().as_str(), trigger.number, trigger.sent_ms), ("W-1", Some(5), Some(77)));
    assert_eq!(station.next(), Incoming::Ack(Key { boot: 1, seq: 2 }));
    assert!(matches!(station.next(), Incoming::Command(_)));
}

#[test]
fn hostile_messages_stop_neither_verdicts_nor_triggers() {
    let Some(broker) = Broker::start() else { return common::skip("mqtt hostile", "apt: mosquitto") };
    let verdicts = Plc::listen(broker.port, VERDICTS);
    let hostile = Plc::listen(broker.port, "none");
    let station = Station::start(&config(broker.port));
    let is_heard = |name: &str| {
        wait_for(name, || {
            hostile.say("cellgate/l1/s1/trigger", name);
            let heard = |message| matches!(message, Incoming::Trigger(t) if t.cell.unwrap().as_str() == name);
            let end = station.incoming.recv_timeout(Duration::from_millis(200));
            end.into_iter().chain(station.incoming.try_iter()).any(heard)
        });
    };
    is_heard("first");
    for topic in ["trigger", "ack", "command"] {
        for payload in [&b"\xff\xfe\0"[..], &[b'['; 3000], &[b'x'; 5000], b"{\"id\":1e400}", b""] {
            hostile.say(&format!("cellgate/l1/s1/{topic}"), payload);
        }
    }
    wait_for("the refusals", || station.inbox.counts().malformed == 15);
    station.append();
    // 10,000 at once: more than the inbox holds.
    for n in 0..10_000 {
        hostile.client.publish("cellgate/l1/s1/trigger", QoS::AtMostOnce, false, format!("flood{n}")).unwrap();
    }
    station.append();
    is_heard("after the flood");
    // Too long to be received, and kept by the broker for each who subscribes.
    let connections = station.delivery.state().connections;
    hostile.client.publish("cellgate/l1/s1/trigger", QoS::AtLeastOnce, true, vec![b'x'; 1 << 20]).unwrap();
    wait_for("the end of the connection", || station.delivery.state().connections > connections);
    assert!(station.delivery.state().fault.unwrap().contains("a message of 1048"));
    is_heard("after the long one");
    all_from(1, station.append(), &verdicts);
    assert!(station.delivery.state().connections <= connections + 3, "the retained message was not cleared");
}

fn sparkplug(port: u16, primary_host: &str) -> MqttConfig {
    let names = SparkplugConfig { primary_host: primary_host.into(), ..SparkplugConfig::default() };
    MqttConfig { payload: PayloadKind::Sparkplug, sparkplug: names, ..config(port) }
}

/// Type, message and number of the next Sparkplug message of the station.
fn next_sparkplug(plc: &Plc) -> (String, Payload) {
    let message = plc.next();
    assert!(!message.retain, "{message:?}");
    let kind = message.topic.split('/').nth(2).unwrap().to_owned();
    (kind, Payload::decode(&message.payload[..]).unwrap())
}

/// The value of a metric.
fn value_of(payload: &Payload, name: &str) -> Option<Value> {
    payload.metrics.iter().find(|metric| metric.name.as_deref() == Some(name)).unwrap().value.clone()
}

#[test]
fn a_sparkplug_node_is_born_again_when_asked_and_marks_what_waited() {
    let Some(broker) = Broker::start() else { return common::skip("sparkplug", "apt: mosquitto") };
    let host = Plc::listen(broker.port, "spBv1.0/l1/#");
    let wire = Wire::to(broker.port);
    wire.swallow();
    let station = Station::start(&sparkplug(wire.port, ""));
    station.append();
    wait_for("the time-out", || station.delivery.health() == Health::Down);
    wire.forward();
    let kinds = |count: usize| (0..count).map(|_| next_sparkplug(&host)).collect::<Vec<_>>();
    let messages = kinds(3);
    let (birth, data) = (&messages[0].1, &messages[2].1);
    assert_eq!(messages.iter().map(|m| m.0.as_str()).collect::<Vec<_>>(), ["NBIRTH", "DBIRTH", "DDATA"]);
    assert_eq!(messages.iter().map(|m| m.1.seq).collect::<Vec<_>>(), [Some(0), Some(1), Some(2)]);
    assert_eq!(value_of(data, "seq"), Some(Value::Long(1)));
    assert!(data.metrics.iter().all(|metric| metric.is_historical == Some(true)), "it waited for the connection");
    station.delivered();
    station.append();
    let (kind, fresh) = next_sparkplug(&host);
    assert!(kind == "DDATA" && fresh.metrics.iter().all(|metric| metric.is_historical.is_none()));

    let rebirth = Metric {
        name: Some("Node Control/Rebirth".into()),
        datatype: Some(11),
        value: Some(Value::Boolean(true)),
        ..Metric::default()
    };
    let command = Payload { timestamp: Some(1), metrics: vec![rebirth], seq: None };
    host.say("spBv1.0/l1/NCMD/s1", command.encode_to_vec());
    let mut messages = kinds(3);
    messages.retain(|m| m.0 != "NCMD");
    assert_eq!((messages[0].0.as_str(), messages[0].1.seq), ("NBIRTH", Some(0)));
    assert_eq!(value_of(&messages[0].1, "bdSeq"), value_of(birth, "bdSeq"));

    wire.cut();
    let (kind, death) = next_sparkplug(&host);
    assert_eq!((kind.as_str(), death.seq), ("NDEATH", None));
    assert_eq!(value_of(&death, "bdSeq"), value_of(birth, "bdSeq"));
    let (kind, again) = next_sparkplug(&host);
    assert!(kind == "NBIRTH" && value_of(&again, "bdSeq") != value_of(birth, "bdSeq"));
    assert_eq!(next_sparkplug(&host).0, "DBIRTH");
    // A death on purpose is said, too, and the verdict before it.
    station.append();
    station.delivery.stop(Duration::from_secs(10));
    let messages = kinds(2);
    assert_eq!(messages.iter().map(|m| m.0.as_str()).collect::<Vec<_>>(), ["DDATA", "NDEATH"]);
    assert_eq!(value_of(&messages[1].1, "bdSeq"), value_of(&again, "bdSeq"));
}

#[test]
fn a_sparkplug_node_waits_for_its_primary_host() {
    let Some(broker) = Broker::start() else { return common::skip("sparkplug host", "apt: mosquitto") };
    let host = Plc::listen(broker.port, "spBv1.0/l1/#");
    let station = Station::start(&sparkplug(broker.port, "scada"));
    station.append();
    wait_for("the connection", || station.delivery.health() == Health::Up);
    assert!(host.heard.recv_timeout(Duration::from_millis(300)).is_err(), "nothing is said before the host is there");
    let say = |online: bool| {
        let text = format!("{{\"online\":{online},\"timestamp\":1}}");
        host.client.publish("spBv1.0/STATE/scada", QoS::AtLeastOnce, true, text).unwrap();
    };
    say(true);
    let expected = ["NBIRTH", "DBIRTH", "DDATA"];
    assert_eq!((0..3).map(|_| next_sparkplug(&host).0).collect::<Vec<_>>(), expected);
    station.delivered();
    say(false);
    assert_eq!(next_sparkplug(&host).0, "NDEATH");
    station.append();
    wait_for("the new connection", || station.delivery.state().connections > 1);
    say(true);
    assert_eq!((0..3).map(|_| next_sparkplug(&host).0).collect::<Vec<_>>(), expected);
    station.delivered();
}

#[test]
fn the_node_red_flow_speaks_on_the_stations_topics() {
    let flow: serde_json::Value = serde_json::from_str(include_str!("../deploy/plc/node-red-flow.json")).unwrap();
    let nodes = flow.as_array().unwrap();
    let defaults = MqttConfig::default();
    let mut topics = vec![];
    for node in nodes {
        for wire in node["wires"].as_array().into_iter().flatten().flat_map(|port| port.as_array().unwrap()) {
            assert!(nodes.iter().any(|other| other["id"] == *wire), "{wire} leads nowhere");
        }
        topics.extend(node["topic"].as_str());
    }
    assert_eq!(topics, ["trigger", "verdict", "ack", "status"].map(|word| defaults.topic(word)));
}
