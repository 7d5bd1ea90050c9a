use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::camera::{CameraError, Format, Shot};
use crate::clock::Moment;

fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Machine) {
    let folder = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let machine = Machine::new(folder.path());
    (folder, machine)
}

/// Every check that is not good says what to do.
fn found(check: &Check) -> Finding {
    assert_eq!(check.remedy.is_some(), check.finding != Finding::Ok, "{check:?}");
    check.finding
}

struct Fake(fn(&mut Shot) -> Result<(), CameraError>);

impl Camera for Fake {
    fn format(&self) -> Format {
        Format { width: 4, height: 2, white: 255 }
    }

    fn next(&mut self, shot: &mut Shot, _: Duration) -> Result<(), CameraError> {
        (self.0)(shot)
    }

    fn describe(&self) -> String {
        "a fake".into()
    }
}

fn camera(next: fn(&mut Shot) -> Result<(), CameraError>) -> Check {
    parts::camera(Box::new(move || Ok(Box::new(Fake(next)) as Box<dyn Camera>)))
}

#[test]
fn a_camera_is_told_by_what_it_gives() {
    let lit = camera(|shot| {
        shot.frame = crate::frame::Frame::from_pixels(4, 2, 255, vec![0, 0, 0, 0, 0, 0, 0, 204]);
        Ok(())
    });
    assert_eq!(found(&lit), Finding::Ok);
    assert!(lit.seen.contains("10.0 % bright"), "{}", lit.seen);
    assert_eq!(found(&camera(|_| Ok(()))), Finding::Warn, "all black");
    assert_eq!(found(&camera(|_| Err(CameraError::Nothing(Duration::ZERO)))), Finding::Warn);
    assert_eq!(found(&camera(|_| Err(CameraError::Lost("gone".into())))), Finding::Fail);
    assert_eq!(found(&camera(|_| Err(CameraError::End))), Finding::Fail);
    let damaged = |_: &mut Shot| Err(CameraError::Damaged { sequence: 1, taken: Moment::default(), why: "short" });
    assert_eq!(found(&camera(damaged)), Finding::Warn);
    let closed = parts::camera(Box::new(|| Err("/dev/video9: no such device".into())));
    assert!(found(&closed) == Finding::Fail && closed.seen.contains("/dev/video9"));
}

#[test]
fn a_broker_is_tried_step_by_step() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let steps = |host: &str, port: u16, session: Option<OpenSession<'_>>| {
        parts::broker(Broker { host, port, session }).iter().map(|check| (check.name, found(check))).collect::<Vec<_>>()
    };
    let both = [("broker name", Finding::Ok), ("broker", Finding::Ok)];
    assert_eq!(steps("127.0.0.1", port, None), both);
    let session = steps("127.0.0.1", port, Some(Box::new(|| Err("not authorised".into()))));
    assert_eq!(session[2], ("broker session", Finding::Fail));
    let session = steps("127.0.0.1", port, Some(Box::new(|| Ok("MQTT 3.1.1 over TLS 1.3".into()))));
    assert_eq!(session[2], ("broker session", Finding::Ok));
    drop(listener);
    assert_eq!(steps("127.0.0.1", port, Some(Box::new(|| panic!("too early"))))[1..], [("broker", Finding::Fail)]);
    assert_eq!(steps("no such host", 1883, None), [("broker name", Finding::Fail)]);
}

#[test]
fn a_clock_must_be_possible_and_should_be_kept() {
    let (_folder, machine) = tree(&[]);
    let date = |seconds: u64| Date::from_millis(seconds * 1000);
    let today = 1_790_000_000;
    let clock = |now, made, kernel| found(&machine::clock(&machine, date(now), made, kernel));
    assert_eq!(clock(0, None, Some(true)), Finding::Fail, "1970");
    assert_eq!(clock(today, Some(today + 100_000), Some(true)), Finding::Fail, "before its model");
    assert_eq!(clock(today, Some(today + 3600), Some(true)), Finding::Ok, "clocks of two machines differ");
    assert_eq!(clock(today, None, Some(false)), Finding::Warn);
    let (_folder, kept) = tree(&[("run/systemd/timesync/synchronized", "")]);
    assert_eq!(found(&machine::clock(&kept, date(today), None, Some(false))), Finding::Ok);
}

