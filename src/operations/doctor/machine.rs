//! Checks of the machine: clock, disk, memory, limits, heat, GPU, service.

use std::io;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

use super::Check;
use crate::clock::Date;
use crate::cuda::{CudaError, Device};
use crate::operations::OperationsConfig;
use crate::operations::machine::{self, Machine};
use crate::pipeline::Backend;
use crate::tensorrt::Runtime;
use crate::whole_file;

/// No station of this program ran before: 2026-01-01.
const EARLIEST: u64 = 1_767_225_600;
/// Space to keep beside what the outbox may take.
const SPARE: u64 = 256 << 20;
/// Memory of the program beside its model.
const PROGRAM: u64 = 256 << 20;

/// Whether the date is possible, and someone keeps it right. `made` is when the model was made, in seconds since 1970.
pub(super) fn clock(machine: &Machine, now: Date, made: Option<u64>, kernel: Option<bool>) -> Check {
    let seconds = now.as_millis() / 1000;
    if seconds < EARLIEST {
        return Check::fail(
            "clock",
            format!("it is {now} by this machine, which cannot be"),
            "set the date (timedatectl set-time), fit a battery to the real-time clock, and run systemd-timesyncd or chrony",
        );
    }
    if made.is_some_and(|made| seconds + 86_400 < made) {
        return Check::fail(
            "clock",
            format!("it is {now} by this machine, before its model was made"),
            "set the date of this machine, or of the one that made the model",
        );
    }
    let timesync = machine.has("run/systemd/timesync/synchronized");
    match (timesync, kernel) {
        (true, _) | (_, Some(true)) => Check::ok("clock", format!("{now}, synchronised")),
        (false, Some(false)) => Check::warn(
            "clock",
            format!("{now}, synchronised with nothing"),
            "run systemd-timesyncd or chrony against a server that this network reaches; verdicts carry this date",
        ),
        (false, None) => Check::ok("clock", format!("{now}; whether it is synchronised cannot be told")),
    }
}

/// Whether the kernel holds the clock to be synchronised.
#[cfg(target_os = "linux")]
pub(super) fn kernel_synchronised() -> Option<bool> {
    // SAFETY: all zero is a valid value of this plain struct of integers, and asks for nothing to be changed.
    let mut about: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the struct lives until the call returns.
    let state = unsafe { libc::adjtimex(&raw mut about) };
    (state >= 0).then_some(state != libc::TIME_ERROR)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn kernel_synchronised() -> Option<bool> {
    None
}

/// Whether the outbox can be written and has room.
pub(super) fn disk(folder: &Path, outbox: u64) -> Vec<Check> {
    let shown = folder.display();
    if !folder.is_dir() {
        return vec![Check::fail(
            "outbox",
            format!("the folder {shown} does not exist"),
            format!(
                "make it for the service's user: install -d -o cellgate {shown} (StateDirectory= in the unit does so)"
            ),
        )];
    }
    let tried = match whole_file::write(&folder.join(".cellgate-doctor"), &[b"x"]) {
        Ok(()) => std::fs::remove_file(folder.join(".cellgate-doctor")),
        Err(error) => Err(error),
    };
    let mut checks = vec![match tried {
        Ok(()) => Check::ok("outbox", format!("{shown} can be written")),
        Err(error) => {
            let remedy = match error.kind() {
                io::ErrorKind::ReadOnlyFilesystem => {
                    "mount its file system for writing; look for errors of the disk in dmesg"
                }
                io::ErrorKind::StorageFull => "free space, or lower the outbox's bytes in the configuration",
                _ => "give the folder to the service's user (chown), and name it in ReadWritePaths= of the unit",
            };
            Check::fail("outbox", format!("writing in {shown}: {error}"), remedy)
        }
    }];
    let Some(space) = machine::disk(folder) else { return checks };
    let seen = format!("{} of {} free in {shown}", Bytes(space.free), Bytes(space.size));
    let wanted = outbox.saturating_add(SPARE);
    checks.push(if space.free < SPARE {
        Check::fail("disk", seen, format!("free at least {}", Bytes(wanted)))
    } else if space.free < wanted {
        let remedy = format!("the outbox may grow to {}: free space or lower its limit", Bytes(outbox));
        Check::warn("disk", seen, remedy)
    } else if space.files.is_some_and(|files| files < 1000) {
        Check::warn("disk", format!("{seen}, and hardly any more files can be made"), "remove small files (df -i)")
    } else {
        Check::ok("disk", seen)
    });
    checks
}

/// Whether model and program fit into the memory.
pub(super) fn memory(machine: &Machine, model: Option<u64>) -> Option<Check> {
    let limit = machine.memory_limit()?;
    // While one model replaces another both are there.
    let wanted = model.unwrap_or(0).saturating_mul(2).saturating_add(PROGRAM);
    let seen = format!("{} may be used, about {} are needed", Bytes(limit), Bytes(wanted));
    Some(if limit < wanted {
        Check::fail("memory", seen, "raise MemoryMax= in the unit, or fit with a coarser grid or smaller k")
    } else {
        Check::ok("memory", seen)
    })
}

pub(super) fn open_files() -> Check {
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < 256 => {
            Check::warn("open files", format!("at most {limit}"), "set LimitNOFILE=1024 in the unit")
        }
        Some(limit) => Check::ok("open files", format!("at most {limit}")),
        None => Check::ok("open files", "no limit"),
    }
}

