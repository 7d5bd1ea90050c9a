//! From a frame to the pyramid.

use std::path::Path;
use std::time::Instant;

use crate::backbone::{Backbone, Pyramid};
use crate::embedding::Stages;
use crate::frame::{DecodeError, DecodeLimits, Frame, decode_file_into};
use crate::preprocess::{Augmentation, ConfigError, Placement, PreprocessConfig, Preprocessor};
use crate::synth::SynthCell;
use crate::verdict::Invalid;

use super::PipelineError;
use super::plan::Image;
use super::spent::{Spent, since};

/// The largest frame that buffers are made for at first; an image file may make them grow, a camera's frame may not.
const DEFAULT_SIDE: usize = 2048;

fn unreadable(error: ConfigError) -> Invalid {
    Invalid::Unreadable(error.to_string())
}

/// Preprocessing and backbone with all their buffers.
pub struct Extractor {
    preprocessor: Preprocessor,
    backbone: Box<dyn Backbone>,
    limits: DecodeLimits,
    frame: Frame,
    side: usize,
    image: Vec<f32>,
    turned: Vec<f32>,
    /// The buffers of the cells that are drawn, once there was one.
    drawn: Option<Box<SynthCell>>,
    spent: Spent,
    pyramid: Pyramid,
}

impl Extractor {
    /// Makes all buffers, for frames of up to 2048 × 2048 pixels.
    ///
    /// # Errors
    /// If preprocessing refuses its settings.
    pub fn new(config: PreprocessConfig, backbone: Box<dyn Backbone>) -> Result<Self, PipelineError> {
        let size = backbone.size();
        Ok(Self {
            preprocessor: Preprocessor::new(config, size, DEFAULT_SIDE, DEFAULT_SIDE)?,
            backbone,
            limits: DecodeLimits::default(),
            frame: Frame::new(DEFAULT_SIDE, DEFAULT_SIDE, 255),
            side: DEFAULT_SIDE,
            image: vec![0.0; size * size],
            turned: vec![0.0; size * size],
            drawn: None,
            spent: Spent::default(),
            pyramid: Pyramid::new(size),
        })
    }

    /// Keeps buffers for `stages` only (at first all four): the backbone stops after the last of them.
    pub fn want(&mut self, stages: Stages) {
        if self.pyramid.stages() != stages.0 {
            self.pyramid = Pyramid::with_stages(self.size(), stages.0);
        }
    }

    /// Side S of the rectified image.
    #[must_use]
    pub fn size(&self) -> usize {
        self.backbone.size()
    }

    /// Reads or draws an image and rectifies the cell in it. Buffers grow if the image is larger than any before.
    ///
    /// # Errors
    /// Why the cell cannot be judged.
    pub fn load(&mut self, image: &Image) -> Result<Placement, Invalid> {
        let (line, index) = match image {
            Image::File(path) => return self.load_file(path),
            Image::Drawn { line, index } => (line, *index),
        };
        let mut clock = Instant::now();
        let mut drawn = self.drawn.take().unwrap_or_default();
        line.cell_into(index, &mut drawn);
        std::mem::swap(&mut self.frame, &mut drawn.frame);
        self.drawn = Some(drawn);
        self.spent.images += since(&mut clock);
        let frame = std::mem::replace(&mut self.frame, Frame::new(0, 0, 1));
        let side = frame.width().max(frame.height());
        let outcome = self.make_room(side).map_err(unreadable).and_then(|()| self.rectify(&frame));
        self.spent.rectify += since(&mut clock);
        self.frame = frame;
        outcome
    }

    /// Reads an image file and rectifies the cell in it, as [`load`](Self::load) does.
    ///
    /// # Errors
    /// Why the cell cannot be judged.
    pub fn load_file(&mut self, path: &Path) -> Result<Placement, Invalid> {
        self.with_file(path, Self::rectify)
    }

    /// Reads an image file and finds the cell in it, as [`locate`](Self::locate) does.
    ///
    /// # Errors
    /// Why the cell cannot be judged.
    pub fn locate_file(&mut self, path: &Path) -> Result<Placement, Invalid> {
        self.with_file(path, Self::locate)
    }

