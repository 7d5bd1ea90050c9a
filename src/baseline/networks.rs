//! The networks of the compared systems, with the channels and the depth of torchvision's.

use super::graph::{From, Graph, Op};

fn conv(outputs: usize, kernel: usize, stride: usize, groups: usize) -> Op {
    Op::Conv { outputs, kernel, stride, padding: kernel / 2, groups, bias: false }
}

/// A stage of bottleneck blocks: `blocks` of them, `width` channels inside in `groups`, `outputs` outside.
fn stage(graph: &mut Graph, blocks: usize, width: usize, outputs: usize, groups: usize, stride: usize) {
    for block in 0..blocks {
        let start = graph.last();
        let stride = if block == 0 { stride } else { 1 };
        graph.then(conv(width, 1, 1, 1));
        graph.then(Op::Norm);
        graph.relu();
        graph.then(conv(width, 3, stride, groups));
        graph.then(Op::Norm);
        graph.relu();
        graph.then(conv(outputs, 1, 1, 1));
        let inside = graph.then(Op::Norm);
        join(graph, start, inside, (block == 0).then_some((outputs, stride)));
    }
}

/// Adds what came into a block, by way of a convolution if its shape has changed.
fn join(graph: &mut Graph, start: From, inside: From, change: Option<(usize, usize)>) {
    let other = match change {
        None => start,
        Some((outputs, stride)) => {
            graph.after(start, conv(outputs, 1, stride, 1));
            graph.then(Op::Norm)
        }
    };
    graph.after(inside, Op::Add { other });
    graph.relu();
}

/// The first layers of a residual network.
fn stem(planes: usize) -> Graph {
    let mut graph = Graph::new(planes);
    graph.then(conv(64, 7, 2, 1));
    graph.then(Op::Norm);
    graph.relu();
    graph.then(Op::MaxPool { kernel: 3, stride: 2, padding: 1 });
    graph
}

fn head(graph: &mut Graph, classes: usize) {
    graph.then(Op::MeanPool { side: 1 });
    graph.then(Op::Linear { outputs: classes });
}

/// A residual network of bottlenecks.
fn bottlenecks(planes: usize, classes: usize, blocks: [usize; 4], width: usize, groups: usize) -> Graph {
    let mut graph = stem(planes);
    for (index, blocks) in blocks.into_iter().enumerate() {
        stage(&mut graph, blocks, width << index, 256 << index, groups, if index == 0 { 1 } else { 2 });
    }
    head(&mut graph, classes);
    graph
}

/// ResNet-50 (He et al. 2016, with the stride in the 3×3 convolution as torchvision has it).
#[must_use]
pub fn resnet50(planes: usize, classes: usize) -> Graph {
    bottlenecks(planes, classes, [3, 4, 6, 3], 64, 1)
}

/// ResNeXt-101 32×8d (Xie et al. 2017).
#[must_use]
pub fn resnext101(planes: usize, classes: usize) -> Graph {
    bottlenecks(planes, classes, [3, 4, 23, 3], 256, 32)
}

/// ResNet-18 (He et al. 2016); `fold` leaves the batch norms out and gives the convolutions biases, as inspection runs
/// it, and `classes` of none leaves out the head.
#[must_use]
pub fn resnet18(planes: usize, classes: Option<usize>, fold: bool) -> Graph {
    let norm = |graph: &mut Graph, op: Op| {
        if let (true, Op::Conv { outputs, kernel, stride, padding, groups, .. }) = (fold, op) {
            return graph.then(Op::Conv { outputs, kernel, stride, padding, groups, bias: true });
        }
        graph.then(op);
        graph.then(Op::Norm)
    };
    let mut graph = Graph::new(planes);
    norm(&mut graph, conv(64, 7, 2, 1));
    graph.relu();
    graph.then(Op::MaxPool { kernel: 3, stride: 2, padding: 1 });
    for stage in 0..4 {
        let outputs = 64 << stage;
        for block in 0..2 {
            let start = graph.last();
            let changes = block == 0 && stage > 0;
            norm(&mut graph, conv(outputs, 3, if changes { 2 } else { 1 }, 1));
            graph.relu();
            let inside = norm(&mut graph, conv(outputs, 3, 1, 1));
            let other = if changes {
                let bias = fold;
                let op = Op::Conv { outputs, kernel: 1, stride: 2, padding: 0, groups: 1, bias };
                let last = graph.after(start, op);
                if fold { last } else { graph.then(Op::Norm) }
            } else {
                start
            };
            graph.after(inside, Op::Add { other });
            graph.relu();
        }
    }
    if let Some(classes) = classes {
        head(&mut graph, classes);
    }
    graph
}

