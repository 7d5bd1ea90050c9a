//! Charts as inline SVG; colours come from the page's style, so that they follow light and dark.

use std::fmt::Write as _;

use super::escape;
use crate::eval::metrics::Point;

/// A curve of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve<'a> {
    /// For the legend.
    pub name: String,
    /// In the unit square, or up to `x_max`.
    pub points: &'a [Point],
}

/// The values of one kind of cell in a histogram.
#[derive(Clone, Debug, PartialEq)]
pub struct Series<'a> {
    /// For the legend.
    pub name: &'a str,
    /// `good`, `warn`, `bad`, `none`, `s1`, `s2` or `s3`: a colour of the page.
    pub colour: &'a str,
    /// The values; those that are not finite are left out.
    pub values: &'a [f32],
}

/// A vertical line in a histogram.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    /// What it separates.
    pub name: String,
    /// Where it stands.
    pub value: f32,
}

const COLOURS: [&str; 3] = ["s1", "s2", "s3"];

/// The frame of a chart: sizes in the SVG's units.
pub(super) struct Frame {
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) left: f64,
    pub(super) right: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
    /// Room below the axis's name, for the legend.
    pub(super) below: f64,
    pub(super) x: (f64, f64),
    pub(super) y: (f64, f64),
}

impl Frame {
    pub(super) fn px(&self, x: f64) -> f64 {
        self.left + (x - self.x.0) / (self.x.1 - self.x.0) * (self.width - self.left - self.right)
    }

    pub(super) fn py(&self, y: f64) -> f64 {
        self.height - self.bottom - (y - self.y.0) / (self.y.1 - self.y.0) * (self.height - self.top - self.bottom)
    }

    /// Opens the SVG and draws grid, ticks and the names of the axes.
    pub(super) fn open(&self, alt: &str, x_label: &str, y_label: &str) -> String {
        let (width, height) = (self.width, self.height);
        let alt = escape(alt);
        let mut out = format!(
            "<svg{} viewBox=\"0 0 {width} {}\" role=img aria-label=\"{alt}\"><title>{alt}</title>\n",
            if width > 600.0 { " class=broad" } else { "" },
            height + self.below
        );
        let (x0, x1, y0, y1) = (self.left, width - self.right, height - self.bottom, self.top);
        let (x_ticks, x_digits) = ticks(self.x.0, self.x.1, 7);
        let (y_ticks, y_digits) = ticks(self.y.0, self.y.1, 6);
        for tick in y_ticks {
            let y = self.py(tick);
            let _ = writeln!(
                out,
                "<line class=grid x1={x0} x2={x1} y1={y:.1} y2={y:.1} /><text x={:.1} y={:.1} text-anchor=end>{tick:.y_digits$}</text>",
                x0 - 7.0,
                y + 4.0
            );
        }
        for tick in x_ticks {
            let x = self.px(tick);
            let _ = writeln!(
                out,
                "<line class=axis x1={x:.1} x2={x:.1} y1={y0} y2={} /><text x={x:.1} y={} text-anchor=middle>{tick:.x_digits$}</text>",
                y0 + 4.0,
                y0 + 18.0
            );
        }
        let _ = writeln!(
            out,
            "<line class=axis x1={x0} x2={x1} y1={y0} y2={y0} /><text class=strong x={} y={} text-anchor=middle>{}</text>\
             <text class=strong transform=\"translate(14 {}) rotate(-90)\" text-anchor=middle>{}</text>",
            (x0 + x1) / 2.0,
            height - 6.0,
            escape(x_label),
            (y0 + y1) / 2.0,
            escape(y_label),
        );
        out
    }

    /// A line of the legend, below the chart: a stroke of this class and what it stands for.
    pub(super) fn legend(&self, line: usize, class: &str, name: &str) -> String {
        let y = self.height + 14.0 + 18.0 * line as f64;
        format!(
            "<path class=\"{class}\" d=\"M{} {}h24\" /><text class=strong x={} y={y}>{}</text>\n",
            self.left,
            y - 4.0,
            self.left + 32.0,
            escape(name)
        )
    }
}

/// At most about `most` round values from `low` to `high`, and the decimals they need.
fn ticks(low: f64, high: f64, most: usize) -> (Vec<f64>, usize) {
    let rough = (high - low) / most as f64;
    if !rough.is_finite() || rough <= 0.0 {
        return (Vec::new(), 0);
    }
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|&step| step >= rough * 0.999);
    let step = step.unwrap_or(10.0 * power);
    let digits = (-(step * 1.001).log10().floor()).clamp(0.0, 12.0) as usize;
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    // Adding 0 makes −0 plain.
    ((first..=last.min(first + 50)).map(|i| i as f64 * step + 0.0).collect(), digits)
}

