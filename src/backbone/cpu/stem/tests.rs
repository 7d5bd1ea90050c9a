use super::*;
use crate::backbone::cpu::memory::{Area, Layout};
use crate::backbone::cpu::tests::{HALVES, noisy_image, relative_error};
use crate::backbone::{Pyramid, ResNet18, reference};

/// What conv1 and its maximum make of `image`: the bands by two threads in turns, so that some rows are kept and some are
/// made again.
fn run(conv: &Conv, method: Method, isa: Isa, image: &[f32], size: usize) -> Vec<f32> {
    let stem = Stem::new(conv, method, isa);
    let mut layout = Layout::default();
    let input = Tensor::new(&mut layout, Area::Arena, size, 1, 3);
    let scratch = [(); 2].map(|()| layout.reserve(stem.scratch(size / 4)));
    let mut arena = layout.allocate();
    for (y, row) in image.chunks_exact(size).enumerate() {
        arena.as_mut_slice()[input.pixel(y, 0).offset..][..size].copy_from_slice(row);
    }
    let mut pyramid = Pyramid::with_stages(size, [true, false, false, false]);
    let output = Pyramid::place(&mut Layout::default(), size, 1)[0];
    let memory = Areas::new(arena.as_mut_slice(), &mut pyramid);
    let share = Share::new(3);
    for thread in [2, 0] {
        // SAFETY: tensors and scratch lie in this memory, and one thread uses it after the other.
        unsafe { stem.run(isa, memory, &input, &output, &conv.bias, &share, thread, scratch[thread / 2]) };
    }
    pyramid.values(0).collect()
}

#[test]
fn the_maximum_of_conv1_is_that_of_f64() {
    conv1_agrees([64, 96]);
}

#[test]
fn the_maximum_of_conv1_is_that_of_f64_up_to_the_edge() {
    conv1_agrees([224, 256, 320, 512]);
}

fn conv1_agrees<const N: usize>(sizes: [usize; N]) {
    let net = ResNet18::embedded().unwrap();
    let conv = &net.convs()[0];
    for size in sizes {
        let image = noisy_image(size, 3);
        let want = reference::stem_values(conv, &image, size);
        for isa in Isa::available() {
            for (method, tolerance) in [(Method::Direct, 1e-6), (Method::Winograd, 2e-6)] {
                let got = run(conv, method, isa, &image, size);
                let error = relative_error(got.into_iter(), &want);
                println!("{method:?} on {isa}, S={size}: {error:.1e}");
                let tolerance = if isa.multiplies_halves() { HALVES } else { tolerance };
                assert!(error <= tolerance, "{method:?} on {isa}, S={size}: relative error {error:e}");
            }
        }
    }
}

#[test]
fn a_number_that_is_not_finite_reaches_the_maximum() {
    let net = ResNet18::embedded().unwrap();
    let (conv, size) = (&net.convs()[0], 64);
    for isa in Isa::available() {
        for method in [Method::Direct, Method::Winograd] {
            for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in [0, size - 1, size * size - 1, 15 * size + 16, 33 * size + 32] {
                    let mut image = noisy_image(size, 3);
                    image[at] = broken;
                    let got = run(conv, method, isa, &image, size);
                    assert!(got.iter().any(|x| !x.is_finite()), "{method:?} on {isa} hides {broken} at {at}");
                }
            }
        }
    }
}
