//! The network as a list of steps over one arena, and how the threads share a step.

use std::sync::Arc;

use crate::backbone::Pyramid;
use crate::backbone::weights::Conv;
use crate::simd::{Isa, Simd};
use crate::workers::Workers;

use super::Options;
use super::direct::{self, Direct};
use super::memory::{Aligned, Area, Areas, LINE, Layout, Tensor};
use super::share::Share;
use super::stem::Stem;
use super::winograd::{Tile, Winograd};

/// Where a convolution reads and writes, and what happens to each sum on its way out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) input: Tensor,
    pub(super) output: Tensor,
    /// Add to what the output holds: the shortcut of a residual block, which is kept there.
    pub(super) add: bool,
    /// Negative sums become zero.
    pub(super) relu: bool,
}

impl Ends {
    /// Writes `sum` to `out` with shortcut and ReLU.
    ///
    /// # Safety
    /// The CPU must have `S`, and `out` hold a vector.
    #[inline(always)]
    pub(super) unsafe fn finish<S: Simd>(&self, mut sum: S::V, out: *mut f32) {
        // SAFETY: as the caller promised.
        unsafe {
            if self.add {
                sum = S::add(sum, S::load(out));
            }
            if self.relu {
                sum = S::relu(sum);
            }
            S::store(out, sum);
        }
    }
}

/// How convolutions are computed; Winograd trades accuracy in the last digits for speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Winograd for 3×3 kernels unless a map has very few pixels, else direct.
    Winograd,
    /// Direct everywhere.
    Direct,
}

#[derive(Debug)]
enum Algorithm {
    Direct(Direct),
    Winograd(Winograd),
}

#[derive(Debug)]
struct Layer {
    algorithm: Algorithm,
    bias: Vec<f32>,
    ends: Ends,
}

/// What a step does, for profiles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepInfo {
    /// The convolution's name in torchvision's ResNet18. `conv1` includes the maximum after it.
    pub name: String,
    /// How it is computed.
    pub algorithm: &'static str,
    /// Multiply-adds of the convolution as it is defined.
    pub multiply_adds: u64,
    /// Multiply-adds that the algorithm does in its products (Winograd: fewer, but transforms come on top).
    pub performed: u64,
    /// Bytes of packed weights, each read at least once.
    pub weight_bytes: u64,
    /// Bytes of the maps that are read and written, each counted once.
    pub map_bytes: u64,
}

#[derive(Debug)]
struct Step {
    /// Stages that are wanted if this step is: at least so many.
    depth: usize,
    info: StepInfo,
    work: Work,
}

#[derive(Debug)]
enum Work {
    Convolution(Layer),
    /// conv1 with its ReLU, and the maximum after it.
    Stem {
        conv: Stem,
        bias: Vec<f32>,
        input: Tensor,
        output: Tensor,
    },
}

/// A ResNet18 for images of one size: packed weights, the steps, and the arena in which every tensor has its place.
#[derive(Debug)]
pub(crate) struct Network {
    isa: Isa,
    input: Tensor,
    /// Shared by all engines made of this one.
    steps: Arc<[Step]>,
    arena: Aligned,
    /// Where the threads' scratch begins, and how much each has.
    scratch: (usize, usize),
    /// How many stages there are.
    depth: usize,
}

/// Buffers are shared as far as a residual block allows: each stage has `kept`, the map that the shortcut passes by
/// and to which the second convolution adds, and `inner`, between the two convolutions. What `kept` holds in the end is
/// the stage's output, so it lies in the caller's pyramid from the start.
impl Network {
    /// For the twenty convolutions of a ResNet18, of which the first may have any number of inputs.
    pub(crate) fn new(convs: &[Conv], size: usize, options: Options, isa: Isa, threads: usize) -> Self {
        let Options { method, depth } = options;
        let mut layout = Layout::default();
        let mut steps = Vec::new();
        let mut convs = convs.iter();
        let mut next = || convs.next().expect("every convolution is there");

        let first = next();
        let input = Tensor::new(&mut layout, Area::Arena, size, first.inputs, 3);
        let maps = Pyramid::place(&mut Layout::default(), size, depth);
        let mut before = maps[0];
        steps.push(Step::stem(first, input, before, method, isa));
        for (stage, &kept) in maps[..depth].iter().enumerate() {
            let mut convolution = |input, output, add, relu| {
                Step::convolution(next(), stage + 1, Ends { input, output, add, relu }, method, isa)
            };
            let inner = Tensor::new(&mut layout, Area::Arena, kept.side, kept.channels, 1);
            let first = convolution(before, inner, false, true);
            let second = convolution(inner, kept, true, true);
            steps.push(first);
            if stage > 0 {
                // The shortcut must be in place before the second convolution adds to it.
                steps.push(convolution(before, kept, false, false));
            }
            steps.push(second);
            steps.push(convolution(kept, inner, false, true));
            steps.push(convolution(inner, kept, true, true));
            before = kept;
        }
        let scratch = steps.iter().map(Step::scratch).max().unwrap_or(0).next_multiple_of(LINE);
        let scratch = (layout.reserve(scratch * threads), scratch);
        Self { isa, input, steps: steps.into(), arena: layout.allocate(), scratch, depth }
    }

