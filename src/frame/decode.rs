//! Frames from image files (PNG, TIFF, JPEG, PNM; 8 and 16 bits) and to PNG.

use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::error::{ImageError, LimitErrorKind};
use image::{ColorType, ImageDecoder, ImageFormat, ImageReader};
use thiserror::Error;

use super::Frame;
use crate::whole_file;

/// Deflate cannot shrink data more than 1032-fold, and no other accepted compression does better on grey images. A
/// header that promises more than this many bytes for each one in the file lies.
const MAX_RATIO: u64 = 1100;
/// What a tiny file may promise whatever its length.
const RATIO_SLACK: u64 = 1 << 16;

/// What a file may ask for before it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Most pixels in a row or a column. Default 16,384.
    pub max_side: u32,
    /// Most pixels in all. Default 64 million.
    pub max_pixels: u64,
    /// Most bytes of a file. Default 1 GiB.
    pub max_file: u64,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self { max_side: 16_384, max_pixels: 64_000_000, max_file: 1 << 30 }
    }
}

/// Why an image file could not be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The file could not be opened or read.
    #[error("reading the image {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The content is none of the known formats.
    #[error("decoding {}: its content is not PNG, TIFF, JPEG or PGM/PPM; convert it to one of them", path.display())]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// More pixels than allowed.
    #[error(
        "decoding {}: the header says {width}×{height} pixels, the limit is {max_side} a side and {max_pixels} in all; \
         crop or shrink the image",
        path.display()
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Width in the header.
        width: u32,
        /// Height in the header.
        height: u32,
        /// Most pixels a side.
        max_side: u32,
        /// Most pixels in all.
        max_pixels: u64,
    },
    /// The file itself is larger than allowed.
    #[error("reading {}: the file has {bytes} bytes, the limit is {limit}; is it an image?", path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The header promises more pixels than so short a file can hold.
    #[error(
        "decoding {}: the header says {width}×{height} pixels, but the file has only {bytes} bytes; it is truncated or \
         damaged, copy it again",
        path.display()
    )]
    Lying {
        /// The file.
        path: PathBuf,
        /// Width in the header.
        width: u32,
        /// Height in the header.
        height: u32,
        /// Length of the file.
        bytes: u64,
    },
    /// No pixels at all.
    #[error("decoding {}: the header says {width}×{height} pixels; there is nothing to see", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// Width in the header.
        width: u32,
        /// Height in the header.
        height: u32,
    },
    /// A pixel type that is neither 8 nor 16 bits.
    #[error("decoding {}: pixels of type {found} are not supported; save the image as 8- or 16-bit grey", path.display())]
    PixelType {
        /// The file.
        path: PathBuf,
        /// What the file holds.
        found: String,
    },
    /// The content is damaged or cut off.
    #[error("decoding {} ({bytes} bytes): it is truncated or damaged ({reason}); copy it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Length of the file.
        bytes: u64,
        /// What the decoder said.
        reason: String,
    },
}

impl Frame {
    /// Reads an image file into a new frame; see [`decode_into`].
    ///
    /// # Errors
    /// If the file cannot be read, is no image, is damaged, or is over the limits.
    pub fn decode_file(path: impl AsRef<Path>, limits: &DecodeLimits) -> Result<Self, DecodeError> {
        let mut frame = Self::new(0, 0, 1);
        decode_file_into(path, limits, &mut frame)?;
        Ok(frame)
    }

    /// Writes the frame as a grey PNG, of 8 bits where `white` is at most 255, else of 16 bits, scaled to the PNG's
    /// full range. The file appears whole or not at all.
    ///
    /// # Errors
    /// If the folder cannot be written or the frame has no pixels.
    pub fn save_png(&self, path: impl AsRef<Path>) -> Result<(), SaveError> {
        let path = path.as_ref();
        let bytes = self.to_png().map_err(|source| SaveError::Encode { path: path.into(), source })?;
        whole_file::write(path, &[&bytes]).map_err(|source| SaveError::Io { path: path.into(), source })
    }

    /// The frame as the bytes of a grey PNG; see [`Frame::save_png`].
    ///
    /// # Errors
    /// If the frame has no pixels.
    pub fn to_png(&self) -> Result<Vec<u8>, ImageError> {
        let (white, pixels) = (u32::from(self.white()), self.pixels());
        let scaled = |x: u16, full: u32| ((u32::from(x).min(white) * full + white / 2) / white) as u16;
        let mut bytes = Vec::new();
        let (data, color): (Vec<u8>, _) = if white <= 255 {
            (pixels.iter().map(|&x| scaled(x, 255) as u8).collect(), ColorType::L8)
        } else {
            (pixels.iter().flat_map(|&x| scaled(x, 65535).to_ne_bytes()).collect(), ColorType::L16)
        };
        let (width, height) = (self.width() as u32, self.height() as u32);
        image::write_buffer_with_format(&mut Cursor::new(&mut bytes), &data, width, height, color, ImageFormat::Png)?;
        Ok(bytes)
    }
}

/// Why a picture could not be written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SaveError {
    /// The picture could not be encoded.
    #[error("encoding the picture {}", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// What the encoder said.
        source: ImageError,
    },
    /// The file could not be written.
    #[error("writing the picture {}; does its folder exist, and may it be written?", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Reads an image file into an existing frame, whose buffer is kept where it is large enough; see [`decode_into`].
