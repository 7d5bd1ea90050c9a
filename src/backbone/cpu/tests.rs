use super::*;
use crate::backbone::reference;
use crate::embedding::projection::CHANNELS;
use crate::embedding::{Embedder, Embedding, Mixing, Projection};
use crate::gaussian::distance::mahalanobis;
use crate::gaussian::{Accumulator, Precision, Shrinkage};

/// An image with edges and noise, about as wide as a normalised one.
fn image(size: usize) -> Vec<f32> {
    noisy_image(size, 7)
}

pub(super) fn noisy_image(size: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    (0..size * size)
        .map(|i| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (y, x) = (i / size, i % size);
            let busbar = if x % 21 < 2 { -1.5 } else { 0.5 };
            busbar + (y as f32 / 9.0).sin() + (state >> 8) as f32 / (1 << 24) as f32
        })
        .collect()
}

/// What may be lost of a map's largest value where halves are multiplied as such.
pub(super) const HALVES: f64 = 2e-2;

/// max|a − b| / max|b|.
pub(super) fn relative_error(got: impl Iterator<Item = f32>, want: &[f64]) -> f64 {
    let got: Vec<f32> = got.collect();
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    got.into_iter().zip(want).fold(0.0, |m: f64, (g, w)| m.max((f64::from(g) - w).abs())) / largest
}

fn run(net: &ResNet18, size: usize, method: Method, isa: Isa, threads: usize, image: &[f32]) -> Pyramid {
    let workers = Arc::new(Workers::new(threads));
    let mut backbone = CpuBackbone::with_options(net, size, Options { method, depth: 4 }, isa, workers).unwrap();
    let mut pyramid = Pyramid::new(size);
    backbone.run(image, &mut pyramid).unwrap();
    // A second run must not see anything of the first.
    let first = pyramid.clone();
    backbone.run(image, &mut pyramid).unwrap();
    assert_eq!(first, pyramid, "a run depends on the one before");
    pyramid
}

#[test]
fn every_instruction_set_agrees_with_the_f64_reference_at_64() {
    every_instruction_set_agrees(64);
}

#[test]
fn every_instruction_set_agrees_with_the_f64_reference_at_96() {
    every_instruction_set_agrees(96);
}

/// Both methods within their tolerance of the f64 reference, and the same to the bit whatever the threads.
fn every_instruction_set_agrees(size: usize) {
    let net = ResNet18::embedded().unwrap();
    let image = image(size);
    let expected = reference::forward(&net, &image, size);
    for isa in Isa::available() {
        for (method, tolerance) in [(Method::Direct, 1e-5), (Method::Winograd, 1e-3)] {
            let tolerance = if isa.multiplies_halves() { HALVES } else { tolerance };
            let alone = run(&net, size, method, isa, 1, &image);
            for (stage, want) in expected.iter().enumerate() {
                let error = relative_error(alone.values(stage), want);
                let case = format!("{method:?} on {isa}, S={size}, stage {}", stage + 1);
                println!("{case}: {error:.1e}");
                assert!(error <= tolerance, "{case}: relative error {error:e}");
            }
            for threads in [2, 3] {
                let shared = run(&net, size, method, isa, threads, &image);
                assert!(shared == alone, "{method:?} on {isa}, S={size}: {threads} threads differ");
            }
        }
    }
}

/// 224 is where tiles hang over the edge: 56 pixels are 14 tiles of 4, but 14 are 3½, and 7 are 3½ tiles of 2. It is also
/// where every kind of tile is used with weights in single precision.
#[test]
fn tiles_over_the_edge_agree_with_the_f64_reference() {
    let net = ResNet18::embedded().unwrap();
    let image = image(224);
    let expected = reference::forward(&net, &image, 224);
    for isa in Isa::available().filter(|isa| *isa != Isa::Scalar) {
        let pyramid = run(&net, 224, Method::Winograd, isa, 2, &image);
        for (stage, want) in expected.iter().enumerate() {
            let error = relative_error(pyramid.values(stage), want);
            println!("{isa}, S=224, stage {}: {error:.1e}", stage + 1);
            let tolerance = match stage {
                _ if isa.multiplies_halves() => HALVES,
                0..2 => 1e-5,
                _ => 2e-4,
            };
            assert!(error <= tolerance, "{isa}, stage {}: relative error {error:e}", stage + 1);
        }
    }
}

#[test]
fn a_nan_anywhere_reaches_every_map() {
    let net = ResNet18::embedded().unwrap();
    for isa in Isa::available() {
        for at in [0, 64 * 64 - 1, 20 * 64 + 21, 33 * 64 + 32] {
            let mut image = image(64);
            image[at] = f32::NAN;
            let pyramid = run_once(&net, isa, &image);
            for stage in 0..4 {
                assert!(pyramid.values(stage).any(f32::is_nan), "{isa}: stage {} hides pixel {at}", stage + 1);
            }
        }
    }
}

fn run_once(net: &ResNet18, isa: Isa, image: &[f32]) -> Pyramid {
    let mut pyramid = Pyramid::new(64);
    let mut backbone = CpuBackbone::new(net, 64, isa, Arc::new(Workers::new(1))).unwrap();
    backbone.run(image, &mut pyramid).unwrap();
    pyramid
}

