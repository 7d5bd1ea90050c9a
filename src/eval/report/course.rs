//! The course of training (the paper's Figure 6) as charts: one for each training, all to the same scale.

use std::fmt::Write as _;

use super::count;
use super::judged::CourseCurve;
use super::svg::{Frame, figure, path};
use crate::eval::metrics::Point;

/// A batch has few cells: its accuracy is shown as the mean over so many steps around.
const SMOOTH_OVER: u64 = 20;

/// Points of a line beyond this would lie closer than it is wide.
const MAX_POINTS: usize = 300;

/// One chart for each training; nothing if none of them has a value.
pub(super) fn charts(courses: &[CourseCurve]) -> String {
    let drawn: Vec<(&CourseCurve, Lines)> =
        courses.iter().map(|course| (course, Lines::new(course))).filter(|(_, lines)| !lines.is_empty()).collect();
    let points = || drawn.iter().flat_map(|(_, lines)| lines.all());
    let Some(lowest) = points().map(|point| point.y).reduce(f64::min) else { return String::new() };
    let kept = drawn.iter().filter_map(|(course, _)| course.kept).map(|step| step as f64);
    let last = points().map(|point| point.x).chain(kept).fold(1.0, f64::max);
    // A tenth of room below the lowest value, but never a frame of no height.
    let low = ((lowest * 10.0 - 0.5).floor() / 10.0).clamp(0.0, 0.9);
    let mut out = String::from("<div class=\"charts two\">\n");
    drawn.iter().for_each(|(course, lines)| out.push_str(&chart(course, lines, last, low)));
    out.push_str("</div>\n");
    out
}

/// What is drawn of a course, in steps and shares.
struct Lines {
    batch: Vec<Point>,
    accuracy: Vec<Point>,
    f1: Vec<Point>,
}

