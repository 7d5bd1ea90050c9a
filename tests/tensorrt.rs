//! The way through TensorRT, whole, on doubles of its libraries that are built from its own headers. What they cannot show is
//! TensorRT itself: its speed, its rounding, and what it makes of the networks.
#![cfg(all(feature = "tensorrt", target_os = "linux"))]

mod common;
#[path = "tensorrt/double.rs"]
mod double;

use std::path::Path;
use std::process::Command;
use std::ptr::null_mut;

use cellgate::backbone::ResNet18;
use cellgate::classifier::Network;
use cellgate::cuda::DeviceNetwork;
use cellgate::embedding::projection::CHANNELS;
use cellgate::embedding::{Mixing, Projection};
use cellgate::tensorrt::engines::{self, EngineError, Gpu};
use cellgate::tensorrt::{BuildOptions, Engine, Runtime, Source, TensorRtError, TensorRtNetwork};
use half::f16;

const SIZE: usize = 64;

fn projection(k: usize) -> Projection {
    Projection::semi_orthogonal(Mixing::Sparse, k, 7, "1,3".parse().unwrap(), &[1.0; CHANNELS]).unwrap()
}

fn features(k: usize) -> Source {
    Source::features(&ResNet18::embedded().unwrap(), &projection(k), SIZE, 0).unwrap()
}

/// Small, so that a test may read it often.
fn classifier() -> Source {
    Source::classifier(&Network::new(1, 3, 11).unwrap().fold(64), 1).unwrap()
}

fn orin() -> Gpu {
    Gpu { name: "Orin".into(), capability: (8, 7) }
}

fn engine(runtime: &Runtime, source: &Source) -> Result<Engine, TensorRtError> {
    let built = runtime.build(source.onnx(), BuildOptions::default(), &[])?;
    // SAFETY: the double made it.
    unsafe { runtime.deserialise(&built.plan) }
}

/// Memory as a device has it: aligned, and as long as was asked for.
#[repr(align(256))]
#[derive(Clone, Copy)]
struct Line([u8; 256]);

struct Memory(Vec<Line>, usize);

impl Memory {
    fn new(bytes: usize) -> Self {
        Self(vec![Line([0; 256]); bytes.div_ceil(256)], bytes)
    }
    fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }
    fn halves(&self) -> Vec<f32> {
        let bytes = self.0.iter().flat_map(|line| line.0);
        let bytes: Vec<u8> = bytes.take(self.1).collect();
        bytes.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()
    }
    fn set(&mut self, values: &[f32]) {
        let bytes = values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes());
        for (at, byte) in bytes.enumerate() {
            self.0[at / 256].0[at % 256] = byte;
        }
    }
}

fn buffers(source: &Source) -> Vec<Memory> {
    let bytes = |shape: &[i64]| 2 * shape.iter().product::<i64>() as usize;
    source.tensors().iter().map(|tensor| Memory::new(bytes(&tensor.shape))).collect()
}

fn network(engine: Engine, source: &Source) -> Result<TensorRtNetwork, TensorRtError> {
    let memory = Memory::new(engine.working_memory());
    let (address, size) = (memory.address(), memory.1);
    // SAFETY: the memory is the network's.
    unsafe { TensorRtNetwork::new(engine, source, address, size, memory) }
}

#[test]
fn a_missing_library_is_named_with_the_remedy() {
    let missing = Path::new("/nowhere/libnvinfer.so");
    let error = Runtime::load(Some(missing), None).unwrap_err();
    assert!(matches!(error, TensorRtError::Library { .. }));
    let text = error.to_string();
    assert!(text.contains("/nowhere/libnvinfer.so") && text.contains("LD_LIBRARY_PATH"), "{text}");
    // A library, but not TensorRT's.
    let error = Runtime::load(Some(Path::new("libc.so.6")), None).unwrap_err();
    assert!(error.to_string().contains("not TensorRT's"), "{error}");
}

