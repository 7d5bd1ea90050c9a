//! `cellgate fleet` at a real broker.
#![allow(missing_docs)]

#[path = "common/broker.rs"]
mod broker;
#[path = "common/fleet.rs"]
mod fleet;
#[path = "common/skip.rs"]
mod skip;

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use broker::{Broker, Plc, wait_for};
use cellgate::clock::Date;
use cellgate::update::bundle::Hash;
use cellgate::update::message::{Offer, Report};
use fleet::{command, done, refused, write_bundle, write_keys};
use rumqttc::QoS;

fn report(number: u64, group: &str) -> Report {
    Report {
        number,
        model: Hash::of(&[number as u8]).to_string(),
        groups: vec![group.into()],
        last: format!("version {number} is good"),
        software: "0.1.0".into(),
        time: Date::now(),
        ..Report::default()
    }
}

fn keep(plc: &Plc, topic: &str, payload: impl Into<Vec<u8>>) {
    plc.client.publish(topic, QoS::AtLeastOnce, true, payload).unwrap();
}

/// Three stations, and what nobody should have sent.
fn populate(port: u16) -> Plc {
    let plc = Plc::listen(port, "none");
    for (station, number, state) in [("el-1", 7, "online"), ("el-2", 6, "offline"), ("el-3", 7, "online")] {
        let status = format!("{{\"state\":\"{state}\",\"boot\":1,\"camera\":\"up\",\"model\":\"01234567\"}}");
        keep(&plc, &format!("cellgate/l1/{station}/status"), status);
        let group = if station == "el-3" { "rest" } else { "pilot" };
        keep(&plc, &format!("cellgate/l1/{station}/update"), report(number, group).encode());
    }
    keep(&plc, "cellgate/l2/bare/status", "{\"state\":\"online\"}");
    keep(&plc, "cellgate/l1/\u{202e}x/status", "{}");
    keep(&plc, "cellgate/l1/el-9/status", vec![b'x'; 1_000_000]);
    keep(&plc, "cellgate/l1/el-9/update", "{\"state\":\"go");
    // All are kept once the last is there.
    let seen = Plc::listen(port, "cellgate/l1/el-9/update");
    seen.next();
    plc
}

#[test]
fn status_shows_every_station_and_nothing_that_a_screen_would_obey() {
    let Some(broker) = Broker::start() else { return skip::skip("fleet status", "apt: mosquitto") };
    let _plc = populate(broker.port);
    let text = done(broker.port, "fleet status");
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0][..5], ["line", "station", "online", "camera", "version"]);
    assert_eq!(rows[1][..5], ["l1", "el-1", "yes", "up", "7"]);
    assert_eq!(rows[2][..5], ["l1", "el-2", "no", "up", "6"]);
    assert_eq!(rows[4][..5], ["l2", "bare", "yes", "–", "–"]);
    for said in
        ["4 stations, 3 online", "version 6 (", "version 7 (", "2 good", "1 say nothing", "3 messages could not"]
    {
        assert!(text.contains(said), "{said}: {text}");
    }
    assert!(!text.contains(['\u{1b}', '\u{202e}']));
    let json: serde_json::Value =
        serde_json::from_str(&done(broker.port, "fleet status --json --group pilot")).unwrap();
    assert_eq!(json["stations"].as_array().unwrap().len(), 2);
    assert_eq!((&json["stations"][1]["number"], &json["stations"][1]["online"]), (&6.into(), &false.into()));
    assert!(!done(broker.port, "fleet status --line l2").contains("el-1"));
    refused(broker::free_port(), "fleet status", "no connection to the broker");
}

#[test]
fn an_offer_is_checked_shown_sent_halted_and_withdrawn_with_its_chunks() {
    let Some(broker) = Broker::start() else { return skip::skip("fleet offer", "apt: mosquitto") };
    let plc = populate(broker.port);
    let folder = tempfile::tempdir().unwrap();
    let (keys, bundle) = (write_keys(folder.path()), write_bundle(folder.path(), 7, 200_000));
    let offer = |more: &str| format!("fleet offer {} --keys {} --group pilot {more}", bundle.display(), keys.display());

    let said = done(broker.port, &offer("--chunks --dry-run"));
    assert!(said.contains("group pilot: 2 stations") && said.contains("1 offline: takes it"), "{said}");
    assert!(said.contains("1 has it (l1/el-1)") && said.contains("nothing was sent"), "{said}");
    refused(broker.port, &offer(""), "give --url, --chunks or both");
    refused(broker.port, "fleet halt --group pilot", "nothing is offered");

    // What lies there of another offer that was never finished.
    keep(&plc, "cellgate/fleet/pilot/bundle/0123/99", "x");
    let said = done(broker.port, &offer("--chunks --percent 50"));
    assert!(said.contains("MB, 50 %, chunks"), "{said}");
    let heard = Plc::listen(broker.port, "cellgate/fleet/pilot/#");
    let messages: Vec<_> = (0..6).map(|_| heard.next()).collect();
    assert!(messages.iter().all(|message| message.retain && message.payload.len() <= 1 << 16));
    let sent = messages.iter().find(|message| message.topic.ends_with("/offer")).unwrap();
    let sent = Offer::decode(&sent.payload).unwrap();
    assert_eq!((sent.number, sent.percent, sent.halted, sent.chunk_count()), (7, 50, false, 4));
    let mut chunks: Vec<_> = messages.iter().filter(|m| m.topic.contains(&sent.bundle.to_string())).collect();
    chunks.sort_by_key(|message| message.topic.clone());
    let whole: Vec<u8> = chunks.iter().flat_map(|message| message.payload.iter().copied()).collect();
    assert_eq!(whole, std::fs::read(&bundle).unwrap());

    done(broker.port, "fleet halt --group pilot");
    assert!(done(broker.port, "fleet status").contains("HALTED"));
    let older = write_bundle(folder.path(), 6, 1000);
    let words = format!("fleet offer {} --keys {} --group pilot --chunks", older.display(), keys.display());
    refused(broker.port, &words, "no station goes back by an offer");
    let said = done(broker.port, "fleet withdraw --group pilot");
    assert!(said.contains("5 chunks are gone"), "{said}");
    let json: serde_json::Value = serde_json::from_str(&done(broker.port, "fleet status --json")).unwrap();
    assert_eq!(json["offers"], serde_json::json!([]));

    // A bundle that no station would take is not offered.
    let mut bytes = std::fs::read(&bundle).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&bundle, bytes).unwrap();
    refused(broker.port, &offer("--chunks"), "is not the one that was signed");
}

