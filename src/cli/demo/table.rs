//! Truth against verdict.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::planted::{Known, Planted};
use crate::verdict::{Class, Outcome, Verdict};

/// What a verdict means beside the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// As it should be, or at least no harm.
    Fine,
    /// A defective cell or a broken frame went through.
    Escape,
    /// A good cell was taken out.
    Overkill,
}

/// Judges the verdict.
#[must_use]
pub fn mark(known: &Known, outcome: &Outcome) -> Mark {
    let passed = matches!(outcome, Outcome::Pass(_));
    match known.group.as_str() {
        "C" | "1" | "broken" if passed => Mark::Escape,
        "A" | "0" if !passed => Mark::Overkill,
        _ => Mark::Fine,
    }
}

/// Counts by truth and verdict, and what went wrong.
#[derive(Debug, Default)]
pub struct Table {
    rows: BTreeMap<String, [usize; 4]>,
    wrong: Vec<(Mark, String)>,
}

impl Table {
    /// Counts one cell.
    pub fn add(&mut self, cell: &Planted, verdict: &Verdict) {
        let column = match &verdict.outcome {
            Outcome::Pass(Class::A) => 0,
            Outcome::Pass(_) => 1,
            Outcome::Reject => 2,
            Outcome::Invalid(_) => 3,
        };
        self.rows.entry(cell.known.group.clone()).or_default()[column] += 1;
        let mark = mark(&cell.known, &verdict.outcome);
        if mark != Mark::Fine {
            let score = verdict.score.map_or_else(String::new, |score| format!(", score {score:.3}"));
            self.wrong.push((mark, format!("{} ({}{score})", cell.id, cell.known.text)));
        }
    }

    /// The table, and below it escapes and overkill by name.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = format!("{:<10}{:>9}{:>9}{:>9}{:>9}\n", "truth", "PASS A", "PASS B", "REJECT", "INVALID");
        for (group, counts) in &self.rows {
            let _ = write!(out, "{group:<10}");
            counts.iter().for_each(|n| _ = write!(out, "{n:>9}"));
            out.push('\n');
        }
        let of = |groups: &[&str]| -> usize {
            groups.iter().filter_map(|group| self.rows.get(*group)).flat_map(|counts| counts.iter()).sum()
        };
        out.push('\n');
        for (mark, what, total) in [
            (Mark::Escape, "escapes (defective or broken, yet passed)", of(&["C", "1", "broken"])),
            (Mark::Overkill, "overkill (good, yet taken out)", of(&["A", "0"])),
        ] {
            let cells: Vec<&str> =
                self.wrong.iter().filter(|(m, _)| *m == mark).map(|(_, cell)| cell.as_str()).collect();
            let _ = writeln!(out, "{what}: {} of {total}", cells.len());
            cells.iter().for_each(|cell| _ = writeln!(out, "  {cell}"));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Invalid;

    #[test]
    fn what_went_wrong_is_named() {
        let mut table = Table::default();
        let mut add = |group: &str, outcome: Outcome| {
            let known = Known { group: group.into(), text: format!("{group} x") };
            let cell = Planted { id: format!("{group}.png"), path: "".into(), known };
            table.add(&cell, &Verdict { outcome, ..Verdict::invalid(Invalid::NotFinite) });
        };
        add("A", Class::A.into());
        add("A", Outcome::Reject);
        add("B", Outcome::Reject);
        add("C", Class::B.into());
        add("broken", Outcome::Invalid(Invalid::NotFinite));
        let text = table.text();
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[1], ["A", "1", "0", "1", "0"]);
        assert_eq!(rows[3], ["C", "0", "1", "0", "0"]);
        assert!(text.contains("passed): 1 of 2\n  C.png (C x)\n") && text.contains("out): 1 of 2\n  A.png"), "{text}");
    }
}
