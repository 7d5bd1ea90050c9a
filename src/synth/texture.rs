//! What a good cell looks like: its grid, the signature of its line, and the texture of its process.

use super::canvas::{Canvas, Layout};
use super::chance::{Chance, Purpose, bell, smooth};
use crate::simd::{Isa, Kernel, Simd};

/// Fingers across the cell, and the share of light that one takes at its middle.
const FINGERS: usize = 78;
const FINGER_DEPTH: f64 = 0.07;

/// Everything about the line that all its cells share; made once from the seed.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub layout: Layout,
    pub busbars: usize,
    /// Brightness of a cell without grid and texture, canvas-sized.
    base: Vec<f32>,
    /// 1 where the canvas shows the cell.
    pub inside: Vec<u8>,
    /// Long waves and clouds: tiles that wrap around, of deviation 1, `1 << tile_bits` a side.
    waves: Vec<f32>,
    pub clouds: Vec<f32>,
    pub tile_bits: u32,
    /// Centres of the transport belts, as shares of the cell's side.
    belts: [f64; 3],
    isa: Isa,
}

/// What of a cell's texture its defects must know, in canvas pixels.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Grid {
    /// By how much the printed grid is off, along x and along y.
    pub shift: (f64, f64),
    /// Where the cell's cloud tile begins.
    pub clouds: (usize, usize),
}

/// The canvas of one good cell being filled; each pixel sees the same operations whatever the instruction set.
struct Weave<'a> {
    line: &'a Line,
    canvas: &'a mut Canvas,
    scratch: &'a mut Scratch,
    /// Of the swirl rings.
    centre: (f32, f32),
    /// Where the tile begins, and how strong it is.
    waves: ((usize, usize), f32),
    clouds: ((usize, usize), f32),
}

impl Kernel for Weave<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Weave { line, canvas, scratch, centre, waves: (waves, wave_amp), clouds: (clouds, cloud_amp) } = self;
        let (layout, side) = (&line.layout, line.layout.side);
        let mask = (1 << line.tile_bits) - 1;
        let (top, foot) = (layout.rim + 0.014 * layout.cell, layout.rim + 0.986 * layout.cell);
        let Scratch { columns, bare_columns, rows, rings, at } = scratch;
        at.resize(side, 0);
        for y in 0..side {
            // Busbars end a little before the cell does.
            let bar = (smooth((y as f64 - top) / (4.0 * layout.unit)) * smooth((foot - y as f64) / (4.0 * layout.unit)))
                as f32;
            let row = rows[y];
            let dy = y as f32 - centre.1;
            let dy2 = dy * dy;
            for (x, at) in at.iter_mut().enumerate() {
                let dx = x as i32 as f32 - centre.0;
                let r = (dx * dx + dy2).sqrt();
                // SAFETY: a distance on a canvas of at most a few thousand pixels. (`as` would be done one by one.)
                *at = unsafe { (2.0 * r).to_int_unchecked::<i32>() };
            }
            let wave_row = &line.waves[((y + waves.1) & mask) << line.tile_bits..][..mask + 1];
            let cloud_row = &line.clouds[((y + clouds.1) & mask) << line.tile_bits..][..mask + 1];
            let base = &line.base[y * side..][..side];
            let out = &mut canvas.gain[y * side..][..side];
            let lines = columns[..side].iter().zip(&bare_columns[..side]).zip(&at[..side]);
            for (x, ((out, &base), ((&column, &bare), &at))) in out.iter_mut().zip(base).zip(lines).enumerate() {
                let ring = rings[at as usize & (RINGS - 1)];
                let texture = wave_amp * wave_row[(x + waves.0) & mask] + cloud_amp * cloud_row[(x + clouds.0) & mask];
                let column = bare + bar * (column - bare);
                *out = base * column * row * (1.0 + texture + ring);
            }
        }
    }
}

/// Buffers for one cell's texture.
#[derive(Clone, Debug, Default)]
pub(super) struct Scratch {
    columns: Vec<f32>,
    bare_columns: Vec<f32>,
    rows: Vec<f32>,
    rings: Vec<f32>,
    /// The entry of `rings` at each pixel of a row.
    at: Vec<i32>,
}

