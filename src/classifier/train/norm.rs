//! Batch norm, with what comes after it: ReLU, the shortcut's sum, or the stem's maximum.
//!
//! Sums over a batch are made image by image and joined in their order, so that they don't depend on the threads: mean and
//! squared deviations of each image (its map is in cache when it is read again), joined in f64 as Chan et al. 1979 do.

use crate::backbone::cpu::memory::{Layout, Memory};
use crate::backbone::weights::fold::BN_EPSILON;
use crate::classifier::network::{GROUP, Place};
use crate::simd::Simd;

use super::share::{Context, Map, Work};

/// How much of a batch's statistics goes into the running ones.
const MOMENTUM: f32 = 0.1;

/// A batch norm. Its normalised output is `z · scale + shift`.
#[derive(Debug)]
pub(super) struct Norm {
    channels: usize,
    place: Place,
    /// In the arena, `channels` each: what follows.
    mean: usize,
    variance: usize,
    scale: usize,
    shift: usize,
    /// The gradient of z is `g · scale + z · slope + level`.
    slope: usize,
    level: usize,
    /// Sums of an image, two for each channel, image after image; shared by all norms.
    partial: usize,
}

/// Floats of [`Norm`]'s partial sums.
pub(super) fn partial_sums(batch: usize, channels: usize) -> usize {
    batch * 2 * channels
}

/// What is known of a batch norm before a forward pass.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Normalises by the batch's own statistics.
    Batch,
    /// As [`Mode::Batch`], but gain and shift are set so that the output is `z + bias` where the shift held the bias.
    Match,
    /// Normalises by the running statistics.
    Running,
}

impl Norm {
    pub(super) fn new(layout: &mut Layout, place: &Place, partial: usize) -> Self {
        let channels = place.shape.outputs;
        let [mean, variance, scale, shift, slope, level] = std::array::from_fn(|_| layout.reserve(channels));
        Self { channels, place: place.clone(), mean, variance, scale, shift, slope, level, partial }
    }

    /// Numbers of the arena, one a channel.
    ///
    /// # Safety
    /// `at` must be one of this norm's; nobody else may use it meanwhile.
    #[allow(clippy::mut_from_ref)]
    unsafe fn numbers<'a>(&self, memory: Memory, at: usize) -> &'a mut [f32] {
        // SAFETY: as the caller promised.
        unsafe { std::slice::from_raw_parts_mut(memory.at(at), self.channels) }
    }

    /// Finds scale and shift for `z`.
    ///
    /// # Safety
    /// The map must lie in the arena; nobody else may use the arena, nor in [`Mode::Match`] the parameters.
    pub(super) unsafe fn prepare(&self, context: &Context<'_>, z: Map, mode: Mode, running: &[f32]) {
        let arena = context.arena;
        // SAFETY: each place is this norm's own; the rest as the caller promised.
        unsafe {
            let (mean, variance) = (self.numbers(arena, self.mean), self.numbers(arena, self.variance));
            if mode == Mode::Running {
                mean.copy_from_slice(&running[self.place.mean..][..self.channels]);
                variance.copy_from_slice(&running[self.place.variance..][..self.channels]);
            } else {
                context.share(z.batch, &Statistics { arena, map: z, partial: self.partial });
                let each = (z.side * z.side) as f64;
                for c in 0..self.channels {
                    let of = |b: usize, part| f64::from(*arena.at(self.partial + (2 * b + part) * self.channels + c));
                    let whole = (0..z.batch).map(|b| of(b, 0)).sum::<f64>() / z.batch as f64;
                    let squares: f64 = (0..z.batch).map(|b| of(b, 1) + each * (of(b, 0) - whole).powi(2)).sum();
                    mean[c] = whole as f32;
                    variance[c] = (squares / (each * z.batch as f64)) as f32;
                }
            }
            let gamma = self.numbers(context.parameters, self.place.gamma);
            let beta = self.numbers(context.parameters, self.place.beta);
            let (scale, shift) = (self.numbers(arena, self.scale), self.numbers(arena, self.shift));
            for c in 0..self.channels {
                let deviation = (f64::from(variance[c]) + BN_EPSILON).sqrt();
                if mode == Mode::Match {
                    gamma[c] = deviation as f32;
                    beta[c] += mean[c];
                }
                let gain = f64::from(gamma[c]) / deviation;
                scale[c] = gain as f32;
                shift[c] = (f64::from(beta[c]) - f64::from(mean[c]) * gain) as f32;
            }
        }
    }

