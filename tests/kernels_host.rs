//! The CUDA kernels, compiled for this machine (`kernels/host`), against what the crate computes; and that a mistake in one
//! would show.
#![cfg(target_os = "linux")]

mod common;
mod kernels;

use std::process::Command;

use cellgate::backbone::STAGE_CHANNELS;
use cellgate::gaussian::Precision;
use cellgate::gaussian::distance::{mahalanobis, mahalanobis_dense};
use cellgate::gaussian::factors::position_stride;
use cellgate::heatmap::{Analyser, MAX_REGIONS};
use half::f16;
use kernels::cell::{Cell, bits, in_every_order, shared_bytes, uniform};
use kernels::{Kernels, Memory, Shape};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use sha2::{Digest, Sha256};

/// The kernels, or the end of the test where they cannot be built.
macro_rules! kernels_or_skip {
    ($test:literal) => {
        match kernels::kernels() {
            Some(kernels) => kernels,
            None => return common::skip($test, "a C++ compiler (apt-get install g++)"),
        }
    };
}

#[path = "kernels/frames.rs"]
mod frames;
#[path = "kernels/judge.rs"]
mod judge;

#[test]
fn a_missing_barrier_a_divergent_one_and_a_copy_not_waited_for_show() {
    let kernels = kernels_or_skip!("a_missing_barrier_a_divergent_one_and_a_copy_not_waited_for_show");
    if kernels::driver().is_some() {
        return; // a device may do anything with them
    }
    let shape = Shape { grid: [1, 1, 1], block: [32, 1, 1], shared: 128 };
    let run = |name: &str, order| {
        let (mut from, mut out) = (Memory::of(&[1.0f32; 4]), Memory::<f32>::new(32));
        let (source, target) = (from.pointer(), out.pointer());
        let arguments = if name == "mistake_no_wait" { arguments![source, target] } else { arguments![target] };
        // SAFETY: each kernel's arguments.
        unsafe { kernels.launch(name, shape, order, arguments) }.map(|()| bits(&out.values()))
    };
    assert_ne!(run("mistake_no_barrier", 0).unwrap(), run("mistake_no_barrier", 1).unwrap());
    assert!(run("mistake_divergent_barrier", 0).unwrap_err().contains("deadlock"));
    assert!(run("mistake_no_wait", 0).unwrap().iter().any(|&b| f32::from_bits(b).is_nan()));
    assert!(run("no_such_kernel", 0).unwrap_err().contains("no kernel"));
}

/// Largest |got − want|/|want|.
fn relative(got: &[f32], want: impl IntoIterator<Item = f64>) -> f64 {
    let want: Vec<f64> = want.into_iter().collect();
    assert_eq!(got.len(), want.len());
    let errors = got.iter().zip(want).map(|(&got, want)| (f64::from(got) - want).abs() / want.abs());
    errors.fold(0.0, |worst: f64, error| if worst.is_nan() || error <= worst { worst } else { error })
}

/// Image side, grid, k, stages: a stage with the grid's size, larger ones and smaller ones, every number of rows a lane.
const CASES: [(usize, usize, usize, &str); 8] = [
    (64, 16, 100, "1,2,3,4"),
    (64, 8, 31, "1,2,3,4"),
    (96, 10, 64, "2,3"),
    (64, 7, 1, "1,3"),
    (64, 6, 101, "1,2,3"),
    (64, 5, 128, "1,2,3,4"),
    (64, 5, 129, "1,2,3,4"),
    (64, 4, 256, "1,2,3,4"),
];