#[test]
fn a_disk_must_take_what_the_outbox_may_hold() {
    let folder = tempfile::tempdir().unwrap();
    let all = |path: &Path, bytes| machine::disk(path, bytes).iter().map(found).collect::<Vec<_>>();
    let free = crate::operations::machine::disk(folder.path()).unwrap().free;
    if free > 1 << 30 {
        assert_eq!(all(folder.path(), 1 << 20), [Finding::Ok, Finding::Ok]);
        assert_eq!(all(folder.path(), u64::MAX), [Finding::Ok, Finding::Warn]);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    assert_eq!(all(&folder.path().join("none"), 0), [Finding::Fail]);
    assert_eq!(all(Path::new("/proc/self"), 0)[0], Finding::Fail, "not writable");
}

#[test]
fn memory_heat_and_gpu_are_told_from_the_machines_files() {
    let (_folder, machine) = tree(&[("proc/meminfo", "MemTotal: 2000000 kB\n")]);
    assert_eq!(found(&machine::memory(&machine, Some(50 << 20)).unwrap()), Finding::Ok);
    assert_eq!(found(&machine::memory(&machine, Some(1 << 30)).unwrap()), Finding::Fail);
    assert_eq!(machine::heat(&machine), None);
    assert_eq!(found(&machine::gpu(&machine)), Finding::Ok, "none is fine");
    let zone = "sys/class/thermal/thermal_zone0/temp";
    assert_eq!(found(&machine::heat(&tree(&[(zone, "60000")]).1).unwrap()), Finding::Ok);
    assert_eq!(found(&machine::heat(&tree(&[(zone, "91000")]).1).unwrap()), Finding::Warn);
    assert_eq!(found(&machine::gpu(&tree(&[("dev/nvidia0", "")]).1)), Finding::Warn);
    let jetson = [
        ("dev/nvhost-gpu", ""),
        ("usr/lib/aarch64-linux-gnu/tegra/libcuda.so.1", ""),
        ("proc/device-tree/model", "Jetson AGX Orin\0"),
    ];
    let check = machine::gpu(&tree(&jetson).1);
    assert!(found(&check) == Finding::Ok && check.seen.ends_with("(Jetson AGX Orin)"), "{}", check.seen);
}

#[test]
fn a_service_without_a_watchdog_is_told_what_it_lacks() {
    assert_eq!(found(&machine::service(&tree(&[]).1)), Finding::Warn);
    let unit = |text| machine::service(&tree(&[("etc/systemd/system/cellgate.service", text)]).1);
    let good = unit("[Service]\nType=notify\nExecStart=cellgate run\nWatchdogSec=10s\nRestart = on-failure\n");
    assert_eq!(found(&good), Finding::Ok);
    assert_eq!(found(&unit(include_str!("../../../deploy/station/cellgate.service"))), Finding::Ok, "ours");
    let bad = unit("[Service]\nType=notify\nWatchdogSec=0\nRestart=no\n");
    assert_eq!(found(&bad), Finding::Warn);
    let remedy = bad.remedy.unwrap();
    assert!(remedy.contains("WatchdogSec=10, Restart=always") && !remedy.contains("Type"), "{remedy}");
}

#[test]
fn limits_are_looked_at_where_they_are_wanted() {
    assert_eq!(machine::limits(&OperationsConfig::default()), []);
    let config =
        OperationsConfig { lock_memory: true, fifo_priority: 50, affinity: vec![1000], ..OperationsConfig::default() };
    let names: Vec<&str> = machine::limits(&config).iter().map(|check| (found(check), check.name).1).collect();
    assert_eq!(names, ["locked memory", "priority", "cores"]);
    found(&machine::open_files());
}

#[test]
fn tensorrt_is_asked_for_where_there_is_work_for_it() {
    assert!(machine::tensorrt(Backend::Cpu, true).is_none());
    assert!(machine::tensorrt(Backend::Auto, false).is_none());
    for (backend, finding) in [(Backend::Auto, Finding::Warn), (Backend::Cuda, Finding::Fail)] {
        let check = machine::tensorrt(backend, true).unwrap();
        // A machine that builds this may have a TensorRT.
        if check.finding != Finding::Ok {
            assert_eq!(check.finding, finding);
            assert!(check.seen.contains("TensorRT") && check.remedy.is_some(), "{check:?}");
        }
    }
}

#[test]
fn a_station_without_anything_is_told_everything() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none.cgm");
    let operations = OperationsConfig::default();
    let png = DisplayConfig {
        output: crate::display::Output::Png,
        path: Some(PathBuf::from("/proc/self/display.png")),
        ..DisplayConfig::default()
    };
    let checks = examine(Subject {
        model: Some(&missing),
        backbone: None,
        backend: Backend::Cpu,
        camera: Some(Box::new(|| Err("no camera".into()))),
        broker: None,
        outbox: Some(&missing),
        outbox_bytes: 0,
        updates: Some(&missing),
        display: Some(&png),
        operations: &operations,
        root: folder.path(),
    });
    for check in &checks {
        found(check);
    }
    assert_eq!(worst(&checks), Finding::Fail);
    let of = |name| checks.iter().find(|check| check.name == name).unwrap().finding;
    assert_eq!((of("model"), of("camera"), of("outbox")), (Finding::Fail, Finding::Fail, Finding::Fail));
    assert_eq!((of("display"), of("service")), (Finding::Warn, Finding::Warn));
    let json = serde_json::to_value(&checks).unwrap();
    assert_eq!(json[0]["finding"], "FAIL");
    assert_eq!(worst(&[]), Finding::Ok);
}
