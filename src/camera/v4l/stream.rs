//! The camera on top of a video device: opened, streaming, lost and opened again.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::abi::MOST_BUFFERS;
use super::device::{ControlInfo, Dequeued, Device, Wake};
use super::kernel::KernelDevice;
use crate::camera::pixels::{Layout, PixelFormat, fourcc_name};
use crate::camera::{Camera, CameraError, Format, Shot};
use crate::clock::Moment;

/// After a loss the device is looked for this soon, then half as often each time, up to [`LONGEST`].
const SOONEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(2);
/// So far into the future a driver may stamp: some give the end of the exposure before it has come, as `vivid` does. More is
/// another clock.
const AHEAD: Duration = Duration::from_secs(1);
/// A call that is interrupted this often in a row is not going to succeed.
const INTERRUPTIONS: u32 = 1000;

/// What is asked of a device.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Its file.
    pub path: PathBuf,
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// The format that is asked of the driver.
    pub format: PixelFormat,
    /// Where the pixel's bits are.
    pub layout: Layout,
    /// Shared buffers, 2 to 32.
    pub buffers: u32,
    /// Images a second, if the driver shall be told.
    pub rate: Option<f64>,
    /// Controls by name, and their values.
    pub controls: BTreeMap<String, i64>,
}

/// Opens the device anew.
pub type Opener = Box<dyn FnMut() -> io::Result<Box<dyn Device>> + Send>;

/// A V4L2 camera.
pub struct V4l {
    settings: Settings,
    opener: Opener,
    stream: Option<Stream>,
    /// What the device said of itself when it was last open.
    name: String,
    restarts: u64,
    /// Why there is no stream.
    why: String,
    next_try: Moment,
    wait: Duration,
    /// The shortest `wait`.
    soonest: Duration,
}

impl V4l {
    /// The camera that `settings` describe. A device that is not there is no error: it is looked for at each call.
    ///
    /// # Errors
    /// [`CameraError::Refused`] if the device is there and will not do what it is asked.
    pub fn new(settings: Settings) -> Result<Self, CameraError> {
        let path = settings.path.clone();
        Self::with_opener(settings, Box::new(move || Ok(Box::new(KernelDevice::open(&path)?))))
    }

    /// The same with another way to open the device.
    ///
    /// # Errors
    /// As [`V4l::new`].
    pub fn with_opener(settings: Settings, opener: Opener) -> Result<Self, CameraError> {
        let mut camera = Self {
            settings,
            opener,
            stream: None,
            name: String::new(),
            restarts: 0,
            why: String::new(),
            next_try: Moment::default(),
            wait: SOONEST,
            soonest: SOONEST,
        };
        match camera.open() {
            Err(CameraError::Lost(why)) => {
                log::warn!("{why}");
                Ok(camera)
            }
            Err(other) => Err(other),
            Ok(()) => Ok(camera),
        }
    }

    /// Looks for a lost device this soon, instead of after 0.1 s.
    #[must_use]
    pub fn retry_after(mut self, soonest: Duration) -> Self {
        (self.soonest, self.wait) = (soonest, soonest);
        self.next_try = Moment::default();
        self
    }

    fn open(&mut self) -> Result<(), CameraError> {
        match Stream::open(&self.settings, &mut self.opener) {
            Ok((stream, name)) => {
                self.stream = Some(stream);
                self.name = name;
                self.wait = self.soonest;
                Ok(())
            }
            Err(error) => {
                self.why = error.to_string();
                self.put_off();
                Err(error)
            }
        }
    }

    fn put_off(&mut self) {
        self.next_try = Moment::now() + self.wait;
        self.wait = (2 * self.wait).min(LONGEST);
    }

    /// Everything closed and unmapped.
    fn lose(&mut self, why: String) -> CameraError {
        self.stream = None;
        self.why.clone_from(&why);
        self.put_off();
        CameraError::Lost(why)
    }

    fn reopen(&mut self, patience: Duration) -> Result<(), CameraError> {
        let until_then = self.next_try.since(Moment::now());
        std::thread::sleep(until_then.min(patience));
        if until_then > patience {
            return Err(CameraError::Lost(self.why.clone()));
        }
        let first = self.name.is_empty();
        self.open()?;
        self.restarts += u64::from(!first);
        log::info!("opened the camera {}: {}", self.settings.path.display(), self.name);
        Ok(())
    }
}

