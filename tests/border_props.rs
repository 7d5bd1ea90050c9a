//! Known cells, drawn with any outline, depth and noise, come back from the border step where they were drawn; and
//! what is no cell, or no picture, gets its named outcome and never a panic.

use std::sync::OnceLock;

use cellgate::backbone::{INPUT_MEAN, INPUT_STD};
use cellgate::frame::Frame;
use cellgate::preprocess::polygon::{Point, Simplifier, douglas_peucker};
use cellgate::preprocess::{Gates, PreprocessConfig, Preprocessor, Refusal, Threshold};
use proptest::prelude::*;

const SIZE: usize = 256;

/// A small generator for pixels: drawing is the test's, and must not fail with it.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f64 / (1u64 << 24) as f64
    }

    /// About normal, with standard deviation 1.
    fn normal(&mut self) -> f64 {
        ((0..6).map(|_| self.next()).sum::<f64>() - 3.0) * 2f64.sqrt()
    }
}

/// How a cell is drawn.
#[derive(Clone, Debug)]
struct Cell {
    frame: (usize, usize),
    quad: [Point; 4],
    /// Length cut off both sides of each corner, as a share of the side.
    chamfer: [f64; 4],
    white: u16,
    background: f64,
    /// Standard deviation, of full scale.
    noise: f64,
    checker: usize,
    blur: usize,
    seed: u64,
}

impl Cell {
    fn square() -> Self {
        Self {
            frame: (720, 720),
            quad: [[40.0, 38.0], [680.0, 41.0], [677.0, 684.0], [37.0, 680.0]],
            chamfer: [0.06; 4],
            white: 255,
            background: 0.03,
            noise: 0.01,
            checker: 0,
            blur: 0,
            seed: 1,
        }
    }

    fn outline(&self) -> Vec<Point> {
        let mix = |a: Point, b: Point, t: f64| [a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])];
        let mut out = Vec::new();
        for i in 0..4 {
            let (before, here, after) = (self.quad[(i + 3) % 4], self.quad[i], self.quad[(i + 1) % 4]);
            out.push(mix(here, before, self.chamfer[i]));
            out.push(mix(here, after, self.chamfer[i]));
        }
        out
    }

    /// Brightness of the cell at u, v in 0 to 1: some texture, or a checker.
    fn inside(&self, u: f64, v: f64) -> f64 {
        if self.checker > 0 {
            let n = self.checker as f64;
            let odd = ((u * n).floor() + (v * n).floor()) as i64 & 1;
            return if odd == 0 { 0.75 } else { 0.45 };
        }
        0.6 + 0.08 * (u * 9.0).sin() + 0.05 * (v * 7.0 + u).cos()
    }

    /// Draws the cell with 4×4 samples a pixel.
    fn draw(&self) -> Frame {
        let (w, h) = self.frame;
        let outline = self.outline();
        let mut noise = Noise(self.seed);
        let inverse = quad_to_unit(&self.quad);
        let mut light = vec![0.0; w * h];
        let n = outline.len();
        for (i, value) in light.iter_mut().enumerate() {
            let mut sum = 0.0;
            for s in 0..16 {
                let x = (i % w) as f64 + (f64::from(s % 4) + 0.5) / 4.0;
                let y = (i / w) as f64 + (f64::from(s / 4) + 0.5) / 4.0;
                let covered = (0..n).all(|k| {
                    let (a, b) = (outline[k], outline[(k + 1) % n]);
                    (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0]) >= 0.0
                });
                sum += if covered {
                    let [u, v] = inverse(x, y);
                    self.inside(u.clamp(0.0, 0.999), v.clamp(0.0, 0.999))
                } else {
                    self.background
                };
            }
            *value = sum / 16.0;
        }
        for _ in 0..2 {
            light = blurred(&light, w, h, self.blur);
        }
        let white = f64::from(self.white);
        let pixels = light
            .iter()
            .map(|l| ((l + self.noise * noise.normal()) * white).round().clamp(0.0, white) as u16)
            .collect();
        Frame::from_pixels(w, h, self.white, pixels)
    }
}

