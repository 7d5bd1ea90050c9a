//! How much memory a protobuf would take, before any is given to it: an empty message has two bytes in the file and over
//! a hundred in memory.

/// Fields of all messages together; a ResNet18's file has 4,000 with its head and batch norms.
pub(super) const PARTS: usize = 200_000;
/// Numbers of all weights together that are written one by one; a ResNet18 has 11.7 million with its head.
pub(super) const NUMBERS: usize = 1 << 24;

/// Why a file is not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Excess {
    /// More than [`PARTS`].
    Parts,
    /// More than [`NUMBERS`].
    Numbers,
    /// It isn't protobuf, or it ends early.
    Broken,
}

/// The messages of [`proto`](super::proto) that hold others, or numbers.
#[derive(Clone, Copy, Debug)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    ValueInfo,
    Type,
    TensorType,
    Shape,
    /// Nothing in it but single values.
    Leaf,
}

/// What a field with a length holds.
enum Content {
    Message(Message),
    /// Small integers, packed: eight bytes each in memory.
    Integers,
    /// A weight's numbers, packed: four bytes each in memory.
    Numbers {
        varint: bool,
    },
    /// A string, bytes, or a field that the decoder skips: as long in memory as in the file, or nothing.
    Bytes,
}

impl Message {
    fn content(self, tag: u64) -> Content {
        let inner = match (self, tag) {
            (Self::Model, 7) => Self::Graph,
            (Self::Graph, 1) => Self::Node,
            (Self::Graph, 5) => Self::Tensor,
            (Self::Graph, 11 | 12) => Self::ValueInfo,
            (Self::Node, 5) => Self::Attribute,
            (Self::ValueInfo, 2) => Self::Type,
            (Self::Type, 1) => Self::TensorType,
            (Self::TensorType, 2) => Self::Shape,
            (Self::Model, 8 | 14) | (Self::Tensor, 13) | (Self::Shape, 1) => Self::Leaf,
            (Self::Attribute, 8) | (Self::Tensor, 1) => return Content::Integers,
            (Self::Tensor, 4) => return Content::Numbers { varint: false },
            (Self::Tensor, 5) => return Content::Numbers { varint: true },
            _ => return Content::Bytes,
        };
        Content::Message(inner)
    }
}

/// Walks the file as the decoder will, and allocates nothing.
pub(super) fn measure(file: &[u8]) -> Result<(), Excess> {
    let mut counts = Counts { parts: 0, numbers: 0 };
    counts.message(Message::Model, file)
}

struct Counts {
    parts: usize,
    numbers: usize,
}

impl Counts {
    /// Messages lie in one another as deep as [`Message::content`] says, and no deeper.
    fn message(&mut self, message: Message, mut rest: &[u8]) -> Result<(), Excess> {
        while !rest.is_empty() {
            let key = varint(&mut rest)?;
            // A weight's numbers may stand one by one, each with its key.
            let number = matches!((message.content(key >> 3), key & 7), (Content::Numbers { .. }, 0 | 5));
            self.count(usize::from(!number), usize::from(number))?;
            match key & 7 {
                0 => _ = varint(&mut rest)?,
                1 => _ = take(&mut rest, 8)?,
                5 => _ = take(&mut rest, 4)?,
                2 => {
                    let length = usize::try_from(varint(&mut rest)?).map_err(|_| Excess::Broken)?;
                    let field = take(&mut rest, length)?;
                    match message.content(key >> 3) {
                        Content::Message(inner) => self.message(inner, field)?,
                        Content::Integers => self.count(ends(field), 0)?,
                        Content::Numbers { varint: true } => self.count(0, ends(field))?,
                        Content::Numbers { varint: false } => self.count(0, field.len() / 4)?,
                        Content::Bytes => {}
                    }
                }
                // Groups, which ONNX never had.
                _ => return Err(Excess::Broken),
            }
        }
        Ok(())
    }

