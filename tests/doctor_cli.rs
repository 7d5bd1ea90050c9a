//! `cellgate doctor` as its user sees it.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

mod common;

fn doctor(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cellgate")).arg("doctor").args(args).output().unwrap()
}

fn findings(output: &Output) -> Vec<(String, String)> {
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |check: &serde_json::Value, key: &str| check[key].as_str().unwrap().to_owned();
    json["checks"].as_array().unwrap().iter().map(|check| (text(check, "name"), text(check, "finding"))).collect()
}

fn shown(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_station_with_model_outbox_and_broker_could_run() {
    let folder = tempfile::tempdir().unwrap();
    let model = common::small_model(folder.path(), 64, 16, 24);
    let outbox = folder.path().join("outbox");
    std::fs::create_dir(&outbox).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let broker = listener.local_addr().unwrap().to_string();
    let args = ["--model", shown(&model), "--outbox", shown(&outbox), "--broker", &broker];
    let output = doctor(&[&args[..], &["--json"]].concat());
    let found = findings(&output);
    let of = |name: &str| found.iter().find(|check| check.0 == name).map(|check| check.1.as_str());
    // 20 held-out cells are few.
    assert_eq!((of("model"), of("backbone")), (Some("WARN"), Some("OK")), "{found:?}");
    assert_eq!((of("broker name"), of("broker"), of("outbox")), (Some("OK"), Some("OK"), Some("OK")), "{found:?}");
    assert!(!found.iter().any(|check| check.1 == "FAIL") && output.status.success(), "{found:?}");

    let text = String::from_utf8(doctor(&args).stdout).unwrap();
    assert!(text.contains("WARN  model") && text.contains("→ run `cellgate calibrate` on 100 good cells"), "{text}");
}

#[test]
fn what_is_missing_fails_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let model = common::small_model(folder.path(), 64, 16, 24);
    let mut bytes = std::fs::read(&model).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let damaged = folder.path().join("damaged.cgm");
    std::fs::write(&damaged, bytes).unwrap();
    let none = folder.path().join("none");
    let output = doctor(&["--model", shown(&damaged), "--outbox", shown(&none)]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("FAIL  model") && text.contains("damaged.cgm"), "{text}");
    assert!(text.contains("FAIL  outbox") && text.contains("→ make it for the service's user"), "{text}");
    assert!(text.contains("2 keep the station from running"), "{text}");

    let wrong = doctor(&["--broker", "plc"]);
    assert!(String::from_utf8(wrong.stderr).unwrap().contains("HOST:PORT is needed"));
}
