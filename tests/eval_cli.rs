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
    assert_eq!(result["binarisations"].as_array().unwrap().len(), 3);
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

/// The mistakes on a page: shown, and left out.
fn mistakes(html: &str, title: &str) -> u64 {
    let Some((_, section)) = html.split_once(&format!("<h2>{title}</h2>")) else { return 0 };
    let section = section.split_once("</section>").unwrap().0;
    let shown = section.matches("<figure").count() as u64;
    let rest = section.split_once(" more left out").map(|(before, _)| before.rsplit_once("; ").unwrap().1);
    shown + rest.map_or(0, |count| count.parse::<u64>().unwrap())
}

#[test]
fn the_mistakes_shown_are_those_counted_with_types_apart_too() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("cells");
    cells(&data, "60");
    // Two types, in place of kinds of defect, which good cells have not.
    let path = data.join("labels.csv");
    let rows = std::fs::read_to_string(&path).unwrap();
    let typed = rows.lines().skip(1).enumerate().map(|(i, row)| {
        let fields: Vec<&str> = row.split(',').collect();
        format!("{},{},{}\n", fields[0], fields[1], if i / 3 % 2 == 0 { "mono" } else { "poly" })
    });
    std::fs::write(&path, format!("file,label,type\n{}", typed.collect::<String>())).unwrap();
    let page = dir.path().join("page.html");
    let mut args = vec!["eval", "--data", data.to_str().unwrap(), "--json", "--report", page.to_str().unwrap()];
    args.extend(["--per-type", "--mistakes", "2"]);
    args.extend(SMALL);
    args.push("3");
    let output = cellgate(&args);
    assert!(output.status.success(), "{}", text(&output));
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let confusion = &result["binarisations"][1]["groups"][0]["confusion"];
    let html = std::fs::read_to_string(&page).unwrap();
    let wrong = [("False passes", "fn"), ("False rejects", "fp")]
        .map(|(title, key)| (mistakes(&html, title), confusion[key].as_u64().unwrap()));
    assert!(wrong.iter().all(|(shown, counted)| shown == counted), "{wrong:?}");
    assert!(wrong.iter().any(|(_, counted)| *counted > 0), "no mistake to show: the test shows nothing");
}

#[test]
fn options_that_would_do_nothing_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("cells");
    cells(&data, "12");
    let path = data.to_str().unwrap();
    for (args, says) in [
        (["eval", "--data", path, "--overkill", "0.1"], "--overkill"),
        (["eval", "--data", path, "--holdout", "0.1"], "--holdout"),
    ] {
        let output = cellgate(&args);
        assert!(!output.status.success() && text(&output).contains(says), "{}", text(&output));
    }
    let model = dir.path().join("m.cgm");
    let fit = ["fit", path, "-o", model.to_str().unwrap(), "--preprocess", "none", "--threshold", "60"];
    let output = cellgate(&fit);
    assert!(!output.status.success() && text(&output).contains("--threshold"), "{}", text(&output));

    cells(&data, "90");
    let small = &SMALL[..SMALL.len() - 1];
    let output = cellgate(&[&["fit", path, "-o", model.to_str().unwrap(), "--holdout", "0.5"], small].concat());
    assert!(output.status.success(), "{}", text(&output));
    let output = cellgate(&["eval", "--data", path, "--model", model.to_str().unwrap(), "--sigma", "2"]);
    assert!(!output.status.success() && text(&output).contains("would change nothing"), "{}", text(&output));
}

#[test]
fn a_mask_of_another_size_than_its_image_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("cells");
    cells(&data, "24");
    let mask = std::fs::read_dir(data.join("masks")).unwrap().next().unwrap().unwrap().path();
    image::GrayImage::new(80, 160).save(&mask).unwrap();
    let mut args = vec!["eval", "--data", data.to_str().unwrap()];
    args.extend(SMALL);
    args.push("2");
    let output = cellgate(&args);
    let said = text(&output);
    assert!(!output.status.success() && said.contains("80×160") && said.contains("160×160"), "{said}");
    assert!(said.contains(mask.file_name().unwrap().to_str().unwrap()), "{said}");
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

#[test]
fn other_systems_answer_the_same_questions() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("cells");
    cells(&data, "60");
    let page = dir.path().join("page.html");
    for (method, more) in
        [("svd", vec![]), ("autoencoder-otsu", vec!["--epochs", "2"]), ("resnet50", vec!["--epochs", "1"])]
    {
        let mut args = vec!["eval", "--data", data.to_str().unwrap(), "--method", method, "--side", "32", "--json"];
        args.extend(["--folds", "3", "--report", page.to_str().unwrap()]);
        args.extend(more);
        let output = cellgate(&args);
        assert!(output.status.success(), "{method}: {}", text(&output));
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(result["settings"][0]["value"], method);
        let usable = &result["binarisations"][1];
        assert_eq!(usable["binarisation"], "usable");
        let all = &usable["groups"][0];
        assert_eq!((all["cells"].as_u64(), all["defective"].as_u64()), (Some(60), Some(20)), "{method}");
        assert!(all["mean"]["auroc"].as_f64().is_some(), "{method}");
        // What was trained little is said to have been.
        let says = result["caveats"].as_array().unwrap().iter().any(|text| text.as_str().unwrap().contains("32×32"));
        assert_eq!(says, method != "svd", "{method}");
        let html = std::fs::read_to_string(&page).unwrap();
        assert!(html.contains(method) && html.contains("<svg"), "{method}");
    }
}

#[test]
fn systems_refuse_what_they_cannot_do() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("cells");
    cells(&data, "12");
    let path = data.to_str().unwrap();
    let cases: [(&[&str], &str); 6] = [
        (&["--method", "alexnet"], "autoencoder-amplitude"),
        (&["--method", "svd", "--epochs", "2"], "--epochs"),
        (&["--method", "svd", "--per-type"], "--per-type"),
        (&["--method", "resnet50", "-k", "50"], "threshold"),
        (&["--method", "resnet50", "--side", "48"], "64"),
        (&["--side", "64"], "--method"),
    ];
    for (args, says) in cases {
        let output = cellgate(&[&["eval", "--data", path][..], args].concat());
        assert!(!output.status.success() && text(&output).contains(says), "{args:?}: {}", text(&output));
    }
}

#[test]
fn the_table_of_systems_counts_what_torchvision_has() {
    let output = cellgate(&["eval", "--systems", "--json"]);
    assert!(output.status.success(), "{}", text(&output));
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let find = |name: &str| rows.as_array().unwrap().iter().find(|row| row["system"] == name).unwrap().clone();
    assert_eq!(find("resnet50")["full"]["parameters"], 25_557_032);
    assert_eq!(find("resnext101")["full"]["parameters"], 88_791_336);
    assert_eq!(find("vgg11")["here"]["side"], 32);
    let output = cellgate(&["eval", "--systems"]);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("132.863") && table.contains("semacnn"), "{table}");
    assert!(!cellgate(&["eval"]).status.success());
}
