//! Where pictures are drawn before they go to a device: one buffer, made once.

use std::convert::Infallible;

use embedded_graphics::pixelcolor::PixelColor;
use embedded_graphics::prelude::*;
use embedded_graphics::primitives::Rectangle;

/// A picture in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Canvas<C> {
    width: usize,
    pixels: Vec<C>,
}

impl<C: PixelColor> Canvas<C> {
    /// A picture of one colour.
    ///
    /// # Panics
    /// If a side is 0.
    #[must_use]
    pub fn new(width: usize, height: usize, colour: C) -> Self {
        assert!(width > 0 && height > 0, "a picture without pixels");
        Self { width, pixels: vec![colour; width * height] }
    }

    /// Pixels in a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    #[must_use]
    pub fn height(&self) -> usize {
        self.pixels.len() / self.width
    }

    /// The pixels of a row, from the left.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row(&self, y: usize) -> &[C] {
        &self.pixels[y * self.width..][..self.width]
    }

    /// All pixels, row by row.
    #[must_use]
    pub fn pixels(&self) -> &[C] {
        &self.pixels
    }
}

impl<C: PixelColor> OriginDimensions for Canvas<C> {
    fn size(&self) -> Size {
        Size::new(self.width() as u32, self.height() as u32)
    }
}

impl<C: PixelColor> DrawTarget for Canvas<C> {
    type Color = C;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<C>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        let bounds = self.bounding_box();
        for Pixel(at, colour) in pixels {
            if bounds.contains(at) {
                self.pixels[at.y as usize * self.width + at.x as usize] = colour;
            }
        }
        Ok(())
    }

    fn fill_solid(&mut self, area: &Rectangle, colour: C) -> Result<(), Infallible> {
        let area = area.intersection(&self.bounding_box());
        let (left, wide) = (area.top_left.x as usize, area.size.width as usize);
        for y in area.rows() {
            self.pixels[y as usize * self.width + left..][..wide].fill(colour);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use embedded_graphics::pixelcolor::BinaryColor;

    use super::*;

    #[test]
    fn what_lies_outside_is_left_out() {
        let mut canvas = Canvas::new(4, 3, BinaryColor::Off);
        let area = Rectangle::new(Point::new(-2, 1), Size::new(4, 9));
        canvas.fill_solid(&area, BinaryColor::On).unwrap();
        canvas.fill_solid(&Rectangle::new(Point::new(9, 9), Size::new(4, 4)), BinaryColor::On).unwrap();
        canvas.draw_iter([Pixel(Point::new(3, 0), BinaryColor::On), Pixel(Point::new(4, 0), BinaryColor::On)]).unwrap();
        let rows: Vec<Vec<bool>> = (0..3).map(|y| canvas.row(y).iter().map(|c| c.is_on()).collect()).collect();
        assert_eq!(rows[0], [false, false, false, true]);
        assert_eq!(rows[1], [true, true, false, false]);
        assert_eq!(rows[2], rows[1]);
    }
}