impl Camera for V4l {
    fn format(&self) -> Format {
        Format { width: self.settings.width, height: self.settings.height, white: self.settings.layout.white() }
    }

    fn next(&mut self, shot: &mut Shot, patience: Duration) -> Result<(), CameraError> {
        let until = Moment::now() + patience;
        if self.stream.is_none() {
            self.reopen(patience)?;
        }
        shot.fit(self.format());
        let Some(stream) = &mut self.stream else { return Err(CameraError::Lost(self.why.clone())) };
        match stream.next(&self.settings.layout, shot, until, patience) {
            Err(Failure::Said(error)) => Err(error),
            Err(Failure::Broken { what, source }) => {
                let why = format!(
                    "the camera {} stopped while {what} ({source}); check its cable and power",
                    self.settings.path.display()
                );
                Err(self.lose(why))
            }
            Ok(()) => Ok(()),
        }
    }

    fn describe(&self) -> String {
        let Settings { path, width, height, format, .. } = &self.settings;
        let name = if self.name.is_empty() { "not there yet" } else { &self.name };
        format!("{} ({name}), {width}×{height} {}", path.display(), format.name())
    }

    fn restarts(&self) -> u64 {
        self.restarts
    }
}

enum Failure {
    /// To be handed on as it is; the stream goes on.
    Said(CameraError),
    /// The stream is of no use any more.
    Broken { what: &'static str, source: io::Error },
}

fn broken(what: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |source| Failure::Broken { what, source }
}

/// Repeats a call that a signal interrupts.
fn whole<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..INTERRUPTIONS {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            said => return said,
        }
    }
    Err(io::ErrorKind::Interrupted.into())
}

/// A device that streams.
struct Stream {
    device: Box<dyn Device>,
    buffers: u32,
    /// Bytes from row to row.
    stride: usize,
    /// Which buffers the driver owns, a bit each.
    queued: u32,
    /// What became of the last image's buffer: handing it back failed.
    failed: Option<io::Error>,
    last: Option<(u32, Moment)>,
    /// Whether it was said that the driver's clock is another.
    told: bool,
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Closing does the same; a driver that is gone refuses, and that is fine.
        let _ = whole(|| self.device.stop());
    }
}