#[test]
fn another_major_version_is_refused_before_anything_of_it_is_called() {
    let Some(test) = double::take("another_major_version_is_refused_before_anything_of_it_is_called") else { return };
    for (version, named) in [(8503, " 8.5"), (9300, " 9.3"), (120_000, " 12.0"), (0x7fff_ffff, ".x"), (-1, ".x")] {
        test.double.version(version);
        test.double.fail(0);
        let error = test.double.runtime().unwrap_err();
        assert!(matches!(error, TensorRtError::OtherMajor { .. }), "{error}");
        assert!(error.to_string().contains(named) && error.to_string().contains("TENSORRT_INCLUDE"), "{error}");
        assert_eq!((test.double.calls(), test.double.live()), (0, 0));
    }
}

/// Headers of a later minor version serve an earlier library: it is asked for no more than it is.
#[test]
fn each_major_version_with_headers_is_served_from_its_oldest_library_on() {
    let test = "each_major_version_with_headers_is_served_from_its_oldest_library_on";
    let doubles: Vec<_> = double::headers().iter().filter_map(|headers| double::build(headers)).collect();
    if doubles.is_empty() {
        return common::skip(test, "g++, python3 and TENSORRT_INCLUDE, which `cargo xtask tensorrt-headers` prints");
    }
    let network = classifier();
    for double in &doubles {
        let major = double.runtime().unwrap().version().major;
        for (minor, patch) in [(0, 0), (2, 9), (3, 0), (99, 99)] {
            let version = i32::try_from(major * 10_000 + minor * 100 + patch).unwrap();
            double.version(version);
            if (major, minor) < (10, 3) {
                let error = double.runtime().unwrap_err();
                assert!(matches!(error, TensorRtError::OtherMajor { .. }), "{error}");
                assert!(error.to_string().contains(&format!("10.{minor}, ")) && error.to_string().contains("10.3"));
                continue;
            }
            let runtime = double.runtime().unwrap();
            assert_eq!(runtime.version().to_string(), format!("{major}.{minor}.{patch}"));
            assert_eq!(engine(&runtime, &network).unwrap().tensors(), network.tensors());
        }
        assert_eq!(double.live(), 0);
    }
    let majors: Vec<_> = doubles.iter().map(|double| double.runtime().unwrap().version().major).collect();
    assert!(majors.iter().all(|major| majors.iter().filter(|other| *other == major).count() == 1), "{majors:?}");
}

#[test]
fn an_engine_has_the_tensors_and_layers_of_its_network() {
    let Some(test) = double::take("an_engine_has_the_tensors_and_layers_of_its_network") else { return };
    {
        let runtime = test.double.runtime().unwrap();
        for source in [features(20), classifier()] {
            let engine = engine(&runtime, &source).unwrap();
            assert_eq!(engine.tensors(), source.tensors());
            let layers = engine.layers().unwrap();
            assert!(layers.iter().any(|layer| layer.kind == "Conv" && layer.outputs == ["Half"]), "{layers:?}");
        }
        // Stage 4 is not wanted, so nothing of it is built.
        let names: Vec<String> =
            engine(&runtime, &features(20)).unwrap().layers().unwrap().into_iter().map(|l| l.name).collect();
        assert!(
            names.iter().any(|n| n == "layer3.1.conv2") && !names.iter().any(|n| n.starts_with("layer4")),
            "{names:?}"
        );
    }
    assert_eq!(test.double.live(), 0);
}

#[test]
fn what_is_no_onnx_model_is_refused_in_the_parsers_words() {
    let Some(test) = double::take("what_is_no_onnx_model_is_refused_in_the_parsers_words") else { return };
    let runtime = test.double.runtime().unwrap();
    for onnx in [&b""[..], b"nonsense", &classifier().onnx()[..1000]] {
        let error = runtime.build(onnx, BuildOptions::default(), &[]).unwrap_err();
        assert!(matches!(error, TensorRtError::Build { .. }) && error.to_string().contains("no ONNX model"), "{error}");
    }
    let no_parser = Runtime::load(Some(test.double.path()), Some(Path::new("/nowhere/parser.so"))).unwrap();
    let error = no_parser.build(classifier().onnx(), BuildOptions::default(), &[]).unwrap_err();
    assert!(error.to_string().contains("/nowhere/parser.so"), "{error}");
}

