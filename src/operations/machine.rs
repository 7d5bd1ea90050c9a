//! What the machine says of itself: heat, memory, disk.

use std::fs;
use std::path::{Path, PathBuf};

/// Degrees that a sensor can mean; some report nonsense while their part sleeps.
const BELIEVED: std::ops::RangeInclusive<f32> = -40.0..=150.0;

/// The machine, as the files under a root folder describe it (`/`, or a tree of a test).
#[derive(Clone, Debug)]
pub struct Machine {
    root: PathBuf,
}

/// What was read at one moment; what could not be is none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Readings {
    /// The hottest sensor, in °C.
    pub temperature: Option<f32>,
    /// Whether the machine slows itself down because of heat.
    pub throttled: Option<bool>,
    /// Memory of this process that is in RAM, in bytes.
    pub resident: Option<u64>,
    /// Space of a folder.
    pub disk: Option<Disk>,
}

/// Space where a folder lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Bytes that we may still write.
    pub free: u64,
    /// Bytes in all.
    pub size: u64,
    /// Files that may still be made; none where the file system does not count them.
    pub files: Option<u64>,
}

impl Machine {
    /// Of the files below `root`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Everything; `folder` is where the outbox lies.
    #[must_use]
    pub fn read(&self, folder: Option<&Path>) -> Readings {
        Readings {
            temperature: self.temperature(),
            throttled: self.throttled(),
            resident: self.resident(),
            disk: folder.and_then(disk),
        }
    }

    /// The hottest thermal zone in °C.
    #[must_use]
    pub fn temperature(&self) -> Option<f32> {
        self.thermal("thermal_zone")
            .filter_map(|zone| text(&zone.join("temp"))?.parse::<i32>().ok())
            .map(|millidegrees| millidegrees as f32 / 1000.0)
            .filter(|degrees| BELIEVED.contains(degrees))
            .max_by(f32::total_cmp)
    }

    /// Whether a processor is held back: a cooling device that slows a part down is at work. Fans are no such.
    #[must_use]
    pub fn throttled(&self) -> Option<bool> {
        let slows = |kind: &str| ["cpufreq", "devfreq", "Processor", "cpu-"].iter().any(|part| kind.contains(part));
        self.thermal("cooling_device")
            .filter(|device| text(&device.join("type")).is_some_and(|kind| slows(&kind)))
            .filter_map(|device| text(&device.join("cur_state"))?.parse::<i64>().ok())
            .map(|state| state > 0)
            .reduce(|any, one| any || one)
    }

    /// Memory of this process that is in RAM, in bytes.
    #[must_use]
    pub fn resident(&self) -> Option<u64> {
        // In kilobytes, which needs no page size.
        let status = text(&self.root.join("proc/self/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    }

    /// Memory that this process may use, in bytes: the smallest limit of its control group, or the machine's memory.
    #[must_use]
    pub fn memory_limit(&self) -> Option<u64> {
        let meminfo = text(&self.root.join("proc/meminfo"))?;
        let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let total = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)?;
        let group = text(&self.root.join("proc/self/cgroup")).unwrap_or_default();
        let below = group.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let top = self.root.join("sys/fs/cgroup");
        let limits = top
            .join(below)
            .ancestors()
            .take_while(|folder| folder.starts_with(&top))
            .filter_map(|folder| text(&folder.join("memory.max"))?.parse::<u64>().ok())
            .collect::<Vec<_>>();
        limits.into_iter().chain([total]).min()
    }

    /// What a file below the root says, without the end of its line.
    #[must_use]
    pub fn text(&self, path: &str) -> Option<String> {
        text(&self.root.join(path))
    }

    /// Whether there is such a path below the root.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    fn thermal(&self, kind: &'static str) -> impl Iterator<Item = PathBuf> {
        let entries = fs::read_dir(self.root.join("sys/class/thermal")).into_iter().flatten().flatten();
        entries.filter(move |entry| entry.file_name().to_string_lossy().starts_with(kind)).map(|entry| entry.path())
    }
}

/// Space where a folder lies; none if that cannot be asked.
#[must_use]
pub fn disk(folder: &Path) -> Option<Disk> {
    let space = rustix::fs::statvfs(folder).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(space.f_frsize);
    let files = (space.f_files > 0).then_some(space.f_favail);
    Some(Disk { free: bytes(space.f_bavail), size: bytes(space.f_blocks), files })
}

fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Machine) {
        let folder = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let machine = Machine::new(folder.path());
        (folder, machine)
    }

    #[test]
    fn the_hottest_believable_sensor_counts() {
        let (_folder, machine) = tree(&[
            ("sys/class/thermal/thermal_zone0/temp", "41500\n"),
            ("sys/class/thermal/thermal_zone1/temp", "73250\n"),
            ("sys/class/thermal/thermal_zone2/temp", "-256000\n"),
            ("sys/class/thermal/thermal_zone3/temp", "999000\n"),
            ("sys/class/thermal/thermal_zone4/temp", "hot\n"),
            ("sys/class/thermal/thermal_zone5/type", "no temperature\n"),
            ("sys/class/thermal/cooling_device0/temp", "90000\n"),
        ]);
        assert_eq!(machine.temperature(), Some(73.25));
        assert_eq!(tree(&[]).1.read(None), Readings::default(), "a machine that says nothing");
    }

    #[test]
    fn slowing_down_is_seen_and_a_fan_is_none() {
        let fan = ("sys/class/thermal/cooling_device0/type", "pwm-fan\n");
        let turning = ("sys/class/thermal/cooling_device0/cur_state", "3\n");
        assert_eq!(tree(&[fan, turning]).1.throttled(), None);
        let cpu = ("sys/class/thermal/cooling_device1/type", "cpufreq-cpu0\n");
        let slow = |state| ("sys/class/thermal/cooling_device1/cur_state", state);
        assert_eq!(tree(&[fan, turning, cpu, slow("0\n")]).1.throttled(), Some(false));
        assert_eq!(tree(&[fan, turning, cpu, slow("2\n")]).1.throttled(), Some(true));
    }

    #[test]
    fn memory_is_bounded_by_the_closest_limit() {
        let memory = ("proc/meminfo", "MemTotal:       16000000 kB\nMemFree: 1 kB\n");
        assert_eq!(tree(&[memory]).1.memory_limit(), Some(16_384_000_000));
        let group = ("proc/self/cgroup", "0::/system.slice/cellgate.service\n");
        let slice = ("sys/fs/cgroup/system.slice/memory.max", "4000000000\n");
        let service = ("sys/fs/cgroup/system.slice/cellgate.service/memory.max", "max\n");
        assert_eq!(tree(&[memory, group, slice, service]).1.memory_limit(), Some(4_000_000_000));
        let status = ("proc/self/status", "Name:\tx\nVmRSS:\t    2048 kB\n");
        assert_eq!(tree(&[status]).1.resident(), Some(2 << 20));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_answers() {
        let machine = Machine::new(Path::new("/"));
        assert!(machine.resident().unwrap() > 100_000);
        assert!(machine.memory_limit().unwrap() > 1 << 20);
        let disk = disk(Path::new("/")).unwrap();
        assert!(disk.free <= disk.size && disk.size > 0);
        assert_eq!(super::disk(Path::new("/no/such/folder")), None);
    }
}
