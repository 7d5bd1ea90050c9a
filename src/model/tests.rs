use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::backbone::{Backbone, BackboneError, Pyramid};
use crate::classifier::kernel::{self, Grid, Rows, WIDTH};
use crate::classifier::planes::Planes;
use crate::embedding::{Mixing, Stages};
use crate::frame::Frame;
use crate::gaussian::factors::OwnedStatistics;
use crate::heatmap::ScoreKind;
use crate::pipeline::{Inspector, PipelineError};
use crate::preprocess::PreprocessConfig;
use crate::verdict::{Cost, Grading};
use crate::verdict::{Invalid, Outcome};
use crate::workers::Workers;

const GRID: usize = 4;
const K: usize = 3;

/// A backbone whose stages are all the mean of the image: enough for the way from a frame to a verdict.
struct Mean(Identity);

impl Backbone for Mean {
    fn size(&self) -> usize {
        64
    }

    fn identity(&self) -> Identity {
        self.0
    }

    fn run(&mut self, image: &[f32], pyramid: &mut Pyramid) -> Result<(), BackboneError> {
        let mean = image.iter().sum::<f32>() / image.len() as f32;
        (0..4).for_each(|stage| pyramid.fill_with(stage, |_| mean));
        Ok(())
    }
}

/// The parts of a small model, to be changed before they are written.
#[derive(Clone)]
pub(crate) struct Parts {
    header: Header,
    projection: Projection,
    statistics: OwnedStatistics,
}

impl Parts {
    /// A valid model of a 4 × 4 grid with k = 3, for images of 64 × 64.
    pub(crate) fn new(precision: Precision) -> Self {
        let settings = Settings {
            size: 64,
            grid: GRID as u32,
            k: K as u32,
            precision,
            preprocess: PreprocessConfig::whole_frame(),
            ..Settings::default()
        };
        let calibration = Calibration {
            kind: ScoreKind::Top,
            cells: 40,
            overkill: 0.01,
            threshold: 9.0,
            class_c: 12.0,
            region: 8.0,
            dim_below: 0.1,
            quantiles: (0..=100).map(|q| 3.0 + q as f32 * 0.06).collect(),
        };
        let provenance = Provenance {
            software: "0.1.0".into(),
            created: 1_795_478_400,
            data: "cells".into(),
            list: [7; 32],
            backbone: "mean".into(),
            cells: 400,
            images: 800,
            skipped: 2,
        };
        let mean: Vec<f32> = (0..GRID * GRID * K + SLACK).map(|i| i as f32 * 0.25).collect();
        let factors: Vec<f32> = (0..section_len(GRID * GRID, K)).map(|i| 1.0 + (i % 9) as f32 * 0.125).collect();
        Self {
            header: Header {
                backbone: Identity([5; 32]),
                settings,
                provenance,
                calibration: Some(calibration),
                classifier: None,
            },
            projection: Projection::semi_orthogonal(Mixing::Dense, K, 1, Stages::ALL, &[1.0; CHANNELS]).unwrap(),
            statistics: OwnedStatistics::pack(GRID, K, mean, factors, precision),
        }
    }

    fn write(&self, path: &Path) {
        Model::write(path, &self.header, &self.projection, &self.statistics.view(), None).unwrap();
    }

    fn sections(&self) -> Vec<(&'static str, Vec<u8>)> {
        let view = self.statistics.view();
        let factors = match view.factors() {
            Factors::F16(u) => bytemuck::cast_slice::<_, u8>(u).to_vec(),
            Factors::F32(u) => bytemuck::cast_slice::<_, u8>(u).to_vec(),
        };
        vec![
            (PROJECTION, bytemuck::cast_slice(self.projection.matrix()).to_vec()),
            (MEAN, bytemuck::cast_slice(view.mean()).to_vec()),
            (ROW_SCALE, bytemuck::cast_slice(view.row_scale()).to_vec()),
            (FACTORS, factors),
        ]
    }
}

struct Place {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.cgm");
    Place { _folder: folder, path }
}

/// What opening a file says whose hashes all fit, but whose header or sections are as given.
fn refusal(header: &Header, sections: &[(&str, Vec<u8>)]) -> String {
    let place = place();
    let sections: Vec<(&str, &[u8])> = sections.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    container::write(&place.path, KIND, header, &sections).unwrap();
    let text = Model::open(&place.path).unwrap_err().to_string();
    assert!(text.contains("m.cgm"), "{text:?} does not name the file");
    text
}

