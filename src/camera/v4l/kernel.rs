//! The real device: calls into the kernel.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use memmap2::{Mmap, MmapOptions};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::abi;
use super::device::{ControlInfo, Dequeued, Device, Granted, Identity, Wake, control_name};
use crate::clock::Moment;

/// More formats or controls than any driver has: a driver that never ends its list must not hang us.
const MOST: u32 = 1024;

/// An open `/dev/video*`.
#[derive(Debug)]
pub struct KernelDevice {
    // Buffers are unmapped before the file is closed.
    buffers: Vec<Mmap>,
    file: File,
}

impl KernelDevice {
    /// Opens a device file.
    ///
    /// # Errors
    /// What the system said; or that it is no device.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        if !file.metadata()?.file_type().is_char_device() {
            return Err(io::Error::other("it is not a device"));
        }
        Ok(Self { buffers: Vec::new(), file })
    }

    /// # Safety
    /// `T` must be the structure that the kernel reads and writes at call `number`, and pointers in it must be valid
    /// for what the kernel does with them.
    unsafe fn call<T>(&self, number: u64, argument: &mut T) -> io::Result<()> {
        // SAFETY: the descriptor is open, and the caller vouches for the argument.
        let said = unsafe { libc::ioctl(self.file.as_raw_fd(), number as libc::Ioctl, std::ptr::from_mut(argument)) };
        if said < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn one_control(&self, number: u64, control: &mut abi::Control) -> io::Result<()> {
        let mut controls = abi::Controls { count: 1, controls: control, ..Default::default() };
        // SAFETY: the structure of both control calls; its one pointer leads to the one control that it counts.
        unsafe { self.call(number, &mut controls) }
    }

    fn buffer(index: u32) -> abi::Buffer {
        abi::Buffer { index, kind: abi::CAPTURE, memory: abi::MEMORY_MMAP, ..Default::default() }
    }
}

/// The text of a field that the kernel fills with zeros.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).chars().map(crate::hidden::shown).collect()
}

