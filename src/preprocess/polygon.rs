//! Outlines as polygons: convex hull of row extents, Douglas–Peucker, and the four sides among many.

/// A point, [x, y].
pub type Point = [f64; 2];

/// Most vertices among which four sides are searched: 12 edges have 495 choices.
const MAX_VERTICES: usize = 12;
/// The four sides must make up this share of the outline: a square with corners cut at 12 % of its side has 0.82, a
/// circle's twelve edges 0.33.
const MIN_STRAIGHT: f64 = 0.6;

/// Largest tolerance as a share of the outline's side: at 5 % a circle is still an octagon.
const MAX_EPSILON: f64 = 0.05;

/// The buffers of [`douglas_peucker`]: made once for the longest outline.
pub struct Simplifier {
    stack: Vec<(usize, usize)>,
    keep: Vec<bool>,
    capacity: usize,
}

impl Simplifier {
    /// Buffers for outlines of up to `capacity` points.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { stack: Vec::with_capacity(capacity + 2), keep: vec![false; capacity + 1], capacity }
    }
}

/// Simplifies a line after Douglas and Peucker (1973): `out` becomes the subset of `points` whose segments keep within
/// `epsilon` of every point left out.
///
/// A `closed` outline (whose last point is not the first one repeated) is split at two points that are farthest from
/// one another; an open line keeps its ends. Allocates nothing as long as `out` has room for `points.len()` points.
///
/// # Panics
/// If there are more points than `buffers` were made for.
pub fn douglas_peucker(points: &[Point], epsilon: f64, closed: bool, buffers: &mut Simplifier, out: &mut Vec<Point>) {
    let n = points.len();
    assert!(n <= buffers.capacity, "the buffers were made for {} points, not {n}", buffers.capacity);
    out.clear();
    if n < 3 {
        out.extend_from_slice(points);
        return;
    }
    let Simplifier { stack, keep, .. } = buffers;
    keep[..=n].fill(false);
    stack.clear();
    let (first, last) = if closed {
        let (a, b) = farthest_pair(points);
        (a.min(b), a.max(b))
    } else {
        (0, n - 1)
    };
    keep[first] = true;
    keep[last] = true;
    stack.push((first, last));
    if closed {
        stack.push((last, first + n));
    }
    while let Some((from, to)) = stack.pop() {
        let (a, b) = (points[from % n], points[to % n]);
        let mut worst = (epsilon, [f64::NEG_INFINITY; 2], None);
        for i in from + 1..to {
            let p = points[i % n];
            let d = segment_distance(p, a, b);
            // Ties go by coordinates, not by index, so that the start of the outline does not matter.
            if d > worst.0 || (d == worst.0 && worst.2.is_some() && p > worst.1) {
                worst = (d, p, Some(i));
            }
        }
        if let Some(i) = worst.2 {
            keep[i % n] = true;
            stack.push((from, i));
            stack.push((i, to));
        }
    }
    // An outline starts at its first anchor.
    out.extend((0..n).map(|i| (i + first) % n).filter(|&i| keep[i]).map(|i| points[i]));
}

/// Two points each of which is the other's farthest.
fn farthest_pair(points: &[Point]) -> (usize, usize) {
    let farthest = |from: usize| {
        let mut best = (-1.0, from);
        for (i, p) in points.iter().enumerate() {
            let d = distance(*p, points[from]);
            if d > best.0 || (d == best.0 && *p > points[best.1]) {
                best = (d, i);
            }
        }
        best
    };
    let mut a = 0;
    let (mut d, mut b) = farthest(a);
    loop {
        let (further, c) = farthest(b);
        // The distance grows with each turn, so this ends; what is not a number ends it too.
        if further > d {
            (a, b, d) = (b, c, further);
        } else {
            return (a, b);
        }
    }
}

pub(super) fn distance(a: Point, b: Point) -> f64 {
    ((a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2)).sqrt()
}

fn segment_distance(p: Point, a: Point, b: Point) -> f64 {
    let (dx, dy) = (b[0] - a[0], b[1] - a[1]);
    let length = dx * dx + dy * dy;
    let t = if length > 0.0 { (((p[0] - a[0]) * dx + (p[1] - a[1]) * dy) / length).clamp(0.0, 1.0) } else { 0.0 };
    distance(p, [a[0] + t * dx, a[1] + t * dy])
}

/// Twice the signed area: positive for clockwise points where y points down.
pub(super) fn area2(points: &[Point]) -> f64 {
    (0..points.len()).map(|i| cross(points[i], points[(i + 1) % points.len()])).sum()
}

fn cross(a: Point, b: Point) -> f64 {
    a[0] * b[1] - a[1] * b[0]
}

