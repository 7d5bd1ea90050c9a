//! Weights files of any format, told apart by their first bytes.

use std::io::Read;
use std::path::Path;

use serde::Serialize;

use super::fold::from_torchvision;
use super::pth;
use super::safetensors::{self, About, OUR_FORMAT, Precision, read_folded};
use super::{ResNet18, WeightsError};
use crate::whole_file;

/// The largest file that is read: twice a full ResNet18 with its head in FP64.
const FILE_LIMIT: u64 = 256 << 20;

/// Where a network came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Origin {
    /// Our own folded safetensors.
    Cellgate,
    /// safetensors with torchvision's names.
    TorchvisionSafetensors,
    /// What `torch.save` writes of a state dict.
    TorchvisionPth,
    /// An ONNX graph.
    Onnx,
}

/// A network, and what its file says about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The network.
    pub network: ResNet18,
    /// The file's format.
    pub origin: Origin,
    /// Precision of the weights in our own files; `None` for others.
    pub precision: Option<Precision>,
    /// Name and provenance; empty where the file has none.
    pub about: About,
}

impl Loaded {
    /// The default backbone that is compiled into the program.
    ///
    /// # Errors
    /// Only if the program was built with a broken file.
    pub fn embedded() -> Result<Self, WeightsError> {
        Self::parse(super::EMBEDDED)
    }

    /// Reads a weights file: our own safetensors, safetensors or `.pth` with torchvision's names, or ONNX. The bytes
    /// decide, not the file's name.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, or is not a ResNet18; the error names the file and the tensor.
    pub fn read(path: &Path) -> Result<Self, WeightsError> {
        let read = || -> Result<Self, WeightsError> {
            let file = std::fs::File::open(path)?;
            let bytes = file.metadata()?.len();
            if bytes > FILE_LIMIT {
                return Err(WeightsError::TooLarge { bytes, limit: FILE_LIMIT });
            }
            let mut contents = Vec::new();
            // The limit again, for devices and pipes that state no size.
            file.take(FILE_LIMIT + 1).read_to_end(&mut contents)?;
            if contents.len() as u64 > FILE_LIMIT {
                return Err(WeightsError::TooLarge { bytes: contents.len() as u64, limit: FILE_LIMIT });
            }
            Self::parse_in(&contents, path.parent())
        };
        read().map_err(|source| WeightsError::Reading { path: path.to_owned(), source: Box::new(source) })
    }

    /// As [`Loaded::read`], over a file's bytes.
    ///
    /// # Errors
    /// As [`Loaded::read`], without a file's name.
    pub fn parse(bytes: &[u8]) -> Result<Self, WeightsError> {
        Self::parse_in(bytes, None)
    }

    /// As [`Loaded::parse`]; an ONNX model may keep its weights in another file of `folder`.
    fn parse_in(bytes: &[u8], folder: Option<&Path>) -> Result<Self, WeightsError> {
        if safetensors::looks_like(bytes) {
            let mut file = safetensors::File::parse(bytes)?;
            let mut text = |key: &str| file.metadata.remove(key).unwrap_or_default();
            let about = About { name: text("name"), provenance: text("provenance") };
            return Ok(match file.metadata.get("format").map_or("", String::as_str) {
                OUR_FORMAT => {
                    let network = read_folded(&mut file)?;
                    Self { network, origin: Origin::Cellgate, precision: Some(file.precision()), about }
                }
                other if other.starts_with("cellgate-") => {
                    let reason = format!("this version reads {OUR_FORMAT}, the file is {other}: update cellgate");
                    return Err(WeightsError::unsupported("safetensors", reason));
                }
                _ => Self {
                    network: from_torchvision(&mut file)?,
                    origin: Origin::TorchvisionSafetensors,
                    precision: None,
                    about,
                },
            });
        }
        if pth::looks_like(bytes) {
            let network = from_torchvision(&mut pth::File::parse(bytes)?)?;
            return Ok(Self { network, origin: Origin::TorchvisionPth, precision: None, about: About::default() });
        }
        if pth::looks_like_legacy(bytes) {
            return Err(pth::legacy());
        }
        // A protobuf file has no magic number; an ONNX begins with field 1, ir_version, a varint.
        if bytes.first() == Some(&0x08) {
            let network = crate::backbone::onnx::import_onnx(bytes, folder)?;
            return Ok(Self { network, origin: Origin::Onnx, precision: None, about: About::default() });
        }
        let begins: String = bytes.iter().take(8).map(|b| format!("{b:02x}")).collect();
        Err(WeightsError::UnknownFormat(if bytes.is_empty() {
            "it is empty".into()
        } else {
            format!("it begins with {begins}")
        }))
    }
}

/// Writes a whole file or none: beside it, synced, renamed.
///
/// # Errors
/// What the system said, with the file's name.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), WeightsError> {
    whole_file::write(path, &[bytes]).map_err(|source| WeightsError::Writing { path: path.to_owned(), source })
}
