//! How a section is packed: chunks of at most 1 MiB, each a zstd frame of its own, coded alone or against a base.
//!
//! ```text
//! 0  coding            u8
//! 1  offset in the base u64, little-endian, as all numbers; 0 where there is none
//! 9  length unpacked   u32, 1 to 1 MiB
//! 13 length packed     u32; 0 for a copy
//! 17 a zstd frame, or for differences of halves what the range coder gives, whichever is shorter
//! ```
//!
//! Numbers of one kind change in their low bytes and hardly in their high ones: a chunk of them is turned into planes,
//! all high bytes before all low ones, and against a base into differences first. A refit moves every factor a little:
//! as floats of one sign are ordered as their bits are, the difference of the bits is small where the numbers are near.

use std::io::{self, Read};

use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::envelope::exact;
use super::{BundleError, Hash, Section, range};

/// The most that a chunk unpacks to, in bytes.
pub const CHUNK: usize = 1 << 20;
const HEAD: usize = 17;
/// What a frame may be longer than its content.
const SLACK: usize = 1024;
/// The largest window a frame may ask for: that of a chunk. It bounds the decoder's memory.
const MAX_WINDOW: u64 = 2 * CHUNK as u64;

const PLAIN: u8 = 0;
const PLANES2: u8 = 1;
const PLANES4: u8 = 2;
const COPY: u8 = 3;
const DIFFERENCES2: u8 = 4;
const DIFFERENCES4: u8 = 5;
/// Differences of halves, by a range coder instead of zstd.
const STEPS2: u8 = 6;

/// A run of bytes of one kind in the file to be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its length.
    pub bytes: usize,
    /// Where the run that it resembles begins in the base; none if there is none.
    pub base: Option<usize>,
}

/// Packs a file whose runs, one behind the other, are `runs`.
///
/// # Panics
/// If the runs do not cover `bytes`, or one lies outside of the base.
#[must_use]
pub fn pack(bytes: &[u8], base: &[u8], runs: &[Run]) -> Vec<u8> {
    assert_eq!(runs.iter().map(|run| run.bytes).sum::<usize>(), bytes.len(), "runs must cover the file");
    let (mut packed, mut at) = (Vec::with_capacity(bytes.len() / 2), 0);
    for run in runs {
        for start in (0..run.bytes).step_by(CHUNK) {
            let length = (run.bytes - start).min(CHUNK);
            let like = run.base.map(|base| base + start);
            pack_chunk(&bytes[at + start..][..length], like.map(|like| (like, &base[like..][..length])), &mut packed);
        }
        at += run.bytes;
    }
    packed
}

fn pack_chunk(bytes: &[u8], base: Option<(usize, &[u8])>, packed: &mut Vec<u8>) {
    let head = |coding, frame: &[u8]| {
        let offset = base.map_or(0, |(offset, _)| offset as u64);
        let mut head = [0; HEAD];
        head[0] = coding;
        head[1..9].copy_from_slice(&offset.to_le_bytes());
        head[9..13].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
        head[13..17].copy_from_slice(&(frame.len() as u32).to_le_bytes());
        head
    };
    if base.is_some_and(|(_, base)| base == bytes) {
        packed.extend_from_slice(&head(COPY, &[]));
        return;
    }
    let codings: &[u8] = if base.is_some() {
        &[PLAIN, PLANES2, PLANES4, DIFFERENCES2, DIFFERENCES4]
    } else {
        &[PLAIN, PLANES2, PLANES4]
    };
    let nothing = &[][..];
    let zstd = codings.iter().map(|&coding| {
        let coded = code(coding, bytes, base.map_or(nothing, |(_, base)| base));
        (coding, compress_to_vec(&coded[..], CompressionLevel::Fastest))
    });
    let steps = base.filter(|_| bytes.len().is_multiple_of(2)).map(|(_, base)| {
        let step = |at| ordered2(word2(bytes, at)).wrapping_sub(ordered2(word2(base, at)));
        (STEPS2, range::encode((0..bytes.len()).step_by(2).map(|at| (zigzag2(step(at)), word2(base, at)))))
    });
    let best = zstd.chain(steps);
    if let Some((coding, frame)) = best.min_by_key(|(_, frame)| frame.len()) {
        packed.extend_from_slice(&head(coding, &frame));
        packed.extend_from_slice(&frame);
    }
}