    /// Moves the running statistics towards those of the last batch of `count` values a channel; or, with `whole`, sets
    /// them.
    ///
    /// # Safety
    /// Nobody else may use the arena.
    pub(super) unsafe fn update(&self, arena: Memory, count: usize, whole: bool, running: &mut [f32]) {
        let step = if whole { 1.0 } else { MOMENTUM };
        let unbiased = count as f32 / (count as f32 - 1.0).max(1.0);
        // SAFETY: as the caller promised.
        unsafe {
            for (at, from, factor) in
                [(self.place.mean, self.mean, 1.0), (self.place.variance, self.variance, unbiased)]
            {
                for (r, x) in running[at..][..self.channels].iter_mut().zip(self.numbers(arena, from)) {
                    *r += step * (factor * *x - *r);
                }
            }
        }
    }

    /// y = max(z · scale + shift + shortcut, 0).
    ///
    /// # Safety
    /// [`Norm::prepare`] must have gone before; maps and arena as there.
    pub(super) unsafe fn apply(&self, context: &Context<'_>, z: Map, shortcut: Shortcut<'_>, y: Map) {
        // SAFETY: items are images; the rest as the caller promised.
        unsafe { context.share(z.batch, &Apply { norm: self, arena: context.arena, z, shortcut, y }) };
    }

    /// From the gradient `g` of the output (after its ReLU's mask, which is `y > 0` where there is a `y`; `g` is masked in
    /// place) those of gain and shift, and that of z, which takes the place of z.
    ///
    /// # Safety
    /// [`Norm::prepare`] must have gone before; maps and arena as there.
    pub(super) unsafe fn backward(&self, context: &Context<'_>, g: Map, y: Option<Map>, z: Map) {
        let arena = context.arena;
        // SAFETY: each place is this norm's own; items are images; the rest as the caller promised.
        unsafe {
            context.share(z.batch, &Sums { norm: self, arena, g, y, z });
            let count = z.pixels() as f64;
            let (mean, variance) = (self.numbers(arena, self.mean), self.numbers(arena, self.variance));
            let scale = self.numbers(arena, self.scale);
            let (slope, level) = (self.numbers(arena, self.slope), self.numbers(arena, self.level));
            let gamma = self.numbers(context.gradients, self.place.gamma);
            let beta = self.numbers(context.gradients, self.place.beta);
            for c in 0..self.channels {
                let sum = |part: usize| {
                    let of = |b: usize| f64::from(*arena.at(self.partial + (2 * b + part) * self.channels + c));
                    (0..z.batch).map(of).sum::<f64>()
                };
                let (all, along) = (sum(0), sum(1));
                let inverse = 1.0 / (f64::from(variance[c]) + BN_EPSILON);
                gamma[c] = (along * inverse.sqrt()) as f32;
                beta[c] = all as f32;
                let (gain, mean) = (f64::from(scale[c]), f64::from(mean[c]));
                let steep = gain * inverse * along / count;
                slope[c] = -steep as f32;
                level[c] = (steep * mean - gain * all / count) as f32;
            }
            context.share(z.batch, &Gradient { norm: self, arena, g, z });
        }
    }
}

/// Mean and squared deviations of each channel of an image.
struct Statistics {
    arena: Memory,
    map: Map,
    partial: usize,
}

/// Vectors that a group of channels takes: 4 of 16 lanes, at most that many at a time.
const WIDE: usize = 4;

