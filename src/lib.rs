//! cellgate: from an electroluminescence image of a solar cell to a verdict.
//!
//! ```text
//!  frame ──► preprocess ──► backbone ──► embedding ──► gaussian ──► heatmap ──► verdict
//!  decode    border quad     ResNet18     project,      Mahalanobis   smooth,     A/B/C or
//!            rectify S×S     4 stages     upsample,     distance      score,      INVALID
//!            normalise                    sum: k chan.  per position  regions
//! ```
//!
//! # Rooms
//!
//! In the order in which a frame walks through them: [`frame`], [`camera`] and [`gpio`] (where it comes from, and which
//! cell it shows), [`preprocess`], [`backbone`], [`embedding`], [`gaussian`], [`heatmap`], [`classifier`], [`verdict`].
//! [`cuda`] goes from the image to the heatmap on an NVIDIA device, with the networks in [`tensorrt`].
//! [`model`] is what a fit leaves in a file, [`pipeline`] joins them all. [`station`] runs them on a line, [`outbox`] brings
//! its verdicts to the broker, [`update`] brings it a new model, [`display`] and [`operations`] show how it does, and
//! [`config`] says how all of it is set up. [`fleet`] brings a new model to many stations.
//! [`eval`] tells how well the method works, [`baseline`] holds what it is compared with, and [`synth`] draws cells to
//! try it on; [`clock`], [`sampling`], [`simd`], [`workers`] and [`whole_file`] serve whoever needs them. Each room uses
//! those before it; the other way goes only what must be agreed on, such as the
//! backbone's input, to which [`preprocess`] normalises. Nothing uses the command line, [`cli`].
//!
//! # Principles
//!
//! 1. Never pass a cell in doubt: whatever cannot be judged becomes `INVALID` with a named reason.
//! 2. After start, the frame path allocates nothing: every buffer's size is known before the first frame.
//! 3. A verdict is durable before it is told, and every frame and trigger gets exactly one.
//! 4. One result on every machine: each SIMD path is held to the scalar reference by the same tests.

pub mod backbone;
pub mod baseline;
pub mod camera;
pub mod classifier;
pub mod cli;
pub mod clock;
pub mod config;
pub mod cuda;
pub mod display;
pub mod embedding;
pub mod eval;
pub mod fleet;
pub mod frame;
pub mod gaussian;
pub mod gpio;
pub mod heatmap;
mod hidden;
pub mod model;
pub mod operations;
pub mod outbox;
pub mod pipeline;
pub mod preprocess;
pub mod sampling;
pub mod simd;
pub mod station;
pub mod synth;
pub mod tensorrt;
pub mod update;
pub mod verdict;
pub mod whole_file;
pub mod workers;
