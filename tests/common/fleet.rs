//! Small signed bundles, and stations without a camera that take them.
#![allow(dead_code, missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cellgate::clock::Date;
use cellgate::update::bundle::{
    Hash, KeySet, Layout, Manifest, SecretKey, Software, Targets, assemble, pack_model, pack_whole,
};
use cellgate::update::message::{Offer, Refused, Report, State, chunk_topic, in_wave, offer_topic, report_topic};
use rumqttc::{AsyncClient, Event, LastWill, MqttOptions, Packet, Publish, QoS};
use tokio::sync::mpsc::{Receiver, channel};

/// Bytes that look like nothing else, the same for the same number.
pub fn model(number: u64, bytes: usize) -> Vec<u8> {
    let mut model = vec![0; bytes];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut model);
    model
}

/// Writes a key set of one key.
pub fn write_keys(folder: &Path) -> PathBuf {
    let key = SecretKey::from_seed(&[1; 32]);
    let mut envelope = KeySet { version: 1, threshold: 1, keys: vec![key.public()] }.to_envelope().unwrap();
    envelope.sign(&key);
    let path = folder.join("keys.cgk");
    std::fs::write(&path, envelope.to_bytes().unwrap()).unwrap();
    path
}

/// Writes a signed bundle of a model of so many bytes that do not pack.
pub fn write_bundle(folder: &Path, number: u64, bytes: usize, targets: Targets) -> PathBuf {
    let model = model(number, bytes);
    let parts = vec![pack_model(Layout { bytes: &model, sections: &[] }, None), pack_whole("golden", b"golden")];
    let created = Date::now().as_millis();
    let manifest = Manifest {
        product: "cellgate".into(),
        version: number,
        backbone: [7; 32],
        targets: Targets { minimum_software: Software([0, 0, 1]), ..targets },
        created,
        expires: created + 86_400_000,
        base: None,
        sections: vec![],
    };
    let (mut envelope, body) = assemble(manifest, parts).unwrap();
    envelope.sign(&SecretKey::from_seed(&[1; 32]));
    let path = folder.join(format!("v{number}.cgb"));
    std::fs::write(&path, [envelope.to_bytes().unwrap(), body].concat()).unwrap();
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

/// How a station takes a new model.
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

/// A station without a camera.
pub struct Station {
    pub line: String,
    pub name: String,
    pub groups: Vec<String>,
    pub manner: Manner,
    report: Report,
}

impl Station {
    pub fn new(line: &str, name: &str, group: &str, manner: Manner) -> Self {
        let report = Report {
            state: State::Good,
            number: 1,
            model: Hash::of(&model(1, 100)).to_string(),
            file: Some(Hash::of(&model(1, 100))),
            groups: vec![group.into()],
            offered: None,
            bundle: None,
            progress: None,
            shadow: None,
            refused: vec![],
            rolled_back: None,
            last: "started".into(),
            software: "0.1.0".into(),
            time: Date::now(),
        };
        Self { line: line.into(), name: name.into(), groups: vec![group.into()], manner, report }
    }

    /// Lives through lost connections until it is told to stop.
    pub async fn live(mut self, port: u16, stop: Arc<AtomicBool>) {
        while !stop.load(Ordering::Relaxed) {
            self.connection(port, &stop).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// One connection; none is back when it is lost.
    async fn connection(&mut self, port: u16, stop: &AtomicBool) -> Option<()> {
        let id = format!("{}-{}", self.line, self.name);
        let status = format!("cellgate/{}/{}/status", self.line, self.name);
        let mut options = MqttOptions::new(id, "127.0.0.1", port);
        options.set_max_packet_size(1 << 20, 1 << 20).set_inflight(8);
        options.set_last_will(LastWill::new(&status, "{\"state\":\"offline\"}", QoS::AtLeastOnce, true));
        let (client, mut events) = AsyncClient::new(options, 16);
        let (sender, mut heard) = channel(16);
        // Ends with its receiver.
        tokio::spawn(async move {
            while let Ok(event) = events.poll().await {
                if let Event::Incoming(Packet::Publish(message)) = event
                    && sender.send(message).await.is_err()
                {
                    return;
                }
                if sender.is_closed() {
                    return;
                }
            }
        });
        client.publish(&status, QoS::AtLeastOnce, true, "{\"state\":\"online\",\"camera\":\"up\"}").await.ok()?;
        self.tell(&client, State::Good).await?;
        client.subscribe(offer_topic(&self.groups[0]), QoS::AtLeastOnce).await.ok()?;
        let mut offer: Option<Offer> = None;
        while !stop.load(Ordering::Relaxed) {
            match tokio::time::timeout(Duration::from_millis(200), heard.recv()).await {
                Ok(Some(message)) => offer = Offer::decode(&message.payload).ok(),
                Ok(None) => return None,
                Err(_) => {}
            }
            if let Some(offer) = offer.clone().filter(|offer| self.wants(offer)) {
                self.take(&client, &mut heard, &offer).await?;
            }
        }
        None
    }

    fn wants(&self, offer: &Offer) -> bool {
        let refused = self.report.refused.iter().chain(&self.report.rolled_back);
        !offer.halted
            && offer.number > self.report.number
            && refused.into_iter().all(|refused| refused.number != offer.number)
            && in_wave(&self.line, &self.name, offer)
    }

    async fn tell(&mut self, client: &AsyncClient, state: State) -> Option<()> {
        (self.report.state, self.report.time) = (state, Date::now());
        let topic = report_topic(&self.line, &self.name);
        client.publish(topic, QoS::AtLeastOnce, true, self.report.encode()).await.ok()
    }

    /// Takes what is offered; with a lost connection it begins again.
    async fn take(&mut self, client: &AsyncClient, heard: &mut Receiver<Publish>, offer: &Offer) -> Option<()> {
        let pause = Duration::from_millis(if self.manner == Manner::Slow { 1000 } else { 50 });
        (self.report.offered, self.report.bundle) = (Some(offer.number), Some(offer.bundle));
        self.tell(client, State::Download).await?;
        let mut hash = blake3::Hasher::new();
        for index in 0..offer.chunk_count() {
            let topic = chunk_topic(&self.groups[0], &offer.bundle, index);
            client.subscribe(&topic, QoS::AtLeastOnce).await.ok()?;
            loop {
                let message = tokio::time::timeout(Duration::from_secs(20), heard.recv()).await.ok()??;
                if message.topic == topic {
                    hash.update(&message.payload);
                    break;
                }
            }
            client.unsubscribe(&topic).await.ok()?;
            tokio::time::sleep(pause).await;
        }
        assert_eq!(*hash.finalize().as_bytes(), offer.bundle.0, "the chunks are the bundle");
        self.tell(client, State::Prove).await?;
        tokio::time::sleep(pause).await;
        let refused = |why: &str| Refused { number: offer.number, why: why.into() };
        if self.manner == Manner::Refuses {
            self.report.refused.push(refused("the golden frame `c1` was judged A"));
            return self.tell(client, State::Refused).await;
        }
        let before = std::mem::replace(&mut self.report.number, offer.number);
        self.tell(client, State::Probation).await?;
        tokio::time::sleep(2 * pause).await;
        if self.manner == Manner::GoesBack {
            self.report.number = before;
            self.report.rolled_back = Some(refused("too many cells were rejected"));
        }
        self.tell(client, State::Good).await
    }
}