/// A box blur of side 2·radius + 1.
fn blurred(light: &[f64], w: usize, h: usize, radius: usize) -> Vec<f64> {
    if radius == 0 {
        return light.to_vec();
    }
    let pass = |light: &[f64], step: usize, length: usize, at: &dyn Fn(usize) -> usize| -> Vec<f64> {
        (0..w * h)
            .map(|i| {
                let (k, base) = (at(i), i - at(i) * step);
                let (from, to) = (k.saturating_sub(radius), (k + radius).min(length - 1));
                (from..=to).map(|j| light[base + j * step]).sum::<f64>() / (to - from + 1) as f64
            })
            .collect()
    };
    let across = pass(light, 1, w, &|i| i % w);
    pass(&across, w, h, &|i| i / w)
}

/// From frame to cell coordinates, by solving for the homography that the crate has in closed form.
fn quad_to_unit(quad: &[Point; 4]) -> impl Fn(f64, f64) -> Point + use<> {
    let mut m = [[0.0f64; 9]; 8];
    for (i, (p, to)) in quad.iter().zip([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]).enumerate() {
        let [x, y] = *p;
        m[2 * i] = [x, y, 1.0, 0.0, 0.0, 0.0, -to[0] * x, -to[0] * y, to[0]];
        m[2 * i + 1] = [0.0, 0.0, 0.0, x, y, 1.0, -to[1] * x, -to[1] * y, to[1]];
    }
    for c in 0..8 {
        let pivot = (c..8).max_by(|&a, &b| m[a][c].abs().total_cmp(&m[b][c].abs())).unwrap();
        m.swap(c, pivot);
        for r in 0..8 {
            if r != c {
                let f = m[r][c] / m[c][c];
                let pivot = m[c];
                m[r].iter_mut().zip(pivot).skip(c).for_each(|(v, p)| *v -= f * p);
            }
        }
    }
    let h: [f64; 8] = std::array::from_fn(|i| m[i][8] / m[i][i]);
    move |x, y| {
        let w = h[6] * x + h[7] * y + 1.0;
        [(h[0] * x + h[1] * y + h[2]) / w, (h[3] * x + h[4] * y + h[5]) / w]
    }
}

prop_compose! {
    fn cells()(
        (w, h) in (300usize..760, 300usize..760),
        fill in 0.62f64..0.78,
        angle in -10.0f64..10.0,
        pull in prop::array::uniform8(-0.03f64..0.03),
        chamfer in prop::array::uniform4(0.0f64..0.12),
        white in prop::sample::select(vec![255u16, 4095, 65535]),
        background in 0.0f64..0.08,
        noise in 0.0f64..0.03,
        shift in prop::array::uniform2(-0.04f64..0.04),
        seed: u64,
    ) -> Cell {
        let side = fill * w.min(h) as f64;
        let (s, c) = angle.to_radians().sin_cos();
        let quad = std::array::from_fn(|i| {
            let [u, v] = [[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]][i];
            let (u, v) = (u + pull[2 * i], v + pull[2 * i + 1]);
            [(c * u - s * v) * side + w as f64 * (0.5 + shift[0]), (s * u + c * v) * side + h as f64 * (0.5 + shift[1])]
        });
        Cell { frame: (w, h), quad, chamfer, white, background, noise, checker: 0, blur: 0, seed }
    }
}

fn gates_for_small_cells() -> PreprocessConfig {
    PreprocessConfig { gates: Gates { min_area: Some(0.05), ..Gates::default() }, ..PreprocessConfig::default() }
}

fn run(config: PreprocessConfig, frame: &Frame) -> Result<(cellgate::preprocess::Placement, Vec<f32>), Refusal> {
    let mut out = vec![f32::NAN; SIZE * SIZE];
    let mut p = Preprocessor::new(config, SIZE, 1024, 1024).unwrap();
    p.run(frame, &mut out).map(|placement| (placement, out))
}

