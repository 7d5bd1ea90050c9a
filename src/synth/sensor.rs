//! The camera: projection, vignetting, dark offset, shot and read noise, quantisation.

use super::canvas::Canvas;
use super::chance::{Chance, Purpose};
use super::kind::PixelBox;
use super::pose::Pose;
use crate::frame::Frame;
use crate::simd::{Isa, Kernel, Simd};

/// Full-scale electrons and read noise of a cooled silicon camera.
const FULL_WELL: f32 = 18_000.0;
const READ_NOISE: f32 = 0.0022;
const NOISE_BITS: u32 = 12;

/// The camera of a line; made once from the seed.
#[derive(Clone, Debug)]
pub(super) struct Sensor {
    /// Normal numbers, to be drawn by a hash of the pixel.
    noise: Vec<f32>,
    /// Scale of all noise; 1 is the camera's own.
    pub level: f32,
    /// Signal in the dark, as a share of full scale.
    pub dark: f32,
    /// Share of light lost in the frame's corners.
    pub vignette: f32,
    isa: Isa,
}

impl Sensor {
    pub fn new(seed: u64, level: f32, dark: f32, vignette: f32) -> Self {
        let mut chance = Chance::new(seed, 0, Purpose::Sensor);
        Self {
            noise: (0..1 << NOISE_BITS).map(|_| chance.normal() as f32).collect(),
            level,
            dark,
            vignette,
            isa: Isa::detect(),
        }
    }

    /// Takes the picture: `light` is the brightness of a gain of 1 as a share of full scale.
    pub fn expose(&self, canvas: &Canvas, pose: &Pose, light: f32, noise_seed: u32, frame: &mut Frame) {
        self.isa.run(Exposure { sensor: self, canvas, pose, light, noise_seed, frame });
    }

    /// Projects the canvas's defect numbers into `mask` (frame-sized, all 0): a pixel becomes what `hit` makes of the
    /// defect's number and the pixel's column and row.
    pub fn project(
        &self,
        canvas: &Canvas,
        pose: &Pose,
        width: usize,
        mask: &mut [u8],
        mut hit: impl FnMut(u8, usize, usize) -> u8,
    ) {
        let last = (canvas.side - 2) as f64;
        for (y, row) in mask.chunks_exact_mut(width.max(1)).enumerate() {
            let mut walk = Walk::new(pose, y);
            for (x, out) in row.iter_mut().enumerate() {
                let (u, v) = walk.next();
                if u >= 0.0 && v >= 0.0 && u < last && v < last {
                    let (iu, iv) = (u as i32 as usize, v as i32 as usize);
                    let (fu, fv) = (u - iu as f64, v - iv as f64);
                    let at = iv * canvas.side + iu;
                    // A defect owns the pixel that takes a fifth of its light from it, so that thin lines stay whole.
                    let shares = [
                        ((1.0 - fu) * (1.0 - fv), at),
                        (fu * (1.0 - fv), at + 1),
                        ((1.0 - fu) * fv, at + canvas.side),
                        (fu * fv, at + canvas.side + 1),
                    ];
                    let owner = shares.iter().map(|&(w, at)| if w >= 0.2 { canvas.owner[at] } else { 0 }).max();
                    if let Some(owner @ 1..) = owner {
                        *out = hit(owner, x, y);
                    }
                }
            }
        }
    }
}

/// One picture being taken. Rows are worked on in pieces that fit the registers' reach, in three loops of which the
/// first and the last turn into vector instructions; each pixel sees the same operations in the same order whatever the
/// instruction set, and Rust fuses none of them.
struct Exposure<'a> {
    sensor: &'a Sensor,
    canvas: &'a Canvas,
    pose: &'a Pose,
    light: f32,
    noise_seed: u32,
    frame: &'a mut Frame,
}

/// Pixels in a piece of a row.
const PIECE: usize = 128;

