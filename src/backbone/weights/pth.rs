//! torchvision's `.pth`: the ZIP archive that `torch.save` writes.
//!
//! `<folder>/data.pkl` describes the tensors, `<folder>/data/<key>` holds their numbers, `<folder>/byteorder` says in
//! which order their bytes lie.

use std::collections::{BTreeMap, HashMap};
use std::io::{Cursor, Read};

use zip::ZipArchive;

use super::WeightsError;
use super::pickle::{PICKLE_LIMIT, TensorRef, read_state_dict};
use super::tensors::{Tensors, printable};

const FORMAT: &str = ".pth";
/// All storages together; a full ResNet18 has 47 MB in FP32.
const STORAGE_LIMIT: u64 = 256 << 20;
/// Entries of the archive; a full ResNet18's has 125.
const ENTRY_LIMIT: usize = 10_000;

/// Whether the bytes begin as a ZIP archive does.
pub(super) fn looks_like(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04")
}

/// Whether the bytes begin as `torch.save` wrote them before version 1.6: a pickle of a magic number.
pub(super) fn looks_like_legacy(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19])
}

/// The error for a file of before 1.6.
pub(super) fn legacy() -> WeightsError {
    WeightsError::unsupported(
        FORMAT,
        "PyTorch wrote it in the format of before 1.6; save it again with any newer one: \
         torch.save(torch.load(FILE, map_location=\"cpu\"), FILE)",
    )
}

/// The tensors of a `.pth` file, over its bytes.
pub(super) struct File<'a> {
    archive: ZipArchive<Cursor<&'a [u8]>>,
    folder: String,
    big_endian: bool,
    tensors: BTreeMap<String, TensorRef>,
    storages: HashMap<String, Vec<u8>>,
    storage_bytes: u64,
}

fn broken(reason: impl Into<String>) -> WeightsError {
    WeightsError::broken(FORMAT, reason)
}

impl<'a> File<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, WeightsError> {
        // Before the directory is read: an entry takes ten times its bytes in memory.
        if bytes.windows(4).filter(|signature| signature == b"PK\x01\x02").count() > ENTRY_LIMIT {
            return Err(broken(format!("its archive has more than {ENTRY_LIMIT} entries")));
        }
        let mut archive = ZipArchive::new(Cursor::new(bytes))
            .map_err(|error| broken(format!("its ZIP archive cannot be opened ({error}): truncated?")))?;
        let folder = archive
            .file_names()
            .filter_map(Result::ok)
            .filter_map(|name| name.strip_suffix("data.pkl").map(str::to_owned))
            .find(|folder| folder.is_empty() || folder.ends_with('/'))
            .ok_or_else(|| {
                WeightsError::unsupported(FORMAT, "it is a ZIP archive without data.pkl: torch.save did not write it")
            })?;
        let big_endian = match read_entry(&mut archive, &format!("{folder}byteorder"), 16)? {
            None => false,
            Some(order) => match order.trim_ascii() {
                b"little" => false,
                b"big" => true,
                _ => return Err(broken("its byteorder is neither little nor big")),
            },
        };
        let pickle = read_entry(&mut archive, &format!("{folder}data.pkl"), PICKLE_LIMIT)?
            .ok_or_else(|| broken("its data.pkl is gone"))?;
        let mut tensors = BTreeMap::new();
        for (name, tensor) in read_state_dict(&pickle)? {
            let reach = tensor.reach().filter(|&reach| reach <= tensor.storage_len);
            let numbers = tensor.shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
            // Strides of 0 would let a few bytes claim any number of numbers.
            if reach.is_none() || numbers.is_none_or(|n| n > tensor.storage_len) {
                return Err(broken(format!("{} reaches beyond its storage", printable(&name))));
            }
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(broken(format!("{} comes twice", printable(&name))));
            }
        }
        Ok(Self { archive, folder, big_endian, tensors, storages: HashMap::new(), storage_bytes: 0 })
    }

    /// Reads the storage of `tensor` unless it is there already.
    fn load(&mut self, tensor: &TensorRef) -> Result<(), WeightsError> {
        let shown = printable(&tensor.storage);
        let expected = (tensor.storage_len as u64)
            .checked_mul(tensor.dtype.bytes() as u64)
            .filter(|&bytes| bytes <= STORAGE_LIMIT)
            .ok_or_else(|| broken(format!("storage {shown} is larger than any ResNet18's")))?;
        if let Some(storage) = self.storages.get(&tensor.storage) {
            return if storage.len() as u64 == expected {
                Ok(())
            } else {
                Err(broken(format!("storage {shown} is described in two ways")))
            };
        }
        if self.storage_bytes + expected > STORAGE_LIMIT {
            return Err(broken("its storages are larger than any ResNet18's"));
        }
        let name = format!("{}data/{}", self.folder, tensor.storage);
        let mut bytes = read_entry(&mut self.archive, &name, expected)?
            .ok_or_else(|| broken(format!("storage {shown} is missing from its archive")))?;
        if bytes.len() as u64 != expected {
            return Err(broken(format!("storage {shown} has {} bytes, expected {expected}", bytes.len())));
        }
        if self.big_endian {
            bytes.chunks_exact_mut(tensor.dtype.bytes()).for_each(<[u8]>::reverse);
        }
        self.storage_bytes += expected;
        self.storages.insert(tensor.storage.clone(), bytes);
        Ok(())
    }
}