#[test]
fn a_broker_that_takes_an_offer_and_does_not_keep_it_is_found_out() {
    let rules = |folder: &std::path::Path| {
        let file = folder.join("rules");
        std::fs::write(&file, "topic read #\ntopic write cellgate/fleet/marker/#\n").unwrap();
        format!("allow_anonymous true\nacl_file {}\n", file.display())
    };
    let Some(broker) = Broker::with(rules) else { return skip::skip("fleet access", "apt: mosquitto") };
    let folder = tempfile::tempdir().unwrap();
    let (keys, bundle) = (write_keys(folder.path()), write_bundle(folder.path(), 7, 1000));
    for (way, topic) in [("--chunks", "/bundle/"), ("--url https://updates.example/v7.cgb", "/offer")] {
        let words = format!("fleet offer {} --keys {} --group g {way}", bundle.display(), keys.display());
        refused(broker.port, &words, topic);
        refused(broker.port, &words, "access list lets this user write there");
    }
}

#[test]
fn watch_tells_each_change_through_a_restart_of_the_broker_and_ends_on_ctrl_c() {
    let Some(mut broker) = Broker::start() else { return skip::skip("fleet watch", "apt: mosquitto") };
    let plc = populate(broker.port);
    let mut watch = command(broker.port, "fleet watch --json").stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let (sender, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| _ = sender.send(line)));
    let expect = |what: &dyn Fn(&serde_json::Value) -> bool| {
        wait_for("a line", || {
            heard.recv_timeout(Duration::from_secs(30)).is_ok_and(|line| what(&serde_json::from_str(&line).unwrap()))
        });
    };
    expect(&|line| line["station"] == "el-3" && line["number"] == 7);
    keep(&plc, "cellgate/l1/el-3/update", report(8, "rest").encode());
    expect(&|line| line["station"] == "el-3" && line["number"] == 8);
    broker.halt();
    expect(&|line| line["fault"].is_string());
    broker.resume();
    expect(&|line| line["station"] == "el-1");
    keep(&plc, "cellgate/l1/el-1/update", report(9, "pilot").encode());
    expect(&|line| line["station"] == "el-1" && line["number"] == 9);
    let id = watch.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    assert!(watch.wait().unwrap().success());
}

#[test]
fn a_rollout_ends_when_somebody_halts_it_goes_on_when_asked_to_and_stops_on_ctrl_c() {
    let Some(broker) = Broker::start() else { return skip::skip("fleet resume", "apt: mosquitto") };
    let plc = populate(broker.port);
    let folder = tempfile::tempdir().unwrap();
    let (keys, bundle) = (write_keys(folder.path()), write_bundle(folder.path(), 8, 1000));
    let words =
        format!("fleet rollout {} --keys {} --group pilot --chunks --waves 100", bundle.display(), keys.display());
    // Gives the steps that it told, and how it ended.
    let run = |more: &str, then: &dyn Fn(u32)| {
        let mut child = command(broker.port, &format!("{words} --json {more}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let first = out.next().expect("a step");
        then(child.id());
        let steps: Vec<String> = std::iter::once(first)
            .chain(out)
            .map(|line| serde_json::from_str::<serde_json::Value>(&line).unwrap()["what"].as_str().unwrap().to_owned())
            .collect();
        let ended = child.wait_with_output().unwrap();
        (steps, ended.status.success(), String::from_utf8_lossy(&ended.stderr).into_owned())
    };
    let (steps, is_good, error) = run("", &|_| _ = done(broker.port, "fleet halt --group pilot"));
    assert!(!is_good && error.contains("halted by somebody else"), "{error}");
    assert_eq!(steps, ["wave"]);
    refused(broker.port, &words, "was halted at 100 %");
    let (_, is_good, error) = run("--resume", &|id| {
        assert!(std::process::Command::new("kill").args(["-INT", &id.to_string()]).status().unwrap().success());
    });
    assert!(!is_good && error.contains("the same command goes on"), "{error}");
    // Now nobody is on the way: one has it, the other is away.
    let (steps, is_good, error) = run("", &|_| keep(&plc, "cellgate/l1/el-1/update", report(8, "pilot").encode()));
    assert!(is_good, "{error}");
    assert_eq!(steps.last().unwrap(), "done");
    done(broker.port, "fleet withdraw --group pilot");
}
