//! From a camera's frame to the network's input.

use cellgate::backbone::{INPUT_MEAN, INPUT_STD};
use cellgate::camera::Format;
use cellgate::frame::Frame;
use cellgate::preprocess::sensor::{Calibration, Correction, Recorder};
use cellgate::preprocess::{Axis, Gates, PreprocessConfig, Preprocessor};
use cellgate::synth::{Generator, SynthConfig};
use half::f16;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::kernels::cell::{bits, in_every_order, uniform};
use crate::kernels::{Memory, Shape};
use crate::{arguments, common, kernels};

#[test]
fn a_sensor_is_corrected_to_the_last_bit() {
    let kernels = kernels_or_skip!("a_sensor_is_corrected_to_the_last_bit");
    for (white, side) in [(255u16, 37), (4095, 64), (65535, 101)] {
        let format = Format { width: side, height: side, white };
        let mut rng = ChaCha8Rng::seed_from_u64(side as u64);
        // Dark frames with a pattern, and some hot pixels, of which a few are neighbours.
        let level = |at: usize| if at % 211 < 2 { f32::from(white) * 0.5 } else { f32::from(white) * 0.02 };
        let mut dark = Recorder::new(format);
        for _ in 0..64 {
            let pixels = (0..side * side).map(|at| (level(at) * (0.9 + 0.2 * uniform(&mut rng))) as u16).collect();
            dark.add(&Frame::from_pixels(side, side, white, pixels)).unwrap();
        }
        let calibration = Calibration::from_dark(&dark, "", "").unwrap();
        let correction = Correction::new(&calibration, format).unwrap();
        let tables = correction.tables();
        assert!(!tables.bad.is_empty());
        let raw: Vec<u16> = (0..side * side).map(|_| (uniform(&mut rng) * 1.05 * f32::from(white)) as u16).collect();
        let mut want = Frame::from_pixels(side, side, white, raw.clone());
        correction.apply(&mut want).unwrap();

        let words = tables.neighbours.iter().flat_map(|(n, at)| std::iter::once(u32::from(*n)).chain(*at));
        let mut neighbours = Memory::of(&words.collect::<Vec<_>>());
        let (mut dark, mut gain, mut bad) = (Memory::of(tables.dark), Memory::of(tables.gain), Memory::of(tables.bad));
        let (dark, gain, bad_pixels) = (dark.pointer(), gain.pointer(), bad.pointer());
        let (near, count, bads) = (neighbours.pointer(), raw.len() as i32, tables.bad.len() as i32);
        let (white, places) = (i32::from(white), tables.places as i32);
        let got = in_every_order(|order| {
            let (mut frame, mut copy) = (Memory::of(&raw), Memory::<u16>::new(raw.len()));
            let mut taken = taken(&mut frame, raw.len());
            let (place, pixels) = (taken.pointer(), copy.pointer());
            let shape = Shape::of(raw.len().div_ceil(4), 256);
            // SAFETY: the kernels' arguments, and as many pixels and bad ones as they are told.
            unsafe {
                let arguments = arguments![place, dark, gain, pixels, count, white, places];
                kernels.launch("correct_frame", shape, order, arguments).unwrap();
                let shape = Shape::of(tables.bad.len(), 64);
                kernels.launch("correct_bad", shape, order, arguments![place, pixels, bad_pixels, near, bads]).unwrap();
            }
            assert_eq!(taken.values()[1], raw.len() as u64 * 0x1_0000_0001, "all of it is done");
            (frame.values(), copy.values())
        });
        assert_eq!(got.0, want.pixels(), "where it came from");
        assert_eq!(got.1, want.pixels(), "on the device");
    }
}

/// A frame as the kernels' `Taken` names it.
fn taken(frame: &mut Memory<u16>, count: usize) -> Memory<u64> {
    Memory::of(&[frame.pointer() as u64, count as u64])
}

