//! What the paper shows of judged cells, for `eval --report`: examples (Figure 2), the course of training (Figure 6),
//! the confusion matrix in pictures (Figure 7), and a table of variants.
//!
//! The types are plain and the caller fills them; what is empty draws nothing.

use std::fmt::Write as _;

use super::{Picture, Pictures, count, course, escape, percent, tile};
use crate::eval::result::Figures;

/// A cell shown as an example of its level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The level that it stands for, as a heading: `class A`, `67 %`. Examples of one level form one strip; strips
    /// stand in the order in which their levels first come.
    pub level: String,
    /// Label and type, for the caption.
    pub label: String,
    /// The cell.
    pub id: String,
    /// Picture and overlay.
    pub pictures: Pictures,
}

/// The course of one training. Values that are not finite are left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CourseCurve {
    /// The chart's headline: `fold 1`.
    pub name: String,
    /// Step and accuracy on that step's batch, from 0 to 1, in any order.
    pub batch: Vec<(u64, f64)>,
    /// Step, and accuracy and F1 on the validation cells, from 0 to 1, in any order.
    pub validation: Vec<(u64, f64, f64)>,
    /// The step whose network was kept.
    pub kept: Option<u64>,
}

/// A confusion matrix in pictures.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// The question, in words.
    pub question: String,
    /// The four quadrants, in any order.
    pub quadrants: [Quadrant; 4],
}

/// The cells of one class that were judged in one way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quadrant {
    /// What they are.
    pub defective: bool,
    /// How they were judged.
    pub rejected: bool,
    /// How many they are.
    pub cells: usize,
    /// How many cells the class has.
    pub of: usize,
    /// Those that are shown, in this order.
    pub tiles: Vec<Tile>,
}

/// A cell in a quadrant.
#[derive(Clone, Debug, PartialEq)]
pub struct Tile {
    /// The cell.
    pub id: String,
    /// Label and type.
    pub label: String,
    /// Of being defective, from 0 to 1. The page shows the probability of the right class.
    pub probability: f32,
    /// The cell with its heatmap.
    pub overlay: Picture,
}

/// One line of the table of variants.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VariantRow {
    /// The variant.
    pub name: String,
    /// A question and the figures on it, mean over the folds, for each question that was asked. Accuracy, F1 and AUROC
    /// are shown.
    pub figures: Vec<(String, Figures)>,
}

/// A strip for each level.
pub(super) fn examples(examples: &[Example]) -> String {
    if examples.is_empty() {
        return String::new();
    }
    let mut levels: Vec<&str> = Vec::new();
    for example in examples {
        if !levels.contains(&example.level.as_str()) {
            levels.push(&example.level);
        }
    }
    let mut out = String::from(
        "<section><h2>Examples</h2>\n<p class=note>The cell as it is judged, and beside it the same with its heatmap: \
         yellow to red is far from good cells.</p>\n",
    );
    for level in levels {
        let _ = writeln!(out, "<div class=strip><h3>{}</h3>\n<div class=\"tiles four\">", escape(level));
        for Example { label, id, pictures, .. } in examples.iter().filter(|example| example.level == level) {
            out.push_str(&tile(pictures, id, &named(id, label)));
        }
        out.push_str("</div></div>\n");
    }
    out.push_str("</section>\n");
    out
}

fn named(id: &str, label: &str) -> String {
    format!("<span class=name>{}</span><span class=facts>{}</span>", escape(id), escape(label))
}

/// A chart for each training.
pub(super) fn courses(courses: &[CourseCurve]) -> String {
    let charts = course::charts(courses);
    if charts.is_empty() {
        return charts;
    }
    let kept = courses.iter().any(|course| course.kept.is_some());
    format!(
        "<section><h2>Course of training</h2>\n<p class=note>On validation cells, which are neither trained on nor tested{}.</p>\n\
         {charts}</section>\n",
        if kept { "; the network of the marked step was kept" } else { "" }
    )
}