#[test]
fn maps_are_upsampled_and_summed_as_the_embedder_does() {
    let kernels = kernels_or_skip!("maps_are_upsampled_and_summed_as_the_embedder_does");
    for (size, grid, k, stages) in CASES {
        let cell = Cell::new(size, grid, k, stages);
        let expected = cell.embedding();
        let largest = expected.values().iter().fold(0.0f32, |l, v| l.max(v.abs()));
        for (name, got, tolerance) in [
            ("float", cell.upsampled::<f32>(kernels), 2e-5),
            ("half", cell.upsampled::<f16>(kernels), 4.0 * largest / 2048.0),
        ] {
            for (at, (got, want)) in got.iter().zip(expected.values()).enumerate() {
                assert!((got - want).abs() <= tolerance, "{name}, grid {grid}, k = {k}, value {at}: {got} for {want}");
            }
        }
    }
}

#[test]
fn the_fused_distance_is_the_cpus_and_the_unfused_one() {
    let kernels = kernels_or_skip!("the_fused_distance_is_the_cpus_and_the_unfused_one");
    for (size, grid, k, stages) in CASES {
        let mut cell = Cell::new(size, grid, k, stages);
        let (fit, single) = (cell.fit(Precision::F16), cell.fit(Precision::F32));
        let mut cpu = vec![0.0; grid * grid];
        cell.look_like(2);
        mahalanobis(&fit.view(), cell.embedder().project(&cell.pyramid), &mut cpu);
        let exact = mahalanobis_dense(&fit.view(), &cell.embedding());
        // As many warps as a block has room for on an Orin.
        for warps in [1, 2, 4].into_iter().filter(|&warps| warps as usize * shared_bytes(k, 2) <= 163 << 10) {
            let float = cell.distances::<f32>(kernels, &fit, warps);
            let half = cell.distances::<f16>(kernels, &fit, warps);
            let what = format!("grid {grid}, k = {k}, {warps} warps");
            let errors = [
                ("CPU", relative(&float, cpu.iter().map(|&m| f64::from(m))), 1e-4),
                ("f64", relative(&float, exact.iter().copied()), 1e-4),
                ("f64, maps of halves", relative(&half, exact.iter().copied()), 1e-2),
            ];
            for (reference, error, tolerance) in errors {
                assert!(error <= tolerance, "{what}: {error:e} from {reference}");
            }
            if warps as usize * shared_bytes(k, 4) <= 163 << 10 {
                let fused = cell.distances::<f16>(kernels, &single, warps);
                let mut embedding = cell.embedding();
                embedding.values_mut().copy_from_slice(&cell.upsampled::<f16>(kernels));
                let error = relative(&fused, mahalanobis_dense(&single.view(), &embedding));
                assert!(error <= 1e-4, "{what}: {error:e} from f64 with factors in single precision");
            }
            for (fused, upsampled) in [(float, cell.upsampled::<f32>(kernels)), (half, cell.upsampled::<f16>(kernels))]
            {
                let plain = cell.plain_distances(kernels, &fit, &upsampled);
                let error = relative(&fused, plain.iter().map(|&m| f64::from(m)));
                assert!(error <= 1e-4, "{what}: {error:e} from the unfused kernels");
            }
        }
    }
}

#[test]
fn a_number_that_is_not_finite_reaches_the_distance_of_its_positions_alone() {
    let kernels = kernels_or_skip!("a_number_that_is_not_finite_reaches_the_distance_of_its_positions_alone");
    let mut cell = Cell::new(64, 16, 100, "1,2,3,4");
    let fit = cell.fit(Precision::F16);
    cell.pyramid.row_mut(0, 3)[5 * STAGE_CHANNELS[0]] = f32::NAN;
    let odd: Vec<usize> = cell
        .distances::<f16>(kernels, &fit, 4)
        .iter()
        .enumerate()
        .filter(|(_, m)| m.is_nan())
        .map(|(i, _)| i)
        .collect();
    assert_eq!(odd, [3 * 16 + 5]);
}

