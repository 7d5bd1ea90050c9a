//! From a frame to heatmap and scores.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::classifier::evidence::{self, Witness};
use crate::embedding::{Embedder, Projection, Stages};
use crate::frame::Frame;
use crate::gaussian::Statistics;
use crate::gaussian::distance::mahalanobis;
use crate::heatmap::{Analyser, Regions, Scores};
use crate::model::Settings;
use crate::preprocess::{Augmentation, ConfigError, Mode, Placement};
use crate::simd::Isa;
use crate::verdict::{Invalid, Latency};
use crate::workers::Workers;

use super::Extractor;
use super::extractor::lap;
use super::plan::Image;

/// Measures cells against statistics; owns every buffer of the way. Once made it allocates nothing but to read files.
pub struct Scorer {
    extractor: Extractor,
    embedder: Embedder,
    analyser: Analyser,
    heatmap: Vec<f32>,
    latency: Latency,
}

impl Scorer {
    /// For one projection and the settings that it was made with.
    #[must_use]
    pub fn new(settings: &Settings, projection: &Projection, mut extractor: Extractor, workers: Arc<Workers>) -> Self {
        let grid = settings.grid as usize;
        extractor.want(Stages(std::array::from_fn(|stage| projection.uses(stage))));
        Self {
            embedder: Embedder::new(projection, extractor.size(), grid, Isa::detect(), workers),
            extractor,
            analyser: Analyser::new(grid, settings.sigma),
            heatmap: vec![0.0; grid * grid],
            latency: Latency::default(),
        }
    }

    /// Reads an image file and rectifies the cell in it.
    ///
    /// # Errors
    /// Why the cell cannot be judged.
    pub fn rectify_file(&mut self, path: &Path) -> Result<Placement, Invalid> {
        let mut clock = Instant::now();
        let placement = self.extractor.load_file(path)?;
        self.latency = Latency { preprocess_us: lap(&mut clock), ..Latency::default() };
        Ok(placement)
    }

    /// Rectifies the cell in a frame.
    ///
    /// # Errors
    /// Why the cell cannot be judged.
    pub fn rectify(&mut self, frame: &Frame) -> Result<Placement, Invalid> {
        let mut clock = Instant::now();
        let placement = self.extractor.rectify(frame)?;
        self.latency = Latency { preprocess_us: lap(&mut clock), ..Latency::default() };
        Ok(placement)
    }

    /// Reads an image file and finds the cell in it, for another backend that makes its image.
    ///
    /// # Errors
    /// Why the cell cannot be judged.
    pub fn locate_file(&mut self, path: &Path) -> Result<Placement, Invalid> {
        let mut clock = Instant::now();
        let placement = self.extractor.locate_file(path)?;
        self.latency = Latency { preprocess_us: lap(&mut clock), ..Latency::default() };
        Ok(placement)
    }

    /// Finds the cell in a frame, for another backend that makes its image.
    ///
    /// # Errors
    /// Why the cell cannot be judged.
    pub fn locate(&mut self, frame: &Frame) -> Result<Placement, Invalid> {
        let mut clock = Instant::now();
        let placement = self.extractor.locate(frame)?;
        self.latency = Latency { preprocess_us: lap(&mut clock), ..Latency::default() };
        Ok(placement)
    }

    /// Measures the image that was rectified last.
    ///
    /// # Errors
    /// If a number on the way is not finite.
    pub fn score_rectified(&mut self, statistics: &Statistics<'_>) -> Result<Scores, Invalid> {
        self.project()?;
        self.measure(statistics)
    }

    /// Fetches and rectifies an image and no more.
    ///
    /// # Errors
    /// Why the cell cannot be judged.
    pub fn load(&mut self, image: &Image) -> Result<Placement, Invalid> {
        self.extractor.load(image)
    }

    /// Backbone and projection of the rectified image.
    ///
    /// # Errors
    /// If the backbone refuses.
    pub fn project(&mut self) -> Result<(), Invalid> {
        let mut clock = Instant::now();
        // The sizes of extractor and embedder are one by construction.
        let pyramid =
            self.extractor.features(Augmentation::default()).map_err(|error| Invalid::Backbone(error.to_string()))?;
        self.latency.backbone_us = lap(&mut clock);
        self.embedder.project(pyramid);
        self.latency.projection_us = lap(&mut clock);
        Ok(())
    }