#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    parts.iter().for_each(|part| assert!(text.contains(part), "{text:?} does not say {part:?}"));
}

#[test]
fn what_was_written_is_read() {
    for precision in [Precision::F16, Precision::F32] {
        let (place, parts) = (place(), Parts::new(precision));
        parts.write(&place.path);
        let model = Model::open(&place.path).unwrap();
        assert_eq!(model.header(), &parts.header);
        assert_eq!(model.projection(), &parts.projection);
        let (got, want) = (model.statistics(), parts.statistics.view());
        assert_eq!((got.grid(), got.k(), got.factors().precision()), (GRID, K, precision));
        assert_eq!((got.mean(), got.row_scale()), (want.mean(), want.row_scale()));
        assert!((0..want.factors().len()).all(|i| got.factors().get(i) == want.factors().get(i)));
        assert_eq!(model.bytes() as u64, std::fs::metadata(&place.path).unwrap().len());
        // The same content has the same id, another calibration another one.
        let again = place.path.with_file_name("again.cgm");
        parts.write(&again);
        assert_eq!(Model::open(&again).unwrap().id(), model.id());
        let calibration = parts.header.calibration.clone().unwrap().moved_to(9.5);
        model.write_calibrated(&again, calibration.clone()).unwrap();
        let moved = Model::open(&again).unwrap();
        assert_ne!(moved.id(), model.id());
        assert_eq!(moved.header().calibration, Some(calibration));
        assert_eq!(moved.statistics().mean(), want.mean());
    }
}

/// Every byte of the header and of each section's ends, and every thirteenth elsewhere, with each of the eight bits in
/// turn.
#[test]
fn a_flipped_bit_anywhere_is_refused() {
    let place = place();
    Parts::new(Precision::F16).write(&place.path);
    let bytes = std::fs::read(&place.path).unwrap();
    let lengths: Vec<usize> = Model::open(&place.path).unwrap().section_sizes().map(|(_, n)| n as usize).collect();
    let first = bytes.len() - lengths.iter().map(|n| n.next_multiple_of(container::ALIGN)).sum::<usize>();
    let mut edges = vec![first];
    lengths.iter().for_each(|n| edges.push(edges[edges.len() - 1] + n.next_multiple_of(container::ALIGN)));
    let near = |at: usize| at < first || edges.iter().any(|&edge| at.abs_diff(edge) <= 16);
    let mut tried = 0;
    for at in (0..bytes.len()).filter(|&at| near(at) || at % 13 == 0) {
        let mut broken = bytes.clone();
        broken[at] ^= 1 << (tried % 8);
        tried += 1;
        std::fs::write(&place.path, &broken).unwrap();
        assert!(Model::open(&place.path).is_err(), "byte {at} may be changed unseen");
    }
    assert!(tried > 1000, "{tried} positions only");
    std::fs::write(&place.path, &bytes).unwrap();
    Model::open(&place.path).unwrap();
}

#[test]
fn a_file_cut_off_anywhere_is_refused() {
    let place = place();
    Parts::new(Precision::F16).write(&place.path);
    let bytes = std::fs::read(&place.path).unwrap();
    for length in (0..bytes.len()).filter(|&n| n < 1024 || n % 37 == 0 || bytes.len() - n < 200) {
        std::fs::write(&place.path, &bytes[..length]).unwrap();
        let text = Model::open(&place.path).unwrap_err().to_string();
        assert!(
            text.contains("m.cgm") && (text.contains("damaged") || text.contains("not a cellgate model")),
            "{text}"
        );
    }
}