#[test]
fn smoothing_equals_the_cpus_to_the_last_bit() {
    let kernels = kernels_or_skip!("smoothing_equals_the_cpus_to_the_last_bit");
    for (side, sigma) in [(64, 1.0), (17, 2.0), (4, 8.0), (1, 1.0), (16, 0.0)] {
        let mut analyser = Analyser::new(side, sigma);
        let mut rng = ChaCha8Rng::seed_from_u64(side as u64);
        let map: Vec<f32> = (0..side * side).map(|_| 40.0 * uniform(&mut rng)).collect();
        let mut window = Memory::of(analyser.window());
        let (radius, length) = (analyser.window().len() as i32 - 1, side as i32);
        let got = in_every_order(|order| {
            let (mut map, mut rows, mut out) =
                (Memory::of(&map), Memory::<f32>::new(map.len()), Memory::<f32>::new(map.len()));
            let (map, between, target, window) = (map.pointer(), rows.pointer(), out.pointer(), window.pointer());
            let shape = Shape::of(side * side, 256);
            // SAFETY: the kernels' arguments, and maps of side².
            unsafe {
                kernels.launch("smooth_rows", shape, order, arguments![map, between, window, radius, length]).unwrap();
                kernels
                    .launch("smooth_columns", shape, order, arguments![between, target, window, radius, length])
                    .unwrap();
            }
            bits(&out.values())
        });
        let mut expected = map.clone();
        analyser.smooth(&mut expected);
        assert_eq!(got, bits(&expected), "{side}, σ = {sigma}");
    }
}

/// `top`, `max`, `mean`, or none if a number is not finite.
fn scores(kernels: &Kernels, map: &[f32]) -> Option<[f32; 3]> {
    let count = map.len() as i32;
    let got = in_every_order(|order| {
        let (mut map, mut out) = (Memory::of(map), Memory::<u32>::new(4));
        let (source, target) = (map.pointer(), out.pointer());
        // SAFETY: the kernel's arguments, and a map of `count` numbers.
        unsafe { kernels.launch("heatmap_scores", Shape::of(1024, 1024), order, arguments![source, count, target]) }
            .unwrap();
        out.values()
    });
    (got[3] == 1).then(|| [0, 1, 2].map(|i| f32::from_bits(got[i])))
}

#[test]
fn scores_are_the_cpus_also_with_equal_and_negative_numbers() {
    let kernels = kernels_or_skip!("scores_are_the_cpus_also_with_equal_and_negative_numbers");
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let noise = |side: usize, rng: &mut ChaCha8Rng| -> Vec<f32> {
        (0..side * side).map(|_| 9.0 + 30.0 * uniform(rng)).collect()
    };
    let few: Vec<f32> = noise(40, &mut rng).iter().map(|v| v.floor() % 3.0).collect();
    let negative: Vec<f32> = noise(33, &mut rng).iter().map(|v| v - 100.0).collect();
    for map in [noise(64, &mut rng), noise(5, &mut rng), few, negative, vec![7.0; 1024], vec![3.0]] {
        let want = Analyser::new(map.len().isqrt(), 0.0).scores(&map).unwrap();
        let [top, max, mean] = scores(kernels, &map).unwrap();
        assert_eq!(max, want.max);
        for (got, want) in [(top, want.top), (mean, want.mean)] {
            assert!((got - want).abs() <= 1e-5 * want.abs(), "{got} for {want} of {} numbers", map.len());
        }
    }
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut map = noise(64, &mut rng);
        map[4095] = odd;
        assert_eq!(scores(kernels, &map), None);
    }
}

