//! Which defects a cell gets, and how each is painted.

use super::Selection;
use super::canvas::{Canvas, Layout};
use super::chance::{Chance, sin_cos, smooth};
use super::kind::{Defect, DefectKind, PixelBox};
use super::texture::{Grid, Line};
use crate::verdict::Class;

/// The most defects that a cell can have.
pub(super) const MOST: usize = 12;

/// The class of a cell and its defects with their severities.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub class: Class,
    parts: [Option<(DefectKind, f64)>; MOST],
}

impl Plan {
    /// A cell without defects.
    #[cfg(test)]
    pub fn good() -> Self {
        Self { class: Class::A, parts: [None; MOST] }
    }

    pub fn draw(selection: Selection, proportions: [f64; 3], index: u64, chance: &mut Chance) -> Self {
        use DefectKind as K;
        const CLASSES: [Class; 3] = [Class::A, Class::B, Class::C];
        let (class, forced, cracked) = match selection {
            Selection::Natural => (CLASSES[chance.pick(&proportions)], None, None),
            Selection::Balanced => (CLASSES[(index % 3) as usize], None, Some(index / 3 % 2 == 1)),
            Selection::Only(class) => (class, None, None),
            Selection::Defect(kind) => {
                let classes = kind.classes();
                (classes[chance.count(0, classes.len() - 1)], Some(kind), None)
            }
        };
        let mut plan = Self { class, parts: [None; MOST] };
        match (class, forced) {
            (Class::A, _) => {}
            (class, Some(kind)) => plan.add(kind, class, chance),
            (Class::B, None) => {
                let kinds = [K::GreyDots, K::BlackDots, K::FingerInterruption, K::DarkEdge, K::Dimmed];
                let first = chance.pick(&[0.42, 0.16, 0.22, 0.12, 0.08]);
                plan.add(kinds[first], class, chance);
                let second = chance.pick(&[0.5, 0.2, 0.3]);
                if chance.with(0.25) && second != first {
                    plan.add(kinds[second], class, chance);
                }
            }
            (Class::C, None) => {
                let drawn = chance.with(76.0 / 575.0);
                if cracked.unwrap_or(drawn) {
                    let kinds = [K::CrackStraight, K::CrackCross, K::CrackBranching];
                    plan.add(kinds[chance.pick(&[0.4, 0.33, 0.27])], class, chance);
                    if chance.with(0.15) {
                        plan.add(K::DarkSpot, class, chance);
                    }
                } else {
                    let kinds = [K::DarkSpot, K::DarkEdge, K::Dimmed, K::Scratch, K::FingerInterruption];
                    let first = chance.pick(&[0.82, 0.05, 0.04, 0.06, 0.03]);
                    plan.add(kinds[first], class, chance);
                    // Figure 2 d: dark areas and scratches together.
                    if first == 0 && chance.with(0.12) {
                        plan.add(K::Scratch, class, chance);
                    }
                }
                if chance.with(0.2) {
                    plan.add(K::GreyDots, Class::B, chance);
                }
            }
        }
        plan
    }

    /// The planned kinds, with repetitions.
    #[cfg(test)]
    pub fn kinds(&self) -> impl Iterator<Item = DefectKind> {
        self.parts.into_iter().flatten().map(|(kind, _)| kind)
    }

    /// Adds a kind; dark spots come up to three at a time.
    fn add(&mut self, kind: DefectKind, class: Class, chance: &mut Chance) {
        let copies = if kind == DefectKind::DarkSpot { 1 + chance.pick(&[0.62, 0.26, 0.12]) } else { 1 };
        for _ in 0..copies {
            let severity = if class == Class::B { chance.between(0.0, 0.5) } else { chance.between(0.5, 1.0) };
            if let Some(free) = self.parts.iter_mut().find(|part| part.is_none()) {
                *free = Some((kind, severity));
            }
        }
    }

