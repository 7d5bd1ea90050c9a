//! A camera frame: one grey channel, 8 to 16 bits a pixel, in a buffer that is reused.

mod decode;
mod pixels;

pub use decode::{DecodeError, DecodeLimits, SaveError, decode_file_into, decode_into};
pub use pixels::PixelMemory;

use pixels::Pixels;

/// One grey image as the sensor or a file gave it.
///
/// Pixels are kept as `u16` whatever the depth; [`Frame::white`] says which value is full scale, so that "50 of 255"
/// means the same brightness in an 8-bit and in a 12-bit frame. The buffer keeps its capacity when the frame is
/// refilled: a frame of the same or a smaller size costs no allocation. It may be [lent](Frame::lent), such as by a
/// device that reads the pixels where they lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    width: usize,
    height: usize,
    white: u16,
    pixels: Pixels,
}

impl Frame {
    /// A black frame of `width` × `height` pixels whose full scale is `white` (255 for 8 bits, 4095 for 12, …).
    ///
    /// # Panics
    /// If `white` is 0.
    #[must_use]
    pub fn new(width: usize, height: usize, white: u16) -> Self {
        assert!(white > 0, "a frame's full scale must be at least 1");
        Self { width, height, white, pixels: Pixels::Heap(vec![0; width * height]) }
    }

    /// A frame over existing pixels, row by row.
    ///
    /// # Panics
    /// If `pixels.len() != width * height` or `white` is 0.
    #[must_use]
    pub fn from_pixels(width: usize, height: usize, white: u16, pixels: Vec<u16>) -> Self {
        assert!(white > 0, "a frame's full scale must be at least 1");
        assert_eq!(pixels.len(), width * height, "a frame of {width}×{height} needs as many pixels");
        Self { width, height, white, pixels: Pixels::Heap(pixels) }
    }

    /// A black frame in lent memory, which is given back when the frame is dropped or becomes larger than it; on the heap if it
    /// is too small.
    ///
    /// # Panics
    /// If `white` is 0.
    #[must_use]
    pub fn lent(memory: Box<dyn PixelMemory>, width: usize, height: usize, white: u16) -> Self {
        assert!(white > 0, "a frame's full scale must be at least 1");
        Self { width, height, white, pixels: Pixels::lent(memory, width * height) }
    }

    /// The memory that its pixels lie in, if it was lent and is a `T`.
    #[must_use]
    pub fn memory<T: PixelMemory>(&self) -> Option<&T> {
        self.pixels.memory()
    }

    /// Gives the frame another size and depth, black, keeping its buffer where it is large enough.
    pub fn reset(&mut self, width: usize, height: usize, white: u16) {
        assert!(white > 0, "a frame's full scale must be at least 1");
        (self.width, self.height, self.white) = (width, height, white);
        self.pixels.reset(width * height);
    }

    /// Pixels in a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    #[must_use]
    pub fn height(&self) -> usize {
        self.height
    }

    /// The pixel value that is full scale: 255 for 8 bits, 65535 for 16.
    #[must_use]
    pub fn white(&self) -> u16 {
        self.white
    }

    /// All pixels, row by row, without padding.
    #[must_use]
    pub fn pixels(&self) -> &[u16] {
        &self.pixels
    }

    /// All pixels, row by row, to be written.
    pub fn pixels_mut(&mut self) -> &mut [u16] {
        &mut self.pixels
    }

    /// Row `y`.
    #[must_use]
    pub fn row(&self, y: usize) -> &[u16] {
        &self.pixels[y * self.width..][..self.width]
    }
}
