//! A running `cellgate run` takes a new model from an offer to good between two cells, and goes back when it is told to:
//! every cell has its verdict, in order, and says which model gave it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cellgate::clock::Date;
use cellgate::model::Model;
use cellgate::update::bundle::Hash;
use cellgate::update::message::{CHUNK_BYTES, Offer, Report, State, chunk_topic, offer_topic};
use rumqttc::QoS;
use serde_json::Value;

#[path = "common/broker.rs"]
mod broker;
mod common;

use broker::{Broker, PATIENCE, Plc};

fn cellgate(folder: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cellgate"));
    command.current_dir(folder).args(line.split(' ')).env("CELLGATE_UPDATE_STATE", folder.join("state"));
    command.env_remove("NOTIFY_SOCKET").env_remove("CELLGATE_LOG");
    command
}

fn done(folder: &Path, line: &str) -> String {
    let output = cellgate(folder, line).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A process that is stopped at the end whatever happens.
struct Station(Child);

impl Drop for Station {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Everything that the station says.
struct Line {
    plc: Plc,
    /// The model of each verdict.
    models: Vec<String>,
    reports: Vec<Report>,
    status: Value,
    refused: usize,
}

impl Line {
    /// Listens until it holds; each verdict must follow the one before and judge its cell.
    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = Instant::now() + 2 * PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < end, "waited in vain for {what}: {:#?}", self.reports);
            let Ok(message) = self.plc.heard.recv_timeout(Duration::from_millis(100)) else { continue };
            match message.topic.rsplit('/').next() {
                Some("verdict") => {
                    let verdict: Value = serde_json::from_slice(&message.payload).unwrap();
                    assert_eq!(verdict["seq"], self.models.len() as u64 + 1, "{verdict}");
                    assert_ne!(verdict["outcome"], "INVALID", "{verdict}");
                    self.refused += usize::from(verdict["outcome"] == "REJECT");
                    self.models.push(verdict["model"].as_str().unwrap().to_owned());
                }
                Some("update") => self.reports.push(Report::decode(&message.payload).unwrap()),
                Some("status") => self.status = serde_json::from_slice(&message.payload).unwrap(),
                _ => {}
            }
        }
    }

    fn until_report(&mut self, what: &str, holds: impl Fn(&Report) -> bool) {
        self.until(what, |line| line.reports.last().is_some_and(&holds));
    }

    fn more_cells(&mut self, count: usize) {
        let enough = self.models.len() + count;
        self.until("more cells", |line| line.models.len() >= enough);
    }
}

