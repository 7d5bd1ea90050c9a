//! A ResNet18 out of an ONNX graph, found by its topology, since exporters rename the weights.

use std::collections::HashMap;

use half::f16;
use prost::Message;

use super::proto::*;
use crate::backbone::weights::fold::{Norm, Trained, check_variance, fold};
use crate::backbone::weights::tensors::printable;
use crate::backbone::weights::{ConvShape, ResNet18, WeightsError, architecture, check_finite};

const FORMAT: &str = "ONNX";
/// Nodes of a graph; a ResNet18's has 51, or 71 with its batch norms.
const NODE_LIMIT: usize = 10_000;

fn broken(reason: impl Into<String>) -> WeightsError {
    WeightsError::broken(FORMAT, reason)
}

fn not_resnet18(reason: impl Into<String>) -> WeightsError {
    WeightsError::unsupported(FORMAT, format!("its graph is not a ResNet18's: {}", reason.into()))
}

/// Reads `Conv` (with a bias, or with `BatchNormalization` after it), `Relu`, `MaxPool` and `Add` as a ResNet18 has
/// them, from the graph's image input to the end of stage 4; a head after that is left out.
///
/// # Errors
/// The file is damaged, keeps its weights in another file, or its graph is another network's.
pub(crate) fn import_onnx(bytes: &[u8]) -> Result<ResNet18, WeightsError> {
    let model = ModelProto::decode(bytes).map_err(|error| broken(format!("it is not protobuf: {error}")))?;
    let graph = model.graph.ok_or_else(|| broken("it has no graph"))?;
    if graph.node.len() > NODE_LIMIT {
        return Err(not_resnet18(format!("it has {} nodes", graph.node.len())));
    }
    Walk::new(&graph)?.network()
}

struct Walk<'a> {
    input: &'a str,
    tensors: HashMap<&'a str, &'a TensorProto>,
    /// Nodes by the values that they take.
    users: HashMap<&'a str, Vec<&'a NodeProto>>,
}

fn op(node: &NodeProto) -> &str {
    node.op_type.as_deref().unwrap_or("")
}

fn output(node: &NodeProto) -> Result<&str, WeightsError> {
    node.output.first().map(String::as_str).ok_or_else(|| broken(format!("a {} has no output", printable(op(node)))))
}

impl<'a> Walk<'a> {
    fn new(graph: &'a GraphProto) -> Result<Self, WeightsError> {
        let mut tensors: HashMap<&str, &TensorProto> =
            graph.initializer.iter().map(|t| (t.name.as_deref().unwrap_or(""), t)).collect();
        // A tensor that several layers share may come through Identity. One pass suffices: nodes are in order.
        for node in graph.node.iter().filter(|node| op(node) == "Identity") {
            if let (Some(from), Some(to)) = (node.input.first(), node.output.first())
                && let Some(&tensor) = tensors.get(from.as_str())
            {
                tensors.insert(to, tensor);
            }
        }
        let mut users: HashMap<&str, Vec<&NodeProto>> = HashMap::new();
        for node in &graph.node {
            for input in &node.input {
                users.entry(input).or_default().push(node);
            }
        }
        // Before IR version 4, initialisers are listed among the inputs.
        let mut inputs =
            graph.input.iter().filter_map(|i| i.name.as_deref()).filter(|name| !tensors.contains_key(name));
        match (inputs.next(), inputs.next()) {
            (Some(input), None) => Ok(Self { input, tensors, users }),
            _ => Err(not_resnet18("it has not exactly one input")),
        }
    }

    fn network(&self) -> Result<ResNet18, WeightsError> {
        let shapes = architecture();
        let mut shapes = shapes.iter().peekable();
        let mut convs = Vec::new();
        let mut x = self.input;
        while let Some(shape) = shapes.next() {
            if shape.name == "conv1" {
                let (conv, y) = self.conv(x, shape)?;
                convs.push(conv);
                let y = self.relu(y, &shape.name)?;
                x = self.max_pool(y)?;
                continue;
            }
            let (conv, y) = self.conv(x, shape)?;
            convs.push(conv);
            let y = self.relu(y, &shape.name)?;
            let Some(shape) = shapes.next() else { break };
            let (conv, y) = self.conv(y, shape)?;
            convs.push(conv);
            let shortcut = match shapes.next_if(|shape| shape.name.ends_with(".downsample")) {
                None => x,
                Some(shape) => {
                    let (conv, shortcut) = self.conv(x, shape)?;
                    convs.push(conv);
                    shortcut
                }
            };
            let sum = self.only(y, "Add", &shape.name)?;
            if !sum.input.iter().any(|input| input == shortcut) || sum.input.len() != 2 {
                return Err(not_resnet18(format!("{} is not added to its block's shortcut", shape.name)));
            }
            x = self.relu(output(sum)?, &shape.name)?;
        }
        ResNet18::from_convs(convs)
    }

