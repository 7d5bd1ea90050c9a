//! What the screen at the machine shows: the last cell's class, large, and how the station does.
//!
//! Drawn anew from a [`Status`] each time, into any target; nothing is allocated. A verdict that is older than
//! `stale_after` is no longer shown as one: the panel turns grey and says that the station waits.

use std::time::Duration;

use embedded_graphics::prelude::*;
use embedded_graphics::primitives::{Circle, PrimitiveStyle, PrimitiveStyleBuilder, Rectangle, StrokeAlignment};
use embedded_graphics::text::Alignment;

use super::ink::{Ink, Shade};
use super::layout::Places;
use super::small;
use super::text::{Face, Letter, Words, shorten};
use crate::clock::{Date, Moment};
use crate::station::status::{Health, Last, Said, Status, THUMBNAIL};
use crate::verdict::Class;

/// Fewest pixels of a screen, across and down.
pub const SMALLEST: (u32, u32) = (128, 64);

/// From this size on there is room for the picture of the heatmap.
const ROOMY: (u32, u32) = (200, 200);

/// What is drawn beside the status, and when a verdict is old.
#[derive(Clone, Debug)]
pub struct Screen {
    /// Name of the line.
    pub line: String,
    /// Name of the station.
    pub station: String,
    /// Age from which a verdict is no longer shown.
    pub stale_after: Duration,
    /// What the times shown are ahead of UTC, in minutes.
    pub utc_offset: i32,
}

/// One moment to be drawn.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// What the station knows.
    pub status: &'a Status,
    /// Now, by which verdicts age.
    pub now: Moment,
    /// Now, for people.
    pub date: Date,
}

/// What the panel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Panel {
    /// A fresh verdict.
    Fresh(Said),
    /// No fresh verdict: why, in a word or two.
    Waiting(&'static str),
}

impl Screen {
    /// Draws everything: in one colour and small writing on a small screen, with the heatmap from 200 × 200 pixels on.
    ///
    /// # Errors
    /// What the target says.
    pub fn draw<D: DrawTarget<Color: Ink>>(&self, target: &mut D, view: &View<'_>) -> Result<(), D::Error> {
        target.clear(D::Color::of(Shade::Ground))?;
        let size = target.bounding_box().size;
        if size.width < ROOMY.0 || size.height < ROOMY.1 {
            return small::draw(self, target, view);
        }
        let places = Places::of(size);
        self.header(target, places.header, view)?;
        self.panel(target, places.panel, view)?;
        self.heat(target, places.heat, view)?;
        self.cell(target, places.cell, view)?;
        self.counts(target, &places, view)?;
        self.lamps(target, &places, view)
    }

    /// Draws that the station does not run, so that no old verdict stays on a screen that keeps its picture.
    ///
    /// # Errors
    /// What the target says.
    pub fn draw_stopped<D: DrawTarget<Color: Ink>>(&self, target: &mut D) -> Result<(), D::Error> {
        target.clear(D::Color::of(Shade::Ground))?;
        let size = target.bounding_box().size;
        let face = Face::fit(size.width * 9 / 10, size.height / 3, 7);
        let top = (size.height as i32 - face.height() as i32) / 2;
        face.write(target, "STOPPED", Point::new(size.width as i32 / 2, top), Alignment::Center, ink(Shade::Text))
    }

    /// What the panel says of the last cell at this moment.
    pub(crate) fn said(&self, view: &View<'_>) -> Panel {
        let status = view.status;
        match &status.last {
            Some(last) if self.is_fresh(last, view.now) => Panel::Fresh(last.said),
            _ if status.outbox == Health::Down => Panel::Waiting("STORE DOWN"),
            _ if status.camera == Health::Down => Panel::Waiting("NO CAMERA"),
            _ if status.camera == Health::Starting => Panel::Waiting("STARTING"),
            _ => Panel::Waiting("WAITING"),
        }
    }

    /// A verdict may come between the look at the clock and the look at the status; one from much later is a mistake, and
    /// not fresh.
    fn is_fresh(&self, last: &Last, now: Moment) -> bool {
        last.at.since(now) < Duration::from_secs(1) && now.since(last.at) < self.stale_after
    }

