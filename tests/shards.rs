//! A fit in eight shards, each a process of its own as on a cluster: two are killed half-way and started again, and the
//! merged model is to the bit that of a run in which nothing was killed.
#![cfg(unix)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use cellgate::model::Model;
use cellgate::model::partial::{self, Origin};

const SHARDS: usize = 8;
/// Cells that are drawn.
const SYNTH: [&str; 4] = ["--synth", "60", "--synth-size", "180"];
const SMALL: [&str; 11] = ["--size", "64", "--grid", "8", "-k", "8", "--holdout", "0.4", "--threads", "1", "--f32"];
/// Changed copies of each good cell, to make some five batches of a shard.
const COPIES: [&str; 2] = ["--copies", "40"];

fn cellgate(verb: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cellgate"));
    command.arg(verb).env_remove("CELLGATE_DATA");
    command
}

/// The fit of a shard, which keeps what it has after every batch.
fn shard(index: usize, out: &Path) -> Command {
    let mut command = cellgate("fit");
    command
        .args(SYNTH)
        .args(SMALL)
        .args(COPIES)
        .args(["--keep-every", "0", "--shard", &format!("{index}/{SHARDS}"), "-o"])
        .arg(out);
    command
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn succeeds(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    said(&output)
}

fn start(mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn place(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("s{index}.cgp"))
}

/// Starts a shard and kills it, with no warning, once it has kept a part of its images.
fn kill_half_way(index: usize, out: &Path) {
    // On a busy machine it may be done before it can be killed.
    for _ in 0..20 {
        let mut child = start(shard(index, out));
        let patience = Instant::now();
        while !out.exists() && child.try_wait().unwrap().is_none() {
            assert!(patience.elapsed() < Duration::from_secs(120), "shard {index} has kept nothing");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        let status = child.wait().unwrap();
        let (header, moments) = partial::read(out).unwrap();
        if std::os::unix::process::ExitStatusExt::signal(&status) == Some(9) && header.done < header.total {
            assert!(header.done > 0 && moments.count() > 0, "{header:?}");
            return;
        }
        std::fs::remove_file(out).unwrap();
    }
    panic!("shard {index} was done each time before it could be killed");
}

fn merge(order: impl Iterator<Item = usize>, folder: &Path, name: &str) -> Model {
    let out = folder.join(name);
    let mut command = cellgate("merge");
    command.args(order.map(|index| place(folder, index))).arg("-o").arg(&out);
    succeeds(command);
    Model::open(&out).unwrap()
}

#[track_caller]
fn assert_same(a: &Model, b: &Model) {
    let (x, y) = (a.statistics(), b.statistics());
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(x.mean()), bits(y.mean()));
    assert_eq!(bits(x.row_scale()), bits(y.row_scale()));
    assert_eq!(x.factors().len(), y.factors().len());
    assert!((0..x.factors().len()).all(|i| x.factors().get(i).to_bits() == y.factors().get(i).to_bits()));
    let (mut a, b) = (a.header().clone(), b.header());
    a.provenance.created = b.provenance.created;
    assert_eq!(&a, b);
}

#[test]
fn killed_shards_go_on_and_the_merged_model_is_the_same_to_the_bit() {
    let (calm, rough) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (calm, rough) = (calm.path(), rough.path());
    for index in 0..SHARDS {
        succeeds(shard(index, &place(calm, index)));
    }
    kill_half_way(2, &place(rough, 2));
    kill_half_way(5, &place(rough, 5));
    // The others are processes side by side, as on a cluster.
    let others: Vec<Child> =
        (0..SHARDS).filter(|i| ![2, 5].contains(i)).map(|index| start(shard(index, &place(rough, index)))).collect();
    for mut child in others {
        assert!(child.wait().unwrap().success());
    }
    let early = cellgate("merge")
        .args((0..SHARDS).map(|index| place(rough, index)))
        .arg("-o")
        .arg(rough.join("early.cgm"))
        .output()
        .unwrap();
    assert!(!early.status.success() && said(&early).contains("shard 2/8 has done"), "{}", said(&early));
    for index in [2, 5] {
        assert!(succeeds(shard(index, &place(rough, index))).contains("going on from image"));
    }
    let model = merge(0..SHARDS, calm, "model.cgm");
    assert_same(&model, &merge(0..SHARDS, rough, "forward.cgm"));
    assert_same(&model, &merge((0..SHARDS).rev(), rough, "backward.cgm"));
    assert!(model.header().calibration.is_some());
}

#[test]
fn a_fit_to_drawn_cells_is_that_to_their_files_and_no_other_source_goes_on_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut synth = cellgate("synth");
    synth.arg("-o").arg(path("cells")).args(["-n", "60", "--size", "180", "--no-masks"]);
    succeeds(synth);
    let fit = |source: &[&str], out: &str| {
        let mut command = cellgate("fit");
        command.args(source).args(SMALL).arg("-o").arg(path(out));
        command
    };
    let cells = path("cells");
    succeeds(fit(&[cells.to_str().unwrap()], "files.cgm"));
    succeeds(fit(&SYNTH, "drawn.cgm"));
    let [files, drawn] = ["files.cgm", "drawn.cgm"].map(|name| Model::open(&path(name)).unwrap());
    let (a, b) = (files.statistics(), drawn.statistics());
    assert_eq!(a.mean(), b.mean());
    assert!((0..a.factors().len()).all(|i| a.factors().get(i).to_bits() == b.factors().get(i).to_bits()));
    assert_eq!(files.header().calibration, drawn.header().calibration);
    assert_eq!(files.header().provenance.list, drawn.header().provenance.list);
    assert_eq!(drawn.header().provenance.data, "60 synthetic cells");

    // The partial says where its cells come from.
    let out = path("s.cgp");
    let mut command = fit(&SYNTH, "s.cgp");
    command.args(["--shard", "1/8"]);
    succeeds(command);
    let (header, _) = partial::read(&out).unwrap();
    let Origin::Drawn { seed, config, held_out, .. } = &header.origin else { panic!("{:?}", header.origin) };
    assert_eq!((*seed, config.size), (0, 180));
    assert_eq!(held_out.len() as u32, drawn.header().calibration.as_ref().unwrap().cells);
    for (other, more) in [
        ("another seed", &["--synth", "60", "--synth-size", "180", "--synth-seed", "4"][..]),
        ("another size", &["--synth", "60", "--synth-size", "190"]),
        ("another count", &["--synth", "61", "--synth-size", "180"]),
        ("files", &[cells.to_str().unwrap()]),
    ] {
        let mut command = fit(more, "s.cgp");
        command.args(["--shard", "1/8"]);
        let output = command.output().unwrap();
        assert!(!output.status.success() && said(&output).contains("other settings"), "{other}: {}", said(&output));
    }
    assert_eq!(partial::read(&out).unwrap().0, header, "a refused fit changed the partial");
}

#[test]
fn a_partial_of_moved_files_is_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let (here, there) = (folder.path().join("a/cells"), folder.path().join("b/cells"));
    common::good_cells(&here, 60);
    let out = folder.path().join("s.cgp");
    let fit = |data: &Path| {
        let mut command = cellgate("fit");
        command.arg(data).args(SMALL).args(["--shard", "0/1", "-o"]).arg(&out);
        command
    };
    succeeds(fit(&here));
    std::fs::create_dir(folder.path().join("b")).unwrap();
    std::fs::rename(&here, &there).unwrap();
    assert!(succeeds(fit(&there)).contains("going on from image"));
    // The merge finds the held-out cells where they are now.
    let mut command = cellgate("merge");
    command.arg(&out).arg("-o").arg(folder.path().join("m.cgm"));
    succeeds(command);
}
