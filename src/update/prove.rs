//! Golden frames: what the new model must say of known cells, in the station's own engine, before it says a word to the
//! line.
//!
//! ```text
//! 0  number of frames     u32, little-endian, as all numbers; 1 to 64
//!    for each: length of its head u32, head (postcard), pixels u16, row by row
//! ```

use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::frame::Frame;
use crate::pipeline::Inspector;
use crate::verdict::{Outcome, Verdict};

/// How far the score of a golden frame may be from the expected one: engines in half precision move distances by a
/// hundredth at most.
pub const TOLERANCE: f32 = 0.02;
/// The most frames.
pub const MAX_FRAMES: usize = 64;
const MAX_SIDE: u32 = 8192;
const MAX_PIXELS: u64 = 64_000_000;
const MAX_HEAD: u32 = 1024;

/// What a model says of a frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The class, `A`, `B` or `C`, or the name of the reason for INVALID.
    pub says: String,
    /// The score, 0 to 1; none where there is none.
    pub score: Option<f32>,
}

impl Answer {
    /// What a verdict says.
    #[must_use]
    pub fn of(verdict: &Verdict) -> Self {
        let says = match &verdict.outcome {
            Outcome::Invalid(reason) => reason.name().to_owned(),
            judged => judged.class().map_or_else(String::new, |class| class.to_string()),
        };
        Self { says, score: verdict.score }
    }

    /// Whether it is a class, and not INVALID.
    #[must_use]
    pub fn is_class(&self) -> bool {
        self.says.len() == 1
    }
}

/// A golden frame: the frame and what is expected of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Golden {
    /// Its name, for people.
    pub name: String,
    /// The frame.
    pub frame: Frame,
    /// What the model said where it was made.
    pub expected: Answer,
}

#[derive(Serialize, Deserialize)]
struct Head {
    name: String,
    width: u32,
    height: u32,
    white: u16,
    expected: Answer,
}

/// Why a proof failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProofError {
    /// The golden frames cannot be read.
    #[error("reading the golden frames: {0}")]
    Io(#[from] io::Error),
    /// They make no sense.
    #[error("reading the golden frames: {0}")]
    Frames(&'static str),
    /// A frame was judged otherwise.
    #[error(
        "the golden frame `{name}` was judged {got} (score {got_score:?}), expected was {expected} (score {expected_score:?}, \
         within {TOLERANCE})"
    )]
    Otherwise {
        /// The frame.
        name: String,
        /// What the model said here.
        got: String,
        /// The score here.
        got_score: Option<f32>,
        /// What it said where it was made.
        expected: String,
        /// The score there.
        expected_score: Option<f32>,
    },
}

