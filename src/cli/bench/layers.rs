//! The network step by step, under the machine's two roofs.

use std::sync::Arc;
use std::time::Instant;

use super::{Args, quantile, rounded};
use crate::backbone::Pyramid;
use crate::backbone::cpu::{CpuBackbone, StepInfo};
use crate::simd::{Isa, roofs};
use crate::workers::Workers;

/// A step and the milliseconds of each run.
struct Timed {
    info: StepInfo,
    times: Vec<f64>,
}

/// What the machine can do at most.
struct Roofs {
    /// Operations a millisecond.
    flops: f64,
    /// Bytes a millisecond.
    bytes: f64,
}

/// How long a step takes, and would take if only one roof counted.
struct Row<'a> {
    info: &'a StepInfo,
    ms: f64,
    compute: f64,
    memory: f64,
}

impl Row<'_> {
    /// The roof that is nearer, and which share of it is reached.
    fn roof(&self) -> (&'static str, f64) {
        if self.compute >= self.memory {
            ("compute", self.compute / self.ms)
        } else {
            ("memory", self.memory / self.ms)
        }
    }

    /// Floating-point operations a second of the convolution as it is defined, in 10⁹.
    fn gflops(&self) -> f64 {
        2e-6 * self.info.multiply_adds as f64 / self.ms
    }

    fn json(&self) -> serde_json::Value {
        let (roof, share) = self.roof();
        let StepInfo { name, algorithm, multiply_adds, performed, weight_bytes, map_bytes } = self.info;
        serde_json::json!({
            "step": name, "algorithm": algorithm, "multiply_adds": multiply_adds, "performed": performed,
            "weight_bytes": weight_bytes, "map_bytes": map_bytes, "ms": rounded(self.ms),
            "gflops": rounded(self.gflops()), "peak_share": rounded(self.compute / self.ms),
            "bandwidth_share": rounded(self.memory / self.ms), "roof": roof, "roof_share": rounded(share),
        })
    }
}

/// Times each step.
///
/// # Errors
/// If the size is refused or the backbone cannot be read.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let (network, _) = args.engine.weights()?;
    let (isa, threads, size) = (Isa::detect(), args.engine.threads(), args.size as usize);
    let workers = Arc::new(Workers::new(threads));
    let mut backbone = CpuBackbone::for_stages(&network, size, args.stages.0, &workers)?;
    let mut pyramid = Pyramid::with_stages(size, args.stages.0);
    let image: Vec<f32> = (0..size * size).map(|i| (i * 37 % 200) as f32 / 60.0 - 1.6).collect();

    let roofs =
        Roofs { flops: 1e-3 * roofs::peak_flops(isa, &workers), bytes: 1e-3 * roofs::read_bandwidth(isa, &workers) };
    let mut steps: Vec<Timed> = Vec::new();
    let mut whole = Vec::with_capacity(args.runs);
    for round in 0..args.runs + 3 {
        let start = Instant::now();
        let (mut index, mut since) = (0, start);
        backbone.run_observed(&image, &mut pyramid, |info| {
            let now = Instant::now();
            if index == steps.len() {
                steps.push(Timed { info: info.clone(), times: Vec::with_capacity(args.runs) });
            }
            if round >= 3 {
                steps[index].times.push((now - since).as_secs_f64() * 1e3);
            }
            index += 1;
            since = now;
        })?;
        if round >= 3 {
            whole.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    whole.sort_by(f64::total_cmp);
    let rows: Vec<Row<'_>> = steps
        .iter_mut()
        .map(|Timed { info, times }| {
            times.sort_by(f64::total_cmp);
            let compute = 2.0 * info.performed as f64 / roofs.flops;
            let memory = (info.weight_bytes + info.map_bytes) as f64 / roofs.bytes;
            Row { info, ms: quantile(times, 0.5), compute, memory }
        })
        .collect();
    if args.json {
        json(args, isa, &roofs, &whole, &rows)
    } else {
        table(args, isa, &roofs, &whole, &rows)
    }
    Ok(())
}

fn json(args: &Args, isa: Isa, roofs: &Roofs, whole: &[f64], rows: &[Row<'_>]) {
    let value = serde_json::json!({
        "isa": isa.to_string(), "size": args.size, "threads": args.engine.threads(), "runs": args.runs,
        "peak_gflops": rounded(roofs.flops * 1e-6), "read_gbytes": rounded(roofs.bytes * 1e-6),
        "ms": rounded(quantile(whole, 0.5)), "ms_best": rounded(quantile(whole, 0.0)),
        "steps": rows.iter().map(Row::json).collect::<Vec<_>>(),
    });
    println!("{value}");
}

fn table(args: &Args, isa: Isa, roofs: &Roofs, whole: &[f64], rows: &[Row<'_>]) {
    println!(
        "{isa}, {0}×{0}, {1} thread(s), median of {2} runs. Roofs measured here: {3:.0} GFLOP/s, {4:.1} GB/s read.",
        args.size,
        args.engine.threads(),
        args.runs,
        roofs.flops * 1e-6,
        roofs.bytes * 1e-6
    );
    println!("M mul-adds: of the convolution / that the algorithm performs. GFLOP/s: of the convolution.");
    println!(
        "Roof: the nearer one, and the share of it that is reached; more than 100 % of memory is what caches spare.\n"
    );
    println!(
        "{:<20} {:<23} {:>15} {:>10} {:>8} {:>8} {:>8}  roof",
        "step", "algorithm", "M mul-adds", "weights MB", "maps MB", "ms", "GFLOP/s"
    );
    for row in rows {
        let StepInfo { name, algorithm, multiply_adds, performed, weight_bytes, map_bytes } = row.info;
        let counts = format!("{:.1} / {:.1}", *multiply_adds as f64 * 1e-6, *performed as f64 * 1e-6);
        let rate = format!("{:.0}", row.gflops());
        let (roof, share) = row.roof();
        println!(
            "{name:<20} {algorithm:<23} {counts:>15} {:>10.2} {:>8.2} {:>8.3} {rate:>8}  {roof} {:.0} %",
            *weight_bytes as f64 * 1e-6,
            *map_bytes as f64 * 1e-6,
            row.ms,
            share * 100.0
        );
    }
    let sum = |of: fn(&StepInfo) -> u64| rows.iter().map(|row| of(row.info)).sum::<u64>() as f64;
    let (all, performed) = (sum(|i| i.multiply_adds), sum(|i| i.performed));
    let (ms, bound) = (quantile(whole, 0.5), rows.iter().map(|row| row.compute.max(row.memory)).sum::<f64>());
    println!(
        "\nall: {ms:.3} ms (best {:.3}); {:.0} GFLOP/s, {:.0} of them performed; {:.2} ms if each step were at its roof",
        quantile(whole, 0.0),
        2e-6 * all / ms,
        2e-6 * performed / ms,
        bound
    );
}
