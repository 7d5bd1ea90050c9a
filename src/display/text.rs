//! Writing: the small fonts of `embedded-graphics`, enlarged, and large letters for the classes, drawn as strokes.

use std::fmt;

use embedded_graphics::mono_font::iso_8859_1::{FONT_5X8, FONT_6X10, FONT_7X13_BOLD, FONT_9X15_BOLD, FONT_10X20};
use embedded_graphics::mono_font::{MonoFont, MonoTextStyle};
use embedded_graphics::prelude::*;
use embedded_graphics::primitives::Rectangle;
use embedded_graphics::text::renderer::TextRenderer;
use embedded_graphics::text::{Alignment, Baseline};

use super::ink::Ink;

/// A short text in place; what does not fit is left out.
#[derive(Clone, Copy)]
pub(crate) struct Words {
    bytes: [u8; 96],
    length: usize,
}

impl Words {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; 96], length: 0 }
    }

    /// Formatted, without allocating.
    pub(crate) fn of(arguments: fmt::Arguments<'_>) -> Self {
        let mut words = Self::new();
        // Writing to it never fails.
        let _ = fmt::write(&mut words, arguments);
        words
    }

    pub(crate) fn as_str(&self) -> &str {
        str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }
}

impl fmt::Write for Words {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if self.length + c.len_utf8() <= self.bytes.len() {
                self.length += c.encode_utf8(&mut self.bytes[self.length..]).len();
            }
        }
        Ok(())
    }
}

/// At most `most` characters of a name: its beginning, `…` and its end, which tells names of one batch apart.
pub(crate) fn shorten(text: &str, most: usize) -> Words {
    let count = text.chars().count();
    if count <= most {
        return Words::of(format_args!("{text}"));
    }
    let head = most.saturating_sub(1) / 2;
    let tail = most.saturating_sub(1) - head;
    let mut words = Words::new();
    let kept = text.chars().take(head).chain(['…']).chain(text.chars().skip(count - tail));
    for c in kept {
        let _ = fmt::Write::write_char(&mut words, c);
    }
    words
}

/// A font, so many times enlarged.
#[derive(Clone, Copy)]
pub(crate) struct Face {
    font: &'static MonoFont<'static>,
    scale: u32,
}

const FONTS: [&MonoFont<'static>; 5] = [&FONT_5X8, &FONT_6X10, &FONT_7X13_BOLD, &FONT_9X15_BOLD, &FONT_10X20];

impl Face {
    /// The smallest.
    pub(crate) const TINY: Self = Self { font: &FONT_5X8, scale: 1 };
    /// Small.
    pub(crate) const SMALL: Self = Self { font: &FONT_6X10, scale: 1 };

    /// The largest in which `chars` characters fit into so many pixels; the smallest if they fit in none.
    pub(crate) fn fit(width: u32, height: u32, chars: usize) -> Self {
        let chars = u32::try_from(chars).unwrap_or(u32::MAX).max(1);
        FONTS
            .iter()
            .filter_map(|font| {
                let size = font.character_size;
                let scale = (width / size.width.saturating_mul(chars)).min(height / size.height);
                (scale > 0).then_some(Self { font, scale })
            })
            .max_by_key(Self::height)
            .unwrap_or(Self::TINY)
    }

    pub(crate) fn advance(&self) -> u32 {
        self.font.character_size.width * self.scale
    }

    pub(crate) fn height(&self) -> u32 {
        self.font.character_size.height * self.scale
    }

    pub(crate) fn width(&self, text: &str) -> u32 {
        self.advance() * text.chars().count() as u32
    }

    /// Characters that fit into so many pixels.
    pub(crate) fn room(&self, width: u32) -> usize {
        (width / self.advance()) as usize
    }

    /// Writes one line whose top is at `at`, which is its left end, its middle or its right end.
    pub(crate) fn write<D: DrawTarget>(
        &self,
        target: &mut D,
        text: &str,
        at: Point,
        alignment: Alignment,
        colour: D::Color,
    ) -> Result<(), D::Error> {
        let width = self.width(text) as i32;
        let left = match alignment {
            Alignment::Left => at.x,
            Alignment::Center => at.x - width / 2,
            Alignment::Right => at.x - width,
        };
        let style = MonoTextStyle::new(self.font, colour);
        let mut scaled = Scaled { target, scale: self.scale, origin: Point::new(left, at.y) };
        for (index, c) in text.chars().enumerate() {
            let at = Point::new(self.font.character_size.width as i32 * index as i32, 0);
            if c == '…' {
                // The fonts have none.
                let (wide, low) = (self.font.character_size.width as i32, self.font.baseline as i32 - 1);
                for dot in 0..3 {
                    let dot = Point::new(at.x + (wide * (2 * dot + 1)) / 6, low);
                    scaled.fill_solid(&Rectangle::new(dot, Size::new(1, 2)), colour)?;
                }
                continue;
            }
            style.draw_string(c.encode_utf8(&mut [0; 4]), at, Baseline::Top, &mut scaled)?;
        }
        Ok(())
    }
}

/// Draws every pixel as a square.
struct Scaled<'a, D> {
    target: &'a mut D,
    scale: u32,
    origin: Point,
}

