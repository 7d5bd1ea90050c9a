//! The calls that a video device answers, so that a test can answer them too.

use std::io;
use std::time::Duration;

use crate::clock::Moment;

/// What a device says it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The camera's name.
    pub card: String,
    /// The driver's name.
    pub driver: String,
    /// Where it is plugged in.
    pub bus: String,
    /// Whether it captures video by the single-planar interface.
    pub captures: bool,
    /// Whether it streams through shared buffers.
    pub streams: bool,
}

/// The format that a driver settled on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// V4L2's code of the pixel format.
    pub fourcc: u32,
    /// Bytes from row to row; 0 where the driver does not say.
    pub stride: u32,
    /// Bytes of an image.
    pub size: u32,
    /// Whether it comes in whole frames, not in fields.
    pub progressive: bool,
}

/// A control of the camera, such as its exposure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlInfo {
    /// V4L2's number of it.
    pub id: u32,
    /// Its type, as V4L2 numbers them.
    pub kind: u32,
    /// Its name, as [`control_name`] writes it.
    pub name: String,
    /// Smallest value.
    pub minimum: i64,
    /// Largest value.
    pub maximum: i64,
    /// Whether it can be set.
    pub writable: bool,
    /// Whether it can be read.
    pub readable: bool,
}

/// A control's name as `v4l2-ctl` writes it: small letters and digits, `_` between words.
#[must_use]
pub fn control_name(text: &str) -> String {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("_")
}

/// A buffer that the driver filled and handed back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dequeued {
    /// Which one.
    pub index: u32,
    /// Bytes of the image in it.
    pub bytes: usize,
    /// The driver's mark that the image is damaged.
    pub error: bool,
    /// The driver's count of images.
    pub sequence: u32,
    /// The driver's stamp; none if its clock is not the monotonic one.
    pub stamp: Option<Moment>,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// An image is there.
    Image,
    /// The time is up.
    Time,
    /// The device will give no more.
    Broken,
}

/// An open video device. Calls that the system interrupts fail with [`io::ErrorKind::Interrupted`]; the caller repeats
/// them. Dropping it unmaps its buffers and closes it.
pub trait Device: Send {
    /// What it is.
    ///
    /// # Errors
    /// What the system said, as with every method.
    fn identity(&mut self) -> io::Result<Identity>;
    /// The codes of the pixel formats that it offers.
    ///
    /// # Errors
    /// See [`Device::identity`].
    fn formats(&mut self) -> io::Result<Vec<u32>>;
    /// Asks for a format and says what the driver made of it.
    ///
    /// # Errors
    /// See [`Device::identity`].
    fn set_format(&mut self, width: u32, height: u32, fourcc: u32) -> io::Result<Granted>;
    /// Asks for so many images a second and says how many the driver will give; none if it cannot be told.
    ///
    /// # Errors
    /// See [`Device::identity`].
    fn set_rate(&mut self, rate: f64) -> io::Result<Option<f64>>;
    /// Its controls.
    ///
    /// # Errors
    /// See [`Device::identity`].
    fn controls(&mut self) -> io::Result<Vec<ControlInfo>>;
    /// Sets a control and reads back what the driver made of it, where it can be read.
    ///
    /// # Errors
    /// See [`Device::identity`].
    fn set_control(&mut self, control: &ControlInfo, value: i64) -> io::Result<i64>;
    /// Asks for shared buffers and says how many there are.
    ///
    /// # Errors
    /// See [`Device::identity`].
    fn request(&mut self, count: u32) -> io::Result<u32>;
    /// Maps a buffer; in order, each once. Says how long it is.
    ///
    /// # Errors
    /// See [`Device::identity`].
    fn map(&mut self, index: u32) -> io::Result<usize>;
    /// A mapped buffer's memory. It holds still only while the buffer is not queued.
    fn memory(&self, index: u32) -> &[u8];
    /// Hands a buffer to the driver.
    ///
    /// # Errors
    /// See [`Device::identity`].
    fn queue(&mut self, index: u32) -> io::Result<()>;
    /// Takes a filled buffer, if there is one.
    ///
    /// # Errors
    /// See [`Device::identity`].
    fn dequeue(&mut self) -> io::Result<Option<Dequeued>>;
    /// Starts the stream.
    ///
    /// # Errors
    /// See [`Device::identity`].
    fn start(&mut self) -> io::Result<()>;
    /// Ends the stream; the driver gives up all buffers.
    ///
    /// # Errors
    /// See [`Device::identity`].
    fn stop(&mut self) -> io::Result<()>;
    /// Waits for an image.
    ///
    /// # Errors
    /// See [`Device::identity`].
    fn wait(&mut self, patience: Duration) -> io::Result<Wake>;
}
