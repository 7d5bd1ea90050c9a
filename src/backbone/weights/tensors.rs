//! Named tensors in a file, before they are known to be a ResNet18's.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::{WeightsError, check_finite};
use crate::hidden::shown;

/// How the numbers of a tensor lie in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DType {
    F64,
    F32,
    F16,
    Bf16,
    /// Any other type, by its bits; it has a size, but is never read.
    Other(u8),
}

impl DType {
    pub(crate) fn bits(self) -> usize {
        match self {
            Self::F64 => 64,
            Self::F32 => 32,
            Self::F16 | Self::Bf16 => 16,
            Self::Other(bits) => bits.into(),
        }
    }

    pub(crate) fn bytes(self) -> usize {
        self.bits() / 8
    }

    /// Little-endian bytes to numbers; a remainder that is no whole number is left out.
    ///
    /// `None` if the type is not a floating-point one.
    pub(crate) fn decode(self, bytes: &[u8]) -> Option<Vec<f32>> {
        Some(match self {
            Self::F64 => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
            Self::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Self::F16 => {
                // Blocks that stay in the cache, for the processor's own conversion where it has one.
                let mut halves = [f16::ZERO; 4096];
                let mut values = vec![0.0; bytes.len() / 2];
                for (to, from) in values.chunks_mut(halves.len()).zip(bytes.as_chunks::<2>().0.chunks(4096)) {
                    let halves = &mut halves[..from.len()];
                    halves.iter_mut().zip(from).for_each(|(h, b)| *h = f16::from_le_bytes(*b));
                    halves.convert_to_f32_slice(to);
                }
                values
            }
            Self::Bf16 => bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            Self::Other(_) => return None,
        })
    }
}

/// The tensors of a file by name: shapes are known at once, numbers are read only where the shape is the expected one,
/// so that a lying shape never costs memory.
pub(crate) trait Tensors {
    /// Names of all tensors.
    fn names(&self) -> Vec<&str>;

    /// The shape of `name`, if there is such a tensor.
    fn shape(&self, name: &str) -> Option<&[usize]>;

    /// The numbers of `name` in row-major order.
    fn values(&mut self, name: &str) -> Result<Vec<f32>, WeightsError>;

    /// The numbers of `name`, which must have `shape` and be finite.
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let got = self.shape(name).ok_or_else(|| WeightsError::Missing { names: name.to_owned() })?;
        if got != shape {
            let (name, expected, got) = (name.to_owned(), shape.to_vec(), got[..got.len().min(8)].to_vec());
            return Err(WeightsError::Shape { name, expected, got });
        }
        let values = self.values(name)?;
        check_finite(name, &values)?;
        Ok(values)
    }
}

/// Refuses tensors that are missing or superfluous, naming up to eight of them.
pub(crate) fn check_names(
    tensors: &dyn Tensors,
    expected: &[String],
    ignored: fn(&str) -> bool,
) -> Result<(), WeightsError> {
    let missing: Vec<&str> = expected.iter().map(String::as_str).filter(|name| tensors.shape(name).is_none()).collect();
    if !missing.is_empty() {
        return Err(WeightsError::Missing { names: list(&missing) });
    }
    let known: std::collections::HashSet<&str> = expected.iter().map(String::as_str).collect();
    let mut unknown: Vec<&str> = tensors.names();
    unknown.retain(|name| !known.contains(name) && !ignored(name));
    unknown.sort_unstable();
    if !unknown.is_empty() {
        return Err(WeightsError::Unknown { names: list(&unknown) });
    }
    Ok(())
}

fn list(names: &[&str]) -> String {
    let shown: Vec<String> = names.iter().take(8).map(|name| printable(name)).collect();
    let rest = names.len().saturating_sub(8);
    shown.join(", ") + &if rest > 0 { format!(" and {rest} more") } else { String::new() }
}

/// A name from a file, cut to a length and without hidden characters, for an error's text.
pub(crate) fn printable(name: &str) -> String {
    let mut text: String = name.chars().take(80).map(shown).collect();
    if text.len() < name.len() && name.chars().nth(80).is_some() {
        text.push('…');
    }
    text
}
