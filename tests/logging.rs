//! What the program writes to stderr, to people and to the journal. The test runs itself again as the program that logs.

use std::io::Read;
use std::os::fd::AsFd;
use std::process::Command;

use ::log::{LevelFilter, debug, error, info, warn};
use cellgate::operations::{Level, log};

#[path = "common/counting.rs"]
mod counting;

/// What the program that logs writes, with this environment; `journal`: its stderr is what JOURNAL_STREAM names.
fn written(journal: bool, environment: &[(&str, &str)]) -> String {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["the_program_that_logs", "--exact", "--nocapture"]).env("CELLGATE_TEST_LOGS", "1");
    command.env_remove("CELLGATE_LOG").env("JOURNAL_STREAM", "1:1").envs(environment.iter().copied());
    if journal {
        let stat = rustix::fs::fstat(writer.as_fd()).unwrap();
        command.env("JOURNAL_STREAM", format!("{}:{}", stat.st_dev, stat.st_ino));
    }
    let mut child = command.stdout(std::process::Stdio::null()).stderr(writer).spawn().unwrap();
    drop(command);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
    text
}

#[test]
fn the_program_that_logs() {
    if std::env::var_os("CELLGATE_TEST_LOGS").is_none() {
        return;
    }
    log::start(Level(LevelFilter::Info)).unwrap();
    warn!("the camera gives nothing: waited_ms={}", 500);
    let before = counting::allocations();
    for i in 0..1000 {
        error!("lost it: try={i}");
    }
    // Ten lines were written; the harness may have something to remember meanwhile.
    assert!(counting::allocations() - before < 10, "logging allocates");
    assert_eq!(log::suppressed(), 990);
    debug!("detail");
    info!(target: "rumqttc", "chatter");
    let thread = std::thread::Builder::new().name("doomed".into());
    assert!(thread.spawn(|| panic!("no way\nout")).unwrap().join().is_err());
    assert!(log::start(Level(LevelFilter::Info)).is_err(), "started twice");
}

#[test]
fn people_and_the_journal_get_lines_and_no_flood() {
    let text = written(false, &[]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "WARN logging: the camera gives nothing: waited_ms=500");
    assert_eq!(lines[10], "ERROR logging: lost it: try=9");
    assert!(
        lines[11]
            .starts_with("ERROR cellgate::operations::log: a thread panicked: no way\u{fffd}out thread=doomed at=")
    );
    assert_eq!(lines.len(), 12, "{text}");
    let text = written(true, &[]);
    assert!(text.starts_with("<4>logging: the camera") && text.contains("\n<3>logging: lost it: try=0\n"), "{text}");
    // Ours is this program here.
    assert!(written(false, &[("CELLGATE_LOG", "trace")]).contains("DEBUG logging: detail"));
}