    fn with_file(
        &mut self,
        path: &Path,
        place: impl FnOnce(&mut Self, &Frame) -> Result<Placement, Invalid>,
    ) -> Result<Placement, Invalid> {
        let mut frame = std::mem::replace(&mut self.frame, Frame::new(0, 0, 1));
        let mut clock = Instant::now();
        let decoded = decode_file_into(path, &self.limits, &mut frame);
        self.spent.images += since(&mut clock);
        let outcome = decoded.map_err(|error| Invalid::Unreadable(chain(&error))).and_then(|()| {
            self.make_room(frame.width().max(frame.height())).map_err(unreadable)?;
            place(self, &frame)
        });
        self.spent.rectify += since(&mut clock);
        self.frame = frame;
        outcome
    }

    /// Makes the buffers large enough for frames of this side.
    ///
    /// # Errors
    /// If it is too large.
    pub fn make_room(&mut self, side: usize) -> Result<(), ConfigError> {
        if side > self.side {
            let config = self.preprocessor.config().clone();
            self.preprocessor = Preprocessor::new(config, self.size(), side, side)?;
            self.side = side;
        }
        Ok(())
    }

    /// The longest side that a frame may have.
    #[must_use]
    pub fn side(&self) -> usize {
        self.side
    }

    /// Where the time went since this was asked last.
    pub fn take_spent(&mut self) -> Spent {
        std::mem::take(&mut self.spent)
    }

    /// Rectifies the cell of a frame. Allocates nothing.
    ///
    /// # Errors
    /// Why the cell cannot be judged.
    pub fn rectify(&mut self, frame: &Frame) -> Result<Placement, Invalid> {
        self.preprocessor.run(frame, &mut self.image).map_err(Invalid::Frame)
    }

    /// Finds the cell of a frame, whose image another backend makes and [`adopt`](Self::adopt) takes. Allocates nothing.
    ///
    /// # Errors
    /// Why the cell cannot be judged.
    pub fn locate(&mut self, frame: &Frame) -> Result<Placement, Invalid> {
        self.preprocessor.locate(frame).map_err(Invalid::Frame)
    }

    /// Takes over the image that another backend made of the frame whose cell was [located](Self::locate) last, in the
    /// frame's units, with its brightness (of full scale) and sharpness, and passes it through the gates.
    ///
    /// # Errors
    /// Why the cell cannot be judged.
    ///
    /// # Panics
    /// If the image has another size.
    pub fn adopt(
        &mut self,
        image: &[f32],
        [factor, shift]: [f32; 2],
        placement: &mut Placement,
        [brightness, sharpness]: [f32; 2],
    ) -> Result<(), Invalid> {
        assert_eq!(image.len(), self.image.len(), "an image of another size");
        self.image.iter_mut().zip(image).for_each(|(to, value)| *to = value * factor - shift);
        self.preprocessor.accept(placement, brightness, sharpness).map_err(Invalid::Frame)
    }

    /// How a frame becomes an image.
    #[must_use]
    pub fn preprocessing(&self) -> &PreprocessConfig {
        self.preprocessor.config()
    }

    /// The rectified, normalised image: S·S values.
    #[must_use]
    pub fn image(&self) -> &[f32] {
        &self.image
    }

    /// The frame that [`load`](Self::load) read last.
    #[must_use]
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// What [`features`](Self::features) gave last.
    #[must_use]
    pub fn pyramid(&self) -> &Pyramid {
        &self.pyramid
    }

    /// Runs the backbone on the rectified image, changed as `augmentation` says. Allocates nothing.
    ///
    /// # Errors
    /// If the backbone refuses (which means that its sizes were not those of this extractor).
    pub fn features(&mut self, augmentation: Augmentation) -> Result<&Pyramid, PipelineError> {
        let mut clock = Instant::now();
        let image = if augmentation.is_identity() {
            &self.image
        } else {
            augmentation.apply(&self.image, &mut self.turned, self.backbone.size());
            &self.turned
        };
        self.spent.rectify += since(&mut clock);
        self.backbone.run(image, &mut self.pyramid)?;
        self.spent.network += since(&mut clock);
        Ok(&self.pyramid)
    }
}

/// An error and its causes in one line.
fn chain(error: &DecodeError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Microseconds since `start`, and `start` set to now.
pub(super) fn lap(start: &mut Instant) -> u32 {
    let now = Instant::now();
    let spent = now.duration_since(*start).as_micros();
    *start = now;
    u32::try_from(spent).unwrap_or(u32::MAX)
}
