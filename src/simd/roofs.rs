//! What this machine can do at most: the two roofs under which every kernel works.

use std::hint::black_box;
use std::time::Instant;

use crate::workers::Workers;

use super::{Isa, Kernel, Simd};

/// Independent chains of multiply-adds: more than latency × throughput of any CPU, fewer than the registers of any.
const CHAINS: usize = 12;
/// Multiply-adds of each chain in one measurement: some milliseconds.
const LINKS: usize = 1 << 20;
/// Floats that are read to measure bandwidth, 256 MiB: more than any cache holds.
const READ: usize = 64 << 20;

struct MultiplyAdds;

impl Kernel for MultiplyAdds {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // SAFETY: `Isa::run` has checked the CPU; only registers are used.
        unsafe {
            let (factor, term) = (S::splat(black_box(0.5)), S::splat(black_box(1.0)));
            let mut sums = [S::splat(black_box(0.0)); CHAINS];
            for _ in 0..LINKS {
                for sum in &mut sums {
                    *sum = S::fma(*sum, factor, term);
                }
            }
            S::sum(sums.into_iter().reduce(|a, b| S::add(a, b)).unwrap_or(S::splat(0.0)))
        }
    }
}

/// Sums in eight chains: as many loads in flight as the core will take.
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

/// The shortest of `rounds` runs, in seconds.
fn shortest(rounds: usize, mut run: impl FnMut()) -> f64 {
    let once = |_| {
        let clock = Instant::now();
        run();
        clock.elapsed().as_secs_f64()
    };
    (0..rounds).map(once).fold(f64::INFINITY, f64::min)
}

/// Floating-point operations a second of all threads together, in f32: multiply-adds in registers, each counted as two.
/// Where halves are multiplied as such, those products have a roof twice as high. Takes some 0.1 s.
#[must_use]
pub fn peak_flops(isa: Isa, workers: &Workers) -> f64 {
    let seconds = shortest(20, || {
        workers.run(&|_| {
            black_box(isa.run(MultiplyAdds));
        });
    });
    (workers.count() * 2 * CHAINS * LINKS * isa.lanes()) as f64 / seconds
}

/// Reads all of `floats`, each thread its own part from front to back, as fast as the instruction set can.
pub fn read(floats: &[f32], isa: Isa, workers: &Workers) {
    let threads = workers.count();
    workers.run(&|thread| {
        let range = floats.len() * thread / threads..floats.len() * (thread + 1) / threads;
        black_box(isa.run(Sum(&floats[range])));
    });
}

/// Bytes a second that all threads together can [`read`] from 256 MiB of memory.
#[must_use]
pub fn read_bandwidth(isa: Isa, workers: &Workers) -> f64 {
    // Ones: pages of zeros that nobody has written to are all the same page.
    let floats = vec![1.0f32; READ];
    let seconds = shortest(5, || read(&floats, isa, workers));
    size_of_val(floats.as_slice()) as f64 / seconds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chains_converge_and_the_sum_is_that_of_all_values() {
        for isa in Isa::available() {
            // x = x/2 + 1 goes to 2 in each of the chains' lanes.
            assert_eq!(isa.run(MultiplyAdds), (2 * CHAINS * isa.lanes()) as f32);
            let values: Vec<f32> = (0..1024).map(|i| (i % 7) as f32).collect();
            assert_eq!(isa.run(Sum(&values)), values.iter().sum::<f32>());
        }
    }
}