#[test]
fn numbers_in_the_header_that_make_no_sense_are_named() {
    let parts = Parts::new(Precision::F16);
    let sections = parts.sections();
    let with = |change: &dyn Fn(&mut Header)| {
        let mut header = parts.header.clone();
        change(&mut header);
        refusal(&header, &sections)
    };
    let calibrated = |change: &dyn Fn(&mut Calibration)| with(&|h| change(h.calibration.as_mut().unwrap()));
    assert_says(&with(&|h| h.settings.size = 250), &["`size` is 250", "multiple of 32"]);
    assert_says(&with(&|h| h.settings.size = u32::MAX), &["`size`"]);
    assert_says(&with(&|h| h.settings.grid = u32::MAX), &["`grid` is 4294967295", "from 4 to 256"]);
    assert_says(&with(&|h| h.settings.k = 0), &["`k` is 0", "from 1 to 256"]);
    assert_says(&with(&|h| h.settings.sigma = f32::INFINITY), &["`sigma`"]);
    assert_says(&with(&|h| h.settings.preprocess.inset = f32::NAN), &["`inset`"]);
    assert_says(&calibrated(&|c| c.threshold = f32::NAN), &["reading the calibration", "not finite"]);
    assert_says(&calibrated(&|c| c.region = f32::INFINITY), &["reading the calibration", "not finite"]);
    assert_says(&calibrated(&|c| c.quantiles[40] = 0.0), &["rising quantiles"]);
    assert_says(&calibrated(&|c| c.quantiles[40] = f32::NAN), &["not finite"]);
    assert_says(&calibrated(&|c| c.quantiles.truncate(50)), &["101 rising quantiles"]);
    assert_says(&calibrated(&|c| c.quantiles.clear()), &["101 rising quantiles"]);
    assert_says(&calibrated(&|c| c.class_c = 1.0), &["the thresholds of class A and C"]);
}

#[test]
fn a_header_that_promises_other_sections_is_refused() {
    let parts = Parts::new(Precision::F16);
    let sections = parts.sections();
    let promising = |change: &dyn Fn(&mut Settings)| {
        let mut header = parts.header.clone();
        change(&mut header.settings);
        refusal(&header, &sections)
    };
    assert_says(&promising(&|s| s.k = 256), &["`projection` is 11520 bytes long", "983040 are needed"]);
    assert_says(&promising(&|s| s.grid = 256), &["`factors` is 2176 bytes long", "8388736 are needed"]);
    assert_says(&promising(&|s| s.precision = Precision::F32), &["`factors` is 2176 bytes long", "4352 are needed"]);
}

