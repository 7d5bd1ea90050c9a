//! A judge as a model file holds it: its description, and three lists of numbers.

use half::f16;
use serde::{Deserialize, Serialize};

use super::{Border, Description, Judge, JudgeError};
use crate::backbone::STAGE_CHANNELS;
use crate::backbone::weights::{Conv, convolutions};
use crate::classifier::SIDE;
use crate::classifier::kernel::{self, KernelMachine};
use crate::classifier::network::Folded;
use crate::classifier::planes::Planes;

/// A [`Description`] in a model's header, whose encoding knows fields by their order alone: what is added must not move what
/// models of this format already have.
#[derive(Serialize, Deserialize)]
pub(super) struct Layout {
    levels: u32,
    planes: Option<Sight>,
    flips: u32,
    views: u32,
    kernel: Option<kernel::Description>,
    borders: Vec<Border>,
}

/// The planes, with their side where it is not [`SIDE`]: an older cellgate refuses the kinds that it does not know.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Sight {
    Heatmap,
    HeatmapAndImage,
    HeatmapOf(u32),
    HeatmapAndImageOf(u32),
}

impl From<Layout> for Description {
    fn from(layout: Layout) -> Self {
        let Layout { levels, planes, flips, views, kernel, borders } = layout;
        let usual = SIDE as u32;
        let (planes, side) = match planes {
            None => (None, usual),
            Some(Sight::Heatmap) => (Some(Planes::Heatmap), usual),
            Some(Sight::HeatmapAndImage) => (Some(Planes::HeatmapAndImage), usual),
            Some(Sight::HeatmapOf(side)) => (Some(Planes::Heatmap), side),
            Some(Sight::HeatmapAndImageOf(side)) => (Some(Planes::HeatmapAndImage), side),
        };
        Self { levels, planes, side, flips, views, kernel, borders }
    }
}

impl From<Description> for Layout {
    fn from(description: Description) -> Self {
        let Description { levels, planes, side, flips, views, kernel, borders } = description;
        let usual = side == SIDE as u32;
        let planes = planes.map(|planes| match planes {
            Planes::Heatmap if usual => Sight::Heatmap,
            Planes::HeatmapAndImage if usual => Sight::HeatmapAndImage,
            Planes::Heatmap => Sight::HeatmapOf(side),
            Planes::HeatmapAndImage => Sight::HeatmapAndImageOf(side),
        });
        Self { levels, planes, flips, views, kernel, borders }
    }
}

/// Numbers of the network's section for these planes and levels; 0 without a network.
fn network_len(planes: Option<Planes>, levels: usize) -> usize {
    planes.map_or(0, |planes| {
        let convs = convolutions(planes.count(), STAGE_CHANNELS);
        convs.iter().map(|shape| shape.weight_len() + shape.outputs).sum::<usize>() + levels * (STAGE_CHANNELS[3] + 1)
    })
}

/// Every list of numbers of a folded network, in the order of the section.
fn lists(net: &Folded) -> impl Iterator<Item = &[f32]> {
    let convs = net.convs.iter().flat_map(|conv| [conv.weight.as_slice(), conv.bias.as_slice()]);
    convs.chain([net.fc_weight.as_slice(), net.fc_bias.as_slice()])
}

impl Judge {
    /// A judge of its parts. The network is rounded to half precision at once: what is calibrated is what is stored.
    ///
    /// # Errors
    /// [`JudgeError::Parts`] if a weight of the network is beyond half precision, or the parts do not agree.
    pub(super) fn new(
        description: Description,
        network: Option<&Folded>,
        kernel: Option<KernelMachine>,
    ) -> Result<Self, JudgeError> {
        let halves = network.map(halves).unwrap_or_default();
        let network = read_network(&description, &halves)?;
        let judge = Self { description, network, kernel };
        judge.description.validate()?;
        Ok(judge)
    }

    /// The network's numbers in half precision: of each convolution the weights, then the biases, at last those of the
    /// fully connected layer. Empty without a network.
    #[must_use]
    pub fn network_halves(&self) -> Vec<f16> {
        self.network.as_ref().map(halves).unwrap_or_default()
    }