impl Work for Statistics {
    #[inline(always)]
    unsafe fn item<S: Simd>(&self, b: usize, _: usize) {
        let Self { arena, map, partial } = *self;
        let channels = map.channels;
        for first in (0..channels).step_by(WIDE * S::LANES) {
            // SAFETY: the image is only read, its partial sums are nobody else's.
            unsafe {
                let share = S::splat(1.0 / (map.side * map.side) as f32);
                let to = arena.at(partial + 2 * b * channels + first);
                let mut mean = [S::splat(0.0); WIDE];
                for y in 0..map.side {
                    let row = arena.at(map.pixel(b, y, 0) + first).cast_const();
                    for x in 0..map.side {
                        let z: [S::V; WIDE] = load::<S>(row.wrapping_add(x * channels));
                        mean = std::array::from_fn(|n| S::add(mean[n], z[n]));
                    }
                }
                mean = mean.map(|sum| S::mul(sum, share));
                let mut squares = [S::splat(0.0); WIDE];
                for y in 0..map.side {
                    let row = arena.at(map.pixel(b, y, 0) + first).cast_const();
                    for x in 0..map.side {
                        let z: [S::V; WIDE] = load::<S>(row.wrapping_add(x * channels));
                        let off: [S::V; WIDE] = std::array::from_fn(|n| S::sub(z[n], mean[n]));
                        squares = std::array::from_fn(|n| S::fma(off[n], off[n], squares[n]));
                    }
                }
                for n in 0..WIDE {
                    S::store(to.add(n * S::LANES), mean[n]);
                    S::store(to.add(channels + n * S::LANES), squares[n]);
                }
            }
        }
    }
}

/// [`WIDE`] vectors from `p` on.
///
/// # Safety
/// They must be readable, and the CPU have `S`.
#[inline(always)]
unsafe fn load<S: Simd>(p: *const f32) -> [S::V; WIDE] {
    // SAFETY: as the caller promised.
    std::array::from_fn(|n| unsafe { S::load(p.wrapping_add(n * S::LANES)) })
}

/// What is added before the ReLU.
#[derive(Clone, Copy)]
pub(super) enum Shortcut<'a> {
    None,
    /// A map as it is.
    Map(Map),
    /// A map to be normalised.
    Norm(&'a Norm, Map),
}

struct Apply<'a> {
    norm: &'a Norm,
    arena: Memory,
    z: Map,
    shortcut: Shortcut<'a>,
    y: Map,
}

impl Work for Apply<'_> {
    #[inline(always)]
    unsafe fn item<S: Simd>(&self, b: usize, _: usize) {
        let Self { norm, arena, z, shortcut, y } = *self;
        // SAFETY: the image of `y` is nobody else's, all else is only read.
        unsafe {
            let (scale, shift) = (norm.numbers(arena, norm.scale), norm.numbers(arena, norm.shift));
            for row in 0..z.side {
                let (from, to) = (z.line(arena, b, row), y.line_mut(arena, b, row));
                let pixels = from.chunks_exact(norm.channels).zip(to.chunks_exact_mut(norm.channels));
                match shortcut {
                    Shortcut::None => {
                        for (z, y) in pixels {
                            for (((y, z), s), t) in y.iter_mut().zip(z).zip(&*scale).zip(&*shift) {
                                *y = relu(z * s + t);
                            }
                        }
                    }
                    Shortcut::Map(map) => {
                        let other = map.line(arena, b, row).chunks_exact(norm.channels);
                        for ((z, y), x) in pixels.zip(other) {
                            for ((((y, z), s), t), x) in y.iter_mut().zip(z).zip(&*scale).zip(&*shift).zip(x) {
                                *y = relu(z * s + t + x);
                            }
                        }
                    }
                    Shortcut::Norm(other, map) => {
                        let gain = other.numbers(arena, other.scale);
                        let level = other.numbers(arena, other.shift);
                        let more = map.line(arena, b, row).chunks_exact(norm.channels);
                        for ((z, y), x) in pixels.zip(more) {
                            let first = y.iter_mut().zip(z).zip(&*scale).zip(&*shift);
                            for ((((y, z), s), t), ((x, u), v)) in first.zip(x.iter().zip(&*gain).zip(&*level)) {
                                *y = relu(z * s + t + (x * u + v));
                            }
                        }
                    }
                }
            }
        }
    }
}