fn turn(a: Point, b: Point, c: Point) -> f64 {
    cross([b[0] - a[0], b[1] - a[1]], [c[0] - b[0], c[1] - b[1]])
}

/// Appends to `out`, from index `start` on, the next point of a chain that must turn right everywhere.
fn push_convex(out: &mut Vec<Point>, start: usize, p: Point) {
    while out.len() >= start + 2 && turn(out[out.len() - 2], out[out.len() - 1], p) <= 0.0 {
        out.pop();
    }
    if out.last() != Some(&p) {
        out.push(p);
    }
}

/// The convex hull, clockwise, of the pixels from `left[y]` to `right[y]` (exclusive) of each row; a row is empty where
/// `left ≥ right`. Pixels count with their four corners, times `scale`.
pub(super) fn hull_of_rows(left: &[u16], right: &[u16], scale: f64, out: &mut Vec<Point>) {
    out.clear();
    let rows = left.len();
    let full = |y: usize| left[y] < right[y];
    let x_left = |b: usize| [b.wrapping_sub(1), b].into_iter().filter(|&y| y < rows && full(y)).map(|y| left[y]).min();
    let x_right =
        |b: usize| [b.wrapping_sub(1), b].into_iter().filter(|&y| y < rows && full(y)).map(|y| right[y]).max();
    for b in 0..=rows {
        if let Some(x) = x_right(b) {
            push_convex(out, 0, [f64::from(x) * scale, b as f64 * scale]);
        }
    }
    // The bottom edge joins the last point to the left chain, which therefore starts anew.
    let start = out.len();
    for b in (0..=rows).rev() {
        if let Some(x) = x_left(b) {
            push_convex(out, start, [f64::from(x) * scale, b as f64 * scale]);
        }
    }
}

/// A straight line through `at` along the unit vector `along`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    pub at: Point,
    pub along: Point,
}

impl Line {
    pub(super) fn through(a: Point, b: Point) -> Self {
        let length = distance(a, b).max(f64::MIN_POSITIVE);
        Self { at: a, along: [(b[0] - a[0]) / length, (b[1] - a[1]) / length] }
    }

    fn meets(&self, other: &Self) -> Option<Point> {
        let det = cross(self.along, other.along);
        let t = cross([other.at[0] - self.at[0], other.at[1] - self.at[1]], other.along) / det;
        let p = [self.at[0] + t * self.along[0], self.at[1] + t * self.along[1]];
        (det.abs() > 1e-6 && p[0].is_finite() && p[1].is_finite()).then_some(p)
    }
}

/// The corners in which four sides (top, right, bottom, left) meet, clockwise from top left.
pub(super) fn corners(sides: &[Line; 4]) -> Option<[Point; 4]> {
    let [top, right, bottom, left] = sides;
    Some([left.meets(top)?, top.meets(right)?, right.meets(bottom)?, bottom.meets(left)?])
}

/// The four long sides (top, right, bottom, left) of a convex clockwise outline: Douglas–Peucker with a tolerance that
/// grows from `epsilon` until few edges are left, of which four that turn by 50° to 130° each and are longest together
/// are taken. Chamfers, arcs and a broken corner are edges like others, only shorter.
///
/// # Errors
/// The number of vertices at which it was given up.
pub(super) fn four_sides(
    outline: &[Point],
    mut epsilon: f64,
    buffers: &mut Simplifier,
    polygon: &mut Vec<Point>,
) -> Result<[Line; 4], u32> {
    let most = MAX_EPSILON * (area2(outline) / 2.0).max(0.0).sqrt();
    loop {
        douglas_peucker(outline, epsilon, true, buffers, polygon);
        let n = polygon.len();
        if n < 4 {
            return Err(n as u32);
        }
        let sides = if n <= MAX_VERTICES { longest_four(polygon) } else { None };
        if let Some(sides) = sides {
            return Ok(sides);
        }
        epsilon *= 1.3;
        if n == 4 || epsilon > most {
            return Err(n as u32);
        }
    }
}

