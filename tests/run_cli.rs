//! `cellgate run` as its user runs it: a configuration, a synthetic camera, a real broker.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

#[path = "common/broker.rs"]
mod broker;
mod common;

use broker::{Broker, Plc};

fn cellgate(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cellgate"));
    command.args(arguments).env_remove("NOTIFY_SOCKET").env_remove("CELLGATE_LOG");
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A configuration for a small model in this folder, with more lines.
fn configuration(folder: &Path, more: &str) -> PathBuf {
    common::small_model(folder, 64, 16, 24);
    let path = folder.join("cellgate.toml");
    let text = format!(
        "[model]\npath = {:?}\n[outbox]\npath = {:?}\nverdicts = 4096\n[operations]\nmetrics = \"off\"\n{more}",
        folder.join("small.cgm"),
        folder.join("outbox")
    );
    std::fs::write(&path, text).unwrap();
    path
}

const CAMERA: &str = "[camera]\nkind = \"synthetic\"\nsize = 180\nseed = 3\nproportions = [0.6, 0.2, 0.2]\n";

#[test]
fn a_replay_is_judged_to_its_end_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let screen = folder.path().join("screen.png");
    let more = format!(
        "{CAMERA}prepared = 30\nperiod-ms = 0\ncount = 90\n[display]\noutput = \"png\"\npath = {screen:?}\nperiod-ms = 100\n"
    );
    let config = configuration(folder.path(), &more);
    let run = || cellgate(&["run", "--json", "--config"]).arg(&config).output().unwrap();
    let output = run();
    assert!(output.status.success(), "{}", text(&output));
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output)));
    assert_eq!((&summary["cells"], &summary["invalid"], &summary["pending"]), (&90.into(), &0.into(), &90.into()));
    assert!(summary["a"].as_u64().unwrap() > 30 && summary["c"].as_u64().unwrap() > 10, "{summary}");
    assert!(summary["latency_p50_ms"].as_f64().unwrap() > 0.0);
    assert!(std::fs::metadata(&screen).unwrap().len() > 200);
    // What was not delivered is still there at the next start, which has the next number.
    let again: Value = serde_json::from_slice(&run().stdout).unwrap();
    assert_eq!(again["pending"], 180);
    assert_eq!(again["boot"], summary["boot"].as_u64().unwrap() + 1);
}

#[test]
fn what_keeps_it_from_starting_is_said_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let config = configuration(folder.path(), CAMERA);
    let fails = |arguments: &[&str], needle: &str| {
        let output = cellgate(arguments).output().unwrap();
        assert!(!output.status.success() && text(&output).contains(needle), "{needle}: {}", text(&output));
    };
    let path = config.to_str().unwrap();
    fails(&["run", "--config", "none.toml"], "--print-config");
    let original = std::fs::read_to_string(&config).unwrap();
    let with = |from: &str, to: &str| std::fs::write(&config, original.replace(from, to)).unwrap();
    with("small.cgm", "other.cgm");
    fails(&["run", "--config", path], "other.cgm");
    with("seed = 3", "sead = 3");
    fails(&["run", "--config", path], "sead");
    with("/outbox\"", "/none/outbox\"");
    fails(&["run", "--config", path], "none/outbox");
    with("kind = \"synthetic\"", "kind = \"replay\"\nfolder = \"nowhere\"");
    fails(&["run", "--config", path], "nowhere");
    with("", "");
    let output = cellgate(&["run", "--check", "--config", path]).output().unwrap();
    assert!(output.status.success() && text(&output).contains("takt-ms = 1000"), "{}", text(&output));
    let output = cellgate(&["run", "--print-config"]).output().unwrap();
    assert!(output.status.success() && text(&output).contains("[trigger.pairing]"));
    let output = cellgate(&["doctor", "--json", "--config", path]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&output)));
    let found = |name: &str| {
        let mut checks = report["checks"].as_array().unwrap().iter();
        checks.find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name}: {report}")).clone()
    };
    assert!(found("camera")["seen"].as_str().unwrap().contains("a frame came"), "{report}");
}

/// A process that is stopped at the end whatever happens.
struct Station(Child);

impl Drop for Station {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn verdict(plc: &Plc) -> Value {
    serde_json::from_slice(&plc.next().payload).unwrap()
}

/// Cells come every two seconds, and the test is the PLC: it learns the rhythm from the cells that nobody announced, and
/// then announces each by its name.
#[test]
fn cells_that_are_announced_by_message_get_their_verdict_under_their_name() {
    let Some(broker) = Broker::start() else {
        return common::skip("cells_that_are_announced_by_message", "apt-get install mosquitto");
    };
    let folder = tempfile::tempdir().unwrap();
    let more = format!(
        "{CAMERA}prepared = 30\nperiod-ms = 2000\n[station]\ntakt-ms = 1800\n[mqtt]\nhost = \"127.0.0.1\"\nport = {}\n\
         line = \"l7\"\nstation = \"el2\"\n[trigger]\nsource = \"mqtt\"\n\
         pairing = {{ window-ms = 600, grace-ms = 200, confirm = 2 }}\n",
        broker.port
    );
    let config = configuration(folder.path(), &more);
    let plc = Plc::listen(broker.port, "cellgate/l7/el2/verdict");
    let states = Plc::listen(broker.port, "cellgate/l7/el2/status");
    let mut station =
        Station(cellgate(&["run", "--json", "--config"]).arg(&config).stdout(Stdio::piped()).spawn().unwrap());
    // A frame without a trigger is nobody's cell, and is refused.
    let stranger = verdict(&plc);
    assert_eq!(
        (&stranger["outcome"], &stranger["reason"], &stranger["id"]),
        (&"INVALID".into(), &"pairing".into(), &Value::Null)
    );
    // It was decided 800 ms after its exposure; the next one is 2000 ms after that.
    let mut next = Instant::now() + Duration::from_millis(1200);
    let mut seen = Vec::new();
    for number in 0..5 {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        let trigger = format!("{{\"id\":\"cell-{number}\",\"n\":{number}}}");
        plc.say("cellgate/l7/el2/trigger", trigger);
        let said = verdict(&plc);
        assert_eq!(said["id"], format!("cell-{number}"), "{said}");
        seen.push(said["outcome"].as_str().unwrap().to_owned());
        next += Duration::from_secs(2);
    }
    assert_eq!(seen[..2], ["INVALID", "INVALID"], "two pairs are asked for before a cell is judged");
    assert!(seen[2..].iter().all(|outcome| outcome == "PASS" || outcome == "REJECT"), "{seen:?}");
    // SIGTERM: it ends in order and says so.
    let status = Command::new("kill").args(["-TERM", &station.0.id().to_string()]).status().unwrap();
    assert!(status.success());
    let mut summary = String::new();
    station.0.stdout.take().unwrap().read_to_string(&mut summary).unwrap();
    assert!(station.0.wait().unwrap().success());
    let summary: Value = serde_json::from_str(&summary).unwrap_or_else(|error| panic!("{error}: {summary}"));
    assert_eq!(summary["pending"], 0);
    assert_eq!(summary["delivered"], summary["cells"]);
    let mut state = String::from_utf8_lossy(&states.next().payload).into_owned();
    assert!(state.contains("online"), "{state}");
    while !state.contains("offline") {
        state = String::from_utf8_lossy(&states.next().payload).into_owned();
    }
}