impl<D: DrawTarget> Dimensions for Scaled<'_, D> {
    fn bounding_box(&self) -> Rectangle {
        Rectangle::new(Point::new(-4096, -4096), Size::new(8192, 8192))
    }
}

impl<D: DrawTarget> DrawTarget for Scaled<'_, D> {
    type Color = D::Color;
    type Error = D::Error;

    fn draw_iter<I: IntoIterator<Item = Pixel<D::Color>>>(&mut self, pixels: I) -> Result<(), D::Error> {
        let (scale, origin) = (self.scale, self.origin);
        if scale == 1 {
            return self.target.draw_iter(pixels.into_iter().map(|Pixel(at, colour)| Pixel(at + origin, colour)));
        }
        for Pixel(at, colour) in pixels {
            self.fill_solid(&Rectangle::new(at, Size::new(1, 1)), colour)?;
        }
        Ok(())
    }

    fn fill_solid(&mut self, area: &Rectangle, colour: D::Color) -> Result<(), D::Error> {
        let at = self.origin + area.top_left * self.scale as i32;
        self.target.fill_solid(&Rectangle::new(at, area.size * self.scale), colour)
    }
}

/// A large letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Letter {
    A,
    B,
    C,
    Question,
}

/// A part of a letter, in a box of height 1 and width [`WIDE`] with y downwards; the stroke's middle line.
enum Stroke {
    /// From one point to another.
    Line(f32, f32, f32, f32),
    /// Around a centre, with a radius, clockwise from one direction to another. Directions rather than angles: sums, products
    /// and roots are the same on every machine.
    Arc(f32, f32, f32, [f32; 2], [f32; 2]),
}

/// Width of a letter whose height is 1.
const WIDE: f32 = 0.8;
/// Half the width of a stroke.
const HALF: f32 = 0.085;

