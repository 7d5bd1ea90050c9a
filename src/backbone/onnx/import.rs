//! A ResNet18 out of an ONNX graph, found by its topology, since exporters rename the weights.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path};

use half::f16;
use prost::Message;

use super::measure::{Excess, NUMBERS, PARTS, measure};
use super::proto::*;
use crate::backbone::weights::fold::{Norm, Trained, check_variance, fold};
use crate::backbone::weights::tensors::printable;
use crate::backbone::weights::{ConvShape, ResNet18, WeightsError, architecture, check_finite};

const FORMAT: &str = "ONNX";

fn broken(reason: impl Into<String>) -> WeightsError {
    WeightsError::broken(FORMAT, reason)
}

fn not_resnet18(reason: impl Into<String>) -> WeightsError {
    WeightsError::unsupported(FORMAT, format!("its graph is not a ResNet18's: {}", reason.into()))
}

/// Reads `Conv` (with a bias, or with `BatchNormalization` after it), `Relu`, `MaxPool` and `Add` as a ResNet18 has
/// them, from the graph's image input to the end of stage 4; a head after that is left out. Weights that the exporter put
/// into a file beside it are read from `folder`.
///
/// # Errors
/// The file is damaged, its weights are in another file that is not beside it, or its graph is another network's.
pub(crate) fn import_onnx(bytes: &[u8], folder: Option<&Path>) -> Result<ResNet18, WeightsError> {
    measure(bytes).map_err(|excess| match excess {
        Excess::Parts => not_resnet18(format!("it has more than {PARTS} parts")),
        Excess::Numbers => not_resnet18(format!("it has more than {NUMBERS} weights")),
        Excess::Broken => broken("it is not protobuf: truncated?"),
    })?;
    let model = ModelProto::decode(bytes).map_err(|error| broken(format!("it is not protobuf: {error}")))?;
    let graph = model.graph.ok_or_else(|| broken("it has no graph"))?;
    Walk::new(&graph, folder)?.network()
}

