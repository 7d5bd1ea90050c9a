//! The part of Python's pickle that a PyTorch state dict needs, and nothing that runs code.
//!
//! A pickle is a program for a small stack machine that may call any Python function. This reader knows the opcodes
//! that `torch.save` writes for tensors in dictionaries, and treats the few callables it allows as data: nothing is
//! ever called. Objects live in one arena and refer to one another by number, so that deep or cyclic structures cost
//! no recursion.

use std::collections::HashMap;

use super::WeightsError;
use super::tensors::{DType, printable};

const FORMAT: &str = ".pth";
/// The largest pickle that is read; a ResNet18's has 12 kB.
pub(super) const PICKLE_LIMIT: u64 = 4 << 20;
/// No tensor has more dimensions.
const MAX_DIMENSIONS: usize = 8;
/// Objects of a pickle; a ResNet18's has 4,000. Each takes up to 400 bytes, though an opcode of one byte may make it.
const MAX_OBJECTS: usize = 1 << 18;
/// Tensors of a state dict; a ResNet18's has 122.
const MAX_TENSORS: usize = 10_000;
/// Bytes of a storage's key, which is a small number. Every object that refers to it holds a copy.
const MAX_KEY: usize = 64;
/// Bytes of a tensor's name; the longest of a ResNet18 has 39.
const MAX_NAME: usize = 256;

/// The number of an object in the arena.
type Id = u32;

/// A tensor as the pickle describes it; its numbers lie in a storage of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TensorRef {
    pub(super) dtype: DType,
    /// The storage's name in the archive, `data/<key>`.
    pub(super) storage: String,
    /// Numbers in the storage.
    pub(super) storage_len: usize,
    /// Where the tensor begins in the storage, in numbers.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

