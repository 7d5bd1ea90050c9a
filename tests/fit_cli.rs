//! `cellgate fit`, `merge`, `calibrate` and `model show` as a person runs them, on small synthetic cells.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use cellgate::model::{Model, Settings};
use cellgate::pipeline::fitting::{Cell, Plan};
use tempfile::TempDir;

/// Makes every fit of these tests quick.
const SMALL: [&str; 6] = ["--size", "64", "--grid", "8", "-k", "8"];
const CELLS: usize = 90;
/// A share that leaves enough cells for a calibration.
const HOLDOUT: f64 = 0.25;

/// Ninety good cells, drawn once.
static DRAWN: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    common::good_cells(folder.path(), CELLS as u64);
    folder
});

/// A folder of its own for one test.
struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Copies of the ninety cells, which a test may change.
    fn cells(&self) -> PathBuf {
        let folder = self.path("cells");
        std::fs::create_dir(&folder).unwrap();
        for entry in std::fs::read_dir(DRAWN.path()).unwrap() {
            let entry = entry.unwrap();
            std::fs::hard_link(entry.path(), folder.join(entry.file_name())).unwrap();
        }
        folder
    }
}

fn command(verb: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cellgate"));
    command.arg(verb).env_remove("CELLGATE_DATA");
    command
}

fn fit(data: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = command("fit");
    command.arg(data).arg("-o").arg(out).args(SMALL).args(["--holdout", &HOLDOUT.to_string()]).args(more);
    command
}