    fn count(&mut self, parts: usize, numbers: usize) -> Result<(), Excess> {
        self.parts += parts;
        self.numbers += numbers;
        if self.parts > PARTS {
            return Err(Excess::Parts);
        }
        if self.numbers > NUMBERS { Err(Excess::Numbers) } else { Ok(()) }
    }
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Excess> {
    let (field, after) = rest.split_at_checked(length).ok_or(Excess::Broken)?;
    *rest = after;
    Ok(field)
}

/// The numbers of a packed field of varints: a byte without the high bit ends each.
fn ends(field: &[u8]) -> usize {
    field.iter().filter(|byte| **byte < 0x80).count()
}

fn varint(rest: &mut &[u8]) -> Result<u64, Excess> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Excess::Broken)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::super::proto::*;
    use super::*;

    fn graph(graph: GraphProto) -> Vec<u8> {
        ModelProto { graph: Some(graph), ..ModelProto::default() }.encode_to_vec()
    }

    fn tensors(tensors: Vec<TensorProto>) -> Vec<u8> {
        graph(GraphProto { initializer: tensors, ..GraphProto::default() })
    }

    #[test]
    fn what_is_small_in_the_file_and_large_in_memory_is_counted_wherever_it_lies() {
        let some = PARTS + 1;
        let node = NodeProto { input: vec![String::new(); some], ..NodeProto::default() };
        let attribute = AttributeProto { ints: vec![0; some], ..AttributeProto::default() };
        let inner = NodeProto { attribute: vec![attribute], ..NodeProto::default() };
        let shape = TensorShapeProto { dim: vec![DimensionProto::default(); some] };
        let tensor_type = TensorTypeProto { shape: Some(shape), ..TensorTypeProto::default() };
        let input =
            ValueInfoProto { r#type: Some(TypeProto { tensor_type: Some(tensor_type) }), ..ValueInfoProto::default() };
        let files = [
            graph(GraphProto { node: vec![NodeProto::default(); some], ..GraphProto::default() }),
            graph(GraphProto { node: vec![node], ..GraphProto::default() }),
            graph(GraphProto { node: vec![inner], ..GraphProto::default() }),
            graph(GraphProto { output: vec![input], ..GraphProto::default() }),
            tensors(vec![TensorProto { dims: vec![1; some], ..TensorProto::default() }]),
            tensors(vec![TensorProto::default(); some]),
        ];
        assert_eq!(files.map(|file| measure(&file)), [Err(Excess::Parts); 6]);
        // The same integers packed, as the writer here does not: graph, initialiser, dims.
        let packed = [&[0x0a][..], &length(some), &vec![1; some]].concat();
        let tensor = [&[0x2a][..], &length(packed.len()), &packed].concat();
        assert_eq!(measure(&[&[0x3a][..], &length(tensor.len()), &tensor].concat()), Err(Excess::Parts));
    }

    fn length(length: usize) -> Vec<u8> {
        let mut out = Vec::new();
        prost::encode_length_delimiter(length, &mut out).unwrap();
        out
    }

    #[test]
    fn numbers_are_counted_over_all_weights() {
        let half = NUMBERS / 2 + 1;
        let whole = |count| TensorProto { int32_data: vec![1; count], ..TensorProto::default() };
        let float = |count| TensorProto { float_data: vec![1.0; count], ..TensorProto::default() };
        assert_eq!(measure(&tensors(vec![whole(half), float(NUMBERS - half)])), Ok(()));
        assert_eq!(measure(&tensors(vec![whole(half), float(half)])), Err(Excess::Numbers));
    }

    #[test]
    fn what_is_cut_or_no_protobuf_is_broken() {
        let file = tensors(vec![TensorProto { name: Some("x".into()), ..TensorProto::default() }]);
        measure(&file).unwrap();
        for file in [&file[..file.len() - 1], &[0xff; 12], &[0x3b], &[0x3a, 0xff, 0xff, 0xff, 0xff, 0x7f]] {
            assert_eq!(measure(file), Err(Excess::Broken));
        }
    }
}