#[test]
fn regions_are_exactly_the_cpus() {
    let kernels = kernels_or_skip!("regions_are_exactly_the_cpus");
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let mut maps: Vec<(usize, Vec<f32>)> = Vec::new();
    for (side, steps) in [(64, 1000.0), (64, 4.0), (16, 3.0), (5, 50.0), (1, 9.0)] {
        maps.push((side, (0..side * side).map(|_| (uniform(&mut rng) * steps).floor() * 10.0 / steps).collect()));
    }
    // One part that winds through the whole map, and none.
    let winding = |at: usize| if (at / 32).is_multiple_of(2) || at % 32 == 31 * (at / 64 % 2) { 9.5 } else { 0.0 };
    maps.push((32, (0..1024).map(winding).collect()));
    maps.push((32, vec![0.0; 1024]));
    for (side, map) in maps {
        for level in [2.0, 7.0, 9.0] {
            let want = Analyser::new(side, 0.0).regions(&map, level);
            let length = side as i32;
            let got = in_every_order(|order| {
                let (mut map, mut scratch) = (Memory::of(&map), Memory::<u32>::new(7 * map.len()));
                let mut out = Memory::<u32>::new(2 + 4 * MAX_REGIONS);
                let (source, work, target) = (map.pointer(), scratch.pointer(), out.pointer());
                let arguments = arguments![source, level, length, work, target];
                // SAFETY: the kernel's arguments, and buffers of the sizes that it names.
                unsafe { kernels.launch("heatmap_regions", Shape::of(1024, 1024), order, arguments) }.unwrap();
                scratch.values();
                out.values()
            });
            let want_words: Vec<u32> = [want.total as u32, want.as_slice().len() as u32]
                .into_iter()
                .chain(want.as_slice().iter().flat_map(|r| {
                    let pair = |a: u16, b: u16| u32::from(a) | u32::from(b) << 16;
                    [pair(r.left, r.top), pair(r.right, r.bottom), r.area, r.peak.to_bits()]
                }))
                .collect();
            assert_eq!(got[..want_words.len()], want_words, "side {side}, level {level}");
        }
    }
}

#[test]
fn halves_are_rounded_as_the_crate_rounds_them() {
    let kernels = kernels_or_skip!("halves_are_rounded_as_the_crate_rounds_them");
    let mut values: Vec<f32> = (0..=u16::MAX).map(|b| f16::from_bits(b).to_f32()).filter(|v| !v.is_nan()).collect();
    // Halfway to the next one, and a little beside.
    let beside = |v: f32, by: i32| f32::from_bits(v.to_bits().wrapping_add_signed(by));
    values.extend((0..0x7c00).flat_map(|b| {
        let middle = (f16::from_bits(b).to_f32() + f16::from_bits(b + 1).to_f32().min(65536.0)) / 2.0;
        [middle, beside(middle, 1), beside(middle, -1)]
    }));
    let (mut source, mut out) = (Memory::of(&values), Memory::<u16>::new(values.len()));
    let (factor, shift, count) = (1.0f32, 0.0f32, values.len() as i32);
    let (from, to) = (source.pointer(), out.pointer());
    // SAFETY: the kernel's arguments, and `count` numbers each.
    unsafe {
        kernels.launch("normalise_half", Shape::of(values.len(), 256), 0, arguments![from, factor, shift, to, count])
    }
    .unwrap();
    assert_eq!(out.values(), values.iter().map(|&v| f16::from_f32(v - 0.0).to_bits()).collect::<Vec<_>>());
}

#[test]
fn the_ptx_is_that_of_the_source() {
    let folder = kernels::folder();
    let script = std::fs::read_to_string(folder.join("build.py")).unwrap();
    let list = |name: &str| -> Vec<String> {
        let line =
            script.lines().find_map(|line| line.strip_prefix(&format!("{name} = ["))).expect("a list in build.py");
        line.trim_end_matches(']').split(", ").map(|item| item.trim_matches('"').to_owned()).collect()
    };
    let all = kernels::ptx();
    assert_eq!(all.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), list("SOURCES"));
    for (name, ptx) in all {
        let mut digest = Sha256::new();
        for part in std::iter::once(format!("{name}.cu")).chain(list("HEADERS")) {
            digest.update(std::fs::read(folder.join(part)).unwrap());
        }
        digest.update(list("OPTIONS").join(" "));
        let hash: String = digest.finalize().iter().map(|b| format!("{b:02x}")).collect();
        let first = ptx.lines().next().unwrap();
        assert_eq!(first, format!("// cellgate source {hash}"), "{name}.cu has changed: run kernels/build.py compile");
        assert!(ptx.contains("\n.version 8.5\n.target sm_80\n"), "PTX that JetPack 6 loads");
    }
}