    /// The same network over an arena of its own; the packed weights are shared.
    pub(super) fn another(&self) -> Self {
        let Self { isa, input, scratch, depth, .. } = *self;
        let arena = Aligned::zeros(self.arena.as_slice().len());
        Self { isa, input, steps: Arc::clone(&self.steps), arena, scratch, depth }
    }

    /// How many stages it can compute.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    /// Runs all steps up to the last stage that `pyramid` holds on an image of one plane or several; `observe` hears of
    /// each when it is done.
    pub(crate) fn run(
        &mut self,
        planes: &[&[f32]],
        pyramid: &mut Pyramid,
        workers: &Workers,
        mut observe: impl FnMut(&StepInfo),
    ) {
        let depth = pyramid.depth();
        let memory = Areas::new(self.arena.as_mut_slice(), pyramid);
        let (input, channels) = (self.input, self.input.channels);
        assert_eq!(planes.len(), channels, "as many planes as the first convolution has inputs");
        for (c, plane) in planes.iter().enumerate() {
            for (y, row) in plane.chunks_exact(input.side).take(input.side).enumerate() {
                // SAFETY: row `y` of the input lies in the arena, which nobody else uses.
                unsafe {
                    let to = memory.at(input.pixel(y, 0));
                    if channels == 1 {
                        std::ptr::copy_nonoverlapping(row.as_ptr(), to, row.len());
                    } else {
                        row.iter().enumerate().for_each(|(x, &value)| *to.add(x * channels + c) = value);
                    }
                }
            }
        }
        let isa = self.isa;
        for Step { info, work, .. } in self.steps.iter().take_while(|step| step.depth <= depth) {
            let share = Share::new(workers.count());
            match work {
                Work::Convolution(Layer { algorithm, bias, ends }) => {
                    let (scratch, each) = self.scratch;
                    workers.run(&|thread| {
                        // SAFETY: tensors and scratch lie in this memory, which only this step's threads use now.
                        unsafe {
                            match algorithm {
                                Algorithm::Direct(conv) => conv.run(isa, memory, ends, bias, &share, thread),
                                Algorithm::Winograd(conv) => {
                                    let scratch = scratch + thread * each;
                                    conv.run(isa, memory, ends, bias, &share, thread, scratch);
                                }
                            }
                        }
                    });
                }
                Work::Stem { conv, bias, input, output } => {
                    let (scratch, each) = self.scratch;
                    workers.run(&|thread| {
                        let scratch = scratch + thread * each;
                        // SAFETY: tensors and scratch lie in this memory, which only this step's threads use now.
                        unsafe { conv.run(isa, memory, input, output, bias, &share, thread, scratch) };
                    });
                }
            }
            observe(info);
        }
    }
}

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Direct,
    Winograd { tile: Tile, scaled: bool },
}

impl Choice {
    /// One multiply-add for each output channel and tile or pixel.
    const MULTIPLY: usize = 5;
    /// Fetching a byte of weights, between what was measured on a Zen 4 server (37 GB/s against 59 G multiply-adds a second,
    /// which makes 8) and on a Xeon with 2 MiB of second level (12 against 108, which makes 45).
    const FETCH: usize = 16;
    /// Widening a 16-bit weight.
    const WIDEN: usize = 4;

    /// From the layer's shape and weights alone, so that every machine computes the same.
    ///
    /// With many tiles the fewest multiply-adds win. With few, what counts is the bytes of weights, since each is used
    /// once a tile or a pixel: transformed weights are 4 times as many as plain ones for tiles of 4, 1.8 times for 2.
    fn new(method: Method, conv: &Conv, side: usize) -> Self {
        if method == Method::Direct || conv.kernel != 3 {
            return Self::Direct;
        }
        let fetch = |narrow: bool| if narrow { Self::WIDEN + 2 * Self::FETCH } else { 4 * Self::FETCH };
        let winograd = |tile: Tile, scaled: bool| {
            let products = tile.points() * side.div_ceil(tile.side()).pow(2);
            (Self::MULTIPLY * products + fetch(scaled) * tile.weights(), Self::Winograd { tile, scaled })
        };
        let fours = if conv.stride == 1 { Tile::Four } else { Tile::Apart };
        let exact = winograd(fours, false);
        if side.div_ceil(fours.side()).pow(2) >= MANY_TILES {
            return exact.1;
        }
        let direct = (9 * (Self::MULTIPLY * side * side + fetch(direct::fit_in_halves(conv))), Self::Direct);
        let twos = if conv.stride == 1 { Tile::Two } else { Tile::ApartTwo };
        let all = [exact, winograd(fours, true), winograd(twos, false), winograd(twos, true), direct];
        all.into_iter().min_by_key(|(cost, _)| *cost).map_or(Self::Direct, |(_, choice)| choice)
    }
}