struct Walk<'a> {
    folder: Option<&'a Path>,
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
    fn new(graph: &'a GraphProto, folder: Option<&'a Path>) -> Result<Self, WeightsError> {
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
            (Some(input), None) => Ok(Self { folder, input, tensors, users }),
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
        let weight = values(weight, &name, &weight_shape, self.folder)?;
        let channel = |node: &NodeProto, index: usize, what: &str| -> Result<Vec<f32>, WeightsError> {
            let given = node.input.get(index).map_or("", String::as_str);
            let name = format!("{what} of {} ({})", shape.name, printable(given));
            let tensor = self.tensors.get(given).ok_or_else(|| broken(format!("the {name} is not in the file")))?;
            values(tensor, &name, &[shape.outputs], self.folder)
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
fn values(tensor: &TensorProto, name: &str, shape: &[usize], folder: Option<&Path>) -> Result<Vec<f32>, WeightsError> {
    let got: Vec<usize> = tensor.dims.iter().take(8).map(|&d| usize::try_from(d).unwrap_or(usize::MAX)).collect();
    if got != shape {
        return Err(WeightsError::Shape { name: name.to_owned(), expected: shape.to_vec(), got });
    }
    let expected: usize = shape.iter().product();
    let outside = match tensor.data_location {
        Some(EXTERNAL) => Some(external(tensor, name, expected, folder)?),
        _ => None,
    };
    let raw = outside.as_deref().or(tensor.raw_data.as_deref()).filter(|raw| !raw.is_empty());
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
    if values.len() != expected {
        return Err(broken(format!("{name} has {} numbers, expected {expected}: truncated?", values.len())));
    }
    check_finite(name, &values)?;
    Ok(values)
}

/// The bytes of an initialiser of `count` numbers that lies in a file beside the model.
fn external(tensor: &TensorProto, name: &str, count: usize, folder: Option<&Path>) -> Result<Vec<u8>, WeightsError> {
    let entry = |key: &str| {
        let found = tensor.external_data.iter().find(|entry| entry.key.as_deref() == Some(key));
        found.and_then(|entry| entry.value.as_deref())
    };
    let location = entry("location").unwrap_or("");
    // Only a plain name: a model must not make us read files elsewhere.
    let mut parts = Path::new(location).components();
    let (Some(Component::Normal(file)), None) = (parts.next(), parts.next()) else {
        return Err(broken(format!("{name} lies in {}, which is not a file beside it", printable(location))));
    };
    let Some(folder) = folder else {
        return Err(WeightsError::unsupported(
            FORMAT,
            "its weights lie in another file: export it whole (torch.onnx.export(…, external_data=False))",
        ));
    };
    let bytes = count as u64 * if tensor.data_type == Some(FLOAT16) { 2 } else { 4 };
    let offset = match entry("offset") {
        None => Some(0),
        Some(text) => text.parse::<u64>().ok(),
    };
    let offset = offset.ok_or_else(|| broken(format!("{name} has no readable offset")))?;
    if entry("length").is_some_and(|text| text.parse() != Ok(bytes)) {
        return Err(broken(format!("{name} has another length than the {bytes} bytes that its shape needs")));
    }
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(folder.join(file))?;
        file.seek(SeekFrom::Start(offset))?;
        let mut contents = Vec::new();
        file.take(bytes).read_to_end(&mut contents)?;
        Ok(contents)
    };
    let contents = read().map_err(|error| {
        broken(format!("{name} lies in {} beside it, which cannot be read: {error}", printable(location)))
    })?;
    if contents.len() as u64 != bytes {
        return Err(broken(format!("{} ends before {name} does: truncated?", printable(location))));
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::onnx::export_onnx;
    use crate::backbone::weights::Precision;

    fn embedded() -> (ResNet18, ModelProto) {
        let network = ResNet18::embedded().unwrap();
        let model = ModelProto::decode(&*export_onnx(&network, 64, Precision::F32).unwrap()).unwrap();
        (network, model)
    }

    fn import(model: &ModelProto, folder: Option<&Path>) -> Result<ResNet18, WeightsError> {
        import_onnx(&model.encode_to_vec(), folder)
    }

    fn nodes(model: &mut ModelProto) -> &mut Vec<NodeProto> {
        &mut model.graph.as_mut().unwrap().node
    }

    fn tensor(name: &str, values: &[f32]) -> TensorProto {
        TensorProto {
            dims: vec![values.len() as i64],
            data_type: Some(FLOAT),
            float_data: values.to_vec(),
            name: Some(name.into()),
            ..TensorProto::default()
        }
    }

    /// Largest difference of weights and biases, relative to each convolution's largest.
    fn difference(a: &ResNet18, b: &ResNet18) -> f32 {
        let largest = |values: &[f32]| values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let each = a.convs().iter().zip(b.convs()).flat_map(|(a, b)| [(&a.weight, &b.weight), (&a.bias, &b.bias)]);
        each.map(|(a, b)| {
            let apart: Vec<f32> = a.iter().zip(b).map(|(a, b)| a - b).collect();
            largest(&apart) / largest(a)
        })
        .fold(0.0, f32::max)
    }

    #[test]
    fn batch_norm_nodes_are_folded_and_float_data_and_opaque_names_are_read() {
        let (network, mut model) = embedded();
        let mut initializers = Vec::new();
        let mut renamed = Vec::new();
        for (index, mut node) in nodes(&mut model).drain(..).enumerate() {
            if op(&node) == "Conv" {
                let conv = network.convs().iter().find(|conv| Some(&conv.name) == node.name.as_ref()).unwrap();
                let names = ["w", "scale", "shift", "mean", "variance"].map(|part| format!("onnx::{part}_{index}"));
                let count = conv.outputs;
                let dims = [conv.outputs, conv.inputs, conv.kernel, conv.kernel].map(|d| d as i64).to_vec();
                // (2w·x − 3)/√4·1 + (b + 1.5) = w·x + b
                let doubled: Vec<f32> = conv.weight.iter().map(|w| 2.0 * w).collect();
                initializers.push(TensorProto { dims, ..tensor(&names[0], &doubled) });
                let shift: Vec<f32> = conv.bias.iter().map(|b| b + 1.5).collect();
                for (name, values) in
                    names[1..].iter().zip([vec![1.0; count], shift, vec![3.0; count], vec![4.0; count]])
                {
                    initializers.push(tensor(name, &values));
                }
                let leaves = std::mem::replace(&mut node.output[0], format!("before_{index}"));
                node.input = vec![node.input[0].clone(), names[0].clone()];
                let mut norm = NodeProto { op_type: Some("BatchNormalization".into()), ..NodeProto::default() };
                norm.input.push(node.output[0].clone());
                norm.input.extend(names[1..].iter().cloned());
                norm.output.push(leaves);
                norm.attribute.push(AttributeProto {
                    name: Some("epsilon".into()),
                    f: Some(0.0),
                    ..AttributeProto::default()
                });
                renamed.extend([node, norm]);
            } else {
                renamed.push(node);
            }
        }
        let graph = model.graph.as_mut().unwrap();
        (graph.node, graph.initializer) = (renamed, initializers);
        let read = import(&model, None).unwrap();
        assert!(difference(&network, &read) < 1e-6, "{}", difference(&network, &read));
    }

    #[test]
    fn halves_are_read_raw_and_from_int32_data() {
        let (network, _) = embedded();
        let halves = export_onnx(&network, 64, Precision::F16).unwrap();
        let read = import_onnx(&halves, None).unwrap();
        assert!(difference(&network, &read) < 1e-3);
        let mut model = ModelProto::decode(&*halves).unwrap();
        for tensor in &mut model.graph.as_mut().unwrap().initializer {
            let raw = tensor.raw_data.take().unwrap();
            tensor.int32_data = raw.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b).into()).collect();
        }
        assert_eq!(import(&model, None).unwrap(), read);
    }

    #[test]
    fn weights_in_a_file_beside_the_model_are_read_and_nowhere_else() {
        let (network, mut model) = embedded();
        let folder = tempfile::tempdir().unwrap();
        let mut data = Vec::new();
        for tensor in &mut model.graph.as_mut().unwrap().initializer {
            let raw = tensor.raw_data.take().unwrap();
            let pair = |key: &str, value: String| StringStringEntryProto { key: Some(key.into()), value: Some(value) };
            tensor.external_data = vec![
                pair("location", "m.onnx.data".into()),
                pair("offset", data.len().to_string()),
                pair("length", raw.len().to_string()),
            ];
            tensor.data_location = Some(EXTERNAL);
            data.extend(raw);
        }
        let path = folder.path().join("m.onnx.data");
        std::fs::write(&path, &data).unwrap();
        assert_eq!(import(&model, Some(folder.path())).unwrap(), network);
        std::fs::write(&path, &data[..data.len() - 1]).unwrap();
        assert!(import(&model, Some(folder.path())).unwrap_err().to_string().contains("truncated"));
        std::fs::remove_file(&path).unwrap();
        assert!(import(&model, Some(folder.path())).unwrap_err().to_string().contains("cannot be read"));
        assert!(import(&model, None).unwrap_err().to_string().contains("external_data=False"));
        for elsewhere in ["../m.onnx.data", "/etc/passwd", "a/b", ""] {
            model.graph.as_mut().unwrap().initializer[0].external_data[0].value = Some(elsewhere.into());
            assert!(import(&model, Some(folder.path())).unwrap_err().to_string().contains("not a file beside it"));
        }
    }

    #[test]
    fn another_topology_is_refused() {
        let (_, whole) = embedded();
        type Change = fn(&mut ModelProto);
        let changes: [(&str, Change); 7] = [
            ("strides of layer2.0.conv1", |m| {
                let node = nodes(m).iter_mut().find(|n| n.name.as_deref() == Some("layer2.0.conv1")).unwrap();
                node.attribute.iter_mut().find(|a| a.name.as_deref() == Some("strides")).unwrap().ints = vec![1, 1];
            }),
            ("no Add follows layer1.0.conv2", |m| nodes(m).retain(|n| n.name.as_deref() != Some("layer1.0.add"))),
            ("shortcut", |m| {
                let node = nodes(m).iter_mut().find(|n| n.name.as_deref() == Some("layer1.1.add")).unwrap();
                node.input[1] = "maxpool".into();
            }),
            ("no MaxPool follows conv1", |m| nodes(m).retain(|n| op(n) != "MaxPool")),
            ("exactly one input", |m| m.graph.as_mut().unwrap().input.clear()),
            ("no graph", |m| m.graph = None),
            ("there is no 1×1 layer4.0.downsample", |m| {
                nodes(m).retain(|n| n.name.as_deref() != Some("layer4.0.downsample"));
            }),
        ];
        for (says, change) in changes {
            let mut model = whole.clone();
            change(&mut model);
            let text = import(&model, None).unwrap_err().to_string();
            assert!(text.contains(says), "{text:?} does not say {says:?}");
        }
    }
}