impl Line {
    pub fn new(frame_size: usize, busbars: usize, seed: u64) -> Self {
        let layout = Layout::new(frame_size);
        let mut chance = Chance::new(seed, 0, Purpose::Line);
        let tile_bits = (layout.side as u32).next_power_of_two().trailing_zeros();
        let tile = 1_usize << tile_bits;
        // Lattices in lengths of a 720-pixel frame, whatever the tile's size.
        let nodes = |length: f64| ((tile as f64 / (length * layout.unit)).round() as usize).max(2);
        let waves = field(tile, &[(nodes(300.0), 1.0), (nodes(150.0), 0.45)], &mut chance);
        let clouds =
            field(tile, &[(nodes(64.0), 1.0), (nodes(30.0), 0.7), (nodes(13.0), 0.45), (nodes(6.0), 0.3)], &mut chance);
        let signature = (chance.bits() as usize % tile, chance.bits() as usize % tile);
        let belts = [chance.between(0.15, 0.3), chance.between(0.42, 0.58), chance.between(0.7, 0.85)];
        let side = layout.side;
        let (mut base, mut inside) = (vec![0.0; side * side], vec![0; side * side]);
        for y in 0..side {
            for x in 0..side {
                let (fx, fy) = (x as f64 + 0.5, y as f64 + 0.5);
                let outside = layout.outside(fx, fy);
                let (rx, ry) = ((fx - layout.middle()) / layout.cell, (fy - layout.middle()) / layout.cell);
                let own = f64::from(waves[tile_index(tile_bits, signature, x, y)]);
                let broad = 1.02 - 0.16 * (rx * rx + ry * ry) + 0.025 * own;
                base[y * side + x] = (layout.edge(outside) * broad) as f32;
                inside[y * side + x] = u8::from(outside < 0.0);
            }
        }
        Self { layout, busbars, base, inside, waves, clouds, tile_bits, belts, isa: Isa::detect() }
    }

    /// Middle of busbar `i` on the canvas, before the print's shift.
    pub fn busbar(&self, i: usize) -> f64 {
        self.layout.rim + self.layout.cell * (i as f64 + 0.5) / self.busbars as f64
    }

    /// Distance from finger to finger.
    pub fn pitch(&self) -> f64 {
        self.layout.cell / FINGERS as f64
    }

    /// Fills the canvas with a good cell.
    pub fn weave(&self, canvas: &mut Canvas, scratch: &mut Scratch, chance: &mut Chance) -> Grid {
        let unit = self.layout.unit;
        let mask = (1 << self.tile_bits) - 1;
        let start = |chance: &mut Chance| (chance.bits() as usize & mask, chance.bits() as usize & mask);
        let jitter = 0.9 * unit;
        let shift = (chance.between(-jitter, jitter), chance.between(-jitter, jitter));
        let (waves, clouds) = (start(chance), start(chance));
        let wave_amp = chance.between(0.012, 0.038) as f32;
        let cloud_amp = (chance.between(0.005, 0.016) + if chance.with(0.12) { 0.014 } else { 0.0 }) as f32;
        self.profiles(scratch, shift, chance);
        let centre = self.rings(&mut scratch.rings, chance);
        self.isa.run(Weave {
            line: self,
            canvas,
            scratch,
            centre,
            waves: (waves, wave_amp),
            clouds: (clouds, cloud_amp),
        });
        self.harmless(canvas, chance);
        Grid { shift, clouds }
    }

    /// Brightness by column (busbars, their bright sides, belts) and by row (fingers).
    fn profiles(&self, scratch: &mut Scratch, shift: (f64, f64), chance: &mut Chance) {
        let (side, unit) = (self.layout.side, self.layout.unit);
        let belt_amp = chance.between(-0.006, 0.034);
        let belt_shift = chance.between(-0.004, 0.004);
        let spread = self.layout.cell / self.busbars.max(1) as f64;
        scratch.columns.clear();
        scratch.bare_columns.clear();
        scratch.rows.clear();
        for x in 0..side {
            let at = x as f64 + 0.5;
            let mut belt = 0.0;
            for b in self.belts {
                let t = ((at - self.layout.rim) / self.layout.cell - b - belt_shift) / 0.028;
                belt += belt_amp * (smooth(1.4 - t.abs()) - 0.6 * smooth(1.2 - (t / 0.35).abs()));
            }
            let nearest =
                (0..self.busbars).map(|i| (at - shift.0 - self.busbar(i)).abs()).fold(f64::INFINITY, f64::min);
            let bright = 0.97 + 0.11 * bell(nearest / (0.13 * spread));
            let core = 0.84 * smooth(1.3 - 0.8 * nearest / (2.0 * unit));
            scratch.bare_columns.push((1.0 - belt) as f32);
            scratch.columns.push(((1.0 - belt) * bright * (1.0 - core)) as f32);
        }
        let pitch = self.pitch();
        // Fingers finer than three pixels apart would only give moiré.
        let depth = FINGER_DEPTH * smooth((pitch - 2.0) / 2.0);
        for y in 0..side {
            let at = (y as f64 + 0.5 - shift.1 - self.layout.rim) / pitch;
            let off = (at - at.floor() - 0.5).abs() * pitch;
            scratch.rows.push((1.0 - depth * smooth(1.5 - off / (1.1 * unit))) as f32);
        }
    }