/// max(x, 0) that lets a NaN through.
#[inline(always)]
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// Masks an image's gradient and sums it, alone and times z − mean.
struct Sums<'a> {
    norm: &'a Norm,
    arena: Memory,
    g: Map,
    y: Option<Map>,
    z: Map,
}

impl Work for Sums<'_> {
    #[inline(always)]
    unsafe fn item<S: Simd>(&self, b: usize, _: usize) {
        let Self { norm, arena, g, y, z } = *self;
        let channels = norm.channels;
        // SAFETY: the image of `g` and its partial sums are nobody else's, all else is only read.
        unsafe {
            if let Some(y) = y {
                for row in 0..z.side {
                    let (g, y) = (g.line_mut(arena, b, row), y.line(arena, b, row));
                    g.iter_mut().zip(y).for_each(|(g, &y)| *g = if y > 0.0 { *g } else { 0.0 });
                }
            }
            for first in (0..channels).step_by(WIDE * S::LANES) {
                let mean = load::<S>(arena.at(norm.mean + first));
                let (mut all, mut along) = ([S::splat(0.0); WIDE], [S::splat(0.0); WIDE]);
                for row in 0..z.side {
                    let from = arena.at(g.pixel(b, row, 0) + first).cast_const();
                    let beside = arena.at(z.pixel(b, row, 0) + first).cast_const();
                    for x in 0..z.side {
                        let g = load::<S>(from.wrapping_add(x * channels));
                        let z = load::<S>(beside.wrapping_add(x * channels));
                        all = std::array::from_fn(|n| S::add(all[n], g[n]));
                        along = std::array::from_fn(|n| S::fma(g[n], S::sub(z[n], mean[n]), along[n]));
                    }
                }
                let to = arena.at(norm.partial + 2 * b * channels + first);
                for n in 0..WIDE {
                    S::store(to.add(n * S::LANES), all[n]);
                    S::store(to.add(channels + n * S::LANES), along[n]);
                }
            }
        }
    }
}

/// z becomes its gradient.
struct Gradient<'a> {
    norm: &'a Norm,
    arena: Memory,
    g: Map,
    z: Map,
}

impl Work for Gradient<'_> {
    #[inline(always)]
    unsafe fn item<S: Simd>(&self, b: usize, _: usize) {
        let Self { norm, arena, g, z } = *self;
        // SAFETY: the image of `z` is nobody else's, all else is only read.
        unsafe {
            let scale = norm.numbers(arena, norm.scale);
            let (slope, level) = (norm.numbers(arena, norm.slope), norm.numbers(arena, norm.level));
            for row in 0..z.side {
                let (g, z) = (g.line(arena, b, row), z.line_mut(arena, b, row));
                for (g, z) in g.chunks_exact(norm.channels).zip(z.chunks_exact_mut(norm.channels)) {
                    let numbers = scale.iter().zip(&*slope).zip(&*level);
                    for ((z, g), ((s, t), u)) in z.iter_mut().zip(g).zip(numbers) {
                        *z = g * s + (*z * t + u);
                    }
                }
            }
        }
    }
}

/// The stem's maximum over 3×3 with stride 2 of max(z · scale + shift, 0), and which of the nine it was.
#[derive(Debug)]
pub(super) struct Pool {
    /// In the arena, a byte for each value of the pooled map: the tap, or 9 where nothing is above zero.
    taps: usize,
}

const NO_TAP: u8 = 9;

impl Pool {
    pub(super) fn new(layout: &mut Layout, y: Map) -> Self {
        Self { taps: layout.reserve((y.pixels() * y.channels).div_ceil(4)) }
    }

    /// # Safety
    /// [`Norm::prepare`] must have gone before with `z`; the maps must lie in the arena.
    pub(super) unsafe fn forward(&self, context: &Context<'_>, norm: &Norm, z: Map, y: Map) {
        // SAFETY: items are images; the rest as the caller promised.
        unsafe { context.share(z.batch, &Maximum { pool: self, norm, arena: context.arena, z, y }) };
    }

