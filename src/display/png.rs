//! Pictures of the screen as PNG files: for stations without a screen, for tests and for the documents.

use std::io;
use std::path::Path;

use embedded_graphics::pixelcolor::{BinaryColor, Rgb565};
use embedded_graphics::prelude::*;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};

use super::Canvas;
use crate::whole_file;

/// A colour as a file has it.
pub trait Rgb8: PixelColor {
    /// Red, green, blue.
    fn rgb8(self) -> [u8; 3];
}

impl Rgb8 for Rgb565 {
    fn rgb8(self) -> [u8; 3] {
        let five = |value: u8| value << 3 | value >> 2;
        [five(self.r()), self.g() << 2 | self.g() >> 4, five(self.b())]
    }
}

impl Rgb8 for BinaryColor {
    fn rgb8(self) -> [u8; 3] {
        [if self.is_on() { 255 } else { 0 }; 3]
    }
}

/// Turns pictures of one size into PNG files, in buffers that are used again.
#[derive(Debug, Default)]
pub struct Encoder {
    pixels: Vec<u8>,
    file: Vec<u8>,
}

impl Encoder {
    /// The bytes of a PNG file, true colour of 8 bits.
    ///
    /// # Errors
    /// If memory for it is lacking.
    pub fn encode<C: Rgb8>(&mut self, canvas: &Canvas<C>) -> io::Result<&[u8]> {
        self.pixels.clear();
        self.pixels.extend(canvas.pixels().iter().flat_map(|colour| colour.rgb8()));
        self.file.clear();
        let encoder = PngEncoder::new_with_quality(&mut self.file, CompressionType::Default, FilterType::NoFilter);
        let (wide, high) = (canvas.width() as u32, canvas.height() as u32);
        encoder.write_image(&self.pixels, wide, high, ExtendedColorType::Rgb8).map_err(io::Error::other)?;
        Ok(&self.file)
    }

    /// Writes a picture, whole or not at all.
    ///
    /// # Errors
    /// What the system said.
    pub fn write<C: Rgb8>(&mut self, canvas: &Canvas<C>, path: &Path) -> io::Result<()> {
        whole_file::write(path, &[self.encode(canvas)?])
    }
}
