//! From an image to its verdict, and the fit: `cargo bench --bench pipeline`.
//!
//! Latency of each stage for a synthetic 720 × 720 frame with its border to be found, and for a 300 × 300 frame that is
//! the cell (ELPV's size), on one thread and on two. Then images per second and peak memory of a fit over 500 and 2,000
//! images, each in a process of its own. The files of the fit are hard links to 50 synthetic cells: what is measured is
//! how memory depends on the number of images, and the kernel keeps so few files cached, so the disk is left out.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use cellgate::backbone::ResNet18;
use cellgate::backbone::cpu::CpuBackbone;
use cellgate::embedding::Projection;
use cellgate::frame::Frame;
use cellgate::gaussian::Accumulator;
use cellgate::model::{Header, Model, Provenance, Settings};
use cellgate::pipeline::fitting::{Cell, Fitter};
use cellgate::pipeline::{Extractor, Inspector};
use cellgate::preprocess::PreprocessConfig;
use cellgate::simd::Isa;
use cellgate::synth::{Generator, Selection, SynthConfig};
use cellgate::verdict::{Class, Outcome};
use cellgate::workers::Workers;

const DRAWN: u64 = 50;
const ROUNDS: usize = 200;

fn main() {
    // The child of `fit_in_a_process_of_its_own`.
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|a| a == "--fit") {
        return fit_child(Path::new(&arguments[at + 1]), arguments[at + 2].parse().expect("a number of images"));
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let border = draw(&folder.path().join("border"), 720);
    let whole = draw(&folder.path().join("whole"), 300);
    println!(
        "isa {}, S = 256, grid 64, k = 100; latency over {ROUNDS} frames, median / 99th percentile in ms",
        Isa::detect()
    );
    println!("frame        threads  preprocess      backbone        distance        heatmap         all");
    let frames =
        [("720² border", border, PreprocessConfig::default()), ("300² none", whole, PreprocessConfig::whole_frame())];
    for (name, cells, preprocess) in frames {
        let model = model(folder.path(), &cells, preprocess);
        for threads in [1, 2] {
            latency(name, &model, &cells, threads);
        }
    }
    println!("\nfit: images  threads  images/s  peak memory MB");
    for images in [500, 2000] {
        fit_in_a_process_of_its_own(&folder.path().join("border"), images);
    }
}

/// Good synthetic cells as PGM files.
fn draw(folder: &Path, size: usize) -> Vec<Cell> {
    std::fs::create_dir_all(folder).expect("a folder");
    let config = SynthConfig { size, selection: Selection::Only(Class::A), ..SynthConfig::default() };
    let generator = Generator::new(config, 5).expect("valid settings");
    (0..DRAWN)
        .map(|index| {
            let frame = generator.cell(index).frame;
            let mut bytes = format!("P5\n{size} {size}\n255\n").into_bytes();
            bytes.extend(frame.pixels().iter().map(|&p| p as u8));
            let id = format!("{index:02}.pgm");
            let path = folder.join(&id);
            std::fs::write(&path, bytes).expect("room for the cells");
            Cell::file(id, path)
        })
        .collect()
}

fn fitter(network: &ResNet18, settings: &Settings, threads: usize) -> Fitter {
    let extractors = (0..threads).map(|_| {
        let alone = Arc::new(Workers::new(1));
        let backbone = CpuBackbone::new(network, settings.size as usize, Isa::detect(), alone).expect("a valid size");
        Extractor::new(settings.preprocess.clone(), Box::new(backbone)).expect("valid settings")
    });
    Fitter::new(extractors.collect())
}

fn model(folder: &Path, cells: &[Cell], preprocess: PreprocessConfig) -> Arc<Model> {
    let settings = Settings { preprocess, ..Settings::default() };
    let network = ResNet18::embedded().expect("the embedded backbone");
    let (fitter, projection, moments) = fit(&network, cells, &settings);
    let statistics = moments.finish(settings.shrinkage, settings.precision, fitter.workers()).expect("enough cells");
    let mut fitter = fitter;
    let (calibration, _) = fitter
        .calibrate(cells, &settings, &projection, &statistics.view(), |_| ControlFlow::Continue(()))
        .expect("enough cells");
    let images = moments.count();
    let provenance = Provenance {
        software: "bench".into(),
        created: 0,
        data: "synthetic".into(),
        list: [0; 32],
        backbone: "embedded".into(),
        cells: images,
        images,
        skipped: 0,
    };
    let header =
        Header { backbone: network.identity(), settings, provenance, calibration: Some(calibration), classifier: None };
    let path = folder.join("bench.cgm");
    Model::write(&path, &header, &projection, &statistics.view(), None).expect("room for the model");
    Arc::new(Model::open(&path).expect("just written"))
}