fn worst_corner(found: &[Point; 4], drawn: &[Point; 4]) -> f64 {
    found.iter().zip(drawn).map(|(a, b)| (a[0] - b[0]).hypot(a[1] - b[1])).fold(0.0, f64::max)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn known_corners_come_back_within_a_pixel(cell in cells(), otsu: bool) {
        let threshold = if otsu { Threshold::Otsu } else { Threshold::default() };
        let (placement, out) = run(PreprocessConfig { threshold, ..gates_for_small_cells() }, &cell.draw()).unwrap();
        let worst = worst_corner(&placement.quad, &cell.quad);
        prop_assert!(worst < 0.5, "corners are off by {worst:.2}: {:?}", placement.quad);
        prop_assert!(out.iter().all(|v| v.is_finite()));
        let centre = f64::from(out[128 * SIZE + 128] * INPUT_STD + INPUT_MEAN);
        prop_assert!((centre - cell.inside(0.5, 0.5)).abs() < 0.1, "centre {centre}");
    }

    #[test]
    fn a_checker_lies_where_it_belongs(mut cell in cells()) {
        cell.checker = 8;
        cell.noise = cell.noise.min(0.01);
        let (_, out) = run(gates_for_small_cells(), &cell.draw()).unwrap();
        // Along the middle of each row of fields, the brightness crosses the middle at every 32nd pixel.
        let at = |x: usize, y: usize| f64::from(out[y * SIZE + x] * INPUT_STD + INPUT_MEAN) - 0.6;
        for field in 1..7 {
            for boundary in 1..8 {
                let (across, x) = (32 * field + 16, 32 * boundary);
                for read in [&|i| at(i, across), &|i| at(across, i)] as [&dyn Fn(usize) -> f64; 2] {
                    // Dark to bright or bright to dark: the shares of both sides tell the crossing.
                    let (left, right) = (read(x - 8), read(x + 7));
                    // The fields are 0.15 above and below the middle.
                    let sum: f64 = (x - 8..x + 8).map(|i| 0.5 + read(i) / 0.3 * right.signum()).sum();
                    let crossing = 8.0 - sum;
                    prop_assert!(left * right < 0.0 && crossing.abs() < 1.0, "field {field}, {boundary}: {crossing:.2}");
                }
            }
        }
    }

    #[test]
    fn random_frames_never_panic(
        (w, h) in (0usize..64, 0usize..64), white in 1u16.., seed: u64, otsu: bool, open: bool, levels in 1u32..65536,
    ) {
        let mut noise = Noise(seed);
        let pixels = (0..w * h).map(|_| (noise.next() * f64::from(levels)) as u16).collect();
        let frame = Frame::from_pixels(w, h, white, pixels);
        let threshold = if otsu { Threshold::Otsu } else { Threshold::default() };
        let gates = if open { Gates::off() } else { Gates::default() };
        for config in [PreprocessConfig::default(), PreprocessConfig::whole_frame()] {
            if let Ok((placement, out)) = run(PreprocessConfig { threshold, gates: gates.clone(), ..config }, &frame) {
                prop_assert!(out.iter().all(|v| v.is_finite()));
                prop_assert!(placement.quad.iter().flatten().all(|v| v.is_finite()));
            }
        }
    }

    #[test]
    fn douglas_peucker_keeps_a_close_subset_and_is_idempotent(
        points in prop::collection::vec(prop::array::uniform2(-100.0f64..100.0), 0..80),
        epsilon in 0.0f64..60.0, closed: bool,
    ) {
        let mut buffers = Simplifier::new(points.len());
        let (mut kept, mut again) = (Vec::new(), Vec::new());
        douglas_peucker(&points, epsilon, closed, &mut buffers, &mut kept);
        // A subset, in order (a closed outline may start elsewhere).
        let places: Vec<usize> = kept.iter().map(|k| points.iter().position(|p| p == k).unwrap()).collect();
        let drops = (0..places.len()).filter(|&i| places[(i + 1) % places.len()] <= places[i]).count();
        prop_assert!(drops <= 1, "{places:?}");
        if !closed && points.len() > 1 {
            prop_assert_eq!((kept[0], kept[kept.len() - 1]), (points[0], points[points.len() - 1]));
        }
        // What was left out lies close to the segment that replaced it.
        let n = points.len();
        for (i, &from) in places.iter().enumerate() {
            let to = places[(i + 1) % places.len()];
            if !closed && i + 1 == places.len() {
                break;
            }
            let mut k = (from + 1) % n;
            while k != to && k != from {
                let ([ax, ay], [bx, by], [px, py]) = (points[from], points[to], points[k]);
                let (dx, dy) = (bx - ax, by - ay);
                let t = (((px - ax) * dx + (py - ay) * dy) / (dx * dx + dy * dy)).clamp(0.0, 1.0);
                let d = (px - ax - t * dx).hypot(py - ay - t * dy);
                prop_assert!(d <= epsilon + 1e-9, "{d} > {epsilon}");
                k = (k + 1) % n;
            }
        }
        douglas_peucker(&kept, epsilon, closed, &mut buffers, &mut again);
        prop_assert_eq!(kept, again);
    }
}