impl Stream {
    fn open(settings: &Settings, opener: &mut Opener) -> Result<(Self, String), CameraError> {
        let path = settings.path.display();
        let lost = |error: &io::Error| {
            CameraError::Lost(match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                    format!(
                        "opening the camera {path}: there is no such device; plug it in, or see `cellgate camera list`"
                    )
                }
                Some(libc::EACCES | libc::EPERM) => format!(
                    "opening the camera {path}: it may not be opened; add this user to the group `video` (usermod -aG video)"
                ),
                Some(libc::EBUSY) => {
                    format!("opening the camera {path}: another program uses it; end that first (fuser {path})")
                }
                _ => format!("opening the camera {path}: {error}"),
            })
        };
        let refused = |why: String| CameraError::Refused(format!("the camera {path}: {why}"));
        // What a driver says of its settings is for people to change; that it is gone or busy passes.
        let failed = |what: &str, error: &io::Error| match error.raw_os_error() {
            Some(libc::EINVAL | libc::ENOTTY | libc::ERANGE) => refused(format!("{what} is not possible ({error})")),
            _ => lost(error),
        };
        let mut device = whole(opener).map_err(|e| lost(&e))?;
        let identity = whole(|| device.identity()).map_err(|e| match e.raw_os_error() {
            Some(libc::ENOTTY | libc::EINVAL) => refused("it is no video device; see `cellgate camera list`".into()),
            _ => lost(&e),
        })?;
        if !identity.captures || !identity.streams {
            return Err(refused(format!(
                "{} ({}) does not capture by the single-planar streaming interface; see `cellgate camera list` for one \
                 that does",
                identity.card, identity.driver
            )));
        }
        let Settings { width, height, format, layout, .. } = settings;
        let (wide, high) = (u32::try_from(*width).unwrap_or(u32::MAX), u32::try_from(*height).unwrap_or(u32::MAX));
        let asked = format!("{width}×{height} {}", format.name());
        let granted = whole(|| device.set_format(wide, high, format.fourcc()))
            .map_err(|e| failed(&format!("the format {asked}"), &e))?;
        if (granted.width, granted.height, granted.fourcc) != (wide, high, format.fourcc()) {
            let gives = format!("{}×{} {}", granted.width, granted.height, fourcc_name(granted.fourcc));
            return Err(refused(format!(
                "the configuration asks for {asked}, the driver gives {gives}; configure what it can do (see `cellgate \
                 camera list`)"
            )));
        }
        if !granted.progressive {
            return Err(refused(format!("{asked} comes interlaced; choose a progressive mode")));
        }
        let stride = if granted.stride == 0 { width * layout.bytes() } else { granted.stride as usize };
        let needed = layout.needs(*width, *height, stride).filter(|&needed| needed <= granted.size as usize);
        let needed = needed.ok_or_else(|| {
            let (size, row) = (granted.size, granted.stride);
            refused(format!("the driver's {size} bytes, {row} a row, are too few for {asked}: its driver is faulty"))
        })?;
        if let Some(rate) = settings.rate {
            let given = whole(|| device.set_rate(rate))
                .map_err(|e| failed(&format!("a rate of {rate} frames a second"), &e))?;
            if given.is_some_and(|given| (given - rate).abs() > 0.01 * rate) {
                let given = given.unwrap_or_default();
                return Err(refused(format!(
                    "the configuration asks for {rate} frames a second, the driver gives {given:.3}"
                )));
            }
        }
        set_controls(&mut *device, &settings.controls).map_err(|e| match e {
            ControlFailure::Refused(why) => refused(why),
            ControlFailure::Io(what, e) => failed(&what, &e),
        })?;
        let asked = settings.buffers;
        let buffers = whole(|| device.request(asked)).map_err(|e| failed(&format!("a set of {asked} buffers"), &e))?;
        if !(2..=MOST_BUFFERS).contains(&buffers) {
            return Err(refused(format!(
                "the configuration asks for {asked} buffers, the driver gives {buffers}; 2 to {MOST_BUFFERS} are needed"
            )));
        }
        if buffers != asked {
            log::warn!("the camera {path} has {buffers} buffers instead of the {asked} asked for");
        }
        for index in 0..buffers {
            let length = whole(|| device.map(index)).map_err(|e| failed(&format!("mapping buffer {index}"), &e))?;
            if length < needed {
                return Err(refused(format!(
                    "buffer {index} has {length} bytes, an image needs {needed}: its driver is faulty"
                )));
            }
        }
        let mut stream = Self { device, buffers, stride, queued: 0, failed: None, last: None, told: false };
        // All of them, before the start: a driver may begin with whatever is queued.
        for index in 0..buffers {
            stream.queue(index).map_err(|e| failed(&format!("queueing buffer {index}"), &e))?;
        }
        whole(|| stream.device.start()).map_err(|e| failed("streaming", &e))?;
        let name = format!("{}, {} at {}", identity.card, identity.driver, identity.bus);
        Ok((stream, name))
    }

    fn queue(&mut self, index: u32) -> io::Result<()> {
        whole(|| self.device.queue(index))?;
        self.queued |= 1 << index;
        Ok(())
    }

    fn next(&mut self, layout: &Layout, shot: &mut Shot, until: Moment, patience: Duration) -> Result<(), Failure> {
        if let Some(source) = self.failed.take() {
            return Err(Failure::Broken { what: "a buffer was handed back", source });
        }
        let buffer = self.wait(until, patience)?;
        // The word of a driver that hands out what it was not given is worth nothing.
        if buffer.index >= self.buffers || self.queued & (1 << buffer.index) == 0 {
            let source = io::Error::other(format!("it handed out buffer {}, which it had not", buffer.index));
            return Err(Failure::Broken { what: "an image was taken", source });
        }
        self.queued &= !(1 << buffer.index);
        let now = Moment::now();
        if buffer.stamp.is_none() && !self.told {
            log::warn!("the camera's driver does not stamp by the monotonic clock: frames count from their arrival");
            self.told = true;
        }
        let stamp = buffer.stamp.unwrap_or(now);
        // What is here was exposed before now.
        (shot.sequence, shot.taken) = (buffer.sequence, stamp.min(now));
        let fault = self.judge(&buffer, stamp, now).err().or_else(|| {
            let memory = self.device.memory(buffer.index);
            layout.unpack(memory.get(..buffer.bytes).unwrap_or_default(), self.stride, &mut shot.frame).err()
        });
        // What comes next is held to this one, however odd: a driver that started anew must not stay stale for ever.
        self.last = Some((shot.sequence, stamp.min(now + AHEAD)));
        // The image is here and good whether or not its buffer goes back: a failure is for the next call.
        self.failed = self.queue(buffer.index).err();
        match fault {
            Some(why) => {
                let (sequence, taken) = (shot.sequence, shot.taken);
                Err(Failure::Said(CameraError::Damaged { sequence, taken, why }))
            }
            None => Ok(()),
        }
    }

    /// Whether what the driver says of an image can be.
    fn judge(&self, buffer: &Dequeued, stamp: Moment, now: Moment) -> Result<(), &'static str> {
        if buffer.error {
            return Err("the driver marked it as damaged");
        }
        if buffer.bytes > self.device.memory(buffer.index).len() {
            return Err("the driver says that it is larger than its buffer");
        }
        if stamp > now + AHEAD {
            return Err("the driver's stamp lies in the future");
        }
        if let Some((sequence, before)) = self.last {
            let steps = buffer.sequence.wrapping_sub(sequence);
            if steps == 0 || steps > u32::MAX / 2 {
                return Err("it is stale: the driver's count did not go on");
            }
            if stamp <= before {
                return Err("it is stale: the driver's stamp did not go on");
            }
        }
        Ok(())
    }

    fn wait(&mut self, until: Moment, patience: Duration) -> Result<Dequeued, Failure> {
        loop {
            let rest = until.since(Moment::now());
            match self.device.wait(rest) {
                Ok(Wake::Image) => {
                    // Woken for nothing, some drivers do: wait again.
                    if let Some(buffer) = whole(|| self.device.dequeue()).map_err(broken("an image was taken"))? {
                        return Ok(buffer);
                    }
                }
                Ok(Wake::Time) => {}
                Ok(Wake::Broken) => {
                    let source = io::Error::other("the driver gives no more images");
                    return Err(Failure::Broken { what: "an image was awaited", source });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Failure::Broken { what: "an image was awaited", source }),
            }
            // The buffers stay where they are, with the driver.
            if until <= Moment::now() {
                return Err(Failure::Said(CameraError::Nothing(patience)));
            }
        }
    }
}