/// Calls `ask` until it says that the list is at its end.
fn each(mut ask: impl FnMut(u32) -> io::Result<bool>) -> io::Result<()> {
    for index in 0..MOST {
        match ask(index) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            // Drivers without any control have not even the call.
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Device for KernelDevice {
    fn identity(&mut self) -> io::Result<Identity> {
        let mut said = abi::Capability::default();
        // SAFETY: the structure of this call.
        unsafe { self.call(abi::QUERYCAP, &mut said) }?;
        let own = said.capabilities & abi::CAP_DEVICE_CAPS != 0;
        let able = if own { said.device_caps } else { said.capabilities };
        Ok(Identity {
            card: text(&said.card),
            driver: text(&said.driver),
            bus: text(&said.bus_info),
            captures: able & abi::CAP_VIDEO_CAPTURE != 0,
            streams: able & abi::CAP_STREAMING != 0,
        })
    }

    fn formats(&mut self) -> io::Result<Vec<u32>> {
        let mut formats = Vec::new();
        each(|index| {
            let mut said = abi::FormatDescription { index, kind: abi::CAPTURE, ..Default::default() };
            // SAFETY: the structure of this call.
            unsafe { self.call(abi::ENUM_FMT, &mut said) }?;
            formats.push(said.pixelformat);
            Ok(true)
        })?;
        Ok(formats)
    }

    fn set_format(&mut self, width: u32, height: u32, fourcc: u32) -> io::Result<Granted> {
        let mut format = abi::Format { kind: abi::CAPTURE, ..Default::default() };
        format.pix = abi::PixFormat { width, height, pixelformat: fourcc, field: abi::FIELD_NONE, ..format.pix };
        // SAFETY: the structure of this call.
        unsafe { self.call(abi::S_FMT, &mut format) }?;
        let pix = format.pix;
        Ok(Granted {
            width: pix.width,
            height: pix.height,
            fourcc: pix.pixelformat,
            stride: pix.bytesperline,
            size: pix.sizeimage,
            progressive: pix.field == abi::FIELD_NONE,
        })
    }

    fn set_rate(&mut self, rate: f64) -> io::Result<Option<f64>> {
        // Thousandths of a second's images: 29.97 is kept.
        let mut said = abi::StreamParameters {
            kind: abi::CAPTURE,
            numerator: 1000,
            denominator: (rate * 1000.0).round().clamp(1.0, 4e9) as u32,
            ..Default::default()
        };
        // SAFETY: the structure of this call.
        unsafe { self.call(abi::S_PARM, &mut said) }?;
        let told = said.capability & abi::CAP_TIMEPERFRAME != 0 && said.numerator > 0;
        Ok(told.then(|| f64::from(said.denominator) / f64::from(said.numerator)))
    }

    fn controls(&mut self) -> io::Result<Vec<ControlInfo>> {
        let (mut controls, mut last) = (Vec::new(), 0);
        each(|_| {
            let mut said = abi::QueryControl { id: last | abi::CTRL_NEXT, ..Default::default() };
            // SAFETY: the structure of this call.
            unsafe { self.call(abi::QUERY_EXT_CTRL, &mut said) }?;
            if said.id <= last {
                return Ok(false);
            }
            last = said.id;
            let number = matches!(
                said.kind,
                abi::CTRL_TYPE_INTEGER
                    | abi::CTRL_TYPE_BOOLEAN
                    | abi::CTRL_TYPE_MENU
                    | abi::CTRL_TYPE_INTEGER64
                    | abi::CTRL_TYPE_BITMASK
                    | abi::CTRL_TYPE_INTEGER_MENU
            );
            // An array of numbers is passed by a pointer, which is not done here.
            if number && said.dimensions == 0 && said.flags & abi::CTRL_FLAG_DISABLED == 0 {
                controls.push(ControlInfo {
                    id: said.id,
                    kind: said.kind,
                    name: control_name(&text(&said.name)),
                    minimum: said.minimum,
                    maximum: said.maximum,
                    writable: said.flags & abi::CTRL_FLAG_READ_ONLY == 0,
                    readable: said.flags & abi::CTRL_FLAG_WRITE_ONLY == 0,
                });
            }
            Ok(true)
        })?;
        Ok(controls)
    }

    fn set_control(&mut self, control: &ControlInfo, value: i64) -> io::Result<i64> {
        let mut asked = abi::Control { id: control.id, value, ..Default::default() };
        self.one_control(abi::S_EXT_CTRLS, &mut asked)?;
        if !control.readable {
            return Ok(value);
        }
        let mut said = abi::Control { id: control.id, ..Default::default() };
        self.one_control(abi::G_EXT_CTRLS, &mut said)?;
        let (wide, low) = (said.value, said.value as u32);
        Ok(match control.kind {
            abi::CTRL_TYPE_INTEGER64 => wide,
            abi::CTRL_TYPE_BITMASK => i64::from(low),
            _ => i64::from(low.cast_signed()),
        })
    }

    fn request(&mut self, count: u32) -> io::Result<u32> {
        let mut asked =
            abi::RequestBuffers { count, kind: abi::CAPTURE, memory: abi::MEMORY_MMAP, ..Default::default() };
        // SAFETY: the structure of this call.
        unsafe { self.call(abi::REQBUFS, &mut asked) }?;
        self.buffers.reserve_exact(asked.count.min(abi::MOST_BUFFERS) as usize);
        Ok(asked.count)
    }

    fn map(&mut self, index: u32) -> io::Result<usize> {
        if index as usize != self.buffers.len() {
            return Err(io::Error::other("buffers must be mapped in order"));
        }
        let mut buffer = Self::buffer(index);
        // SAFETY: the structure of this call.
        unsafe { self.call(abi::QUERYBUF, &mut buffer) }?;
        // Of the union, the offset is the low half.
        let (offset, length) = (buffer.offset & u64::from(u32::MAX), buffer.length as usize);
        if length == 0 {
            return Err(io::Error::other("the driver's buffer is empty"));
        }
        // SAFETY: the driver's own buffer, which no file lies behind that could shrink. It is written to only while it
        // is queued, and then nobody looks: `stream` reads buffers between dequeue and queue.
        let memory = unsafe { MmapOptions::new().offset(offset).len(length).map(&self.file) }?;
        self.buffers.push(memory);
        Ok(length)
    }

    fn memory(&self, index: u32) -> &[u8] {
        self.buffers.get(index as usize).map_or(&[], |memory| memory)
    }

    fn queue(&mut self, index: u32) -> io::Result<()> {
        // SAFETY: the structure of this call; an mmap buffer has no pointer in it.
        unsafe { self.call(abi::QBUF, &mut Self::buffer(index)) }
    }

    fn dequeue(&mut self) -> io::Result<Option<Dequeued>> {
        let mut buffer = Self::buffer(0);
        // SAFETY: the structure of this call.
        match unsafe { self.call(abi::DQBUF, &mut buffer) } {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            said => said?,
        }
        let monotonic = buffer.flags & abi::FLAG_TIMESTAMP_MASK == abi::FLAG_TIMESTAMP_MONOTONIC;
        let stamp = match (u64::try_from(buffer.seconds), u64::try_from(buffer.microseconds)) {
            (Ok(seconds), Ok(micros @ 0..1_000_000)) if monotonic => Some(Moment::at(seconds, 1000 * micros)),
            _ => None,
        };
        Ok(Some(Dequeued {
            index: buffer.index,
            bytes: buffer.bytesused as usize,
            error: buffer.flags & abi::FLAG_ERROR != 0,
            sequence: buffer.sequence,
            stamp,
        }))
    }

    fn start(&mut self) -> io::Result<()> {
        // SAFETY: this call reads a number.
        unsafe { self.call(abi::STREAMON, &mut abi::CAPTURE.cast_signed()) }
    }

    fn stop(&mut self) -> io::Result<()> {
        // SAFETY: this call reads a number.
        unsafe { self.call(abi::STREAMOFF, &mut abi::CAPTURE.cast_signed()) }
    }

    fn wait(&mut self, patience: Duration) -> io::Result<Wake> {
        let timeout = Timespec {
            tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: patience.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
        poll(&mut fds, Some(&timeout))?;
        let seen = fds[0].revents();
        Ok(if seen.contains(PollFlags::IN) {
            Wake::Image
        } else if seen.is_empty() {
            Wake::Time
        } else {
            Wake::Broken
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_video_device_is_refused_by_the_kernel_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("video0");
        std::fs::write(&path, b"x").unwrap();
        assert!(KernelDevice::open(&path).unwrap_err().to_string().contains("not a device"));
        assert_eq!(KernelDevice::open(&folder.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
        let mut null = KernelDevice::open(Path::new("/dev/null")).unwrap();
        assert_eq!(null.identity().unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        assert!(null.set_format(64, 64, 0).is_err() && null.request(4).is_err() && null.start().is_err());
        assert!(null.map(0).is_err() && null.dequeue().is_err() && null.memory(0).is_empty());
        assert!(null.controls().unwrap().is_empty());
    }

    #[test]
    fn names_of_the_kernel_cannot_move_the_cursor() {
        assert_eq!(text(b"Cam\x1b[2J\0junk"), "Cam\u{fffd}[2J");
        assert_eq!(text(&[b'a'; 16]), "a".repeat(16));
    }
}