fn name(config: PreprocessConfig, frame: &Frame) -> &'static str {
    run(config, frame).map_or_else(|r| r.name(), |_| "accepted")
}

fn good() -> &'static Frame {
    static FRAME: OnceLock<Frame> = OnceLock::new();
    FRAME.get_or_init(|| Cell::square().draw())
}

fn plain(w: usize, h: usize, value: u16) -> Frame {
    Frame::from_pixels(w, h, 255, vec![value; w * h])
}

fn rectangles(boxes: &[[usize; 4]]) -> Frame {
    let mut frame = plain(400, 400, 8);
    for &[x0, y0, x1, y1] in boxes {
        for y in y0..y1 {
            frame.pixels_mut()[y * 400 + x0..y * 400 + x1].fill(150);
        }
    }
    frame
}

#[test]
fn a_good_cell_passes_with_both_thresholds() {
    for threshold in [Threshold::default(), Threshold::Otsu] {
        let (p, _) = run(PreprocessConfig { threshold, ..Default::default() }, good()).unwrap();
        assert!(worst_corner(&p.quad, &Cell::square().quad) < 0.3, "{:?}", p.quad);
        assert!(p.fill > 0.95 && p.saturated == 0.0, "{p:?}");
        assert!((p.brightness - 0.6).abs() < 0.05, "{p:?}");
        assert!(p.edge_width.unwrap() < 0.004, "{p:?}");
        let [x, y] = p.to_frame(0.0, 0.0);
        assert!((x - 40.0).hypot(y - 38.0) < 0.3);
    }
}

#[test]
fn busbars_cracks_dark_edges_and_a_broken_corner_do_not_move_the_corners() {
    let cell = Cell::square();
    let mut frame = good().clone();
    let pixels = frame.pixels_mut();
    for y in 0..720 {
        for x in 0..720 {
            let busbar = [160, 320, 480, 600].iter().any(|&b| (b..b + 7).contains(&y)); // full width: five pieces
            let crack = (x as i64 - y as i64 - 60).abs() < 3;
            let dark_edge = x > 640 && (200..330).contains(&y);
            let broken = x + (720 - y) < 190; // a corner of 100 pixels
            if busbar || crack || dark_edge || broken {
                pixels[y * 720 + x] = 6;
            }
        }
    }
    let (p, _) = run(PreprocessConfig::default(), &frame).unwrap();
    assert!(worst_corner(&p.quad, &cell.quad) < 1.0, "{:?}", p.quad);
}

#[test]
fn an_inset_shows_the_inner_part() {
    let config = PreprocessConfig { inset: 0.05, ..Default::default() };
    let (p, _) = run(config, good()).unwrap();
    let [x, y] = p.to_frame(0.0, 0.0);
    assert!((x - 72.0).abs() < 1.0 && (y - 70.0).abs() < 1.0, "{x} {y}");
}

