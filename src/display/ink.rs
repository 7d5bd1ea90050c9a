//! What things look like, in the colours that a screen has.

use embedded_graphics::pixelcolor::{BinaryColor, PixelColor, Rgb565};
use embedded_graphics::prelude::*;

/// What a colour means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shade {
    /// Behind everything.
    Ground,
    /// Writing on the ground.
    Text,
    /// Writing that matters less.
    Dim,
    /// What is old, or not in use.
    Grey,
    /// Black writing on a bright field.
    Black,
    /// White writing on a dark field.
    White,
    /// Class A, and what works.
    Good,
    /// Class B, and what is on its way.
    Middling,
    /// Class C, and what is broken.
    Bad,
    /// A cell that could not be judged.
    Unjudged,
    /// A value of the heatmap: 128 is the threshold of a region.
    Heat(u8),
}

/// A screen's colours.
pub trait Ink: PixelColor {
    /// The colour for a meaning.
    fn of(shade: Shade) -> Self;
    /// Between two colours: `from` at 0, `to` at 255.
    fn between(from: Self, to: Self, share: u8) -> Self;
}

impl Ink for BinaryColor {
    fn of(shade: Shade) -> Self {
        Self::from(match shade {
            Shade::Ground | Shade::Black => false,
            Shade::Heat(value) => value >= 128,
            _ => true,
        })
    }

    fn between(from: Self, to: Self, share: u8) -> Self {
        if share < 128 { from } else { to }
    }
}

impl Ink for Rgb565 {
    fn of(shade: Shade) -> Self {
        let (red, green, blue) = match shade {
            Shade::Ground => (10, 12, 16),
            Shade::Text => (236, 239, 244),
            Shade::Dim => (150, 158, 170),
            Shade::Grey => (84, 90, 100),
            Shade::Black => (0, 0, 0),
            Shade::White => (255, 255, 255),
            Shade::Good => (0, 190, 80),
            Shade::Middling => (255, 176, 0),
            Shade::Bad => (214, 24, 24),
            Shade::Unjudged => (190, 0, 170),
            // As in the reports' pictures: yellow at a region's threshold, red at twice that. Below it a dark blue, so
            // that the cell's structure shows and is not taken for a defect.
            Shade::Heat(value @ 128..) => (255, (230 * u16::from(255 - value) / 127) as u8, 0),
            Shade::Heat(value) => (12 + value / 3, 16 + value / 2, 32 + value),
        };
        Self::new(red >> 3, green >> 2, blue >> 3)
    }

    fn between(from: Self, to: Self, share: u8) -> Self {
        let mix = |a: u8, b: u8| {
            let share = u32::from(share);
            ((u32::from(a) * (255 - share) + u32::from(b) * share + 127) / 255) as u8
        };
        Self::new(mix(from.r(), to.r()), mix(from.g(), to.g()), mix(from.b(), to.b()))
    }
}
