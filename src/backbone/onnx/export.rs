//! The folded network as an ONNX model.

use prost::Message;

use super::proto::*;
use crate::backbone::weights::{Conv, Precision, ResNet18, WeightsError};
use crate::backbone::{BackboneError, INPUT_MEAN, INPUT_STD, STAGE_CHANNELS, STAGE_STRIDES, depth, is_side};
use crate::classifier::Folded;
use crate::embedding::Projection;

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
    graph.stages(network.convs())?;
    let outputs = (0..4).map(|s| {
        let side = size / STAGE_STRIDES[s];
        graph.value(&format!("stage{}", s + 1), &[1, STAGE_CHANNELS[s], side, side])
    });
    let (input, output) = (vec![graph.value("image", &[1, 1, size, size])], outputs.collect());
    let properties = [
        ("cellgate.identity", network.identity().to_string()),
        ("cellgate.input", format!("1 channel, (x/white - {INPUT_MEAN})/{INPUT_STD}")),
    ];
    Ok(graph.model("Grey ResNet18, batch norm folded; outputs are the four stages.", input, output, &properties))
}

/// Channels from one pixel to the next in the maps of [`export_features`]: k rounded up to a multiple of 8, so that each pixel
/// starts on 16 bytes.
#[must_use]
pub fn map_stride(k: usize) -> usize {
    k.next_multiple_of(8)
}

/// The network with a model's projection folded in as 1×1 convolutions, as [`export_onnx`] otherwise: what
/// `kernels/distance.cu` reads.
///
/// For each stage s that the projection uses, in order, there is an output `maps`, `[1, side, side, stride]`: channels last,
/// k of them and zeros up to [`map_stride`]. The other stages have none, and what comes after the last used one is left out.
///
/// Where features of `views` views of a cell are to be pooled (0: none), the input is `[views, 1, size, size]`, the maps have as
/// many images, and outputs `stage1_nhwc` to `stage4_nhwc`, `[views, side, side, channels]`, give all four stages: what
/// `kernels/judge.cu` reads.
///
/// # Errors
/// As [`export_onnx`].
pub fn export_features(
    network: &ResNet18,
    projection: &Projection,
    size: usize,
    views: usize,
    precision: Precision,
) -> Result<Vec<u8>, WeightsError> {
    if !is_side(size) {
        return Err(BackboneError::Side(size).into());
    }
    let wanted: [bool; 4] = std::array::from_fn(|stage| projection.uses(stage));
    let depth = if views > 0 { 4 } else { depth(wanted) };
    let images = views.max(1);
    let needed: Vec<Conv> = (network.convs().iter())
        .filter(|conv| !(depth..4).any(|layer| conv.name.starts_with(&format!("layer{}.", layer + 1))))
        .cloned()
        .collect();
    let mut graph = Graph { precision, nodes: Vec::new(), initializers: Vec::new() };
    graph.stages(&needed)?;
    let (k, stride) = (projection.k(), map_stride(projection.k()));
    let mut outputs = Vec::new();
    for stage in (0..4).filter(|&stage| wanted[stage]) {
        let (inputs, side) = (STAGE_CHANNELS[stage], size / STAGE_STRIDES[stage]);
        let rows = projection.stage(stage);
        let weight = (0..stride * inputs)
            .map(|at| (at / inputs, at % inputs))
            .map(|(value, channel)| if value < k { rows[channel * k + value] } else { 0.0 })
            .collect();
        let name = format!("projection{}", stage + 1);
        let conv = Conv { name, inputs, outputs: stride, kernel: 1, stride: 1, weight, bias: vec![0.0; stride] };
        let projected = graph.conv(&conv, &format!("stage{}", stage + 1))?;
        let map =
            graph.node("Transpose", &[&projected], &format!("map{}", stage + 1), vec![ints("perm", &[0, 2, 3, 1])]);
        outputs.push(graph.value(&map, &[images, side, side, stride]));
    }
    for stage in (0..4).filter(|_| views > 0) {
        let (channels, side, name) =
            (STAGE_CHANNELS[stage], size / STAGE_STRIDES[stage], format!("stage{}", stage + 1));
        let last = graph.node("Transpose", &[&name], &format!("{name}_nhwc"), vec![ints("perm", &[0, 2, 3, 1])]);
        outputs.push(graph.value(&last, &[images, side, side, channels]));
    }
    let input = vec![graph.value("image", &[images, 1, size, size])];
    let properties = [("cellgate.identity", network.identity().to_string())];
    Ok(graph.model("Grey ResNet18 with the projection of a model.", input, outputs, &properties))
}

