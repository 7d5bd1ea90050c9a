//! `cellgate demo` as a person runs it, on fewer and smaller images.

use std::path::Path;
use std::process::{Command, Output};

fn demo(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cellgate")).arg("demo").args(arguments).output().unwrap()
}

const SMALL: [&str; 8] = ["--cells", "60", "--size", "96", "--grid", "24", "-k", "10"];

fn run(out: &Path) -> String {
    let output = demo(&[&["--out", out.to_str().unwrap()], SMALL.as_slice()].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The verdicts without their times.
fn verdicts(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| line.starts_with("cell-"));
    lines
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let time = words.iter().position(|word| *word == "ms").unwrap() - 1;
            [&words[..time], &words[time + 1..]].concat().join(" ")
        })
        .collect()
}

#[test]
fn the_demo_judges_its_batch_beside_the_truth_and_the_same_way_twice() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo");
    let text = run(&out);
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("cell-")).collect();
    assert_eq!(lines.len(), 55);
    for (truth, outcome, n) in [("broken: ", "INVALID", 6), ("C dark-spot", "REJECT", 3)] {
        let such: Vec<&&str> = lines.iter().filter(|line| line.contains(truth)).collect();
        assert_eq!(such.len(), n);
        assert!(such.iter().all(|line| line.contains(outcome)), "{such:?}");
    }
    let good = lines.iter().filter(|line| line.trim_end().ends_with(" A"));
    assert!(good.filter(|line| line.contains("PASS")).count() >= 20, "{text}");
    // The table counts what the lines say.
    let row = |name: &str| -> Vec<usize> {
        let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        line.split_whitespace().skip(1).map(|n| n.parse().unwrap()).collect()
    };
    assert_eq!(row("broken"), [0, 0, 0, 6]);
    assert_eq!(row("A").iter().sum::<usize>(), 26);
    assert_eq!(row("A").iter().chain(&row("B")).chain(&row("C")).sum::<usize>(), 49);
    let escapes = row("C")[..2].iter().sum::<usize>();
    assert!(text.contains(&format!("yet passed): {escapes} of ")), "{text}");
    assert_eq!(lines.iter().filter(|line| line.ends_with("← escape")).count(), escapes);

    let html = std::fs::read_to_string(out.join("report.html")).unwrap();
    let judged = lines.iter().filter(|line| !line.contains("INVALID")).count();
    assert_eq!(html.matches("<figure class=tile>").count(), judged);
    let pictures = || std::fs::read_dir(out.join("overlays")).unwrap().count();
    let before = pictures();
    assert!(before >= 10);
    assert!(text.contains("Try next"));

    let again = run(&out);
    assert_eq!(verdicts(&text), verdicts(&again));
    assert_eq!(pictures(), before);
}

#[test]
fn a_folder_of_something_else_and_absent_real_cells_are_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    std::fs::write(folder.path().join("mine.txt"), "mine").unwrap();
    let output = demo(&["--out", path]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("something else") && text.contains("--out"), "{text}");
    let (none, out) = (format!("{path}/none"), format!("{path}/out"));
    let output = demo(&["--elpv", "--data-dir", &none, "--out", &out]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("cellgate data elpv"), "{text}");
    assert!(!Path::new(&out).exists(), "nothing is made before the data is there");
}