#[test]
fn sections_that_are_missing_too_short_or_too_long_are_named() {
    let parts = Parts::new(Precision::F16);
    for index in 0..4 {
        let mut sections = parts.sections();
        let (name, _) = sections.remove(index);
        assert_says(&refusal(&parts.header, &sections), &[&format!("no section `{name}`")]);
        for change in [-4, -1, 1, 4] {
            let mut sections = parts.sections();
            let bytes = &mut sections[index].1;
            bytes.resize(bytes.len().saturating_add_signed(change), 0);
            let text = refusal(&parts.header, &sections);
            assert_says(&text, &[&format!("the section `{name}` is"), "are needed"]);
        }
        let mut sections = parts.sections();
        sections[index].1.clear();
        assert_says(&refusal(&parts.header, &sections), &[&format!("the section `{name}` is 0 bytes long")]);
    }
    let mut sections = parts.sections();
    sections[0].1[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
    assert_says(&refusal(&parts.header, &sections), &["value 1 of the matrix is not finite"]);
}

#[test]
fn other_files_are_no_models() {
    let place = place();
    for bytes in
        [&b""[..], b"CELLGATE", &[0; 4096], b"\x89PNG\r\n\x1a\n and more than forty-eight bytes of something else"]
    {
        std::fs::write(&place.path, bytes).unwrap();
        assert_says(&Model::open(&place.path).unwrap_err().to_string(), &["m.cgm", "not a cellgate model"]);
    }
    // The hashes fit, but the header is of some other program.
    container::write(&place.path, KIND, &"a sentence", &[]).unwrap();
    assert_says(&Model::open(&place.path).unwrap_err().to_string(), &["m.cgm", "damaged", "the header"]);
    let folder = place.path.parent().unwrap();
    assert_says(&Model::open(folder).unwrap_err().to_string(), &["opening"]);
    let newer = Kind { version: KIND.version + 1, ..KIND };
    let parts = Parts::new(Precision::F16);
    container::write(&place.path, newer, &parts.header, &[]).unwrap();
    assert_says(&Model::open(&place.path).unwrap_err().to_string(), &["format 3", "reads format 3"]);
}

/// Somebody copies another model over the file while a batch runs: the batch ends with the model that was checked.
#[test]
fn a_file_overwritten_in_place_changes_no_open_model() {
    let place = place();
    Parts::new(Precision::F16).write(&place.path);
    let model = Model::open(&place.path).unwrap();
    let before = model.statistics().mean().to_vec();
    std::fs::write(&place.path, vec![0xff; model.bytes()]).unwrap();
    assert_eq!(model.statistics().mean(), before);
    std::fs::write(&place.path, b"").unwrap();
    assert_eq!(model.statistics().mean(), before);
}

/// Lying about its length costs a file nothing; it must not cost us memory.
#[test]
fn a_file_longer_than_its_header_says_is_refused_before_it_is_read() {
    let place = place();
    Parts::new(Precision::F16).write(&place.path);
    let file = std::fs::File::options().write(true).open(&place.path).unwrap();
    file.set_len(1 << 40).unwrap();
    assert_says(&Model::open(&place.path).unwrap_err().to_string(), &["m.cgm", "bytes after the last section"]);
}

#[test]
fn a_model_of_another_backbone_names_both() {
    let place = place();
    Parts::new(Precision::F16).write(&place.path);
    let model = Arc::new(Model::open(&place.path).unwrap());
    let (theirs, ours) = (Identity([5; 32]), Identity([0xab; 32]));
    let error = Inspector::new(Arc::clone(&model), Box::new(Mean(ours)), Arc::new(Workers::new(1))).err().unwrap();
    assert!(matches!(error, PipelineError::Model(ModelError::OtherBackbone { .. })));
    assert_says(&error.to_string(), &[&theirs.to_string(), &ours.to_string(), "`mean`", "--backbone"]);
    Inspector::new(model, Box::new(Mean(theirs)), Arc::new(Workers::new(1))).unwrap();
}

/// A number that is not finite, in whichever section it lies, becomes a verdict that passes no cell; so does a model
/// without a calibration.
#[test]
fn broken_statistics_pass_no_cell() {
    let place = place();
    let noise: Vec<u16> = (0..100u32 * 100).map(|i| 90 + (i.wrapping_mul(2_654_435_761) >> 27) as u16).collect();
    let frame = Frame::from_pixels(100, 100, 255, noise);
    let verdict = |parts: &Parts| {
        parts.write(&place.path);
        let model = Arc::new(Model::open(&place.path).unwrap());
        let backbone = Box::new(Mean(parts.header.backbone));
        Inspector::new(model, backbone, Arc::new(Workers::new(1))).unwrap().inspect(&frame)
    };
    let good = Parts::new(Precision::F32);
    let judged = verdict(&good);
    assert!(judged.distances.is_some(), "{:?}", judged.outcome);
    let mut broken = good.clone();
    broken.statistics.mean[17] = f32::NAN;
    assert_eq!(verdict(&broken).outcome, Outcome::Invalid(Invalid::NotFinite));
    for scale in [f32::INFINITY, f32::NAN, 0.0, -1.0] {
        let mut broken = good.clone();
        broken.statistics.row_scale[1] = scale;
        broken.write(&place.path);
        assert_says(&Model::open(&place.path).unwrap_err().to_string(), &["a row's scale"]);
    }
    let mut broken = good.clone();
    if let crate::gaussian::factors::OwnedFactors::F32(u) = &mut broken.statistics.factors {
        u[64 * 3 + 2] = f32::NAN;
    }
    assert_eq!(verdict(&broken).outcome, Outcome::Invalid(Invalid::NotFinite));
    let mut bare = good;
    bare.header.calibration = None;
    assert_eq!(verdict(&bare).outcome, Outcome::Invalid(Invalid::Uncalibrated));
}

#[test]
fn an_unwritable_place_is_named_and_nothing_is_left() {
    let place = place();
    let folder = place.path.parent().unwrap();
    let parts = Parts::new(Precision::F16);
    let write = |path: &Path| Model::write(path, &parts.header, &parts.projection, &parts.statistics.view(), None);
    assert_says(&write(&folder.join("none/m.cgm")).unwrap_err().to_string(), &["none/m.cgm"]);
    // A folder stands where the file should go.
    std::fs::create_dir(folder.join("taken.cgm")).unwrap();
    assert_says(&write(&folder.join("taken.cgm")).unwrap_err().to_string(), &["taken.cgm"]);
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 1, "a temporary file was left behind");
}

