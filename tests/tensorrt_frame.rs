//! A cell on a device with its network in TensorRT, whole, on doubles of the driver and of TensorRT: the CPU's verdict, and
//! the CPU where the engine is missing or another's.
#![cfg(all(feature = "tensorrt", target_os = "linux"))]

mod common;
#[path = "tensorrt/double.rs"]
mod double;
#[path = "cuda/fake.rs"]
mod fake;
#[path = "cuda/network.rs"]
mod network;

use std::sync::Arc;

use cellgate::backbone::ResNet18;
use cellgate::backbone::cpu::CpuBackbone;
use cellgate::classifier::SIDE;
use cellgate::classifier::infer::Classifier;
use cellgate::cuda::Device;
use cellgate::model::Model;
use cellgate::pipeline::Inspector;
use cellgate::pipeline::backend::{self, Backend, Engaged};
use cellgate::simd::Isa;
use cellgate::synth::{DefectKind, Generator, SynthConfig};
use cellgate::tensorrt::BuildOptions;
use cellgate::tensorrt::engines::{self, Gpu};
use cellgate::verdict::Verdict;
use cellgate::workers::Workers;
use half::f16;

const SIZE: usize = 64;
/// Of M: the network's input and output are halves.
const TOLERANCE: f32 = 1e-2;

#[test]
fn a_cell_is_judged_as_on_the_cpu_and_without_an_engine_on_the_cpu() {
    let name = "a_cell_is_judged_as_on_the_cpu_and_without_an_engine_on_the_cpu";
    let Some(turn) = fake::turn(name) else { return };
    let Some(mut test) = double::take(name) else { return };
    // SAFETY: the only test of this program; no other thread looks at the environment.
    unsafe {
        std::env::set_var("CELLGATE_LIBNVINFER", test.double.path());
        std::env::set_var("CELLGATE_LIBNVONNXPARSER", test.double.path());
    }
    let folder = tempfile::tempdir().unwrap();
    let model = Arc::new(Model::open(&common::judged_model(folder.path(), SIZE as u32, 16, 24, 2, 64)).unwrap());
    let backbone = ResNet18::embedded().unwrap();
    let inspector = || {
        let workers = Arc::new(Workers::new(1));
        let cpu = CpuBackbone::new(&backbone, SIZE, Isa::detect(), Arc::clone(&workers)).unwrap();
        Inspector::new(Arc::clone(&model), Box::new(cpu), workers).unwrap()
    };
    let sources = backend::sources(&model, &backbone).unwrap();
    let [features, classifier] = &sources[..] else { panic!("the judge asks a network") };
    let (network, projection) = (backbone.clone(), model.projection().clone());
    test.compute(features, move |images, outputs| {
        for (output, map) in outputs.iter_mut().zip(common::maps::of(&network, &projection, SIZE, true, images)) {
            output.iter_mut().zip(map).for_each(|(to, x)| *to = f16::from_f32(x));
        }
    });
    let judge = Arc::clone(model.judge().unwrap());
    test.compute(classifier, move |planes, outputs| {
        let net = judge.network().unwrap();
        let mut classifier = Classifier::new(net, Isa::detect(), Arc::new(Workers::new(1))).unwrap();
        let ways = planes.chunks_exact(net.inputs * SIDE * SIDE);
        for (planes, output) in ways.zip(outputs[0].chunks_exact_mut(net.classes)) {
            let mut logits = vec![0.0; net.classes];
            classifier.logits(&planes.chunks_exact(SIDE * SIDE).collect::<Vec<_>>(), &mut logits).unwrap();
            output.iter_mut().zip(logits).for_each(|(to, x)| *to = f16::from_f32(x));
        }
    });
    let engines_in = folder.path().join("engines");
    let engage = |backend, inspector: &mut Inspector| {
        backend::engage(backend, &backbone, &engines_in, std::slice::from_mut(inspector))
    };

    // No engine: refused, or the CPU.
    let mut cpu = inspector();
    let error = engage(Backend::Cuda, &mut inspector()).unwrap_err().to_string();
    assert!(error.contains("cellgate engine build"), "{error}");
    assert!(matches!(engage(Backend::Auto, &mut cpu).unwrap(), Engaged::Fallback(_)) && cpu.device().is_none());
    assert_eq!((test.double.live(), turn.alive()), (0, 0), "leaked");

    {
        let device = Device::open().unwrap();
        let gpu = Gpu { name: device.name().to_owned(), capability: device.capability() };
        let runtime = test.double.runtime().unwrap();
        let build = |source| engines::build(&runtime, source, &gpu, &engines_in, BuildOptions::default(), 1).unwrap();
        build(features);
        // The classifier's is missing: as if all were.
        let error = engage(Backend::Cuda, &mut inspector()).unwrap_err().to_string();
        assert!(error.contains("classifier-") && error.contains("cellgate engine build"), "{error}");
        assert!(matches!(engage(Backend::Auto, &mut cpu).unwrap(), Engaged::Fallback(_)) && cpu.device().is_none());
        build(classifier);
    }
    let mut inspectors = [inspector()];
    engage(Backend::Cuda, &mut inspectors[0]).unwrap();
    let generator = Generator::new(SynthConfig { size: 180, ..SynthConfig::default() }, 3).unwrap();
    let mut frames: Vec<_> = (0..3).map(|index| generator.cell(1000 + index).frame).collect();
    frames.extend(DefectKind::ALL.into_iter().map(|kind| generator.with_defect(7, kind).frame));
    for (index, frame) in frames.iter().enumerate() {
        let (want, got) = (cpu.inspect(frame), inspectors[0].inspect(frame));
        assert!(inspectors[0].device().is_some(), "frame {index} went to the CPU");
        assert_eq!(std::mem::discriminant(&got.outcome), std::mem::discriminant(&want.outcome), "frame {index}");
        assert_eq!(got.distances.is_some(), want.distances.is_some(), "frame {index}");
        let off = |(a, b): (&f32, &f32)| (a - b).abs() / b;
        let worst = inspectors[0].heatmap().iter().zip(cpu.heatmap()).map(off).fold(0.0, f32::max);
        assert!(worst <= TOLERANCE, "frame {index}: the heatmap is off by {worst}");
        let defective = |verdict: &Verdict| verdict.probabilities.and_then(|p| p.not_a).unwrap();
        assert!((defective(&got) - defective(&want)).abs() <= 0.02, "frame {index}: {got:?} for {want:?}");
    }

    // An error at every call of TensorRT in turn, from the library to the capture.
    test.double.fail(0);
    engage(Backend::Cuda, &mut inspectors[0]).unwrap();
    let calls = test.double.calls();
    drop(inspectors);
    assert_eq!((test.double.live(), turn.alive()), (0, 0), "leaked");
    let mut refused = inspector();
    for n in 1..=calls {
        test.double.fail(n);
        let error = engage(Backend::Cuda, &mut refused).unwrap_err().to_string();
        assert!(error.contains("injected failure of"), "call {n}: {error}");
        assert_eq!((test.double.live(), turn.alive()), (0, 0), "call {n} leaked");
    }
    test.double.fail(0);

    // The engine of another GPU.
    turn.device((11, 0), 13000, 1, 8 << 30);
    let error = engage(Backend::Cuda, &mut inspector()).unwrap_err().to_string();
    assert!(error.contains("sm_110") && error.contains("sm_87") && error.contains("cellgate engine build"), "{error}");
    turn.orin();
    assert_eq!((test.double.live(), turn.alive()), (0, 0), "leaked");
}
