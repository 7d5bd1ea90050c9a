//! The whole computation from the pyramid to the score against numpy in f64, on real cells
//! (`tests/python/reference.py`).

mod common;

use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use cellgate::backbone::cpu::CpuBackbone;
use cellgate::backbone::{Pyramid, ResNet18};
use cellgate::embedding::{Embedder, Embedding, Mixing};
use cellgate::eval::dataset::Label;
use cellgate::eval::elpv;
use cellgate::gaussian::distance::mahalanobis;
use cellgate::gaussian::{Accumulator, Precision, Shrinkage};
use cellgate::heatmap::Analyser;
use cellgate::model::Settings;
use cellgate::pipeline::Extractor;
use cellgate::pipeline::fitting::Cell;
use cellgate::preprocess::{Augmentation, PreprocessConfig};
use cellgate::simd::Isa;
use cellgate::workers::Workers;

/// Good cells of the fit; the first 64 give the channels' scale.
const FIT: usize = 120;
const SCALE: usize = 64;
/// Factors are compared at every so many positions; distances at all.
const EVERY: usize = 7;

struct Case {
    name: &'static str,
    images: usize,
    settings: Settings,
}

fn write(folder: &Path, name: &str, values: impl IntoIterator<Item = f32>) {
    let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
    std::fs::write(folder.join(name), bytes).unwrap();
}

#[test]
fn distances_and_scores_of_real_cells_agree_with_numpy_in_f64() {
    let name = "distances_and_scores_of_real_cells_agree_with_numpy_in_f64";
    let has = Command::new("python3").args(["-c", "import numpy"]).stderr(Stdio::null()).status();
    if !has.is_ok_and(|status| status.success()) {
        return common::skip(name, "python3 with numpy (python3 -m pip install numpy)");
    }
    let Ok(set) = elpv::data_dir(None).and_then(|dir| elpv::open(&dir)) else {
        return common::skip(name, "the ELPV images (cellgate data elpv)");
    };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();

    let of = |wanted: fn(&Label) -> bool, step: usize, count: usize| -> Vec<Cell> {
        let items = set.items.iter().filter(|item| item.label.as_ref().is_some_and(wanted));
        items.step_by(step).take(count).map(|i| Cell::file(&i.id, &i.path)).collect()
    };
    let mut good = of(Label::is_good, 10, FIT + 3);
    let mut test = good.split_off(FIT);
    test.extend(of(|label| *label == Label::Probability(1.0), 200, 3));
    assert_eq!((good.len(), test.len()), (FIT, 6));

    let network = ResNet18::embedded().unwrap();
    let defaults = Settings { preprocess: PreprocessConfig::whole_frame(), ..Settings::default() };
    let size = defaults.size as usize;
    let mut fitter = common::fitter(&network, size, &defaults.preprocess, 2);
    let standardised = Settings { standardise: true, ..defaults.clone() };
    let scale = fitter.channel_scale(&good[..SCALE], &standardised).unwrap();
    write(folder, "scale.f32", scale.iter().copied());

    // What the reference starts from: the maps of every image.
    let workers = Arc::new(Workers::new(2));
    let backbone = CpuBackbone::new(&network, size, Isa::detect(), Arc::clone(&workers)).unwrap();
    let mut extractor = Extractor::new(defaults.preprocess.clone(), Box::new(backbone)).unwrap();
    let mut maps = |cell: &Cell, file: &str| -> Pyramid {
        extractor.load(&cell.image).unwrap();
        let pyramid = extractor.features(Augmentation::default()).unwrap().clone();
        write(folder, file, (0..4).flat_map(|stage| pyramid.values(stage)));
        pyramid
    };
    let name_of = |kind: &str, index: usize| format!("{kind}{index}.f32");
    let first: Vec<Pyramid> = good.iter().enumerate().map(|(i, cell)| maps(cell, &name_of("fit", i))).take(2).collect();
    good.iter().enumerate().skip(2).for_each(|(i, cell)| drop(maps(cell, &name_of("fit", i))));
    let pyramids: Vec<Pyramid> = test.iter().enumerate().map(|(i, cell)| maps(cell, &name_of("test", i))).collect();

    let cases = [
        Case {
            name: "small",
            images: 80,
            settings: Settings { grid: 16, k: 40, mixing: Mixing::Dense, ..standardised },
        },
        Case { name: "default", images: FIT, settings: defaults.clone() },
    ];
    let mut described = Vec::new();
    for Case { name, images, settings } in &cases {
        let (grid, k) = (settings.grid as usize, settings.k as usize);
        let scale = if settings.standardise { scale.clone() } else { vec![1.0; scale.len()] };
        let projection = settings.projection(&scale).unwrap();
        write(folder, &format!("{name}-projection.f32"), projection.matrix().iter().copied());
        let mut embedder = Embedder::new(&projection, size, grid, Isa::detect(), Arc::clone(&workers));
        for (index, pyramid) in first.iter().enumerate() {
            let mut embedding = Embedding::new(grid, k);
            embedder.project(pyramid).read_into(&mut embedding);
            write(folder, &format!("{name}-embedding{index}.f32"), embedding.values().iter().copied());
        }
        // The fit as `cellgate fit` does it, from the image files.
        let mut moments = Accumulator::new(grid, k);
        fitter
            .accumulate(&good[..*images], settings, &projection, &mut moments, &mut 0, |_, skipped| {
                assert_eq!(skipped, []);
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(moments.count(), *images as u64);
        let mut analyser = Analyser::new(grid, settings.sigma);
        for precision in [Precision::F32, Precision::F16] {
            let fit = moments.finish(settings.shrinkage, precision, &workers).unwrap();
            let view = fit.view();
            if precision == Precision::F32 {
                write(folder, &format!("{name}-mean.f32"), view.mean()[..grid * grid * k].iter().copied());
                let dense = (0..grid * grid).step_by(EVERY).flat_map(|position| view.dense(position)).map(|u| u as f32);
                write(folder, &format!("{name}-F32-factors.f32"), dense);
            }
            for (index, pyramid) in pyramids.iter().enumerate() {
                let mut heat = vec![0.0; grid * grid];
                mahalanobis(&view, embedder.project(pyramid), &mut heat);
                let file = |what: &str| format!("{name}-{precision:?}-{what}{index}.f32");
                write(folder, &file("distance"), heat.iter().copied());
                analyser.smooth(&mut heat);
                write(folder, &file("heatmap"), heat.iter().copied());
                let scores = analyser.scores(&heat).unwrap();
                write(folder, &file("scores"), [scores.top, scores.max, scores.mean]);
            }
        }
        let Shrinkage::Absolute(epsilon) = settings.shrinkage else { unreachable!("the default is absolute") };
        described.push(serde_json::json!({
            "name": name, "images": images, "grid": grid, "k": k, "epsilon": epsilon, "sigma": settings.sigma,
            "factors_every": EVERY,
        }));
    }
    let names = |kind: &str, count: usize| (0..count).map(|i| name_of(kind, i)).collect::<Vec<_>>();
    let manifest = serde_json::json!({
        "size": size, "fit": names("fit", FIT), "test": names("test", test.len()),
        "scale_of": names("fit", SCALE), "cases": described,
    });
    std::fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/reference.py");
    let output = Command::new("python3").arg(script).arg(folder).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["cases"].as_array().unwrap().len(), cases.len());
}