#[test]
fn a_running_station_takes_a_new_model_and_goes_back_without_a_missing_cell() {
    let Some(broker) = Broker::start() else {
        return common::skip("a_running_station_takes_a_new_model", "apt-get install mosquitto");
    };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::rename(common::small_model(folder, 64, 16, 24), folder.join("m0.cgm")).unwrap();
    // The fit has seen the first 60 of its cells.
    for (name, cells) in [("unseen", 60..80), ("golden", 1..4)] {
        std::fs::create_dir(folder.join(name)).unwrap();
        for cell in cells.map(|number| format!("cell{number:04}.pgm")) {
            std::fs::copy(folder.join("cells").join(&cell), folder.join(name).join(&cell)).unwrap();
        }
    }
    done(folder, "calibrate m0.cgm unseen --overkill 0.05 -o m1.cgm");
    done(folder, "calibrate m0.cgm unseen --overkill 0.1 -o m2.cgm");
    // It rejects nearly every cell.
    let fitted = Model::open(&folder.join("m0.cgm")).unwrap();
    let calibration = fitted.header().calibration.as_ref().unwrap();
    fitted.write_calibrated(&folder.join("m3.cgm"), calibration.moved_to(0.5 * calibration.quantiles[0])).unwrap();
    done(folder, "bundle keygen anna");
    done(folder, "bundle keys anna.pub --threshold 1 -o keys.cgk");
    done(folder, "bundle sign keys.cgk --key anna.key");
    done(folder, "update install keys.cgk --trust");
    for number in 1..=3 {
        let made = format!("m{number}.cgm --number {number} --golden golden -o v{number}.cgb --group pilot");
        done(folder, &format!("bundle create {made}"));
        done(folder, &format!("bundle sign v{number}.cgb --key anna.key"));
    }
    let [m0, m1, m2, m3] =
        [0, 1, 2, 3].map(|number| Model::open(&folder.join(format!("m{number}.cgm"))).unwrap().id().to_string());
    let config = format!(
        "[model]\npath = \"m0.cgm\"\nthreads = 1\n[outbox]\npath = \"outbox\"\nverdicts = 16384\n\
         [operations]\nmetrics = \"off\"\n[camera]\nkind = \"synthetic\"\nsize = 180\nseed = 3\n\
         proportions = [0.9, 0.05, 0.05]\nprepared = 40\nperiod-ms = 50\n[station]\ntakt-ms = 20000\nslots = 32\n\
         [mqtt]\nhost = \"127.0.0.1\"\nport = {}\nline = \"line1\"\nstation = \"el-07\"\n\
         [update]\nstate = \"state\"\ngroups = [\"pilot\"]\nspread-s = 0\nbandwidth-kb-s = 0\nretry-max-s = 1\n\
         shadow = {{ frames = 20, flips = 1.0, difference = 1.0 }}\n\
         probation = {{ cells = 100, rejected = 0.5, drift = false }}\n",
        broker.port
    );
    std::fs::write(folder.join("cellgate.toml"), config).unwrap();
    let plc = Plc::listen(broker.port, "cellgate/line1/el-07/#");
    let mut line = Line { plc, models: Vec::new(), reports: Vec::new(), status: Value::Null, refused: 0 };
    let _station = Station(
        cellgate(folder, "run --json --config cellgate.toml")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    line.more_cells(20);
    assert!(line.models.iter().all(|model| *model == m0), "the model of the configuration, before there is a bundle");

    let say = |topic: &str, payload: Vec<u8>| line.plc.client.publish(topic, QoS::AtLeastOnce, true, payload).unwrap();
    let file = std::fs::read(folder.join("v1.cgb")).unwrap();
    let bundle = Hash::of(&file);
    for (index, chunk) in file.chunks(CHUNK_BYTES as usize).enumerate() {
        say(&chunk_topic("pilot", &bundle, index as u64), chunk.to_vec());
    }
    let offer = Offer {
        number: 1,
        bundle,
        bytes: file.len() as u64,
        url: None,
        chunks: true,
        chunk_bytes: CHUNK_BYTES,
        percent: 100,
        salt: String::new(),
        halted: false,
        issued: Date::now(),
    };
    say(&offer_topic("pilot"), offer.encode().unwrap().into_bytes());
    line.until_report("the new model to be good", |report| report.state == State::Good && report.number == 1);
    line.more_cells(10);
    let report = line.reports.last().unwrap();
    assert_eq!((&report.model, report.shadow.map(|shadow| shadow.frames)), (&m1, Some(20)));
    assert_eq!(line.status["model"], m1[..8], "the status follows");

    // A stick beside the running station: the bundle goes to it by its inbox, and so does the way back.
    let said = done(folder, "update install v2.cgb");
    assert!(said.contains("a station is running") && said.contains("version 2 is in force"), "{said}");
    line.until_report("the second model", |report| report.number == 2 && report.state == State::Probation);
    assert!(done(folder, "update status").contains("version 2"));
    line.more_cells(10);
    assert!(done(folder, "update rollback").contains("went back to version 1"));
    line.until_report("the way back", |report| report.number == 1);
    line.more_cells(10);

    // A model that rejects what the one before passed is taken back by itself, and never taken again.
    let before = line.refused;
    assert!(done(folder, "update install v3.cgb").contains("version 3 is in force"));
    let taken_back = |report: &Report| report.rolled_back.as_ref().is_some_and(|back| back.number == 3);
    line.until_report("the model before, by itself", |report| report.number == 1 && taken_back(report));
    let back = line.reports.last().unwrap().rolled_back.as_ref().unwrap();
    assert!(back.why.contains("rejected"), "{back:?}");
    assert!(line.refused - before >= 25, "it was taken back for what it rejected: {}", line.refused - before);
    let again = cellgate(folder, "update install v3.cgb").output().unwrap();
    assert!(!again.status.success(), "{again:?}");
    line.more_cells(10);

    let mut order = line.models.clone();
    order.dedup();
    assert_eq!(order, [&m0, &m1, &m2, &m1, &m3, &m1].map(String::as_str), "each verdict names its model");
}
