//! safetensors: reading with every offset checked, and writing of our own folded form.
//!
//! The format is 8 bytes of header length, a JSON header of names, types, shapes and offsets, and the numbers. Our own
//! files hold `<name>.weight` (FP16 or FP32) and `<name>.bias` (FP32) of the twenty folded convolutions, and in
//! `__metadata__` the format's name, a name and provenance for people, and the [`Identity`](crate::backbone::Identity)
//! that is checked whenever the file is read.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::tensors::{DType, Tensors, check_names, printable};
use super::{Conv, ResNet18, WeightsError, architecture};

const FORMAT: &str = "safetensors";
/// What our own files call themselves in `__metadata__.format`.
pub(super) const OUR_FORMAT: &str = "cellgate-backbone-1";
/// The largest header that is read; a ResNet18's has 9 kB.
const HEADER_LIMIT: u64 = 1 << 20;

/// How weights are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 16 bits a weight.
    F16,
    /// 32 bits a weight.
    F32,
}

/// Text about the weights, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct About {
    /// A short name, such as `resnet18-el`.
    pub name: String,
    /// Where the weights come from.
    pub provenance: String,
}

/// The tensors of a safetensors file, over its bytes.
pub(super) struct File<'a> {
    pub(super) metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, Entry<'a>>,
}

struct Entry<'a> {
    dtype: DType,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

/// The header of our own files, as it is written.
#[derive(Serialize)]
struct OurHeader<'a> {
    #[serde(rename = "__metadata__")]
    metadata: BTreeMap<&'a str, &'a str>,
    #[serde(flatten)]
    tensors: BTreeMap<String, RawEntry>,
}

#[derive(Serialize, Deserialize)]
struct RawEntry {
    data_offsets: [u64; 2],
    dtype: String,
    shape: Vec<u64>,
}

/// The JSON header; a name that comes twice is refused, since readers would disagree on which one counts.
#[derive(Default)]
struct Header {
    metadata: BTreeMap<String, String>,
    entries: BTreeMap<String, RawEntry>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut header = Header::default();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        header.metadata = map.next_value()?;
                        continue;
                    }
                    let shown = printable(&name);
                    if header.entries.insert(name, map.next_value()?).is_some() {
                        return Err(A::Error::custom(format!("{shown} comes twice")));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Names)
    }
}

/// Whether the bytes begin as a safetensors file does.
pub(super) fn looks_like(bytes: &[u8]) -> bool {
    bytes.get(8) == Some(&b'{')
}

impl<'a> File<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, WeightsError> {
        let broken = |reason: String| WeightsError::broken(FORMAT, reason);
        let (length, rest) = bytes
            .split_first_chunk::<8>()
            .ok_or_else(|| broken(format!("it ends after {} bytes, before its header", bytes.len())))?;
        let length = u64::from_le_bytes(*length);
        if length > HEADER_LIMIT {
            return Err(broken(format!("its header claims {length} bytes, more than the {HEADER_LIMIT} allowed")));
        }
        let (header, data) = rest.split_at_checked(length as usize).ok_or_else(|| {
            broken(format!("its header claims {length} bytes, but only {} follow: truncated?", rest.len()))
        })?;
        let header: Header =
            serde_json::from_slice(header).map_err(|error| broken(format!("its header is not understood: {error}")))?;

        let mut tensors = BTreeMap::new();
        let mut ranges = Vec::with_capacity(header.entries.len());
        for (name, raw) in header.entries {
            let shown = printable(&name);
            let [begin, end] = raw.data_offsets;
            let range = usize::try_from(begin).ok().zip(usize::try_from(end).ok());
            let bytes = range.and_then(|(begin, end)| data.get(begin..end)).ok_or_else(|| {
                broken(format!("{shown} lies at bytes {begin} to {end}, but there are {}: truncated?", data.len()))
            })?;
            let dtype = dtype_of(&raw.dtype)
                .ok_or_else(|| broken(format!("{shown} has the unknown type {}", printable(&raw.dtype))))?;
            let size = raw.shape.iter().try_fold(dtype.bits() as u64, |n, &dim| n.checked_mul(dim));
            if size != (bytes.len() as u64).checked_mul(8) {
                return Err(broken(format!(
                    "{shown} has shape {:?} of {}, which does not fill its {} bytes",
                    &raw.shape[..raw.shape.len().min(8)],
                    printable(&raw.dtype),
                    bytes.len()
                )));
            }
            ranges.push((begin, end, shown));
            // The product fits the file's size, but a dimension of 0 hides others of any size.
            let shape = raw.shape.iter().map(|&dim| usize::try_from(dim).unwrap_or(usize::MAX)).collect();
            tensors.insert(name, Entry { dtype, shape, bytes });
        }
        ranges.sort();
        let mut at = 0;
        for (begin, end, name) in ranges {
            if begin != at {
                let what = if begin < at { "overlaps the tensor before it" } else { "leaves a hole before it" };
                return Err(broken(format!("{name} {what} (byte {begin}, expected {at})")));
            }
            at = end;
        }
        if at != data.len() as u64 {
            return Err(broken(format!("its tensors end at byte {at}, but there are {}", data.len())));
        }
        Ok(Self { metadata: header.metadata, tensors })
    }

    /// The precision of our own files' weights.
    pub(super) fn precision(&self) -> Precision {
        match self.tensors.get("conv1.weight").map(|entry| entry.dtype) {
            Some(DType::F16 | DType::Bf16) => Precision::F16,
            _ => Precision::F32,
        }
    }
}