impl Kernel for Exposure<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Exposure { sensor, canvas, pose, light, noise_seed, frame } = self;
        let (width, height, white) = (frame.width(), frame.height(), f32::from(frame.white()));
        let (cx, cy) = (width as f32 / 2.0, height as f32 / 2.0);
        let fall = sensor.vignette / (cx * cx + cy * cy);
        let (read2, shot) =
            ((READ_NOISE * sensor.level) * (READ_NOISE * sensor.level), sensor.level * sensor.level / FULL_WELL);
        let (side, last) = (canvas.side, (canvas.side - 2) as f64);
        let mut at = [0_u32; PIECE];
        let (mut fu, mut fv) = ([0.0_f32; PIECE], [0.0_f32; PIECE]);
        let (mut gain, mut noise) = ([0.0_f32; PIECE], [0.0_f32; PIECE]);
        for (y, row) in frame.pixels_mut().chunks_exact_mut(width.max(1)).enumerate() {
            let dy = y as f32 + 0.5 - cy;
            let walk = Walk::new(pose, y);
            let row_seed = mix(noise_seed ^ (y as u32).wrapping_mul(0x9E37_79B9));
            for (piece, row) in row.chunks_mut(PIECE).enumerate() {
                let first = piece * PIECE;
                for i in 0..PIECE {
                    let (u, v) = walk.at((first + i) as i32);
                    let inside = u >= 0.0 && v >= 0.0 && u < last && v < last;
                    let (u, v) = if inside { (u, v) } else { (0.0, 0.0) };
                    // SAFETY: both are finite, from 0 to less than the canvas's side. (`as` would be done one by one.)
                    let (iu, iv) = unsafe { (u.to_int_unchecked::<i32>(), v.to_int_unchecked::<i32>()) };
                    (fu[i], fv[i]) = ((u - f64::from(iu)) as f32, (v - f64::from(iv)) as f32);
                    at[i] = if inside { (iv * side as i32 + iu) as u32 } else { OUTSIDE };
                }
                for i in 0..row.len() {
                    let hash = (row_seed ^ (first + i) as u32).wrapping_mul(0x85EB_CA6B);
                    let hash = (hash ^ (hash >> 15)).wrapping_mul(0xC2B2_AE35);
                    noise[i] = sensor.noise[(hash >> (32 - NOISE_BITS)) as usize & ((1 << NOISE_BITS) - 1)];
                    gain[i] = if at[i] == OUTSIDE {
                        0.001
                    } else {
                        let at = at[i] as usize;
                        let taps = &canvas.gain[at..at + side + 2];
                        let a = taps[0] + fu[i] * (taps[1] - taps[0]);
                        let b = taps[side] + fu[i] * (taps[side + 1] - taps[side]);
                        a + fv[i] * (b - a)
                    };
                }
                for (i, out) in row.iter_mut().enumerate() {
                    let dx = (first + i) as i32 as f32 + 0.5 - cx;
                    let signal = sensor.dark + light * gain[i] * (1.0 - fall * (dx * dx + dy * dy));
                    let value = signal + noise[i] * (read2 + shot * signal).sqrt();
                    // `max` turns what is not a number to 0.
                    let value = (value * white + 0.5).max(0.0).min(white);
                    // SAFETY: it lies from 0 to `white`.
                    *out = unsafe { value.to_int_unchecked::<i32>() } as u16;
                }
            }
        }
    }
}

/// The index of a canvas pixel that there is none of.
const OUTSIDE: u32 = u32::MAX;

/// Canvas coordinates, counted from the middle of the first canvas pixel, of the middles of a row's frame pixels.
struct Walk {
    x: i32,
    row: [f64; 3],
    step: [f64; 3],
}

impl Walk {
    fn new(pose: &Pose, y: usize) -> Self {
        let m = &pose.to_canvas;
        let y = y as f64 + 0.5;
        Self { x: 0, row: [m[1] * y + m[2], m[4] * y + m[5], m[7] * y + m[8]], step: [m[0], m[3], m[6]] }
    }

    fn next(&mut self) -> (f64, f64) {
        self.x += 1;
        self.at(self.x - 1)
    }

    /// Of the row's pixel `x`.
    #[inline(always)]
    fn at(&self, x: i32) -> (f64, f64) {
        let x = f64::from(x) + 0.5;
        let w = 1.0 / (self.row[2] + self.step[2] * x);
        ((self.row[0] + self.step[0] * x) * w - 0.5, (self.row[1] + self.step[1] * x) * w - 0.5)
    }
}

/// Scatters the bits of a number.
fn mix(x: u32) -> u32 {
    let x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D);
    let x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
    x ^ (x >> 16)
}

/// Grows a box to hold a pixel; `width` 0 is the empty box.
pub(super) fn grow(b: &mut PixelBox, x: usize, y: usize) {
    if b.width == 0 {
        *b = PixelBox { x, y, width: 1, height: 1 };
        return;
    }
    let (right, foot) = ((b.x + b.width).max(x + 1), (b.y + b.height).max(y + 1));
    (b.x, b.y) = (b.x.min(x), b.y.min(y));
    (b.width, b.height) = (right - b.x, foot - b.y);
}