#[test]
fn a_frame_of_any_size_is_taken_whole() {
    let kernels = kernels_or_skip!("a_frame_of_any_size_is_taken_whole");
    // None, less than a thread's eight, none beside them and some, and more than one turn of 2 blocks.
    for count in [0, 5, 4096, 4099, 20_007] {
        let pixels: Vec<u16> = (0..count).map(|at| (at * 37 + 11) as u16).collect();
        let got = in_every_order(|order| {
            let (mut frame, mut copy) = (Memory::of(&pixels), Memory::<u16>::new(count));
            let mut taken = taken(&mut frame, count);
            let (place, target) = (taken.pointer(), copy.pointer());
            // SAFETY: the kernel's arguments, and as many pixels as it is told.
            unsafe { kernels.launch("take_frame", Shape::of(512, 256), order, arguments![place, target]) }.unwrap();
            assert_eq!(taken.values()[1], count as u64 * 0x1_0000_0001, "all of it is done");
            copy.values()
        });
        assert_eq!(got, pixels);
    }
}

#[test]
fn a_whole_frame_is_resampled_to_the_last_bit() {
    let kernels = kernels_or_skip!("a_whole_frame_is_resampled_to_the_last_bit");
    // Smaller, larger, of another shape, and as large as the image.
    for ([width, height], white, size) in
        [([300, 300], 255u16, 256), ([90, 201], 4095, 64), ([40, 33], 65535, 96), ([64, 64], 255, 64)]
    {
        let mut rng = ChaCha8Rng::seed_from_u64(width as u64);
        let pixels = (0..width * height).map(|_| (uniform(&mut rng) * f32::from(white)) as u16).collect();
        let frame = Frame::from_pixels(width, height, white, pixels);
        let mut want = vec![0.0; size * size];
        let config = PreprocessConfig { gates: Gates::off(), ..PreprocessConfig::whole_frame() };
        Preprocessor::new(config, size, 300, 300).unwrap().run(&frame, &mut want).unwrap();
        let [factor, shift] = cellgate::preprocess::normalisation(&frame);
        // Rooms are made for larger frames: the rows of weights behind an axis' own are never read.
        let table = |from: usize| {
            let mut axis = Axis::new(size, 300);
            axis.prepare(from);
            let mut words = vec![u32::MAX; (2 + axis.most()) * size];
            for at in 0..size {
                let (first, weights) = axis.taps(at);
                (words[at], words[size + at]) = (first as u32, weights.len() as u32);
                for (tap, weight) in weights.iter().enumerate() {
                    words[(2 + tap) * size + at] = weight.to_bits();
                }
            }
            Memory::of(&words)
        };
        let (mut pixels, mut across, mut down) = (Memory::of(frame.pixels()), table(width), table(height));
        let rest = [width as u32, height as u32, 1, factor.to_bits(), shift.to_bits(), 0];
        let mut placed = Memory::of(&[[0; 18].as_slice(), &rest].concat());
        let (pixels, placed) = (pixels.pointer(), placed.pointer());
        let (across, down, length) = (across.pointer(), down.pointer(), size as i32);
        let shape = Shape { grid: [size.div_ceil(256) as u32, size as u32, 1], block: [256, 1, 1], shared: 0 };
        let (image, input) = in_every_order(|order| {
            let (mut image, mut input) = (Memory::<f32>::new(size * size), Memory::<f16>::new(size * size));
            let (float, half) = (image.pointer(), input.pointer());
            let arguments = arguments![pixels, placed, across, down, float, half, length];
            // SAFETY: the kernel's arguments, a frame of width × height, its axes and images of size².
            unsafe { kernels.launch("resample_image", shape, order, arguments) }.unwrap();
            (bits(&image.values()), input.values())
        });
        let normalised: Vec<f32> = image.iter().map(|&g| f32::from_bits(g) * factor - shift).collect();
        assert_eq!(bits(&normalised), bits(&want), "{width}×{height} → {size}");
        assert_eq!(input, normalised.iter().map(|&g| f16::from_f32(g)).collect::<Vec<_>>());
    }
}

