//! The agent of updates beside a made-up station, with a real broker and real servers: from an offer to good, and
//! everything that keeps it from there.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cellgate::outbox::mqtt::MqttConfig;
use cellgate::update::agent::{Agent, AgentParts, Inbox, ProbationConfig, UpdateConfig};
use cellgate::update::bundle::{Hash, Targets};
use cellgate::update::disk::Folder;
use cellgate::update::message::{CHUNK_BYTES, Offer, Report, State, chunk_topic, offer_topic, report_topic};
use cellgate::update::slots::{Limits, Phase, Seen, Slots};

#[path = "common/broker.rs"]
mod broker;
#[path = "common/skip.rs"]
mod skip;
#[path = "common/updates.rs"]
mod updates;

use broker::{Broker, PATIENCE, Plc};
use rumqttc::QoS;
use updates::{MadeUp, Manners, bundle, keys, model, offer, serve, station};

const BYTES: usize = 300_000;

/// A broker, an ear on the station's reports, a state folder.
struct Site {
    broker: Broker,
    ear: Plc,
    state: tempfile::TempDir,
    host: MadeUp,
    config: UpdateConfig,
}

impl Site {
    fn new(test: &str) -> Option<Self> {
        let Some(broker) = Broker::start() else {
            skip::skip(test, "mosquitto");
            return None;
        };
        let ear = Plc::listen(broker.port, &report_topic("line1", "el-07"));
        let state = tempfile::tempdir().unwrap();
        Slots::set_up(Folder::new(state.path()).unwrap(), keys()).unwrap();
        let config = UpdateConfig {
            state: state.path().into(),
            groups: vec!["pilot".into()],
            bandwidth_kb_s: 0,
            spread_s: 0,
            retry_max_s: 1,
            allow_http: true,
            probation: ProbationConfig { cells: 50, ..ProbationConfig::default() },
            ..UpdateConfig::default()
        };
        Some(Self { broker, ear, state, host: MadeUp::new(100), config })
    }

    fn start(&self) -> Agent {
        agent(&self.config, self.broker.port, &self.host)
    }

    fn say(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.ear.client.publish(topic, QoS::AtLeastOnce, true, payload).unwrap();
    }

    fn offer(&self, offer: &Offer) {
        self.say(&offer_topic("pilot"), offer.encode().unwrap());
    }

    /// Puts a bundle in chunks to the broker.
    fn chunks(&self, file: &[u8]) {
        for (index, chunk) in file.chunks(CHUNK_BYTES as usize).enumerate() {
            self.say(&chunk_topic("pilot", &Hash::of(file), index as u64), chunk);
        }
    }

    /// Reports until one is as wanted; gives all.
    fn until(&self, what: &str, wanted: impl Fn(&Report) -> bool) -> Vec<Report> {
        let (end, mut all) = (Instant::now() + PATIENCE, Vec::new());
        while Instant::now() < end {
            if let Ok(message) = self.ear.heard.recv_timeout(Duration::from_millis(100)) {
                all.push(Report::decode(&message.payload).unwrap());
                if all.last().is_some_and(&wanted) {
                    return all;
                }
            }
        }
        panic!("waited in vain for {what}: {all:#?}");
    }

    fn good(&self, number: u64) -> Vec<Report> {
        self.until("good", |report| report.state == State::Good && report.number == number)
    }
}

fn agent(config: &UpdateConfig, port: u16, host: &MadeUp) -> Agent {
    let mqtt = MqttConfig {
        host: "127.0.0.1".into(),
        port,
        line: "line1".into(),
        station: "el-07".into(),
        ..MqttConfig::default()
    };
    let slots = Slots::open(Folder::new(&config.state).unwrap()).unwrap().with_factory();
    let (config, station, host) = (config.clone(), station(), Box::new(host.clone()));
    Agent::start(AgentParts { config, mqtt, slots, station, host }).unwrap()
}

fn hash_of_model(version: u64) -> String {
    Hash::of(&model(version, BYTES)).to_string()
}

/// The states of reports, each once in a row.
fn states(reports: &[Report]) -> Vec<State> {
    let mut states: Vec<State> = reports.iter().map(|report| report.state).collect();
    states.dedup();
    states
}