impl Panel {
    /// The section; nothing if no cell was judged.
    pub(super) fn html(&self) -> String {
        if self.quadrants.iter().all(|quadrant| quadrant.cells == 0) {
            return String::new();
        }
        let mut out = format!(
            "<section><h2>Judged right and wrong</h2>\n<p class=note>{}. Above each field: cells, and their share of the \
             cells of their class. Below each picture: the probability that was given to the right class.</p>\n\
             <div class=panel><div></div><h3>Judged right</h3><h3>Mistakes</h3>\n",
            escape(&self.question)
        );
        for defective in [false, true] {
            let name = if defective { "defective" } else { "good" };
            let _ = writeln!(out, "<div class=side><span>{name}</span></div>");
            for right in [true, false] {
                let found = |q: &&Quadrant| q.defective == defective && (q.rejected == defective) == right;
                let none = Quadrant { defective, rejected: defective == right, ..Quadrant::default() };
                out.push_str(&self.quadrants.iter().find(found).unwrap_or(&none).html());
            }
        }
        out.push_str("</div></section>\n");
        out
    }
}

impl Quadrant {
    fn html(&self) -> String {
        let ground = if self.defective == self.rejected { "right" } else { "wrong" };
        let class = if self.defective { "defective" } else { "good" };
        let way = if self.rejected { "rejected" } else { "passed" };
        let share = if self.of == 0 { "–".into() } else { percent(self.cells as f64 / self.of as f64) };
        let shown = match self.cells.saturating_sub(self.tiles.len()) {
            0 => String::new(),
            _ if self.tiles.is_empty() => String::new(),
            _ => format!(" · {} shown", count(self.tiles.len())),
        };
        let mut out = format!(
            "<div class=\"quadrant {ground}\"><p><b>{} ({share})</b> <span>{class}, {way}{shown}</span></p>\n<div class=few>\n",
            count(self.cells)
        );
        self.tiles.iter().for_each(|tile| out.push_str(&tile.html(self.defective)));
        out.push_str("</div></div>\n");
        out
    }
}

impl Tile {
    fn html(&self, defective: bool) -> String {
        let id = escape(&self.id);
        format!(
            "<figure><img alt=\"{id}, heatmap\" src=\"{}\"><figcaption><b>{}</b><span>{id}</span><span>{}</span></figcaption></figure>\n",
            self.overlay.address(),
            probability(if defective { self.probability } else { 1.0 - self.probability }),
            escape(&self.label)
        )
    }
}

/// With two decimals, as HTML; certainty is not claimed by rounding.
fn probability(p: f32) -> String {
    match p {
        p if !(0.0..=1.0).contains(&p) => "–".into(),
        p if p > 0.99 => "&gt; 0.99".into(),
        p if p < 0.01 => "&lt; 0.01".into(),
        p => format!("{p:.2}"),
    }
}

