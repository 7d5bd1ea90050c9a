//! What a judge looks at: `kernels/judge.cu` against src/classifier.

use cellgate::backbone::{Pyramid, STAGE_CHANNELS};
use cellgate::classifier::SIDE;
use cellgate::classifier::features::{POOLED, pool};
use cellgate::classifier::planes::{heatmap_plane, image_plane, turned};
use cellgate::simd::Isa;
use half::f16;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::kernels::cell::{bits, in_every_order, uniform};
use crate::kernels::{Kernels, Memory, Shape};
use crate::{arguments, common, kernels};

/// Channels of all stages.
const CHANNELS: usize = POOLED / 3;

fn floats(halves: &[f16]) -> Vec<f32> {
    halves.iter().map(|x| x.to_f32()).collect()
}

fn noise(count: usize, seed: u64) -> Vec<f16> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| f16::from_f32(6.0 * uniform(&mut rng) - 2.0)).collect()
}

#[test]
fn copies_are_turned_as_the_crate_turns_them() {
    let kernels = kernels_or_skip!("copies_are_turned_as_the_crate_turns_them");
    for (side, planes, ways) in [(64, 1, vec![0, 4, 1, 2]), (64, 2, vec![0, 4, 2, 6, 1, 5, 3, 7]), (97, 1, vec![0, 3])]
    {
        let (images, count) = (noise(planes * side * side, side as u64), side * side);
        let mut all = [0i32; 8];
        all.iter_mut().zip(&ways).for_each(|(to, &way)| *to = way as i32);
        let (length, number) = (side as i32, planes as i32);
        let shape = Shape {
            grid: [count.div_ceil(256) as u32, (planes * (ways.len() - 1)) as u32, 1],
            block: [256, 1, 1],
            shared: 0,
        };
        let got = in_every_order(|order| {
            // Nothing is known of what lies where the copies will be.
            let mut room = images.clone();
            room.resize(ways.len() * images.len(), f16::NAN);
            let mut room = Memory::of(&room);
            let target = room.pointer();
            // SAFETY: the kernel's arguments, and room for every copy.
            unsafe { kernels.launch("turn_halves", shape, order, arguments![target, length, number, all]) }.unwrap();
            bits(&floats(&room.values()))
        });
        for (copy, &way) in ways.iter().enumerate() {
            for plane in 0..planes {
                let mut want = vec![0.0; count];
                turned(way).apply(&floats(&images[plane * count..][..count]), &mut want, side);
                let got = &got[(copy * planes + plane) * count..][..count];
                assert_eq!(got, bits(&want), "side {side}, plane {plane}, way {way}");
            }
        }
    }
}

/// The kernel's `Stages`.
#[repr(C)]
struct Stages {
    data: [*const f16; 4],
    side: [i32; 4],
}

/// What `pool_stages` makes of some views.
fn pooled(kernels: &Kernels, views: &[Pyramid]) -> Vec<f32> {
    let mut stages: [Memory<f16>; 4] = std::array::from_fn(|stage| {
        let values = views.iter().flat_map(|view| view.values(stage)).map(f16::from_f32);
        Memory::of(&values.collect::<Vec<_>>())
    });
    let side = std::array::from_fn(|stage| views[0].side(stage) as i32);
    let shape = Shape { grid: [60, views.len() as u32, 1], block: [256, 1, 1], shared: 0 };
    let got = in_every_order(|order| {
        let stages = Stages { data: stages.each_mut().map(|stage| stage.pointer().cast_const()), side };
        let mut out = Memory::<f32>::new(views.len() * POOLED);
        let target = out.pointer();
        // SAFETY: the kernel's arguments, and stages of the sides that they say.
        unsafe { kernels.launch("pool_stages", shape, order, arguments![stages, target]) }.unwrap();
        bits(&out.values())
    });
    got.into_iter().map(f32::from_bits).collect()
}

/// Features as halves hold them, each channel of another size, and one that does not vary.
fn features(size: usize, seed: u64) -> Pyramid {
    let mut pyramid = Pyramid::new(size);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for stage in 0..4 {
        let channels = STAGE_CHANNELS[stage];
        pyramid.fill_with(stage, |i| {
            let scale = [0.01, 1.0, 30.0, 500.0][i % channels % 4];
            let value = if i % channels == 5 { 7.0 } else { scale * (uniform(&mut rng) - 0.2).max(0.0) };
            f16::from_f32(value).to_f32()
        });
    }
    pyramid
}

/// Means, maxima and standard deviations in double precision.
fn exact(pyramid: &Pyramid) -> Vec<f64> {
    let (mut means, mut maxima, mut deviations) = (Vec::new(), Vec::new(), Vec::new());
    for stage in 0..4 {
        let values: Vec<f64> = pyramid.values(stage).map(f64::from).collect();
        let (channels, pixels) = (STAGE_CHANNELS[stage], pyramid.side(stage).pow(2) as f64);
        for channel in 0..channels {
            let of = || values[channel..].iter().step_by(channels);
            let mean = of().sum::<f64>() / pixels;
            means.push(mean);
            maxima.push(of().copied().fold(f64::MIN, f64::max));
            deviations.push((of().map(|x| (x - mean).powi(2)).sum::<f64>() / pixels).sqrt());
        }
    }
    [means, maxima, deviations].concat()
}