    /// Paints every defect, the broad ones first so that the fine ones stay in the mask.
    pub fn paint(&self, line: &Line, grid: &Grid, canvas: &mut Canvas, out: &mut Vec<Defect>, chance: &mut Chance) {
        use DefectKind as K;
        const ORDER: [DefectKind; 10] = [
            K::Dimmed,
            K::DarkEdge,
            K::DarkSpot,
            K::FingerInterruption,
            K::GreyDots,
            K::BlackDots,
            K::Scratch,
            K::CrackStraight,
            K::CrackCross,
            K::CrackBranching,
        ];
        for wanted in ORDER {
            for (kind, severity) in self.parts.into_iter().flatten().filter(|(kind, _)| *kind == wanted) {
                let mut brush = Brush { line, grid, layout: &line.layout, canvas: &mut *canvas, chance: &mut *chance };
                brush.paint(kind, severity);
                out.push(Defect {
                    kind,
                    severity: severity as f32,
                    bbox: PixelBox { x: 0, y: 0, width: 0, height: 0 },
                });
                canvas.settle(Some(out.len() as u8), &line.inside);
            }
        }
    }
}

type Point = (f64, f64);

/// A crack's course: up to `LINKS` points, of which the first `used` count.
const LINKS: usize = 72;

#[derive(Clone, Copy)]
struct Course {
    points: [Point; LINKS],
    used: usize,
}

struct Brush<'a> {
    line: &'a Line,
    grid: &'a Grid,
    layout: &'a Layout,
    canvas: &'a mut Canvas,
    chance: &'a mut Chance,
}

