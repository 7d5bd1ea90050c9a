//! A clock, and a bench that takes turns with another program: it prints `ready` and a line of facts, then reads
//! counts from stdin, one a line, and answers each with that many `wall:cpu` pairs in milliseconds.

use std::io::{BufRead, Write};
use std::time::Instant;

/// Milliseconds of processor time that all threads of this process have used.
pub fn cpu_ms() -> f64 {
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut [i64; 2]) -> i32;
    }
    const CLOCK_PROCESS_CPUTIME_ID: i32 = 2;
    let mut time = [0i64; 2];
    // SAFETY: on 64-bit Linux a timespec is two 64-bit numbers: seconds, nanoseconds.
    unsafe { clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time[0] as f64 * 1e3 + time[1] as f64 * 1e-6
}

pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Wall and processor time of `count` runs, in milliseconds.
pub fn measure(count: usize, mut run: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Vec<(f64, f64)>> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let (cpu, wall) = (cpu_ms(), Instant::now());
        run()?;
        times.push((wall.elapsed().as_secs_f64() * 1e3, cpu_ms() - cpu));
    }
    Ok(times)
}

/// Answers counts from stdin until it ends.
pub fn serve(facts: impl std::fmt::Display, mut run: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    println!("ready {facts}");
    std::io::stdout().flush()?;
    for line in std::io::stdin().lock().lines() {
        let Ok(count) = line?.trim().parse() else { break };
        let times = measure(count, &mut run)?;
        println!("{}", times.iter().map(|(w, c)| format!("{w:.4}:{c:.4}")).collect::<Vec<_>>().join(" "));
        std::io::stdout().flush()?;
    }
    Ok(())
}