    fn header<D: DrawTarget<Color: Ink>>(
        &self,
        target: &mut D,
        at: Rectangle,
        view: &View<'_>,
    ) -> Result<(), D::Error> {
        fill(target, at, Shade::Heat(20))?;
        let date = self.local(view.date);
        let suffix = if self.utc_offset == 0 { " UTC" } else { "" };
        let time = Words::of(format_args!("{} {}{suffix}", part(&date, 5..10), part(&date, 11..19)));
        let face = Face::fit(at.size.width * 2 / 5, at.size.height - 4, time.as_str().len());
        let (right, top) = (right(at) - 4, middle(at, face));
        face.write(target, time.as_str(), Point::new(right, top), Alignment::Right, ink(Shade::Dim))?;
        let room = face.room((right - at.top_left.x - 8) as u32).saturating_sub(time.as_str().len() + 1);
        let station = shorten(&self.station, room.saturating_sub(3).div_ceil(2).max(1));
        let line = shorten(&self.line, room.saturating_sub(station.as_str().chars().count() + 3));
        let names = Words::of(format_args!("{} / {}", line.as_str(), station.as_str()));
        face.write(target, names.as_str(), Point::new(at.top_left.x + 4, top), Alignment::Left, ink(Shade::Text))
    }

    fn panel<D: DrawTarget<Color: Ink>>(&self, target: &mut D, at: Rectangle, view: &View<'_>) -> Result<(), D::Error> {
        let said = self.said(view);
        let (ground, writing) = match said {
            Panel::Fresh(Said::Class(Class::A)) => (Shade::Good, Shade::Black),
            Panel::Fresh(Said::Class(Class::B)) => (Shade::Middling, Shade::Black),
            Panel::Fresh(Said::Class(Class::C)) => (Shade::Bad, Shade::White),
            Panel::Fresh(Said::Invalid(_)) => (Shade::Unjudged, Shade::White),
            Panel::Waiting(_) => (Shade::Grey, Shade::White),
        };
        fill(target, at, ground)?;
        let (wide, high) = (at.size.width, at.size.height);
        let pad = (high / 16).max(3);
        let class = match said {
            Panel::Fresh(Said::Class(class)) => class,
            Panel::Fresh(Said::Invalid(reason)) => {
                let reason = spaced(reason);
                return self.words(target, at, "INVALID", reason.as_str(), writing, view);
            }
            Panel::Waiting(why) => {
                // Not what was said of it: nobody shall read an old PASS from afar.
                let before = if view.status.last.is_some() { "last cell" } else { "no cell yet" };
                let before = Words::of(format_args!("{before}"));
                return self.words(target, at, why, before.as_str(), writing, view);
            }
        };
        // Words have their place beside it.
        let letter = (high - 2 * pad).min(wide * 11 / 16);
        let corner = at.top_left + Point::new(pad as i32 * 2, (high - letter) as i32 / 2);
        letter_of(class).draw(target, corner, letter, ink(writing), ink(ground))?;
        let left = pad * 2 + Letter::width(letter) + pad;
        let beside = wide.saturating_sub(left + pad);
        let centre = at.top_left.x + (left + beside / 2) as i32;
        let face = Face::fit(beside, high / 3, 6);
        let mut top = at.top_left.y + pad as i32;
        face.write(target, word(Said::Class(class)), Point::new(centre, top), Alignment::Center, ink(writing))?;
        top += (face.height() + pad) as i32;
        let face = Face::fit(beside, high / 5, 10);
        let last = view.status.last.as_ref();
        if let Some(score) = last.and_then(|last| last.score) {
            let score = shorten(Words::of(format_args!("score {score:.2}")).as_str(), face.room(beside));
            face.write(target, score.as_str(), Point::new(centre, top), Alignment::Center, ink(writing))?;
        }
        if let Some(last) = last {
            let age = shorten(ago(view.now.since(last.at)).as_str(), face.room(beside));
            let top = bottom(at) - (face.height() + pad) as i32;
            face.write(target, age.as_str(), Point::new(centre, top), Alignment::Center, ink(writing))?;
        }
        Ok(())
    }