impl Brush<'_> {
    fn paint(&mut self, kind: DefectKind, severity: f64) {
        match kind {
            DefectKind::DarkSpot => self.dark_spot(severity),
            DefectKind::GreyDots => self.dots(severity, false),
            DefectKind::BlackDots => self.dots(severity, true),
            DefectKind::CrackStraight => self.crack_straight(severity),
            DefectKind::CrackCross => self.crack_cross(severity),
            DefectKind::CrackBranching => self.crack_branching(severity),
            DefectKind::Scratch => self.scratch(severity),
            DefectKind::FingerInterruption => self.finger_interruption(severity),
            DefectKind::DarkEdge => self.dark_edge(severity),
            DefectKind::Dimmed => self.dimmed(severity),
        }
    }

    /// A place at least `margin` (share of the cell) from its sides.
    fn place(&mut self, margin: f64) -> Point {
        let (near, span) = (self.layout.rim + margin * self.layout.cell, (1.0 - 2.0 * margin) * self.layout.cell);
        (near + span * self.chance.unit(), near + span * self.chance.unit())
    }

    fn dark_spot(&mut self, severity: f64) {
        let unit = self.layout.unit;
        let (x, y) = self.place(0.08);
        let size = unit * (14.0 + 95.0 * severity * severity * self.chance.between(0.35, 1.0));
        let stretch = self.chance.between(0.75, 1.35);
        let shrink = 1.0 / stretch;
        let (sin, cos) = sin_cos(self.chance.between(0.0, 180.0));
        let depth = self.chance.between(0.55, 0.93);
        let rough = self.chance.between(0.06, 0.14);
        let soft = self.chance.between(0.35, 0.9);
        let (reach, limit, scale) = (size * 3.3, 1.5 + soft, 1.0 / (size * size));
        let (line, grid) = (self.line, self.grid);
        self.canvas.shade([x - reach, y - reach, x + reach, y + reach], |px, py| {
            let (dx, dy) = (px - x, py - y);
            let (a, b) = ((cos * dx + sin * dy) * stretch, (cos * dy - sin * dx) * shrink);
            let r2 = (a * a + b * b) * scale;
            if r2 > limit * limit {
                return 0.0;
            }
            let r = r2.sqrt();
            let ragged = line.cloud(grid, px, py);
            // Mottled like a cloud inside, ragged along its edge.
            depth
                * smooth((1.0 + soft - r - 2.0 * rough * ragged) / (2.0 * soft))
                * (1.0 - 0.05 * ragged.clamp(-2.0, 3.0))
        });
    }

    fn dots(&mut self, severity: f64, black: bool) {
        let unit = self.layout.unit;
        let s = severity.min(0.5) * 2.0;
        let (n, radius, depth) = if black {
            (self.chance.count(4, 8 + (6.0 * s) as usize), (1.6, 3.2 + 1.5 * s), (0.5, 0.85))
        } else {
            (self.chance.count(10, 16 + (24.0 * s) as usize), (2.0, 5.0 + 4.0 * s), (0.14, 0.26 + 0.2 * s))
        };
        let (x, y) = self.place(0.2);
        let spread = unit * self.chance.between(35.0, 130.0);
        let (near, far) = (self.layout.rim, self.layout.rim + self.layout.cell);
        for _ in 0..n {
            let px = (x + spread * self.chance.normal()).clamp(near + 9.0 * unit, far - 9.0 * unit);
            let py = (y + spread * self.chance.normal()).clamp(near + 9.0 * unit, far - 9.0 * unit);
            let (r, d) = (unit * self.chance.between(radius.0, radius.1), self.chance.between(depth.0, depth.1));
            self.canvas.dot(px, py, r, d);
        }
    }

    fn finger_interruption(&mut self, severity: f64) {
        let (unit, pitch) = (self.layout.unit, self.line.pitch());
        let fingers = (self.layout.cell / pitch) as usize;
        let most = if severity < 0.5 { 2 + (8.0 * severity) as usize } else { 8 + (14.0 * severity) as usize };
        let n = self.chance.count(most.div_ceil(2), most);
        let mut finger = self.chance.count(3, fingers - 4);
        let mut gap = self.chance.count(0, self.line.busbars);
        for _ in 0..n {
            // Neighbours break together: half of them go on from the last one.
            if self.chance.with(0.5) {
                finger = (finger + self.chance.count(1, 2)).min(fingers - 4);
            } else {
                finger = self.chance.count(3, fingers - 4);
                gap = self.chance.count(0, self.line.busbars);
            }
            let (left, right) = self.gap(gap);
            let y = self.layout.rim + (finger as f64 + 0.5) * pitch + self.grid.shift.1;
            let length = (right - left) * self.chance.between(0.3, 0.95);
            let x0 = left + (right - left - length) * self.chance.unit();
            let depth = self.chance.between(0.2, 0.36) + 0.3 * severity;
            let half = 0.62 * pitch;
            self.canvas.shade([x0, y - 2.0 * half, x0 + length, y + 2.0 * half], |px, py| {
                let ends = smooth((px - x0) / (7.0 * unit)) * smooth((x0 + length - px) / (7.0 * unit));
                depth * ends * smooth(1.5 - (py - y).abs() / half)
            });
        }
    }

    /// The columns between two busbars (or a busbar and the cell's side): gap `i` lies left of busbar `i`.
    fn gap(&self, i: usize) -> (f64, f64) {
        let bar = 4.0 * self.layout.unit;
        let left = if i == 0 { self.layout.rim + bar } else { self.line.busbar(i - 1) + self.grid.shift.0 + bar };
        let right = if i >= self.line.busbars {
            self.layout.rim + self.layout.cell - bar
        } else {
            self.line.busbar(i) + self.grid.shift.0 - bar
        };
        (left, right)
    }

    fn dark_edge(&mut self, severity: f64) {
        let (unit, cell, rim) = (self.layout.unit, self.layout.cell, self.layout.rim);
        let s = 2.0 * if severity < 0.5 { severity } else { severity - 0.5 };
        let (width, depth) = if severity < 0.5 {
            (unit * (9.0 + 12.0 * s), 0.22 + 0.16 * s)
        } else {
            (unit * (32.0 + 70.0 * s), 0.5 + 0.36 * s)
        };
        let side = self.chance.count(0, 3);
        let full = self.chance.with(0.4);
        let (middle, span) = (cell * self.chance.unit(), cell * self.chance.between(0.3, 0.7));
        let seed = 4096.0 * self.chance.unit();
        let (line, grid) = (self.line, self.grid);
        let far = rim + cell;
        let reach = 2.4 * width;
        let area = match side {
            0 => [rim, rim, far, rim + reach],
            1 => [far - reach, rim, far, far],
            2 => [rim, far - reach, far, far],
            _ => [rim, rim, rim + reach, far],
        };
        self.canvas.shade(area, |x, y| {
            let (along, deep) = match side {
                0 => (x - rim, y - rim),
                1 => (y - rim, far - x),
                2 => (x - rim, far - y),
                _ => (y - rim, x - rim),
            };
            let here = if full { 1.0 } else { smooth(1.5 - (along - middle).abs() / (0.5 * span)) };
            let width = width * here * (1.0 + 0.22 * line.wave(along + seed, seed)).clamp(0.4, 1.7);
            if width < unit {
                return 0.0;
            }
            depth * smooth(1.35 - deep / width + 0.05 * line.cloud(grid, x, y))
        });
    }

    fn dimmed(&mut self, severity: f64) {
        let s = 2.0 * if severity < 0.5 { severity } else { severity - 0.5 };
        let depth = if severity < 0.5 { 0.14 + 0.10 * s } else { 0.36 + 0.14 * s };
        let side = self.layout.side as f64;
        let (tilt_x, tilt_y) = (self.chance.between(-0.02, 0.02), self.chance.between(-0.02, 0.02));
        self.canvas.shade([0.0, 0.0, side, side], |x, y| {
            depth + tilt_x * (2.0 * x / side - 1.0) + tilt_y * (2.0 * y / side - 1.0)
        });
    }

    fn crack_straight(&mut self, severity: f64) {
        let start = self.place(0.25);
        let angle = self.crystal_angle();
        let length = self.layout.cell * (0.25 + 0.75 * severity) * self.chance.between(0.6, 1.1);
        let course = self.course(start, angle, length / 2.0, length / 2.0);
        let depth = self.chance.between(0.5, 0.85);
        self.trace(&course, depth);
        self.cut_off(&course, severity);
    }

    fn crack_cross(&mut self, severity: f64) {
        let centre = self.place(0.25);
        let angle = self.crystal_angle();
        let second = angle + 90.0 + self.chance.between(-14.0, 14.0);
        let depth = self.chance.between(0.5, 0.85);
        for angle in [angle, second] {
            let arm = self.layout.cell * (0.1 + 0.32 * severity);
            let (back, fore) = (arm * self.chance.between(0.5, 1.2), arm * self.chance.between(0.5, 1.2));
            let course = self.course(centre, angle, back, fore);
            self.trace(&course, depth);
            self.cut_off(&course, severity);
        }
    }

    fn crack_branching(&mut self, severity: f64) {
        let start = self.place(0.22);
        let angle = self.crystal_angle();
        let length = self.layout.cell * (0.3 + 0.5 * severity);
        let (back, depth) = (length * self.chance.between(0.2, 0.5), self.chance.between(0.5, 0.85));
        let trunk = self.course(start, angle, back, length - back);
        self.trace(&trunk, depth);
        self.cut_off(&trunk, severity);
        let mut side = self.chance.sign();
        for _ in 0..self.chance.count(2, 3 + (2.0 * severity) as usize) {
            let from = trunk.points[self.chance.count(trunk.used / 6, trunk.used - 1)];
            let turn = side * self.chance.between(28.0, 62.0);
            let reach = length * self.chance.between(0.2, 0.5);
            let branch = self.course(from, angle + turn, 0.0, reach);
            self.trace(&branch, depth * 0.9);
            if self.chance.with(0.4) {
                self.cut_off(&branch, severity);
            }
            side = -side;
        }
    }

    /// Cracks follow the crystal: near ±45° to the busbars, sometimes along them.
    fn crystal_angle(&mut self) -> f64 {
        let base = [45.0, 135.0, 90.0][self.chance.pick(&[0.42, 0.42, 0.16])];
        base + self.chance.between(-14.0, 14.0)
    }

    /// A course through `start`, `back` behind and `fore` before it, that wanders a little.
    fn course(&mut self, start: Point, degrees: f64, back: f64, fore: f64) -> Course {
        let step = ((back + fore) / (LINKS - 2) as f64).max(9.0 * self.layout.unit);
        let (sin, cos) = sin_cos(degrees);
        let mut points = [start; LINKS];
        let (behind, before) = ((back / step) as usize, (fore / step) as usize);
        let used = (behind + before + 1).clamp(2, LINKS);
        for side in [-1.0, 1.0] {
            let n = if side < 0.0 { behind } else { used - 1 - behind };
            let (mut drift, mut pull) = (0.0, 0.0);
            for k in 1..=n {
                // A wandering that is pulled back to the straight line; now and then a kink.
                let kick = if self.chance.with(0.08) { 0.45 } else { 0.12 };
                pull = 0.8 * pull + kick * self.chance.between(-1.0, 1.0);
                drift = 0.97 * drift + pull * step * 0.5;
                let along = side * k as f64 * step;
                let at = if side < 0.0 { behind - k } else { behind + k };
                points[at] = (start.0 + cos * along - sin * drift, start.1 + sin * along + cos * drift);
            }
        }
        Course { points, used }
    }

    /// Draws the course as a thin dark line that thins out towards its ends.
    fn trace(&mut self, course: &Course, depth: f64) {
        let half = self.layout.unit * self.chance.between(0.9, 1.35);
        for (i, pair) in course.points[..course.used].windows(2).enumerate() {
            let end = (i + 1).min(course.used - 1 - i) as f64;
            let here = depth * (0.72 + 0.28 * smooth(end / 5.0)) * self.chance.between(0.85, 1.0);
            self.canvas.line(pair[0], pair[1], half, here, 0.09);
        }
    }

    /// Where a crack cuts fingers off, the part between it and the next busbar goes dark, finger by finger.
    fn cut_off(&mut self, course: &Course, severity: f64) {
        let unit = self.layout.unit;
        let pitch = self.line.pitch();
        let mut hit = [false; 16];
        for dark in &mut hit {
            *dark = self.chance.with(0.12 + 0.4 * severity);
        }
        let right_side = self.chance.with(0.5);
        let depth = self.chance.between(0.12, 0.25) + 0.3 * severity * self.chance.unit();
        let stripes = self.chance.bits();
        for pair in course.points[..course.used].windows(2) {
            let ((ax, ay), (bx, by)) = if pair[0].1 <= pair[1].1 { (pair[0], pair[1]) } else { (pair[1], pair[0]) };
            if by - ay < 0.2 * unit {
                continue;
            }
            let middle = 0.5 * (ax + bx);
            let gap = (0..self.line.busbars).filter(|&i| self.line.busbar(i) < middle).count();
            if !hit[gap.min(15)] {
                continue;
            }
            let (left, right) = self.gap(gap);
            let area = if right_side { [ax.min(bx), ay, right, by] } else { [left, ay, ax.max(bx), by] };
            let rim = self.layout.rim;
            self.canvas.shade(area, |x, y| {
                let crack = ax + (bx - ax) * ((y - ay) / (by - ay)).clamp(0.0, 1.0);
                let behind = if right_side { x - crack } else { crack - x };
                let finger = ((y - rim).max(0.0) / pitch) as u32;
                let uneven = f64::from((finger.wrapping_mul(0x9E37_79B9) ^ stripes) >> 24) / 255.0;
                // Darkest at the crack, and on some fingers only for a part of the way.
                let fade = 1.0 - 0.6 * smooth(behind / ((0.35 + uneven) * (right - left)));
                depth * (0.75 + 0.45 * uneven) * fade * smooth(0.5 + behind / unit)
            });
        }
    }

    fn scratch(&mut self, severity: f64) {
        let unit = self.layout.unit;
        let (x, y) = self.place(0.2);
        let angle = self.chance.between(0.0, 180.0);
        let bend = self.chance.between(-0.35, 0.35);
        let length = self.layout.cell * (0.12 + 0.5 * severity) * self.chance.between(0.5, 1.0);
        let depth = self.chance.between(0.28, 0.55);
        let n = 1 + self.chance.pick(&[0.55, 0.3, 0.15]);
        let apart = unit * self.chance.between(5.0, 12.0);
        const PARTS: usize = 40;
        for k in 0..n {
            let (sin, cos) = sin_cos(angle);
            let half = unit * self.chance.between(0.75, 1.05);
            let (skip, off) = (self.chance.between(-0.15, 0.15) * length, k as f64 * apart);
            let mut weight = 1.0_f64;
            let mut last: Option<Point> = None;
            for i in 0..=PARTS {
                let t = i as f64 / PARTS as f64 - 0.5;
                let (along, across) = (t * length + skip, bend * t * t * length + off);
                let p = (x + cos * along - sin * across, y + sin * along + cos * across);
                weight = (weight + 0.35 * self.chance.between(-1.0, 1.0)).clamp(0.35, 1.0);
                let taper = smooth((0.5 - t.abs()) * 8.0);
                if let Some(from) = last {
                    self.canvas.line(from, p, half, depth * weight * (0.4 + 0.6 * taper), 0.0);
                }
                last = Some(p);
            }
        }
    }
}
