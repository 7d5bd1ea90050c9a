//! A sensor with known faults is recorded, and what it spoils is restored.

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::camera::pattern::Pattern;
use crate::camera::synthetic::{Scene, Settings, Synthetic};
use crate::camera::{Camera, Shot};
use crate::synth::SynthConfig;

const SIDE: usize = 160;

fn settings(white: u16, scene: Scene, pattern: f32) -> Settings {
    let synth = SynthConfig { size: SIDE, white, vignette: 0.1, ..SynthConfig::default() };
    Settings { synth, seed: 3, period: Duration::ZERO, scene, pattern, ..Settings::default() }
}

fn format(white: u16) -> Format {
    Format { width: SIDE, height: SIDE, white }
}

fn record(settings: Settings, frames: u32) -> Recorder {
    let mut camera = Synthetic::new(settings).unwrap();
    let mut recorder = Recorder::new(camera.format());
    let mut shot = Shot::new(1, 1, 1);
    for _ in 0..frames {
        camera.next(&mut shot, Duration::ZERO).unwrap();
        recorder.add(&shot.frame).unwrap();
    }
    recorder
}

fn calibration(white: u16) -> Calibration {
    let dark = Calibration::from_dark(&record(settings(white, Scene::Dark, 1.0), 32), "synthetic", "e=1").unwrap();
    dark.with_flat(&record(settings(white, Scene::Flat, 1.0), 32)).unwrap()
}

fn reason(result: Result<Calibration, SensorError>) -> String {
    match result {
        Err(SensorError::Frames(why)) => why,
        other => panic!("{other:?}"),
    }
}

/// Means of what lies between spoilt and restored, and the truth, in shares of full scale: (largest, mean) difference.
fn differences(a: &Frame, b: &[f32]) -> (f32, f32) {
    let white = f32::from(a.white());
    let each = a.pixels().iter().zip(b).map(|(&p, q)| (f32::from(p) - q).abs() / white);
    (each.clone().fold(0.0, f32::max), each.sum::<f32>() / b.len() as f32)
}

#[test]
fn known_faults_of_a_sensor_are_found_and_a_frame_is_restored() {
    for white in [255, 4095, 65535] {
        let calibration = calibration(white);
        let truth = Pattern::new(format(white), 3, 1.0);
        let missed =
            |list: &[usize]| list.iter().filter(|&&i| calibration.bad().binary_search(&(i as u32)).is_err()).count();
        assert_eq!(missed(&truth.dead) + missed(&truth.hot) + missed(&truth.unstable), 0, "white {white}");
        let real = truth.dead.len() + truth.hot.len() + truth.unstable.len();
        assert!(calibration.bad().len() <= real, "{:?} of {real}", calibration.found());

        // A steady gradient: the restored frame is the clean one less the dark signal, with the light's falling off undone.
        let clean: Vec<u16> = (0..SIDE * SIDE)
            .map(|i| (f32::from(white) * (0.2 + 0.4 * (i % SIDE) as f32 / SIDE as f32)) as u16)
            .collect();
        let mut frame = Frame::from_pixels(SIDE, SIDE, white, clean.clone());
        truth.apply(&mut frame, 0);
        let flat = |i: usize| {
            let (dx, dy) = ((i % SIDE) as f32 + 0.5 - 80.0, (i / SIDE) as f32 + 0.5 - 80.0);
            1.0 - 0.1 * (dx * dx + dy * dy) / (2.0 * 80.0 * 80.0)
        };
        let level = (0..SIDE * SIDE).map(flat).sum::<f32>() / (SIDE * SIDE) as f32;
        let wanted: Vec<f32> = clean
            .iter()
            .enumerate()
            .map(|(i, &p)| (f32::from(p) - 0.03 * f32::from(white)) * level / flat(i))
            .collect();
        let before = differences(&frame, &wanted);
        Correction::new(&calibration, format(white)).unwrap().apply(&mut frame).unwrap();
        let after = differences(&frame, &wanted);
        assert!(after.0 < 0.02 && after.1 < 0.003, "white {white}: {before:?} → {after:?}");
        assert!(before.0 > 0.1 && before.1 > 0.02, "white {white}: {before:?}");
    }
}