#[test]
fn a_truncated_plan_is_refused_at_every_length() {
    let Some(test) = double::take("a_truncated_plan_is_refused_at_every_length") else { return };
    let runtime = test.double.runtime().unwrap();
    let plan = runtime.build(classifier().onnx(), BuildOptions::default(), &[]).unwrap().plan;
    let before = test.double.live();
    // The last byte is a line's end.
    for length in 0..plan.len() - 1 {
        // SAFETY: the double checks its plans.
        let error = unsafe { runtime.deserialise(&plan[..length]) }.unwrap_err();
        assert!(matches!(error, TensorRtError::Plan { .. }), "{length}: {error}");
    }
    assert_eq!(test.double.live(), before);
}

#[test]
fn an_engine_of_other_shapes_is_refused() {
    let Some(test) = double::take("an_engine_of_other_shapes_is_refused") else { return };
    let runtime = test.double.runtime().unwrap();
    let built = features(20);
    for (other, named) in [(features(30), "map1"), (classifier(), "logits")] {
        let error = network(engine(&runtime, &built).unwrap(), &other).unwrap_err();
        assert!(matches!(error, TensorRtError::Tensors { .. }) && error.to_string().contains(named), "{error}");
    }
    let all = Projection::semi_orthogonal(Mixing::Sparse, 20, 7, "1,2,3".parse().unwrap(), &[1.0; CHANNELS]).unwrap();
    let more = Source::features(&ResNet18::embedded().unwrap(), &all, SIZE, 0).unwrap();
    let error = network(engine(&runtime, &built).unwrap(), &more).unwrap_err();
    assert!(error.to_string().contains("lacks output map2"), "{error}");
    let error = network(engine(&runtime, &more).unwrap(), &built).unwrap_err();
    assert!(error.to_string().contains("has output map2"), "{error}");
}

#[test]
fn too_little_working_memory_is_refused() {
    let Some(test) = double::take("too_little_working_memory_is_refused") else { return };
    let runtime = test.double.runtime().unwrap();
    let source = classifier();
    for (memory, size) in [(Memory::new(2999).address(), 2999), (0, 3000)] {
        // SAFETY: it is refused.
        let made = unsafe { TensorRtNetwork::new(engine(&runtime, &source).unwrap(), &source, memory, size, ()) };
        let error = made.unwrap_err();
        assert!(matches!(error, TensorRtError::Memory { .. }) && error.to_string().contains("3000"), "{error}");
    }
    drop(runtime);
    assert_eq!(test.double.live(), 0);
}

#[test]
fn a_run_takes_the_input_and_fills_each_output() {
    let Some(mut test) = double::take("a_run_takes_the_input_and_fills_each_output") else { return };
    let (backbone, projection) = (ResNet18::embedded().unwrap(), projection(20));
    let source = Source::features(&backbone, &projection, SIZE, 2).unwrap();
    let mut image = common::maps::image(SIZE);
    image.extend_from_within(..);
    let rounded: Vec<f32> = image.iter().map(|&x| f16::from_f32(x).to_f32()).collect();
    let expected = common::maps::of(&backbone, &projection, SIZE, true, &rounded);
    test.compute(&source, move |image, outputs| {
        for (output, map) in outputs.iter_mut().zip(common::maps::of(&backbone, &projection, SIZE, true, image)) {
            output.iter_mut().zip(map).for_each(|(to, x)| *to = f16::from_f32(x));
        }
    });
    {
        let runtime = test.double.runtime().unwrap();
        let mut network = network(engine(&runtime, &source).unwrap(), &source).unwrap();
        let mut buffers = buffers(&source);
        buffers[0].set(&image);
        let addresses: Vec<u64> = buffers.iter().map(Memory::address).collect();
        let mut run = |input, outputs: &[u64]| {
            // SAFETY: buffers of the tensors' sizes; the double has no streams of its own.
            unsafe { network.enqueue(input, outputs, null_mut()) }.map_err(|error| error.to_string())
        };
        assert!(run(addresses[0], &addresses[1..2]).unwrap_err().contains("1 outputs were given, it has 6"));
        assert!(run(0, &addresses[1..]).unwrap_err().contains("image: its address is null"));
        run(addresses[0], &addresses[1..]).unwrap();
        for (got, expected) in buffers[1..].iter().zip(&expected) {
            let rounded: Vec<f32> = expected.iter().map(|&x| f16::from_f32(x).to_f32()).collect();
            assert!(got.halves() == rounded);
            assert!(rounded.iter().any(|&x| x != 0.0));
        }
        assert!(network.name().starts_with("features") && network.device_memory() > 3000, "{}", network.name());
    }
    assert_eq!(test.double.live(), 0);
}