fn merge(partials: &[PathBuf], out: &Path, more: &[&str]) -> Command {
    let mut command = command("merge");
    command.args(partials).arg("-o").arg(out).args(more);
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn succeeds(mut command: Command) -> String {
    let output = command.output().unwrap();
    let text = text(&output);
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

#[track_caller]
fn fails(mut command: Command, says: &[&str]) {
    let output = command.output().unwrap();
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{command:?}: {text}");
    says.iter().for_each(|part| assert!(text.contains(part), "{text:?} does not say {part:?}"));
    assert!(!text.contains("panicked"), "{text}");
}

#[track_caller]
fn assert_same_statistics(a: &Model, b: &Model) {
    let (x, y) = (a.statistics(), b.statistics());
    assert_eq!(a.projection(), b.projection());
    assert_eq!(x.mean(), y.mean());
    assert_eq!(x.row_scale(), y.row_scale());
    assert_eq!(x.factors().len(), y.factors().len());
    assert!((0..x.factors().len()).all(|i| x.factors().get(i).to_bits() == y.factors().get(i).to_bits()));
    assert_eq!(a.header().calibration, b.header().calibration);
}

/// Whether two models are one but for rounding.
#[track_caller]
fn assert_near(a: &Model, b: &Model) {
    let (x, y) = (a.statistics(), b.statistics());
    assert_eq!(a.projection(), b.projection());
    assert!(x.mean().iter().zip(y.mean()).all(|(a, b)| (a - b).abs() < 1e-6), "the means differ");
    for position in 0..x.grid() * x.grid() {
        let (x, y) = (x.dense(position), y.dense(position));
        let scale = x.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let far = x.iter().zip(&y).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / scale;
        assert!(far < 1e-5, "position {position}: factors {far:e} apart");
    }
    let [a, b] = [a, b].map(|m| m.header().calibration.clone().unwrap());
    assert_eq!((a.kind, a.cells, a.overkill), (b.kind, b.cells, b.overkill));
    for (x, y) in [(a.threshold, b.threshold), (a.class_c, b.class_c), (a.region, b.region)] {
        assert!((x - y).abs() < 1e-4 * y, "{a:?} and {b:?}");
    }
}

fn plan(folder: &Path, names: impl IntoIterator<Item = String>) -> Plan {
    let cells = names.into_iter().map(|id| Cell::file(&id, folder.join(&id))).collect();
    Plan::new(cells, &Settings { holdout: HOLDOUT, ..Settings::default() })
}

/// Names of cells that go into the statistics, not into the calibration, and come first in the data set.
fn fitted_names(count: usize) -> Vec<String> {
    plan(Path::new(""), (0..200).map(|i| format!("a{i:03}.pgm"))).fit.into_iter().take(count).map(|c| c.id).collect()
}

#[test]
fn defective_cells_never_enter_a_fit_unsaid() {
    let bench = Bench::new();
    let (cells, out) = (bench.cells(), bench.path("m.cgm"));
    let rows = |label: &dyn Fn(usize) -> &'static str| {
        (0..CELLS).fold("file,label\n".to_string(), |text, i| format!("{text}cell{i:04}.pgm,{}\n", label(i)))
    };
    // Absolute paths in a list meet the labels beside it.
    let list = cells.join("list.txt");
    let paths = (0..CELLS).fold(String::new(), |text, i| format!("{text}{}/cell{i:04}.pgm\n", cells.display()));
    std::fs::write(&list, paths).unwrap();
    std::fs::write(cells.join("labels.csv"), rows(&|_| "C")).unwrap();
    fails(fit(&list, &out, &[]), &["no good cell"]);
    std::fs::write(cells.join("labels.csv"), rows(&|i| if i < 10 { "C" } else { "A" })).unwrap();
    let said = succeeds(fit(&list, &out, &[]));
    assert!(said.contains("80 of 90 cells are good by") && said.contains("labels.csv"), "{said}");
    std::fs::write(cells.join("labels.csv"), "file,label\ncell0000.pgm,\n").unwrap();
    fails(fit(&cells, &out, &[]), &["labels none of the 90 images", "labels.csv"]);
    std::fs::remove_file(cells.join("labels.csv")).unwrap();
    let said = succeeds(fit(&cells, &out, &[]));
    assert!(said.contains("all 90 are taken as good"), "{said}");
}

#[test]
fn a_fit_makes_a_model_that_show_explains() {
    let bench = Bench::new();
    let (cells, out) = (bench.cells(), bench.path("line1.cgm"));
    let said = succeeds(fit(&cells, &out, &["--copies", "1"]));
    let held = plan(&cells, (0..CELLS).map(|i| format!("cell{i:04}.pgm"))).held_out.len();
    let fitted = CELLS - held;
    for part in [&format!("{} images", 2 * fitted), "threshold: top distance", &format!("of {held} held-out")] {
        assert!(said.contains(part), "{said:?} does not say {part:?}");
    }
    let names: Vec<_> = std::fs::read_dir(bench.0.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "something else was left behind: {names:?}");

    let mut show = command("model");
    show.arg("show").arg(&out);
    let shown = succeeds(show);
    for part in [
        "backbone",
        "cells: ",
        &format!("{fitted} good cells, {} images, 0 skipped", 2 * fitted),
        "64×64, border found",
        "k = 8, stages 1,2,3,4, seed 1",
        "8×8 positions, absolute:0.01, factors F16",
        &format!("{held} good cells; class A up to"),
        "section      factors",
        "every byte checked",
    ] {
        assert!(shown.contains(part), "{shown:?} does not say {part:?}");
    }
    let mut show = command("model");
    show.arg("show").arg(&out).arg("--json");
    let json: serde_json::Value = serde_json::from_str(&succeeds(show)).unwrap();
    let model = Model::open(&out).unwrap();
    assert_eq!(json["model"], model.id().to_string());
    assert_eq!(json["settings"]["grid"], 8);
    assert_eq!(json["calibration"]["cells"], held);
    assert_eq!(json["sections"].as_array().unwrap().len(), 4);

    // The same command gives the same model; one thread or three make no difference.
    let again = bench.path("again.cgm");
    let said = succeeds(fit(&cells, &again, &["--copies", "1", "--json", "--threads", "3"]));
    let report: serde_json::Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    assert_eq!(report["images"], 2 * fitted);
    assert_same_statistics(&model, &Model::open(&again).unwrap());
    assert!(report["threshold"].as_f64().unwrap() > 0.0);
}

#[test]
fn shards_merged_in_any_order_equal_the_single_run() {
    let bench = Bench::new();
    let (cells, single) = (bench.cells(), bench.path("single.cgm"));
    let more = ["--copies", "1", "--f32"];
    succeeds(fit(&cells, &single, &more));
    let single = Model::open(&single).unwrap();
    let partials: Vec<PathBuf> = (0..3)
        .map(|i| {
            let out = bench.path(&format!("s{i}.cgp"));
            let said = succeeds(fit(&cells, &out, &[&more[..], &["--shard", &format!("{i}/3")]].concat()));
            assert!(said.contains("partial fit of"), "{said}");
            out
        })
        .collect();
    let merged = |order: [usize; 3], name: &str| {
        let out = bench.path(name);
        succeeds(merge(&order.map(|i| partials[i].clone()), &out, &[]));
        Model::open(&out).unwrap()
    };
    let forward = merged([0, 1, 2], "forward.cgm");
    assert_near(&forward, &single);
    assert_eq!(forward.header().provenance.images, single.header().provenance.images);
    assert_eq!(forward.header().provenance.list, single.header().provenance.list);
    assert_same_statistics(&forward, &merged([2, 0, 1], "backward.cgm"));

    let out = bench.path("none.cgm");
    let some = |which: &[usize]| which.iter().map(|&i| partials[i].clone()).collect::<Vec<_>>();
    fails(merge(&some(&[0, 2]), &out, &[]), &["shards 1 of 3 are missing", "--shard i/3"]);
    fails(merge(&some(&[0, 1, 1, 2]), &out, &[]), &["s1.cgp", "shard 1/3 is there twice"]);
    let mut damaged = std::fs::read(&partials[1]).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 4;
    let broken = bench.path("broken.cgp");
    std::fs::write(&broken, &damaged).unwrap();
    fails(merge(&[partials[0].clone(), broken, partials[2].clone()], &out, &[]), &["broken.cgp", "damaged"]);
    fails(merge(&[partials[0].clone(), bench.path("single.cgm")], &out, &[]), &["single.cgm", "not a partial"]);
    for (name, more, what) in [
        ("seed.cgp", &["--copies", "1", "--f32", "--seed", "2", "--shard", "1/3"][..], "settings"),
        ("shards.cgp", &["--copies", "1", "--f32", "--shard", "1/4"][..], "number of shards"),
    ] {
        let other = bench.path(name);
        succeeds(fit(&cells, &other, more));
        fails(merge(&[partials[0].clone(), other, partials[2].clone()], &out, &[]), &[name, what, "differs"]);
    }
    // One cell less: the shards would not cover the data set.
    std::fs::remove_file(cells.join("cell0089.pgm")).unwrap();
    let other = bench.path("cells.cgp");
    succeeds(fit(&cells, &other, &["--copies", "1", "--f32", "--shard", "1/3"]));
    let what = ["cells.cgp", "list of cells", "differs"];
    fails(merge(&[partials[0].clone(), other, partials[2].clone()], &out, &[]), &what);
    assert!(!out.exists());

    // On a machine that has the partials but not the cells.
    std::fs::rename(&cells, bench.path("moved")).unwrap();
    fails(merge(&partials, &out, &[]), &["--calibrate DIR or --no-calibration"]);
    succeeds(merge(&partials, &out, &["--no-calibration"]));
    assert_eq!(Model::open(&out).unwrap().header().calibration, None);
    assert!(
        succeeds({
            let mut show = command("model");
            show.arg("show").arg(&out);
            show
        })
        .contains("calibrat")
    );
    succeeds(merge(&partials, &out, &["--calibrate", bench.path("moved").to_str().unwrap()]));
    assert_eq!(Model::open(&out).unwrap().header().calibration.as_ref().unwrap().cells as usize, CELLS - 1);
}

#[cfg(unix)]
mod interrupted {
    use super::*;
    use std::io::{BufRead, BufReader, Read};
    use std::process::Stdio;

    /// Starts a fit over cells of which the first cannot be read, waits until it says so (its first batch is done
    /// then), and presses Ctrl-C. Gives all that it said.
    fn press(mut command: Command, first: &str) -> (String, Option<i32>) {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains(first) && stderr.read_line(&mut said).unwrap() > 0 {}
        let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        stderr.read_to_string(&mut said).unwrap();
        (said, child.wait().unwrap().code())
    }

    #[test]
    fn it_leaves_a_partial_and_goes_on_to_the_same_model() {
        let bench = Bench::new();
        let cells = bench.cells();
        let broken = &fitted_names(1)[0];
        std::fs::write(cells.join(broken), "this is no image").unwrap();
        let more = ["--copies", "8"];
        let (out, partial) = (bench.path("m.cgm"), bench.path("m.cgm.partial"));
        let (said, code) = press(fit(&cells, &out, &more), &format!("skipping {broken}"));
        assert_eq!(code, Some(1), "{said}");
        for part in ["interrupted after", "m.cgm.partial keeps them", "same command"] {
            assert!(said.contains(part), "{said:?} does not say {part:?}");
        }
        assert!(partial.is_file() && !out.exists(), "{said}");

        // Other settings, another backbone's or other cells' partials are not gone on with.
        fails(fit(&cells, &out, &["--copies", "7"]), &["m.cgm.partial", "other settings", "remove it"]);
        fails(fit(&cells, &out, &["--copies", "8", "--seed", "9"]), &["m.cgm.partial", "other settings"]);
        let damaged = bench.path("d.cgm.partial");
        std::fs::write(&damaged, &std::fs::read(&partial).unwrap()[..3000]).unwrap();
        fails(fit(&cells, &bench.path("d.cgm"), &more), &["d.cgm.partial", "damaged"]);

        // Cells that were lost before the interruption are not forgotten.
        let (mut header, moments) = cellgate::model::partial::read(&partial).unwrap();
        (header.done, header.skipped) = (header.total, 40);
        cellgate::model::partial::write(&bench.path("lost.cgm.partial"), &header, &moments).unwrap();
        fails(fit(&cells, &bench.path("lost.cgm"), &more), &["40 of", "cells could not be used"]);

        let said = succeeds(fit(&cells, &out, &more));
        assert!(said.contains("going on from image"), "{said}");
        assert!(!partial.exists(), "the partial was left behind");
        let straight = bench.path("straight.cgm");
        succeeds(fit(&cells, &straight, &more));
        let [resumed, straight] = [out, straight].map(|path| Model::open(&path).unwrap());
        assert_same_statistics(&resumed, &straight);
        let (mut a, b) = (resumed.header().clone(), straight.header().clone());
        a.provenance.created = b.provenance.created;
        assert_eq!(a, b);
        assert_eq!(a.provenance.skipped, 1);
    }

    #[test]
    fn an_unfinished_shard_is_not_merged_before_it_is_finished() {
        let bench = Bench::new();
        let cells = bench.cells();
        let names: Vec<String> = (0..CELLS).map(|i| format!("cell{i:04}.pgm")).collect();
        // Unreadable, and the first cell of shard 0.
        let broken = plan(&cells, names).shard(0, 2)[0].id.clone();
        std::fs::remove_file(cells.join(&broken)).unwrap();
        std::fs::write(cells.join(&broken), "this is no image").unwrap();
        let shards = [bench.path("s0.cgp"), bench.path("s1.cgp")];
        let shard = |i: usize| fit(&cells, &shards[i], &["--copies", "8", "--shard", &format!("{i}/2")]);
        let (said, code) = press(shard(0), &format!("skipping {broken}"));
        assert_eq!(code, Some(1), "{said}");
        succeeds(shard(1));
        let out = bench.path("m.cgm");
        fails(merge(&shards, &out, &[]), &["s0.cgp", "shard 0/2 has done", "run its fit again"]);
        assert!(succeeds(shard(0)).contains("going on from image"));
        succeeds(merge(&shards, &out, &[]));
        assert_eq!(Model::open(&out).unwrap().header().provenance.skipped, 1);
        // A finished shard is not done again.
        assert!(succeeds(shard(0)).contains("going on from image"));
    }
}

#[test]
fn calibrate_moves_the_threshold_and_nothing_else() {
    let bench = Bench::new();
    let (cells, out, moved) = (bench.cells(), bench.path("m.cgm"), bench.path("moved.cgm"));
    succeeds(fit(&cells, &out, &[]));
    let mut calibrate = command("calibrate");
    calibrate.arg(&out).arg(&cells).arg("-o").arg(&moved).args(["--overkill", "0.3"]);
    let said = succeeds(calibrate);
    assert!(said.contains("on 90 good cells"), "{said}");
    let [before, after] = [&out, &moved].map(|path| Model::open(path).unwrap());
    let [old, new] = [&before, &after].map(|m| m.header().calibration.clone().unwrap());
    assert!(new.threshold < old.threshold, "{} is not below {}", new.threshold, old.threshold);
    assert_eq!((new.cells as usize, new.overkill), (CELLS, 0.3));
    assert_eq!(before.statistics().mean(), after.statistics().mean());
    assert_eq!(before.projection(), after.projection());
    assert_eq!(before.header().provenance, after.header().provenance);

    let calibrate = |data: &Path, more: &[&str]| {
        let mut calibrate = command("calibrate");
        calibrate.arg(&out).arg(data).arg("-o").arg(bench.path("x.cgm")).args(more);
        calibrate
    };
    let few = bench.path("few");
    common::good_cells(&few, 9);
    fails(calibrate(&few, &[]), &["9 good cells are too few"]);
    fails(calibrate(&cells, &["--overkill", "0.7"]), &["`overkill` is 0.7", "from 0 to 0.5"]);
    fails(calibrate(&bench.path("nothing"), &[]), &["nothing"]);
    assert!(!bench.path("x.cgm").exists());
}

#[test]
fn unreadable_images_are_named_and_too_many_are_refused() {
    let bench = Bench::new();
    let (cells, out) = (bench.cells(), bench.path("m.cgm"));
    let names = fitted_names(12);
    let black = cellgate::frame::Frame::new(180, 180, 255);
    std::fs::write(cells.join(&names[0]), b"P5\n180 180\n255\ntoo short").unwrap();
    common::write_pgm(&cells.join(&names[1]), &black);
    let said = succeeds(fit(&cells, &out, &["--copies", "2"]));
    for name in &names[..2] {
        assert_eq!(said.matches(&format!("skipping {name}: ")).count(), 1, "{said}");
    }
    assert_eq!(Model::open(&out).unwrap().header().provenance.skipped, 2);
    std::fs::remove_file(&out).unwrap();
    for name in &names {
        std::fs::write(cells.join(name), "this is no image").unwrap();
    }
    fails(fit(&cells, &out, &[]), &["12 of", "cells could not be used", &names[0]]);
    assert!(!out.exists());
}

#[test]
fn labels_choose_the_good_cells_and_must_be_right() {
    let bench = Bench::new();
    let (cells, out) = (bench.cells(), bench.path("m.cgm"));
    let labels = cells.join("labels.csv");
    // Ten cells are defective and five unlabelled: 75 are left.
    let label = |i: usize| {
        if i < 10 {
            "C"
        } else if i < 85 {
            "A"
        } else {
            ""
        }
    };
    let lines: String = (0..CELLS).map(|i| format!("cell{i:04}.pgm,{}\n", label(i))).collect();
    std::fs::write(&labels, format!("file,label\n{lines}")).unwrap();
    succeeds(fit(&cells, &out, &[]));
    let model = Model::open(&out).unwrap();
    let held = model.header().calibration.as_ref().unwrap().cells;
    assert_eq!(model.header().provenance.cells + u64::from(held), 75);
    std::fs::remove_file(&out).unwrap();

    std::fs::write(&labels, format!("file,label\n{lines}cell0003.pgm,A\n")).unwrap();
    fails(fit(&cells, &out, &[]), &["labels.csv", "\"cell0003.pgm\" is named on line 5 and again on line 92"]);
    std::fs::write(&labels, format!("file,label\n{lines}cell9999.pgm,A\n")).unwrap();
    fails(fit(&cells, &out, &[]), &["labels.csv, line 92", "no image \"cell9999.pgm\""]);
    std::fs::write(&labels, "file,label\ncell0003.pgm,good\n").unwrap();
    fails(fit(&cells, &out, &[]), &["labels.csv, line 2", "\"good\" is no label"]);
    std::fs::write(&labels, "cell0003.pgm,A\n").unwrap();
    fails(fit(&cells, &out, &[]), &["labels.csv", "must name the columns `file` and `label`"]);
    let bad: String = (0..CELLS).map(|i| format!("cell{i:04}.pgm,{}\n", if i % 2 == 0 { "B" } else { "C" })).collect();
    std::fs::write(&labels, format!("file,label\n{bad}")).unwrap();
    fails(fit(&cells, &out, &[]), &["cells has no good cell (label A or 0) among its 90"]);
    assert!(!out.exists());
}

#[test]
fn what_cannot_be_fitted_is_said_before_the_work() {
    let bench = Bench::new();
    let (cells, out, empty) = (bench.cells(), bench.path("m.cgm"), bench.path("empty"));
    std::fs::create_dir(&empty).unwrap();
    fails(fit(&empty, &out, &[]), &["the folder", "is empty", "put PNG"]);
    std::fs::write(empty.join("notes.txt"), "no image").unwrap();
    fails(fit(&empty, &out, &[]), &["no image under"]);
    fails(fit(&bench.path("nowhere"), &out, &[]), &["nowhere"]);
    fails(fit(&cells, &bench.path("none/m.cgm"), &[]), &["none/m.cgm cannot be written", "choose another place"]);
    fails(fit(&cells, &empty, &[]), &["is a folder"]);
    fails(fit(&cells, &out, &["--sigma", "NaN"]), &["`sigma`"]);
    let mut odd = command("fit");
    odd.arg(&cells).arg("-o").arg(&out).args(["--size", "100"]);
    fails(odd, &["multiple of 32"]);
    let mut wide = command("fit");
    wide.arg(&cells).arg("-o").arg(&out).args(["--stages", "1", "-k", "65"]);
    fails(wide, &["`stages` is 64"]);
    assert!(!out.exists());
}

#[test]
fn a_threshold_that_cannot_be_had_is_said_before_the_fit() {
    let bench = Bench::new();
    let (cells, out) = (bench.cells(), bench.path("m.cgm"));
    let mut none = command("fit");
    none.arg(&cells).arg("-o").arg(&out).args(SMALL).args(["--holdout", "0"]);
    fails(none, &["0 of the 90 good cells", "needs 10", "--holdout"]);
    assert!(!out.exists());
}

/// The cells for the threshold turn out to be useless: what was fitted is not lost with it.
#[test]
fn a_fit_without_a_threshold_is_kept_and_finished_later() {
    let bench = Bench::new();
    let (cells, out, spare) = (bench.cells(), bench.path("m.cgm"), bench.path("spare"));
    std::fs::create_dir(&spare).unwrap();
    let names = std::fs::read_dir(&cells).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let held_out: Vec<String> = plan(&cells, names).held_out.into_iter().map(|cell| cell.id).collect();
    for name in &held_out {
        std::fs::rename(cells.join(name), spare.join(name)).unwrap();
        std::fs::write(cells.join(name), "this is no image").unwrap();
    }
    fails(
        fit(&cells, &out, &[]),
        &["m.cgm.partial keeps the fit", "goes on from there", "20 of 20 cells could not be used"],
    );
    assert!(!out.exists());
    for name in &held_out {
        std::fs::rename(spare.join(name), cells.join(name)).unwrap();
    }
    assert!(succeeds(fit(&cells, &out, &[])).contains("going on from image"));
    let straight = bench.path("straight.cgm");
    succeeds(fit(&cells, &straight, &[]));
    assert_same_statistics(&Model::open(&out).unwrap(), &Model::open(&straight).unwrap());
    assert!(!bench.path("m.cgm.partial").exists());
}