impl Lines {
    fn new(course: &CourseCurve) -> Self {
        let points = |values: &mut dyn Iterator<Item = (u64, f64)>| -> Vec<Point> {
            let finite = values.filter(|(_, y)| y.is_finite());
            let mut points: Vec<Point> = finite.map(|(x, y)| Point { x: x as f64, y: y.clamp(0.0, 1.0) }).collect();
            points.sort_by(|a, b| a.x.total_cmp(&b.x));
            points
        };
        Self {
            batch: thin(smooth(&points(&mut course.batch.iter().copied()))),
            accuracy: points(&mut course.validation.iter().map(|&(step, accuracy, _)| (step, accuracy))),
            f1: points(&mut course.validation.iter().map(|&(step, _, f1)| (step, f1))),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Point> {
        self.batch.iter().chain(&self.accuracy).chain(&self.f1)
    }

    fn is_empty(&self) -> bool {
        self.all().next().is_none()
    }
}

/// The mean of the values at most half of [`SMOOTH_OVER`] steps away, of points with rising steps.
fn smooth(points: &[Point]) -> Vec<Point> {
    let half = SMOOTH_OVER as f64 / 2.0;
    let (mut first, mut end, mut sum) = (0, 0, 0.0);
    let mean = |point: &Point| {
        while end < points.len() && points[end].x <= point.x + half {
            sum += points[end].y;
            end += 1;
        }
        while first + 1 < end && points[first].x < point.x - half {
            sum -= points[first].y;
            first += 1;
        }
        Point { x: point.x, y: sum / (end - first).max(1) as f64 }
    };
    points.iter().map(mean).collect()
}

/// Every n-th point and the last.
fn thin(points: Vec<Point>) -> Vec<Point> {
    let every = points.len().div_ceil(MAX_POINTS).max(1);
    let last = points.len().saturating_sub(1);
    points.into_iter().enumerate().filter(|(index, _)| index % every == 0 || *index == last).map(|(_, p)| p).collect()
}

fn chart(course: &CourseCurve, lines: &Lines, last: f64, low: f64) -> String {
    let mut legend = Vec::new();
    if !lines.accuracy.is_empty() {
        legend.push(("curve stroke-s1", "accuracy, validation cells".to_string()));
    }
    if !lines.f1.is_empty() {
        legend.push(("curve stroke-s2", "F1, validation cells".to_string()));
    }
    if !lines.batch.is_empty() {
        legend.push(("thin stroke-none", format!("accuracy of the batch, mean over {SMOOTH_OVER} steps")));
    }
    if let Some(kept) = course.kept {
        legend.push(("mark", format!("kept: step {}", count(kept as usize))));
    }
    let frame = Frame {
        width: 440.0,
        height: 316.0,
        left: 52.0,
        right: 18.0,
        top: 12.0,
        bottom: 46.0,
        below: 18.0 * legend.len() as f64 + 4.0,
        x: (0.0, last),
        y: (low, 1.0),
    };
    let mut out = frame.open(&format!("Course of training, {}", course.name), "step", "accuracy, F1");
    if let Some(kept) = course.kept {
        let (x, bottom) = (frame.px(kept as f64), frame.height - frame.bottom);
        let _ = writeln!(out, "<path class=mark d=\"M{x:.1} {}V{bottom}\" />", frame.top);
    }
    let _ = writeln!(out, "<path class=\"thin stroke-none\" d=\"{}\" />", path(&frame, &lines.batch));
    for (points, colour) in [(&lines.f1, "s2"), (&lines.accuracy, "s1")] {
        let _ = writeln!(out, "<path class=\"curve stroke-{colour}\" d=\"{}\" />", path(&frame, points));
        // With many values, dots would hide the line.
        for point in points.iter().take(if points.len() > 60 { 0 } else { 60 }) {
            let (x, y) = (frame.px(point.x), frame.py(point.y));
            let _ = write!(out, "<circle class=fill-{colour} cx={x:.1} cy={y:.1} r=3 />");
        }
    }
    legend.iter().enumerate().for_each(|(line, (class, name))| out.push_str(&frame.legend(line, class, name)));
    out.push_str("</svg>\n");
    figure(&course.name, &out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(name: &str) -> CourseCurve {
        CourseCurve {
            name: name.into(),
            batch: (0..400).map(|step| (step, if step % 2 == 0 { 1.0 } else { 0.5 })).collect(),
            validation: vec![(400, 0.8, 0.7), (0, 0.5, 0.25), (200, 0.875, f64::NAN)],
            kept: Some(1200),
        }
    }

    #[test]
    fn lines_dots_and_the_kept_step_are_where_they_belong() {
        let html = charts(&[course("<fold 1>"), course("fold 2")]);
        assert_eq!((html.matches("<svg").count(), html.matches("kept: step 1,200").count()), (2, 2));
        assert!(html.contains("&lt;fold 1&gt;") && !html.contains("<fold") && !html.contains("NaN"));
        // Up to step 1,200 over 370 units from 52; from 0.2 (a tenth below the lowest, 0.25) to 1 over 258 from 270.
        assert!(html.contains("M52.0 173.2L113.7 52.3L175.3 76.5"), "{html}");
        assert!(html.contains("M52.0 253.9L175.3 108.8"), "{html}");
        assert!(html.contains("<path class=mark d=\"M422.0 12V270\" />"), "{html}");
        assert_eq!(html.matches("<circle class=fill-s1").count(), 6);
        assert_eq!(html.matches("<circle class=fill-s2").count(), 4, "F1 that is no number has no dot");
    }

    #[test]
    fn a_batch_is_smoothed_over_its_neighbours() {
        let points: Vec<Point> = course("").batch.iter().map(|&(x, y)| Point { x: x as f64, y }).collect();
        let smoothed = smooth(&points);
        assert_eq!(smoothed.len(), 400);
        // The first has ten to its right and itself: six ones and five halves.
        assert!((smoothed[0].y - 8.5 / 11.0).abs() < 1e-12);
        assert!(smoothed[10..390].iter().all(|p| (p.y - 0.75).abs() < 0.02));
        let sparse = [(0, 0.25), (50, 0.75)].map(|(x, y)| Point { x: f64::from(x), y });
        assert_eq!(smooth(&sparse), sparse);
        assert!(smooth(&[]).is_empty());
    }

    #[test]
    fn long_courses_are_thinned_but_keep_their_end() {
        let points: Vec<Point> = (0..5000).map(|x| Point { x: f64::from(x), y: 0.5 }).collect();
        let thinned = thin(points.clone());
        assert!(
            thinned.len() <= MAX_POINTS + 1 && thinned.first() == points.first() && thinned.last() == points.last()
        );
    }

    #[test]
    fn one_point_makes_a_chart_and_none_no_chart() {
        let one = CourseCurve { name: "a".into(), validation: vec![(0, 1.0, 1.0)], ..CourseCurve::default() };
        let html = charts(&[CourseCurve::default(), one]);
        assert_eq!(html.matches("<svg").count(), 1);
        assert!(!html.contains("NaN") && !html.contains("inf") && !html.contains("kept"), "{html}");
        assert_eq!(charts(&[CourseCurve::default()]), "");
        assert_eq!(charts(&[]), "");
    }
}