impl Tensors for File<'_> {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    fn values(&mut self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let entry = self.tensors.get(name).ok_or_else(|| WeightsError::Missing { names: printable(name) })?;
        entry.dtype.decode(entry.bytes).ok_or_else(|| {
            WeightsError::unsupported(FORMAT, format!("{} is not of a floating-point type", printable(name)))
        })
    }
}

fn dtype_of(name: &str) -> Option<DType> {
    Some(match name {
        "F64" => DType::F64,
        "F32" => DType::F32,
        "F16" => DType::F16,
        "BF16" => DType::Bf16,
        "I64" | "U64" => DType::Other(64),
        "I32" | "U32" => DType::Other(32),
        "I16" | "U16" => DType::Other(16),
        "I8" | "U8" | "BOOL" | "F8_E4M3" | "F8_E5M2" => DType::Other(8),
        _ => return None,
    })
}

/// The network of our own folded form; its identity must be the one that the file states.
pub(super) fn read_folded(file: &mut File<'_>) -> Result<ResNet18, WeightsError> {
    let shapes = architecture();
    let names: Vec<String> =
        shapes.iter().flat_map(|s| [format!("{}.weight", s.name), format!("{}.bias", s.name)]).collect();
    check_names(file, &names, |_| false)?;
    let mut convs = Vec::with_capacity(shapes.len());
    for shape in shapes {
        let weight = file.take(&format!("{}.weight", shape.name), &shape.weight_shape())?;
        let bias = file.take(&format!("{}.bias", shape.name), &[shape.outputs])?;
        let super::ConvShape { name, inputs, outputs, kernel, stride, .. } = shape;
        convs.push(Conv { name, inputs, outputs, kernel, stride, weight, bias });
    }
    let network = ResNet18::from_convs(convs)?;
    let stated = file.metadata.get("identity").map_or("", String::as_str);
    if stated != network.identity().to_string() {
        return Err(WeightsError::IdentityMismatch { stated: printable(stated), computed: network.identity() });
    }
    Ok(network)
}

/// Our own file over `network`, and the network that it holds: with [`Precision::F16`] the weights are rounded, which
/// gives another identity. The same input gives the same bytes.
///
/// # Errors
/// With [`Precision::F16`], a weight is beyond 65504.
pub fn write(network: &ResNet18, precision: Precision, about: &About) -> Result<(Vec<u8>, ResNet18), WeightsError> {
    let network = match precision {
        Precision::F16 => network.to_f16()?,
        Precision::F32 => network.clone(),
    };
    // The order of keys is the map's and the struct's, whatever serde_json is built with.
    let mut tensors = BTreeMap::new();
    let mut data = Vec::new();
    for conv in network.convs() {
        let begin = data.len();
        let dtype = match precision {
            Precision::F16 => {
                data.extend(conv.weight.iter().flat_map(|&w| half::f16::from_f32(w).to_le_bytes()));
                "F16"
            }
            Precision::F32 => {
                data.extend(conv.weight.iter().flat_map(|w| w.to_le_bytes()));
                "F32"
            }
        };
        let mut entry = |part: &str, dtype, shape: &[usize], begin: usize, end: usize| {
            let shape = shape.iter().map(|&dim| dim as u64).collect();
            let entry = RawEntry { dtype: String::from(dtype), shape, data_offsets: [begin as u64, end as u64] };
            tensors.insert(format!("{}.{part}", conv.name), entry);
        };
        entry("weight", dtype, &[conv.outputs, conv.inputs, conv.kernel, conv.kernel], begin, data.len());
        let begin = data.len();
        data.extend(conv.bias.iter().flat_map(|b| b.to_le_bytes()));
        entry("bias", "F32", &[conv.outputs], begin, data.len());
    }
    let identity = network.identity().to_string();
    let metadata = BTreeMap::from([
        ("format", OUR_FORMAT),
        ("identity", &identity),
        ("name", &about.name),
        ("provenance", &about.provenance),
    ]);
    let mut header = serde_json::to_string(&OurHeader { metadata, tensors }).map_err(std::io::Error::from)?;
    // Spaces to a multiple of 8, so that the numbers are aligned, as the format recommends.
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let mut bytes = Vec::with_capacity(8 + header.len() + data.len());
    bytes.extend((header.len() as u64).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    Ok((bytes, network))
}
