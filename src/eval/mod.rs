//! How well it works: data sets, folds, metrics and the pages that show them.
//!
//! Nothing here runs a model. A caller opens a [`dataset::Dataset`], splits it with [`folds`], scores the cells, and
//! gives scores and labels back to [`metrics`], [`pixel`] and [`result`]; [`report`] turns the outcome into HTML.

pub mod dataset;
pub mod elpv;
pub mod folds;
pub mod labels;
pub mod metrics;
pub mod pixel;
pub mod report;
pub mod result;