    /// Distance, smoothing and scores of the cell that was projected last; may be called for several statistics of one
    /// projection.
    ///
    /// # Errors
    /// If a number on the way is not finite.
    pub fn measure(&mut self, statistics: &Statistics<'_>) -> Result<Scores, Invalid> {
        let mut clock = Instant::now();
        mahalanobis(statistics, self.embedder.projected(self.extractor.pyramid()), &mut self.heatmap);
        self.latency.distance_us = lap(&mut clock);
        self.analyser.smooth(&mut self.heatmap);
        let scores = self.analyser.scores(&self.heatmap).ok_or(Invalid::NotFinite);
        self.latency.heatmap_us = lap(&mut clock);
        scores
    }

    /// Makes the buffers large enough for frames of this side.
    ///
    /// # Errors
    /// If it is too large.
    pub fn make_room(&mut self, side: usize) -> Result<(), ConfigError> {
        self.extractor.make_room(side)
    }

    /// Whether the backbone computes all four stages, as [`show`](Self::show) asks for.
    #[must_use]
    pub fn sees_all_stages(&self) -> bool {
        self.extractor.pyramid().stages() == [true; 4]
    }

    /// Takes over the image of the cell that was located last, as [`Extractor::adopt`] does.
    ///
    /// # Errors
    /// Why the cell cannot be judged.
    pub fn adopt_image(
        &mut self,
        image: &[f32],
        normalisation: [f32; 2],
        placement: &mut Placement,
        measures: [f32; 2],
    ) -> Result<(), Invalid> {
        self.extractor.adopt(image, normalisation, placement, measures)
    }

    /// Whether the cell's border is searched and straightened.
    #[must_use]
    pub fn straightens(&self) -> bool {
        self.extractor.preprocessing().mode == Mode::Border
    }

    /// The longest side that a frame may have.
    #[must_use]
    pub fn side(&self) -> usize {
        self.extractor.side()
    }

    /// Takes over what another backend made of the rectified image: the heatmap, smoothed, and the microseconds that all of
    /// its work took, which count as the backbone's.
    ///
    /// # Panics
    /// If the heatmap has another size.
    pub fn adopt(&mut self, heatmap: &[f32], spent_us: u32) {
        self.heatmap.copy_from_slice(heatmap);
        self.latency.backbone_us = spent_us;
    }

    /// Shows the cell that was measured last to a witness: its heatmap and image, and the features of `views` views of it.
    /// Each view but the first costs a run of the backbone, after which the cell must be [projected](Self::project) again
    /// to be measured again. Allocates nothing.
    ///
    /// # Errors
    /// If the backbone refuses.
    ///
    /// # Panics
    /// If there are no such views, or the projection does not use all four stages.
    pub fn show(&mut self, witness: &mut Witness, views: usize) -> Result<(), Invalid> {
        self.show_planes(witness);
        self.show_features(witness, views)
    }

    /// Shows the heatmap and the image of that cell, and no features.
    pub fn show_planes(&self, witness: &mut Witness) {
        witness.see_heatmap(&self.heatmap);
        witness.see_image(self.extractor.image());
    }

    /// Shows the features of `views` views of that cell, after [`show_planes`](Self::show_planes).
    ///
    /// # Errors
    /// If the backbone refuses.
    ///
    /// # Panics
    /// As [`show`](Self::show).
    pub fn show_features(&mut self, witness: &mut Witness, views: usize) -> Result<(), Invalid> {
        witness.see_features(self.extractor.pyramid());
        for index in 1..views {
            let features = self.extractor.features(evidence::view(index));
            witness.see_features(features.map_err(|error| Invalid::Backbone(error.to_string()))?);
        }
        witness.conclude();
        Ok(())
    }

    /// The parts of the last heatmap above `level`.
    pub fn regions(&mut self, level: f32) -> Regions {
        self.analyser.regions(&self.heatmap, level)
    }

    /// One half of the smoothing's window: see [`Analyser::window`].
    #[must_use]
    pub fn window(&self) -> &[f32] {
        self.analyser.window()
    }

    /// The last heatmap, smoothed: grid² distances.
    #[must_use]
    pub fn heatmap(&self) -> &[f32] {
        &self.heatmap
    }

    /// The last rectified image: S² values.
    #[must_use]
    pub fn image(&self) -> &[f32] {
        self.extractor.image()
    }

    /// The frame that [`load`](Self::load) read last.
    #[must_use]
    pub fn frame(&self) -> &Frame {
        self.extractor.frame()
    }

    /// Side S of the rectified image.
    #[must_use]
    pub fn size(&self) -> usize {
        self.extractor.size()
    }

    /// Where the time of the last cell went.
    #[must_use]
    pub fn latency(&self) -> Latency {
        self.latency
    }

    /// Takes the extractor back, to make another scorer of it.
    #[must_use]
    pub fn into_extractor(self) -> Extractor {
        self.extractor
    }
}
