//! The page of `eval --report`: figures, curves, decisions, mistakes, and what to keep in mind.

use std::fmt::Write as _;

use super::judged::{self, CourseCurve, Example, Panel, VariantRow};
use super::svg::{Curve, svg_curve, svg_roc};
use super::{Pictures, card, cells, count, escape, page, percent, settings, table, tile};
use crate::eval::metrics::{Confusion, Goal, Interval, Point};
use crate::eval::pixel::PixelResult;
use crate::eval::result::{BinarisationResult, EvalResult, FIGURE_NAMES, GroupResult, Setting};

/// Which way a decision was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MistakeKind {
    /// A defective cell that passed.
    FalsePass,
    /// A good cell that was rejected.
    FalseReject,
}

/// A wrong decision, with its pictures.
#[derive(Clone, Debug, PartialEq)]
pub struct Mistake {
    /// Which way.
    pub kind: MistakeKind,
    /// The cell.
    pub id: String,
    /// Label and type.
    pub label: String,
    /// Its score.
    pub score: f32,
    /// Its fold's threshold.
    pub threshold: f32,
    /// Picture and overlay.
    pub pictures: Pictures,
}

/// All that the page shows; what is empty is left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EvalReport {
    /// The figures.
    pub result: EvalResult,
    /// The question whose mistakes are shown, in words.
    pub mistakes_of: String,
    /// The worst mistakes, the worst first; the caller chooses how many.
    pub mistakes: Vec<Mistake>,
    /// Mistakes not shown: false passes and false rejects.
    pub mistakes_left_out: (usize, usize),
    /// Variants of the method, side by side.
    pub variants: Vec<VariantRow>,
    /// Cells of each level.
    pub examples: Vec<Example>,
    /// How each training went.
    pub courses: Vec<CourseCurve>,
    /// The confusion matrix in pictures.
    pub panel: Option<Panel>,
}

impl EvalReport {
    /// The page.
    #[must_use]
    pub fn html(&self) -> String {
        let result = &self.result;
        let title = format!("Evaluation on {}", result.data);
        let subtitle = format!(
            "{} images, {}-fold cross-validation, {}, {}",
            count(result.images),
            result.folds,
            result.created,
            result.tool
        );
        let mut body = self.cards();
        if !result.caveats.is_empty() {
            body.push_str("<section><h2>Before you read the figures</h2>\n");
            result.caveats.iter().for_each(|text| body.push_str(&format!("<p class=caveat>{}</p>\n", escape(text))));
            body.push_str("</section>\n");
        }
        result.binarisations.iter().for_each(|binarisation| body.push_str(&section(binarisation)));
        if let Some(pixel) = &result.pixel {
            body.push_str(&pixels(pixel));
        }
        body.push_str(&judged::variants(&self.variants));
        body.push_str(&judged::examples(&self.examples));
        body.push_str(&judged::courses(&self.courses));
        body.push_str(&self.panel.as_ref().map(Panel::html).unwrap_or_default());
        body.push_str(&self.gallery(MistakeKind::FalsePass));
        body.push_str(&self.gallery(MistakeKind::FalseReject));
        body.push_str(&self.method());
        page(&title, &subtitle, &body)
    }

    /// One figure a question: its AUROC.
    fn cards(&self) -> String {
        let mut out = String::from("<div class=cards>\n");
        for binarisation in &self.result.binarisations {
            let Some(all) = binarisation.groups.first() else { continue };
            let value = all.mean.auroc.map_or_else(|| "–".into(), |value| format!("{value:.3}"));
            let note = all.ci95.auroc.map_or_else(String::new, |ci| format!("95 % {}", range(4, ci)));
            let (name, _) = binarisation.title.split_once(':').unwrap_or((&binarisation.title, ""));
            out.push_str(&card("s1", &value, &format!("AUROC, {}", lower_first(name)), &note));
        }
        if let Some(value) = self.result.pixel.as_ref().and_then(|pixel| pixel.aupro) {
            out.push_str(&card("s1", &format!("{value:.3}"), "AUPRO", "per-region overlap"));
        }
        out.push_str("</div>\n");
        out
    }