#[test]
fn nothing_bright_is_no_cell() {
    assert_eq!(name(PreprocessConfig::default(), &plain(720, 720, 0)), "no-cell");
    let otsu = PreprocessConfig { threshold: Threshold::Otsu, ..Default::default() };
    assert_eq!(name(otsu, &plain(720, 720, 0)), "no-cell");
    assert_eq!(name(PreprocessConfig::default(), &rectangles(&[[50, 50, 90, 90]])), "no-cell");
    assert_eq!(name(PreprocessConfig::default(), &rectangles(&[[20, 200, 380, 203]])), "no-cell"); // a thin line
    assert_eq!(name(PreprocessConfig::whole_frame(), &plain(300, 300, 0)), "dim");
    assert_eq!(name(PreprocessConfig::whole_frame(), &plain(300, 300, 128)), "uniform");
}

#[test]
fn noise_alone_is_no_cell() {
    let mut noise = Noise(5);
    for scale in [30.0, 60.0] {
        let pixels = (0..400 * 400).map(|_| (noise.normal().abs() * scale).min(255.0) as u16).collect();
        let frame = Frame::from_pixels(400, 400, 255, pixels);
        assert_eq!(name(PreprocessConfig::default(), &frame), "no-cell", "noise of {scale}");
    }
}

#[test]
fn all_white_is_saturated() {
    assert_eq!(name(PreprocessConfig::default(), &plain(720, 720, 255)), "saturated");
    assert_eq!(name(PreprocessConfig::whole_frame(), &plain(300, 300, 255)), "saturated");
    let mut frame = good().clone();
    frame.pixels_mut()[720 * 100..720 * 400].iter_mut().for_each(|x| *x = if *x > 60 { 255 } else { *x });
    assert_eq!(name(PreprocessConfig::default(), &frame), "saturated");
}

#[test]
fn a_cell_that_leaves_the_frame_is_cropped() {
    for shift in [[-80.0, 0.0], [70.0, 0.0], [0.0, -90.0], [0.0, 75.0]] {
        let mut cell = Cell::square();
        cell.quad.iter_mut().for_each(|p| *p = [p[0] + shift[0], p[1] + shift[1]]);
        assert_eq!(name(PreprocessConfig::default(), &cell.draw()), "cropped", "{shift:?}");
    }
}

#[test]
fn a_blurred_cell_is_blurred_and_a_slightly_soft_one_is_not() {
    let soft = Cell { blur: 1, ..Cell::square() };
    assert_eq!(name(PreprocessConfig::default(), &soft.draw()), "accepted");
    let blurred = Cell { blur: 8, ..Cell::square() };
    assert_eq!(name(PreprocessConfig::default(), &blurred.draw()), "blurred");
    let off = Gates { max_edge_width: None, ..Gates::default() };
    assert_eq!(name(PreprocessConfig { gates: off, ..Default::default() }, &blurred.draw()), "accepted");
    let textured = Gates { min_sharpness: Some(1.0), ..Gates::default() };
    assert_eq!(name(PreprocessConfig { gates: textured, ..Default::default() }, good()), "blurred");
}

#[test]
fn a_cell_below_the_threshold_is_dim() {
    let mut frame = good().clone();
    frame.pixels_mut().iter_mut().for_each(|x| *x /= 5);
    assert_eq!(name(PreprocessConfig::default(), &frame), "dim");
    // Found with Otsu, and then judged by its mean.
    let otsu = |dim_below| PreprocessConfig {
        threshold: Threshold::Otsu,
        gates: Gates { dim_below, ..Gates::default() },
        ..Default::default()
    };
    assert_eq!(name(otsu(Some(0.2)), &frame), "dim");
    assert_eq!(name(otsu(Some(0.05)), &frame), "accepted");
    let mut dark = plain(300, 300, 4);
    dark.pixels_mut()[..4000].fill(12);
    assert_eq!(name(PreprocessConfig::whole_frame(), &dark), "dim");
}