/// From so many tiles on, products take the time and not fetching weights.
const MANY_TILES: usize = 17;

impl Step {
    fn convolution(conv: &Conv, depth: usize, ends: Ends, method: Method, isa: Isa) -> Self {
        let pixels = ends.output.pixels();
        let algorithm = match Choice::new(method, conv, ends.output.side) {
            Choice::Direct => Algorithm::Direct(Direct::new(conv, pixels, isa)),
            Choice::Winograd { tile, scaled } => Algorithm::Winograd(Winograd::new(conv, tile, scaled, isa)),
        };
        let multiply_adds = (ends.output.pixels() * conv.weight.len()) as u64;
        let (name, performed, weight_bytes) = match &algorithm {
            Algorithm::Direct(conv) => (conv.name(), multiply_adds, conv.weight_bytes()),
            Algorithm::Winograd(conv) => (conv.name(), conv.multiply_adds(ends.output.side), conv.weight_bytes()),
        };
        let info = StepInfo {
            name: conv.name.clone(),
            algorithm: name,
            multiply_adds,
            performed,
            weight_bytes: weight_bytes as u64,
            // The output is read too where something is added to it.
            map_bytes: ends.input.bytes() + ends.output.bytes() * if ends.add { 2 } else { 1 },
        };
        Self { depth, info, work: Work::Convolution(Layer { algorithm, bias: conv.bias.clone(), ends }) }
    }

    fn stem(conv: &Conv, input: Tensor, output: Tensor, method: Method, isa: Isa) -> Self {
        let multiply_adds = (4 * output.pixels() * conv.weight.len()) as u64;
        let stem = Stem::new(conv, method, isa);
        let info = StepInfo {
            name: conv.name.clone(),
            algorithm: stem.name(),
            multiply_adds,
            performed: stem.multiply_adds(multiply_adds),
            weight_bytes: stem.weight_bytes() as u64,
            map_bytes: input.bytes() + output.bytes(),
        };
        Self { depth: 1, info, work: Work::Stem { conv: stem, bias: conv.bias.clone(), input, output } }
    }

    /// Floats of scratch that each thread needs.
    fn scratch(&self) -> usize {
        match &self.work {
            Work::Convolution(Layer { algorithm: Algorithm::Winograd(conv), .. }) => conv.scratch(),
            Work::Stem { conv, output, .. } => conv.scratch(output.side),
            Work::Convolution(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(stride: usize, side: usize, weight: f32) -> Choice {
        let conv = Conv {
            name: "c".into(),
            inputs: 64,
            outputs: 64,
            kernel: 3,
            stride,
            weight: vec![weight; 64 * 64 * 9],
            bias: vec![0.0; 64],
        };
        Choice::new(Method::Winograd, &conv, side)
    }

    #[test]
    fn each_shape_has_its_algorithm() {
        let (exact, third) = (0.5, 1.0 / 3.0);
        let winograd = |tile, scaled| Choice::Winograd { tile, scaled };
        for side in [28, 32, 64, 128] {
            assert_eq!(choice(1, side, exact), winograd(Tile::Four, false), "{side}");
            assert_eq!(choice(2, side, exact), winograd(Tile::Apart, false), "{side}");
        }
        // A few tiles: half the bytes of weights are worth the widening.
        for side in [14, 16] {
            assert_eq!(choice(1, side, exact), winograd(Tile::Four, true), "{side}");
        }
        assert_eq!(choice(2, 16, exact), winograd(Tile::Apart, true));
        // Fewer: tiles of 2 have fewer weights.
        for side in [7, 8] {
            assert_eq!(choice(1, side, exact), winograd(Tile::Two, true), "{side}");
        }
        for side in [8, 14] {
            assert_eq!(choice(2, side, exact), winograd(Tile::ApartTwo, true), "{side}");
        }
        assert_eq!(choice(1, 4, exact), winograd(Tile::Two, true));
        // A pixel or four: plain weights if they fit in halves, else tiles of 2 in 16 bits.
        assert_eq!(choice(1, 2, exact), Choice::Direct);
        assert_eq!(choice(2, 4, exact), Choice::Direct);
        assert_eq!(choice(1, 2, third), winograd(Tile::Two, true));
    }
}
