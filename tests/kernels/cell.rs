//! A cell, its statistics, and what the kernels make of them.

use std::sync::Arc;

use cellgate::backbone::{Pyramid, STAGE_CHANNELS};
use cellgate::embedding::projection::CHANNELS;
use cellgate::embedding::{Embedder, Embedding, Mixing, Projection, Stages};
use cellgate::gaussian::factors::{OwnedFactors, OwnedStatistics, position_stride};
use cellgate::gaussian::{Accumulator, Precision, Shrinkage};
use cellgate::simd::Isa;
use cellgate::workers::Workers;
use half::f16;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::{Kernels, Memory, ORDERS, Shape};
use crate::arguments;

/// From 0 to 1.
pub fn uniform(rng: &mut ChaCha8Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 / (1 << 24) as f32
}

/// For comparisons to the last bit.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Runs a kernel in every order of its threads; `run` gives its result, which must be the same.
pub fn in_every_order<T: PartialEq + std::fmt::Debug>(mut run: impl FnMut(u32) -> T) -> T {
    let results = ORDERS.map(&mut run);
    assert!(results.iter().all(|r| *r == results[0]), "the result depends on the order of the threads");
    let [first, ..] = results;
    first
}

/// A number as the maps hold it.
pub trait Element: bytemuck::Pod {
    const NAME: &'static str;
    fn of(value: f64) -> Self;
}

impl Element for f16 {
    const NAME: &'static str = "half";
    fn of(value: f64) -> Self {
        f16::from_f64(value)
    }
}

impl Element for f32 {
    const NAME: &'static str = "float";
    fn of(value: f64) -> Self {
        value as f32
    }
}

/// The kernels' `Maps`.
#[repr(C)]
pub struct Maps<T> {
    data: [*const T; 4],
    side: [i32; 4],
}

/// A cell as the crate sees it, and what the network would give for it.
pub struct Cell {
    pub size: usize,
    pub grid: usize,
    pub k: usize,
    pub projection: Projection,
    pub pyramid: Pyramid,
}

impl Cell {
    pub fn new(size: usize, grid: usize, k: usize, stages: &str) -> Self {
        let stages: Stages = stages.parse().unwrap();
        let projection = Projection::semi_orthogonal(Mixing::Dense, k, 1, stages, &[1.0; CHANNELS]).unwrap();
        let mut cell = Self { size, grid, k, projection, pyramid: Pyramid::new(size) };
        cell.look_like(1);
        cell
    }