    fn gallery(&self, kind: MistakeKind) -> String {
        let (name, what, rest) = match kind {
            MistakeKind::FalsePass => ("False passes", "defective cells that passed", self.mistakes_left_out.0),
            MistakeKind::FalseReject => ("False rejects", "good cells that were rejected", self.mistakes_left_out.1),
        };
        let shown: Vec<&Mistake> = self.mistakes.iter().filter(|mistake| mistake.kind == kind).collect();
        if shown.is_empty() && rest == 0 {
            return String::new();
        }
        let mut out =
            format!("<section><h2>{name}</h2>\n<p class=note>{}: the worst of the {what}", escape(&self.mistakes_of));
        if rest > 0 {
            let _ = write!(out, "; {} more left out", count(rest));
        }
        out.push_str(".</p>\n<div class=tiles>\n");
        for mistake in shown {
            let Mistake { id, label, score, threshold, pictures, .. } = mistake;
            let caption = format!(
                "<span class=name>{}</span><span class=facts>label {} · score {score:.3}, threshold {threshold:.3}</span>",
                escape(id),
                escape(label)
            );
            out.push_str(&tile(pictures, id, &caption));
        }
        out.push_str("</div></section>\n");
        out
    }

    fn method(&self) -> String {
        let result = &self.result;
        let goal = match result.threshold_goal {
            Goal::Accuracy => "accuracy",
            Goal::F1 => "F1",
        };
        let mut list = result.settings.clone();
        list.push(Setting::new("folds, stratified by label × type", result.folds));
        list.push(Setting::new("seed of the split", result.seed));
        list.push(Setting::new("threshold, on training folds", format!("best {goal}")));
        let invalid: usize = result.invalid.values().sum();
        if invalid > 0 {
            let reasons: Vec<String> = result.invalid.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
            list.push(Setting::new("INVALID, counted as rejected", format!("{invalid} ({})", reasons.join(", "))));
        }
        let row = |c: &crate::eval::dataset::Count| {
            let kind = if c.kind.is_empty() { "–".to_string() } else { escape(&c.kind) };
            vec![escape(&c.label), kind, count(c.images)]
        };
        let rows: Vec<Vec<String>> = result.counts.iter().map(row).collect();
        format!(
            "<section><h2>Settings</h2>\n{}<h3>Data</h3>\n{}</section>\n",
            settings(&list),
            table(&["Label", "Type", "Images"], &rows)
        )
    }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// Areas as 0.827, shares as 82.7 %.
fn figure(index: usize, value: Option<f64>) -> String {
    match value {
        None => "–".into(),
        Some(value) if index < 4 => percent(value),
        Some(value) => format!("{value:.3}"),
    }
}

fn range(index: usize, interval: Interval) -> String {
    if index < 4 {
        format!("{:.1} – {:.1}", 100.0 * interval.low, 100.0 * interval.high)
    } else {
        format!("{:.3} – {:.3}", interval.low, interval.high)
    }
}

/// One question: figures, curves, decisions, folds.
fn section(result: &BinarisationResult) -> String {
    let mut out = format!("<section><h2>{}</h2>\n", escape(&result.title));
    out.push_str("<p class=note>Mean over the folds; below it the worst fold, and the 95 % bootstrap interval of the mean.</p>\n");
    let head: Vec<&str> = ["Cells", "Number", "Defective"].into_iter().chain(FIGURE_NAMES).collect();
    let row = |group: &GroupResult| {
        let mut row = vec![escape(&group.group), count(group.cells), count(group.defective)];
        let figures = group.mean.values().into_iter().zip(group.worst.values()).zip(group.ci95.values());
        for (index, ((mean, worst), interval)) in figures.enumerate() {
            let interval = interval.map(|interval| format!("<small>{}</small>", range(index, interval)));
            let worst = worst.map(|worst| format!("<small>worst {}</small>", figure(index, Some(worst))));
            let mean = figure(index, mean);
            row.push(format!("<b>{mean}</b>{}{}", worst.unwrap_or_default(), interval.unwrap_or_default()));
        }
        row
    };
    out.push_str(&table(&head, &result.groups.iter().map(row).collect::<Vec<_>>()));
    out.push_str("<h3>Curves, all folds together (areas: mean over the folds)</h3>\n<div class=charts>\n");
    let name = |group: &GroupResult, area: &str, value| format!("{}: {area} {}", group.group, figure(4, value));
    let drawn = || result.groups.iter().filter(|group| !group.roc.is_empty()).take(3);
    let roc: Vec<Curve<'_>> = drawn().map(|g| Curve { name: name(g, "AUROC", g.mean.auroc), points: &g.roc }).collect();
    let pr: Vec<Curve<'_>> = drawn().map(|g| Curve { name: name(g, "AUPR", g.mean.aupr), points: &g.pr }).collect();
    let share = result.groups.first().map_or(0.0, |all| all.defective as f64 / all.cells.max(1) as f64);
    out.push_str(&svg_roc("ROC", &roc));
    let chance = ("chance (share of defective cells)", Point { x: 0.0, y: share }, Point { x: 1.0, y: share });
    out.push_str(&svg_curve("Precision and recall", "recall", "precision", 1.0, &pr, Some(chance)));
    out.push_str("</div>\n<h3>Decisions, all folds together</h3>\n<div class=matrices>\n");
    result.groups.iter().for_each(|group| out.push_str(&matrix(&group.group, &group.confusion)));
    out.push_str("</div>\n<h3>Fold by fold</h3>\n");
    if let Some(all) = result.groups.first() {
        let head: Vec<&str> = ["Fold", "Number", "Defective", "Threshold"].into_iter().chain(FIGURE_NAMES).collect();
        let rows = all.folds.iter().map(|fold| {
            let start = [
                (fold.fold + 1).to_string(),
                count(fold.cells),
                count(fold.defective),
                format!("{:.4}", fold.threshold),
            ];
            start.into_iter().chain(fold.figures.values().into_iter().enumerate().map(|(i, v)| figure(i, v))).collect()
        });
        out.push_str(&table(&head, &rows.collect::<Vec<Vec<String>>>()));
    }
    out.push_str("</section>\n");
    out
}

/// Truth down, decision across; each cell is as dark as its share of its row.
fn matrix(name: &str, c: &Confusion) -> String {
    let cell = |n: usize, row: usize, colour: &str| {
        let share = n as f64 / row.max(1) as f64;
        let alpha = 0.04 + 0.4 * share;
        format!("<td style=\"background:rgba({colour},{alpha:.2})\">{}<small>{}</small></td>", count(n), percent(share))
    };
    let (right, wrong) = ("42,120,214", "217,88,31");
    format!(
        "<table class=matrix><caption>{}</caption><thead><tr><th></th><th>passed</th><th>rejected</th></tr></thead>\
         <tbody><tr><th scope=row>good</th>{}{}</tr><tr><th scope=row>defective</th>{}{}</tr></tbody></table>\n",
        escape(name),
        cell(c.tn, c.tn + c.fp, right),
        cell(c.fp, c.tn + c.fp, wrong),
        cell(c.fn_, c.fn_ + c.tp, wrong),
        cell(c.tp, c.fn_ + c.tp, right),
    )
}

fn pixels(pixel: &PixelResult) -> String {
    let list = [
        Setting::new("pixel AUROC", figure(4, pixel.auroc)),
        Setting::new(format!("AUPRO, up to a false-positive rate of {}", pixel.pro_limit), figure(4, pixel.aupro)),
        Setting::new("images", count(pixel.images)),
        Setting::new("defect regions", count(pixel.regions)),
        Setting::new("defective pixels", percent(pixel.defective_pixels as f64 / pixel.pixels.max(1) as f64)),
    ];
    let name = format!("{} in {}", "overlap with the regions", cells(pixel.images));
    let curve = [Curve { name, points: &pixel.pro }];
    let chance = ("chance", Point { x: 0.0, y: 0.0 }, Point { x: pixel.pro_limit, y: pixel.pro_limit });
    let chart = svg_curve(
        "Per-region overlap",
        "false-positive rate of pixels",
        "mean overlap",
        pixel.pro_limit,
        &curve,
        Some(chance),
    );
    format!(
        "<section><h2>Where the defects are</h2>\n<div class=charts><div>{}</div>{}</div></section>\n",
        settings(&list),
        if pixel.pro.is_empty() { "" } else { &chart }
    )
}

#[cfg(test)]
mod tests {
    use super::super::Picture;
    use super::*;
    use crate::eval::folds::Binarisation;
    use crate::eval::result::{ELPV_CAVEATS, Method, Scored};