#[test]
fn an_error_at_every_call_in_turn_is_told_and_leaks_nothing() {
    let Some(mut test) = double::take("an_error_at_every_call_in_turn_is_told_and_leaks_nothing") else { return };
    let source = classifier();
    test.compute(&source, |image, outputs| outputs[1][0] = f16::from_f32(image[0]));
    let whole_way = || -> Result<(), String> {
        let runtime = test.double.runtime().map_err(|e| e.to_string())?;
        let built = runtime.build(source.onnx(), BuildOptions::default(), &[]).map_err(|e| e.to_string())?;
        // SAFETY: the double made it.
        let engine = unsafe { runtime.deserialise(&built.plan) }.map_err(|e| e.to_string())?;
        engine.layers().map_err(|e| e.to_string())?;
        let mut network = network(engine, &source).map_err(|e| e.to_string())?;
        let mut buffers = buffers(&source);
        buffers[0].set(&[0.5]);
        let addresses: Vec<u64> = buffers.iter().map(Memory::address).collect();
        // SAFETY: buffers of the tensors' sizes.
        unsafe { network.enqueue(addresses[0], &addresses[1..], null_mut()) }.map_err(|e| e.to_string())?;
        assert_eq!(buffers[2].halves()[0], 0.5);
        Ok(())
    };
    test.double.fail(0);
    whole_way().unwrap();
    let calls = test.double.calls();
    assert!(calls > 20, "{calls}");
    let mut survived = 0;
    for n in 1..=calls {
        test.double.fail(n);
        match whole_way() {
            Err(error) => assert!(error.contains("injected failure of"), "call {n}: {error}"),
            Ok(()) => survived += 1,
        }
        assert_eq!(test.double.live(), 0, "call {n}");
    }
    // A timing cache that is refused or cannot be written only costs time.
    assert!(survived <= 2, "{survived} failures were not told");
}

#[test]
fn an_engine_is_built_once_and_anew_for_other_options() {
    let Some(test) = double::take("an_engine_is_built_once_and_anew_for_other_options") else { return };
    let runtime = test.double.runtime().unwrap();
    let (source, folder) = (classifier(), tempfile::tempdir().unwrap());
    let folder = folder.path().join("engines");
    let build = |options| engines::build(&runtime, &source, &orin(), &folder, options, 1).unwrap();
    let warm = test.double.warm_builds();
    let (about, new) = build(BuildOptions::default());
    assert!(new && about.onnx == source.hash() && about.working_memory == 3000 && about.gpu == orin());
    assert_eq!(build(BuildOptions::default()), (about.clone(), false));
    assert_eq!(test.double.warm_builds(), warm);
    let others = BuildOptions { optimisation: 5, ..BuildOptions::default() };
    let (about, new) = build(others);
    assert!(new && about.options == others);
    assert_eq!(test.double.warm_builds(), warm + 1, "the second build knows what the first one measured");
    engines::open(&runtime, &source, &orin(), &folder).unwrap();
    let (shown, layers, plan) = engines::show(&engines::path(&folder, &source)).unwrap();
    assert!(shown == about && layers.iter().any(|layer| layer.name == "conv1") && plan > 100);
}