    /// The judge of the parts that [`Judge::description`], [`Judge::network_halves`] and its
    /// [kernel machine](Judge::kernel) give.
    ///
    /// # Errors
    /// If they do not agree, or a number is not finite.
    pub fn from_parts(
        description: Description,
        network: &[f16],
        floats: &[f32],
        support: &[f16],
    ) -> Result<Self, JudgeError> {
        description.validate()?;
        let kernel = match &description.kernel {
            Some(kernel) => Some(KernelMachine::from_parts(kernel.clone(), floats.to_vec(), support.to_vec())?),
            None if floats.is_empty() && support.is_empty() => None,
            None => return Err(JudgeError::Parts("numbers of a kernel machine that it does not ask".into())),
        };
        let network = read_network(&description, network)?;
        Ok(Self { description, network, kernel })
    }
}

impl Description {
    /// Numbers in the network's section, in the kernel machine's floats, and in its support rows.
    #[must_use]
    pub fn section_lens(&self) -> [usize; 3] {
        let kernel = self.kernel.as_ref();
        let network = network_len(self.planes, self.levels as usize);
        [network, kernel.map_or(0, |k| k.float_count()), kernel.map_or(0, |k| k.half_count())]
    }
}

fn halves(net: &Folded) -> Vec<f16> {
    lists(net).flatten().map(|&x| f16::from_f32(x)).collect()
}

fn read_network(description: &Description, numbers: &[f16]) -> Result<Option<Folded>, JudgeError> {
    let levels = description.levels as usize;
    let expected = network_len(description.planes, levels);
    if numbers.len() != expected {
        return Err(JudgeError::Parts(format!("its network has {} numbers, expected {expected}", numbers.len())));
    }
    let Some(planes) = description.planes else { return Ok(None) };
    if numbers.iter().any(|x| !x.is_finite()) {
        return Err(JudgeError::Parts("a weight of its network is not finite in half precision".into()));
    }
    let mut at = 0;
    let mut take = |count: usize| -> Vec<f32> {
        at += count;
        numbers[at - count..at].iter().map(|x| x.to_f32()).collect()
    };
    let shapes = convolutions(planes.count(), STAGE_CHANNELS);
    let convs = shapes.into_iter().map(|shape| {
        let (weight, bias) = (take(shape.weight_len()), take(shape.outputs));
        Conv {
            name: shape.name,
            inputs: shape.inputs,
            outputs: shape.outputs,
            kernel: shape.kernel,
            stride: shape.stride,
            weight,
            bias,
        }
    });
    let convs = convs.collect();
    let (fc_weight, fc_bias) = (take(levels * STAGE_CHANNELS[3]), take(levels));
    Ok(Some(Folded {
        inputs: planes.count(),
        side: description.side as usize,
        classes: levels,
        convs,
        fc_weight,
        fc_bias,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description(planes: Planes, side: u32) -> Description {
        let borders = vec![Border { network: 1.5, kernel: 0.0, shift: -0.25 }];
        Description { levels: 2, planes: Some(planes), side, flips: 4, views: 1, kernel: None, borders }
    }

    #[test]
    fn a_description_of_the_usual_side_lies_as_before_there_were_others() {
        // As 0.1.0 wrote it before: levels 2, planes there (1) of kind 0 or 1, flips 4, views 1, no kernel machine, 1 border.
        let border = [1.5f32, 0.0, -0.25].map(f32::to_le_bytes).concat();
        for (planes, kind) in [(Planes::Heatmap, 0), (Planes::HeatmapAndImage, 1)] {
            let before = [&[2, 1, kind, 4, 1, 0, 1], border.as_slice()].concat();
            let now = description(planes, 64);
            assert_eq!(postcard::to_stdvec(&now).unwrap(), before);
            assert_eq!(postcard::from_bytes::<Description>(&before).unwrap(), now);
        }
    }

    #[test]
    fn any_side_comes_back() {
        for planes in [Planes::Heatmap, Planes::HeatmapAndImage] {
            for side in [64, 128, 512] {
                let written = description(planes, side);
                let bytes = postcard::to_stdvec(&written).unwrap();
                assert_eq!(postcard::from_bytes::<Description>(&bytes).unwrap(), written);
            }
        }
    }
}
