//! `cellgate train` as a person runs it: a classifier from labelled cells, in the model, in the verdict; and what cannot
//! be trained on.
#![allow(missing_docs)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

fn cellgate(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cellgate")).args(args).output().expect("running cellgate")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A folder with a small model (`m.cgm`) and 60 labelled cells, 20 of each class.
fn fitted() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (good, cells, model) = (path("good"), path("cells"), path("m.cgm"));
        for (out, more) in [(&good, ["--class", "A"].as_slice()), (&cells, &["--balanced", "--seed", "5"])] {
            let made =
                cellgate(&[&["synth", "-o", text(out), "--count", "60", "--size", "160", "--no-masks"], more].concat());
            assert!(made.status.success(), "{}", said(&made));
        }
        let small = ["--size", "64", "--grid", "16", "-k", "16", "--shrinkage", "relative:0.05", "--holdout", "0.3"];
        let fit = cellgate(&[&["fit", text(&good), "-o", text(&model)], small.as_slice()].concat());
        assert!(fit.status.success(), "{}", said(&fit));
        folder
    });
    folder.path()
}

/// A short training of the network, and of the kernel machine.
const SHORT: [&str; 6] = ["--steps", "40", "--batch", "8", "--flips", "1"];

fn train(out: &Path, more: &[&str]) -> Output {
    let (model, cells) = (fitted().join("m.cgm"), fitted().join("cells"));
    cellgate(&[&["train", text(&model), text(&cells), "-o", text(out), "--unseen"], more].concat())
}

fn verdicts(model: &Path, cells: &Path) -> Vec<serde_json::Value> {
    let output = cellgate(&["inspect", text(model), text(cells), "--json"]);
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_trained_model_judges_by_its_classifier() {
    let dir = tempfile::tempdir().unwrap();
    let (out, metrics) = (dir.path().join("judged.cgm"), dir.path().join("steps.jsonl"));
    let more = [SHORT.as_slice(), &["--json", "--metrics", text(&metrics), "--max-escape-rate", "0.4"]].concat();
    let trained = train(&out, &more);
    assert!(trained.status.success(), "{}", said(&trained));
    let told: serde_json::Value = serde_json::from_slice(&trained.stdout).unwrap();
    assert_eq!(told["cells"], serde_json::json!([20, 20, 20]));
    let point = &told["operating_point"];
    assert!(point["escapes"].as_u64().unwrap() <= 1, "{point}");
    let steps: Vec<serde_json::Value> =
        std::fs::read_to_string(&metrics).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(steps.len() as u64, told["steps"].as_u64().unwrap());
    assert!(steps.iter().enumerate().all(|(at, step)| step["step"] == at as u64 + 1));
    assert!(steps[19]["validation"]["accuracy"].is_f64() && steps[18]["validation"].is_null());

    let verdicts = verdicts(&out, &fitted().join("cells"));
    let mut right = 0;
    for verdict in &verdicts {
        let (not_a, c) = (verdict["p_not_a"].as_f64().unwrap(), verdict["p_c"].as_f64().unwrap());
        assert!((0.0..=1.0).contains(&c) && c <= not_a + 1e-4, "{verdict}");
        assert!(verdict["classifier_us"].as_u64().unwrap() > 0);
        if verdict["outcome"] == "PASS" {
            assert!(c < point["reject_from"].as_f64().unwrap() + 1e-4, "{verdict}");
        }
        let label = verdict["id"].as_str().unwrap().chars().find(|c| c.is_ascii_uppercase()).unwrap();
        right += usize::from((label == 'C') == (verdict["outcome"] == "REJECT"));
    }
    assert!(verdicts.len() == 60 && right >= 48, "{right} of 60");

    // Shown, calibrated anew without losing the classifier, exported.
    let shown = cellgate(&["model", "show", text(&out)]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("classifier"), "{}", said(&shown));
    let again = dir.path().join("again.cgm");
    let good = fitted().join("good");
    let calibrated = cellgate(&["calibrate", text(&out), text(&good), "-o", text(&again)]);
    assert!(calibrated.status.success(), "{}", said(&calibrated));
    let onnx = dir.path().join("judge.onnx");
    let exported = cellgate(&["model", "export-classifier", text(&again), "-o", text(&onnx)]);
    assert!(exported.status.success(), "{}", said(&exported));
    assert!(std::fs::metadata(&onnx).unwrap().len() > 40_000_000);
}

/// The whole image on larger planes, a few steps of fine-tuning: the model says so, and judges by them.
#[test]
fn a_network_is_fine_tuned_on_larger_planes() {
    let dir = tempfile::tempdir().unwrap();
    let (out, onnx) = (dir.path().join("judged.cgm"), dir.path().join("judge.onnx"));
    let refused = train(&out, &["--plane-side", "96"]);
    assert!(!refused.status.success() && said(&refused).contains("[64, 128, 256, 512]"), "{}", said(&refused));
    let refused = train(&out, &["--plane-side", "128", "--judge", "kernel"]);
    assert!(!refused.status.success() && said(&refused).contains("--plane-side"), "{}", said(&refused));

    let more = [SHORT.as_slice(), &["--plane-side", "128", "--judge", "network"]].concat();
    let trained = train(&out, &more);
    assert!(trained.status.success(), "{}", said(&trained));
    let shown = cellgate(&["model", "show", text(&out)]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("a network on 2 planes of 128×128"), "{}", said(&shown));
    let verdicts = verdicts(&out, &fitted().join("cells"));
    let p = |verdict: &serde_json::Value| verdict["p_c"].as_f64().unwrap();
    let of = |label: char| {
        let cells = verdicts.iter().filter(|v| v["id"].as_str().unwrap().contains(label));
        cells.clone().map(p).sum::<f64>() / cells.count() as f64
    };
    assert!(verdicts.len() == 60 && of('C') > of('A') + 0.2, "{} for C, {} for A", of('C'), of('A'));
    let exported = cellgate(&["model", "export-classifier", text(&out), "-o", text(&onnx)]);
    assert!(String::from_utf8_lossy(&exported.stdout).contains("2 planes of 128×128"), "{}", said(&exported));
}

#[test]
fn a_checkpoint_of_the_same_training_is_gone_on_with_and_any_other_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (out, checkpoint) = (dir.path().join("judged.cgm"), dir.path().join("t.ckpt"));
    std::fs::write(&checkpoint, b"not a checkpoint").unwrap();
    let more = [SHORT.as_slice(), &["--judge", "network", "--checkpoint", text(&checkpoint)]].concat();
    let refused = train(&out, &more);
    assert!(!refused.status.success() && said(&refused).contains("is not a checkpoint"), "{}", said(&refused));
    let mut damaged = b"CELLGCK1".to_vec();
    damaged.extend([7; 100]);
    std::fs::write(&checkpoint, damaged).unwrap();
    let refused = train(&out, &more);
    assert!(!refused.status.success() && said(&refused).contains("is damaged"), "{}", said(&refused));
    assert!(!out.exists());
    std::fs::remove_file(&checkpoint).unwrap();
    let trained = train(&out, &more);
    assert!(trained.status.success(), "{}", said(&trained));
    assert!(out.exists() && !checkpoint.exists(), "a finished training leaves no checkpoint");
}

