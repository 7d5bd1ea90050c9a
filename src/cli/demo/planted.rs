//! What the demo's camera sees: cells with planted defects, and frames that are broken on purpose.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::cli::shared::save;
use crate::frame::Frame;
use crate::sampling;
use crate::synth::{DefectKind, Generator, SynthCell};
use crate::verdict::Class;

/// First cell of the batch: far behind those of the fit, so that none is in both.
const FIRST: u64 = 1_000_000;

/// Good cells in the batch.
const GOOD: usize = 26;

/// Planted defects and how many of each.
const DEFECTS: [(DefectKind, usize); 10] = [
    (DefectKind::GreyDots, 3),
    (DefectKind::BlackDots, 2),
    (DefectKind::FingerInterruption, 3),
    (DefectKind::DarkEdge, 2),
    (DefectKind::Dimmed, 2),
    (DefectKind::DarkSpot, 3),
    (DefectKind::CrackStraight, 2),
    (DefectKind::CrackCross, 2),
    (DefectKind::CrackBranching, 2),
    (DefectKind::Scratch, 2),
];

/// What can be wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    /// The lens is covered: every pixel is black.
    Black,
    /// The cell is not under current: almost no light.
    Unlit,
    /// The cell reaches out of the picture.
    Cropped,
    /// The exposure is far too long.
    Saturated,
    /// The camera is out of focus.
    Blurred,
    /// The file ends in its middle.
    Truncated,
}

impl Broken {
    const ALL: [Self; 6] = [Self::Black, Self::Unlit, Self::Cropped, Self::Saturated, Self::Blurred, Self::Truncated];

    fn name(self) -> &'static str {
        match self {
            Self::Black => "black",
            Self::Unlit => "unlit",
            Self::Cropped => "cropped",
            Self::Saturated => "saturated",
            Self::Blurred => "blurred",
            Self::Truncated => "truncated",
        }
    }

    fn spoil(self, frame: &Frame) -> Frame {
        let (width, height, white) = (frame.width(), frame.height(), frame.white());
        let mapped = |f: &dyn Fn(usize, usize) -> u16| {
            let pixels = (0..width * height).map(|i| f(i % width, i / width)).collect();
            Frame::from_pixels(width, height, white, pixels)
        };
        match self {
            Self::Black => mapped(&|_, _| 0),
            Self::Unlit => mapped(&|x, y| frame.row(y)[x] / 24),
            Self::Cropped => {
                mapped(&|x, y| if x + width / 4 < width { frame.row(y)[x + width / 4] } else { frame.row(y)[0] })
            }
            Self::Saturated => mapped(&|x, y| (u32::from(frame.row(y)[x]) * 3).min(u32::from(white)) as u16),
            Self::Blurred => boxes(&boxes(frame, 7), 7),
            Self::Truncated => frame.clone(),
        }
    }
}

/// The mean over a square of 2·reach + 1 pixels.
fn boxes(frame: &Frame, reach: usize) -> Frame {
    let (width, height) = (frame.width(), frame.height());
    let mean = |at: &dyn Fn(usize) -> u16, i: usize, n: usize| {
        let span = i.saturating_sub(reach)..(i + reach + 1).min(n);
        let count = span.len() as u32;
        (span.map(|j| u32::from(at(j))).sum::<u32>() / count) as u16
    };
    let mut rows = Frame::new(width, height, frame.white());
    for (i, pixel) in rows.pixels_mut().iter_mut().enumerate() {
        *pixel = mean(&|x| frame.row(i / width)[x], i % width, width);
    }
    let mut both = Frame::new(width, height, frame.white());
    for (i, pixel) in both.pixels_mut().iter_mut().enumerate() {
        *pixel = mean(&|y| rows.row(y)[i % width], i / width, height);
    }
    both
}

/// What is known about a cell of the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The row of the table that counts it: A, B, C, broken, or a probability.
    pub group: String,
    /// In full, such as `C crack-cross`.
    pub text: String,
}

/// One cell of the batch.
#[derive(Clone, Debug)]
pub struct Planted {
    /// Its name.
    pub id: String,
    /// Its image.
    pub path: PathBuf,
    /// The truth about it.
    pub known: Known,
}

#[derive(Clone, Copy)]
enum Plan {
    Good,
    Defect(DefectKind),
    Broken(Broken),
}

/// Draws the batch into `folder`, with a `labels.csv`; the same one each time.
///
/// # Errors
/// If a file cannot be written.
pub fn batch(
    generator: &Generator,
    folder: &Path,
    mut tick: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Planted>> {
    let mut plans = vec![Plan::Good; GOOD];
    DEFECTS.iter().for_each(|&(kind, n)| plans.extend(std::iter::repeat_n(Plan::Defect(kind), n)));
    plans.extend(Broken::ALL.map(Plan::Broken));
    sampling::shuffle(&mut sampling::generator(generator.seed()), &mut plans);
    std::fs::create_dir_all(folder).with_context(|| format!("making the folder {}", folder.display()))?;
    let (mut cell, mut labels, mut planted) = (SynthCell::default(), String::from("file,label,type\n"), Vec::new());
    for (number, plan) in plans.into_iter().enumerate() {
        let index = FIRST + number as u64;
        let id = format!("cell-{number:03}.png");
        let path = folder.join(&id);
        match plan {
            Plan::Good | Plan::Broken(_) => generator.with_class_into(index, Class::A, &mut cell),
            Plan::Defect(kind) => generator.with_defect_into(index, kind, &mut cell),
        }
        let known = if let Plan::Broken(broken) = plan {
            let mut png = broken.spoil(&cell.frame).to_png().context("encoding a frame")?;
            if broken == Broken::Truncated {
                png.truncate(png.len() / 2);
            }
            save(&path, &png)?;
            let _ = writeln!(labels, "{id},,{}", broken.name());
            Known { group: "broken".into(), text: format!("broken: {}", broken.name()) }
        } else {
            cell.frame.save_png(&path)?;
            let kinds: Vec<_> = cell.kinds().map(DefectKind::name).collect();
            let kinds = kinds.join("+");
            let _ = writeln!(labels, "{id},{},{kinds}", cell.class);
            Known { group: cell.class.to_string(), text: format!("{} {kinds}", cell.class).trim_end().into() }
        };
        planted.push(Planted { id, path, known });
        tick()?;
    }
    save(&folder.join("labels.csv"), labels.as_bytes())?;
    Ok(planted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocess::{PreprocessConfig, Preprocessor};
    use crate::synth::SynthConfig;

    #[test]
    fn broken_frames_are_refused_for_the_reason_meant() {
        let generator = Generator::new(SynthConfig::default(), 7).unwrap();
        let cell = generator.cell(FIRST);
        let mut preprocessor = Preprocessor::new(PreprocessConfig::default(), 64, 720, 720).unwrap();
        let mut out = vec![0.0; 64 * 64];
        preprocessor.run(&cell.frame, &mut out).unwrap();
        for (broken, reason) in [
            (Broken::Black, "no-cell"),
            (Broken::Unlit, "dim"),
            (Broken::Cropped, "cropped"),
            (Broken::Saturated, "saturated"),
            (Broken::Blurred, "blurred"),
        ] {
            let refused = preprocessor.run(&broken.spoil(&cell.frame), &mut out).unwrap_err();
            assert_eq!(refused.name(), reason, "{broken:?}");
        }
    }
}
