//! What the network with a folded projection gives, from the CPU engine and a plain product.

use std::sync::Arc;

use cellgate::backbone::cpu::CpuBackbone;
use cellgate::backbone::onnx::map_stride;
use cellgate::backbone::{Backbone, Pyramid, ResNet18};
use cellgate::embedding::Projection;
use cellgate::simd::Isa;
use cellgate::workers::Workers;

/// A smooth image with an edge, in the range of a normalised one.
pub fn image(size: usize) -> Vec<f32> {
    let pixel = |p: usize| {
        let (y, x) = ((p / size) as f32, (p % size) as f32);
        (x * 0.37).sin() + (y * 0.21).cos() + if x > y { 0.5 } else { -0.5 }
    };
    (0..size * size).map(pixel).collect()
}

/// Of each image in turn: the projected maps of the stages that the projection uses, channels last, zeros behind the k-th; and
/// behind them all four stages themselves, if features are pooled.
pub fn of(network: &ResNet18, projection: &Projection, size: usize, pooled: bool, images: &[f32]) -> Vec<Vec<f32>> {
    let mut backbone = CpuBackbone::new(network, size, Isa::detect(), Arc::new(Workers::new(1))).unwrap();
    let mut pyramid = Pyramid::new(size);
    let (k, stride) = (projection.k(), map_stride(projection.k()));
    let used: Vec<usize> = (0..4).filter(|&stage| projection.uses(stage)).collect();
    let mut outputs = vec![Vec::new(); used.len() + if pooled { 4 } else { 0 }];
    for image in images.chunks_exact(size * size) {
        backbone.run(image, &mut pyramid).unwrap();
        let (maps, stages) = outputs.split_at_mut(used.len());
        for (&stage, map) in used.iter().zip(maps) {
            let rows = projection.stage(stage);
            let channels = rows.len() / k;
            let pixels: Vec<f32> = pyramid.values(stage).collect();
            let value = |pixel: &[f32], j: usize| {
                let products = pixel.iter().zip(rows.chunks_exact(k)).map(|(&x, row)| f64::from(x) * f64::from(row[j]));
                products.sum::<f64>() as f32
            };
            let padded = |pixel| (0..stride).map(move |j| if j < k { value(pixel, j) } else { 0.0 });
            map.extend(pixels.chunks_exact(channels).flat_map(padded));
        }
        stages.iter_mut().enumerate().for_each(|(stage, out)| out.extend(pyramid.values(stage)));
    }
    outputs
}
