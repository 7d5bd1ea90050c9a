//! A device that does what a script says, and watches that it is treated as the kernel's.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::abi;
use super::device::{ControlInfo, Dequeued, Device, Granted, Identity, Wake};
use crate::clock::Moment;

/// What the device does at a call to wait, and what it hands out then.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// An image whose every byte is `fill`; the next number, the time of day.
    Image { fill: u8 },
    /// An image that `Odd` spoils.
    Spoilt(Odd),
    /// The sequence jumps by so much, then an image.
    Skip(u32),
    /// Nothing in time.
    Nothing,
    /// Woken, but no image is there.
    Spurious,
    /// The call is interrupted.
    Interrupt,
    /// The poll reports an error.
    PollError,
    /// The wait fails with this errno.
    WaitFails(i32),
    /// The dequeue fails with this errno.
    DequeueFails(i32),
    /// A good image, and the call that gives its buffer back fails.
    QueueFails,
}

/// How an image can be spoilt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Odd {
    Flagged,
    Short,
    Huge,
    SameSequence,
    Backwards,
    SameStamp,
    Future,
    /// A stamp some milliseconds ahead.
    Early,
    NoStamp,
    /// A buffer that there is none of.
    NoSuchBuffer,
}

/// What the world around the device is like; shared by all openings of it.
#[derive(Default)]
pub struct World {
    pub steps: VecDeque<Step>,
    /// The next openings fail so; then they succeed.
    pub absent: VecDeque<i32>,
    pub granted: Option<Granted>,
    pub buffers: Option<u32>,
    pub rate: Option<f64>,
    pub controls: Vec<ControlInfo>,
    pub set: Vec<(String, i64)>,
    /// The driver rounds the control's values down to multiples of this.
    pub rounding: i64,
    pub identity: Identity,
    /// Each call is interrupted once before it succeeds.
    pub interrupts: bool,
    pub opened: u32,
    pub closed: u32,
    pub started: u32,
    /// Rules of the kernel's that were broken.
    pub sins: Vec<String>,
}

#[derive(Clone)]
pub struct Machine(Arc<Mutex<World>>);

pub const WIDTH: u32 = 8;
pub const HEIGHT: u32 = 4;
/// Rows are longer than their pixels.
pub const STRIDE: u32 = 12;

impl Machine {
    pub fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        let identity =
            Identity { card: "Fake".into(), driver: "fake".into(), bus: "test".into(), captures: true, streams: true };
        Self(Arc::new(Mutex::new(World {
            steps: steps.into_iter().collect(),
            identity,
            rounding: 1,
            ..World::default()
        })))
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    pub fn open(&self) -> io::Result<Box<dyn Device>> {
        let mut world = self.world();
        if let Some(errno) = world.absent.pop_front() {
            return Err(io::Error::from_raw_os_error(errno));
        }
        world.opened += 1;
        if world.opened > world.closed + 1 {
            world.sins.push("opened while open".into());
        }
        drop(world);
        Ok(Box::new(Fake {
            machine: self.clone(),
            memory: Vec::new(),
            queued: VecDeque::new(),
            count: 0,
            streaming: false,
            sequence: 0,
            stamp: Moment::default(),
            ready: None,
            queue_fails: false,
            interrupt: false,
        }))
    }
}

struct Fake {
    machine: Machine,
    memory: Vec<Vec<u8>>,
    queued: VecDeque<u32>,
    count: u32,
    streaming: bool,
    sequence: u32,
    stamp: Moment,
    ready: Option<Step>,
    queue_fails: bool,
    interrupt: bool,
}

impl Fake {
    fn interrupted(&mut self) -> io::Result<()> {
        if !self.machine.world().interrupts {
            return Ok(());
        }
        self.interrupt = !self.interrupt;
        if self.interrupt { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }

    fn sin(&self, what: impl Into<String>) {
        self.machine.world().sins.push(what.into());
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if self.streaming {
            self.sin("closed while it streams");
        }
        self.machine.world().closed += 1;
    }
}

impl Device for Fake {
    fn identity(&mut self) -> io::Result<Identity> {
        self.interrupted()?;
        Ok(self.machine.world().identity.clone())
    }

    fn formats(&mut self) -> io::Result<Vec<u32>> {
        Ok(Vec::new())
    }

    fn set_format(&mut self, width: u32, height: u32, fourcc: u32) -> io::Result<Granted> {
        self.interrupted()?;
        let size = STRIDE * height;
        let own = Granted { width, height, fourcc, stride: STRIDE, size, progressive: true };
        Ok(self.machine.world().granted.unwrap_or(own))
    }

    fn set_rate(&mut self, rate: f64) -> io::Result<Option<f64>> {
        Ok(Some(self.machine.world().rate.unwrap_or(rate)))
    }

    fn controls(&mut self) -> io::Result<Vec<ControlInfo>> {
        Ok(self.machine.world().controls.clone())
    }