/// Accuracy, F1 and AUROC of each variant on each question; the best of each column is bold.
pub(super) fn variants(rows: &[VariantRow]) -> String {
    let mut questions: Vec<&str> = Vec::new();
    for (question, _) in rows.iter().flat_map(|row| &row.figures) {
        if !questions.contains(&question.as_str()) {
            questions.push(question);
        }
    }
    if questions.is_empty() {
        return String::new();
    }
    let values = |row: &VariantRow| -> Vec<Option<f64>> {
        let of = |question: &&str| row.figures.iter().find(|(name, _)| name == question).map(|(_, figures)| *figures);
        let three = |figures: Figures| [figures.accuracy, figures.f1, figures.auroc];
        let finite = |value: Option<f64>| value.filter(|value| value.is_finite());
        questions.iter().flat_map(|question| of(question).map_or([None; 3], three).map(finite)).collect()
    };
    let all: Vec<Vec<Option<f64>>> = rows.iter().map(values).collect();
    let best = |column: usize| all.iter().filter_map(|row| row[column]).reduce(f64::max);
    let mut out = String::from(
        "<section><h2>Variants</h2>\n<p class=note>Mean over the folds; the best of each column is bold.</p>\n\
         <div class=wide><table class=variants><thead><tr><th></th>",
    );
    questions.iter().for_each(|question| out.push_str(&format!("<th colspan=3>{}</th>", escape(question))));
    out.push_str("</tr><tr><th>Variant</th>");
    out.push_str(&"<th>Accuracy</th><th>F1</th><th>AUROC</th>".repeat(questions.len()));
    out.push_str("</tr></thead><tbody>\n");
    for (row, values) in rows.iter().zip(&all) {
        let _ = write!(out, "<tr><td>{}</td>", escape(&row.name));
        for (column, value) in values.iter().enumerate() {
            let text = match value {
                None => "–".into(),
                Some(value) if column % 3 == 2 => format!("{value:.3}"),
                Some(value) => percent(*value),
            };
            let is_best = rows.len() > 1 && value.is_some() && *value == best(column);
            out.push_str(&if is_best { format!("<td><b>{text}</b></td>") } else { format!("<td>{text}</td>") });
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div></section>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::super::EvalReport;
    use super::*;

    fn picture() -> Picture {
        Picture(b"\x89PNG".to_vec())
    }

    fn pictures() -> Pictures {
        Pictures { image: picture(), overlay: picture() }
    }

    fn example(level: &str, id: &str) -> Example {
        Example { level: level.into(), label: "<i>mono".into(), id: id.into(), pictures: pictures() }
    }

    fn course(name: &str) -> CourseCurve {
        CourseCurve {
            name: name.into(),
            batch: (0..400).map(|step| (step, if step % 2 == 0 { 1.0 } else { 0.5 })).collect(),
            validation: vec![(0, 0.5, 0.25), (200, 0.875, 0.75), (400, 0.8, 0.7)],
            kept: Some(200),
        }
    }

    fn panel() -> Panel {
        let tile = |id: &str, probability| Tile {
            id: id.into(),
            label: "67 % <poly>".into(),
            probability,
            overlay: picture(),
        };
        let quadrant = |defective, rejected, cells, of, tiles| Quadrant { defective, rejected, cells, of, tiles };
        Panel {
            question: "Is it <defective>?".into(),
            quadrants: [
                quadrant(true, true, 680, 715, vec![tile("tp\"><script>", 0.97)]),
                quadrant(true, false, 35, 715, vec![tile("fn", 0.004)]),
                quadrant(false, false, 1214, 1314, vec![tile("tn", 0.2), tile("tn2", f32::NAN)]),
                quadrant(false, true, 100, 1314, vec![tile("fp", 1.0)]),
            ],
        }
    }

    fn variant(name: &str, accuracy: f64, auroc: Option<f64>) -> VariantRow {
        let figures = Figures { accuracy: Some(accuracy), f1: Some(0.5), auroc, ..Figures::default() };
        VariantRow { name: name.into(), figures: vec![("Likely & so".into(), figures)] }
    }

    #[test]
    fn what_is_empty_draws_nothing() {
        assert_eq!((examples(&[]), courses(&[]), variants(&[])), Default::default());
        let nothing = CourseCurve { batch: vec![(3, f64::NAN)], kept: Some(3), ..CourseCurve::default() };
        assert_eq!(courses(&[nothing]), "");
        assert_eq!(variants(&[VariantRow::default()]), "");
        let quadrants = std::array::from_fn(|_| Quadrant::default());
        assert_eq!(Panel { question: "?".into(), quadrants }.html(), "");
        let page = EvalReport::default().html();
        for part in ["Examples", "Course of training", "Judged right", "Variants"] {
            assert!(!page.contains(part), "{part}");
        }
    }

    #[test]
    fn levels_are_strips_in_the_order_in_which_they_come() {
        let html = examples(&[example("0 %", "a"), example("<100>", "<b>"), example("0 %", "c")]);
        assert_eq!((html.matches("class=strip").count(), html.matches("<figure class=tile>").count()), (2, 3));
        let places = ["<h3>0 %</h3>", ">a</span>", ">c</span>", "<h3>&lt;100&gt;</h3>", "&lt;b&gt;"];
        assert!(places.map(|part| html.find(part).unwrap()).is_sorted(), "{html}");
        assert!(html.contains("&lt;i&gt;mono") && !html.contains("<b>") && !html.contains("<i>"));
    }

    #[test]
    fn the_panel_has_the_right_cells_in_the_right_places() {
        let html = panel().html();
        // Row by row, right before wrong, whatever the order they were given in.
        let places = ["1,214 (92.4 %)", "100 (7.6 %)", "680 (95.1 %)", "35 (4.9 %)"];
        assert!(places.map(|part| html.find(part).unwrap()).is_sorted(), "{html}");
        let grounds: Vec<&str> = html.split("class=\"quadrant ").skip(1).map(|rest| &rest[..5]).collect();
        assert_eq!(grounds, ["right", "wrong", "right", "wrong"]);
        for (id, shown) in [("tn", "0.80"), ("tn2", "–"), ("fp", "&lt; 0.01"), ("fn", "&lt; 0.01"), ("tp", "0.97")] {
            let tile = &html[html.find(&format!("<figure><img alt=\"{id}")).unwrap()..];
            let from = tile.find("<b>").unwrap() + 3;
            assert_eq!(&tile[from..tile[from..].find("</b>").unwrap() + from], shown, "{id}");
        }
        assert!(html.contains("Is it &lt;defective&gt;?") && html.contains("67 % &lt;poly&gt;"));
        assert!(html.contains("good, passed · 2 shown") && !html.contains("<script"));
    }

    #[test]
    fn a_class_without_cells_has_no_share() {
        let mut panel = panel();
        panel.quadrants[2] = Quadrant { cells: 0, of: 0, ..panel.quadrants[2].clone() };
        panel.quadrants[3] = Quadrant { cells: 0, of: 0, tiles: Vec::new(), ..panel.quadrants[3].clone() };
        let html = panel.html();
        assert!(html.contains("0 (–)") && !html.contains("NaN"), "{html}");
        assert_eq!([0.994, 0.99, 0.5, 0.009, -1.0].map(probability), ["&gt; 0.99", "0.99", "0.50", "&lt; 0.01", "–"]);
    }

    #[test]
    fn the_best_variant_of_each_column_is_bold() {
        let rows = [variant("<heatmap>", 0.9, Some(0.9512)), variant("+ image", 0.946, None)];
        let html = variants(&rows);
        assert!(html.contains("<th colspan=3>Likely &amp; so</th>") && html.contains("&lt;heatmap&gt;"));
        assert!(html.contains("<td>90.0 %</td><td><b>50.0 %</b></td><td><b>0.951</b></td>"), "{html}");
        assert!(html.contains("<td><b>94.6 %</b></td><td><b>50.0 %</b></td><td>–</td>"), "{html}");
        assert!(!variants(&rows[..1]).contains("<b>"), "one alone is not the best");
    }

    #[test]
    fn the_page_takes_all_of_it_in_order_and_nothing_from_elsewhere() {
        let report = EvalReport {
            examples: vec![example("0 %", "a")],
            courses: vec![course("fold <1>"), course("fold 2")],
            panel: Some(panel()),
            variants: vec![variant("v", 0.9, None)],
            mistakes_left_out: (1, 0),
            ..EvalReport::default()
        };
        let html = report.html();
        let heads =
            ["Variants", "Examples", "Course of training", "Judged right and wrong", "False passes", "Settings"];
        let places = heads.map(|head| html.find(&format!("<h2>{head}</h2>")).unwrap());
        assert!(places.is_sorted(), "{places:?}");
        for outside in ["http:", "https:", "src=\"/", "url(", "@import", "href=", "<script", "NaN"] {
            assert!(!html.contains(outside), "{outside}");
        }
        assert_eq!(html.matches("<svg").count(), 2);
    }
}
