//! What the tests of updates share: bundles of made-up models, a host in the place of a station, and a server of files.
#![allow(dead_code, missing_docs)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cellgate::clock::Date;
use cellgate::update::agent::Host;
use cellgate::update::bundle::{
    Hash, KeySet, Layout, Manifest, SecretKey, Software, Station, Targets, assemble, pack_model, pack_whole,
};
use cellgate::update::install::NotProven;
use cellgate::update::message::{CHUNK_BYTES, Offer, Shadow};
use cellgate::update::slots::Seen;

const DAY: u64 = 86_400_000;

pub fn key() -> SecretKey {
    SecretKey::from_seed(&[7; 32])
}

pub fn keys() -> KeySet {
    KeySet { version: 1, threshold: 1, keys: vec![key().public()] }
}

pub fn station() -> Station {
    Station {
        line: "line1".into(),
        station: "el-07".into(),
        groups: vec!["pilot".into()],
        software: Software::own(),
        backbone: [5; 32],
    }
}

/// A model file of so many bytes that no packing makes smaller.
pub fn model(version: u64, bytes: usize) -> Vec<u8> {
    let mut file = vec![0; bytes];
    blake3::Hasher::new().update(&version.to_le_bytes()).finalize_xof().fill(&mut file);
    file
}

/// A signed bundle of such a model.
pub fn bundle(version: u64, bytes: usize, targets: Targets) -> Vec<u8> {
    let now = Date::now().as_millis();
    let manifest = Manifest {
        product: "cellgate".into(),
        version,
        backbone: [5; 32],
        targets,
        created: now - DAY,
        expires: now + 30 * DAY,
        base: None,
        sections: vec![],
    };
    let parts = vec![
        pack_model(Layout { bytes: &model(version, bytes), sections: &[] }, None),
        pack_whole("golden", b"golden"),
        pack_whole("note", b"a note"),
    ];
    let (mut envelope, body) = assemble(manifest, parts).unwrap();
    envelope.sign(&key());
    [envelope.to_bytes().unwrap(), body].concat()
}

/// An offer of a bundle to all; by chunks unless an address is given.
pub fn offer(version: u64, bundle: &[u8], url: Option<String>) -> Offer {
    Offer {
        number: version,
        bundle: Hash::of(bundle),
        bytes: bundle.len() as u64,
        chunks: url.is_none(),
        url,
        chunk_bytes: CHUNK_BYTES,
        percent: 100,
        salt: String::new(),
        halted: false,
        issued: Date::now(),
    }
}

/// What a made-up station does and has done.
#[derive(Default)]
pub struct Life {
    pub calls: Vec<String>,
    /// What judges: the hash of its file, or `factory`.
    pub model: String,
    candidate: String,
    /// Cells that each look finds, and how they were.
    pub seen: Seen,
    pub refuses: Option<String>,
}

/// A station that judges nothing.
#[derive(Clone, Default)]
pub struct MadeUp(pub Arc<Mutex<Life>>);

impl MadeUp {
    pub fn new(cells: u64) -> Self {
        let host = Self::default();
        host.0.lock().unwrap().seen.cells = cells;
        host.0.lock().unwrap().model = "factory".into();
        host
    }

    pub fn calls(&self) -> Vec<String> {
        self.0.lock().unwrap().calls.clone()
    }

    pub fn model(&self) -> String {
        self.0.lock().unwrap().model.clone()
    }
}

fn hash(path: &Path) -> String {
    Hash::of(&std::fs::read(path).unwrap()).to_string()
}

impl Host for MadeUp {
    fn model(&self) -> String {
        MadeUp::model(self)
    }

    fn prove(&mut self, model: &Path, golden: &Path) -> Result<(), NotProven> {
        assert_eq!(std::fs::read(golden).unwrap(), b"golden");
        let mut life = self.0.lock().unwrap();
        life.calls.push("prove".into());
        life.candidate = hash(model);
        life.refuses.clone().map_or(Ok(()), |why| Err(NotProven::Refused(why)))
    }

    fn shadow(&mut self, heard: &mut dyn FnMut(Shadow) -> Option<&'static str>) -> Result<(), NotProven> {
        self.0.lock().unwrap().calls.push("shadow".into());
        for frames in 1..=5 {
            if let Some(why) = heard(Shadow { frames, flips: 0, mean: 0.01, largest: 0.02 }) {
                return Err(NotProven::Stopped(why.into()));
            }
        }
        Ok(())
    }

    fn activate(&mut self) -> Result<(), String> {
        let mut life = self.0.lock().unwrap();
        life.calls.push("activate".into());
        life.model = std::mem::take(&mut life.candidate);
        Ok(())
    }

    fn go_back(&mut self, model: Option<&Path>) -> Result<(), String> {
        let mut life = self.0.lock().unwrap();
        life.calls.push("go back".into());
        life.model = model.map_or("factory".into(), hash);
        Ok(())
    }

    fn seen(&mut self) -> Seen {
        self.0.lock().unwrap().seen
    }
}

/// How a server of files behaves.
#[derive(Default)]
pub struct Manners {
    /// Ends a connection after so many bytes of a body; 0: never.
    pub cut_after: AtomicU64,
    /// Sends the file from its begin, whatever is asked for.
    pub no_ranges: AtomicBool,
    /// First bytes of what was asked for, and bytes that were sent.
    pub asked: Mutex<Vec<u64>>,
    pub sent: AtomicU64,
    pub file: Mutex<Vec<u8>>,
    /// An answer in place of the file.
    pub says: Mutex<Option<String>>,
}

/// Serves one file at any path, over TLS if a certificate and key are given.
pub fn serve(tls: Option<Arc<rustls::ServerConfig>>, manners: Arc<Manners>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(stream), tls, manners) = (stream, tls.clone(), manners.clone()) else { continue };
            std::thread::spawn(move || {
                stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                // Whoever hangs up has his reasons.
                let _ = match tls {
                    None => answer(stream, &manners),
                    Some(config) => {
                        let connection = rustls::ServerConnection::new(config).unwrap();
                        answer(rustls::StreamOwned::new(connection, stream), &manners)
                    }
                };
            });
        }
    });
    port
}

fn answer(mut stream: impl Read + Write, manners: &Manners) -> std::io::Result<()> {
    let (mut text, mut byte) = (String::new(), [0]);
    while !text.ends_with("\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        text.push(byte[0].into());
    }
    if let Some(says) = &*manners.says.lock().unwrap() {
        stream.write_all(says.as_bytes())?;
        return stream.flush();
    }
    let from = text.split("Range: bytes=").nth(1).and_then(|rest| rest.split('-').next()).unwrap();
    let from: u64 = from.parse().unwrap();
    manners.asked.lock().unwrap().push(from);
    let file = manners.file.lock().unwrap().clone();
    let total = file.len();
    let from = if manners.no_ranges.load(Ordering::SeqCst) { 0 } else { from as usize };
    let head = if manners.no_ranges.load(Ordering::SeqCst) {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n")
    } else {
        format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/{total}\r\nContent-Length: {}\r\n\r\n",
            total.max(1) - 1,
            total - from
        )
    };
    stream.write_all(head.as_bytes())?;
    let cut = manners.cut_after.load(Ordering::SeqCst) as usize;
    let body = if cut == 0 { &file[from..] } else { &file[from..(from + cut).min(total)] };
    for part in body.chunks(8192) {
        stream.write_all(part)?;
        manners.sent.fetch_add(part.len() as u64, Ordering::SeqCst);
    }
    stream.flush()
}