/// Whether the system will grant what the configuration wants for the frame path. As this user and shell: the service has
/// limits of its own.
pub(super) fn limits(operations: &OperationsConfig) -> Vec<Check> {
    let mut checks = Vec::new();
    if operations.lock_memory {
        checks.push(match getrlimit(Resource::Memlock).current {
            Some(limit) if limit < PROGRAM => Check::warn(
                "locked memory",
                format!("at most {} may be locked here, and `operations.lock-memory` is set", Bytes(limit)),
                "set LimitMEMLOCK=infinity in the unit",
            ),
            _ => Check::ok("locked memory", "as much as is needed"),
        });
    }
    if operations.fifo_priority > 0 {
        let wanted = operations.fifo_priority;
        checks.push(match getrlimit(Resource::Rtprio).current {
            Some(limit) if limit < wanted.into() => Check::warn(
                "priority",
                format!("at most {limit} is allowed here, and `operations.fifo-priority` is {wanted}"),
                format!("set LimitRTPRIO={wanted} in the unit"),
            ),
            _ => Check::ok("priority", format!("{wanted} is allowed")),
        });
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if let Some(core) = operations.affinity.iter().find(|&&core| core >= cores) {
        checks.push(Check::warn(
            "cores",
            format!("`operations.affinity` names core {core}, and {cores} can be used here"),
            "name cores that there are (lscpu)",
        ));
    }
    checks
}

pub(super) fn heat(machine: &Machine) -> Option<Check> {
    let degrees = machine.temperature()?;
    let seen = format!("{degrees:.0} °C at the hottest sensor");
    let remedy = "see to the fan, the heat sink and the cabinet's ventilation";
    Some(if machine.throttled() == Some(true) {
        Check::warn("temperature", format!("{seen}; the machine slows itself down"), remedy)
    } else if degrees >= 85.0 {
        Check::warn("temperature", seen, remedy)
    } else {
        Check::ok("temperature", seen)
    })
}

/// Which GPU there is. None is fine: the CPU does the work.
pub(super) fn gpu(machine: &Machine) -> Check {
    let device = ["dev/nvidia0", "dev/nvhost-gpu", "dev/nvgpu/igpu0/power"].into_iter().find(|path| machine.has(path));
    let library = [
        "usr/lib/aarch64-linux-gnu/tegra/libcuda.so.1",
        "usr/lib/aarch64-linux-gnu/nvidia/libcuda.so.1",
        "usr/lib/aarch64-linux-gnu/libcuda.so.1",
        "usr/lib/x86_64-linux-gnu/libcuda.so.1",
        "usr/lib64/libcuda.so.1",
    ];
    let library = library.into_iter().find(|path| machine.has(path));
    let board = machine.text("proc/device-tree/model").map(|text| text.trim_end_matches('\0').to_owned());
    let board = board.map(|board| format!(" ({board})")).unwrap_or_default();
    match (device, library) {
        (Some(device), Some(library)) => Check::ok("GPU", format!("/{device} with /{library}{board}")),
        (Some(device), None) => Check::warn(
            "GPU",
            format!("/{device} is there and libcuda is not{board}"),
            "install the driver's libraries (on a Jetson: nvidia-l4t-cuda); until then the CPU does the work",
        ),
        (None, _) => Check::ok("GPU", format!("none{board}; the CPU does the work")),
    }
}

/// Whether the device can be used, by opening it and loading the kernels; nothing where the CPU is asked for, or all that
/// is left and nobody asked for more.
pub(super) fn cuda(backend: Backend) -> Option<Check> {
    if backend == Backend::Cpu {
        return None;
    }
    match Device::open().and_then(|device| Ok((device.describe(), device.memory()?))) {
        Ok((device, (free, total))) => {
            let seen = format!("{device}, {} of {} free", Bytes(free as u64), Bytes(total as u64));
            Some(Check::ok("CUDA", seen))
        }
        Err(CudaError::NoDriver { .. }) if backend == Backend::Auto => None,
        Err(error) if backend == Backend::Auto => {
            Some(Check::warn("CUDA", error.to_string(), "until then the CPU does the work"))
        }
        Err(error) => Some(Check::fail("CUDA", error.to_string(), "or set backend = \"auto\" in [model]")),
    }
}

/// Whether TensorRT, which runs the networks on the device, can be loaded; `device` is whether there is one.
pub(super) fn tensorrt(backend: Backend, device: bool) -> Option<Check> {
    if backend == Backend::Cpu || !(device || backend == Backend::Cuda) {
        return None;
    }
    Some(match Runtime::open() {
        Ok(runtime) => Check::ok("TensorRT", format!("version {}", runtime.version())),
        Err(error) if backend == Backend::Auto => {
            Check::warn("TensorRT", error.to_string(), "until then the CPU does the work")
        }
        Err(error) => Check::fail("TensorRT", error.to_string(), "or set backend = \"auto\" in [model]"),
    })
}

/// Whether systemd watches the station.
pub(super) fn service(machine: &Machine) -> Check {
    const UNITS: [&str; 3] = [
        "etc/systemd/system/cellgate.service",
        "usr/lib/systemd/system/cellgate.service",
        "lib/systemd/system/cellgate.service",
    ];
    let Some((path, unit)) = UNITS.into_iter().find_map(|path| Some((path, machine.text(path)?))) else {
        return Check::warn(
            "service",
            "cellgate.service is not installed",
            "install the unit so that systemd starts, watches and restarts the station",
        );
    };
    let has = |key: &str, good: fn(&str) -> bool| {
        unit.lines()
            .filter_map(|line| line.trim().split_once('='))
            .any(|(name, value)| name.trim() == key && good(value.trim()))
    };
    let wanted = [
        ("Type=notify", has("Type", |value| value.starts_with("notify"))),
        ("WatchdogSec=10", has("WatchdogSec", |value| !matches!(value, "" | "0" | "infinity"))),
        ("Restart=always", has("Restart", |value| !matches!(value, "" | "no"))),
    ];
    let missing: Vec<&str> = wanted.iter().filter(|(_, there)| !there).map(|(line, _)| *line).collect();
    if missing.is_empty() {
        return Check::ok("service", format!("/{path} is watched by systemd"));
    }
    let remedy = format!("add {} to its [Service] section, then systemctl daemon-reload", missing.join(", "));
    Check::warn("service", format!("/{path} is not watched by systemd"), remedy)
}

/// Bytes for people.
pub(super) struct Bytes(pub(super) u64);

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            n @ 0..1_000_000 => write!(f, "{} kB", n.div_ceil(1000)),
            n @ 1_000_000..10_000_000_000 => write!(f, "{} MB", n / 1_000_000),
            n => write!(f, "{} GB", n / 1_000_000_000),
        }
    }
}