    /// A profile of swirl rings by twice the distance from their centre, which is returned.
    fn rings(&self, rings: &mut Vec<f32>, chance: &mut Chance) -> (f32, f32) {
        let unit = self.layout.unit;
        let strong = chance.with(0.35);
        let amp = if strong { chance.between(0.012, 0.032) } else { chance.between(0.0, 0.007) };
        rings.clear();
        rings.resize(RINGS, 0.0);
        // Smooth steps between random heights, closer together further out as in a pulled crystal.
        let (mut at, mut from) = (0.0, chance.between(-1.0, 1.0));
        while (at as usize) < RINGS {
            let gap = 2.0 * unit * chance.between(9.0, 30.0) / (1.0 + at / RINGS as f64);
            let to = chance.between(-1.0, 1.0);
            let (first, end) = (at as usize, ((at + gap) as usize).min(RINGS - 1));
            for (i, ring) in rings.iter_mut().enumerate().take(end + 1).skip(first) {
                *ring = (amp * (from + (to - from) * smooth((i as f64 - at) / gap))) as f32;
            }
            (at, from) = (at + gap, to);
        }
        let off = 0.05 * self.layout.cell;
        let middle = self.layout.middle();
        ((middle + chance.between(-off, off)) as f32, (middle + chance.between(-off, off)) as f32)
    }

    /// The small dots and smudges that more than nine in ten good cells carry.
    fn harmless(&self, canvas: &mut Canvas, chance: &mut Chance) {
        if chance.with(0.08) {
            return;
        }
        let unit = self.layout.unit;
        let (near, far) = (self.layout.rim + 0.03 * self.layout.cell, self.layout.rim + 0.97 * self.layout.cell);
        for _ in 0..chance.count(1, 7) {
            let (x, y) = (chance.between(near, far), chance.between(near, far));
            let black = chance.with(0.3);
            let radius = unit * if black { chance.between(0.7, 1.5) } else { chance.between(0.9, 2.6) };
            let depth = if black { chance.between(0.3, 0.6) } else { chance.between(0.06, 0.22) };
            canvas.dot(x, y, radius, depth);
        }
        if chance.with(0.2) {
            for _ in 0..chance.count(1, 2) {
                let (x, y) = (chance.between(near, far), chance.between(near, far));
                canvas.dot(x, y, unit * chance.between(9.0, 26.0), chance.between(0.015, 0.045));
            }
        }
        canvas.settle(None, &self.inside);
    }

    /// The cell's cloud texture at a canvas pixel, of deviation 1.
    pub fn cloud(&self, grid: &Grid, x: f64, y: f64) -> f64 {
        f64::from(self.clouds[tile_index(self.tile_bits, grid.clouds, x as usize, y as usize)])
    }

    /// The long waves at a place that wraps around, of deviation 1.
    pub fn wave(&self, x: f64, y: f64) -> f64 {
        f64::from(self.waves[tile_index(self.tile_bits, (0, 0), x as usize, y as usize)])
    }
}

/// Entries of the ring profile: a power of two, past which rings repeat.
const RINGS: usize = 4096;

fn tile_index(bits: u32, start: (usize, usize), x: usize, y: usize) -> usize {
    let mask = (1 << bits) - 1;
    (((y + start.1) & mask) << bits) + ((x + start.0) & mask)
}

/// A `side`² field that wraps around, of mean 0 and deviation 1: a sum of smooth noise, each given as nodes a side and
/// weight. Between the nodes it is a cubic B-spline.
fn field(side: usize, octaves: &[(usize, f32)], chance: &mut Chance) -> Vec<f32> {
    let mut sum = vec![0.0_f32; side * side];
    for &(nodes, weight) in octaves {
        let lattice: Vec<f32> = (0..nodes * nodes).map(|_| weight * chance.normal() as f32).collect();
        let taps: Vec<([usize; 4], [f32; 4])> = (0..side)
            .map(|i| {
                let at = (i as f64 + 0.5) * nodes as f64 / side as f64;
                let (node, t) = (at as usize, at - at.floor());
                let s = 1.0 - t;
                let weights = [
                    s * s * s / 6.0,
                    (4.0 - 6.0 * t * t + 3.0 * t * t * t) / 6.0,
                    (4.0 - 6.0 * s * s + 3.0 * s * s * s) / 6.0,
                    t * t * t / 6.0,
                ];
                ([0, 1, 2, 3].map(|k| (node + nodes + k - 1) % nodes), weights.map(|w| w as f32))
            })
            .collect();
        let mut line = vec![0.0_f32; nodes];
        for (y, (at, w)) in taps.iter().enumerate() {
            for (i, v) in line.iter_mut().enumerate() {
                *v = (0..4).map(|k| w[k] * lattice[at[k] * nodes + i]).sum();
            }
            for (out, (at, w)) in sum[y * side..][..side].iter_mut().zip(&taps) {
                *out += w[0] * line[at[0]] + w[1] * line[at[1]] + w[2] * line[at[2]] + w[3] * line[at[3]];
            }
        }
    }
    let n = (side * side) as f64;
    let mean = sum.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let variance = sum.iter().map(|&v| (f64::from(v) - mean) * (f64::from(v) - mean)).sum::<f64>() / n;
    let scale = 1.0 / variance.sqrt().max(1e-9);
    for v in &mut sum {
        *v = ((f64::from(*v) - mean) * scale) as f32;
    }
    sum
}