    fn set_control(&mut self, control: &ControlInfo, value: i64) -> io::Result<i64> {
        let mut world = self.machine.world();
        let value = value - value % world.rounding;
        world.set.push((control.name.clone(), value));
        Ok(value)
    }

    fn request(&mut self, count: u32) -> io::Result<u32> {
        self.interrupted()?;
        self.count = self.machine.world().buffers.unwrap_or(count);
        Ok(self.count)
    }

    fn map(&mut self, index: u32) -> io::Result<usize> {
        self.interrupted()?;
        if index as usize != self.memory.len() || index >= self.count {
            self.sin(format!("buffer {index} was mapped out of order"));
        }
        self.memory.push(vec![0xee; (STRIDE * HEIGHT) as usize]);
        Ok((STRIDE * HEIGHT) as usize)
    }

    fn memory(&self, index: u32) -> &[u8] {
        if self.queued.contains(&index) {
            self.sin(format!("buffer {index} was read while the kernel owns it"));
        }
        &self.memory[index as usize]
    }

    fn queue(&mut self, index: u32) -> io::Result<()> {
        self.interrupted()?;
        if self.queued.contains(&index) || index >= self.count {
            self.sin(format!("buffer {index} was queued while the kernel owns it"));
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        if std::mem::take(&mut self.queue_fails) {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        self.queued.push_back(index);
        Ok(())
    }

    fn dequeue(&mut self) -> io::Result<Option<Dequeued>> {
        self.interrupted()?;
        let step = self.ready.take().expect("dequeued without a wait");
        let (mut fill, mut odd) = (0x55, None);
        match step {
            Step::Spurious => return Ok(None),
            Step::DequeueFails(errno) => return Err(io::Error::from_raw_os_error(errno)),
            Step::Image { fill: with } => fill = with,
            Step::Spoilt(how) => odd = Some(how),
            Step::Skip(by) => self.sequence = self.sequence.wrapping_add(by),
            Step::QueueFails => self.queue_fails = true,
            other => unreachable!("{other:?}"),
        }
        let index = match odd {
            Some(Odd::NoSuchBuffer) => self.count + 27,
            _ => self.queued.pop_front().expect("no buffer was queued"),
        };
        if let Some(memory) = self.memory.get_mut(index as usize) {
            memory.fill(fill);
        }
        let (sequence, stamp) = (self.sequence, Moment::now());
        self.sequence = self.sequence.wrapping_add(1);
        let whole = (STRIDE * HEIGHT) as usize;
        let last = std::mem::replace(&mut self.stamp, stamp);
        Ok(Some(Dequeued {
            index,
            bytes: match odd {
                Some(Odd::Short) => (STRIDE * (HEIGHT - 1)) as usize,
                Some(Odd::Huge) => whole + 1,
                _ => whole,
            },
            error: odd == Some(Odd::Flagged),
            sequence: match odd {
                Some(Odd::SameSequence) => sequence.wrapping_sub(1),
                Some(Odd::Backwards) => sequence.wrapping_sub(5),
                _ => sequence,
            },
            stamp: match odd {
                Some(Odd::SameStamp) => Some(last),
                Some(Odd::Early) => Some(stamp + Duration::from_millis(30)),
                Some(Odd::Future) => Some(stamp + Duration::from_secs(60)),
                Some(Odd::NoStamp) => None,
                _ => Some(stamp),
            },
        }))
    }

    fn start(&mut self) -> io::Result<()> {
        self.interrupted()?;
        if self.queued.len() != self.count as usize {
            self.sin(format!("started with {} of {} buffers queued", self.queued.len(), self.count));
        }
        self.streaming = true;
        self.machine.world().started += 1;
        Ok(())
    }

    fn stop(&mut self) -> io::Result<()> {
        self.streaming = false;
        Ok(())
    }

    fn wait(&mut self, _: Duration) -> io::Result<Wake> {
        if !self.streaming {
            self.sin("waited on a stream that was not started");
        }
        let step = self.machine.world().steps.pop_front().unwrap_or(Step::Nothing);
        match step {
            Step::Nothing => Ok(Wake::Time),
            Step::Interrupt => Err(io::ErrorKind::Interrupted.into()),
            Step::PollError => Ok(Wake::Broken),
            Step::WaitFails(errno) => Err(io::Error::from_raw_os_error(errno)),
            step => {
                self.ready = Some(step);
                Ok(Wake::Image)
            }
        }
    }
}

/// A control with this range.
pub fn control(id: u32, name: &str, kind: u32, maximum: i64) -> ControlInfo {
    ControlInfo { id, kind, name: name.into(), minimum: 0, maximum, writable: true, readable: true }
}

/// A plain number.
pub const NUMBER: u32 = abi::CTRL_TYPE_INTEGER;
/// A choice.
pub const MENU: u32 = abi::CTRL_TYPE_MENU;