#[test]
fn a_frame_is_straightened_and_normalised_to_the_last_bit() {
    let kernels = kernels_or_skip!("a_frame_is_straightened_and_normalised_to_the_last_bit");
    for (frame_side, white, size, jitter) in [(720, 255, 256, 1.0), (300, 4095, 224, 2.0), (180, 65535, 64, 1.0)] {
        let config = SynthConfig { size: frame_side, white, pose_jitter: jitter, ..SynthConfig::default() };
        let frame = Generator::new(config, 4).unwrap().cell(2).frame;
        let mut want = vec![0.0; size * size];
        let mut preprocessor = Preprocessor::new(PreprocessConfig::default(), size, frame_side, frame_side).unwrap();
        let placement = preprocessor.run(&frame, &mut want).unwrap();
        let corner = |i: usize| placement.quad[i % 4];
        let side = |i: usize| (corner(i)[0] - corner(i + 1)[0]).hypot(corner(i)[1] - corner(i + 1)[1]);
        let scale = (0..4).map(side).sum::<f64>() / 4.0 / size as f64;
        let taps = (scale / 1.5).ceil() as i32;
        let (factor, shift) = (1.0 / (f32::from(white) * INPUT_STD), INPUT_MEAN / INPUT_STD);
        let (side, length) = (frame_side as u32, size as i32);
        let shape = Shape { grid: [size.div_ceil(256) as u32, size as u32, 1], block: [32, 8, 1], shared: 0 };
        let mut pixels = Memory::of(frame.pixels());
        // The frame lies in the picture, or reaches beyond it on every side.
        let outside = [1.3, 0.0, -90.0, 0.0, 1.3, -90.0, 0.0, 0.0, 1.0];
        for (inside, homography) in [(true, placement.homography), (false, outside)] {
            // As the kernel's `Placed` lies in memory.
            let words = homography.into_iter().flat_map(|h| [h.to_bits() as u32, (h.to_bits() >> 32) as u32]);
            let rest = [side, side, taps as u32, factor.to_bits(), shift.to_bits(), 0];
            let mut placed = Memory::of(&words.chain(rest).collect::<Vec<u32>>());
            let (pixels, placed) = (pixels.pointer(), placed.pointer());
            let run = |order| {
                let (mut image, mut input) = (Memory::<f32>::new(size * size), Memory::<f16>::new(size * size));
                let (float, half) = (image.pointer(), input.pointer());
                // SAFETY: the kernel's arguments, a frame of width × height and images of size².
                unsafe {
                    kernels.launch("rectify_image", shape, order, arguments![pixels, placed, float, half, length])
                }
                .unwrap();
                (bits(&image.values()), input.values())
            };
            let (image, input) = in_every_order(run);
            let normalised: Vec<f32> = image.iter().map(|&g| f32::from_bits(g) * factor - shift).collect();
            if inside {
                assert_eq!(bits(&normalised), bits(&want), "{frame_side} → {size}");
            }
            assert!(normalised.iter().all(|g| g.is_finite()));
            assert_eq!(input, normalised.iter().map(|&g| f16::from_f32(g)).collect::<Vec<_>>());
        }
    }
}

#[test]
fn brightness_and_sharpness_are_those_of_the_gates() {
    let kernels = kernels_or_skip!("brightness_and_sharpness_are_those_of_the_gates");
    let measures = |image: &[f32], size: i32| {
        let got = in_every_order(|order| {
            let (mut image, mut out) = (Memory::of(image), Memory::<f32>::new(2));
            let (source, target) = (image.pointer(), out.pointer());
            let arguments = arguments![source, size, target];
            // SAFETY: the kernel's arguments, and an image of size².
            unsafe { kernels.launch("measure_image", Shape::of(1024, 1024), order, arguments) }.unwrap();
            bits(&out.values())
        });
        [f32::from_bits(got[0]), f32::from_bits(got[1])]
    };
    for size in [64, 256] {
        let config = SynthConfig { size: 400, white: 4095, ..SynthConfig::default() };
        let frame = Generator::new(config, 8).unwrap().cell(1).frame;
        let mut image = vec![0.0; size * size];
        let mut preprocessor = Preprocessor::new(PreprocessConfig::default(), size, 400, 400).unwrap();
        let placement = preprocessor.run(&frame, &mut image).unwrap();
        // Back to the frame's own units.
        image.iter_mut().for_each(|g| *g = (*g * INPUT_STD + INPUT_MEAN) * 4095.0);
        let [mean, sharpness] = measures(&image, size as i32);
        for (got, want) in [(mean / 4095.0, placement.brightness), (sharpness, placement.sharpness)] {
            assert!((got - want).abs() <= 1e-5 * want, "{size}: {got} for {want}");
        }
    }
    assert_eq!(measures(&[0.0; 64 * 64], 64), [0.0, 0.0]);
}
