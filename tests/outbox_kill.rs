//! A station that is killed again and again while it writes and delivers verdicts.
#![allow(missing_docs)]

#[path = "common/broker.rs"]
mod broker;
mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use broker::{Broker, Plc, Wire, wait_for};
use cellgate::outbox::mqtt::{Delivery, MqttConfig, inbox};
use cellgate::outbox::{Key, OutboxConfig, Store};

const TOPIC: &str = "cellgate/line/killed/verdict";

fn verdict(key: Key) -> String {
    let filler = "x".repeat((key.seq * 131 % 800) as usize);
    format!("{{\"boot\":{},\"seq\":{},\"filler\":\"{filler}\"}}", key.boot, key.seq)
}

/// What runs in the process that is killed: appends verdicts, says each that is durable on its output, and delivers. With
/// `drain` it only delivers, and ends when nothing waits.
#[test]
fn child() {
    let Some(path) = std::env::var_os("CELLGATE_KILL_OUTBOX") else { return };
    let port = std::env::var("CELLGATE_KILL_PORT").unwrap().parse().unwrap();
    let store = Store::open(&OutboxConfig { path: PathBuf::from(path), verdicts: 1 << 14 }).unwrap();
    let config = MqttConfig { host: "127.0.0.1".into(), port, station: "killed".into(), ..MqttConfig::default() };
    let (inbox, _incoming) = inbox(16);
    let delivery = Delivery::start(&config, store.clone(), inbox).unwrap();
    if std::env::var_os("CELLGATE_KILL_DRAIN").is_some() {
        wait_for("delivery", || store.pending() == 0);
        delivery.stop(Duration::from_secs(10));
        return;
    }
    let mut out = std::io::stderr();
    loop {
        let key = store.append(|key, text| text.push_str(&verdict(key))).unwrap();
        // One write each, so that a kill leaves whole lines or none.
        out.write_all(format!("durable {} {}\n", key.boot, key.seq).as_bytes()).unwrap();
        // The broker gets a chance to keep up.
        std::thread::sleep(Duration::from_micros(key.seq * 7919 % 3000));
    }
}

fn start(outbox: &Path, port: u16, drain: bool) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "child", "--nocapture"])
        .env("CELLGATE_KILL_OUTBOX", outbox)
        .env("CELLGATE_KILL_PORT", port.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    if drain {
        command.env("CELLGATE_KILL_DRAIN", "1");
    }
    command.spawn().unwrap()
}

/// 60 kills, or as many as `CELLGATE_KILLS` says.
#[test]
fn a_station_killed_at_any_moment_loses_nothing_it_announced_and_announces_nothing_it_lost() {
    let Some(broker) = Broker::start() else { return common::skip("outbox_kill", "apt: mosquitto") };
    let kills: u32 = std::env::var("CELLGATE_KILLS").map_or(60, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let outbox = folder.path().join("outbox");
    let plc = Plc::listen(broker.port, TOPIC);
    let mut random = 7_u64;
    let mut durable = BTreeMap::new();
    let mut received: BTreeMap<u64, u32> = BTreeMap::new();
    let (mut repeated, mut newest) = (0_u64, 0);
    let mut take = |message: rumqttc::Publish| {
        let value: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
        let key = Key { boot: value["boot"].as_u64().unwrap() as u32, seq: value["seq"].as_u64().unwrap() };
        assert_eq!(message.payload, verdict(key).as_bytes(), "a verdict is not what was appended");
        match received.insert(key.seq, key.boot) {
            Some(before) => {
                assert_eq!(before, key.boot, "two verdicts have the number {}", key.seq);
                repeated += 1;
            }
            None => {
                assert_eq!(key.seq, newest + 1, "a verdict came before its predecessor");
                newest = key.seq;
            }
        }
    };
    // What is on the way to the broker when a station dies does not always get there.
    let wire = Wire::to(broker.port);
    wire.delay(Duration::from_millis(2));
    let begin = Instant::now();
    for turn in 0..kills {
        let mut child = start(&outbox, wire.port, false);
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        // Killed anywhere from the opening of its store to the midst of many deliveries.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_micros((random >> 33) % 120_000));
        if turn % 2 == 0 {
            wire.cut();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            let Some(key) = line.strip_prefix("durable ") else { panic!("the child says: {line}") };
            let (boot, seq) = key.split_once(' ').unwrap();
            let before = durable.insert(seq.parse::<u64>().unwrap(), boot.parse::<u32>().unwrap());
            assert_eq!(before, None, "{seq} was given twice");
        }
        plc.heard.try_iter().for_each(&mut take);
    }
    let mut child = start(&outbox, broker.port, true);
    assert!(child.wait().unwrap().success());
    let store = Store::open(&OutboxConfig { path: outbox, verdicts: 1 << 14 }).unwrap();
    assert_eq!((store.pending(), store.dropped()), (0, 0));
    let last = *durable.keys().next_back().expect("a verdict");
    // One more may have become durable in the instant of the kill.
    while let Ok(message) = plc.heard.recv_timeout(Duration::from_secs(2)) {
        take(message);
    }
    assert!(newest >= last, "{last} was announced and {newest} is the last that came");
    assert_eq!(received.len() as u64, newest, "the numbers have a gap");
    for (seq, boot) in &durable {
        assert_eq!(received.get(seq), Some(boot), "{seq} was announced and is lost");
    }
    println!(
        "{kills} kills in {:.1} s: {} verdicts announced, {} received, {repeated} of them again, none lost",
        begin.elapsed().as_secs_f64(),
        durable.len(),
        received.len()
    );
}
