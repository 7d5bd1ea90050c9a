//! ONNX, both ways: a ResNet18 in a graph is read, and our own network is written for other runtimes.

mod export;
mod import;
mod measure;
mod proto;

pub use export::{export_classifier, export_features, export_onnx, map_stride};
pub(crate) use import::import_onnx;