#[test]
fn an_offer_in_chunks_goes_through_every_state_to_good() {
    let Some(site) = Site::new("an_offer_in_chunks_goes_through_every_state_to_good") else { return };
    let _agent = site.start();
    site.good(0);
    let file = bundle(7, BYTES, Targets::default());
    // The offer may come before its chunks.
    site.offer(&offer(7, &file, None));
    site.until("the download", |report| report.state == State::Download);
    site.chunks(&file);
    let reports = site.good(7);
    let states = states(&reports);
    // A state that passes at once may be overtaken on its way out by the next.
    let order =
        [State::Download, State::Verify, State::Stage, State::Prove, State::Shadow, State::Probation, State::Good];
    let places: Vec<usize> =
        states.iter().map(|state| order.iter().position(|known| known == state).unwrap()).collect();
    assert!(places.is_sorted() && states.ends_with(&[State::Probation, State::Good]), "{states:?}");
    let last = reports.last().unwrap();
    assert_eq!((last.model.as_str(), last.file), (hash_of_model(7).as_str(), Some(Hash::of(&model(7, BYTES)))));
    assert_eq!(site.host.calls(), ["prove", "shadow", "activate"]);
    assert_eq!((&last.groups[..], last.shadow.map(|shadow| shadow.frames)), (&["pilot".to_owned()][..], Some(5)));
}

#[test]
fn a_download_over_https_goes_on_where_it_broke_off_and_needs_the_right_authority() {
    let test = "a_download_over_https_goes_on_where_it_broke_off_and_needs_the_right_authority";
    let Some(mut site) = Site::new(test) else { return };
    let Some(tls) = certificates(site.state.path()) else { return skip::skip(test, "openssl") };
    let file = bundle(7, BYTES, Targets::default());
    let manners = Arc::new(Manners::default());
    manners.file.lock().unwrap().clone_from(&file);
    manners.cut_after.store(100_000, Ordering::SeqCst);
    let port = serve(Some(tls), Arc::clone(&manners));
    site.offer(&offer(7, &file, Some(format!("https://localhost:{port}/line1-7.cgb"))));
    site.config.ca = site.state.path().join("other.pem");
    let agent = site.start();
    let failed = site.until("the failure", |report| report.state == State::Failed);
    assert!(failed.last().unwrap().last.contains("certificate"), "{:?}", failed.last());
    assert!(manners.asked.lock().unwrap().is_empty(), "nothing is asked of a server that cannot prove who it is");
    drop(agent);
    site.config.ca = site.state.path().join("ca.pem");
    let _agent = site.start();
    site.good(7);
    let asked = manners.asked.lock().unwrap().clone();
    assert!(asked.len() >= 4 && asked[0] == 0 && asked[1..].iter().all(|&from| from >= 99_000), "{asked:?}");
    assert!(manners.sent.load(Ordering::SeqCst) < 2 * file.len() as u64, "it begins anew each time");
    assert_eq!(site.host.model(), hash_of_model(7));
}

