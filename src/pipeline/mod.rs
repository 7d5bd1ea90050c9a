//! The whole way of a frame, and the fit that comes before it: the only room that knows the order of the others.
//!
//! [`Extractor`] takes a frame to its pyramid; [`Scorer`] goes on to heatmap and score; [`Inspector`] to the verdict, by the
//! CPU or by what [`backend`] puts in front of it.
//! [`fitting`] runs extractors on all cores over a data set to gather, resume, merge and calibrate a model;
//! [`crossval`] measures every cell by statistics that have not seen it, and [`teaching`] gathers what the classifier
//! sees of it then.

pub mod backend;
mod channel_scale;
pub mod crossval;
mod extractor;
pub mod fitting;
mod inspector;
mod outcomes;
mod plan;
mod scorer;
mod spent;
pub mod teaching;

pub use backend::{Backend, BackendError};
pub use extractor::Extractor;
pub use inspector::Inspector;
pub use outcomes::Outcomes;
pub use scorer::Scorer;
pub use spent::Spent;

use thiserror::Error;

use crate::backbone::BackboneError;
use crate::classifier::NetworkError;
use crate::cuda::CudaError;
use crate::model::ModelError;
use crate::preprocess::ConfigError;

/// Why a pipeline could not be built.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// Preprocessing refuses its settings.
    #[error(transparent)]
    Preprocess(#[from] ConfigError),
    /// The backbone refuses its settings.
    #[error(transparent)]
    Backbone(#[from] BackboneError),
    /// The model refuses the backbone.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The classifier's network cannot be run.
    #[error(transparent)]
    Classifier(#[from] NetworkError),
    /// The device has no room.
    #[error(transparent)]
    Device(#[from] CudaError),
    /// The classifier sees what the backbone does not compute.
    #[error(
        "the classifier looks at all four stages of the backbone, but the model was fitted with some of them: fit again \
         with --stages 1,2,3,4 and train again"
    )]
    Stages,
}