    /// The gradient of what the maximum was taken of, ReLU and all: `g`, from that of the pooled map, `dy`.
    ///
    /// # Safety
    /// [`Pool::forward`] must have gone before; the maps must lie in the arena.
    pub(super) unsafe fn backward(&self, context: &Context<'_>, dy: Map, g: Map) {
        // SAFETY: items are images; the rest as the caller promised.
        unsafe { context.share(g.batch, &Spread { pool: self, arena: context.arena, dy, g }) };
    }

    /// The taps of pixel (`row`, `x`) of image `b`.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    unsafe fn taps<'a>(&self, arena: Memory, y: &Map, b: usize, row: usize, x: usize) -> &'a mut [u8; GROUP] {
        // SAFETY: the arena has a byte for each value; the caller has the image for itself.
        unsafe { &mut *arena.at(self.taps).cast::<u8>().add(((b * y.side + row) * y.side + x) * GROUP).cast() }
    }
}

struct Maximum<'a> {
    pool: &'a Pool,
    norm: &'a Norm,
    arena: Memory,
    z: Map,
    y: Map,
}

/// Whether tap `tap` of an output at (`row`, `x`) lies inside a map of `side` pixels, and where.
#[inline(always)]
fn tap_at(tap: usize, row: usize, x: usize, side: usize) -> Option<(usize, usize)> {
    let (row, x) = ((2 * row + tap / 3).wrapping_sub(1), (2 * x + tap % 3).wrapping_sub(1));
    (row < side && x < side).then_some((row, x))
}

impl Work for Maximum<'_> {
    #[inline(always)]
    unsafe fn item<S: Simd>(&self, b: usize, _: usize) {
        let Self { pool, norm, arena, z, y } = *self;
        debug_assert_eq!(norm.channels, GROUP);
        // SAFETY: the image of `y` and its taps are nobody else's, all else is only read.
        unsafe {
            let scale: &[f32; GROUP] = &*arena.at(norm.scale).cast();
            let shift: &[f32; GROUP] = &*arena.at(norm.shift).cast();
            for (row, x) in (0..y.side * y.side).map(|p| (p / y.side, p % y.side)) {
                let (mut best, mut taps) = ([0.0; GROUP], [NO_TAP; GROUP]);
                for tap in 0..9 {
                    let Some((row, x)) = tap_at(tap, row, x, z.side) else { continue };
                    let z: &[f32; GROUP] = &*arena.at(z.pixel(b, row, x)).cast();
                    for c in 0..GROUP {
                        let value = z[c] * scale[c] + shift[c];
                        // A NaN must come through: it is not below anything.
                        let below = value <= best[c];
                        best[c] = if below { best[c] } else { value };
                        taps[c] = if below { taps[c] } else { tap as u8 };
                    }
                }
                *arena.at(y.pixel(b, row, x)).cast::<[f32; GROUP]>() = best;
                *pool.taps(arena, &y, b, row, x) = taps;
            }
        }
    }
}

struct Spread<'a> {
    pool: &'a Pool,
    arena: Memory,
    dy: Map,
    g: Map,
}

impl Work for Spread<'_> {
    #[inline(always)]
    unsafe fn item<S: Simd>(&self, b: usize, _: usize) {
        let Self { pool, arena, dy, g } = *self;
        // SAFETY: the image of `g` is nobody else's, all else is only read.
        unsafe {
            for row in 0..g.side {
                g.line_mut(arena, b, row).fill(0.0);
            }
            for (row, x) in (0..dy.side * dy.side).map(|p| (p / dy.side, p % dy.side)) {
                let dy_here: &[f32; GROUP] = &*arena.at(dy.pixel(b, row, x)).cast();
                let taps = pool.taps(arena, &dy, b, row, x);
                for tap in 0..9 {
                    let Some((row, x)) = tap_at(tap, row, x, g.side) else { continue };
                    let g: &mut [f32; GROUP] = &mut *arena.at(g.pixel(b, row, x)).cast();
                    for c in 0..GROUP {
                        g[c] += if taps[c] == tap as u8 { dy_here[c] } else { 0.0 };
                    }
                }
            }
        }
    }
}