/// A model that was fitted on one instruction set judges on another: M at every position, of good cells and of one with a
/// dark spot.
#[test]
fn the_distance_is_the_same_on_every_instruction_set() {
    const GOOD: u32 = 16;
    let (size, grid, k) = (64, 8, 16);
    let net = ResNet18::embedded().unwrap();
    let projection =
        Projection::semi_orthogonal(Mixing::Dense, k, 1, "1,2,3".parse().unwrap(), &[1.0; CHANNELS]).unwrap();
    let workers = Arc::new(Workers::new(1));
    let engine = |isa: Isa| {
        let backbone = CpuBackbone::with_options(
            &net,
            size,
            Options { depth: 3, ..Options::default() },
            isa,
            Arc::clone(&workers),
        );
        let embedder = Embedder::new(&projection, size, grid, isa, Arc::clone(&workers));
        (backbone.unwrap(), embedder, Pyramid::with_stages(size, [true, true, true, false]))
    };

    let fitted_on = Isa::available().find(|isa| !isa.multiplies_halves()).unwrap();
    let (mut backbone, mut embedder, mut pyramid) = engine(fitted_on);
    let good = (1..=GOOD).map(|seed| {
        backbone.run(&noisy_image(size, seed), &mut pyramid).unwrap();
        let mut embedding = Embedding::new(grid, k);
        embedder.project(&pyramid).read_into(&mut embedding);
        embedding
    });
    let good: Vec<Embedding> = good.collect();
    let mut moments = Accumulator::new(grid, k);
    for batch in good.chunks(8) {
        moments.update(&batch.iter().collect::<Vec<_>>(), fitted_on, &workers);
    }
    let fit = moments.finish(Shrinkage::default(), Precision::F16, &workers).unwrap();

    let mut spot = noisy_image(size, GOOD + 3);
    (20..30).for_each(|y| spot[y * size + 34..][..8].fill(-2.0));
    let cells = [noisy_image(size, GOOD + 1), noisy_image(size, GOOD + 2), spot];
    let judge = |isa: Isa| -> Vec<f32> {
        let (mut backbone, mut embedder, mut pyramid) = engine(isa);
        let maps = cells.iter().flat_map(|cell| {
            backbone.run(cell, &mut pyramid).unwrap();
            let mut heat = vec![0.0; grid * grid];
            mahalanobis(&fit.view(), embedder.project(&pyramid), &mut heat);
            heat
        });
        maps.collect()
    };
    let expected = judge(fitted_on);
    for isa in Isa::available() {
        let got = judge(isa);
        let (mut worst, mut mean) = (0.0f32, 0.0);
        for (got, want) in got.iter().zip(&expected) {
            let error = (got - want).abs() / want;
            (worst, mean) = (worst.max(error), mean + error / expected.len() as f32);
        }
        println!("fitted on {fitted_on}, judged on {isa}: M differs by {worst:.1e} at most, {mean:.1e} in the mean");
        let tolerance = if isa.multiplies_halves() { 1e-1 } else { 1e-4 };
        assert!(worst <= tolerance, "{isa}: M differs by {worst:e}");
    }
}

#[test]
fn wrong_sizes_are_refused() {
    let net = ResNet18::embedded().unwrap();
    let workers = Arc::new(Workers::new(1));
    for side in [0, 32, 100, 257, 1056] {
        let refused = CpuBackbone::new(&net, side, Isa::Scalar, Arc::clone(&workers)).err();
        assert_eq!(refused, Some(BackboneError::Side(side)));
    }
    let mut backbone = CpuBackbone::new(&net, 64, Isa::Scalar, workers).unwrap();
    assert_eq!(backbone.identity(), net.identity());
    assert_eq!(backbone.run(&[0.0; 100], &mut Pyramid::new(64)), Err(BackboneError::ImageSize { got: 100, size: 64 }));
    assert_eq!(backbone.run(&[0.0; 64 * 64], &mut Pyramid::new(96)), Err(BackboneError::PyramidSize { size: 64 }));
}

#[test]
fn only_the_stages_that_are_wanted_are_written_and_they_are_the_same() {
    let net = ResNet18::embedded().unwrap();
    let (isa, image) = (Isa::detect(), image(64));
    let all = run(&net, 64, Method::Winograd, isa, 2, &image);
    for depth in 1..=4 {
        let options = Options { depth, ..Options::default() };
        let workers = Arc::new(Workers::new(2));
        let mut backbone = CpuBackbone::with_options(&net, 64, options, isa, workers).unwrap();
        assert_eq!((backbone.depth(), backbone.identity()), (depth, net.identity()));
        for bits in 0..16usize {
            let wanted: [bool; 4] = std::array::from_fn(|stage| bits >> stage & 1 == 1);
            let mut pyramid = Pyramid::with_stages(64, wanted);
            assert_eq!(pyramid.stages(), wanted);
            let outcome = backbone.run(&image, &mut pyramid);
            if pyramid.depth() > depth {
                assert_eq!(outcome, Err(BackboneError::Stage { wanted: pyramid.depth(), built: depth }));
                continue;
            }
            outcome.unwrap();
            for stage in 0..4 {
                let expected = all.rows(stage).take(if wanted[stage] { pyramid.side(stage) } else { 0 });
                assert!(pyramid.rows(stage).eq(expected), "stage {} of {wanted:?}, built for {depth}", stage + 1);
            }
        }
    }
}

#[test]
fn no_step_is_done_after_the_last_stage_wanted() {
    let net = ResNet18::embedded().unwrap();
    let mut backbone = CpuBackbone::new(&net, 64, Isa::detect(), Arc::new(Workers::new(1))).unwrap();
    let mut steps = Vec::new();
    let mut pyramid = Pyramid::with_stages(64, [true, true, true, false]);
    backbone.run_observed(&image(64), &mut pyramid, |step| steps.push(step.name.clone())).unwrap();
    assert!(steps.iter().any(|step| step == "layer3.1.conv2"));
    assert!(!steps.iter().any(|step| step.starts_with("layer4")), "{steps:?}");
}
