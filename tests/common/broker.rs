//! A real broker for tests, a client in the place of the PLC, and a network between station and broker that misbehaves.
#![allow(dead_code, missing_docs)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rumqttc::{Client, Event, MqttOptions, Packet, Publish, QoS};

/// Longer than anything here takes on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until it holds.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A port that nobody has.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// mosquitto on a port and in a folder of its own, gone when it is dropped.
pub struct Broker {
    pub port: u16,
    folder: tempfile::TempDir,
    child: Option<Child>,
}

fn program() -> Option<&'static str> {
    ["mosquitto", "/usr/sbin/mosquitto"].into_iter().find(|program| {
        let tried = Command::new(program).arg("-h").stdout(Stdio::null()).stderr(Stdio::null()).status();
        tried.is_ok()
    })
}

impl Broker {
    /// Anyone may come; sessions last through a restart. None if mosquitto is not installed.
    pub fn start() -> Option<Self> {
        Self::with(|_| "allow_anonymous true\n".into())
    }

    /// With these lines in its configuration, given its folder.
    pub fn with(lines: impl FnOnce(&Path) -> String) -> Option<Self> {
        program()?;
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let text = format!(
            "user root\npersistence true\npersistence_location {0}/\nautosave_on_changes false\nmax_queued_messages 0\n\
             log_dest file {0}/log\nlistener {port} 127.0.0.1\n{1}",
            folder.path().display(),
            lines(folder.path())
        );
        std::fs::write(folder.path().join("mosquitto.conf"), text).unwrap();
        let mut broker = Self { port, folder, child: None };
        broker.resume();
        Some(broker)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The number of its process, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts it again after [`Broker::halt`].
    pub fn resume(&mut self) {
        let child = Command::new(program().unwrap())
            .arg("-c")
            .arg(self.folder.path().join("mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        wait_for("the broker to listen", || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    /// Ends it as the system would; it keeps its sessions.
    pub fn halt(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
            let _ = child.wait();
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A client that listens and speaks, and comes back by itself with all that was kept for it.
pub struct Plc {
    pub client: Client,
    pub heard: Receiver<Publish>,
    gone: Arc<AtomicBool>,
}

impl Plc {
    /// Connects and listens to a topic.
    pub fn listen(port: u16, topic: &str) -> Self {
        Self::with(MqttOptions::new(format!("plc-{topic}").replace(['/', '#', '+'], "-"), "127.0.0.1", port), topic)
    }

    pub fn with(mut options: MqttOptions, topic: &str) -> Self {
        options.set_clean_session(false).set_max_packet_size(1 << 24, 1 << 24).set_inflight(200);
        let (client, mut connection) = Client::new(options, 64);
        let (sender, heard) = channel();
        let (ready, is_ready) = channel();
        let gone = Arc::new(AtomicBool::new(false));
        let (theirs, again, topic) = (gone.clone(), client.clone(), topic.to_owned());
        std::thread::spawn(move || {
            for event in connection.iter() {
                if theirs.load(Ordering::Relaxed) {
                    return;
                }
                match event {
                    Ok(Event::Incoming(Packet::ConnAck(ack))) if !ack.session_present => {
                        again.try_subscribe(topic.as_str(), QoS::AtLeastOnce).unwrap();
                    }
                    Ok(Event::Incoming(Packet::SubAck(_))) => drop(ready.send(())),
                    Ok(Event::Incoming(Packet::Publish(message))) => {
                        if sender.send(message).is_err() {
                            return;
                        }
                    }
                    Ok(_) => {}
                    Err(_) => std::thread::sleep(Duration::from_millis(50)),
                }
            }
        });
        is_ready.recv_timeout(PATIENCE).expect("a subscription");
        Self { client, heard, gone }
    }

    pub fn say(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.client.publish(topic, QoS::AtLeastOnce, false, payload).unwrap();
    }

    /// The next message.
    pub fn next(&self) -> Publish {
        self.heard.recv_timeout(PATIENCE).expect("a message")
    }
}

impl Drop for Plc {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
        let _ = self.client.try_disconnect();
    }
}

/// A network between station and broker.
pub struct Wire {
    pub port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    mode: AtomicU8,
    delay_ms: AtomicU64,
    /// Connections that were made before this count are cut.
    cut_below: AtomicU64,
    made: AtomicU64,
}

const FORWARD: u8 = 0;
const SWALLOW: u8 = 1;

impl Wire {
    /// To the broker at this port.
    pub fn to(broker: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let (Ok(near), Ok(far)) = (near, TcpStream::connect(("127.0.0.1", broker))) else { continue };
                let number = theirs.made.fetch_add(1, Ordering::SeqCst);
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let shared = theirs.clone();
                    std::thread::spawn(move || carry(from, to, number, &shared));
                }
            }
        });
        Self { port, shared }
    }

    /// Everything is swallowed and no connection is closed, as when a cable is pulled behind a switch.
    pub fn swallow(&self) {
        self.shared.mode.store(SWALLOW, Ordering::SeqCst);
    }

    /// What is new is carried again; connections that swallowed something stay dead.
    pub fn forward(&self) {
        self.shared.mode.store(FORWARD, Ordering::SeqCst);
    }

    /// Every piece takes so long.
    pub fn delay(&self, delay: Duration) {
        self.shared.delay_ms.store(delay.as_millis() as u64, Ordering::SeqCst);
    }

    /// Ends all connections without a word of MQTT.
    pub fn cut(&self) {
        self.shared.cut_below.store(self.shared.made.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// Connections that were made.
    pub fn made(&self) -> u64 {
        self.shared.made.load(Ordering::SeqCst)
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, number: u64, shared: &Shared) {
    from.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let _ = to.set_nodelay(true);
    let mut bytes = [0; 4096];
    let mut dead = false;
    loop {
        if number < shared.cut_below.load(Ordering::SeqCst) {
            break;
        }
        let count = match from.read(&mut bytes) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                continue;
            }
            Err(_) => break,
        };
        std::thread::sleep(Duration::from_millis(shared.delay_ms.load(Ordering::SeqCst)));
        if number < shared.cut_below.load(Ordering::SeqCst) {
            break;
        }
        dead |= shared.mode.load(Ordering::SeqCst) == SWALLOW;
        if !dead && to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
