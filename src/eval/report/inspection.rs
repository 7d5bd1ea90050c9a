//! The page of `inspect --report`: what was judged, how, and the worst cells first.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::svg::{Series, Threshold, svg_histogram};
use super::{Pictures, card, cells, count, escape, page, percent, settings, table, tile};
use crate::eval::result::Setting;

/// What was decided about a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// PASS, class A.
    PassA,
    /// PASS, class B.
    PassB,
    /// REJECT, class C.
    RejectC,
    /// Not judged, for this reason; the line treats it as a reject.
    Invalid(String),
}

impl Outcome {
    fn badge(&self) -> String {
        let (class, text) = match self {
            Self::PassA => ("good", "PASS A"),
            Self::PassB => ("warn", "PASS B"),
            Self::RejectC => ("bad", "REJECT C"),
            Self::Invalid(_) => ("none", "INVALID"),
        };
        format!("<span class=\"badge {class}\">{text}</span>")
    }
}

/// A defect region: a box in the judged image, in pixels, and its highest score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Region {
    /// Left edge.
    pub x: u32,
    /// Upper edge.
    pub y: u32,
    /// Width.
    pub width: u32,
    /// Height.
    pub height: u32,
    /// The highest score in it.
    pub peak: f32,
}

/// One cell of the page.
#[derive(Clone, Debug, PartialEq)]
pub struct InspectedCell {
    /// File or cell name.
    pub id: String,
    /// What was decided.
    pub outcome: Outcome,
    /// The image's score; none if INVALID.
    pub score: Option<f32>,
    /// Its defect regions.
    pub regions: Vec<Region>,
    /// From pixels to verdict, milliseconds.
    pub latency_ms: f32,
    /// What is known about it, if anything.
    pub label: Option<String>,
    /// Picture and overlay; see [`InspectReport::with_pictures`].
    pub pictures: Option<Pictures>,
}

/// All that the page shows.
#[derive(Clone, Debug, PartialEq)]
pub struct InspectReport {
    /// The headline.
    pub title: String,
    /// When, RFC 3339.
    pub created: String,
    /// Program and version.
    pub tool: String,
    /// The model's identity and provenance, in the order in which to show them.
    pub model: Vec<Setting>,
    /// The scores at which classes change.
    pub thresholds: Vec<Threshold>,
    /// The cells, in any order.
    pub cells: Vec<InspectedCell>,
    /// At most so many cells are shown with pictures.
    pub max_pictures: usize,
}

/// Rows of the full table beyond this are left out, and counted.
const MAX_ROWS: usize = 2000;

