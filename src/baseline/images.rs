//! The rectified images of all cells, made small.

use std::ops::ControlFlow;
use std::path::Path;

use super::BaselineError;
use super::gemm::each;
use crate::frame::{DecodeLimits, Frame, decode_file_into};
use crate::pipeline::Outcomes;
use crate::preprocess::{PreprocessConfig, Preprocessor};
use crate::verdict::Invalid;
use crate::workers::Workers;

/// Side to which cells are rectified before they are averaged down.
pub const RECTIFIED: usize = 256;

/// Frames up to this side need no new buffers.
const FRAME: usize = 2048;

/// One image a cell, or why there is none.
#[derive(Debug)]
pub struct Images {
    side: usize,
    all: Vec<Result<Vec<f32>, Invalid>>,
}

impl Images {
    /// Reads the files, rectifies each cell to 256×256 as everything else here does, and takes the mean of blocks of
    /// pixels down to `side`, a divisor of 256. `tick` hears of each image.
    ///
    /// # Errors
    /// If preprocessing refuses its settings, `side` is no divisor, or `tick` says to stop.
    pub fn read(
        paths: &[&Path],
        side: usize,
        config: &PreprocessConfig,
        workers: &Workers,
        tick: &super::Tick<'_>,
    ) -> Result<Self, BaselineError> {
        if side < 16 || !RECTIFIED.is_multiple_of(side) {
            return Err(BaselineError::Side { side });
        }
        Preprocessor::new(config.clone(), RECTIFIED, FRAME, FRAME)?;
        let found = Outcomes::new(paths.len());
        // A part of the files for each reader, with buffers of its own.
        let readers = workers.count();
        each(workers, readers, |reader| {
            let Ok(mut preprocessor) = Preprocessor::new(config.clone(), RECTIFIED, FRAME, FRAME) else { return };
            let mut frame = Frame::new(0, 0, 1);
            let mut large = vec![0.0; RECTIFIED * RECTIFIED];
            for (index, path) in paths.iter().enumerate().skip(reader).step_by(readers) {
                let outcome = rectified(path, config, &mut preprocessor, &mut frame, &mut large);
                found.set(index, outcome.map(|()| shrink(&large, side)));
                if tick(1) == ControlFlow::Break(()) {
                    return;
                }
            }
        });
        let all: Option<Vec<_>> = found.into_all().collect();
        Ok(Self { side, all: all.ok_or(BaselineError::Interrupted)? })
    }

    /// Images as they are, each `side`×`side` numbers.
    #[must_use]
    pub fn from_values(side: usize, all: Vec<Result<Vec<f32>, Invalid>>) -> Self {
        assert!(all.iter().flatten().all(|image| image.len() == side * side), "images of {side}×{side}");
        Self { side, all }
    }

    /// Pixels along a side.
    #[must_use]
    pub fn side(&self) -> usize {
        self.side
    }

    /// Cells, those without an image among them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is no cell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The image of a cell, normalised to about [−2, 2], row by row; or why there is none.
    ///
    /// # Errors
    /// Why the cell cannot be judged.
    ///
    /// # Panics
    /// If there is no such cell.
    pub fn get(&self, index: usize) -> Result<&[f32], &Invalid> {
        self.all[index].as_deref()
    }
}

fn rectified(
    path: &Path,
    config: &PreprocessConfig,
    preprocessor: &mut Preprocessor,
    frame: &mut Frame,
    large: &mut [f32],
) -> Result<(), Invalid> {
    decode_file_into(path, &DecodeLimits::default(), frame).map_err(|error| Invalid::Unreadable(error.to_string()))?;
    let most = frame.width().max(frame.height());
    if most > FRAME {
        let mut larger = Preprocessor::new(config.clone(), RECTIFIED, most, most)
            .map_err(|error| Invalid::Unreadable(error.to_string()))?;
        larger.run(frame, large).map_err(Invalid::Frame)?;
    } else {
        preprocessor.run(frame, large).map_err(Invalid::Frame)?;
    }
    if large.iter().all(|value| value.is_finite()) { Ok(()) } else { Err(Invalid::NotFinite) }
}

/// The mean of each block of pixels.
fn shrink(large: &[f32], side: usize) -> Vec<f32> {
    let step = RECTIFIED / side;
    let share = 1.0 / (step * step) as f32;
    let mut small = vec![0.0; side * side];
    for (y, row) in large.chunks_exact(RECTIFIED).enumerate() {
        let out = &mut small[y / step * side..][..side];
        for (out, block) in out.iter_mut().zip(row.chunks_exact(step)) {
            *out += block.iter().sum::<f32>() * share;
        }
    }
    small
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_averaged() {
        let large: Vec<f32> =
            (0..RECTIFIED * RECTIFIED).map(|i| ((i / RECTIFIED) / 64 * 4 + i % RECTIFIED / 64) as f32).collect();
        let small = shrink(&large, 64);
        assert_eq!(small.len(), 64 * 64);
        assert_eq!([small[0], small[63], small[63 * 64], small[64 * 64 - 1]], [0.0, 3.0, 12.0, 15.0]);
    }
}