/// A trained classifier as an ONNX model, as [`export_onnx`] otherwise, for `samples` samples at once: input `image` is
/// `[samples, planes, side, side]`, outputs are `logits` and their softmax, `probabilities`, each `[samples, classes]`.
///
/// # Errors
/// A number does not fit FP16.
pub fn export_classifier(net: &Folded, samples: usize, precision: Precision) -> Result<Vec<u8>, WeightsError> {
    let (features, classes) = (STAGE_CHANNELS[3], net.classes);
    let mut graph = Graph { precision, nodes: Vec::new(), initializers: Vec::new() };
    let map = graph.stages(&net.convs)?;
    let mean = graph.node("GlobalAveragePool", &[&map], "mean", Vec::new());
    let mean = graph.node("Flatten", &[&mean], "features", Vec::new());
    // Gemm's right side is features × classes.
    let weight: Vec<f32> =
        (0..features * classes).map(|at| net.fc_weight[at % classes * features + at / classes]).collect();
    graph.tensor("fc.weight", &[features, classes], &weight)?;
    graph.tensor("fc.bias", &[classes], &net.fc_bias)?;
    let logits = graph.node("Gemm", &[&mean, "fc.weight", "fc.bias"], "logits", Vec::new());
    graph.node("Softmax", &[&logits], "probabilities", Vec::new());
    let input = vec![graph.value("image", &[samples, net.inputs, net.side, net.side])];
    let output = ["logits", "probabilities"].map(|name| graph.value(name, &[samples, classes])).to_vec();
    Ok(graph.model("Classifier: ResNet18, batch norm folded.", input, output, &[]))
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

    /// The convolutions up to the last stage, from the input `image`; gives the name of its map. Each stage's map is named
    /// after it.
    fn stages(&mut self, convs: &[Conv]) -> Result<String, WeightsError> {
        let mut convs = convs.iter().peekable();
        let mut x = "image".to_owned();
        let mut block = 0;
        while let Some(conv) = convs.next() {
            if conv.name == "conv1" {
                x = self.conv(conv, &x)?;
                x = self.node("Relu", &[&x], "conv1.relu", Vec::new());
                let window = vec![ints("kernel_shape", &[3, 3]), ints("pads", &[1; 4]), ints("strides", &[2, 2])];
                x = self.node("MaxPool", &[&x], "maxpool", window);
                continue;
            }
            // A block: conv1, conv2, and a downsample where the shape changes.
            let prefix = conv.name.trim_end_matches(".conv1").to_owned();
            let shortcut = x.clone();
            let y = self.conv(conv, &x)?;
            let y = self.node("Relu", &[&y], &format!("{prefix}.relu1"), Vec::new());
            let Some(second) = convs.next() else { break };
            let y = self.conv(second, &y)?;
            let shortcut = match convs.next_if(|conv| conv.name.ends_with(".downsample")) {
                Some(conv) => self.conv(conv, &shortcut)?,
                None => shortcut,
            };
            let sum = self.node("Add", &[&y, &shortcut], &format!("{prefix}.add"), Vec::new());
            block += 1;
            let out = if block % 2 == 0 { format!("stage{}", block / 2) } else { format!("{prefix}.relu2") };
            x = self.node("Relu", &[&sum], &out, Vec::new());
        }
        Ok(x)
    }

    fn value(&self, name: &str, dims: &[usize]) -> ValueInfoProto {
        let dim = dims.iter().map(|&d| DimensionProto { dim_value: Some(d as i64) }).collect();
        let shape = Some(TensorShapeProto { dim });
        let tensor_type = Some(TensorTypeProto { elem_type: Some(self.elem_type()), shape });
        ValueInfoProto { name: Some(name.to_owned()), r#type: Some(TypeProto { tensor_type }) }
    }

    fn model(
        self,
        about: &str,
        input: Vec<ValueInfoProto>,
        output: Vec<ValueInfoProto>,
        properties: &[(&str, String)],
    ) -> Vec<u8> {
        let property = |(key, value): &(&str, String)| StringStringEntryProto {
            key: Some((*key).into()),
            value: Some(value.clone()),
        };
        let model = ModelProto {
            ir_version: Some(8),
            producer_name: Some("cellgate".into()),
            doc_string: Some(about.into()),
            graph: Some(GraphProto {
                node: self.nodes,
                name: Some("resnet18".into()),
                initializer: self.initializers,
                input,
                output,
            }),
            opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(17) }],
            metadata_props: properties.iter().map(property).collect(),
        };
        model.encode_to_vec()
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
