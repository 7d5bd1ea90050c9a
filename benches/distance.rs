//! Embedding, distance and heatmap against reading memory: `cargo bench --bench distance [-- --json]`.
//!
//! The default field (64 × 64, k = 100, factors in halves: 41.4 MB a frame) with either embedding, on one thread and on
//! two, beside the fastest sum over the same 41.4 MB that the same instruction set can do. All take turns, so that
//! whatever else the machine does hits all; printed are medians, and the share of the read's bandwidth that is reached
//! by the distance alone and by the three together.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use cellgate::backbone::cpu::CpuBackbone;
use cellgate::backbone::{Backbone, Pyramid, ResNet18};
use cellgate::embedding::projection::CHANNELS;
use cellgate::embedding::{Embedder, Mixing, Projection, Stages};
use cellgate::gaussian::distance::mahalanobis;
use cellgate::gaussian::factors::{OwnedStatistics, column_start, position_stride, section_len};
use cellgate::gaussian::{Factors, Precision, Statistics};
use cellgate::heatmap::Analyser;
use cellgate::simd::{Isa, roofs};
use cellgate::workers::Workers;
use half::f16;
use memmap2::MmapMut;

const SIZE: usize = 256;
const GRID: usize = 64;
const K: usize = 100;
const ROUNDS: usize = 60;

fn read_memory(halves: &[f16], isa: Isa, workers: &Workers) {
    roofs::read(bytemuck::cast_slice(&halves[..halves.len() / 2 * 2]), isa, workers);
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The model's factors lie in huge pages (src/model/container.rs); so do these, and so does what is read beside them.
fn in_huge_pages(halves: &[f16]) -> MmapMut {
    let mut pages = MmapMut::map_anon(size_of_val(halves)).expect("memory for the factors");
    #[cfg(target_os = "linux")]
    let _ = pages.advise(memmap2::Advice::HugePage);
    pages.copy_from_slice(bytemuck::cast_slice(halves));
    pages
}

fn packed_statistics() -> OwnedStatistics {
    let mut factors = vec![0.0f32; section_len(GRID * GRID, K)];
    for (position, u) in factors.chunks_exact_mut(position_stride(K)).take(GRID * GRID).enumerate() {
        for j in 0..K {
            for (i, u) in u[column_start(K, j)..][..K - j].iter_mut().enumerate() {
                *u = if i == 0 { 3.0 } else { ((position + i * 7 + j) % 13) as f32 * 0.01 - 0.06 };
            }
        }
    }
    OwnedStatistics::pack(GRID, K, vec![0.1; GRID * GRID * K + 16], factors, Precision::F16)
}

fn main() {
    let json = std::env::args().any(|argument| argument == "--json");
    let isa = Isa::detect();
    let network = ResNet18::embedded().expect("the embedded backbone");
    let image: Vec<f32> = (0..SIZE * SIZE).map(|i| ((i * 37 + i / SIZE * 11) % 200) as f32 / 100.0 - 1.0).collect();
    let mut pyramid = Pyramid::new(SIZE);

    let owned = packed_statistics();
    let Factors::F16(halves) = owned.view().factors() else { unreachable!("packed as halves above") };
    let pages = in_huge_pages(halves);
    let halves: &[f16] = bytemuck::cast_slice(&pages);
    let statistics = Statistics::new(GRID, K, &owned.mean, Factors::F16(halves), &owned.row_scale).expect("as packed");
    let bytes = size_of_val(halves) as f64;
    // Read before each side, so that none of the factors is left in a cache; then the network leaves the caches as it does
    // on a line.
    let elsewhere = vec![f16::ONE; 128 << 20 >> 1];
    let mut analyser = Analyser::new(GRID, 1.0);
    let mut heat = vec![0.0; GRID * GRID];

    if !json {
        println!("{isa}, {GRID}×{GRID}, k = {K}, {:.1} MB of factors, {ROUNDS} rounds, medians in ms", bytes / 1e6);
        println!("threads  embedding  project  distance  heatmap    all   read   GB/s  distance/read  all/read");
    }
    for threads in [1, 2] {
        let workers = Arc::new(Workers::new(threads));
        let mut backbone = CpuBackbone::new(&network, SIZE, isa, Arc::clone(&workers)).expect("a valid size");
        let mut embedders = [Mixing::Sparse, Mixing::Dense].map(|mixing| {
            let projection =
                Projection::semi_orthogonal(mixing, K, 1, Stages::ALL, &[1.0; CHANNELS]).expect("valid settings");
            (mixing, Embedder::new(&projection, SIZE, GRID, isa, Arc::clone(&workers)))
        });
        let mut times: [[Vec<f64>; 3]; 2] = Default::default();
        let mut reads = Vec::with_capacity(ROUNDS);
        for round in 0..ROUNDS + 3 {
            for ((_, embedder), times) in embedders.iter_mut().zip(&mut times) {
                read_memory(&elsewhere, isa, &workers);
                backbone.run(&image, &mut pyramid).expect("the sizes fit");
                let clock = Instant::now();
                let cell = embedder.project(&pyramid);
                let projected = clock.elapsed();
                mahalanobis(&statistics, cell, &mut heat);
                let measured = clock.elapsed();
                analyser.smooth(&mut heat);
                black_box(analyser.scores(&heat).expect("finite distances"));
                let analysed = clock.elapsed();
                if round >= 3 {
                    for (times, time) in times.iter_mut().zip([projected, measured - projected, analysed - measured]) {
                        times.push(time.as_secs_f64() * 1e3);
                    }
                }
            }
            read_memory(&elsewhere, isa, &workers);
            let clock = Instant::now();
            read_memory(halves, isa, &workers);
            if round >= 3 {
                reads.push(clock.elapsed().as_secs_f64() * 1e3);
            }
        }
        let read = median(&mut reads);
        for ((mixing, _), times) in embedders.iter().zip(&mut times) {
            let mut sums: Vec<f64> = (0..ROUNDS).map(|round| times.iter().map(|t| t[round]).sum()).collect();
            let all = median(&mut sums);
            let [project, distance, heatmap] = times.each_mut().map(|t| median(t));
            let rate = bytes / read / 1e6;
            let (alone, share) = (read / distance, read / all);
            if json {
                println!(
                    "{{\"isa\":\"{isa}\",\"threads\":{threads},\"embedding\":\"{mixing}\",\"bytes\":{bytes},\
                     \"project_ms\":{project:.4},\"distance_ms\":{distance:.4},\"heatmap_ms\":{heatmap:.4},\
                     \"all_ms\":{all:.4},\"read_ms\":{read:.4},\"distance_share\":{alone:.4},\"share\":{share:.4}}}"
                );
            } else {
                println!(
                    "{threads:>7}  {:>9}  {project:>7.3}  {distance:>8.3}  {heatmap:>7.3}  {all:>5.2}  {read:>5.2}  \
                     {rate:>5.1}  {:>11.0} %  {:>6.0} %",
                    mixing.to_string(),
                    alone * 100.0,
                    share * 100.0
                );
            }
        }
    }
}
