//! `cellgate eval` as a person runs it, on a small synthetic set with masks.
#![allow(missing_docs)]

use std::path::Path;
use std::process::{Command, Output};

fn cellgate(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cellgate")).args(args).output().expect("running cellgate")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn cells(dir: &Path, count: &str) {
    let out = dir.to_str().unwrap();
    let made = cellgate(&["synth", "-o", out, "--count", count, "--size", "160", "--balanced", "--seed", "5"]);
    assert!(made.status.success(), "{}", text(&made));
}

const SMALL: [&str; 9] = ["--size", "64", "--grid", "16", "-k", "16", "--shrinkage", "relative:0.05", "--folds"];

#[test]
fn figures_and_page_of_a_small_set() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("cells");
    cells(&data, "60");
    let page = dir.path().join("page.html");
    let mut args = vec!["eval", "--data", data.to_str().unwrap(), "--json", "--report", page.to_str().unwrap()];
    args.extend(SMALL);
    args.push("3");
    let output = cellgate(&args);
    assert!(output.status.success(), "{}", text(&output));
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["images"], 60);
    assert_eq!(result["binarisations"].as_array().unwrap().len(), 2);
    let usable = &result["binarisations"][1];
    assert_eq!(usable["binarisation"], "usable");
    let all = &usable["groups"][0];
    assert_eq!((all["cells"].as_u64(), all["defective"].as_u64()), (Some(60), Some(20)));
    // Class C against the rest is easy for any working chain, at any size.
    assert!(all["mean"]["auroc"].as_f64().unwrap() > 0.7, "{all:#}");
    let confusion: u64 = ["tp", "fp", "tn", "fn"]
        .iter()
        .map(|key| all["confusion"].get(*key).or(all["confusion"].get("fn_")).and_then(|n| n.as_u64()).unwrap())
        .sum();
    assert_eq!(confusion, 60);
    assert!(result["pixel"]["auroc"].as_f64().unwrap() > 0.7, "{}", result["pixel"]["auroc"]);
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(html.contains("<svg") && html.contains("data:image/") && !html.contains("http://"));

    // The same command gives the same figures.
    let again: serde_json::Value = serde_json::from_slice(&cellgate(&args).stdout).unwrap();
    assert_eq!(again["binarisations"], result["binarisations"]);
    assert_eq!(again["pixel"], result["pixel"]);
}

#[test]
fn data_that_cannot_be_evaluated_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("cells");
    cells(&data, "12");
    let path = data.to_str().unwrap();
    let failed = |args: &[&str], what: &str| {
        let output = cellgate(args);
        assert!(!output.status.success());
        assert!(text(&output).contains(what), "{}", text(&output));
    };
    failed(&["eval", "--data", path, "--report", "no/such/folder/x.html"], "no/such/folder/x.html cannot be written");
    failed(&["eval", "--data", path, "--size", "100"], "a multiple of 32");
    let labels = data.join("labels.csv");
    let rows = std::fs::read_to_string(&labels).unwrap();
    let good: String =
        rows.lines().filter(|l| !l.contains(",B,") && !l.contains(",C,")).fold(String::new(), |a, l| a + l + "\n");
    std::fs::write(&labels, good).unwrap();
    failed(&["eval", "--data", path], "label");
    std::fs::remove_file(&labels).unwrap();
    failed(&["eval", "--data", path], "label");
    failed(&["eval", "--data", dir.path().join("none").to_str().unwrap()], "none");
}