    /// A panel without a class: a large word, a smaller line, and the age.
    fn words<D: DrawTarget<Color: Ink>>(
        &self,
        target: &mut D,
        at: Rectangle,
        large: &str,
        line: &str,
        writing: Shade,
        view: &View<'_>,
    ) -> Result<(), D::Error> {
        let (wide, high) = (at.size.width * 15 / 16, at.size.height);
        let centre = at.top_left.x + at.size.width as i32 / 2;
        let mut top = at.top_left.y + high as i32 / 12;
        let face = Face::fit(wide, high / 2, large.len());
        face.write(target, large, Point::new(centre, top), Alignment::Center, ink(writing))?;
        top += (face.height() + high / 16) as i32;
        let face = Face::fit(wide, high / 5, line.chars().count());
        let line = shorten(line, face.room(wide));
        face.write(target, line.as_str(), Point::new(centre, top), Alignment::Center, ink(writing))?;
        if let Some(last) = &view.status.last {
            let age = ago(view.now.since(last.at));
            let face = Face::fit(wide, high / 8, 10);
            let top = bottom(at) - (face.height() + high / 20) as i32;
            face.write(target, age.as_str(), Point::new(centre, top), Alignment::Center, ink(writing))?;
        }
        Ok(())
    }

    fn heat<D: DrawTarget<Color: Ink>>(&self, target: &mut D, at: Rectangle, view: &View<'_>) -> Result<(), D::Error> {
        let fresh = matches!(self.said(view), Panel::Fresh(_));
        let heat = view.status.last.as_ref().filter(|last| fresh && last.heat.iter().flatten().any(|&v| v > 0));
        let Some(last) = heat else {
            let style = PrimitiveStyleBuilder::new()
                .stroke_color(ink(Shade::Grey))
                .stroke_width(1)
                .stroke_alignment(StrokeAlignment::Inside);
            at.into_styled(style.build()).draw(target)?;
            let face = Face::fit(at.size.width * 3 / 4, at.size.height / 8, 10);
            let middle = Point::new(at.center().x, middle(at, face));
            return face.write(target, "no heatmap", middle, Alignment::Center, ink(Shade::Grey));
        };
        let (wide, high) = (at.size.width as usize, at.size.height as usize);
        let values = (0..high).flat_map(|y| (0..wide).map(move |x| (y * THUMBNAIL / high, x * THUMBNAIL / wide)));
        target.fill_contiguous(&at, values.map(|(y, x)| ink(Shade::Heat(last.heat[y][x]))))
    }

    fn cell<D: DrawTarget<Color: Ink>>(&self, target: &mut D, at: Rectangle, view: &View<'_>) -> Result<(), D::Error> {
        let Some(last) = &view.status.last else { return Ok(()) };
        let name = match &last.cell {
            Some(cell) => Words::of(format_args!("{cell}")),
            None => Words::of(format_args!("cell {} (no id)", last.seq)),
        };
        let shade = if matches!(self.said(view), Panel::Fresh(_)) { Shade::Text } else { Shade::Grey };
        // Never smaller than what is read from a step away: what is longer is shortened.
        let least = Face::fit(at.size.width, at.size.height, (at.size.width / 10) as usize);
        let whole = Face::fit(at.size.width, at.size.height, name.as_str().chars().count());
        let face = if whole.height() >= least.height() { whole } else { least };
        let shown = shorten(name.as_str(), face.room(at.size.width));
        let place = Point::new(at.top_left.x, middle(at, face));
        face.write(target, shown.as_str(), place, Alignment::Left, ink(shade))
    }