pub(super) fn path(frame: &Frame, points: &[Point]) -> String {
    let mut out = String::new();
    for (index, point) in points.iter().filter(|p| p.x.is_finite() && p.y.is_finite()).enumerate() {
        let letter = if index == 0 { 'M' } else { 'L' };
        let _ = write!(out, "{letter}{:.1} {:.1}", frame.px(point.x), frame.py(point.y));
    }
    out
}

/// Curves over a square of shares: x from 0 to `x_max`, y from 0 to 1, with a dashed line of reference (chance).
/// Up to three curves are told apart by colour; the legend stands below the chart.
#[must_use]
pub fn svg_curve(
    title: &str,
    x_label: &str,
    y_label: &str,
    x_max: f64,
    curves: &[Curve<'_>],
    reference: Option<(&str, Point, Point)>,
) -> String {
    let lines = curves.len() + usize::from(reference.is_some());
    let frame = Frame {
        width: 440.0,
        height: 356.0,
        left: 52.0,
        right: 14.0,
        top: 10.0,
        bottom: 46.0,
        below: 18.0 * lines as f64 + 4.0,
        x: (0.0, x_max),
        y: (0.0, 1.0),
    };
    let mut out = frame.open(title, x_label, y_label);
    let mut legend = Vec::new();
    if let Some((name, from, to)) = reference {
        let _ = writeln!(out, "<path class=dash d=\"{}\" />", path(&frame, &[from, to]));
        legend.push(("dash".to_string(), name.to_string()));
    }
    // The first curve is drawn last, on top.
    for (index, curve) in curves.iter().enumerate().rev() {
        let colour = COLOURS.get(index).copied().unwrap_or("none");
        let _ = writeln!(out, "<path class=\"curve stroke-{colour}\" d=\"{}\" />", path(&frame, curve.points));
    }
    let named_curves = curves.iter().enumerate().map(|(index, curve)| {
        (format!("curve stroke-{}", COLOURS.get(index).copied().unwrap_or("none")), curve.name.clone())
    });
    let legend: Vec<_> = named_curves.chain(legend).collect();
    for (index, (class, name)) in legend.iter().enumerate() {
        out.push_str(&frame.legend(index, class, name));
    }
    out.push_str("</svg>\n");
    figure(title, &out)
}

/// A ROC curve with the line of chance.
#[must_use]
pub fn svg_roc(title: &str, curves: &[Curve<'_>]) -> String {
    let chance = ("chance", Point { x: 0.0, y: 0.0 }, Point { x: 1.0, y: 1.0 });
    svg_curve(title, "false-positive rate", "true-positive rate", 1.0, curves, Some(chance))
}

/// Stacked counts of values, with thresholds as vertical lines.
///
/// Values beyond the 99.8th percentile of all (and beyond every threshold) are gathered in the last bar.
#[must_use]
pub fn svg_histogram(title: &str, x_label: &str, series: &[Series<'_>], thresholds: &[Threshold]) -> String {
    const BARS: usize = 60;
    let mut all: Vec<f64> =
        series.iter().flat_map(|s| s.values).filter(|v| v.is_finite()).map(|&v| f64::from(v)).collect();
    if all.is_empty() {
        return figure(title, "<p class=note>No scores to show.</p>\n");
    }
    all.sort_unstable_by(f64::total_cmp);
    let marks = thresholds.iter().map(|t| f64::from(t.value)).filter(|v| v.is_finite());
    let (marks_low, marks_high) = marks.fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(v), b.max(v)));
    let cut = all[((all.len() - 1) as f64 * 0.998) as usize];
    let low = all[0].min(marks_low);
    let mut high = cut.max(marks_high);
    if high <= low {
        high = low + low.abs().max(1.0) * 0.01;
    }
    let gathered = all.iter().filter(|&&v| v > high).count();
    let width = (high - low) / BARS as f64;
    let counts: Vec<[usize; BARS]> = series
        .iter()
        .map(|s| {
            let mut counts = [0; BARS];
            for &value in s.values.iter().filter(|v| v.is_finite()) {
                counts[(((f64::from(value) - low) / width) as usize).min(BARS - 1)] += 1;
            }
            counts
        })
        .collect();
    let tallest = (0..BARS).map(|bar| counts.iter().map(|c| c[bar]).sum::<usize>()).max().unwrap_or(1).max(1);
    let frame = Frame {
        width: 900.0,
        height: 300.0,
        left: 56.0,
        right: 16.0,
        top: 44.0,
        bottom: 46.0,
        below: 0.0,
        x: (low, high),
        y: (0.0, tallest as f64 * 1.04),
    };
    let mut out = frame.open(title, x_label, "cells");
    let mut base = [0usize; BARS];
    for (s, counts) in series.iter().zip(&counts) {
        let mut d = String::new();
        for (bar, &n) in counts.iter().enumerate().filter(|&(_, &n)| n > 0) {
            let x = (frame.px(low + bar as f64 * width), frame.px(low + (bar + 1) as f64 * width) - 1.0);
            let y = (frame.py(base[bar] as f64), frame.py((base[bar] + n) as f64));
            let _ = write!(d, "M{:.1} {:.1}V{:.1}H{:.1}V{:.1}z", x.0, y.0, y.1, x.1, y.0);
            base[bar] += n;
        }
        let _ = writeln!(out, "<path class=\"fill-{}\" d=\"{d}\" />", escape(s.colour));
    }
    let mut at = frame.left;
    for s in series {
        let text = format!("{} ({})", s.name, super::count(s.values.iter().filter(|v| v.is_finite()).count()));
        let _ = writeln!(
            out,
            "<rect class=\"fill-{}\" x={at} y=5 width=11 height=11 rx=2 /><text class=strong x={} y=15>{}</text>",
            escape(s.colour),
            at + 17.0,
            escape(&text)
        );
        at += 40.0 + 7.0 * text.chars().count() as f64;
    }
    let mut sorted: Vec<&Threshold> = thresholds.iter().filter(|t| t.value.is_finite()).collect();
    sorted.sort_by(|a, b| a.value.total_cmp(&b.value));
    let mut taken = f64::MIN;
    let mut row = 0.0;
    for threshold in sorted {
        let x = frame.px(f64::from(threshold.value));
        let text = format!("{} {:.3}", threshold.name, threshold.value);
        let half = 7.0 * text.chars().count() as f64;
        let (anchor, shift, left) = if x + half > frame.width { ("end", -5.0, x - half) } else { ("start", 5.0, x) };
        // A label that would run into the one before goes a line lower.
        row = if left < taken { row + 15.0 } else { 0.0 };
        taken = taken.max(left + half);
        let _ = writeln!(
            out,
            "<line class=mark x1={x:.1} x2={x:.1} y1=28 y2={} /><text class=\"strong halo\" x={:.1} y={} text-anchor={anchor}>{}</text>",
            frame.height - frame.bottom,
            x + shift,
            38.0 + row,
            escape(&text)
        );
    }
    out.push_str("</svg>\n");
    if gathered > 0 {
        let _ = write!(out, "<p class=note>{} beyond {high:.3} in the last bar.</p>", super::cells(gathered));
    }
    figure(title, &out)
}

pub(super) fn figure(title: &str, body: &str) -> String {
    format!("<figure class=chart><figcaption>{}</figcaption>{body}</figure>\n", escape(title))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within() {
        assert_eq!(ticks(0.0, 1.0, 6), (vec![0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0], 1));
        assert_eq!(ticks(-3.0, 27.0, 7).0, [0.0, 5.0, 10.0, 15.0, 20.0, 25.0]);
        assert_eq!(ticks(0.0, 0.3, 7), (ticks(0.0, 0.3, 7).0, 2));
        assert!(ticks(1.0, 1.0, 5).0.is_empty());
        assert!(ticks(0.0, f64::INFINITY, 5).0.is_empty());
        assert!(ticks(1e6, 1.001e6, 5).0.iter().all(|t| (1e6..=1.001e6).contains(t)));
    }

    #[test]
    fn every_value_is_in_a_bar() {
        let good: Vec<f32> = (0..1000).map(|i| i as f32 / 2000.0).collect();
        let bad = [0.7, f32::NAN, 900.0];
        let series = [
            Series { name: "<good>", colour: "good", values: &good },
            Series { name: "bad", colour: "bad", values: &bad },
        ];
        let svg = svg_histogram("t", "score", &series, &[Threshold { name: "reject".into(), value: 0.6 }]);
        assert!(svg.contains("&lt;good&gt; (1,000)") && svg.contains("bad (2)"), "{svg}");
        assert!(svg.contains("reject 0.600") && svg.contains("in the last bar"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn degenerate_histograms_are_drawn() {
        assert!(svg_histogram("t", "x", &[], &[]).contains("No scores"));
        let same = [Series { name: "a", colour: "s1", values: &[0.0, 0.0] }];
        let svg = svg_histogram("t", "x", &same, &[Threshold { name: "t".into(), value: f32::INFINITY }]);
        assert!(svg.contains("a (2)") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn curves_stay_inside_and_are_named() {
        let points = [Point { x: 0.0, y: 0.0 }, Point { x: 0.1, y: 0.8 }, Point { x: 1.0, y: 1.0 }];
        let svg = svg_roc("ROC & more", &[Curve { name: "all".into(), points: &points }]);
        assert!(svg.contains("ROC &amp; more") && svg.contains(">all</text>") && svg.contains(">chance</text>"));
        assert!(svg.contains("M52.0 310.0L89.4 70.0L426.0 10.0"), "{svg}");
    }
}