/// On a device: how fast the distance is, of 64 × 64 positions and k = 100, and which share of the memory's peak that is.
/// Factors of four cells take turns, so that none waits in a cache. Nothing is asserted of the time.
#[test]
fn the_pace_of_the_distance_is_printed_on_a_device() {
    let Some(driver) = kernels::driver() else { return };
    let (grid, k, warps) = (64, 100, 4);
    let cell = Cell::new(256, grid, k, "1,2,3,4");
    let mut maps = cell.maps::<f16>();
    let factors = vec![f16::from_f32(0.01); grid * grid * position_stride(k)];
    let mut turns: Vec<Memory<f16>> = (0..4).map(|_| Memory::of(&factors)).collect();
    let (mut mean, mut scale) = (Memory::of(&vec![0.0f32; grid * grid * k]), Memory::of(&vec![1.0f32; k]));
    let mut out = Memory::<f32>::new(grid * grid);
    let maps = cell.pointers(&mut maps);
    let (mean, scale, target) = (mean.pointer(), scale.pointer(), out.pointer());
    let (side, count, stride) = (grid as i32, k as i32, k.next_multiple_of(8) as i32);
    let turns: Vec<*mut f16> = turns.iter_mut().map(Memory::pointer).collect();
    let name = driver.name();
    // The test double has no time; there it only counts that the launch is accepted.
    let fake = name.starts_with("fake");
    let count_of_launches = if fake { 1 } else { 100 };
    let launches: Vec<_> = (turns.iter().cycle().take(count_of_launches))
        .map(|factors| {
            let arguments = arguments![maps, mean, *factors, scale, target, side, count, stride];
            arguments.iter().map(|a| a.cast_mut()).collect::<Vec<_>>()
        })
        .collect();
    let shape = Shape {
        grid: [(grid * grid) as u32 / warps, 1, 1],
        block: [32 * warps, 1, 1],
        shared: warps as usize * shared_bytes(k, 2),
    };
    // SAFETY: the kernel's arguments, and buffers of the sizes that they name.
    let mut times = unsafe { driver.time("embed_distance_half_128", shape, &launches) };
    assert!(out.values().iter().all(|m| m.is_finite()));
    times.sort_by(f32::total_cmp);
    let (median, map) = (f64::from(times[times.len() / 2]), 5440 * 104 * 2);
    let bytes = (2 * factors.len() + 4 * grid * grid * (k + 1) + map) as f64;
    let (pace, peak) = (bytes / (median * 1e-3), driver.peak());
    match peak {
        _ if fake => {}
        0.0 => println!("{name}: {median:.4} ms, {:.1} GB/s; the driver does not say the memory's peak", pace / 1e9),
        _ => {
            let share = 100.0 * pace / peak;
            println!("{name}: {median:.4} ms, {:.1} GB/s, {share:.0} % of {:.0} GB/s", pace / 1e9, peak / 1e9);
        }
    }
}

/// The way to a device, as far as it goes without one: this whole suite through a driver that is a test double.
#[test]
fn the_suite_passes_through_the_driver_too() {
    const NAME: &str = "the_suite_passes_through_the_driver_too";
    if std::env::var_os("CELLGATE_LIBCUDA").is_some() {
        return; // this is that suite
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let driver = folder.path().join("libcuda.so.1");
    if kernels::build("fake_cuda.cpp", &driver).is_none() {
        return common::skip(NAME, "a C++ compiler (apt-get install g++)");
    }
    let suite = std::env::current_exe().unwrap();
    let done = Command::new(suite).args(["--skip", NAME]).env("CELLGATE_LIBCUDA", &driver).output().unwrap();
    let output = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{output}{}", String::from_utf8_lossy(&done.stderr));
    assert!(output.contains(" 0 failed; 0 ignored"), "{output}");
}