    /// The one node of type `wanted` that takes `value`.
    fn only(&self, value: &str, wanted: &str, after: &str) -> Result<&'a NodeProto, WeightsError> {
        let mut found = self.users.get(value).into_iter().flatten().filter(|node| op(node) == wanted);
        match (found.next(), found.next()) {
            (Some(node), None) => Ok(node),
            (None, _) => Err(not_resnet18(format!("no {wanted} follows {after}"))),
            _ => Err(not_resnet18(format!("several {wanted} follow {after}"))),
        }
    }

    fn relu(&self, value: &str, after: &str) -> Result<&'a str, WeightsError> {
        output(self.only(value, "Relu", after)?)
    }

    fn max_pool(&self, value: &str) -> Result<&'a str, WeightsError> {
        let node = self.only(value, "MaxPool", "conv1")?;
        self.window(node, "the maximum pool", 3, 2)?;
        if attribute(node, "ceil_mode").and_then(|a| a.i).unwrap_or(0) != 0 {
            return Err(not_resnet18("the maximum pool rounds up"));
        }
        output(node)
    }

    /// The convolution of `shape` that takes `value`, folded, and the value that leaves it or its batch norm.
    fn conv(&self, value: &str, shape: &ConvShape) -> Result<(crate::backbone::weights::Conv, &'a str), WeightsError> {
        // A block's first convolution and its downsample take the same value; the kernel tells them apart.
        let mut found = self.users.get(value).into_iter().flatten().filter(|node| {
            op(node) == "Conv"
                && node.input.first().is_some_and(|input| input == value)
                && self.weight_of(node).and_then(|w| w.dims.get(2)) == Some(&(shape.kernel as i64))
        });
        let node = match (found.next(), found.next()) {
            (Some(node), None) => *node,
            (None, _) => return Err(not_resnet18(format!("there is no {0}×{0} {1}", shape.kernel, shape.name))),
            _ => return Err(not_resnet18(format!("there are several {}", shape.name))),
        };
        self.window(node, &shape.name, shape.kernel, shape.stride)?;
        if attribute(node, "group").and_then(|a| a.i).unwrap_or(1) != 1 {
            return Err(not_resnet18(format!("{} is grouped", shape.name)));
        }
        let name = format!("{} ({})", shape.name, printable(node.input.get(1).map_or("", String::as_str)));
        let weight = self.weight_of(node).ok_or_else(|| broken(format!("the weight of {name} is not in the file")))?;
        let mut weight_shape = shape.weight_shape();
        if shape.inputs == 1 && weight.dims.get(1) != Some(&1) {
            weight_shape[1] = 3;
        }
        let weight = values(weight, &name, &weight_shape)?;
        let channel = |node: &NodeProto, index: usize, what: &str| -> Result<Vec<f32>, WeightsError> {
            let given = node.input.get(index).map_or("", String::as_str);
            let name = format!("{what} of {} ({})", shape.name, printable(given));
            let tensor = self.tensors.get(given).ok_or_else(|| broken(format!("the {name} is not in the file")))?;
            values(tensor, &name, &[shape.outputs])
        };
        let bias = match node.input.get(2).filter(|name| !name.is_empty()) {
            Some(_) => Some(channel(node, 2, "bias")?),
            None => None,
        };
        let mut leaves = output(node)?;
        let mut norm = None;
        if let Ok(node) = self.only(leaves, "BatchNormalization", &shape.name) {
            if node.input.first().is_none_or(|input| input != leaves) {
                return Err(broken(format!("the batch norm after {} takes it as a parameter", shape.name)));
            }
            let variance = channel(node, 4, "variance")?;
            check_variance(&format!("variance of {}", shape.name), &variance)?;
            let epsilon = attribute(node, "epsilon").and_then(|a| a.f).unwrap_or(1e-5);
            if !(epsilon >= 0.0 && epsilon.is_finite()) {
                return Err(broken(format!("the batch norm after {} has the epsilon {epsilon}", shape.name)));
            }
            // 1e-5 as every exporter writes it, in the precision in which torchvision's files are folded.
            let epsilon = if epsilon == 1e-5 { 1e-5 } else { f64::from(epsilon) };
            let (scale, shift, mean) =
                (channel(node, 1, "scale")?, channel(node, 2, "shift")?, channel(node, 3, "mean")?);
            norm = Some(Norm { scale, shift, mean, variance, epsilon });
            leaves = output(node)?;
        }
        Ok((fold(shape, &Trained { inputs: weight_shape[1], weight, bias, norm }), leaves))
    }

    fn weight_of(&self, node: &NodeProto) -> Option<&'a TensorProto> {
        node.input.get(1).and_then(|name| self.tensors.get(name.as_str()).copied())
    }

    /// Refuses another window, stride, padding or dilation than `kernel`, `stride`, `kernel / 2` and 1.
    fn window(&self, node: &NodeProto, name: &str, kernel: usize, stride: usize) -> Result<(), WeightsError> {
        let expected = [
            ("kernel_shape", vec![kernel as i64; 2], op(node) == "Conv"),
            ("strides", vec![stride as i64; 2], stride == 1),
            ("pads", vec![(kernel / 2) as i64; 4], kernel == 1),
            ("dilations", vec![1; 2], true),
        ];
        for (key, expected, may_miss) in expected {
            let fits = attribute(node, key).map_or(may_miss, |attribute| attribute.ints == expected);
            if !fits {
                return Err(not_resnet18(format!("{key} of {name} is not {expected:?}")));
            }
        }
        match attribute(node, "auto_pad").and_then(|a| a.s.as_deref()) {
            None | Some(b"NOTSET" | b"") => Ok(()),
            Some(_) => Err(not_resnet18(format!("{name} is padded automatically"))),
        }
    }
}

fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name.as_deref() == Some(name))
}

/// The numbers of an initialiser, which must have `shape` and be finite.
fn values(tensor: &TensorProto, name: &str, shape: &[usize]) -> Result<Vec<f32>, WeightsError> {
    let got: Vec<usize> = tensor.dims.iter().map(|&d| usize::try_from(d).unwrap_or(usize::MAX)).collect();
    if got != shape {
        return Err(WeightsError::Shape { name: name.to_owned(), expected: shape.to_vec(), got });
    }
    if tensor.data_location == Some(EXTERNAL) || !tensor.external_data.is_empty() {
        return Err(WeightsError::unsupported(
            FORMAT,
            "its weights lie in another file: export it whole (torch.onnx.export(…, external_data=False))",
        ));
    }
    let raw = tensor.raw_data.as_deref().filter(|raw| !raw.is_empty());
    let values: Vec<f32> = match (tensor.data_type, raw) {
        (Some(FLOAT), Some(raw)) if raw.len() % 4 == 0 => {
            raw.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        }
        (Some(FLOAT), None) => tensor.float_data.clone(),
        (Some(FLOAT16), Some(raw)) if raw.len() % 2 == 0 => {
            raw.as_chunks::<2>().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect()
        }
        (Some(FLOAT16), None) => tensor.int32_data.iter().map(|&bits| f16::from_bits(bits as u16).to_f32()).collect(),
        (Some(FLOAT | FLOAT16), Some(raw)) => {
            return Err(broken(format!("{name} has {} bytes, no whole number of values", raw.len())));
        }
        (other, _) => {
            let reason = format!("{name} is of type {}, neither FP32 nor FP16", other.unwrap_or(0));
            return Err(WeightsError::unsupported(FORMAT, reason));
        }
    };
    let expected: usize = shape.iter().product();
    if values.len() != expected {
        return Err(broken(format!("{name} has {} numbers, expected {expected}: truncated?", values.len())));
    }
    check_finite(name, &values)?;
    Ok(values)
}