#[test]
fn overexposed_pixels_stay_overexposed_and_bad_ones_do_not_look_so() {
    let calibration = calibration(255);
    let correction = Correction::new(&calibration, format(255)).unwrap();
    let mut frame = Frame::from_pixels(SIDE, SIDE, 255, vec![255; SIDE * SIDE]);
    correction.apply(&mut frame).unwrap();
    assert!(frame.pixels().iter().all(|&p| p == 255));
    let mut frame = Frame::from_pixels(SIDE, SIDE, 255, vec![120; SIDE * SIDE]);
    for &i in calibration.bad() {
        frame.pixels_mut()[i as usize] = 255;
    }
    correction.apply(&mut frame).unwrap();
    assert!(frame.pixels().iter().all(|&p| p < 255));
}

#[test]
fn frames_that_are_not_what_they_should_be_are_refused_with_the_remedy() {
    let dark = record(settings(255, Scene::Dark, 1.0), 16);
    let flat = record(settings(255, Scene::Flat, 1.0), 16);
    let good = Calibration::from_dark(&dark, "", "").unwrap();
    assert!(
        reason(Calibration::from_dark(&record(settings(255, Scene::Cell, 0.0), 4), "", "")).contains("cover the lens")
    );
    assert!(reason(Calibration::from_dark(&flat, "", "")).contains("cover the lens"));
    assert!(
        reason(Calibration::from_dark(&record(settings(255, Scene::Dark, 0.0), 3), "", "")).contains("64 are good")
    );
    assert!(reason(good.with_flat(&dark)).contains("too dim"));
    let one_cell = Settings { prepared: 1, ..settings(255, Scene::Cell, 0.0) };
    assert!(reason(good.with_flat(&record(one_cell, 4))).contains("not even"));
    let plates = |levels: &[u16]| {
        let mut recorder = Recorder::new(format(255));
        for &level in levels {
            recorder.add(&Frame::from_pixels(SIDE, SIDE, 255, vec![level; SIDE * SIDE])).unwrap();
        }
        recorder
    };
    assert!(reason(good.with_flat(&plates(&[255; 4]))).contains("overexposed"));
    assert!(reason(good.with_flat(&plates(&[100, 100, 120, 100]))).contains("not steady"));
    let mut other = plates(&[10; 4]);
    assert!(matches!(other.add(&Frame::new(3, 3, 255)), Err(SensorError::Format { .. })));
    let small = Recorder::new(Format { width: 3, ..format(255) });
    assert!(matches!(good.with_flat(&small), Err(SensorError::Format { .. })));
}

#[test]
fn a_second_flat_frame_replaces_the_first() {
    let once = calibration(4095);
    let twice = once.with_flat(&record(settings(4095, Scene::Flat, 1.0), 32)).unwrap();
    assert_eq!((once.gain(), once.bad(), once.found()), (twice.gain(), twice.bad(), twice.found()));
}

#[test]
fn another_size_depth_or_exposure_is_refused_and_both_are_named() {
    let calibration = calibration(255);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("line.cgs");
    calibration.write(&path).unwrap();
    assert_eq!(Calibration::read(&path).unwrap(), calibration);
    Correction::load(&path, format(255), "e=1").unwrap();
    let error = Correction::load(&path, format(4095), "e=1").unwrap_err().to_string();
    assert!(error.contains("160×160 with full scale 255") && error.contains("full scale 4095"), "{error}");
    let error = Correction::load(&path, format(255), "e=2").unwrap_err().to_string();
    assert!(error.contains("line.cgs") && error.contains("`e=1`") && error.contains("`e=2`"), "{error}");
    let correction = Correction::new(&calibration, format(255)).unwrap();
    let mut small = Frame::new(3, 3, 255);
    assert!(matches!(correction.apply(&mut small), Err(SensorError::Format { .. })));
}