impl InspectReport {
    /// Indices of the cells, the worst first: INVALID last, since there is no score to order it by.
    #[must_use]
    pub fn worst_first(cells: &[InspectedCell]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..cells.len()).collect();
        let rank = |cell: &InspectedCell| match cell.outcome {
            Outcome::Invalid(_) => f32::NEG_INFINITY,
            _ => cell.score.map_or(f32::INFINITY, |score| if score.is_nan() { f32::INFINITY } else { score }),
        };
        // Scores of grave defects all come close to 1; the peak still tells them apart.
        let peak = |cell: &InspectedCell| cell.regions.iter().map(|region| region.peak).fold(0.0, f32::max);
        let key = |index: usize| (rank(&cells[index]), peak(&cells[index]));
        order.sort_by(|&a, &b| {
            let ((rank_a, peak_a), (rank_b, peak_b)) = (key(a), key(b));
            rank_b.total_cmp(&rank_a).then(peak_b.total_cmp(&peak_a)).then(cells[a].id.cmp(&cells[b].id))
        });
        order
    }

    /// Indices of the cells whose pictures the page will show: only these need be drawn.
    #[must_use]
    pub fn with_pictures(cells: &[InspectedCell], max_pictures: usize) -> Vec<usize> {
        let judged = |&index: &usize| !matches!(cells[index].outcome, Outcome::Invalid(_));
        Self::worst_first(cells).into_iter().filter(judged).take(max_pictures).collect()
    }

    /// The page.
    #[must_use]
    pub fn html(&self) -> String {
        let subtitle = format!("{}, {}, {}", cells(self.cells.len()), self.created, self.tool);
        let mut body = self.cards();
        let _ = write!(body, "<section><h2>Scores</h2>\n{}</section>\n", self.histogram());
        body.push_str(&self.gallery());
        body.push_str(&self.invalid());
        let _ = write!(body, "<section><h2>Model</h2>\n{}</section>\n", settings(&self.model));
        body.push_str(&self.all());
        page(&self.title, &subtitle, &body)
    }

    fn of(&self, outcome: &Outcome) -> usize {
        self.cells.iter().filter(|cell| cell.outcome == *outcome).count()
    }

    fn cards(&self) -> String {
        let total = self.cells.len().max(1) as f64;
        let share = |n: usize| percent(n as f64 / total);
        let invalid = self.reasons().values().sum::<usize>();
        let mut times: Vec<f32> = self.cells.iter().map(|cell| cell.latency_ms).filter(|t| t.is_finite()).collect();
        times.sort_unstable_by(f32::total_cmp);
        let mut out = String::from("<div class=cards>\n");
        for (class, outcome, name) in [
            ("good", Outcome::PassA, "PASS A"),
            ("warn", Outcome::PassB, "PASS B"),
            ("bad", Outcome::RejectC, "REJECT C"),
        ] {
            let n = self.of(&outcome);
            out.push_str(&card(class, &count(n), name, &share(n)));
        }
        out.push_str(&card("none", &count(invalid), "INVALID", &share(invalid)));
        if let (Some(median), Some(longest)) = (times.get(times.len() / 2), times.last()) {
            out.push_str(&card("s1", &format!("{median:.1} ms"), "median a cell", &format!("longest {longest:.1} ms")));
        }
        out.push_str("</div>\n");
        out
    }

    fn reasons(&self) -> BTreeMap<&str, usize> {
        let mut reasons = BTreeMap::new();
        for cell in &self.cells {
            if let Outcome::Invalid(reason) = &cell.outcome {
                *reasons.entry(reason.as_str()).or_default() += 1;
            }
        }
        reasons
    }

    fn histogram(&self) -> String {
        let scores = |outcome: Outcome| -> Vec<f32> {
            self.cells.iter().filter(|cell| cell.outcome == outcome).filter_map(|cell| cell.score).collect()
        };
        let (a, b, c) = (scores(Outcome::PassA), scores(Outcome::PassB), scores(Outcome::RejectC));
        let series = [("PASS A", "good", &a), ("PASS B", "warn", &b), ("REJECT C", "bad", &c)];
        let series = series.map(|(name, colour, values)| Series { name, colour, values });
        svg_histogram("Cells by score", "score", &series, &self.thresholds)
    }

    fn gallery(&self) -> String {
        let shown = Self::with_pictures(&self.cells, self.max_pictures);
        let judged = self.cells.iter().filter(|cell| !matches!(cell.outcome, Outcome::Invalid(_))).count();
        let drawn: Vec<&InspectedCell> = shown.iter().map(|&index| &self.cells[index]).collect();
        let with = drawn.iter().filter(|cell| cell.pictures.is_some()).count();
        let mut out = String::from("<section><h2>Worst cells first</h2>\n");
        if with < judged {
            let _ = writeln!(
                out,
                "<p class=note>The {} with the highest scores; the pictures of {} more are left out, their figures are in the table at the end.</p>",
                cells(with),
                count(judged - with)
            );
        }
        out.push_str("<div class=tiles>\n");
        for cell in drawn {
            if let Some(pictures) = &cell.pictures {
                out.push_str(&tile(pictures, &cell.id, &caption(cell)));
            }
        }
        out.push_str("</div></section>\n");
        out
    }

    fn invalid(&self) -> String {
        let reasons = self.reasons();
        if reasons.is_empty() {
            return String::new();
        }
        let mut out = String::from("<section><h2>INVALID cells</h2>\n<p class=note>");
        let list: Vec<String> =
            reasons.iter().map(|(reason, n)| format!("{}: {}", escape(reason), count(*n))).collect();
        let _ = writeln!(out, "Not judged, to be treated as rejects. {}.</p>", list.join("; "));
        let invalid = self.cells.iter().filter_map(|cell| match &cell.outcome {
            Outcome::Invalid(reason) => Some(vec![escape(&cell.id), escape(reason)]),
            _ => None,
        });
        let rows: Vec<Vec<String>> = invalid.take(MAX_ROWS).collect();
        out.push_str(&table(&["Cell", "Reason"], &rows));
        out.push_str(&left_out(reasons.values().sum::<usize>() - rows.len()));
        out.push_str("</section>\n");
        out
    }

    fn all(&self) -> String {
        let labelled = self.cells.iter().any(|cell| cell.label.is_some());
        let row = |index: usize| {
            let cell = &self.cells[index];
            let score = cell.score.map_or_else(|| "–".to_string(), |score| format!("{score:.4}"));
            let mut row = vec![escape(&cell.id), cell.outcome.badge(), score, regions(cell)];
            if labelled {
                row.push(escape(cell.label.as_deref().unwrap_or("–")));
            }
            row.push(format!("{:.1}", cell.latency_ms));
            row
        };
        let order = Self::worst_first(&self.cells);
        let rows: Vec<Vec<String>> = order.into_iter().take(MAX_ROWS).map(row).collect();
        let mut head = vec!["Cell", "Verdict", "Score", "Regions (peak)", "ms"];
        if labelled {
            head.insert(4, "Label");
        }
        let rest = left_out(self.cells.len() - rows.len());
        format!("<section><h2>All cells</h2>\n{}{rest}</section>\n", table(&head, &rows))
    }
}