    fn report() -> EvalReport {
        let scored = |i: usize| {
            let target = i.is_multiple_of(3);
            Scored {
                fold: i % 5,
                score: ((i * 37) % 101) as f32 / 101.0 + f32::from(target as u8) * 0.4,
                target,
                kind: Some(["mono", "poly"][i % 2]),
            }
        };
        let scored: Vec<Scored<'_>> = (0..300).map(scored).collect();
        let method = Method { resamples: 50, ..Method::default() };
        let picture = || Picture(b"\x89PNG".to_vec());
        EvalReport {
            result: EvalResult {
                tool: "cellgate 0".into(),
                created: "2026-01-01T00:00:00Z".into(),
                data: "<elpv>".into(),
                images: 300,
                counts: Vec::new(),
                settings: vec![Setting::new("k", 100)],
                folds: 5,
                seed: 1,
                threshold_goal: Goal::F1,
                invalid: [("dim".to_string(), 2)].into(),
                binarisations: vec![BinarisationResult::new(Binarisation::Likely, &scored, &[0.7; 5], method)],
                pixel: None,
                variants: Vec::new(),
                repeats: Vec::new(),
                caveats: ELPV_CAVEATS.map(String::from).to_vec(),
            },
            mistakes_of: "Likely".into(),
            mistakes: vec![Mistake {
                kind: MistakeKind::FalsePass,
                id: "<b>.png".into(),
                label: "1, mono".into(),
                score: 0.2,
                threshold: 0.7,
                pictures: Pictures { image: picture(), overlay: picture() },
            }],
            mistakes_left_out: (3, 4),
            ..EvalReport::default()
        }
    }

    #[test]
    fn the_page_shows_every_part() {
        let html = report().html();
        for part in ["Evaluation on &lt;elpv&gt;", "44 modules", "AUROC", "worst", "ROC", "Precision and recall"] {
            assert!(html.contains(part), "{part}");
        }
        for part in ["Fold by fold", "False passes", "3 more left out", "4 more left out", "&lt;b&gt;.png", "2 (dim 2)"]
        {
            assert!(html.contains(part), "{part}");
        }
        assert_eq!(html.matches("<table class=matrix>").count(), 3);
        assert!(!html.contains("NaN") && !html.contains("http:") && !html.contains("https:"));
    }

    #[test]
    fn pixels_are_shown_if_there_are_masks() {
        let mut report = report();
        report.result.pixel = Some(PixelResult {
            images: 10,
            regions: 4,
            pixels: 1000,
            defective_pixels: 20,
            auroc: Some(0.971),
            aupro: Some(0.871),
            pro_limit: 0.3,
            pro: vec![Point { x: 0.0, y: 0.0 }, Point { x: 0.3, y: 0.9 }],
        });
        let html = report.html();
        assert!(html.contains("0.971") && html.contains("0.871") && html.contains("Per-region overlap"));
    }
}