#[test]
fn files_that_lie_are_refused() {
    let calibration = calibration(255);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.cgs");
    let write = |change: fn(&mut Calibration)| {
        let mut other = calibration.clone();
        change(&mut other);
        other.write(&path).unwrap();
        Calibration::read(&path).unwrap_err().to_string()
    };
    assert!(write(|c| c.header.width = 1 << 20).contains("damaged"));
    assert!(write(|c| c.header.height = 200).contains("`dark`"));
    assert!(write(|c| c.header.white = 0).contains("damaged"));
    assert!(write(|c| c.header.bad = u32::MAX).contains("damaged"));
    assert!(write(|c| c.bad[0] = c.bad[1]).contains("order"));
    assert!(write(|c| *c.bad.last_mut().unwrap() = u32::MAX).contains("not on the sensor"));
    assert!(write(|c| c.kinds[0] = 9).contains("kinds"));
    assert!(write(|c| c.gain.truncate(5)).contains("`gain`"));
    assert!(Calibration::read(Path::new("no/such.cgs")).unwrap_err().to_string().contains("no/such.cgs"));
}

#[test]
fn clusters_take_neighbours_from_farther_away_until_there_are_none() {
    let mut calibration = calibration(255);
    let square = |side: usize| -> Vec<u32> {
        (0..side * side).map(|i| ((20 + i / side) * SIDE + 20 + i % side) as u32).collect()
    };
    calibration.bad = square(5);
    let correction = Correction::new(&calibration, format(255)).unwrap();
    let mut frame = Frame::from_pixels(SIDE, SIDE, 255, vec![120; SIDE * SIDE]);
    square(5).iter().for_each(|&i| frame.pixels_mut()[i as usize] = 0);
    correction.apply(&mut frame).unwrap();
    assert!(square(5).iter().all(|&i| frame.pixels()[i as usize] > 90));
    calibration.bad = square(11);
    let error = Correction::new(&calibration, format(255)).unwrap_err().to_string();
    assert!(error.contains("121 bad pixels"), "{error}");
}

#[test]
fn every_instruction_set_corrects_alike() {
    let calibration = calibration(4095);
    let raw = record(settings(4095, Scene::Flat, 1.0), 1).means();
    let raw: Vec<u16> = raw.iter().map(|&p| p as u16).collect();
    let mut frames = Vec::new();
    for isa in Isa::available() {
        let mut correction = Correction::new(&calibration, format(4095)).unwrap();
        correction.isa = isa;
        let mut frame = Frame::from_pixels(SIDE, SIDE, 4095, raw.clone());
        correction.apply(&mut frame).unwrap();
        frames.push(frame);
    }
    assert!(frames.windows(2).all(|pair| pair[0] == pair[1]));
}

proptest! {
    #[test]
    fn no_content_of_a_frame_or_of_the_maps_is_too_much(
        white in 1..=u16::MAX,
        pixels in proptest::collection::vec(any::<u16>(), 64),
        dark in proptest::collection::vec(any::<u16>(), 64),
        gain in proptest::collection::vec(any::<u16>(), 64),
        bad in proptest::collection::btree_set(0..64_u32, 0..12),
    ) {
        let format = Format { width: 8, height: 8, white };
        let mut calibration = calibration_of(format);
        (calibration.dark, calibration.gain) = (dark, gain);
        calibration.bad = bad.into_iter().collect();
        if let Ok(correction) = Correction::new(&calibration, format) {
            let mut frame = Frame::from_pixels(8, 8, white, pixels.clone());
            correction.apply(&mut frame).unwrap();
            prop_assert!(frame.pixels().iter().all(|&p| p <= white));
            for (i, &raw) in pixels.iter().enumerate() {
                if raw >= white && !calibration.bad.contains(&(i as u32)) {
                    prop_assert_eq!(frame.pixels()[i], white);
                }
            }
        }
    }

    #[test]
    fn no_recorded_frames_are_too_much(frames in proptest::collection::vec(
        proptest::collection::vec(any::<u16>(), 64), 0..6), white in 1..=u16::MAX)
    {
        let format = Format { width: 8, height: 8, white };
        let mut recorder = Recorder::new(format);
        for frame in frames {
            recorder.add(&Frame::from_pixels(8, 8, white, frame)).unwrap();
        }
        if let Ok(calibration) = Calibration::from_dark(&recorder, "", "") {
            let _ = calibration.with_flat(&recorder);
        }
        let _ = calibration_of(format).with_flat(&recorder);
    }
}

/// A sensor without faults.
fn calibration_of(format: Format) -> Calibration {
    let mut recorder = Recorder::new(format);
    for _ in 0..4 {
        recorder.add(&Frame::new(format.width, format.height, format.white)).unwrap();
    }
    Calibration::from_dark(&recorder, "", "").unwrap()
}
