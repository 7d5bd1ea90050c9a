//! From the pyramid of a cell to one k-vector for each position of the grid.
//!
//! Every stage of the [`Pyramid`](crate::backbone::Pyramid) is projected at its own resolution by its rows of the
//! semi-orthogonal matrix ([`Projection`]), brought to the grid by bilinear interpolation, and the four are summed.
//! That equals interpolating all 960 channels first and projecting then (both are linear), at an eighth of the work.

pub mod cpu;
mod matrix;
pub mod projection;

pub use cpu::{Embedder, Embedding, Projected};
pub use projection::{EmbeddingError, Mixing, Projection, Stages};