#[test]
fn two_cells_are_several() {
    let frame = rectangles(&[[20, 90, 190, 260], [215, 90, 385, 260]]);
    assert_eq!(name(gates_for_small_cells(), &frame), "several-cells");
    // Too close to be told apart: then the shape is no cell's.
    let frame = rectangles(&[[20, 90, 190, 260], [195, 90, 365, 260]]);
    assert_eq!(name(gates_for_small_cells(), &frame), "odd-shape");
}

#[test]
fn other_shapes_are_named() {
    let disc = |inside: &dyn Fn(f64, f64) -> bool| {
        let mut frame = plain(400, 400, 8);
        for (i, x) in frame.pixels_mut().iter_mut().enumerate() {
            if inside((i % 400) as f64 - 200.0, (i / 400) as f64 - 200.0) {
                *x = 150;
            }
        }
        frame
    };
    let circle = disc(&|x, y| x.hypot(y) < 150.0);
    assert_eq!(name(PreprocessConfig::default(), &circle), "not-quadrilateral");
    let triangle = disc(&|x, y| y < 150.0 && y > -150.0 + 2.0 * x.abs());
    assert_eq!(name(PreprocessConfig::default(), &triangle), "not-quadrilateral");
    assert_eq!(name(PreprocessConfig::default(), &rectangles(&[[20, 90, 380, 290]])), "odd-shape");
    let wide = plain(600, 300, 100);
    assert_ne!(name(PreprocessConfig::whole_frame(), &wide), "accepted");
}

#[test]
fn frames_of_impossible_size_are_named() {
    for config in [PreprocessConfig::default(), PreprocessConfig::whole_frame()] {
        assert_eq!(name(config.clone(), &plain(1, 1, 200)), "frame-too-small");
        assert_eq!(name(config.clone(), &plain(0, 0, 0)), "frame-too-small");
        assert_eq!(name(config.clone(), &plain(2000, 16, 200)), "frame-too-large");
        assert_ne!(name(config, &plain(1024, 16, 200)), "accepted");
    }
}

#[test]
fn one_preprocessor_serves_frames_of_several_sizes_alike() {
    let mut p = Preprocessor::new(gates_for_small_cells(), SIZE, 1024, 1024).unwrap();
    let small = rectangles(&[[60, 70, 330, 340]]);
    let (mut first, mut second) = (vec![0.0; SIZE * SIZE], vec![0.0; SIZE * SIZE]);
    let a = p.run(good(), &mut first).unwrap();
    p.run(&small, &mut second).unwrap();
    let b = p.run(good(), &mut second).unwrap();
    assert_eq!((a, first), (b, second));
}

#[test]
fn rejections_and_configurations_survive_json() {
    let r = run(PreprocessConfig::default(), &plain(1, 1, 0)).unwrap_err();
    let text = serde_json::to_string(&r).unwrap();
    assert!(text.contains("\"reason\":\"frame-too-small\""), "{text}");
    assert_eq!(serde_json::from_str::<Refusal>(&text).unwrap(), r);
    let config = PreprocessConfig { threshold: Threshold::Otsu, ..Default::default() };
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<PreprocessConfig>(&text).unwrap(), config);
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let refused = |config: PreprocessConfig| Preprocessor::new(config, SIZE, 720, 720).err().map(|e| e.to_string());
    let text = refused(PreprocessConfig { inset: f32::NAN, ..Default::default() }).unwrap();
    assert!(text.contains("`inset`"), "{text}");
    let text = refused(PreprocessConfig { threshold: Threshold::Fixed(1.5), ..Default::default() }).unwrap();
    assert!(text.contains("`threshold` is 1.5"), "{text}");
    let gates = Gates { min_aspect: Some(2.0), ..Gates::default() };
    let text = refused(PreprocessConfig { gates, ..Default::default() }).unwrap();
    assert!(text.contains("swap"), "{text}");
    assert!(Preprocessor::new(PreprocessConfig::default(), SIZE, 720, 1 << 20).is_err());
    assert!(Preprocessor::new(PreprocessConfig::default(), 8, 720, 720).is_err());
}
