//! How pixels lie in a driver's memory, and how they get into a [`Frame`].
//!
//! Drivers deliver 8 bits in bytes, and more in little-endian 16-bit words, most of them right-aligned. Tegra's capture
//! unit aligns left and repeats the high bits in the low ones; a [`Layout`] with an explicit shift and mask undoes that.

use serde::{Deserialize, Serialize};

use crate::frame::Frame;

/// A grey pixel format of V4L2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PixelFormat {
    /// 8 bits in a byte.
    #[default]
    Grey,
    /// 10 bits in a word.
    Y10,
    /// 12 bits in a word.
    Y12,
    /// 14 bits in a word.
    Y14,
    /// 16 bits in a word.
    Y16,
}

impl PixelFormat {
    /// Every format.
    pub const ALL: [Self; 5] = [Self::Grey, Self::Y10, Self::Y12, Self::Y14, Self::Y16];

    /// V4L2's code.
    #[must_use]
    pub fn fourcc(self) -> u32 {
        u32::from_le_bytes(match self {
            Self::Grey => *b"GREY",
            Self::Y10 => *b"Y10 ",
            Self::Y12 => *b"Y12 ",
            Self::Y14 => *b"Y14 ",
            Self::Y16 => *b"Y16 ",
        })
    }

    /// Significant bits of a pixel.
    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Self::Grey => 8,
            Self::Y10 => 10,
            Self::Y12 => 12,
            Self::Y14 => 14,
            Self::Y16 => 16,
        }
    }

    /// Bytes that a pixel takes in memory: 1 or 2.
    #[must_use]
    pub fn bytes(self) -> usize {
        if self == Self::Grey { 1 } else { 2 }
    }

    /// The format's name in V4L2 and in the configuration, in capitals.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Grey => "GREY",
            Self::Y10 => "Y10",
            Self::Y12 => "Y12",
            Self::Y14 => "Y14",
            Self::Y16 => "Y16",
        }
    }
}

/// A V4L2 format code as its four letters; what does not print is shown as `?`.
#[must_use]
pub fn fourcc_name(code: u32) -> String {
    let letter = |b: u8| if b.is_ascii_graphic() || b == b' ' { char::from(b) } else { '?' };
    // The top bit of the last byte marks the big-endian variant of a format.
    let [a, b, c, d] = code.to_le_bytes();
    let name: String = [a, b, c, d & 0x7f].into_iter().map(letter).collect();
    let name = name.trim_end().to_owned();
    if d & 0x80 == 0 { name } else { name + "-BE" }
}

/// Where the pixel's bits are in its byte or word: `value = (word >> shift) & mask`, and `mask` is full scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    bytes: usize,
    shift: u32,
    mask: u16,
    /// Bits that must be 0, or the words are aligned otherwise than said.
    empty: u16,
}

/// A shift and a mask that fit no pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "shift {shift} and mask {mask:#06x} are no layout of {format} pixels: the mask must be ones from its lowest bit on \
     (0x00ff to 0xffff), and mask << shift must fit the {container} bits that a pixel takes"
)]
pub struct NoLayout {
    shift: u32,
    mask: u16,
    format: &'static str,
    container: usize,
}

impl Layout {
    /// As V4L2 defines the format: right-aligned. Words with a bit above the format's are refused as damaged, since the
    /// driver then aligns otherwise.
    #[must_use]
    pub fn of(format: PixelFormat) -> Self {
        let mask = u16::MAX >> (16 - format.bits());
        let container = if format.bytes() == 1 { 0xff } else { u16::MAX };
        Self { bytes: format.bytes(), shift: 0, mask, empty: container & !mask }
    }

    /// The format's container with an explicit place of the pixel in it; all other bits are ignored.
    ///
    /// # Errors
    /// If the mask has gaps or fewer than 8 bits, or does not fit.
    pub fn explicit(format: PixelFormat, shift: u32, mask: u16) -> Result<Self, NoLayout> {
        let container = 8 * format.bytes();
        let whole = mask >= 0xff && mask & mask.wrapping_add(1) == 0;
        if !whole || shift as usize + mask.count_ones() as usize > container {
            return Err(NoLayout { shift, mask, format: format.name(), container });
        }
        Ok(Self { bytes: format.bytes(), shift, mask, empty: 0 })
    }

    /// Bytes that a pixel takes: 1 or 2.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Full scale.
    #[must_use]
    pub fn white(&self) -> u16 {
        self.mask
    }

    /// Bytes that an image of this size takes at least, its rows `stride` bytes apart; none if that is no image.
    #[must_use]
    pub fn needs(&self, width: usize, height: usize, stride: usize) -> Option<usize> {
        let row = width.checked_mul(self.bytes)?;
        if row == 0 || height == 0 || stride < row {
            return None;
        }
        stride.checked_mul(height - 1)?.checked_add(row)
    }

