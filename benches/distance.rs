//! The distance kernel against reading memory: `cargo bench --bench distance`.
//!
//! Embedding, distance and heatmap of the default field (64 × 64, k = 100, factors in halves: 41.4 MB a frame), on one
//! thread and on two, beside the fastest sum over the same 41.4 MB that the same instruction set can do. The two take
//! turns, so that whatever else the machine does hits both; medians are printed, and their ratio.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use cellgate::backbone::cpu::CpuBackbone;
use cellgate::backbone::{Backbone, Pyramid, ResNet18};
use cellgate::embedding::projection::CHANNELS;
use cellgate::embedding::{Embedder, Projection, Stages};
use cellgate::gaussian::distance::mahalanobis;
use cellgate::gaussian::factors::{OwnedStatistics, column_start, position_stride, section_len};
use cellgate::gaussian::{Factors, Precision, Statistics};
use cellgate::heatmap::Analyser;
use cellgate::simd::{Isa, Kernel, Simd};
use cellgate::workers::Workers;
use half::f16;

const SIZE: usize = 256;
const GRID: usize = 64;
const K: usize = 100;
const ROUNDS: usize = 60;

/// Sums bits as floats, in eight chains: as many loads in flight as the core will take.
struct Sum<'a>(&'a [f32]);

impl Kernel for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // SAFETY: `Isa::run` has checked the CPU, and whole chunks hold eight vectors.
        unsafe {
            let mut sums = [S::splat(0.0); 8];
            for chunk in self.0.chunks_exact(8 * S::LANES) {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = S::add(*sum, S::load(chunk.as_ptr().add(v * S::LANES)));
                }
            }
            S::sum(sums.into_iter().reduce(|a, b| S::add(a, b)).unwrap_or(S::splat(0.0)))
        }
    }
}

fn read_memory(halves: &[f16], isa: Isa, workers: &Workers) {
    let floats: &[f32] = bytemuck::cast_slice(&halves[..halves.len() / 2 * 2]);
    let threads = workers.count();
    workers.run(&|thread| {
        let range = floats.len() * thread / threads..floats.len() * (thread + 1) / threads;
        black_box(isa.run(Sum(&floats[range])));
    });
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let isa = Isa::detect();
    let network = ResNet18::embedded().expect("the embedded backbone");
    let mut backbone = CpuBackbone::new(&network, SIZE, isa, Arc::new(Workers::new(1))).expect("a valid size");
    let image: Vec<f32> = (0..SIZE * SIZE).map(|i| ((i * 37 + i / SIZE * 11) % 200) as f32 / 100.0 - 1.0).collect();
    let mut pyramid = Pyramid::new(SIZE);
    backbone.run(&image, &mut pyramid).expect("the sizes fit");

    let projection = Projection::semi_orthogonal(K, 1, Stages::ALL, &[1.0; CHANNELS]).expect("valid settings");
    let mut embedder = Embedder::new(&projection, SIZE, GRID, isa);
    let mut factors = vec![0.0f32; section_len(GRID * GRID, K)];
    for (position, u) in factors.chunks_exact_mut(position_stride(K)).take(GRID * GRID).enumerate() {
        for j in 0..K {
            for (i, u) in u[column_start(K, j)..][..K - j].iter_mut().enumerate() {
                *u = if i == 0 { 3.0 } else { ((position + i * 7 + j) % 13) as f32 * 0.01 - 0.06 };
            }
        }
    }
    let owned = OwnedStatistics::pack(GRID, K, vec![0.1; GRID * GRID * K + 16], factors, Precision::F16);
    let statistics: Statistics<'_> = owned.view();
    let Factors::F16(halves) = statistics.factors() else { unreachable!("packed as halves above") };
    let bytes = size_of_val(halves) as f64;
    let mut analyser = Analyser::new(GRID, 1.0);
    let mut heat = vec![0.0; GRID * GRID];

    println!("{isa}, {GRID}×{GRID}, k = {K}, {:.1} MB of factors, {ROUNDS} rounds, medians", bytes / 1e6);
    println!("threads  project ms  distance ms  (GB/s)  heatmap ms  read ms  (GB/s)  distance/read");
    for threads in [1, 2] {
        let workers = Workers::new(threads);
        let [mut project, mut distance, mut heatmap, mut read] = [(); 4].map(|()| Vec::with_capacity(ROUNDS));
        for round in 0..ROUNDS + 3 {
            let clock = Instant::now();
            embedder.project(&pyramid);
            let projected = clock.elapsed();
            mahalanobis(&statistics, &embedder, &workers, &mut heat);
            let measured = clock.elapsed();
            analyser.smooth(&mut heat);
            black_box(analyser.scores(&heat).expect("finite distances"));
            let analysed = clock.elapsed();
            let clock = Instant::now();
            read_memory(halves, isa, &workers);
            let summed = clock.elapsed();
            if round >= 3 {
                let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
                project.push(ms(projected));
                distance.push(ms(measured - projected));
                heatmap.push(ms(analysed - measured));
                read.push(ms(summed));
            }
        }
        let [project, distance, heatmap, read] =
            [&mut project, &mut distance, &mut heatmap, &mut read].map(|t| median(t));
        let rate = |ms: f64| bytes / ms / 1e6;
        println!(
            "{threads:>7}  {project:>10.2}  {distance:>11.2}  {:>6.1}  {heatmap:>10.3}  {read:>7.2}  {:>6.1}  {:>13.2}",
            rate(distance),
            rate(read),
            distance / read
        );
    }
}