    fn counts<D: DrawTarget<Color: Ink>>(
        &self,
        target: &mut D,
        places: &Places,
        view: &View<'_>,
    ) -> Result<(), D::Error> {
        let shift = &view.status.shift;
        let began = self.local(view.status.shift_began);
        let share = match shift.yield_share() {
            Some(share) => percent(share),
            None => Words::of(format_args!("-")),
        };
        let began = part(&began, 11..16);
        let narrow = Face::TINY.room(places.counts[4].size.width) < 12;
        let since = if narrow { Words::of(format_args!("{began}")) } else { Words::of(format_args!("since {began}")) };
        let number = |count: u64| match count {
            0..1_000_000_000 => Words::of(format_args!("{count}")),
            more => Words::of(format_args!("{}", Compact(more))),
        };
        let columns = [
            ("A", number(shift.a), Shade::Good),
            ("B", number(shift.b), Shade::Middling),
            ("C", number(shift.c), Shade::Bad),
            ("INVALID", number(shift.invalid), Shade::Unjudged),
            (since.as_str(), share, Shade::Text),
        ];
        let longest = columns.iter().map(|(_, value, _)| value.as_str().len()).max().unwrap_or(1).max(6);
        for ((label, value, shade), at) in columns.iter().zip(places.counts) {
            let wide = at.size.width - 3;
            fill(target, Rectangle::new(at.top_left, Size::new(wide, 2.max(at.size.height / 16))), *shade)?;
            let small = Face::fit(wide, at.size.height * 3 / 10, 11);
            let (left, top) = (at.top_left.x, at.top_left.y + 2.max(at.size.height as i32 / 16) + 1);
            let label = shorten(label, small.room(wide));
            small.write(target, label.as_str(), Point::new(left, top), Alignment::Left, ink(Shade::Dim))?;
            let face = Face::fit(wide, at.size.height * 6 / 10, longest);
            let top = bottom(at) - face.height() as i32;
            let value = shorten(value.as_str(), face.room(wide));
            face.write(target, value.as_str(), Point::new(left, top), Alignment::Left, ink(Shade::Text))?;
        }
        Ok(())
    }

    fn lamps<D: DrawTarget<Color: Ink>>(
        &self,
        target: &mut D,
        places: &Places,
        view: &View<'_>,
    ) -> Result<(), D::Error> {
        for ((label, health), at) in parts(view.status).iter().zip(places.lamps) {
            let high = at.size.height;
            let round = (high / 2).max(8);
            let top = at.top_left.y + (high - round) as i32 / 2;
            let circle = Circle::new(Point::new(at.top_left.x, top), round);
            let style = match health {
                Health::Up => PrimitiveStyle::with_fill(ink(Shade::Good)),
                Health::Down => PrimitiveStyle::with_fill(ink(Shade::Bad)),
                Health::Starting => PrimitiveStyle::with_fill(ink(Shade::Middling)),
                Health::Off => PrimitiveStyle::with_stroke(ink(Shade::Grey), 1),
            };
            let left = at.top_left.x + round as i32 + 3;
            let face = Face::fit(at.size.width - round - 5, high * 2 / 3, label.as_str().len().max(5));
            let place = Point::new(left, middle(at, face));
            if *health == Health::Down {
                // Not by colour alone.
                fill(target, Rectangle::new(at.top_left, Size::new(at.size.width - 2, high)), Shade::Bad)?;
                circle.into_styled(PrimitiveStyle::with_fill(ink(Shade::White))).draw(target)?;
                let bar = Size::new((round / 5).max(2), round / 2);
                let corner = circle.center() - Point::new(bar.width as i32 / 2, bar.height as i32 / 2);
                fill(target, Rectangle::new(corner, bar), Shade::Bad)?;
                face.write(target, label.as_str(), place, Alignment::Left, ink(Shade::White))?;
                continue;
            }
            circle.into_styled(style).draw(target)?;
            let shade = if *health == Health::Off { Shade::Grey } else { Shade::Text };
            face.write(target, label.as_str(), place, Alignment::Left, ink(shade))?;
        }
        if let Some(degrees) = view.status.temperature {
            let at = places.temperature;
            let text = Words::of(format_args!("{degrees:.0}°C"));
            let face = Face::fit(at.size.width, at.size.height * 2 / 3, 5);
            let place = Point::new(at.top_left.x, middle(at, face));
            face.write(target, text.as_str(), place, Alignment::Left, ink(Shade::Text))?;
        }
        if view.status.drift {
            let at = places.drift;
            fill(target, at, Shade::Middling)?;
            let face = Face::fit(at.size.width - 4, at.size.height * 2 / 3, 5);
            let place = Point::new(at.center().x, middle(at, face));
            face.write(target, "DRIFT", place, Alignment::Center, ink(Shade::Black))?;
        }
        Ok(())
    }