enum ControlFailure {
    Refused(String),
    Io(String, io::Error),
}

fn set_controls(device: &mut dyn Device, wanted: &BTreeMap<String, i64>) -> Result<(), ControlFailure> {
    if wanted.is_empty() {
        return Ok(());
    }
    let known =
        whole(|| device.controls()).map_err(|e| ControlFailure::Io("asking for the camera's controls".into(), e))?;
    let mut order: Vec<(&ControlInfo, i64)> = Vec::new();
    for (name, &value) in wanted {
        let Some(control) = known.iter().find(|control| control.name == *name) else {
            let names: Vec<&str> = known.iter().filter(|c| c.writable).map(|c| c.name.as_str()).collect();
            let names = if names.is_empty() { "it has none".into() } else { names.join(", ") };
            return Err(ControlFailure::Refused(format!("it has no control `{name}`; its controls: {names}")));
        };
        let (low, high) = (control.minimum, control.maximum);
        if !control.writable || !(low..=high).contains(&value) {
            return Err(ControlFailure::Refused(format!(
                "its control `{name}` cannot be {value}: {low} to {high} are possible{}",
                if control.writable { "" } else { ", but it is only to be read" }
            )));
        }
        order.push((control, value));
    }
    // Switches come first: an exposure can be set only after the automatic one was switched off.
    let switch = |c: &ControlInfo| matches!(c.kind, super::abi::CTRL_TYPE_BOOLEAN | super::abi::CTRL_TYPE_MENU);
    order.sort_by_key(|(control, _)| !switch(control));
    for (control, value) in order {
        let name = &control.name;
        let said = whole(|| device.set_control(control, value))
            .map_err(|e| ControlFailure::Io(format!("setting its control `{name}` to {value}"), e))?;
        if said != value {
            return Err(ControlFailure::Refused(format!(
                "the configuration asks for {name} = {value}, the driver makes it {said}; configure that or another value"
            )));
        }
    }
    Ok(())
}