    pub fn look_like(&mut self, seed: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..4).for_each(|stage| self.pyramid.fill_with(stage, |_| uniform(&mut rng)));
    }

    pub fn embedder(&self) -> Embedder {
        Embedder::new(&self.projection, self.size, self.grid, Isa::Scalar, Arc::new(Workers::new(1)))
    }

    pub fn embedding(&self) -> Embedding {
        let mut out = Embedding::new(self.grid, self.k);
        self.embedder().project(&self.pyramid).read_into(&mut out);
        out
    }

    fn stride(&self) -> usize {
        self.k.next_multiple_of(8)
    }

    /// The projected maps; what fills a pixel up to the stride is no number. Stages that W does not use have none.
    pub fn maps<T: Element>(&self) -> [Option<Memory<T>>; 4] {
        std::array::from_fn(|stage| {
            let (w, channels, k) = (self.projection.stage(stage), STAGE_CHANNELS[stage], self.k);
            self.projection.uses(stage).then(|| {
                let mut map = Vec::new();
                for row in self.pyramid.rows(stage) {
                    for pixel in row.chunks_exact(channels) {
                        let mut values = vec![0.0; k];
                        for (x, w) in pixel.iter().zip(w.chunks_exact(k)) {
                            values.iter_mut().zip(w).for_each(|(v, w)| *v += f64::from(*x) * f64::from(*w));
                        }
                        values.resize(self.stride(), f64::NAN);
                        map.extend(values.into_iter().map(T::of));
                    }
                }
                Memory::of(&map)
            })
        })
    }

    /// What a kernel takes of them.
    pub fn pointers<T: Element>(&self, maps: &mut [Option<Memory<T>>; 4]) -> Maps<T> {
        let side = std::array::from_fn(|stage| self.pyramid.side(stage) as i32);
        let data =
            std::array::from_fn(|stage| maps[stage].as_mut().map_or(std::ptr::null(), |m| m.pointer().cast_const()));
        Maps { data, side }
    }

    /// The embedding by `upsample_*`.
    pub fn upsampled<T: Element>(&self, kernels: &Kernels) -> Vec<f32> {
        let (positions, mut maps) = (self.grid * self.grid, self.maps::<T>());
        let shape = Shape::of(positions * 32, 96);
        let (grid, k, stride) = (self.grid as i32, self.k as i32, self.stride() as i32);
        let run = |order| {
            let mut out = Memory::<f32>::new(positions * self.k);
            let (maps, target) = (self.pointers(&mut maps), out.pointer());
            let arguments = arguments![maps, target, grid, k, stride];
            // SAFETY: the kernel's arguments, and buffers of the sizes that they name.
            unsafe { kernels.launch(&format!("upsample_{}", T::NAME), shape, order, arguments) }.unwrap();
            bits(&out.values())
        };
        in_every_order(run).into_iter().map(f32::from_bits).collect()
    }

    /// The distances by `embed_distance_*`.
    pub fn distances<T: Element>(&self, kernels: &Kernels, fit: &OwnedStatistics, warps: u32) -> Vec<f32> {
        let (positions, mut maps) = (self.grid * self.grid, self.maps::<T>());
        let most = if self.k <= 128 { 128 } else { 256 };
        let (number, ending) = match fit.factors {
            OwnedFactors::F16(_) => (2, ""),
            OwnedFactors::F32(_) => (4, "_single"),
        };
        let shared = warps as usize * shared_bytes(self.k, number);
        let shape = Shape { grid: [(positions as u32).div_ceil(warps), 1, 1], block: [32 * warps, 1, 1], shared };
        let (grid, k, stride) = (self.grid as i32, self.k as i32, self.stride() as i32);
        let (mut mean, mut factors, mut scale) = buffers(fit);
        let run = |order| {
            let mut out = Memory::<f32>::new(positions);
            let (maps, target) = (self.pointers(&mut maps), out.pointer());
            let (mean, factors, scale) = (mean.pointer(), factors.pointer(), scale.pointer());
            let arguments = arguments![maps, mean, factors, scale, target, grid, k, stride];
            // SAFETY: as above.
            unsafe { kernels.launch(&format!("embed_distance_{}_{most}{ending}", T::NAME), shape, order, arguments) }
                .unwrap();
            bits(&out.values())
        };
        in_every_order(run).into_iter().map(f32::from_bits).collect()
    }

    /// The distances of an embedding by `distance_plain`.
    pub fn plain_distances(&self, kernels: &Kernels, fit: &OwnedStatistics, embedding: &[f32]) -> Vec<f32> {
        let positions = self.grid * self.grid;
        let (grid, k) = (self.grid as i32, self.k as i32);
        let (mut mean, mut factors, mut scale) = buffers(fit);
        let (mut embedding, mut out) = (Memory::of(embedding), Memory::<f32>::new(positions));
        let (mean, factors, scale) = (mean.pointer(), factors.pointer(), scale.pointer());
        let (source, target) = (embedding.pointer(), out.pointer());
        let arguments = arguments![source, mean, factors, scale, target, grid, k];
        // SAFETY: as above.
        unsafe { kernels.launch("distance_plain", Shape::of(positions, 64), 0, arguments) }.unwrap();
        out.values()
    }

    /// Statistics of noise around what this cell looks like.
    pub fn fit(&self, precision: Precision) -> OwnedStatistics {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let middle = self.embedding();
        let good: Vec<Embedding> = (0..64)
            .map(|_| {
                let (mut one, mut last) = (middle.clone(), 0.0);
                for y in one.values_mut() {
                    last = 0.6 * last + uniform(&mut rng) - 0.5;
                    *y += last;
                }
                one
            })
            .collect();
        let mut accumulator = Accumulator::new(self.grid, self.k);
        let workers = Workers::new(1);
        for batch in good.chunks(32) {
            accumulator.update(&batch.iter().collect::<Vec<_>>(), Isa::detect(), &workers);
        }
        accumulator.finish(Shrinkage::default(), precision, &workers).unwrap()
    }
}

/// Shared memory of a warp of `embed_distance_*`, for factors of `number` bytes each.
pub fn shared_bytes(k: usize, number: usize) -> usize {
    number * position_stride(k) + 4 * k.next_multiple_of(32).max(32 * number)
}

/// Means, factors and row scales exactly as long as they must be: nothing may be read behind them.
fn buffers(fit: &OwnedStatistics) -> (Memory<f32>, Memory<u8>, Memory<f32>) {
    let positions = fit.grid * fit.grid;
    let numbers = positions * position_stride(fit.k);
    let factors: &[u8] = match &fit.factors {
        OwnedFactors::F16(factors) => bytemuck::cast_slice(&factors[..numbers]),
        OwnedFactors::F32(factors) => bytemuck::cast_slice(&factors[..numbers]),
    };
    (Memory::of(&fit.mean[..positions * fit.k]), Memory::of(factors), Memory::of(&fit.row_scale))
}