fn fit(network: &ResNet18, cells: &[Cell], settings: &Settings) -> (Fitter, Projection, Accumulator) {
    let mut fitter = fitter(network, settings, threads());
    let scale = fitter.channel_scale(&cells[..cells.len().min(50)], settings).expect("usable cells");
    let (grid, k) = (settings.grid as usize, settings.k as usize);
    let projection = settings.projection(&scale).expect("valid settings");
    let mut moments = Accumulator::new(grid, k);
    fitter
        .accumulate(cells, settings, &projection, &mut moments, &mut 0, |_, skipped| {
            assert!(skipped.is_empty(), "{skipped:?}");
            ControlFlow::Continue(())
        })
        .expect("usable cells");
    (fitter, projection, moments)
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn latency(name: &str, model: &Arc<Model>, cells: &[Cell], threads: usize) {
    let network = ResNet18::embedded().expect("the embedded backbone");
    let workers = Arc::new(Workers::new(threads));
    let backbone = CpuBackbone::new(&network, 256, Isa::detect(), Arc::clone(&workers)).expect("a valid size");
    let mut inspector = Inspector::new(Arc::clone(model), Box::new(backbone), workers).expect("its own backbone");
    let frames: Vec<Frame> = cells
        .iter()
        .take(10)
        .map(|cell| {
            let mut frame = Frame::new(0, 0, 255);
            cellgate::frame::decode_file_into(cell.path().expect("a file"), &Default::default(), &mut frame)
                .expect("just written");
            frame
        })
        .collect();
    let mut times: [Vec<f64>; 5] = [(); 5].map(|()| Vec::with_capacity(ROUNDS));
    for round in 0..ROUNDS + 10 {
        let clock = Instant::now();
        let verdict = inspector.inspect(&frames[round % frames.len()]);
        let all = clock.elapsed().as_secs_f64() * 1e3;
        assert!(!matches!(verdict.outcome, Outcome::Invalid(_)), "{:?}", verdict.outcome);
        if round >= 10 {
            let l = verdict.latency;
            let parts = [l.preprocess_us, l.backbone_us, l.distance_us, l.heatmap_us].map(|us| f64::from(us) / 1e3);
            times.iter_mut().zip(parts.into_iter().chain([all])).for_each(|(t, ms)| t.push(ms));
        }
    }
    print!("{name:<12} {threads:>7}");
    for times in &mut times {
        times.sort_by(f64::total_cmp);
        print!("  {:>6.2} / {:>5.2}", times[times.len() / 2], times[times.len() * 99 / 100]);
    }
    println!();
}

fn fit_in_a_process_of_its_own(cells: &Path, images: usize) {
    let this = std::env::current_exe().expect("this program");
    let output = Command::new(this)
        .arg("--fit")
        .arg(cells)
        .arg(images.to_string())
        .stderr(Stdio::inherit())
        .output()
        .expect("running this program again");
    assert!(output.status.success(), "the fit over {images} images failed");
    print!("{}", String::from_utf8_lossy(&output.stdout));
}

fn fit_child(drawn: &Path, images: usize) {
    let folder = tempfile::tempdir_in(drawn).expect("a temporary folder");
    let cells: Vec<Cell> = (0..images)
        .map(|index| {
            let id = format!("cell{index:06}.pgm");
            let path = folder.path().join(&id);
            let original = drawn.join(format!("{:02}.pgm", index as u64 % DRAWN));
            std::fs::hard_link(original, &path).expect("hard links in the temporary folder");
            Cell::file(id, path)
        })
        .collect();
    let settings = Settings::default();
    let network = ResNet18::embedded().expect("the embedded backbone");
    let clock = Instant::now();
    let (fitter, _, moments) = fit(&network, &cells, &settings);
    let statistics = moments.finish(settings.shrinkage, settings.precision, fitter.workers()).expect("enough cells");
    let seconds = clock.elapsed().as_secs_f64();
    assert_eq!(statistics.grid, 64);
    let peak = memory().get("VmHWM").map_or_else(|| "unknown".into(), |kib| format!("{:.1}", *kib as f64 * 1.024e-3));
    println!("{images:>11}  {:>7}  {:>8.1}  {peak:>14}", threads(), images as f64 / seconds);
}

/// What the kernel says about this process's memory, in KiB; empty where there is no /proc.
fn memory() -> HashMap<String, u64> {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_string(), value.trim().strip_suffix(" kB")?.trim().parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}
