use super::*;
use crate::backbone::reference;

/// An image with edges and noise, about as wide as a normalised one.
fn image(size: usize) -> Vec<f32> {
    let mut state = 7u32;
    (0..size * size)
        .map(|i| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (y, x) = (i / size, i % size);
            let busbar = if x % 21 < 2 { -1.5 } else { 0.5 };
            busbar + (y as f32 / 9.0).sin() + (state >> 8) as f32 / (1 << 24) as f32
        })
        .collect()
}

/// max|a − b| / max|b|.
fn relative_error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    got.iter().zip(want).fold(0.0, |m: f64, (&g, w)| m.max((f64::from(g) - w).abs())) / largest
}

fn run(net: &ResNet18, size: usize, isa: Isa, threads: usize, image: &[f32]) -> Pyramid {
    let mut backbone = CpuBackbone::new(net, size, isa, Arc::new(Workers::new(threads))).unwrap();
    let mut pyramid = Pyramid::new(size);
    backbone.run(image, &mut pyramid).unwrap();
    // A second run must not see anything of the first.
    let first = pyramid.clone();
    backbone.run(image, &mut pyramid).unwrap();
    assert_eq!(first, pyramid, "a run depends on the one before");
    pyramid
}

#[test]
fn every_instruction_set_agrees_with_the_f64_reference_whatever_the_threads() {
    let net = ResNet18::embedded().unwrap();
    for size in [64, 96] {
        let image = image(size);
        let expected = reference::forward(&net, &image, size);
        for isa in Isa::available() {
            let alone = run(&net, size, isa, 1, &image);
            for (stage, want) in expected.iter().enumerate() {
                let error = relative_error(alone.map(stage), want);
                println!("{isa} S={size} stage {}: {error:.1e}", stage + 1);
                assert!(error <= TOLERANCE, "{isa} S={size} stage {}: relative error {error:e}", stage + 1);
            }
            for threads in [2, 3] {
                assert!(run(&net, size, isa, threads, &image) == alone, "{isa} S={size}: {threads} threads differ");
            }
        }
    }
}

/// Direct convolution only.
const TOLERANCE: f64 = 1e-5;

#[test]
fn a_nan_anywhere_reaches_every_map() {
    let net = ResNet18::embedded().unwrap();
    for isa in Isa::available() {
        for at in [0, 64 * 64 - 1, 20 * 64 + 21, 33 * 64 + 32] {
            let mut image = image(64);
            image[at] = f32::NAN;
            let pyramid = run_once(&net, isa, &image);
            for stage in 0..4 {
                assert!(pyramid.map(stage).iter().any(|x| x.is_nan()), "{isa}: stage {} hides pixel {at}", stage + 1);
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