impl Tensors for File<'_> {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|tensor| tensor.shape.as_slice())
    }

    fn values(&mut self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let tensor = self.tensors.get(name).ok_or_else(|| WeightsError::Missing { names: printable(name) })?.clone();
        if matches!(tensor.dtype, super::tensors::DType::Other(_)) {
            let reason = format!("{} is not of a floating-point type", printable(name));
            return Err(WeightsError::unsupported(FORMAT, reason));
        }
        self.load(&tensor)?;
        let size = tensor.dtype.bytes();
        let storage = self.storages.get(&tensor.storage).map_or(&[][..], Vec::as_slice);
        // Gather in row-major order, whatever the strides; parse() has checked the furthest index against storage_len.
        let count: usize = tensor.shape.iter().product();
        let mut gathered = Vec::with_capacity(count * size);
        let mut index = vec![0usize; tensor.shape.len()];
        for _ in 0..count {
            let at = tensor.offset + index.iter().zip(&tensor.strides).map(|(i, stride)| i * stride).sum::<usize>();
            let number = storage
                .get(at * size..(at + 1) * size)
                .ok_or_else(|| broken(format!("{} reaches beyond its storage", printable(name))))?;
            gathered.extend_from_slice(number);
            for (i, &dim) in index.iter_mut().zip(&tensor.shape).rev() {
                *i += 1;
                if *i < dim {
                    break;
                }
                *i = 0;
            }
        }
        tensor.dtype.decode(&gathered).ok_or_else(|| broken(format!("{} has no numbers", printable(name))))
    }
}

/// The contents of an entry, or `None` if there is none of that name; more than `limit` bytes are refused before they
/// are unpacked.
fn read_entry(
    archive: &mut ZipArchive<Cursor<&[u8]>>,
    name: &str,
    limit: u64,
) -> Result<Option<Vec<u8>>, WeightsError> {
    let Some(index) = archive.index_for_name(name) else { return Ok(None) };
    let shown = printable(name);
    let entry = archive.by_index(index).map_err(|error| broken(format!("{shown} in its archive: {error}")))?;
    if entry.size() > limit {
        return Err(broken(format!("{shown} in its archive claims {} bytes, expected at most {limit}", entry.size())));
    }
    // The claim is not believed: room grows with what is really unpacked, and never beyond the limit.
    let mut bytes = Vec::new();
    entry
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| broken(format!("{shown} in its archive cannot be unpacked: {error}")))?;
    if bytes.len() as u64 > limit {
        return Err(broken(format!("{shown} in its archive unpacks to more than {limit} bytes")));
    }
    Ok(Some(bytes))
}