fn left_out(n: usize) -> String {
    if n == 0 { String::new() } else { format!("<p class=note>{} more left out.</p>\n", cells(n)) }
}

/// "3 (0.91)".
fn regions(cell: &InspectedCell) -> String {
    match cell.regions.iter().map(|region| region.peak).reduce(f32::max) {
        Some(peak) => format!("{} ({peak:.2})", cell.regions.len()),
        None => "0".to_string(),
    }
}

fn caption(cell: &InspectedCell) -> String {
    let score = cell.score.map_or_else(|| "–".to_string(), |score| format!("{score:.3}"));
    let n = cell.regions.len();
    let label = cell.label.as_deref().map(|label| format!(" · label {}", escape(label))).unwrap_or_default();
    let mut out = format!(
        "<span class=name>{}</span>{} <span class=facts>score {score} · {n} region{}{label} · {:.1} ms</span>",
        escape(&cell.id),
        cell.outcome.badge(),
        if n == 1 { "" } else { "s" },
        cell.latency_ms
    );
    if let Some(worst) = cell.regions.iter().max_by(|a, b| a.peak.total_cmp(&b.peak)) {
        let Region { x, y, width, height, peak } = *worst;
        let _ = write!(out, "<br><span class=facts>highest {peak:.2} in {width}×{height} px at ({x}, {y})</span>");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::Picture;
    use super::*;

    fn cell(id: &str, outcome: Outcome, score: Option<f32>) -> InspectedCell {
        let picture = || Picture(b"\x89PNG".to_vec());
        let pictures = Some(Pictures { image: picture(), overlay: picture() });
        InspectedCell { id: id.into(), outcome, score, regions: Vec::new(), latency_ms: 5.0, label: None, pictures }
    }

    fn report(max_pictures: usize) -> InspectReport {
        InspectReport {
            title: "Batch <7>".into(),
            created: "2026-01-01T00:00:00Z".into(),
            tool: "cellgate 0".into(),
            model: vec![Setting::new("backbone", "abc")],
            thresholds: vec![Threshold { name: "A|B".into(), value: 0.5 }],
            cells: vec![
                cell("a\"><script>.png", Outcome::PassA, Some(0.1)),
                cell("dark.png", Outcome::Invalid("dim".into()), None),
                cell("c.png", Outcome::RejectC, Some(0.9)),
                cell("b.png", Outcome::PassB, Some(0.6)),
                cell("nan.png", Outcome::RejectC, Some(f32::NAN)),
            ],
            max_pictures,
        }
    }

    #[test]
    fn the_worst_come_first_and_invalid_last() {
        let order = InspectReport::worst_first(&report(9).cells);
        assert_eq!(order, [4, 2, 3, 0, 1]);
        assert_eq!(InspectReport::with_pictures(&report(9).cells, 2), [4, 2]);
    }

    #[test]
    fn the_page_is_whole_escaped_and_alone() {
        let html = report(9).html();
        assert!(html.contains("Batch &lt;7&gt;") && !html.contains("<script"));
        assert_eq!(html.matches("<figure class=tile>").count(), 4);
        assert!(html.contains("dim: 1") && html.contains("REJECT C") && !html.contains("left out"));
        for outside in ["http:", "https:", "src=\"/", "url(", "@import", "href="] {
            assert!(!html.contains(outside), "{outside}");
        }
    }

    #[test]
    fn pictures_are_limited_and_the_rest_counted() {
        let html = report(1).html();
        assert_eq!(html.matches("<figure class=tile>").count(), 1);
        assert!(html.contains("The 1 cell with the highest scores; the pictures of 3 more are left out"));
        let empty = InspectReport { cells: Vec::new(), ..report(3) }.html();
        assert!(empty.contains("No scores to show") && empty.ends_with("</html>\n"));
    }
}