impl TensorRef {
    /// The furthest number that the tensor reaches, plus one; `None` if that overflows.
    pub(super) fn reach(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(self.offset);
        }
        self.shape.iter().zip(&self.strides).try_fold(self.offset.checked_add(1)?, |end, (&dim, &stride)| {
            end.checked_add((dim - 1).checked_mul(stride)?)
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Callable {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
}

#[derive(Clone, Debug)]
enum Object {
    None,
    Bool,
    Int(i64),
    Float,
    Text(String),
    Tuple(Vec<Id>),
    List,
    Dict(Vec<(Id, Id)>),
    Callable(Callable),
    StorageType(DType),
    Storage { dtype: DType, key: String, len: usize },
    Tensor(TensorRef),
}

impl Object {
    fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool => "a bool",
            Self::Int(_) => "an int",
            Self::Float => "a float",
            Self::Text(_) => "a string",
            Self::Tuple(_) => "a tuple",
            Self::List => "a list",
            Self::Dict(_) => "a dict",
            Self::Callable(_) => "a function",
            Self::StorageType(_) => "a storage type",
            Self::Storage { .. } => "a storage",
            Self::Tensor(_) => "a tensor",
        }
    }
}

fn broken(reason: impl Into<String>) -> WeightsError {
    WeightsError::broken(FORMAT, reason)
}

/// Reads a pickle that holds a state dict, or a checkpoint with one under `state_dict` or `model`: tensors by name.
/// Names lose a `module.` in front, which training on several GPUs adds.
///
/// # Errors
/// The pickle is damaged, asks for anything but tensors in dictionaries, or holds no state dict.
pub(super) fn read_state_dict(pickle: &[u8]) -> Result<Vec<(String, TensorRef)>, WeightsError> {
    let mut machine = Machine { input: pickle, ..Machine::default() };
    let root = machine.run()?;
    let mut items = machine.dict(root)?;
    for key in ["state_dict", "model"] {
        if let Some(&(_, value)) = items.iter().find(|&&(name, _)| machine.text(name) == Some(key)) {
            items = machine.dict(value)?;
            break;
        }
    }
    let mut tensors = Vec::new();
    for &(name, value) in items {
        if let (Some(name), Object::Tensor(tensor)) = (machine.text(name), &machine.arena[value as usize]) {
            if name.len() > MAX_NAME || tensors.len() == MAX_TENSORS {
                return Err(broken("its state dict has more, or longer, names than any network's"));
            }
            let name = name.strip_prefix("module.").unwrap_or(name);
            tensors.push((name.to_owned(), tensor.clone()));
        }
    }
    if tensors.is_empty() {
        return Err(WeightsError::unsupported(
            FORMAT,
            "it holds no state dict: save one with torch.save(model.state_dict(), …)",
        ));
    }
    Ok(tensors)
}

#[derive(Default)]
struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    arena: Vec<Object>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// Runs the program. An opcode leaves at most one object; these are counted, since an object can take far more
    /// memory than the opcode that makes it, and hold copies of nothing but short keys. Texts and lists take as much as
    /// the input that they come from.
    fn run(&mut self) -> Result<Id, WeightsError> {
        loop {
            if self.arena.len() >= MAX_OBJECTS {
                return Err(broken(format!("its pickle makes more than {MAX_OBJECTS} objects")));
            }
            let at = self.at;
            let opcode = self.bytes(1)?[0];
            match opcode {
                b'.' => return self.pop(),
                // PROTO: 4 and 5 add framing that torch.save never asks for by itself.
                0x80 => match self.bytes(1)?[0] {
                    version @ 0..=2 => _ = version,
                    version => {
                        let reason = format!(
                            "it is a pickle of protocol {version}: save with torch.save's default (pickle_protocol=2)"
                        );
                        return Err(WeightsError::unsupported(FORMAT, reason));
                    }
                },
                b'(' => self.marks.push(self.stack.len()),
                b'0' => _ = self.pop()?,
                b'N' => self.push(Object::None),
                0x88 | 0x89 => self.push(Object::Bool),
                b'K' => {
                    let value = self.bytes(1)?[0];
                    self.push(Object::Int(value.into()));
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.push(Object::Int(value.into()));
                }
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Object::Int(value.into()));
                }
                0x8a => self.long()?,
                b'G' => {
                    self.array::<8>()?;
                    self.push(Object::Float);
                }
                b'X' => {
                    let length = u32::from_le_bytes(self.array()?) as usize;
                    let text = std::str::from_utf8(self.bytes(length)?)
                        .map_err(|_| broken(format!("the string at byte {at} of its pickle is not UTF-8")))?;
                    self.push(Object::Text(text.to_owned()));
                }
                b')' => self.push(Object::Tuple(Vec::new())),
                0x85..=0x87 => {
                    let begin = self.stack.len().checked_sub((opcode - 0x84).into());
                    let begin =
                        begin.ok_or_else(|| broken(format!("the tuple at byte {at} of its pickle underflows")))?;
                    self.tuple(begin);
                }
                b't' => {
                    let begin = self.mark()?;
                    self.tuple(begin);
                }
                b']' => self.push(Object::List),
                b'a' => {
                    self.pop()?;
                    self.expect_list()?;
                }
                b'e' => {
                    let begin = self.mark()?;
                    self.stack.truncate(begin);
                    self.expect_list()?;
                }
                b'}' => self.push(Object::Dict(Vec::new())),
                b's' => {
                    let begin = self.stack.len().checked_sub(2);
                    let begin =
                        begin.ok_or_else(|| broken(format!("the item at byte {at} of its pickle underflows")))?;
                    self.set_items(begin)?;
                }
                b'u' => {
                    let begin = self.mark()?;
                    self.set_items(begin)?;
                }
                b'q' => {
                    let slot = self.bytes(1)?[0].into();
                    self.put(slot)?;
                }
                b'r' => {
                    let slot = u32::from_le_bytes(self.array()?);
                    self.put(slot)?;
                }
                b'h' => {
                    let slot = self.bytes(1)?[0].into();
                    self.get(slot)?;
                }
                b'j' => {
                    let slot = u32::from_le_bytes(self.array()?);
                    self.get(slot)?;
                }
                b'c' => self.global()?,
                b'Q' => self.persistent()?,
                b'R' => self.reduce()?,
                // BUILD: the state of an OrderedDict is torch's version record, which nobody needs.
                b'b' => {
                    self.pop()?;
                    let object = self.top()?;
                    if !matches!(self.arena[object as usize], Object::Dict(_)) {
                        return Err(self.refused("state set on", object));
                    }
                }
                other => {
                    let reason = format!(
                        "opcode 0x{other:02x} at byte {at} of its pickle is not one that a state dict needs; for safety \
                         it is refused: save with torch.save(model.state_dict(), …)"
                    );
                    return Err(WeightsError::unsupported(FORMAT, reason));
                }
            }
        }
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], WeightsError> {
        let bytes = self.input.get(self.at..).and_then(|rest| rest.get(..count));
        let bytes = bytes.ok_or_else(|| broken(format!("its pickle ends at byte {}: truncated?", self.input.len())))?;
        self.at += count;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WeightsError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    fn line(&mut self) -> Result<&'a str, WeightsError> {
        let rest = &self.input[self.at..];
        let length = rest.iter().position(|&b| b == b'\n').ok_or_else(|| broken("a name in its pickle has no end"))?;
        self.at += length + 1;
        std::str::from_utf8(&rest[..length]).map_err(|_| broken("a name in its pickle is not UTF-8"))
    }

    fn push(&mut self, object: Object) {
        self.stack.push(self.arena.len() as Id);
        self.arena.push(object);
    }

    fn pop(&mut self) -> Result<Id, WeightsError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(broken(format!("its pickle takes from an empty stack before byte {}", self.at)));
        }
        self.stack.pop().ok_or_else(|| broken("its pickle takes from an empty stack"))
    }

    fn top(&self) -> Result<Id, WeightsError> {
        self.stack.last().copied().ok_or_else(|| broken("its pickle looks at an empty stack"))
    }

    fn mark(&mut self) -> Result<usize, WeightsError> {
        self.marks.pop().ok_or_else(|| broken(format!("its pickle closes a group that none opened (byte {})", self.at)))
    }

    fn tuple(&mut self, begin: usize) {
        let items = self.stack.split_off(begin.min(self.stack.len()));
        self.push(Object::Tuple(items));
    }

    fn long(&mut self) -> Result<(), WeightsError> {
        let length = usize::from(self.bytes(1)?[0]);
        let bytes = self.bytes(length)?;
        if length > 8 {
            return Err(broken("an integer in its pickle has more than 64 bits"));
        }
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut value = [if negative { 0xff } else { 0 }; 8];
        value[..length].copy_from_slice(bytes);
        self.push(Object::Int(i64::from_le_bytes(value)));
        Ok(())
    }

    fn expect_list(&self) -> Result<(), WeightsError> {
        let object = self.top()?;
        if matches!(self.arena[object as usize], Object::List) {
            Ok(())
        } else {
            Err(self.refused("items appended to", object))
        }
    }

    fn set_items(&mut self, begin: usize) -> Result<(), WeightsError> {
        let items = self.stack.split_off(begin.min(self.stack.len()));
        let object = self.top()?;
        if !items.len().is_multiple_of(2) {
            return Err(broken("a dict in its pickle has a key without a value"));
        }
        match &mut self.arena[object as usize] {
            Object::Dict(dict) => {
                dict.extend(items.as_chunks::<2>().0.iter().map(|[key, value]| (*key, *value)));
                Ok(())
            }
            _ => Err(self.refused("items set on", object)),
        }
    }

    fn put(&mut self, slot: u32) -> Result<(), WeightsError> {
        let top = self.top()?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn get(&mut self, slot: u32) -> Result<(), WeightsError> {
        let id =
            self.memo.get(&slot).ok_or_else(|| broken(format!("its pickle recalls object {slot}, never stored")))?;
        self.stack.push(*id);
        Ok(())
    }

    fn global(&mut self) -> Result<(), WeightsError> {
        let (module, name) = (self.line()?, self.line()?);
        let object = match (module, name) {
            ("collections", "OrderedDict") => Object::Callable(Callable::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Object::Callable(Callable::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Object::Callable(Callable::RebuildParameter),
            ("torch", "DoubleStorage") => Object::StorageType(DType::F64),
            ("torch", "FloatStorage") => Object::StorageType(DType::F32),
            ("torch", "HalfStorage") => Object::StorageType(DType::F16),
            ("torch", "BFloat16Storage") => Object::StorageType(DType::Bf16),
            ("torch", "LongStorage") => Object::StorageType(DType::Other(64)),
            ("torch", "IntStorage") => Object::StorageType(DType::Other(32)),
            ("torch", "ShortStorage") => Object::StorageType(DType::Other(16)),
            ("torch", "ByteStorage" | "CharStorage" | "BoolStorage") => Object::StorageType(DType::Other(8)),
            _ => {
                let reason = format!(
                    "it wants to run {}.{}, which a state dict does not need; for safety it is refused: save with \
                     torch.save(model.state_dict(), …)",
                    printable(module),
                    printable(name)
                );
                return Err(WeightsError::unsupported(FORMAT, reason));
            }
        };
        self.push(object);
        Ok(())
    }

    /// `('storage', type, key, device, length)` → a storage.
    fn persistent(&mut self) -> Result<(), WeightsError> {
        let id = self.pop()?;
        let storage = match &self.arena[id as usize] {
            Object::Tuple(items) if items.len() >= 5 && self.text(items[0]) == Some("storage") => {
                match (&self.arena[items[1] as usize], self.text(items[2]), self.size(items[4])) {
                    (Object::StorageType(dtype), Some(key), Some(len)) if key.len() <= MAX_KEY => {
                        Some(Object::Storage { dtype: *dtype, key: key.to_owned(), len })
                    }
                    _ => None,
                }
            }
            _ => None,
        };
        let storage = storage.ok_or_else(|| broken("a storage in its pickle is not described as torch.save does"))?;
        self.push(storage);
        Ok(())
    }

    fn reduce(&mut self) -> Result<(), WeightsError> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let Object::Callable(which) = self.arena[callable as usize] else {
            return Err(self.refused("a call of", callable));
        };
        let Object::Tuple(items) = &self.arena[arguments as usize] else {
            return Err(self.refused("a call with", arguments));
        };
        let object = match which {
            Callable::OrderedDict if items.is_empty() => Some(Object::Dict(Vec::new())),
            Callable::OrderedDict => None,
            Callable::RebuildTensor => self.tensor(items).map(Object::Tensor),
            Callable::RebuildParameter => match items.first().map(|&id| &self.arena[id as usize]) {
                Some(Object::Tensor(tensor)) => Some(Object::Tensor(tensor.clone())),
                _ => None,
            },
        };
        let object = object
            .ok_or_else(|| broken(format!("a call before byte {} of its pickle has wrong arguments", self.at)))?;
        self.push(object);
        Ok(())
    }

    /// `(storage, offset, shape, strides, …)` → a tensor.
    fn tensor(&self, items: &[Id]) -> Option<TensorRef> {
        let [storage, offset, shape, strides, ..] = items else { return None };
        let Object::Storage { dtype, key, len } = &self.arena[*storage as usize] else { return None };
        let (shape, strides) = (self.sizes(*shape)?, self.sizes(*strides)?);
        (shape.len() == strides.len()).then(|| TensorRef {
            dtype: *dtype,
            storage: key.clone(),
            storage_len: *len,
            offset: self.size(*offset).unwrap_or(usize::MAX),
            shape,
            strides,
        })
    }

    fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        match &self.arena[id as usize] {
            Object::Tuple(items) if items.len() <= MAX_DIMENSIONS => items.iter().map(|&id| self.size(id)).collect(),
            _ => None,
        }
    }

    fn size(&self, id: Id) -> Option<usize> {
        match self.arena[id as usize] {
            Object::Int(value) => usize::try_from(value).ok(),
            _ => None,
        }
    }

    fn text(&self, id: Id) -> Option<&str> {
        match &self.arena[id as usize] {
            Object::Text(text) => Some(text),
            _ => None,
        }
    }

    fn dict(&self, id: Id) -> Result<&[(Id, Id)], WeightsError> {
        match &self.arena[id as usize] {
            Object::Dict(items) => Ok(items),
            other => {
                let reason = format!(
                    "it holds {} where a state dict belongs: save with torch.save(model.state_dict(), …)",
                    other.kind()
                );
                Err(WeightsError::unsupported(FORMAT, reason))
            }
        }
    }

    fn refused(&self, what: &str, object: Id) -> WeightsError {
        let kind = self.arena[object as usize].kind();
        broken(format!("{what} {kind} before byte {} of its pickle", self.at))
    }
}
