use std::ops::ControlFlow;

use super::*;
use crate::backbone::weights::Loaded;
use crate::classifier::SIDE;
use crate::classifier::evidence::Evidence;
use crate::classifier::kernel::{Uses, WIDTH};
use crate::classifier::learning::LearnSettings;
use crate::sampling::{below, generator};

const PLANE: usize = SIDE * SIDE;

/// Cells of three levels that both parts can tell apart.
fn evidence(count: usize) -> (Vec<Evidence>, Vec<usize>) {
    let mut rng = generator(9);
    let mut unit = || below(&mut rng, 1000) as f32 / 1000.0 - 0.5;
    let level: Vec<usize> = (0..count).map(|i| i % 3).collect();
    let cells = level.iter().map(|&level| {
        let mut planes: Vec<f32> = (0..2 * PLANE).map(|_| unit()).collect();
        planes[..PLANE / 4].iter_mut().for_each(|x| *x += 2.0 * level as f32);
        let row = (0..WIDTH).map(|i| unit() + if i % 7 == 0 { 0.5 * level as f32 } else { 0.0 }).collect();
        Evidence { planes: planes.into(), row }
    });
    (cells.collect(), level)
}

fn taught(planes: Option<Planes>, kernel: Option<Uses>) -> (Taught, Vec<Evidence>, Vec<usize>) {
    let (cells, level) = evidence(60);
    let seen: Vec<&Evidence> = cells.iter().collect();
    let group: Vec<usize> = (0..60).map(|i| i / 3 % 3).collect();
    let settings = JudgeSettings {
        planes,
        kernel,
        flips: 2,
        learn: LearnSettings { steps: 12, batch: 8, check_every: 4, warmup: 2, ..LearnSettings::default() },
        ..JudgeSettings::default()
    };
    let cells_ = Cells { evidence: &seen, level: &level, kind: &[0; 60], group: &group, levels: 3 };
    let backbone = Loaded::embedded().unwrap().network;
    let workers = Arc::new(Workers::new(2));
    let taught = fit(&cells_, &settings, &backbone, None, &workers, |_| ControlFlow::Continue(())).unwrap();
    (taught, cells, level)
}

#[test]
fn a_judge_tells_levels_apart_and_comes_back_from_its_parts() {
    for (planes, kernel) in
        [(Some(Planes::HeatmapAndImage), Some(Uses::Both)), (Some(Planes::Heatmap), None), (None, Some(Uses::Pooled))]
    {
        let (taught, cells, level) = taught(planes, kernel);
        assert_eq!(taught.history.len(), if planes.is_some() { 12 } else { 0 });
        assert_eq!(taught.calibration.len(), if planes.is_some() { 12 } else { 60 });
        let judge = taught.judge;
        let (floats, support) =
            judge.kernel().map_or((vec![], vec![]), |k| (k.floats().to_vec(), k.support().to_vec()));
        let network = judge.network_halves();
        assert_eq!(judge.description().section_lens(), [network.len(), floats.len(), support.len()]);
        let back = Judge::from_parts(judge.description().clone(), &network, &floats, &support).unwrap();
        let bench = |judge: Judge| Bench::new(Arc::new(judge), Isa::detect(), Arc::new(Workers::new(1))).unwrap();
        let (mut first, mut second) = (bench(judge.clone()), bench(back));
        let mut right = 0;
        for (cell, &level) in cells.iter().zip(&level) {
            let opinion = first.weigh(&cell.planes, &cell.row, 0).unwrap();
            assert_eq!(Some(opinion), second.weigh(&cell.planes, &cell.row, 0));
            if planes.is_none() {
                assert_eq!(Some(opinion), second.weigh_logits(&[], &cell.row, 0), "no network, no logits");
            }
            let p = opinion.probabilities();
            assert!((p[..3].iter().sum::<f32>() - 1.0).abs() < 1e-6 && p.iter().all(|p| (0.0..=1.0).contains(p)));
            assert!(opinion.at_least(0) == 1.0 && opinion.at_least(1) >= opinion.at_least(2));
            right += usize::from((0..3).max_by(|&a, &b| p[a].total_cmp(&p[b])) == Some(level));
        }
        assert!(right > 30, "{planes:?} {kernel:?}: {right} of 60");
        let longer: Vec<_> = network.iter().copied().chain([half::f16::ONE]).collect();
        assert!(Judge::from_parts(judge.description().clone(), &longer, &floats, &support).is_err());
        let mut broken = judge.description().clone();
        broken.borders[1].shift = f32::NAN;
        assert!(Judge::from_parts(broken, &network, &floats, &support).is_err());
    }
}