    /// RFC 3339 of a date, on the clock of the people here.
    pub(crate) fn local(&self, date: Date) -> Words {
        let moved = date.as_millis().saturating_add_signed(i64::from(self.utc_offset) * 60_000);
        Words::of(format_args!("{}", Date::from_millis(moved)))
    }
}

/// Each part of the station: its label and how it does.
pub(crate) fn parts(status: &Status) -> [(Words, Health); 4] {
    let store = match status.pending {
        0..10 => Words::of(format_args!("STORE")),
        waiting => Words::of(format_args!("Q{}", Compact(waiting))),
    };
    // Verdicts that were dropped are gone: the store works, and not well.
    let stored = match status.outbox {
        Health::Up if status.dropped > 0 => Health::Starting,
        other => other,
    };
    let model = if status.model == [0; 8] { Health::Down } else { Health::Up };
    [
        (Words::of(format_args!("CAM")), status.camera),
        (Words::of(format_args!("MQTT")), status.broker),
        (store, stored),
        (Words::of(format_args!("MODEL")), model),
    ]
}

/// A count in four characters.
pub(crate) struct Compact(pub(crate) u64);

impl std::fmt::Display for Compact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            n @ 0..10_000 => write!(f, "{n}"),
            n @ 10_000..1_000_000 => write!(f, "{}k", n / 1000),
            n @ 1_000_000..1_000_000_000 => write!(f, "{}M", n / 1_000_000),
            _ => write!(f, "many"),
        }
    }
}

/// What the line is told, in a word.
pub(crate) fn word(said: Said) -> &'static str {
    match said {
        Said::Class(Class::A | Class::B) => "PASS",
        Said::Class(Class::C) => "REJECT",
        Said::Invalid(_) => "INVALID",
    }
}

/// The letter of a class.
pub(crate) fn letter_of(class: Class) -> Letter {
    match class {
        Class::A => Letter::A,
        Class::B => Letter::B,
        Class::C => Letter::C,
    }
}

/// A reason's name in words.
pub(crate) fn spaced(reason: &str) -> Words {
    let mut words = Words::new();
    for c in reason.chars() {
        let _ = std::fmt::Write::write_char(&mut words, if c == '-' { ' ' } else { c });
    }
    words
}

/// How long ago, in its largest unit.
pub(crate) fn ago(age: Duration) -> Words {
    match age.as_secs() {
        s @ 0..60 => Words::of(format_args!("{s} s ago")),
        s @ 60..3600 => Words::of(format_args!("{} min ago", s / 60)),
        s @ 3600..86_400 => Words::of(format_args!("{} h ago", s / 3600)),
        s => Words::of(format_args!("{} d ago", s / 86_400)),
    }
}

/// A share as per cent; 100 % only if it is all.
pub(crate) fn percent(share: f64) -> Words {
    let tenths = if share < 1.0 { (share * 1000.0).round().min(999.0) } else { 1000.0 };
    Words::of(format_args!("{:.1}%", tenths / 10.0))
}

/// Bytes of an ASCII text.
pub(crate) fn part(text: &Words, bytes: std::ops::Range<usize>) -> &str {
    text.as_str().get(bytes).unwrap_or_default()
}

pub(crate) fn ink<C: Ink>(shade: Shade) -> C {
    C::of(shade)
}

pub(crate) fn fill<D: DrawTarget<Color: Ink>>(target: &mut D, at: Rectangle, shade: Shade) -> Result<(), D::Error> {
    target.fill_solid(&at, ink(shade))
}

fn right(at: Rectangle) -> i32 {
    at.top_left.x + at.size.width as i32
}

fn bottom(at: Rectangle) -> i32 {
    at.top_left.y + at.size.height as i32
}

/// Where a line of writing begins whose middle is the middle of a place.
fn middle(at: Rectangle, face: Face) -> i32 {
    at.top_left.y + (at.size.height as i32 - face.height() as i32) / 2
}
