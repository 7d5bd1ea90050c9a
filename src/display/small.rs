//! The small screen, 128 × 64 pixels and one colour: black and white, reversed where something needs a look.

use embedded_graphics::prelude::*;
use embedded_graphics::primitives::Rectangle;
use embedded_graphics::text::Alignment;

use super::ink::{Ink, Shade};
use super::screen::{Compact, Panel, Screen, View, ago, fill, ink, letter_of, parts, percent, spaced, word};
use super::text::{Face, Letter, Words, shorten};
use crate::station::status::{Health, Said};
use crate::verdict::Class;

/// Draws everything. Larger screens than 128 × 64 have the rest empty.
pub(crate) fn draw<D: DrawTarget<Color: Ink>>(
    screen: &Screen,
    target: &mut D,
    view: &View<'_>,
) -> Result<(), D::Error> {
    let said = screen.said(view);
    let last = view.status.last.as_ref();
    // A pass is white on black; what is taken out is black on white.
    let square = Rectangle::new(Point::zero(), Size::new(46, 54));
    let taken_out = matches!(said, Panel::Fresh(Said::Class(Class::C) | Said::Invalid(_)));
    let (ground, writing) = if taken_out { (Shade::White, Shade::Black) } else { (Shade::Black, Shade::White) };
    fill(target, square, ground)?;
    let letter = match said {
        Panel::Fresh(Said::Class(class)) => Some(letter_of(class)),
        Panel::Fresh(Said::Invalid(_)) => Some(Letter::Question),
        Panel::Waiting(_) => None,
    };
    match letter {
        Some(letter) => letter.draw(target, Point::new(3, 2), 50, ink(writing), ink(ground))?,
        None => {
            for dot in 0..3 {
                fill(target, Rectangle::new(Point::new(6 + 14 * dot, 24), Size::new(6, 6)), Shade::White)?;
            }
        }
    }
    let (left, wide) = (50, 78);
    let (title, line) = match said {
        Panel::Fresh(Said::Invalid(reason)) => ("INVALID", spaced(reason)),
        Panel::Fresh(said) => (word(said), name(view)),
        Panel::Waiting(why) => {
            let before = match last {
                Some(last) => ago(view.now.since(last.at)),
                None => Words::of(format_args!("no cell yet")),
            };
            (why, before)
        }
    };
    let face = Face::fit(wide, 20, title.len());
    let top = (20 - face.height() as i32) / 2;
    face.write(target, title, Point::new(left, top), Alignment::Left, ink(Shade::Text))?;
    let shown = |text: &str, face: Face| shorten(text, face.room(wide));
    let face = if line.as_str().chars().count() <= Face::SMALL.room(wide) { Face::SMALL } else { Face::TINY };
    let text = shown(line.as_str(), face);
    face.write(target, text.as_str(), Point::new(left, 21), Alignment::Left, ink(Shade::Text))?;
    let shift = &view.status.shift;
    let lines = [
        match said {
            // The id is where the reason is not.
            Panel::Fresh(Said::Invalid(_)) => name(view),
            _ => Words::of(format_args!("A{} B{}", Compact(shift.a), Compact(shift.b))),
        },
        match shift.yield_share() {
            Some(share) => {
                Words::of(format_args!("C{} ?{} {}", Compact(shift.c), Compact(shift.invalid), percent(share).as_str()))
            }
            None => Words::of(format_args!("C0 ?0")),
        },
    ];
    for (line, top) in lines.iter().zip([34, 44]) {
        let text = shown(line.as_str(), Face::TINY);
        Face::TINY.write(target, text.as_str(), Point::new(left, top), Alignment::Left, ink(Shade::Text))?;
    }
    state(target, view)
}

fn name(view: &View<'_>) -> Words {
    match view.status.last.as_ref().map(|last| (last.cell, last.seq)) {
        Some((Some(cell), _)) => Words::of(format_args!("{cell}")),
        Some((None, seq)) => Words::of(format_args!("cell {seq}")),
        None => Words::new(),
    }
}

/// The last row: each part of the station, reversed if it is down and absent if it is off; temperature; drift.
fn state<D: DrawTarget<Color: Ink>>(target: &mut D, view: &View<'_>) -> Result<(), D::Error> {
    let (face, top) = (Face::TINY, 56);
    let mut left = 0;
    let short = ["CAM", "MQ", "ST", "MOD"];
    for ((_, health), label) in parts(view.status).iter().zip(short) {
        let width = face.width(label) as i32;
        let at = Rectangle::new(Point::new(left, top - 1), Size::new(width as u32 + 1, 9));
        let shade = match health {
            Health::Down => {
                fill(target, at, Shade::White)?;
                Shade::Black
            }
            _ => Shade::Text,
        };
        if *health != Health::Off {
            face.write(target, label, Point::new(left + 1, top), Alignment::Left, ink(shade))?;
        }
        left += width + 3;
    }
    if view.status.drift {
        let at = Rectangle::new(Point::new(128 - 26, top - 1), Size::new(26, 9));
        fill(target, at, Shade::White)?;
        face.write(target, "DRIFT", Point::new(128 - 25, top), Alignment::Left, ink(Shade::Black))?;
    }
    if let Some(degrees) = view.status.temperature {
        let text = Words::of(format_args!("{degrees:.0}°C"));
        face.write(target, text.as_str(), Point::new(128 - 28, top), Alignment::Right, ink(Shade::Text))?;
    }
    Ok(())
}
