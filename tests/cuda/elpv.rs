//! Real cells on the device, whole frames of them.

use std::path::PathBuf;
use std::sync::Arc;

use cellgate::gaussian::Precision;
use cellgate::model::{Model, Settings};
use cellgate::pipeline::fitting::Cell;
use cellgate::preprocess::PreprocessConfig;
use cellgate::verdict::Outcome;

use crate::{Bed, assert_like, common, fake};

/// Cells that the model is fitted to and calibrated with.
const FITTED: usize = 80;
/// Good and defective ones that are judged.
const JUDGED: usize = 8;

/// ELPV's good and its surely defective cells of mono silicon; none if the set is not there.
fn cells() -> Option<[Vec<PathBuf>; 2]> {
    let folder = PathBuf::from(std::env::var_os("CELLGATE_DATA")?).join("elpv");
    let labels = std::fs::read_to_string(folder.join("labels.csv")).ok()?;
    let mono: Vec<Vec<&str>> = labels.lines().map(|line| line.split_whitespace().collect()).collect();
    let of = |probability: &str| {
        let chosen = mono.iter().filter(|cell| cell[1..] == [probability, "mono"]);
        chosen.map(|cell| folder.join(cell[0])).collect()
    };
    Some([of("0.0"), of("1.0")])
}

#[test]
fn real_cells_are_judged_as_on_the_cpu() {
    let name = "real_cells_are_judged_as_on_the_cpu";
    let Some(turn) = fake::turn(name) else { return };
    let Some([good, defective]) = cells() else {
        return common::skip(name, "the ELPV images: `cellgate data elpv`, with CELLGATE_DATA naming the folder");
    };
    let folder = tempfile::tempdir().unwrap();
    let preprocess = PreprocessConfig::whole_frame();
    let settings =
        Settings { size: 128, grid: 32, k: 32, precision: Precision::F16, preprocess, ..Settings::default() };
    let fitted: Vec<Cell> = good[..FITTED].iter().map(|path| Cell::file(path.to_string_lossy(), path)).collect();
    let model = Arc::new(Model::open(&common::fitted_model(folder.path(), settings, &fitted)).unwrap());
    let bed = Bed::of(folder, model);
    let (mut cpu, mut device) = (bed.inspector(), bed.on_device(&turn).unwrap());
    let (mut worst, mut measured, mut rejected) = (0.0_f32, 0, 0);
    for path in good[FITTED..][..JUDGED].iter().chain(&defective[..JUDGED]) {
        let (want, got) = (cpu.inspect_file(path), device.inspect_file(path));
        let cell = path.file_stem().unwrap().to_string_lossy();
        assert_like(&got, &want, &cell);
        // Those that are too dark are refused.
        let (Some(a), Some(b)) = (got.distances, want.distances) else { continue };
        for (a, b) in [(a.top, b.top), (a.max, b.max), (a.mean, b.mean)] {
            worst = worst.max((a - b).abs() / b);
        }
        measured += 1;
        rejected += usize::from(want.outcome == Outcome::Reject);
        assert_eq!(cpu.image(), device.image(), "{cell}: the image is another");
    }
    assert!(device.device().is_some(), "went to the CPU");
    println!("{measured} cells measured, {rejected} rejected; a distance is off by up to {worst:.1e} of itself");
    assert!(measured > JUDGED && (1..measured).contains(&rejected), "{measured} measured, {rejected} rejected");
}
