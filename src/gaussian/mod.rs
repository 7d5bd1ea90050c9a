//! The Gaussian of good cells at each position of the grid, and the distance to it.
//!
//! [`fit`] gathers mean and co-moments in one pass and constant memory; [`shrinkage`] turns them into a covariance
//! that can be inverted; [`factors`] keeps the inverse's Cholesky factor packed; [`distance`] measures a cell
//! against it.

pub mod distance;
pub mod factors;
pub mod fit;
pub mod shrinkage;

pub use factors::{Factors, Precision, Statistics};
pub use fit::Accumulator;
pub use shrinkage::Shrinkage;