/// A judge of three levels with a kernel machine of twelve cells, and what the header says of it.
fn judge() -> (Judge, OperatingPoint, Training) {
    let values: Vec<f32> = (0..12 * WIDTH).map(|i| ((i * 7919) % 1013) as f32 / 500.0 - 1.0).collect();
    let targets: Vec<f32> = (0..24).map(|i| if i % 5 < 2 { 1.0 } else { -1.0 }).collect();
    let groups: Vec<usize> = (0..12).map(|i| i % 3).collect();
    let rows = Rows { values: &values, kinds: &[0; 12] };
    let workers = Workers::new(1);
    let machine = kernel::fit(&rows, &targets, &[1.0; 12], &groups, &Grid::default(), &workers).unwrap().machine;
    let description = judge::Description {
        levels: 3,
        planes: None,
        side: 64,
        flips: 1,
        views: 2,
        kernel: Some(machine.description().clone()),
        borders: vec![judge::Border { network: 0.0, kernel: 2.0, shift: 0.5 }; 2],
    };
    let judge = Judge::from_parts(description, &[], machine.floats(), machine.support()).unwrap();
    let point = OperatingPoint::choose(Grading::Abc, Cost::Even, 20.0, &[0.1, 0.9], &[false, true]).unwrap();
    let training = Training {
        software: "0.1.0".into(),
        created: 1_795_478_400,
        data: "cells".into(),
        list: [9; 32],
        cells: vec![4, 4, 4],
        skipped: 1,
        step: None,
    };
    (judge, point, training)
}

#[test]
fn a_classifier_comes_back_stays_through_a_calibration_and_can_be_taken_away() {
    let (place, parts) = (place(), Parts::new(Precision::F16));
    parts.write(&place.path);
    let plain = Model::open(&place.path).unwrap();
    assert!(plain.judge().is_none());
    let (judge, point, training) = judge();
    let path = place.path.with_file_name("judged.cgm");
    plain.write_judged(&path, Some((&judge, point.clone(), training.clone()))).unwrap();
    let judged = Model::open(&path).unwrap();
    let header = judged.header().classifier.as_ref().unwrap();
    assert_eq!((&header.point, &header.training, &header.judge), (&point, &training, judge.description()));
    let kernel = |judge: &Judge| judge.kernel().map(|k| (k.floats().to_vec(), k.support().to_vec()));
    assert_eq!(kernel(judged.judge().unwrap()), kernel(&judge));
    assert_ne!(judged.id(), plain.id());
    let again = place.path.with_file_name("again.cgm");
    judged.write_calibrated(&again, parts.header.calibration.clone().unwrap().moved_to(9.5)).unwrap();
    assert_eq!(kernel(Model::open(&again).unwrap().judge().unwrap()), kernel(&judge));
    judged.write_judged(&again, None).unwrap();
    assert_eq!(Model::open(&again).unwrap().id(), plain.id());
}

#[test]
fn a_classifier_that_makes_no_sense_is_refused() {
    let parts = Parts::new(Precision::F16);
    let (judge, point, training) = judge();
    let kernel = judge.kernel().unwrap();
    let sections = |floats: &[f32]| {
        let mut all = parts.sections();
        all.push((KERNEL, bytemuck::cast_slice(floats).to_vec()));
        all.push((SUPPORT, bytemuck::cast_slice(kernel.support()).to_vec()));
        all
    };
    let header = |change: &dyn Fn(&mut ClassifierHeader)| {
        let mut classifier =
            ClassifierHeader { judge: judge.description().clone(), point: point.clone(), training: training.clone() };
        change(&mut classifier);
        Header { classifier: Some(classifier), ..parts.header.clone() }
    };
    let floats = kernel.floats();
    let bad = |change: &dyn Fn(&mut ClassifierHeader)| refusal(&header(change), &sections(floats));
    assert_says(&bad(&|c| c.point.grading = Grading::Usable), &["other classes"]);
    assert_says(&bad(&|c| c.point.reject_from = f32::NAN), &["operating point"]);
    assert_says(&bad(&|c| c.point.novel_from = -1.0), &["operating point"]);
    assert_says(&bad(&|c| c.judge.views = 9), &["views"]);
    assert_says(&bad(&|c| c.judge.borders[0].kernel = f32::INFINITY), &["not finite"]);
    assert_says(&bad(&|c| c.judge.borders[1].kernel = -2.0), &["negative"]);
    assert_says(&bad(&|c| c.judge.kernel = None), &["asks nobody"]);
    assert_says(&bad(&|c| c.judge.kernel.as_mut().unwrap().rows = 11), &["section `kernel`"]);
    assert_says(&bad(&|c| c.judge.planes = Some(Planes::Heatmap)), &["section `network`"]);
    assert_says(&refusal(&header(&|_| ()), &parts.sections()), &["section `kernel`"]);
    let mut broken = floats.to_vec();
    broken[3] = f32::NAN;
    assert_says(&refusal(&header(&|_| ()), &sections(&broken)), &["not finite"]);
}