#[test]
fn features_are_pooled_as_the_cpu_pools_them() {
    let kernels = kernels_or_skip!("features_are_pooled_as_the_cpu_pools_them");
    for (size, views) in [(64, 2), (96, 1), (256, 1)] {
        let views: Vec<Pyramid> = (0..views).map(|view| features(size, view + 3)).collect();
        let got = pooled(kernels, &views);
        for (view, got) in views.iter().zip(got.chunks_exact(POOLED)) {
            let mut want = vec![0.0; POOLED];
            pool(view, Isa::detect(), &mut want);
            assert_eq!(got[CHANNELS..2 * CHANNELS], want[CHANNELS..2 * CHANNELS], "maxima");
            // The CPU adds all pixels in one row, which costs it more digits than the kernel's tree.
            for (i, (got, (want, exact))) in got.iter().zip(want.iter().zip(exact(view))).enumerate() {
                assert!((got - want).abs() <= 1e-4 * want.max(1.0), "size {size}, number {i}: {got} for {want}");
                let off = (f64::from(*got) - exact).abs();
                assert!(off <= 5e-6 * exact.max(1.0), "size {size}, number {i}: {got} for {exact}");
            }
            assert_eq!(got[2 * CHANNELS + 5], 0.0, "a channel that does not vary");
        }
    }
}

#[test]
fn a_feature_that_is_not_finite_breaks_its_channel_alone() {
    let kernels = kernels_or_skip!("a_feature_that_is_not_finite_breaks_its_channel_alone");
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut views = [features(64, 1), features(64, 2)];
        // Channel 44 of the second pixel of a row.
        views[1].row_mut(2, 1)[300] = broken;
        let odd: Vec<usize> = pooled(kernels, &views)
            .chunks_exact(CHANNELS)
            .map(|part| part.iter().filter(|x| !x.is_finite()).count())
            .collect();
        assert!(odd[..3] == [0; 3] && odd[3] == 1 && odd[4] <= 1 && odd[5] <= 1, "{broken}: {odd:?}");
        let all = pooled(kernels, &views);
        assert!(!all[POOLED + 64 + 128 + 44].is_finite(), "{broken}");
    }
}

/// The planes of a heatmap and, if it has one, an image.
fn planes(kernels: &Kernels, heatmap: &[f32], k: usize, image: &[f16], side: usize) -> Vec<f16> {
    let (grid, size, unit) = (heatmap.len().isqrt() as i32, image.len().isqrt() as i32, 1.0 / (k as f32).sqrt());
    let across = side as i32;
    let count = if image.is_empty() { 1 } else { 2 };
    let shape = Shape { grid: [(side * side).div_ceil(256) as u32, count, 1], block: [256, 1, 1], shared: 0 };
    let got = in_every_order(|order| {
        let (mut map, mut pixels) = (Memory::of(heatmap), Memory::of(image));
        let mut out = Memory::<f16>::new(count as usize * side * side);
        let (map, pixels, target) = (map.pointer(), pixels.pointer(), out.pointer());
        let arguments = arguments![map, grid, unit, pixels, size, target, across];
        // SAFETY: the kernel's arguments, and squares of the sides that they say.
        unsafe { kernels.launch("judge_planes", shape, order, arguments) }.unwrap();
        out.values().into_iter().map(f16::to_bits).collect::<Vec<u16>>()
    });
    got.into_iter().map(f16::from_bits).collect()
}

#[test]
fn the_networks_planes_are_the_cpus() {
    let kernels = kernels_or_skip!("the_networks_planes_are_the_cpus");
    let shapes = [(256, 64, 100, 64), (64, 16, 24, 64), (224, 56, 64, 64), (96, 100, 7, 64), (1024, 64, 100, 64)];
    for (size, grid, k, side) in shapes.into_iter().chain([(256, 64, 100, 256), (224, 56, 24, 96)]) {
        let plane = side * side;
        let mut rng = ChaCha8Rng::seed_from_u64(grid as u64);
        let mut heatmap: Vec<f32> = (0..grid * grid).map(|_| 60.0 * uniform(&mut rng)).collect();
        heatmap[7] = 0.0;
        let image = noise(size * size, size as u64);
        let (mut first, mut second) = (vec![0.0; plane], vec![0.0; plane]);
        heatmap_plane(&heatmap, grid, k, side, &mut first);
        image_plane(&floats(&image), size, side, &mut second);
        let got = planes(kernels, &heatmap, k, &image, side);
        // The image's plane has no logarithm.
        let halves = |plane: &[f32]| plane.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>();
        assert_eq!(got[plane..], halves(&second), "{size} on {side}");
        for (at, (got, want)) in got.iter().zip(&first).enumerate() {
            assert!((got.to_f32() - want).abs() <= want.abs() / 1024.0 + 1e-6, "grid {grid}, {at}: {got} for {want}");
        }
        assert_eq!(planes(kernels, &heatmap, k, &[], side), got[..plane], "the heatmap alone");
    }
}

#[test]
fn a_distance_that_is_not_finite_stays_so_in_its_plane() {
    let kernels = kernels_or_skip!("a_distance_that_is_not_finite_stays_so_in_its_plane");
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut heatmap = vec![10.0; SIDE * SIDE];
        heatmap[3 * SIDE + 9] = broken;
        let got = planes(kernels, &heatmap, 100, &[], SIDE);
        let odd: Vec<usize> = (0..SIDE * SIDE).filter(|&at| !got[at].is_finite()).collect();
        assert_eq!(odd, [3 * SIDE + 9], "{broken}");
    }
}