/// An authority, a server's certificate, and another authority.
fn certificates(folder: &Path) -> Option<Arc<rustls::ServerConfig>> {
    use rustls::pki_types::pem::PemObject;
    let openssl = |arguments: &str| {
        let mut command = Command::new("openssl");
        command.args(arguments.split(' ')).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    std::fs::write(folder.join("san"), "subjectAltName=DNS:localhost\n").unwrap();
    let authority = |name: &str| {
        openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem"
        ))
    };
    let made = authority("ca")
        && authority("other")
        && openssl(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=server -keyout server.key -out server.csr",
        )
        && openssl(
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san -out server.pem",
        );
    if !made {
        return None;
    }
    let chain = rustls::pki_types::CertificateDer::pem_file_iter(folder.join("server.pem")).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::from_pem_file(folder.join("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(chain.map(Result::unwrap).collect(), key).unwrap();
    Some(Arc::new(config))
}

#[test]
fn a_server_that_cannot_begin_in_the_midst_of_a_file_does_too() {
    let Some(site) = Site::new("a_server_that_cannot_begin_in_the_midst_of_a_file_does_too") else { return };
    let file = bundle(7, BYTES, Targets::default());
    let manners = Arc::new(Manners::default());
    manners.file.lock().unwrap().clone_from(&file);
    manners.no_ranges.store(true, Ordering::SeqCst);
    manners.cut_after.store(200_000, Ordering::SeqCst);
    let port = serve(None, Arc::clone(&manners));
    site.offer(&offer(7, &file, Some(format!("http://127.0.0.1:{port}/7.cgb"))));
    let _agent = site.start();
    site.until("the failure", |report| report.state == State::Failed);
    manners.cut_after.store(0, Ordering::SeqCst);
    site.good(7);
}

#[test]
fn what_had_come_whole_before_a_restart_is_not_asked_for_again() {
    let Some(site) = Site::new("what_had_come_whole_before_a_restart_is_not_asked_for_again") else { return };
    let file = bundle(7, BYTES, Targets::default());
    std::fs::write(site.state.path().join("download.part"), &file).unwrap();
    std::fs::write(site.state.path().join("download.wanted"), Hash::of(&file).0).unwrap();
    // Nobody listens there.
    site.offer(&offer(7, &file, Some(format!("http://127.0.0.1:{}/7.cgb", broker::free_port()))));
    let _agent = site.start();
    site.good(7);
}

#[test]
fn a_bandwidth_limit_is_kept() {
    let Some(mut site) = Site::new("a_bandwidth_limit_is_kept") else { return };
    let file = bundle(7, BYTES, Targets::default());
    site.chunks(&file);
    site.config.bandwidth_kb_s = 100;
    let begin = Instant::now();
    let _agent = site.start();
    site.offer(&offer(7, &file, None));
    site.good(7);
    // 300 kB at 100 kB/s: three seconds. A broken limit takes a fraction of one.
    assert!(begin.elapsed() > Duration::from_millis(2500), "{:?}", begin.elapsed());
}

#[test]
fn wrong_bytes_an_endless_body_and_circles_leave_the_model_in_force_and_are_given_up() {
    let test = "wrong_bytes_an_endless_body_and_circles_leave_the_model_in_force_and_are_given_up";
    let Some(site) = Site::new(test) else { return };
    let file = bundle(7, BYTES, Targets::default());
    let manners = Arc::new(Manners::default());
    let port = serve(None, Arc::clone(&manners));
    let url = Some(format!("http://127.0.0.1:{port}/7.cgb"));
    let _agent = site.start();
    // Another bundle, signed just as well, of the same length.
    let mut other = file.clone();
    *other.last_mut().unwrap() ^= 1;
    manners.file.lock().unwrap().clone_from(&other);
    site.offer(&offer(7, &file, url.clone()));
    let refused = site.until("the refusal", |report| report.state == State::Refused);
    let last = refused.last().unwrap();
    assert!(last.refused[0].number == 7 && last.refused[0].why.contains("is not the one that was signed"), "{last:?}");
    // Endless, and longer than offered.
    let endless = "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n".to_owned() + &"x".repeat(1 << 20);
    for (says, said) in [
        (endless, "another length than was offered"),
        ("HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n".to_owned(), "leads elsewhere more than 3 times"),
    ] {
        site.say(&offer_topic("pilot"), "");
        site.until("no offer", |report| report.state == State::Good);
        *manners.says.lock().unwrap() = Some(says);
        site.offer(&offer(7, &file, url.clone()));
        let failed = site.until("the failure", |report| report.state == State::Failed);
        assert!(failed.last().unwrap().last.contains(said), "{:?}", failed.last());
    }
    assert_eq!((site.host.calls().len(), site.host.model().as_str()), (0, "factory"));
    *manners.says.lock().unwrap() = None;
    *manners.file.lock().unwrap() = file;
    site.good(7);
}

#[test]
fn offers_that_are_malformed_too_large_old_or_for_others_are_passed_over() {
    let Some(site) = Site::new("offers_that_are_malformed_too_large_old_or_for_others_are_passed_over") else { return };
    let _agent = site.start();
    let file = bundle(7, BYTES, Targets::default());
    site.chunks(&file);
    let good = offer(7, &file, None);
    for bad in [b"{".to_vec(), vec![0xff; 50], vec![b' '; 20_000], b"{\"number\":8}".to_vec()] {
        site.say(&offer_topic("pilot"), bad);
    }
    site.say(&offer_topic("others"), good.encode().unwrap());
    site.offer(&Offer { percent: 0, ..good.clone() });
    site.until("its wave", |report| report.state == State::Waiting && report.last == "a later wave");
    assert_eq!(site.host.calls().len(), 0);
    site.offer(&good);
    site.good(7);
    // The same again, and an older one.
    let older = bundle(6, BYTES, Targets::default());
    site.chunks(&older);
    site.offer(&offer(6, &older, None));
    site.offer(&good);
    // A bundle for another group, offered to this one.
    let groups = vec!["others".to_owned()];
    let foreign = bundle(9, BYTES, Targets { groups, ..Targets::default() });
    site.chunks(&foreign);
    site.offer(&offer(9, &foreign, None));
    let refused = site.until("the refusal", |report| report.state == State::Refused);
    assert!(refused.last().unwrap().last.contains("is for the group others"), "{:?}", refused.last());
    // An offer that says a larger number than its bundle.
    site.offer(&offer(11, &older, None));
    let refused = site.until("the refusal", |report| report.state == State::Refused && report.offered == Some(11));
    assert!(refused.last().unwrap().last.contains("it is of version 6"), "{:?}", refused.last());
    assert_eq!((site.host.calls().len(), site.host.model()), (3, hash_of_model(7)));
}

#[test]
fn a_halted_rollout_stops_a_download_which_later_goes_on() {
    let Some(mut site) = Site::new("a_halted_rollout_stops_a_download_which_later_goes_on") else { return };
    site.config.bandwidth_kb_s = 100;
    let _agent = site.start();
    let file = bundle(7, BYTES, Targets::default());
    site.chunks(&file);
    let offer = offer(7, &file, None);
    site.offer(&offer);
    site.until("half of it", |report| report.progress.is_some_and(|share| share > 0.2));
    site.offer(&Offer { halted: true, ..offer.clone() });
    let halted = site.until("the halt", |report| report.state == State::Waiting);
    assert_eq!(halted.last().unwrap().last, "the rollout is halted");
    let there = std::fs::metadata(site.state.path().join("download.part")).unwrap().len();
    assert!(there > 0 && there < file.len() as u64 && site.host.calls().is_empty());
    site.offer(&offer);
    let again = site.until("the download", |report| report.progress.is_some());
    assert!(again.last().unwrap().progress > Some(0.2), "it goes on: {:?}", again.last());
    site.good(7);
}

#[test]
fn a_model_that_rejects_too_much_is_taken_back_and_its_number_never_taken_again() {
    let test = "a_model_that_rejects_too_much_is_taken_back_and_its_number_never_taken_again";
    let Some(site) = Site::new(test) else { return };
    let _agent = site.start();
    for (version, seen, said) in [
        (7, Seen { cells: 100, rejected: 60, ..Seen::default() }, "too many cells were rejected, 60 of 100"),
        (8, Seen { cells: 100, invalid: 60, ..Seen::default() }, "too many cells were INVALID, 60 of 100"),
        (9, Seen { cells: 60, drift: true, ..Seen::default() }, "lie elsewhere than its fit"),
    ] {
        site.host.0.lock().unwrap().seen = seen;
        let file = bundle(version, BYTES, Targets::default());
        site.chunks(&file);
        site.offer(&offer(version, &file, None));
        let back = site.until("the way back", |report| report.state == State::Refused);
        let last = back.last().unwrap();
        let rolled_back = last.rolled_back.as_ref().unwrap();
        assert!(rolled_back.number == version && rolled_back.why.contains(said), "{last:?}");
        assert_eq!((last.number, last.model.as_str()), (0, "factory"));
        assert!(back.iter().any(|report| report.state == State::Probation && report.number == version));
    }
    // A new number may be better, and one that fails its proof is refused for good.
    site.host.0.lock().unwrap().seen = Seen { cells: 100, ..Seen::default() };
    let file = bundle(10, BYTES, Targets::default());
    site.chunks(&file);
    site.offer(&offer(10, &file, None));
    site.good(10);
    site.host.0.lock().unwrap().refuses = Some("it judges otherwise".into());
    let file = bundle(11, BYTES, Targets::default());
    site.chunks(&file);
    site.offer(&offer(11, &file, None));
    let refused = site.until("the refusal", |report| report.state == State::Refused && report.offered == Some(11));
    assert!(refused.last().unwrap().refused.iter().any(|refused| refused.why.contains("it judges otherwise")));
    assert_eq!(site.host.model(), hash_of_model(10));
}

#[test]
fn the_inbox_brings_bundles_and_the_way_back_without_a_broker() {
    let state = tempfile::tempdir().unwrap();
    Slots::set_up(Folder::new(state.path()).unwrap(), keys()).unwrap();
    let host = MadeUp::new(0);
    let config = UpdateConfig { state: state.path().into(), ..UpdateConfig::default() };
    let slots = Slots::open(Folder::new(state.path()).unwrap()).unwrap().with_factory();
    let parts =
        AgentParts { config, mqtt: MqttConfig::default(), slots, station: station(), host: Box::new(host.clone()) };
    let _agent = Agent::start(parts).unwrap();
    let inbox = Inbox::new(state.path());
    let told = |name: &str, content: &[u8]| {
        let errand = inbox.send(name, &mut &content[..]).unwrap();
        let mut answer = None;
        broker::wait_for("the answer", || {
            answer = inbox.answer(&errand).unwrap();
            answer.is_some()
        });
        answer.unwrap()
    };
    let (done, said) = told("a.cgb", &bundle(7, BYTES, Targets::default()));
    assert!(done && said.contains("version 7 is in force, on probation"), "{said}");
    assert_eq!(host.model(), hash_of_model(7));
    let (done, said) = told("b.cgb", &bundle(8, BYTES, Targets::default()));
    assert!(!done && said.contains("on probation"), "{said}");
    assert!(told("c.confirm", b"").0);
    let (done, said) = told("d.cgb", b"no bundle");
    assert!(!done && said.contains("reading the bundle"), "{said}");
    assert!(told("e.rollback", b"").0);
    assert_eq!(host.model(), "factory");
}

/// The name of the variable that says to a copy of this program that it is the station to be killed.
const CHILD: &str = "CELLGATE_TEST_UPDATE_STATE";

#[test]
fn a_station_killed_in_mid_update_comes_up_with_a_whole_model_and_goes_on() {
    let test = "a_station_killed_in_mid_update_comes_up_with_a_whole_model_and_goes_on";
    if let Some(state) = std::env::var_os(CHILD) {
        return live(Path::new(&state));
    }
    let Some(mut site) = Site::new(test) else { return };
    let kills: u32 = std::env::var("CELLGATE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
    let manners = Arc::new(Manners::default());
    let port = serve(None, Arc::clone(&manners));
    let (mut version, mut whole, mut random) = (1, 0, 7_u64);
    let start = |broker: u16| {
        Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"])
            .env(CHILD, site.state.path())
            .env("CELLGATE_TEST_BROKER", broker.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let publish = |version: u64| {
        let file = bundle(version, BYTES, Targets::default());
        site.chunks(&file);
        let by_chunks = version.is_multiple_of(2);
        let url = (!by_chunks).then(|| format!("http://127.0.0.1:{port}/{version}.cgb"));
        manners.file.lock().unwrap().clone_from(&file);
        site.offer(&offer(version, &file, url));
    };
    publish(version);
    let mut resumed = 0;
    for _ in 0..kills {
        let mut child = start(site.broker.port);
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        std::thread::sleep(Duration::from_millis(random >> 33 & 2047));
        child.kill().unwrap();
        child.wait().unwrap();
        let part = std::fs::metadata(site.state.path().join("download.part")).map_or(0, |part| part.len());
        resumed += u32::from(part > 0);
        // Whatever was cut off: a whole model, the old one or the new one, or none before the first.
        let mut slots = Slots::open(Folder::new(site.state.path()).unwrap()).unwrap().with_factory();
        let limits = Limits { starts: 1_000_000, ..Limits::default() };
        if let Ok((slot, fitted)) = slots.start(&limits) {
            assert_eq!(std::fs::read(slots.disk().path(slot.model())).unwrap(), model(fitted.version, BYTES));
            assert!(fitted.version == version || fitted.version == version - 1, "{} of {version}", fitted.version);
            if fitted.version == version {
                // Its probation would take longer than such a station lives.
                if slots.record().phase != Phase::Good {
                    slots.confirm().unwrap();
                }
                (version, whole) = (version + 1, whole + 1);
                drop(slots);
                publish(version);
            }
        } else {
            assert_eq!(version, 1, "a model was there");
        }
    }
    // Left alone, it comes to the end.
    site.config.probation.cells = 50;
    let _agent = site.start();
    site.good(version);
    assert!(resumed > 0 || kills < 50, "no kill met a download");
    println!("{kills} kills, {resumed} of them in mid-download; {whole} updates came to their end between them");
}

/// A station, until it is killed.
fn live(state: &Path) {
    let port = std::env::var("CELLGATE_TEST_BROKER").unwrap().parse().unwrap();
    let config = UpdateConfig {
        state: state.into(),
        groups: vec!["pilot".into()],
        bandwidth_kb_s: 400,
        spread_s: 0,
        retry_max_s: 1,
        allow_http: true,
        probation: ProbationConfig { cells: 50, starts: 100, ..ProbationConfig::default() },
        ..UpdateConfig::default()
    };
    let _agent = agent(&config, port, &MadeUp::new(100));
    std::thread::sleep(Duration::from_secs(600));
}
