//! A verdict as a line for people.

use std::fmt::Write as _;
use std::io::IsTerminal;

use crate::hidden::shown;
use crate::verdict::payload::{area_mm2, frame_box};
use crate::verdict::{Class, Invalid, Outcome, Verdict};

/// Names longer than this push the rest of their line to the right.
const WIDEST: usize = 48;

/// Writes lines whose columns stand under one another.
#[derive(Clone, Copy, Debug)]
pub struct Lines {
    width: usize,
    grid: usize,
    cell_mm: Option<f64>,
    colours: bool,
}

/// Whether stdout is a screen that shows colours.
#[must_use]
pub fn colours() -> bool {
    std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

impl Lines {
    /// For cells of these names and a heatmap of this side.
    #[must_use]
    pub fn new<'a>(ids: impl Iterator<Item = &'a str>, grid: usize, cell_mm: Option<f64>, colours: bool) -> Self {
        let width = ids.map(|id| id.chars().count()).max().unwrap_or(0).min(WIDEST);
        Self { width, grid, cell_mm, colours }
    }

    /// Appends the line of one cell, without its end.
    pub fn write(&self, id: &str, verdict: &Verdict, out: &mut String) {
        let id: String = id.chars().map(shown).collect();
        let _ = write!(out, "{id:<width$}  ", width = self.width);
        let (colour, end) = if self.colours { (colour(&verdict.outcome), "\x1b[0m") } else { ("", "") };
        let class = verdict.outcome.class().map_or_else(|| "-".to_string(), |class| class.to_string());
        let _ = write!(out, "{colour}{:<7} {class}{end}  ", verdict.outcome.word());
        match verdict.score {
            Some(score) => _ = write!(out, "{score:.4}  "),
            None => out.push_str("     -  "),
        }
        let _ = write!(out, "{:>6.1} ms  ", f64::from(verdict.latency.total_us()) / 1e3);
        if let Outcome::Invalid(invalid) = &verdict.outcome {
            out.extend(reason(invalid).chars().map(shown));
            return;
        }
        let Some(strongest) = verdict.regions.as_slice().first() else {
            out.push_str("no region");
            return;
        };
        let total = verdict.regions.total;
        let [left, top, right, bottom] = frame_box(verdict, 0, self.grid);
        let _ = write!(
            out,
            "{total} region{}, strongest {:.1} at ({left}, {top}) {}×{} px",
            if total == 1 { "" } else { "s" },
            strongest.peak,
            right - left,
            bottom - top
        );
        if let Some(side) = self.cell_mm {
            let _ = write!(out, ", {:.0} mm²", area_mm2(strongest.area, self.grid, side));
        }
    }
}

/// The reason's stable name, then what was measured.
#[must_use]
pub fn reason(invalid: &Invalid) -> String {
    let text = invalid.to_string();
    // A gate's sentence begins with the name in other words.
    let rest = match invalid {
        Invalid::Frame(_) => text.split_once(": ").map_or(text.as_str(), |(_, rest)| rest),
        _ => &text,
    };
    format!("{}: {rest}", invalid.name())
}

fn colour(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Pass(Class::A) => "\x1b[32m",
        Outcome::Pass(_) => "\x1b[33m",
        Outcome::Reject => "\x1b[31m",
        Outcome::Invalid(_) => "\x1b[35m",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocess::Refusal;

    #[test]
    fn a_line_names_the_reason_and_hides_no_other() {
        let lines = Lines::new(["a.png", "longer.png"].into_iter(), 64, None, false);
        let dim = Verdict::invalid(Invalid::Frame(Refusal::Dim { mean: 0.01, limit: 0.03 }));
        let mut out = String::new();
        lines.write("a\x1b[2K", &dim, &mut out);
        assert!(
            out.starts_with("a\u{fffd}[2K       INVALID -       -     0.0 ms  dim: mean brightness 0.0100"),
            "{out}"
        );
        let mut out = String::new();
        let pass = Verdict { outcome: Class::B.into(), score: Some(0.6), ..dim };
        lines.write("longer.png", &pass, &mut out);
        assert_eq!(out, "longer.png  PASS    B  0.6000     0.0 ms  no region");
    }

    #[test]
    fn other_reasons_keep_their_sentence() {
        let text = reason(&Invalid::Unreadable("decoding x.png: it is truncated".into()));
        assert_eq!(text, "unreadable: decoding x.png: it is truncated");
    }
}