impl Letter {
    fn strokes(self) -> &'static [Stroke] {
        use Stroke::{Arc, Line};
        const L: f32 = HALF;
        const R: f32 = WIDE - HALF;
        const T: f32 = HALF;
        const B: f32 = 1.0 - HALF;
        const X: f32 = WIDE / 2.0;
        const ROUND: f32 = X - HALF;
        const LEFT: [f32; 2] = [-1.0, 0.0];
        const UP: [f32; 2] = [0.0, -1.0];
        const DOWN: [f32; 2] = [0.0, 1.0];
        // The ends of C lie 23.4° above and below the right, that of the question mark 54° below.
        const ENDS: [[f32; 2]; 2] = [[0.917_755, -0.397_148], [0.917_755, 0.397_148]];
        const HOOK: [f32; 2] = [0.587_785, 0.809_017];
        match self {
            Self::A => const { &[Line(L, B, X, T), Line(X, T, R, B), Line(0.2, 0.68, 0.6, 0.68)] },
            Self::B => {
                const {
                    &[
                        Line(L, T, L, B),
                        Line(L, T, 0.46, T),
                        Arc(0.46, 0.28, 0.195, UP, DOWN),
                        Line(L, 0.475, 0.495, 0.475),
                        Arc(0.495, 0.695, 0.22, UP, DOWN),
                        Line(L, B, 0.495, B),
                    ]
                }
            }
            Self::C => {
                const {
                    &[
                        Arc(X, T + ROUND, ROUND, LEFT, ENDS[0]),
                        Line(L, T + ROUND, L, B - ROUND),
                        Arc(X, B - ROUND, ROUND, ENDS[1], LEFT),
                    ]
                }
            }
            Self::Question => {
                const {
                    &[
                        Arc(X, 0.34, 0.255, LEFT, HOOK),
                        Line(X + 0.15, 0.546, X, 0.67),
                        Line(X, 0.67, X, 0.70),
                        Line(X, B, X, B - 0.005),
                    ]
                }
            }
        }
    }

    /// Its width at this height, in pixels.
    pub(crate) fn width(height: u32) -> u32 {
        (height as f32 * WIDE).ceil() as u32
    }

    /// Draws it with its upper left corner at `at`, its edges smoothed towards `ground`.
    pub(crate) fn draw<D: DrawTarget<Color: Ink>>(
        self,
        target: &mut D,
        at: Point,
        height: u32,
        colour: D::Color,
        ground: D::Color,
    ) -> Result<(), D::Error> {
        let scale = height as f32;
        let strokes = self.strokes();
        let pixels = (0..height).flat_map(|y| (0..Self::width(height)).map(move |x| (x, y)));
        target.draw_iter(pixels.filter_map(|(x, y)| {
            let (px, py) = ((x as f32 + 0.5) / scale, (y as f32 + 0.5) / scale);
            let distance = strokes.iter().map(|stroke| stroke.distance(px, py)).fold(f32::INFINITY, f32::min);
            let cover = (0.5 - (distance - HALF) * scale).clamp(0.0, 1.0);
            let pixel = at + Point::new(x as i32, y as i32);
            (cover > 0.0).then(|| Pixel(pixel, D::Color::between(ground, colour, (cover * 255.0) as u8)))
        }))
    }
}

impl Stroke {
    fn distance(&self, x: f32, y: f32) -> f32 {
        match *self {
            Self::Line(x0, y0, x1, y1) => {
                let (dx, dy) = (x1 - x0, y1 - y0);
                let along = (((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy)).clamp(0.0, 1.0);
                length(x - x0 - along * dx, y - y0 - along * dy)
            }
            Self::Arc(cx, cy, radius, from, to) => {
                let at = [x - cx, y - cy];
                let turn = |a: [f32; 2], b: [f32; 2]| a[0] * b[1] - a[1] * b[0];
                // More than half a circle if the end lies to the left of the beginning.
                let (after, before) = (turn(from, at) >= 0.0, turn(at, to) >= 0.0);
                let within = if turn(from, to) >= 0.0 { after && before } else { after || before };
                if within {
                    return (length(at[0], at[1]) - radius).abs();
                }
                let end = |to: [f32; 2]| length(at[0] - radius * to[0], at[1] - radius * to[1]);
                end(from).min(end(to))
            }
        }
    }
}

fn length(x: f32, y: f32) -> f32 {
    (x * x + y * y).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_keep_both_ends_and_short_ones_everything() {
        assert_eq!(shorten("W-7", 8).as_str(), "W-7");
        assert_eq!(shorten("ABCDEFGHIJ", 10).as_str(), "ABCDEFGHIJ");
        assert_eq!(shorten("ABCDEFGHIJK", 10).as_str(), "ABCD…GHIJK");
        assert_eq!(shorten(&"é".repeat(32), 5).as_str(), "éé…éé");
        assert_eq!(shorten("AB", 1).as_str(), "…");
        assert_eq!(shorten("AB", 0).as_str(), "…");
    }

    #[test]
    fn the_largest_fitting_face_is_found() {
        for (width, height, chars) in [(128, 20, 12), (320, 40, 8), (76, 20, 7), (1000, 300, 3), (7, 7, 3)] {
            let face = Face::fit(width, height, chars);
            let fits = face.advance() * chars as u32 <= width && face.height() <= height;
            assert!(fits || face.height() == Face::TINY.height());
        }
        assert_eq!(Face::fit(320, 40, 8).height(), 40);
    }

    #[test]
    fn words_end_at_a_whole_character() {
        let words = Words::of(format_args!("{}é", "x".repeat(95)));
        assert_eq!(words.as_str().len(), 95);
    }
}