/// VGG-11 without batch norm (Simonyan and Zisserman 2015).
#[must_use]
pub fn vgg11(planes: usize, classes: usize) -> Graph {
    let mut graph = Graph::new(planes);
    for stage in [&[64][..], &[128], &[256, 256], &[512, 512], &[512, 512]] {
        for &outputs in stage {
            graph.then(Op::Conv { outputs, kernel: 3, stride: 1, padding: 1, groups: 1, bias: true });
            graph.relu();
        }
        graph.then(Op::MaxPool { kernel: 2, stride: 2, padding: 0 });
    }
    graph.then(Op::MeanPool { side: 7 });
    for _ in 0..2 {
        graph.then(Op::Linear { outputs: 4096 });
        graph.relu();
        graph.then(Op::Dropout);
    }
    graph.then(Op::Linear { outputs: classes });
    graph
}

/// Channels of the autoencoder's maps, each of half the side of the one before.
pub const AUTOENCODER: [usize; 4] = [16, 32, 32, 16];

/// The fully convolutional autoencoder: 3×3 convolutions of stride 2 down to a sixteenth of the side, and convolutions
/// after doubling back up; the last is linear. It takes images whose side is a multiple of 16.
#[must_use]
pub fn autoencoder() -> Graph {
    let mut graph = Graph::new(1);
    for outputs in AUTOENCODER {
        graph.then(conv(outputs, 3, 2, 1));
        graph.then(Op::Norm);
        graph.relu();
    }
    for outputs in [32, 16, 16, 8] {
        graph.then(Op::Upsample);
        graph.then(conv(outputs, 3, 1, 1));
        graph.then(Op::Norm);
        graph.relu();
    }
    graph.then(Op::Conv { outputs: 1, kernel: 3, stride: 1, padding: 1, groups: 1, bias: true });
    graph
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::baseline::graph::Shape;

    #[test]
    fn parameters_are_those_of_torchvision() {
        let count = |graph: Graph| graph.cost(224).unwrap().parameters;
        assert_eq!(count(resnet50(3, 1000)), 25_557_032);
        assert_eq!(count(vgg11(3, 1000)), 132_863_336);
        assert_eq!(count(resnext101(3, 1000)), 88_791_336);
        assert_eq!(count(resnet18(3, Some(1000), false)), 11_689_512);
    }

    #[test]
    fn multiply_adds_are_those_of_torchvision() {
        // torchvision's `_ops` of these weights, in units of 10⁹ multiply-adds.
        let ops = |graph: Graph| (graph.cost(224).unwrap().multiply_adds as f64 / 1e6).round() / 1e3;
        assert_eq!(ops(resnet50(3, 1000)), 4.089);
        assert_eq!(ops(vgg11(3, 1000)), 7.609);
        assert_eq!(ops(resnext101(3, 1000)), 16.414);
        assert_eq!(ops(resnet18(3, Some(1000), false)), 1.814);
    }

    #[test]
    fn maps_shrink_as_they_should() {
        let shapes = resnet50(1, 4).shapes(64).unwrap();
        assert_eq!(shapes[shapes.len() - 3], Shape { channels: 2048, side: 2 });
        assert_eq!(shapes.last(), Some(&Shape { channels: 4, side: 1 }));
        let shapes = autoencoder().shapes(64).unwrap();
        assert!(shapes.contains(&Shape { channels: 16, side: 4 }));
        assert_eq!(shapes.last(), Some(&Shape { channels: 1, side: 64 }));
        assert!(vgg11(1, 4).shapes(16).is_err());
        assert!(vgg11(1, 4).shapes(32).is_ok());
    }

    #[test]
    fn folded_networks_have_a_bias_for_each_norm() {
        let [folded, whole] = [true, false].map(|fold| resnet18(1, None, fold).cost(256).unwrap());
        assert_eq!(folded.multiply_adds, whole.multiply_adds);
        // A gain and a shift became a bias.
        assert_eq!(whole.parameters - folded.parameters, 64 * 5 + 128 * 5 + 256 * 5 + 512 * 5);
    }
}
