//! What the integration tests share.
#![allow(dead_code, missing_docs, unused_imports)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cellgate::backbone::ResNet18;
use cellgate::backbone::cpu::CpuBackbone;
use cellgate::classifier::evidence::Evidence;
use cellgate::classifier::judge::{self, Cells, JudgeSettings};
use cellgate::classifier::learning::LearnSettings;
use cellgate::gaussian::{Accumulator, Precision};
use cellgate::model::{Header, Model, Provenance, Settings, Training};
use cellgate::pipeline::Extractor;
use cellgate::pipeline::crossval::FoldCell;
use cellgate::pipeline::fitting::{Cell, Fitter};
use cellgate::pipeline::teaching::{By, gather};
use cellgate::preprocess::PreprocessConfig;
use cellgate::simd::Isa;
use cellgate::synth::{DefectKind, Generator, Selection, SynthCell, SynthConfig};
use cellgate::verdict::{Class, Cost, Grading, OperatingPoint};
use cellgate::workers::Workers;

pub mod maps;
mod skip;

pub use skip::skip;

/// Writes synthetic good cells of 180 × 180 pixels as PGM files, and names them.
pub fn good_cells(folder: &Path, count: u64) -> Vec<Cell> {
    let config = SynthConfig { size: 180, selection: Selection::Only(Class::A), ..SynthConfig::default() };
    let generator = Generator::new(config, 3).unwrap();
    std::fs::create_dir_all(folder).unwrap();
    (0..count)
        .map(|index| {
            let id = format!("cell{index:04}.pgm");
            let path = folder.join(&id);
            write_pgm(&path, &generator.cell(index).frame);
            Cell::file(id, path)
        })
        .collect()
}

/// Writes a frame of 8 bits as PGM.
pub fn write_pgm(path: &Path, frame: &cellgate::frame::Frame) {
    let mut bytes = format!("P5\n{} {}\n255\n", frame.width(), frame.height()).into_bytes();
    bytes.extend(frame.pixels().iter().map(|&p| p as u8));
    std::fs::write(path, bytes).unwrap();
}

/// A fitter for the embedded backbone.
pub fn fitter(network: &ResNet18, size: usize, preprocess: &PreprocessConfig, threads: usize) -> Fitter {
    let extractors = (0..threads).map(|_| {
        let alone = Arc::new(Workers::new(1));
        let backbone = CpuBackbone::new(network, size, Isa::detect(), alone).unwrap();
        Extractor::new(preprocess.clone(), Box::new(backbone)).unwrap()
    });
    Fitter::new(extractors.collect())
}

/// Fits a model of the embedded backbone to 80 synthetic cells, for frames with a border; gives its path.
pub fn small_model(folder: &Path, size: u32, grid: u32, k: u32) -> PathBuf {
    let settings = Settings { size, grid, k, precision: Precision::F16, ..Settings::default() };
    fitted_model(folder, settings, &good_cells(&folder.join("cells"), 80))
}

/// Fits a model of the embedded backbone to 60 good cells, and calibrates it with the others; gives its path.
pub fn fitted_model(folder: &Path, settings: Settings, cells: &[Cell]) -> PathBuf {
    let Settings { size, grid, k, .. } = settings;
    let (fit, held_out) = cells.split_at(60);
    let network = ResNet18::embedded().unwrap();
    let mut fitter = fitter(&network, size as usize, &settings.preprocess, 2);
    let scale = fitter.channel_scale(fit, &settings).unwrap();
    let projection = settings.projection(&scale).unwrap();
    let mut moments = Accumulator::new(grid as usize, k as usize);
    fitter
        .accumulate(fit, &settings, &projection, &mut moments, &mut 0, |_, skipped| {
            assert_eq!(skipped, []);
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    let statistics = moments.finish(settings.shrinkage, settings.precision, fitter.workers()).unwrap();
    let (calibration, _) = fitter
        .calibrate(held_out, &settings, &projection, &statistics.view(), |_| std::ops::ControlFlow::Continue(()))
        .unwrap();
    let provenance = Provenance {
        software: "test".into(),
        created: 0,
        data: "synthetic".into(),
        list: [0; 32],
        backbone: "embedded".into(),
        cells: moments.count(),
        images: moments.count(),
        skipped: 0,
    };
    let header =
        Header { backbone: network.identity(), settings, provenance, calibration: Some(calibration), classifier: None };
    let path = folder.join("small.cgm");
    Model::write(&path, &header, &projection, &statistics.view(), None).unwrap();
    path
}

/// The small model with a classifier that was trained for a moment on 16 good cells and 16 with defects, on planes of `side`.
pub fn judged_model(folder: &Path, size: u32, grid: u32, k: u32, views: u32, side: usize) -> PathBuf {
    let model = Model::open(&small_model(folder, size, grid, k)).unwrap();
    let settings = &model.header().settings;
    let network = ResNet18::embedded().unwrap();
    let generator = Generator::new(SynthConfig { size: 180, ..SynthConfig::default() }, 3).unwrap();
    let cells: Vec<FoldCell> = (0..32u64)
        .map(|index| {
            let id = format!("labelled{index:02}.pgm");
            let path = folder.join(&id);
            let defects = DefectKind::ALL;
            let mut good = SynthCell::default();
            let frame = match index % 2 {
                0 => {
                    generator.with_class_into(2000 + index, Class::A, &mut good);
                    good.frame
                }
                _ => generator.with_defect(2000 + index, defects[index as usize / 2 % defects.len()]).frame,
            };
            write_pgm(&path, &frame);
            FoldCell { cell: Cell::file(id, path), good: index % 2 == 0, fold: index as usize / 2 % 4 }
        })
        .collect();
    let mut fitter = fitter(&network, size as usize, &settings.preprocess, 2);
    let statistics = model.statistics();
    let go_on = |_| std::ops::ControlFlow::Continue(());
    let by = By::Model(&statistics);
    let learn = LearnSettings { steps: 12, batch: 8, check_every: 4, warmup: 2, ..LearnSettings::default() };
    let wanted = JudgeSettings { views, side, flips: 2, learn, ..JudgeSettings::default() };
    let seen = gather(&mut fitter, &cells, settings, model.projection(), by, &wanted, &go_on).unwrap();
    let seen: Vec<Evidence> = seen.into_iter().map(|cell| cell.unwrap().1).collect();
    let (evidence, level): (Vec<&Evidence>, Vec<usize>) =
        seen.iter().zip(&cells).map(|(seen, cell)| (seen, usize::from(!cell.good))).unzip();
    let group: Vec<usize> = cells.iter().map(|cell| cell.fold).collect();
    let given = Cells { evidence: &evidence, level: &level, kind: &[0; 32], group: &group, levels: 2 };
    let workers = Arc::new(Workers::new(2));
    let taught =
        judge::fit(&given, &wanted, &network, None, &workers, |_| std::ops::ControlFlow::Continue(())).unwrap();
    let (probability, defective): (Vec<f32>, Vec<bool>) =
        taught.calibration.iter().map(|(cell, opinion)| (opinion.at_least(1), level[*cell] == 1)).unzip();
    let point = OperatingPoint::choose(Grading::AnyDefect, Cost::Even, 1e6, &probability, &defective).unwrap();
    let training = Training {
        software: "test".into(),
        created: 0,
        data: "synthetic".into(),
        list: [0; 32],
        cells: vec![16, 16],
        skipped: 0,
        step: taught.best_step,
    };
    let path = folder.join("judged.cgm");
    model.write_judged(&path, Some((&taught.judge, point, training))).unwrap();
    path
}