#[test]
fn what_a_device_says_is_weighed_as_what_the_bench_says() {
    let (taught, cells, _) = taught(Some(Planes::HeatmapAndImage), Some(Uses::Both));
    let judge = Arc::new(taught.judge);
    let alone = || Arc::new(Workers::new(1));
    let mut bench = Bench::new(Arc::clone(&judge), Isa::detect(), alone()).unwrap();
    let mut classifier = Classifier::new(judge.network().unwrap(), Isa::detect(), alone()).unwrap();
    assert_eq!((judge.description().ways(), judge.description().pooled_views()), (&[0, 4][..], 1));
    for cell in &cells[..6] {
        let mut said = Vec::new();
        for &way in judge.description().ways() {
            let mut planes = vec![0.0; 2 * PLANE];
            for (from, to) in cell.planes.chunks_exact(PLANE).zip(planes.chunks_exact_mut(PLANE)) {
                turned(way).apply(from, to, SIDE);
            }
            let mut logits = [0.0; 3];
            classifier.logits(&[&planes[..PLANE], &planes[PLANE..]], &mut logits).unwrap();
            said.extend(logits.map(f16::from_f32));
        }
        let own = bench.weigh(&cell.planes, &cell.row, 0).unwrap();
        let other = bench.weigh_logits(&said, &cell.row, 0).unwrap();
        for (a, b) in own.logits().iter().zip(other.logits()) {
            assert!((a - b).abs() <= 2e-3 * a.abs().max(1.0), "{own:?} {other:?}");
        }
        assert_eq!(bench.weigh_logits(&said[..3], &cell.row, 0), None, "one way is missing");
        said[4] = f16::NAN;
        assert_eq!(bench.weigh_logits(&said, &cell.row, 0), None);
    }
    let description = judge.description().clone();
    let kernel =
        description.kernel.clone().map(|kernel| crate::classifier::kernel::Description { uses: Uses::Heat, ..kernel });
    assert_eq!(Description { kernel, ..description.clone() }.pooled_views(), 0, "the heatmap alone is looked at");
    assert_eq!(Description { kernel: None, ..description }.pooled_views(), 0);
}

#[test]
fn a_number_that_is_not_finite_gives_no_opinion() {
    let (taught, cells, _) = taught(Some(Planes::HeatmapAndImage), Some(Uses::Both));
    let mut bench = Bench::new(Arc::new(taught.judge), Isa::detect(), Arc::new(Workers::new(1))).unwrap();
    let cell = &cells[4];
    for at in [0, PLANE + 77] {
        let mut planes = cell.planes.to_vec();
        planes[at] = f32::NAN;
        assert_eq!(bench.weigh(&planes, &cell.row, 0), None);
    }
    for value in [f32::NAN, f32::INFINITY] {
        let mut row = cell.row.to_vec();
        row[WIDTH - 1] = value;
        assert_eq!(bench.weigh(&cell.planes, &row, 0), None);
    }
    assert!(bench.weigh(&cell.planes, &cell.row, 0).is_some());
    assert_eq!(bench.weigh(&cell.planes, &cell.row, 1), None, "a kind that it does not know");
}

#[test]
fn a_judge_of_one_level_or_of_nobody_is_refused() {
    let (cells, _) = evidence(20);
    let seen: Vec<&Evidence> = cells.iter().collect();
    let cells = Cells { evidence: &seen, level: &[1; 20], kind: &[0; 20], group: &[0; 20], levels: 3 };
    let backbone = Loaded::embedded().unwrap().network;
    let workers = Arc::new(Workers::new(1));
    let settings = JudgeSettings::default();
    let go = |_: Event<'_, '_>| ControlFlow::Continue(());
    assert!(matches!(fit(&cells, &settings, &backbone, None, &workers, go), Err(JudgeError::OneLevel(20))));
    let nobody = JudgeSettings { planes: None, kernel: None, ..settings };
    assert!(matches!(fit(&cells, &nobody, &backbone, None, &workers, go), Err(JudgeError::Nobody)));
}