/// The bytes of the golden section.
///
/// # Errors
/// If there are too many or too large frames, or none that was given a class: they would prove nothing.
pub fn encode(frames: &[Golden]) -> Result<Vec<u8>, ProofError> {
    if frames.is_empty() || frames.len() > MAX_FRAMES {
        return Err(ProofError::Frames("there must be 1 to 64 golden frames"));
    }
    if !frames.iter().any(|golden| golden.expected.is_class()) {
        return Err(ProofError::Frames("none of the golden frames was given a class"));
    }
    let mut bytes = (frames.len() as u32).to_le_bytes().to_vec();
    for Golden { name, frame, expected } in frames {
        let name: String = name.chars().map(crate::hidden::shown).take(64).collect();
        let (width, height) = (frame.width() as u32, frame.height() as u32);
        check_size(width, height, frame.white())?;
        let head = Head { name, width, height, white: frame.white(), expected: expected.clone() };
        let head = postcard::to_stdvec(&head).map_err(|_| ProofError::Frames("a head cannot be encoded"))?;
        bytes.extend_from_slice(&(head.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&head);
        frame.pixels().iter().for_each(|pixel| bytes.extend_from_slice(&pixel.to_le_bytes()));
    }
    Ok(bytes)
}

fn check_size(width: u32, height: u32, white: u16) -> Result<(), ProofError> {
    let sides = 1..=MAX_SIDE;
    let sound = sides.contains(&width) && sides.contains(&height) && u64::from(width) * u64::from(height) <= MAX_PIXELS;
    if sound && white > 0 {
        Ok(())
    } else {
        Err(ProofError::Frames("a frame is empty or larger than 64 million pixels"))
    }
}

/// Judges each golden frame, one in memory at a time. Says how many there were.
///
/// # Errors
/// If they cannot be read, one is judged otherwise than expected, or none was given a class.
pub fn judge(from: &mut impl Read, mut inspect: impl FnMut(&Frame) -> Answer) -> Result<usize, ProofError> {
    let count = word(from)? as usize;
    if count == 0 || count > MAX_FRAMES {
        return Err(ProofError::Frames("there must be 1 to 64 golden frames"));
    }
    let (mut frame, mut row, mut classes) = (Frame::new(1, 1, 255), Vec::new(), 0);
    for _ in 0..count {
        let length = word(from)?;
        if length > MAX_HEAD {
            return Err(ProofError::Frames("a head is too long"));
        }
        let mut head = vec![0; length as usize];
        from.read_exact(&mut head)?;
        let head: Head = postcard::from_bytes(&head).map_err(|_| ProofError::Frames("a head cannot be read"))?;
        check_size(head.width, head.height, head.white)?;
        frame.reset(head.width as usize, head.height as usize, head.white);
        row.resize(2 * head.width as usize, 0);
        for pixels in frame.pixels_mut().chunks_exact_mut(head.width as usize) {
            from.read_exact(&mut row)?;
            pixels.iter_mut().zip(row.chunks_exact(2)).for_each(|(p, b)| *p = u16::from_le_bytes([b[0], b[1]]));
        }
        let (got, expected) = (inspect(&frame), head.expected);
        let near = match (got.score, expected.score) {
            (None, None) => true,
            // A score that is not a number is near none.
            (Some(got), Some(expected)) => (got - expected).abs() <= TOLERANCE,
            _ => false,
        };
        if got.says != expected.says || !near {
            let name = head.name.chars().map(crate::hidden::shown).collect();
            let (got_score, expected_score) = (got.score, expected.score);
            return Err(ProofError::Otherwise {
                name,
                got: got.says,
                got_score,
                expected: expected.says.chars().map(crate::hidden::shown).collect(),
                expected_score,
            });
        }
        classes += usize::from(got.is_class());
    }
    if classes == 0 {
        return Err(ProofError::Frames("none of the golden frames was given a class"));
    }
    Ok(count)
}

/// Judges golden frames with a model in the station's engine.
///
/// # Errors
/// As [`judge`].
pub fn prove(from: &mut impl Read, inspector: &mut Inspector) -> Result<usize, ProofError> {
    judge(from, |frame| {
        // A frame that is too large for the buffers is INVALID here as it is at the camera.
        if let Err(error) = inspector.make_room(frame.width(), frame.height()) {
            log::warn!("making room for a golden frame: {error}");
        }
        Answer::of(&inspector.inspect(frame))
    })
}

fn word(from: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(says: &str, score: Option<f32>) -> Golden {
        let frame = Frame::from_pixels(3, 2, 4095, vec![0, 1, 2, 3, 4, 4095]);
        Golden { name: "cell".into(), frame, expected: Answer { says: says.into(), score } }
    }

    #[test]
    fn frames_come_back_as_they_were_and_small_differences_of_the_score_pass() {
        let frames = [golden("A", Some(0.3)), golden("C", Some(0.9)), golden("dim", None)];
        let bytes = encode(&frames).unwrap();
        let mut next = frames.iter();
        let count = judge(&mut &bytes[..], |frame| {
            let Golden { frame: sent, expected, .. } = next.next().unwrap();
            assert_eq!(frame, sent);
            Answer { score: expected.score.map(|score| score + 0.019), ..expected.clone() }
        });
        assert_eq!(count.unwrap(), 3);
    }

    #[test]
    fn another_class_another_score_and_no_number_fail() {
        let bytes = encode(&[golden("A", Some(0.3))]).unwrap();
        for (says, score) in [("B", Some(0.3)), ("A", Some(0.33)), ("A", Some(f32::NAN)), ("A", None), ("dim", None)] {
            let got = Answer { says: says.into(), score };
            let error = judge(&mut &bytes[..], |_| got.clone()).unwrap_err().to_string();
            assert!(error.contains("`cell` was judged"), "{error}");
        }
    }

    #[test]
    fn frames_that_prove_nothing_or_are_cut_off_are_refused() {
        assert!(encode(&[]).is_err());
        assert!(encode(&[golden("dim", None)]).is_err());
        let bytes = encode(&[golden("A", Some(0.3))]).unwrap();
        for end in 0..bytes.len() {
            assert!(judge(&mut &bytes[..end], |_| Answer { says: "A".into(), score: Some(0.3) }).is_err());
        }
    }
}
