//! At work the station allocates nothing and grows by nothing. A test program of its own, since it counts every allocation
//! of the process: camera, desk, judge, clock and outbox, and a change of the model with frames lent meanwhile.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cellgate::backbone::ResNet18;
use cellgate::backbone::cpu::CpuBackbone;
use cellgate::camera::Camera;
use cellgate::camera::synthetic::{Settings, Synthetic};
use cellgate::model::Model;
use cellgate::operations::drift::{Drift, DriftConfig};
use cellgate::operations::machine::Machine;
use cellgate::operations::metrics::Recorder;
use cellgate::outbox::{OutboxConfig, Store};
use cellgate::pipeline::Inspector;
use cellgate::simd::Isa;
use cellgate::station::desk::{Desk, DeskSettings};
use cellgate::station::exchange::Exchange;
use cellgate::station::judge::Inspection;
use cellgate::station::scribe::{Listener, Scribe, Told};
use cellgate::station::{Parts, Station};
use cellgate::synth::SynthConfig;
use cellgate::verdict::Invalid;
use cellgate::verdict::payload::About;
use cellgate::workers::Workers;

mod common;

#[path = "common/counting.rs"]
mod counting;

use counting::allocations;

/// What the appliance counts of each verdict.
struct Counter {
    recorder: Recorder,
    drift: Drift,
}

impl Listener for Counter {
    fn told(&mut self, told: &Told<'_>) {
        self.recorder.record(told.said, told.latency_us);
        self.drift.record(told.said, told.score);
    }
}

const WARM: u64 = 200;
const CELLS: u64 = 1000;

#[test]
fn a_thousand_cells_from_camera_to_outbox_allocate_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let model = Arc::new(Model::open(&common::small_model(folder.path(), 64, 16, 24)).unwrap());
    let (network, workers) = (ResNet18::embedded().unwrap(), Arc::new(Workers::new(2)));
    let inspector = || {
        let backbone = CpuBackbone::new(&network, 64, Isa::detect(), Arc::clone(&workers)).unwrap();
        Inspector::new(Arc::clone(&model), Box::new(backbone), Arc::clone(&workers)).unwrap()
    };
    let proportions = [0.6, 0.2, 0.2];
    let camera = Synthetic::new(Settings {
        synth: SynthConfig { size: 180, with_id: true, proportions, ..SynthConfig::default() },
        seed: 3,
        prepared: 40,
        period: Duration::ZERO,
        count: Some(WARM + CELLS + 100),
        ..Settings::default()
    });
    let camera = camera.unwrap();
    let (exchange, next) = (Arc::new(Exchange::new(camera.format())), inspector());
    let judge = Inspection::new(inspector(), None, true, Some(Duration::from_secs(1 << 40)));
    let config = OutboxConfig { path: folder.path().join("outbox"), verdicts: 4096 };
    let store = Store::open(&config).unwrap();
    let about = About { id: None, stamp: None, model: model.id(), grid: 16, cell_mm: Some(156.75) };
    let takt = Duration::from_secs(20);
    let desk = Desk::new(DeskSettings { slots: 4, takt }, None, None);
    let counter =
        Counter { recorder: Recorder::new(&Invalid::NAMES), drift: Drift::new(&DriftConfig::default(), None) };
    let scribe = Scribe::new(Box::new(store.clone()), Some(Box::new(counter)), about, takt);
    let station = Station::start(Parts {
        camera: Box::new(camera),
        judge: Box::new(judge.with_exchange(Arc::clone(&exchange))),
        desk,
        scribe,
        slots: 4,
        on_start: Box::new(|_| ()),
        beat: Box::new(|_| ()),
    })
    .unwrap();
    let (line, machine) = (station.line(), Machine::new(std::path::Path::new("/")));
    let until = |cells: u64| {
        let started = Instant::now();
        while line.status().total.cells() < cells {
            assert!(started.elapsed() < Duration::from_secs(300), "{:?}", line.status().total);
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    until(WARM);
    let (next, patience) = (Box::new(next), Duration::from_secs(60));
    let resident = machine.resident();
    let before = allocations();
    until(WARM + CELLS / 2);
    let lend = || exchange.next_frame(patience, |frame, _| frame.pixels().iter().any(|&pixel| pixel > 0));
    let lent = [lend(), lend()];
    let old = exchange.swap(next, patience);
    let lent_after = lend();
    until(WARM + CELLS);
    let made = allocations() - before;
    assert!(old.is_ok() && lent == [Some(true); 2] && lent_after == Some(true));
    let grown = machine.resident().zip(resident).map_or(0, |(after, before)| after.saturating_sub(before));
    assert_eq!(made, 0, "allocations over {CELLS} cells");
    assert!(grown < 1 << 20, "{grown} bytes grown over {CELLS} cells");
    while !station.is_done() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let status = line.status();
    station.stop();
    let total = status.total;
    assert_eq!(total.cells(), WARM + CELLS + 100);
    assert!(total.a > 100 && total.c > 50 && total.invalid == 0, "{total:?}");
    assert_eq!((store.pending(), status.faults), (total.cells(), Default::default()));
}