#[test]
fn foreign_and_damaged_engines_are_refused() {
    let Some(test) = double::take("foreign_and_damaged_engines_are_refused") else { return };
    let runtime = test.double.runtime().unwrap();
    let (source, folder) = (classifier(), tempfile::tempdir().unwrap());
    let folder = folder.path();
    let refused = |runtime: &Runtime, gpu: &Gpu, source: &Source| {
        let error = engines::open(runtime, source, gpu, folder).unwrap_err();
        assert!(error.to_string().contains("cellgate engine build"), "{error}");
        error
    };
    assert!(matches!(refused(&runtime, &orin(), &source), EngineError::Missing { .. }));
    engines::build(&runtime, &source, &orin(), folder, BuildOptions::default(), 1).unwrap();
    // Another GPU, the same by name but another generation, another patch of TensorRT.
    for gpu in [Gpu { name: "Thor".into(), ..orin() }, Gpu { capability: (11, 0), ..orin() }] {
        assert!(matches!(refused(&runtime, &gpu, &source), EngineError::Foreign { what: "the GPU", .. }));
    }
    test.double.version(i32::try_from(runtime.version().major).unwrap() * 10_000 + 9_901);
    let newer = test.double.runtime().unwrap();
    assert!(matches!(refused(&newer, &orin(), &source), EngineError::Foreign { what: "TensorRT", .. }));
    test.double.version(0);
    // The engine of another network under this one's name.
    let other = Source::classifier(&Network::new(1, 3, 12).unwrap().fold(64), 1).unwrap();
    std::fs::copy(engines::path(folder, &source), engines::path(folder, &other)).unwrap();
    assert!(matches!(refused(&runtime, &orin(), &other), EngineError::Foreign { what: "the network", .. }));
    // Every byte counts.
    let path = engines::path(folder, &source);
    let whole = std::fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(97) {
        let mut damaged = whole.clone();
        damaged[at] ^= 4;
        std::fs::write(&path, &damaged).unwrap();
        assert!(matches!(refused(&runtime, &orin(), &source), EngineError::Damaged { .. }), "byte {at}");
        std::fs::write(&path, &whole[..at]).unwrap();
        assert!(matches!(refused(&runtime, &orin(), &source), EngineError::Damaged { .. }), "length {at}");
    }
    // A build mends it; a damaged timing cache is measured anew.
    std::fs::write(folder.join("timing.cache"), b"nonsense").unwrap();
    assert!(engines::build(&runtime, &source, &orin(), folder, BuildOptions::default(), 1).unwrap().1);
    engines::open(&runtime, &source, &orin(), folder).unwrap();
}

/// Builds `drive.cpp` with the shims in one program, and a double for each.
fn drive(test: &str, compiler: &str, flags: &[&str], runner: &[&str]) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let folder = folder.path();
    let known = Command::new(compiler).arg("--version").output().is_ok_and(|output| output.status.success());
    let runs = runner.first().is_none_or(|runner| Command::new(runner).arg("--version").output().is_ok());
    let headers = double::headers();
    let stubs = headers.iter().all(|headers| double::write_stubs(headers, folder));
    if headers.is_empty() || !(known && runs && stubs) {
        return common::skip(test, &format!("{compiler}, {runner:?}, python3 and TENSORRT_INCLUDE (docs/tensorrt.md)"));
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut shims, mut doubles) = (Vec::new(), Vec::new());
    for (at, headers) in headers.iter().enumerate() {
        assert!(double::write_stubs(headers, folder));
        for (source, kind, files) in
            [("tests/tensorrt/fake.cpp", "-shared", &mut doubles), ("src/tensorrt/shim.cpp", "-c", &mut shims)]
        {
            files.push(folder.join(format!("{at}{kind}")));
            let mut build = double::compile(compiler, headers, folder);
            build.args(flags).args(["-fPIC", kind]).arg(root.join(source)).arg("-o").arg(&files[at]);
            assert!(build.status().unwrap().success());
        }
    }
    let program = folder.join("drive");
    let mut build = double::compile(compiler, &headers[0], folder);
    build.args(flags).arg(root.join("tests/tensorrt/drive.cpp")).args(&shims);
    assert!(build.args(["-ldl", "-o"]).arg(&program).status().unwrap().success());
    let onnx = folder.join("classifier.onnx");
    std::fs::write(&onnx, classifier().onnx()).unwrap();
    let mut words = runner.iter().map(std::ffi::OsString::from).chain([program.into()]);
    let mut run = Command::new(words.next().unwrap());
    let output = run.args(words).arg(&onnx).args(&doubles).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !text.contains("runtime error"), "{text}");
}

#[test]
fn the_shim_passes_the_sanitisers_with_every_call_failing_in_turn() {
    // The shim's names of TensorRT's classes are its own: by `vptr` a logger of it would be none.
    let flags = ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"];
    drive("the_shim_passes_the_sanitisers_with_every_call_failing_in_turn", "g++", &flags, &[]);
}

#[test]
fn the_shim_runs_on_arm64() {
    let runner = ["qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"];
    drive("the_shim_runs_on_arm64", "aarch64-linux-gnu-g++", &[], &runner);
}