fn longest_four(polygon: &[Point]) -> Option<[Line; 4]> {
    let n = polygon.len();
    let mut lines = [Line { at: [0.0; 2], along: [0.0; 2] }; MAX_VERTICES];
    let mut lengths = [0.0; MAX_VERTICES];
    for i in 0..n {
        lines[i] = Line::through(polygon[i], polygon[(i + 1) % n]);
        lengths[i] = distance(polygon[i], polygon[(i + 1) % n]);
    }
    let perimeter: f64 = lengths[..n].iter().sum();
    // cos of the turn must be within ± cos 50°, and the turn clockwise.
    let square = |a: usize, b: usize| {
        let (u, v) = (lines[a].along, lines[b].along);
        cross(u, v) > 0.0 && (u[0] * v[0] + u[1] * v[1]).abs() < 0.643
    };
    let mut best = (MIN_STRAIGHT * perimeter, None);
    for a in 0..n {
        for b in (a + 1..n).filter(|&b| square(a, b)) {
            for c in (b + 1..n).filter(|&c| square(b, c)) {
                for d in (c + 1..n).filter(|&d| square(c, d) && square(d, a)) {
                    let sum = lengths[a] + lengths[b] + lengths[c] + lengths[d];
                    if sum > best.0 {
                        best = (sum, Some([a, b, c, d]));
                    }
                }
            }
        }
    }
    let chosen = best.1?.map(|i| lines[i]);
    // The top side runs to the right the most; of two equal ones the first.
    let mut top = 0;
    for i in 1..4 {
        if chosen[i].along[0] > chosen[top].along[0] + 1e-9 {
            top = i;
        }
    }
    Some([0, 1, 2, 3].map(|i| chosen[(top + i) % 4]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn simplify(points: &[Point], epsilon: f64, closed: bool) -> Vec<Point> {
        let mut out = Vec::new();
        douglas_peucker(points, epsilon, closed, &mut Simplifier::new(points.len()), &mut out);
        out
    }

    #[test]
    fn an_open_line_keeps_its_ends_and_its_bends() {
        let line = [[0.0, 0.0], [1.0, 0.1], [2.0, -0.1], [3.0, 5.0], [4.0, 6.0], [5.0, 7.0]];
        assert_eq!(simplify(&line, 0.5, false), [[0.0, 0.0], [2.0, -0.1], [3.0, 5.0], [5.0, 7.0]]);
        assert_eq!(simplify(&line[..2], 0.5, false), line[..2]);
    }

    #[test]
    fn a_closed_square_keeps_its_corners_wherever_it_starts() {
        let mut square: Vec<Point> = Vec::new();
        for i in 0..40 {
            let t = f64::from(i % 10);
            square.push(match i / 10 {
                0 => [t, 0.0],
                1 => [10.0, t],
                2 => [10.0 - t, 10.0],
                _ => [0.0, 10.0 - t],
            });
        }
        for start in 0..40 {
            square.rotate_left(start);
            let mut found = simplify(&square, 0.1, true);
            found.sort_by(|a, b| a.partial_cmp(b).unwrap());
            assert_eq!(found, [[0.0, 0.0], [0.0, 10.0], [10.0, 0.0], [10.0, 10.0]]);
        }
    }

    #[test]
    fn the_hull_of_rows_is_convex_and_holds_every_pixel() {
        let left = [5, 4, 9, 1, 7, 0];
        let right = [6, 9, 9, 8, 9, 0]; // rows 2 and 5 are empty
        let mut hull = Vec::new();
        hull_of_rows(&left, &right, 2.0, &mut hull);
        let n = hull.len();
        for i in 0..n {
            let (a, b) = (hull[i], hull[(i + 1) % n]);
            assert!(turn(a, b, hull[(i + 2) % n]) >= 0.0, "{hull:?}");
            for y in [0, 1, 3, 4] {
                for (x, y) in [(left[y], y), (right[y], y), (left[y], y + 1), (right[y], y + 1)] {
                    assert!(turn(a, b, [f64::from(x) * 2.0, y as f64 * 2.0]) >= -1e-9);
                }
            }
        }
    }

    #[test]
    fn a_circle_and_a_triangle_have_no_four_sides() {
        let mut polygon = Vec::new();
        let circle: Vec<Point> = (0..360).map(|i| f64::from(i).to_radians().sin_cos()).map(|(s, c)| [c, s]).collect();
        assert!(four_sides(&circle, 0.01, &mut Simplifier::new(360), &mut polygon).is_err());
        let triangle = [[0.0, 0.0], [10.0, 0.0], [5.0, 9.0]];
        assert_eq!(four_sides(&triangle, 0.01, &mut Simplifier::new(3), &mut polygon).unwrap_err(), 3);
    }

    #[test]
    fn chamfers_do_not_fool_the_sides() {
        // Corners cut by 12, 3, 8 and 0 of 100.
        let outline = [[12.0, 0.0], [97.0, 0.0], [100.0, 3.0], [100.0, 92.0], [92.0, 100.0], [0.0, 100.0], [0.0, 12.0]];
        let sides = four_sides(&outline, 0.5, &mut Simplifier::new(7), &mut Vec::new()).unwrap();
        let quad = corners(&sides).unwrap();
        for (found, expected) in quad.iter().zip([[0.0, 0.0], [100.0, 0.0], [100.0, 100.0], [0.0, 100.0]]) {
            assert!(distance(*found, expected) < 1e-9, "{quad:?}");
        }
    }
}