///
/// # Errors
/// If the file cannot be read, is no image, is damaged, or is over the limits. The frame's content is then undefined.
pub fn decode_file_into(path: impl AsRef<Path>, limits: &DecodeLimits, frame: &mut Frame) -> Result<(), DecodeError> {
    let path = path.as_ref();
    let io = |source| DecodeError::Io { path: path.into(), source };
    let bytes = std::fs::metadata(path).map_err(io)?.len();
    if bytes > limits.max_file {
        return Err(DecodeError::FileTooLarge { path: path.into(), bytes, limit: limits.max_file });
    }
    decode_into(&std::fs::read(path).map_err(io)?, path, limits, frame)
}

/// Decodes an image that lies in memory; `name` is the file that errors speak of.
///
/// The format is told by the content. 8-bit images get `white` 255, 16-bit ones 65535. A PNM whose maximum is another
/// (4095, say) is scaled to that, so that a pixel's share of full scale stays what the file meant; 1-, 2- and 4-bit
/// PNGs likewise. Colour becomes Rec. 601 luma, (299 R + 587 G + 114 B)/1000 rounded, which is exact for grey stored
/// as colour; alpha is ignored.
///
/// # Errors
/// If the content is no image, is damaged, or is over the limits. The frame's content is then undefined.
pub fn decode_into(
    bytes: &[u8],
    name: impl AsRef<Path>,
    limits: &DecodeLimits,
    frame: &mut Frame,
) -> Result<(), DecodeError> {
    let path = || name.as_ref().to_path_buf();
    let length = bytes.len() as u64;
    let reader = ImageReader::new(Cursor::new(bytes));
    let mut reader = reader.with_guessed_format().map_err(|source| DecodeError::Io { path: path(), source })?;
    let format = reader.format().ok_or_else(|| DecodeError::Format { path: path() })?;
    // Twice eight bytes a pixel: the widest pixels, and the decoder's own copy of them.
    let max_alloc = limits.max_pixels.saturating_mul(16).saturating_add(1 << 24);
    let mut image_limits = image::Limits::default();
    image_limits.max_alloc = Some(max_alloc);
    reader.limits(image_limits);
    let failed = |error: ImageError| failure(error, path(), length);
    let decoder = reader.into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 {
        return Err(DecodeError::Empty { path: path(), width, height });
    }
    if width.max(height) > limits.max_side || pixels > limits.max_pixels {
        let DecodeLimits { max_side, max_pixels, .. } = *limits;
        return Err(DecodeError::TooLarge { path: path(), width, height, max_side, max_pixels });
    }
    let color = decoder.color_type();
    let (channels, wide) = match color {
        ColorType::L8 => (1, false),
        ColorType::La8 => (2, false),
        ColorType::Rgb8 => (3, false),
        ColorType::Rgba8 => (4, false),
        ColorType::L16 => (1, true),
        ColorType::La16 => (2, true),
        ColorType::Rgb16 => (3, true),
        ColorType::Rgba16 => (4, true),
        other => return Err(DecodeError::PixelType { path: path(), found: format!("{other:?}") }),
    };
    let total = decoder.total_bytes();
    if total > length.saturating_mul(MAX_RATIO).saturating_add(RATIO_SLACK) {
        return Err(DecodeError::Lying { path: path(), width, height, bytes: length });
    }
    // The JPEG decoder fills what is missing with grey and says nothing.
    if format == ImageFormat::Jpeg && !jpeg_ends(bytes) {
        let reason = "the end-of-image marker is missing".into();
        return Err(DecodeError::Damaged { path: path(), bytes: length, reason });
    }
    let mut raw = vec![0; total as usize];
    decoder.read_image(&mut raw).map_err(failed)?;
    frame.reset(width as usize, height as usize, if wide { u16::MAX } else { 255 });
    fill(frame.pixels_mut(), &raw, channels, wide);
    Ok(())
}

/// Whether an end-of-image marker stands behind the last scan. Inside a scan 0xFF is followed by 0 or a restart
/// marker, so the last marker of another kind tells.
fn jpeg_ends(bytes: &[u8]) -> bool {
    bytes
        .windows(2)
        .rev()
        .find(|w| w[0] == 0xff && !matches!(w[1], 0x00 | 0xff | 0xd0..=0xd7))
        .is_some_and(|w| w[1] == 0xd9)
}

fn fill(pixels: &mut [u16], raw: &[u8], channels: usize, wide: bool) {
    let luma = |p: &[u8]| {
        let value = |c: usize| match wide {
            false => u32::from(p[c]),
            true => u32::from(u16::from_ne_bytes([p[2 * c], p[2 * c + 1]])),
        };
        match channels {
            1 | 2 => value(0) as u16,
            _ => ((299 * value(0) + 587 * value(1) + 114 * value(2) + 500) / 1000) as u16,
        }
    };
    let bytes = channels * if wide { 2 } else { 1 };
    pixels.iter_mut().zip(raw.chunks_exact(bytes)).for_each(|(to, p)| *to = luma(p));
}

fn failure(error: ImageError, path: PathBuf, bytes: u64) -> DecodeError {
    match error {
        ImageError::Unsupported(e) => DecodeError::PixelType { path, found: e.to_string() },
        ImageError::Limits(e) if matches!(e.kind(), LimitErrorKind::InsufficientMemory) => {
            let reason = "it asks for more memory than an image of the allowed size needs".into();
            DecodeError::Damaged { path, bytes, reason }
        }
        other => DecodeError::Damaged { path, bytes, reason: other.to_string() },
    }
}