/// Unpacks a section chunk by chunk into `out`, in bounded memory.
///
/// `from` ends with the section. `base` fills a buffer from an offset of the base.
///
/// # Errors
/// If it is damaged, longer or shorter than the manifest says, or `base` or `out` fails.
pub fn unpack(
    from: &mut impl Read,
    section: &Section,
    base: &mut dyn FnMut(u64, &mut [u8]) -> io::Result<()>,
    out: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), BundleError> {
    let damaged = |what: &str| BundleError::Damaged(format!("the section `{}`: {what}", section.name));
    let mut decoder = FrameDecoder::new();
    let (mut frame, mut coded, mut like) = (Vec::new(), vec![0; CHUNK], vec![0; CHUNK]);
    let mut plain = vec![0; CHUNK];
    let (mut left, mut stored, mut hash) = (section.bytes, section.stored, blake3::Hasher::new());
    while left > 0 {
        let mut head = [0; HEAD];
        exact(from, &mut head)?;
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
        let offset = u64::from(word(1) as u32) | u64::from(word(5) as u32) << 32;
        let (coding, length, packed) = (head[0], word(9), word(13));
        if length == 0 || length > CHUNK || length as u64 > left || packed > CHUNK + SLACK {
            return Err(BundleError::Bomb(section.name.clone()));
        }
        stored = stored.checked_sub((HEAD + packed) as u64).ok_or_else(|| damaged("it ends early"))?;
        left -= length as u64;
        frame.resize(packed, 0);
        exact(from, &mut frame)?;
        if matches!(coding, COPY | DIFFERENCES2 | DIFFERENCES4 | STEPS2) {
            base(offset, &mut like[..length]).map_err(BundleError::Io)?;
        }
        let bytes = match coding {
            COPY if packed == 0 => &like[..length],
            PLAIN | PLANES2 | PLANES4 | DIFFERENCES2 | DIFFERENCES4 => {
                let whole = inflate(&mut decoder, &frame, &mut coded[..length]);
                whole.ok_or_else(|| damaged("a chunk does not unpack to what it should"))?;
                decode(coding, &coded[..length], &like[..length], &mut plain[..length]);
                &plain[..length]
            }
            STEPS2 if length.is_multiple_of(2) => {
                let bases = (0..length).step_by(2).map(|at| word2(&like, at));
                let mut words = plain[..length].chunks_exact_mut(2).enumerate();
                let whole = range::decode(&frame, bases, |step| {
                    if let Some((i, word)) = words.next() {
                        let step = (step >> 1) ^ (step & 1).wrapping_neg();
                        let number = unordered2(ordered2(word2(&like, 2 * i)).wrapping_add(step));
                        word.copy_from_slice(&number.to_le_bytes());
                    }
                });
                whole.ok_or_else(|| damaged("a chunk does not unpack to what it should"))?;
                &plain[..length]
            }
            _ => return Err(damaged("a chunk of an unknown coding")),
        };
        hash.update(bytes);
        out(bytes).map_err(BundleError::Io)?;
    }
    if stored != 0 {
        return Err(damaged("bytes behind its last chunk"));
    }
    if Hash(*hash.finalize().as_bytes()) != section.hash {
        return Err(BundleError::Hash(section.name.clone()));
    }
    Ok(())
}

