//! Frames that the device corrects where they lie.

use std::sync::Arc;

use cellgate::camera::Format;
use cellgate::cuda::{CudaError, Device};
use cellgate::frame::Frame;
use cellgate::pipeline::Inspector;
use cellgate::preprocess::sensor::{Calibration, Correction, Recorder};
use cellgate::verdict::{Invalid, Outcome};

use crate::fake::{self, Turn};
use crate::{Bed, assert_like, frames};

const FORMAT: Format = Format { width: 180, height: 180, white: 255 };

/// A sensor with a dark signal of about `dark`, and hot pixels; its calibration.
fn sensor(dark: usize) -> Arc<Correction> {
    let mut recorder = Recorder::new(FORMAT);
    for index in 0..16 {
        let mut frame = Frame::new(FORMAT.width, FORMAT.height, FORMAT.white);
        for (at, pixel) in frame.pixels_mut().iter_mut().enumerate() {
            *pixel = if at % 1009 == 3 { 130 } else { (dark + (at * 7 + index) % 3) as u16 };
        }
        recorder.add(&frame).unwrap();
    }
    let correction = Correction::new(&Calibration::from_dark(&recorder, "", "").unwrap(), FORMAT).unwrap();
    assert!(!correction.tables().bad.is_empty());
    Arc::new(correction)
}

/// The frames as such a sensor gives them, a few pixels of each at full scale.
fn raw(dark: u16) -> Vec<Frame> {
    let mut frames = frames();
    for pixels in frames.iter_mut().map(Frame::pixels_mut) {
        pixels.iter_mut().for_each(|pixel| *pixel = (*pixel + dark).min(255));
        pixels.iter_mut().skip(3).step_by(1009).for_each(|pixel| *pixel = 200);
        pixels.iter_mut().skip(90 * 180 + 40).take(9).for_each(|pixel| *pixel = 255);
    }
    frames
}

/// The frame in memory of the device.
fn lent(inspector: &Inspector, frame: &Frame) -> Frame {
    let mut lent = inspector.frame(Format::of(frame));
    lent.pixels_mut().copy_from_slice(frame.pixels());
    lent
}

fn device_with(bed: &Bed, turn: &Turn, sensor: &Arc<Correction>) -> Result<Inspector, CudaError> {
    let mut inspector = bed.on_device(turn)?;
    inspector.use_sensor(sensor)?;
    Ok(inspector)
}

#[test]
fn a_frame_is_corrected_where_it_lies_and_judged_as_on_the_cpu() {
    let Some(turn) = fake::turn("a_frame_is_corrected_where_it_lies_and_judged_as_on_the_cpu") else { return };
    for bed in [Bed::new(false), Bed::of_whole_frames()] {
        let sensor = sensor(6);
        let (mut cpu, mut device) = (bed.inspector(), device_with(&bed, &turn, &sensor).unwrap());
        for (index, frame) in raw(6).iter().enumerate() {
            let (mut there, mut here, mut elsewhere) = (lent(&device, frame), frame.clone(), frame.clone());
            let want = cpu.inspect_raw(&mut here, &sensor).unwrap();
            turn.fail(0, 0);
            let got = device.inspect_raw(&mut there, &sensor).unwrap();
            let calls = turn.calls();
            assert_like(&got, &want, &format!("frame {index}"));
            assert_eq!(there, here, "frame {index}");
            assert_ne!(there, *frame, "frame {index} was not corrected");
            // Three to correct, and if the gates let it pass three to measure; with the weights for the first whole frame.
            assert!(matches!((calls, index), (3 | 6, _) | (8, 0)), "frame {index}: {calls} calls");
            // What the device does not see the CPU corrects.
            let copied = device.inspect_raw(&mut elsewhere, &sensor).unwrap();
            assert_eq!((elsewhere, copied.distances), (here, got.distances), "frame {index}");
        }
        assert!(device.device().is_some(), "went to the CPU");
        let mut other = Frame::new(64, 64, 255);
        assert!(device.inspect_raw(&mut other, &sensor).unwrap_err().to_string().contains("64×64"));
        drop(device);
        assert_eq!(turn.alive(), 0, "leaked");
    }
}

#[test]
fn whatever_call_fails_while_a_frame_is_corrected_passes_nothing() {
    let Some(turn) = fake::turn("whatever_call_fails_while_a_frame_is_corrected_passes_nothing") else { return };
    let (bed, sensor) = (Bed::new(false), sensor(6));
    let frame = &raw(6)[0];
    let want = bed.inspector().inspect_raw(&mut frame.clone(), &sensor).unwrap();
    assert!(want.distances.is_some());
    for at in 1..=6 {
        let mut device = device_with(&bed, &turn, &sensor).unwrap();
        let mut there = lent(&device, frame);
        let before = turn.alive();
        turn.fail(at, 719);
        let got = device.inspect_raw(&mut there, &sensor).unwrap();
        assert_eq!(got.outcome, Outcome::Invalid(Invalid::Internal), "call {at}");
        assert!(device.device().is_none());
        assert!(turn.alive() < before, "the frame holds its own memory alone");
        // The next frame in the same memory is the CPU's.
        there.pixels_mut().copy_from_slice(frame.pixels());
        let next = device.inspect_raw(&mut there, &sensor).unwrap();
        assert_eq!((next.outcome, next.distances), (want.outcome.clone(), want.distances), "call {at}");
        drop(there);
        assert_eq!(turn.alive(), 0, "call {at}: leaked");
    }
}

#[test]
fn another_sensor_takes_effect_between_two_cells_and_an_error_changes_nothing() {
    let Some(turn) = fake::turn("another_sensor_takes_effect_between_two_cells_and_an_error_changes_nothing") else {
        return;
    };
    let (bed, [first, second]) = (Bed::new(false), [sensor(6), sensor(20)]);
    let frame = &raw(6)[0];
    let corrected = |sensor: &Correction| {
        let mut frame = frame.clone();
        sensor.apply(&mut frame).unwrap();
        frame
    };
    let mut device = device_with(&bed, &turn, &first).unwrap();
    let mut at = 0;
    loop {
        at += 1;
        turn.fail(at, 2);
        let replaced = device.use_sensor(&second);
        let failed = turn.calls() >= at;
        let now = if replaced.is_ok() { &second } else { &first };
        turn.fail(0, 0);
        let mut there = lent(&device, frame);
        turn.fail(0, 0);
        let got = device.inspect_raw(&mut there, now).unwrap();
        assert_eq!(turn.calls(), 6, "call {at}: three to correct, and three to measure");
        assert!(there == corrected(now) && got.distances.is_some(), "call {at}");
        if !failed {
            break;
        }
        device.use_sensor(&first).unwrap();
    }
    assert!(at > 20, "replaced after {at} calls");
    // A frame of the sensor that is not in use any more goes to the CPU, and comes back right.
    let mut there = lent(&device, frame);
    device.inspect_raw(&mut there, &first).unwrap();
    assert!(there == corrected(&first) && device.device().is_some());
    drop((there, device));
    assert_eq!(turn.alive(), 0, "leaked");
}

#[test]
fn a_frame_that_outlives_the_device_keeps_its_pixels() {
    let Some(turn) = fake::turn("a_frame_that_outlives_the_device_keeps_its_pixels") else { return };
    let device = Device::open().unwrap();
    let mut frame = device.frame(20, 10, 255).unwrap();
    drop(device);
    frame.pixels_mut()[199] = 7;
    assert_eq!((frame.row(9)[19], frame.clone()), (7, frame));
    assert_eq!(turn.alive(), 0, "leaked");
}