/// A change of a line of labels.csv, by its number.
type Change = dyn Fn(usize, &str) -> String;

/// The labelled cells with another labels.csv.
fn relabelled(folder: &Path, change: impl Fn(usize, &str) -> String) -> PathBuf {
    let cells = folder.join("cells");
    std::fs::create_dir(&cells).unwrap();
    for entry in std::fs::read_dir(fitted().join("cells")).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_file() {
            std::fs::copy(entry.path(), cells.join(entry.file_name())).unwrap();
        }
    }
    let rows = std::fs::read_to_string(fitted().join("cells/labels.csv")).unwrap();
    let rows: Vec<String> = rows.lines().enumerate().map(|(at, row)| change(at, row)).collect();
    std::fs::write(cells.join("labels.csv"), rows.join("\n")).unwrap();
    cells
}

#[test]
fn what_cannot_be_trained_on_is_refused_with_the_reason() {
    let one_class = |at: usize, row: &str| {
        let mut fields: Vec<&str> = row.split(',').collect();
        if at > 0 {
            fields[1] = "A";
        }
        fields.join(",")
    };
    let no_file = |at: usize, row: &str| if at == 7 { "nowhere.png,A".to_string() } else { row.to_string() };
    let no_class = |at: usize, row: &str| if at == 7 { "x.png,D".to_string() } else { row.to_string() };
    let cases: [(&Change, &str); 3] =
        [(&one_class, "0 labelled cells of class B"), (&no_file, "nowhere.png"), (&no_class, "line 8")];
    for (change, why) in cases {
        let dir = tempfile::tempdir().unwrap();
        let cells = relabelled(dir.path(), change);
        let out = dir.path().join("out.cgm");
        let refused = cellgate(&["train", text(&fitted().join("m.cgm")), text(&cells), "-o", text(&out)]);
        assert!(!refused.status.success() && said(&refused).contains(why), "{why}: {}", said(&refused));
        assert!(!out.exists());
    }

    // Fifteen other good cells say too little beside the model's own.
    let (model, cells) = (fitted().join("m.cgm"), fitted().join("cells"));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.cgm");
    let refused = cellgate(&["train", text(&model), text(&cells), "-o", text(&out)]);
    assert!(!refused.status.success() && said(&refused).contains("--unseen"), "{}", said(&refused));

    // Images that cannot be read are skipped and named; too many of them end it.
    let dir = tempfile::tempdir().unwrap();
    let cells = relabelled(dir.path(), |_, row| row.to_string());
    let mut images: Vec<PathBuf> = std::fs::read_dir(&cells).unwrap().map(|e| e.unwrap().path()).collect();
    images.retain(|path| path.extension().is_some_and(|e| e == "png"));
    images.sort();
    std::fs::write(&images[3], b"\x89PNG\r\n\x1a\nno more").unwrap();
    let out = dir.path().join("out.cgm");
    let model = fitted().join("m.cgm");
    let run = || cellgate(&["train", text(&model), text(&cells), "-o", text(&out), "--judge", "kernel", "--unseen"]);
    let trained = run();
    assert!(trained.status.success() && said(&trained).contains("skipping"), "{}", said(&trained));
    std::fs::remove_file(&out).unwrap();
    images.iter().take(12).for_each(|path| std::fs::write(path, b"no image").unwrap());
    let refused = run();
    assert!(!refused.status.success() && said(&refused).contains("cannot be judged"), "{}", said(&refused));
    assert!(!out.exists());
}