    /// Fills `frame`, which has its size already, from the driver's memory, whose rows start `stride` bytes apart.
    ///
    /// # Errors
    /// What is wrong with the image: too few bytes for the size, or pixels with bits above the format's. The frame's
    /// content is then undefined.
    pub fn unpack(&self, memory: &[u8], stride: usize, frame: &mut Frame) -> Result<(), &'static str> {
        let width = frame.width();
        let needed = self.needs(width, frame.height(), stride).ok_or("its rows are shorter than its width")?;
        if memory.len() < needed {
            return Err("it is cut off: fewer bytes came than the image has");
        }
        let (shift, mask) = (self.shift, self.mask);
        // Every bit that was seen anywhere, so that the rows need no branch.
        let mut seen = 0_u16;
        let rows = memory.chunks(stride).zip(frame.pixels_mut().chunks_exact_mut(width));
        if self.bytes == 1 {
            for (from, to) in rows {
                for (to, &byte) in to.iter_mut().zip(&from[..width]) {
                    let word = u16::from(byte);
                    seen |= word;
                    *to = (word >> shift) & mask;
                }
            }
        } else {
            for (from, to) in rows {
                for (to, word) in to.iter_mut().zip(from[..2 * width].as_chunks::<2>().0) {
                    let word = u16::from_le_bytes(*word);
                    seen |= word;
                    *to = (word >> shift) & mask;
                }
            }
        }
        if seen & self.empty != 0 {
            return Err("its pixels have more bits than the format: set `shift` and `mask` as the driver aligns them");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(values: &[u16]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn each_format_fills_a_frame_of_its_full_scale() {
        for (format, white) in PixelFormat::ALL.into_iter().zip([255, 1023, 4095, 16383, 65535]) {
            let layout = Layout::of(format);
            assert_eq!(layout.white(), white);
            let values = [0, 1, white / 2, white];
            let memory = if layout.bytes() == 1 { values.map(|v| v as u8).to_vec() } else { words(&values) };
            let mut frame = Frame::new(2, 2, white);
            layout.unpack(&memory, 2 * layout.bytes(), &mut frame).unwrap();
            assert_eq!(frame.pixels(), values, "{}", format.name());
            assert_eq!(fourcc_name(format.fourcc()), format.name());
        }
        assert_eq!(fourcc_name(u32::from_le_bytes(*b"Y16 ") | 1 << 31), "Y16-BE");
    }

    #[test]
    fn padding_between_rows_is_left_out_even_at_an_odd_stride() {
        let layout = Layout::of(PixelFormat::Y12);
        let mut memory = words(&[1, 2, 3]);
        memory.extend([0xff; 3]);
        memory.extend(words(&[4, 5, 6]));
        let mut frame = Frame::new(3, 2, 4095);
        layout.unpack(&memory, 9, &mut frame).unwrap();
        assert_eq!(frame.pixels(), [1, 2, 3, 4, 5, 6]);
        assert!(layout.unpack(&memory[..14], 9, &mut frame).is_err(), "one byte of the last row is missing");
        assert!(layout.unpack(&memory, 5, &mut frame).is_err());
        assert!(layout.unpack(&memory, 0, &mut frame).is_err());
    }

    #[test]
    fn left_aligned_pixels_need_their_shift() {
        // 12 bits at the top, the high bits repeated in the low ones, as Tegra writes them.
        let values = [0_u16, 1, 0x800, 0xfff];
        let memory = words(&values.map(|v| v << 4 | v >> 8));
        let mut frame = Frame::new(4, 1, 4095);
        Layout::explicit(PixelFormat::Y12, 4, 0xfff).unwrap().unpack(&memory, 8, &mut frame).unwrap();
        assert_eq!(frame.pixels(), values);
        assert!(Layout::of(PixelFormat::Y12).unpack(&memory, 8, &mut frame).unwrap_err().contains("shift"));
        for (format, shift, mask) in [
            (PixelFormat::Y16, 5, 0xfff),
            (PixelFormat::Y16, 0, 0xf0f),
            (PixelFormat::Y16, 0, 0x7f),
            (PixelFormat::Y16, u32::MAX, 0xff),
            (PixelFormat::Grey, 1, 0xff),
            (PixelFormat::Y16, 0, 0),
        ] {
            assert!(Layout::explicit(format, shift, mask).is_err(), "{shift} {mask:x}");
        }
    }

    proptest! {
        #[test]
        fn any_memory_gives_pixels_up_to_white_or_a_reason(
            memory in proptest::collection::vec(any::<u8>(), 0..300),
            (width, height, stride) in (0..20_usize, 0..10_usize, 0..60_usize),
            format in 0..5_usize,
        ) {
            let layout = Layout::of(PixelFormat::ALL[format]);
            let mut frame = Frame::new(width, height, layout.white());
            let _ = layout.unpack(&memory, stride, &mut frame);
            prop_assert!(frame.pixels().iter().all(|&p| p <= layout.white()));
        }
    }
}
