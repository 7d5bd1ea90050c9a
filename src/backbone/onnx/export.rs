//! The folded network as an ONNX model.

use prost::Message;

use super::proto::*;
use crate::backbone::weights::{Conv, Precision, ResNet18, WeightsError};
use crate::backbone::{BackboneError, INPUT_MEAN, INPUT_STD, STAGE_CHANNELS, STAGE_STRIDES, is_side};

/// The network as an ONNX model (IR version 8, opset 17) for images of side `size`.
///
/// Input `image` is `[1, 1, size, size]`, normalised as `(x/white − 0.449)/0.226`; outputs `stage1` to `stage4` are
/// `[1, C, size/stride, size/stride]`: channels first, as ONNX has it, where a
/// [`Pyramid`](crate::backbone::Pyramid) has them last. Batch size and side are fixed.
///
/// With [`Precision::F16`] the model is FP16-typed throughout: weights, biases, input, outputs and all between are
/// FLOAT16, so that a strongly typed TensorRT network runs in FP16 without any flag. The caller feeds and reads halves.
/// The metadata holds the identity of `network` itself, before rounding. The same network gives the same bytes.
///
/// # Errors
/// The side is not a multiple of 32 from 64 to 1024, or a number does not fit FP16.
pub fn export_onnx(network: &ResNet18, size: usize, precision: Precision) -> Result<Vec<u8>, WeightsError> {
    if !is_side(size) {
        return Err(BackboneError::Side(size).into());
    }
    let mut graph = Graph { precision, nodes: Vec::new(), initializers: Vec::new() };
    let mut convs = network.convs().iter().peekable();
    let mut x = "image".to_owned();
    let mut block = 0;
    while let Some(conv) = convs.next() {
        if conv.name == "conv1" {
            x = graph.conv(conv, &x)?;
            x = graph.node("Relu", &[&x], "conv1.relu", Vec::new());
            let window = vec![ints("kernel_shape", &[3, 3]), ints("pads", &[1; 4]), ints("strides", &[2, 2])];
            x = graph.node("MaxPool", &[&x], "maxpool", window);
            continue;
        }
        // A block: conv1, conv2, and a downsample where the shape changes.
        let prefix = conv.name.trim_end_matches(".conv1").to_owned();
        let shortcut = x.clone();
        let y = graph.conv(conv, &x)?;
        let y = graph.node("Relu", &[&y], &format!("{prefix}.relu1"), Vec::new());
        let Some(second) = convs.next() else { break };
        let y = graph.conv(second, &y)?;
        let shortcut = match convs.next_if(|conv| conv.name.ends_with(".downsample")) {
            Some(conv) => graph.conv(conv, &shortcut)?,
            None => shortcut,
        };
        let sum = graph.node("Add", &[&y, &shortcut], &format!("{prefix}.add"), Vec::new());
        block += 1;
        let out = if block % 2 == 0 { format!("stage{}", block / 2) } else { format!("{prefix}.relu2") };
        x = graph.node("Relu", &[&sum], &out, Vec::new());
    }

    let value = |name: &str, dims: [usize; 4]| ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: Some(graph.elem_type()),
                shape: Some(TensorShapeProto {
                    dim: dims.iter().map(|&d| DimensionProto { dim_value: Some(d as i64) }).collect(),
                }),
            }),
        }),
    };
    let outputs = (0..4).map(|s| {
        let side = size / STAGE_STRIDES[s];
        value(&format!("stage{}", s + 1), [1, STAGE_CHANNELS[s], side, side])
    });
    let (input, output) = (vec![value("image", [1, 1, size, size])], outputs.collect());
    let property = |key: &str, value: String| StringStringEntryProto { key: Some(key.into()), value: Some(value) };
    let model = ModelProto {
        ir_version: Some(8),
        producer_name: Some("cellgate".into()),
        doc_string: Some("Grey ResNet18, batch norm folded; outputs are the four stages.".into()),
        graph: Some(GraphProto {
            node: graph.nodes,
            name: Some("resnet18".into()),
            initializer: graph.initializers,
            input,
            output,
        }),
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(17) }],
        metadata_props: vec![
            property("cellgate.identity", network.identity().to_string()),
            property("cellgate.input", format!("1 channel, (x/white - {INPUT_MEAN})/{INPUT_STD}")),
        ],
    };
    Ok(model.encode_to_vec())
}

struct Graph {
    precision: Precision,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
}

impl Graph {
    fn elem_type(&self) -> i32 {
        match self.precision {
            Precision::F16 => FLOAT16,
            Precision::F32 => FLOAT,
        }
    }

    /// Adds a node whose one output has the node's name, and returns that.
    fn node(&mut self, op: &str, inputs: &[&str], name: &str, attribute: Vec<AttributeProto>) -> String {
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&i| i.to_owned()).collect(),
            output: vec![name.to_owned()],
            name: Some(name.to_owned()),
            op_type: Some(op.to_owned()),
            attribute,
            domain: None,
        });
        name.to_owned()
    }

    fn conv(&mut self, conv: &Conv, input: &str) -> Result<String, WeightsError> {
        let (weight, bias) = (format!("{}.weight", conv.name), format!("{}.bias", conv.name));
        self.tensor(&weight, &[conv.outputs, conv.inputs, conv.kernel, conv.kernel], &conv.weight)?;
        self.tensor(&bias, &[conv.outputs], &conv.bias)?;
        let (kernel, pad, stride) = (conv.kernel as i64, (conv.kernel / 2) as i64, conv.stride as i64);
        let attributes = vec![
            ints("dilations", &[1, 1]),
            ints("kernel_shape", &[kernel; 2]),
            ints("pads", &[pad; 4]),
            ints("strides", &[stride; 2]),
        ];
        Ok(self.node("Conv", &[input, &weight, &bias], &conv.name, attributes))
    }

    fn tensor(&mut self, name: &str, dims: &[usize], values: &[f32]) -> Result<(), WeightsError> {
        let raw_data = match self.precision {
            Precision::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Precision::F16 => {
                let mut bytes = Vec::with_capacity(values.len() * 2);
                for &value in values {
                    let half = half::f16::from_f32(value);
                    if !half.is_finite() {
                        return Err(WeightsError::Fp16Range { name: name.to_owned(), value });
                    }
                    bytes.extend(half.to_le_bytes());
                }
                bytes
            }
        };
        self.initializers.push(TensorProto {
            dims: dims.iter().map(|&d| d as i64).collect(),
            data_type: Some(self.elem_type()),
            name: Some(name.to_owned()),
            raw_data: Some(raw_data),
            ..TensorProto::default()
        });
        Ok(())
    }
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        ints: values.to_vec(),
        r#type: Some(ATTRIBUTE_INTS),
        ..AttributeProto::default()
    }
}
