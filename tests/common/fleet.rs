//! Small signed bundles, and stations without a camera that take them.
#![allow(dead_code, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use cellgate::clock::Date;
use cellgate::outbox::mqtt::MqttConfig;
use cellgate::update::agent::{Agent, AgentParts, Host, ProbationConfig, ShadowConfig, UpdateConfig};
use cellgate::update::bundle::{self, Hash, Targets};
use cellgate::update::disk::Folder;
use cellgate::update::install::NotProven;
use cellgate::update::message::Shadow;
use cellgate::update::slots::{Seen, Slots};

#[path = "updates.rs"]
mod updates;

/// Bytes of the model of version 1.
const FIRST: usize = 2000;

/// Writes the set of the key that signs all bundles here.
pub fn write_keys(folder: &Path) -> PathBuf {
    let mut envelope = updates::keys().to_envelope().unwrap();
    envelope.sign(&updates::key());
    let path = folder.join("keys.cgk");
    std::fs::write(&path, envelope.to_bytes().unwrap()).unwrap();
    path
}

/// Writes a signed bundle of a model of so many bytes.
pub fn write_bundle(folder: &Path, number: u64, bytes: usize) -> PathBuf {
    let path = folder.join(format!("v{number}.cgb"));
    std::fs::write(&path, updates::bundle(number, bytes, Targets::default())).unwrap();
    path
}

/// Runs the program.
pub fn cellgate(port: u16, words: &str) -> Output {
    command(port, words).output().unwrap()
}

pub fn command(port: u16, words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cellgate"));
    command.args(words.split_whitespace()).args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    command
}

/// What a run that went well said.
pub fn done(port: u16, words: &str) -> String {
    let output = cellgate(port, words);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{words}: {out}{err}");
    out.into_owned()
}

/// Asserts that a run fails and says so.
pub fn refused(port: u16, words: &str, said: &str) {
    let output = cellgate(port, words);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && err.contains(said), "{words}: {err}");
}

/// How a station takes the model of version 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// As it should.
    Healthy,
    /// It takes its time.
    Slow,
    /// The golden frames are judged otherwise.
    Refuses,
    /// It rejects too much in probation.
    GoesBack,
}

/// A station without a camera: the real agent on a state folder of its own, and a judge that judges nothing.
pub struct Station {
    pub line: String,
    pub name: String,
    pub manner: Manner,
    folder: PathBuf,
    agent: Option<Agent>,
}

impl Station {
    /// One with version 1 in force, as `template` has it, that is switched off.
    pub fn new(folder: &Path, template: &Path, line: &str, name: &str, manner: Manner) -> Self {
        let folder = folder.join(format!("{line}-{name}"));
        std::fs::create_dir(&folder).unwrap();
        for file in std::fs::read_dir(template).unwrap().map(Result::unwrap) {
            std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
        }
        Self { line: line.into(), name: name.into(), manner, folder, agent: None }
    }

    /// As others know it.
    pub fn id(&self) -> String {
        format!("{}/{}", self.line, self.name)
    }

    /// Switches it on, after it was switched off if it was on.
    pub fn start(&mut self, port: u16, group: &str) {
        self.stop();
        let config = UpdateConfig {
            state: self.folder.clone(),
            groups: vec![group.into()],
            bandwidth_kb_s: 0,
            spread_s: 0,
            retry_max_s: 1,
            shadow: ShadowConfig { frames: 0, ..ShadowConfig::default() },
            probation: ProbationConfig { cells: 100, ..ProbationConfig::default() },
            ..UpdateConfig::default()
        };
        let mqtt = MqttConfig {
            host: "127.0.0.1".into(),
            port,
            line: self.line.clone(),
            station: self.name.clone(),
            retry_max_s: 1,
            ..MqttConfig::default()
        };
        let mut slots = Slots::open(Folder::new(&self.folder).unwrap()).unwrap();
        let (_, fitted) = slots.start(&config.probation.limits()).unwrap();
        let host = Judge { manner: self.manner, model: fitted.hash, candidate: None };
        let station = station(&self.line, &self.name, group);
        self.agent = Some(Agent::start(AgentParts { config, mqtt, slots, station, host: Box::new(host) }).unwrap());
    }

    pub fn stop(&mut self) {
        self.agent = None;
    }

    /// The version in force by its record, and whether that slot's file is whole; it must be switched off.
    pub fn in_force(&self) -> (u64, bool) {
        let mut slots = Slots::open(Folder::new(&self.folder).unwrap()).unwrap();
        let known = slots.record().in_force().map(|(_, fitted)| fitted.hash);
        let (_, started) = slots.start(&ProbationConfig::default().limits()).unwrap();
        (started.version, Some(started.hash) == known)
    }
}

fn station(line: &str, name: &str, group: &str) -> bundle::Station {
    bundle::Station { line: line.into(), station: name.into(), groups: vec![group.into()], ..updates::station() }
}

/// Makes a state folder that has version 1 in force.
pub fn template(folder: &Path) -> PathBuf {
    let state = folder.join("template");
    let mut slots = Slots::set_up(Folder::new(&state).unwrap(), updates::keys()).unwrap();
    let (bundle, now) = (updates::bundle(1, FIRST, Targets::default()), Date::now().as_millis());
    slots.install(&mut &bundle[..], &station("l", "template", "g"), now, |_, _| Ok(())).unwrap();
    slots.activate().unwrap();
    slots.confirm().unwrap();
    state
}

/// What stands in for camera, engine and judge.
struct Judge {
    manner: Manner,
    model: Hash,
    candidate: Option<Hash>,
}

impl Judge {
    fn is_new(model: Hash) -> bool {
        model != Hash::of(&updates::model(1, FIRST))
    }
}

fn hash_of(path: &Path) -> Result<Hash, String> {
    std::fs::read(path).map(|bytes| Hash::of(&bytes)).map_err(|error| error.to_string())
}

impl Host for Judge {
    fn model(&self) -> String {
        self.model.to_string()
    }

    fn prove(&mut self, model: &Path, _: &Path) -> Result<(), NotProven> {
        std::thread::sleep(Duration::from_millis(if self.manner == Manner::Slow { 3000 } else { 0 }));
        if self.manner == Manner::Refuses {
            return Err("the golden frame `c1` was judged A".into());
        }
        self.candidate = Some(hash_of(model)?);
        Ok(())
    }

    fn shadow(&mut self, _: &mut dyn FnMut(Shadow) -> Option<&'static str>) -> Result<(), NotProven> {
        Ok(())
    }

    fn activate(&mut self) -> Result<(), String> {
        self.model = self.candidate.take().ok_or("nothing was proven")?;
        Ok(())
    }

    fn go_back(&mut self, model: Option<&Path>) -> Result<(), String> {
        self.model = hash_of(model.ok_or("there is no model to go back to")?)?;
        Ok(())
    }

    fn seen(&mut self) -> Seen {
        let bad = self.manner == Manner::GoesBack && Self::is_new(self.model);
        Seen { cells: 60, rejected: if bad { 60 } else { 1 }, ..Seen::default() }
    }
}
