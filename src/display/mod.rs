//! The screen at the machine.
//!
//! [`Screen`] draws a [`Status`] into any target of `embedded-graphics`; [`Display`] owns a buffer and brings it to a
//! framebuffer or into a PNG file. A screen never shows an old verdict as if it were the last cell's, and says so when the
//! station stops.

mod canvas;
mod config;
pub mod framebuffer;
mod ink;
mod layout;
pub mod png;
mod screen;
mod small;
mod text;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use embedded_graphics::pixelcolor::Rgb565;
use thiserror::Error;

use crate::clock::{Date, Moment};
use crate::station::status::Status;

pub use canvas::Canvas;
pub use config::{DisplayConfig, DisplayConfigError, Output, Rotate};
use framebuffer::{Device, Framebuffer, Geometry};
pub use ink::{Ink, Shade};
pub use screen::{SMALLEST, Screen, View};

/// Why nothing can be shown.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DisplayError {
    /// The device does not answer as a framebuffer does.
    #[error(
        "the display {device}: {what} failed: {error}; check `display.path` and that the service may use it (group \
         video), or set `display.output` to none"
    )]
    Device {
        /// The device.
        device: String,
        /// What was attempted.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// It is a framebuffer that cannot be written.
    #[error("the display {device} ({0}×{1}, {2} bits) cannot be used: {why}", geometry.width, geometry.height, geometry.bits)]
    Geometry {
        /// The device.
        device: String,
        /// What it says of itself.
        geometry: Geometry,
        /// What is wrong with that.
        why: &'static str,
    },
    /// Too few pixels.
    #[error("the display {device} has {width}×{height} pixels; at least {0}×{1} are needed", SMALLEST.0, SMALLEST.1)]
    TooSmall {
        /// The device.
        device: String,
        /// Its width, turned as it hangs.
        width: u32,
        /// Its height.
        height: u32,
    },
    /// A picture could not be written.
    #[error("writing the display's picture {path}: {error}; check that its folder exists and is writable")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        error: io::Error,
    },
    /// There is no such output here.
    #[error("`display.output` is framebuffer, which only Linux has; use png or none")]
    NoFramebuffer,
}

enum Target {
    Framebuffer(Framebuffer<Box<dyn Device>>),
    Png(PathBuf, png::Encoder),
}

/// The screen of one station: its picture, made once, and where it goes.
///
/// Showing on a framebuffer allocates nothing; a PNG is written through buffers of the system's library.
pub struct Display {
    screen: Screen,
    canvas: Canvas<Rgb565>,
    target: Target,
    left_as_it_is: bool,
}

impl Display {
    /// Opens what the configuration asks for; none if that is no display. `line` and `station` are the names to show.
    ///
    /// # Errors
    /// If the device or the file's folder cannot be used.
    pub fn open(config: &DisplayConfig, line: &str, station: &str) -> Result<Option<Self>, DisplayError> {
        match config.output {
            Output::None => Ok(None),
            Output::Png => {
                let path = config.path().to_owned();
                let shown = path.display().to_string();
                crate::whole_file::check(&path).map_err(|error| DisplayError::File { path: shown, error })?;
                let [width, height] = config.size;
                Self::made(config, line, station, Target::Png(path, png::Encoder::default()), width, height).map(Some)
            }
            #[cfg(target_os = "linux")]
            Output::Framebuffer => {
                let device = framebuffer::Fbdev::open(config.path())?;
                Self::on(config, line, station, Box::new(device)).map(Some)
            }
            #[cfg(not(target_os = "linux"))]
            Output::Framebuffer => Err(DisplayError::NoFramebuffer),
        }
    }

    /// Shows on a device that is open already.
    ///
    /// # Errors
    /// If it cannot be used.
    pub fn on(
        config: &DisplayConfig,
        line: &str,
        station: &str,
        device: Box<dyn Device>,
    ) -> Result<Self, DisplayError> {
        let device = Framebuffer::new(device, &config.path().display().to_string(), config.rotate)?;
        let (width, height) = device.size();
        Self::made(config, line, station, Target::Framebuffer(device), width, height)
    }

    fn made(
        config: &DisplayConfig,
        line: &str,
        station: &str,
        target: Target,
        width: u32,
        height: u32,
    ) -> Result<Self, DisplayError> {
        if width < SMALLEST.0 || height < SMALLEST.1 {
            return Err(DisplayError::TooSmall { device: config.path().display().to_string(), width, height });
        }
        let screen = Screen {
            line: line.to_owned(),
            station: station.to_owned(),
            stale_after: Duration::from_millis(config.stale_after_ms.into()),
            utc_offset: config.utc_offset_min,
        };
        let canvas = Canvas::new(width as usize, height as usize, Ink::of(Shade::Ground));
        Ok(Self { screen, canvas, target, left_as_it_is: false })
    }

    /// Shows the station as it is at the moment `now`. To be called every `period-ms`, whether something happened or not:
    /// that is how an old verdict goes away.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn show(&mut self, status: &Status, now: Moment) -> Result<(), DisplayError> {
        let Ok(()) = self.screen.draw(&mut self.canvas, &View { status, now, date: Date::of(now) });
        self.present()
    }

    /// Shows that the station has stopped; dropping the display does so too.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn stop(&mut self) -> Result<(), DisplayError> {
        let Ok(()) = self.screen.draw_stopped(&mut self.canvas);
        self.present()
    }

    /// Closes the display and leaves the last picture, for a demonstration that has ended.
    pub fn leave(mut self) {
        self.left_as_it_is = true;
    }

    fn present(&mut self) -> Result<(), DisplayError> {
        match &mut self.target {
            Target::Framebuffer(device) => device.show(&self.canvas),
            Target::Png(path, encoder) => encoder
                .write(&self.canvas, path)
                .map_err(|error| DisplayError::File { path: path.display().to_string(), error })?,
        }
        Ok(())
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if !self.left_as_it_is {
            // Nobody is left to be told.
            let _ = self.stop();
        }
    }
}

impl Device for Box<dyn Device> {
    fn geometry(&self) -> Geometry {
        (**self).geometry()
    }

    fn memory(&mut self) -> &mut [u8] {
        (**self).memory()
    }
}
