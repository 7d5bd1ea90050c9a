//! From the device to the corrected frame, nothing is allocated after the first shot. A test program of its own, since it
//! counts every allocation of the process.

use std::time::Duration;

use cellgate::camera::config::{CameraConfig, Kind, open};
use cellgate::camera::pulse::{PulseConfig, Pulsed};
use cellgate::camera::{Camera, CameraError, Format, Shot};
use cellgate::clock::Moment;
use cellgate::preprocess::sensor::{Calibration, Correction, Recorder};

#[path = "common/counting.rs"]
mod counting;

use counting::allocations;

/// Takes `count` shots, each through `then`, and says how many allocations those after the first few made.
fn taken(camera: &mut dyn Camera, count: usize, mut then: impl FnMut(&mut Shot)) -> u64 {
    let Format { width, height, white } = camera.format();
    let mut shot = Shot::new(width, height, white);
    let mut before = 0;
    for index in 0..count {
        if index == 3 {
            before = allocations();
        }
        camera.next(&mut shot, Duration::ZERO).unwrap();
        then(&mut shot);
    }
    allocations() - before
}

fn synthetic(prepared: usize) -> Box<dyn Camera> {
    let kind = Kind::Synthetic;
    open(&CameraConfig { kind, size: 128, prepared, period_ms: 0, pattern: 1.0, ..CameraConfig::default() }).unwrap()
}

fn calibration(format: Format) -> Calibration {
    let mut dark = Recorder::new(format);
    for _ in 0..4 {
        let mut shot = Shot::new(format.width, format.height, format.white);
        shot.frame.pixels_mut().fill(7);
        shot.frame.pixels_mut()[1000] = 200;
        dark.add(&shot.frame).unwrap();
    }
    Calibration::from_dark(&dark, "", "").unwrap()
}

/// Three dark frames, three lit ones, and so on.
struct Flashes(u32);

impl Camera for Flashes {
    fn format(&self) -> Format {
        Format { width: 64, height: 48, white: 4095 }
    }

    fn next(&mut self, shot: &mut Shot, _: Duration) -> Result<(), CameraError> {
        shot.frame.pixels_mut().fill(if self.0 % 6 < 3 { 100 } else { 2000 });
        (shot.sequence, shot.taken) = (self.0, Moment::from_nanos(self.0.into()));
        self.0 += 1;
        Ok(())
    }

    fn describe(&self) -> String {
        "flashes".into()
    }
}

/// A device of the kernel's kind whose images are always there.
#[cfg(target_os = "linux")]
mod device {
    use std::collections::VecDeque;
    use std::io;
    use std::time::Duration;

    use cellgate::camera::pixels::{Layout, PixelFormat};
    use cellgate::camera::v4l::{ControlInfo, Dequeued, Device, Granted, Identity, Settings, V4l, Wake};
    use cellgate::clock::Moment;

    struct Always {
        memory: Vec<u8>,
        queued: VecDeque<u32>,
        sequence: u32,
    }

    impl Device for Always {
        fn identity(&mut self) -> io::Result<Identity> {
            Ok(Identity { captures: true, streams: true, ..Identity::default() })
        }
        fn formats(&mut self) -> io::Result<Vec<u32>> {
            Ok(Vec::new())
        }
        fn set_format(&mut self, width: u32, height: u32, fourcc: u32) -> io::Result<Granted> {
            let stride = 2 * width;
            Ok(Granted { width, height, fourcc, stride, size: stride * height, progressive: true })
        }
        fn set_rate(&mut self, _: f64) -> io::Result<Option<f64>> {
            Ok(None)
        }
        fn controls(&mut self) -> io::Result<Vec<ControlInfo>> {
            Ok(Vec::new())
        }
        fn set_control(&mut self, _: &ControlInfo, value: i64) -> io::Result<i64> {
            Ok(value)
        }
        fn request(&mut self, count: u32) -> io::Result<u32> {
            Ok(count)
        }
        fn map(&mut self, _: u32) -> io::Result<usize> {
            Ok(self.memory.len())
        }
        fn memory(&self, _: u32) -> &[u8] {
            &self.memory
        }
        fn queue(&mut self, index: u32) -> io::Result<()> {
            self.queued.push_back(index);
            Ok(())
        }
        fn dequeue(&mut self) -> io::Result<Option<Dequeued>> {
            let (index, stamp) = (self.queued.pop_front().unwrap(), Some(Moment::now()));
            self.sequence += 1;
            Ok(Some(Dequeued { index, bytes: self.memory.len(), error: false, sequence: self.sequence, stamp }))
        }
        fn start(&mut self) -> io::Result<()> {
            Ok(())
        }
        fn stop(&mut self) -> io::Result<()> {
            Ok(())
        }
        fn wait(&mut self, _: Duration) -> io::Result<Wake> {
            Ok(Wake::Image)
        }
    }

    pub fn camera() -> V4l {
        let settings = Settings {
            path: "always".into(),
            width: 64,
            height: 48,
            format: PixelFormat::Y12,
            layout: Layout::of(PixelFormat::Y12),
            buffers: 4,
            rate: None,
            controls: Default::default(),
        };
        let open = || {
            let memory = vec![9; 2 * 64 * 48];
            Ok(Box::new(Always { memory, queued: VecDeque::with_capacity(8), sequence: 0 }) as Box<dyn Device>)
        };
        V4l::with_opener(settings, Box::new(open)).unwrap()
    }
}

#[test]
fn a_thousand_shots_allocate_nothing() {
    for prepared in [0, 5] {
        let mut camera = synthetic(prepared);
        let correction = Correction::new(&calibration(camera.format()), camera.format()).unwrap();
        let made = taken(&mut *camera, 1000, |shot| correction.apply(&mut shot.frame).unwrap());
        assert_eq!(made, 0, "{prepared} prepared");
    }
    let config = PulseConfig { subtract_dark: true, ..PulseConfig::default() };
    // A call returns nothing until a pulse is whole; the patience is for that.
    let mut camera = Pulsed::new(Box::new(Flashes(0)), config);
    let mut shot = Shot::new(64, 48, 4095);
    let mut before = 0;
    for index in 0..1000 {
        if index == 3 {
            before = allocations();
        }
        camera.next(&mut shot, Duration::from_secs(60)).unwrap();
        assert_eq!((shot.sequence, shot.frame.pixels()[0]), (index, 1900));
    }
    assert_eq!(allocations() - before, 0, "pulses");
    #[cfg(target_os = "linux")]
    assert_eq!(taken(&mut device::camera(), 1000, |shot| assert_eq!(shot.frame.pixels()[0], 0x909)), 0, "v4l");
}