/// Unpacks one frame, which must fill `out`.
fn inflate(decoder: &mut FrameDecoder, mut frame: &[u8], out: &mut [u8]) -> Option<()> {
    if window(frame)? > MAX_WINDOW {
        return None;
    }
    decoder.reset(&mut frame).ok()?;
    let mut done = 0;
    loop {
        decoder.decode_blocks(&mut frame, BlockDecodingStrategy::UptoBlocks(1)).ok()?;
        done += decoder.read(&mut out[done..]).ok()?;
        if decoder.is_finished() {
            return (decoder.can_collect() == 0 && done == out.len() && frame.is_empty()).then_some(());
        }
        // A block unpacks to 128 KiB at most: the decoder holds its window and that, however it goes on.
        if done == out.len() && decoder.can_collect() > 0 {
            return None;
        }
    }
}

/// The window that a zstd frame asks for (RFC 8878, 3.1.1.1), before a decoder makes room for it.
fn window(frame: &[u8]) -> Option<u64> {
    if frame.get(..4)? != [0x28, 0xb5, 0x2f, 0xfd] {
        return None;
    }
    let descriptor = *frame.get(4)?;
    let single_segment = descriptor & 0x20 != 0;
    if !single_segment {
        let byte = u64::from(*frame.get(5)?);
        let base = 1u64 << (10 + (byte >> 3));
        return Some(base + base / 8 * (byte & 7));
    }
    let at = 5 + [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let bytes = frame.get(at..at + size)?;
    let number = bytes.iter().rev().fold(0u64, |number, &byte| number << 8 | u64::from(byte));
    Some(if size == 2 { number + 256 } else { number })
}

/// Turns signs and magnitudes into one order, so that near numbers have near bits.
fn ordered2(bits: u16) -> u16 {
    if bits & 0x8000 == 0 { bits | 0x8000 } else { !bits }
}

fn ordered4(bits: u32) -> u32 {
    if bits & 0x8000_0000 == 0 { bits | 0x8000_0000 } else { !bits }
}

fn unordered2(order: u16) -> u16 {
    if order & 0x8000 == 0 { !order } else { order & 0x7fff }
}

fn unordered4(order: u32) -> u32 {
    if order & 0x8000_0000 == 0 { !order } else { order & 0x7fff_ffff }
}

fn word2(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn word4(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Small positive and negative steps as small numbers: 0, −1, 1, −2, …
fn zigzag2(step: u16) -> u16 {
    (step << 1) ^ (step.cast_signed() >> 15).cast_unsigned()
}

fn zigzag4(step: u32) -> u32 {
    (step << 1) ^ (step.cast_signed() >> 31).cast_unsigned()
}

fn code(coding: u8, bytes: &[u8], base: &[u8]) -> Vec<u8> {
    let width = match coding {
        PLANES2 | DIFFERENCES2 => 2,
        PLANES4 | DIFFERENCES4 => 4,
        _ => return bytes.to_vec(),
    };
    let (count, mut coded) = (bytes.len() / width, bytes.to_vec());
    for (i, at) in (0..count * width).step_by(width).enumerate() {
        let word = match coding {
            PLANES2 => u32::from(word2(bytes, at)),
            PLANES4 => word4(bytes, at),
            DIFFERENCES2 => zigzag2(ordered2(word2(bytes, at)).wrapping_sub(ordered2(word2(base, at)))).into(),
            _ => zigzag4(ordered4(word4(bytes, at)).wrapping_sub(ordered4(word4(base, at)))),
        };
        (0..width).for_each(|plane| coded[plane * count + i] = (word >> (8 * plane)) as u8);
    }
    // What is left over of an odd length stays as it is, at the end.
    coded
}

fn decode(coding: u8, coded: &[u8], base: &[u8], bytes: &mut [u8]) {
    bytes.copy_from_slice(coded);
    let width = match coding {
        PLANES2 | DIFFERENCES2 => 2,
        PLANES4 | DIFFERENCES4 => 4,
        _ => return,
    };
    let count = coded.len() / width;
    for (i, at) in (0..count * width).step_by(width).enumerate() {
        let word = (0..width).fold(0u32, |word, plane| word | u32::from(coded[plane * count + i]) << (8 * plane));
        if width == 2 {
            let word = word as u16;
            let step = (word >> 1) ^ (word & 1).wrapping_neg();
            let plain = if coding == PLANES2 { word } else { unordered2(ordered2(word2(base, at)).wrapping_add(step)) };
            bytes[at..at + 2].copy_from_slice(&plain.to_le_bytes());
        } else {
            let step = (word >> 1) ^ (word & 1).wrapping_neg();
            let plain = if coding == PLANES4 { word } else { unordered4(ordered4(word4(base, at)).wrapping_add(step)) };
            bytes[at..at + 4].copy_from_slice(&plain.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(super) fn section(bytes: &[u8], packed: &[u8]) -> Section {
        let (stored, stored_hash) = (packed.len() as u64, Hash::of(packed));
        Section { name: "model".into(), stored, stored_hash, bytes: bytes.len() as u64, hash: Hash::of(bytes) }
    }

    fn unpacked(packed: &[u8], section: &Section, base: &[u8]) -> Result<Vec<u8>, BundleError> {
        let mut out = Vec::new();
        let mut read = |offset: u64, buffer: &mut [u8]| {
            let from = base.get(offset as usize..).and_then(|rest| rest.get(..buffer.len()));
            from.map(|from| buffer.copy_from_slice(from)).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        };
        let mut keep = |bytes: &[u8]| {
            out.extend_from_slice(bytes);
            Ok(())
        };
        unpack(&mut &packed[..], section, &mut read, &mut keep).map(|()| out)
    }

    #[test]
    fn a_file_comes_back_alone_and_against_its_base() {
        // Factors after a refit: noise of all sizes, each moved by a hundredth or so.
        let mut state = 1u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        let old: Vec<f32> = (0..CHUNK / 2 + 77_777).map(|_| noise()).collect();
        let refitted: Vec<f32> = old.iter().map(|old| old * (1.0 + 0.01 * noise())).collect();
        let bytes = |numbers: &[f32]| -> Vec<u8> {
            numbers.iter().flat_map(|number| half::f16::from_f32(*number).to_le_bytes()).chain([7]).collect()
        };
        let (base, new) = (bytes(&old), bytes(&refitted));
        let alone = pack(&new, &[], &[Run { bytes: new.len(), base: None }]);
        assert_eq!(unpacked(&alone, &section(&new, &alone), &[]).unwrap(), new);
        let runs = [Run { bytes: 6, base: None }, Run { bytes: new.len() - 6, base: Some(6) }];
        let delta = pack(&new, &base, &runs);
        assert_eq!(unpacked(&delta, &section(&new, &delta), &base).unwrap(), new);
        assert!(delta.len() * 3 < alone.len() * 2, "{} against {}", delta.len(), alone.len());
        let same = pack(&new, &new, &[Run { bytes: new.len(), base: Some(0) }]);
        assert!(same.len() < 200, "{}", same.len());
    }

    proptest! {
        #[test]
        fn every_coding_gives_back_what_went_in(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            other in prop::collection::vec(any::<u8>(), 300),
        ) {
            for coding in [PLAIN, PLANES2, PLANES4, DIFFERENCES2, DIFFERENCES4] {
                let coded = code(coding, &bytes, &other);
                let mut back = vec![0; bytes.len()];
                decode(coding, &coded, &other, &mut back);
                prop_assert_eq!(&back, &bytes);
            }
        }

        #[test]
        fn no_packed_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), coding in 0u8..8, length in 0u32..5000) {
            let mut packed = vec![coding];
            packed.extend([0; 8]);
            packed.extend(length.to_le_bytes());
            packed.extend((bytes.len() as u32).to_le_bytes());
            packed.extend(&bytes);
            let section = Section { bytes: 5000, ..section(&[], &packed) };
            prop_assert!(unpacked(&packed, &section, &[0; 9000]).is_err());
        }
    }
}
