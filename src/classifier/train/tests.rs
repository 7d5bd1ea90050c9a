use super::super::SIDE;
use super::*;
use crate::backbone::weights::ConvShape;
use crate::backbone::weights::fold::torchvision_names;
use crate::classifier::Tensor;

/// A small ResNet18: the same layers with 64 channels everywhere.
const SMALL: [usize; 4] = [64; 4];

fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| (0..3).map(|_| next()).sum()).collect()
}

/// The network in training mode in the plainest way there is, in f64, from named tensors to the loss.
struct Reference {
    convs: Vec<ConvShape>,
    tensors: std::collections::BTreeMap<String, Vec<f64>>,
    classes: usize,
}

/// A batch of square maps, `batch × side × side × channels`.
#[derive(Clone)]
struct Maps {
    batch: usize,
    side: usize,
    channels: usize,
    values: Vec<f64>,
}

impl Reference {
    fn new(network: &Network) -> Self {
        let wide = |tensor: Tensor| tensor.values.into_iter().map(f64::from).collect();
        let tensors = network.named_tensors().into_iter().map(|(name, tensor)| (name, wide(tensor))).collect();
        let convs = network.shape.places().convs.into_iter().map(|place| place.shape).collect();
        Self { convs, tensors, classes: network.shape.classes }
    }

    fn convolve(&self, name: &str, x: &Maps) -> Maps {
        let shape = self.convs.iter().find(|c| c.name == name).unwrap();
        let weight = &self.tensors[&format!("{}.weight", torchvision_names(name).0)];
        convolve(weight, shape.kernel, shape.stride, shape.outputs, x)
    }

    fn norm(&self, name: &str, mut z: Maps) -> Maps {
        let norm = torchvision_names(name).1;
        let (gamma, beta) = (&self.tensors[&format!("{norm}.weight")], &self.tensors[&format!("{norm}.bias")]);
        let count = (z.values.len() / z.channels) as f64;
        for c in 0..z.channels {
            let all = || z.values.iter().skip(c).step_by(z.channels);
            let mean = all().sum::<f64>() / count;
            let variance = all().map(|z| (z - mean).powi(2)).sum::<f64>() / count;
            let gain = gamma[c] / (variance + 1e-5).sqrt();
            z.values.iter_mut().skip(c).step_by(z.channels).for_each(|z| *z = (*z - mean) * gain + beta[c]);
        }
        z
    }

    fn logits(&self, inputs: &Maps) -> Vec<f64> {
        let relu = |mut x: Maps| {
            x.values.iter_mut().for_each(|x| *x = x.max(0.0));
            x
        };
        let mut x = relu(self.norm("conv1", self.convolve("conv1", inputs)));
        let pooled = x.side / 2;
        let mut values = Vec::new();
        for at in 0..x.batch * pooled * pooled * x.channels {
            let (c, p) = (at % x.channels, at / x.channels);
            let (b, row, column) = (p / pooled / pooled, p / pooled % pooled, p % pooled);
            let mut best = f64::NEG_INFINITY;
            for y in (2 * row).saturating_sub(1)..=2 * row + 1 {
                for column in (2 * column).saturating_sub(1)..=2 * column + 1 {
                    best = best.max(x.values[((b * x.side + y) * x.side + column) * x.channels + c]);
                }
            }
            values.push(best);
        }
        x = Maps { side: pooled, values, ..x };
        for layer in 1..=4 {
            for block in 0..2 {
                let name = |part: &str| format!("layer{layer}.{block}.{part}");
                let inner = relu(self.norm(&name("conv1"), self.convolve(&name("conv1"), &x)));
                let mut y = self.norm(&name("conv2"), self.convolve(&name("conv2"), &inner));
                if layer > 1 && block == 0 {
                    x = self.norm(&name("downsample"), self.convolve(&name("downsample"), &x));
                }
                y.values.iter_mut().zip(&x.values).for_each(|(y, x)| *y += x);
                x = relu(y);
            }
        }
        let (weight, bias) = (&self.tensors["fc.weight"], &self.tensors["fc.bias"]);
        let each = x.side * x.side;
        let mut logits = Vec::new();
        for map in x.values.chunks(each * x.channels) {
            let mean = |c: usize| map.iter().skip(c).step_by(x.channels).sum::<f64>() / each as f64;
            for class in 0..self.classes {
                let row = &weight[class * x.channels..][..x.channels];
                logits.push(bias[class] + row.iter().enumerate().map(|(c, w)| w * mean(c)).sum::<f64>());
            }
        }
        logits
    }

    fn loss(&self, inputs: &Maps, labels: Labels<'_>, settings: &Settings) -> f64 {
        let logits = self.logits(inputs);
        let [of, beside] = [labels.of, labels.beside].map(|labels| self.cross_entropy(&logits, labels, settings));
        of + f64::from(labels.share) * (beside - of)
    }

    fn cross_entropy(&self, logits: &[f64], labels: &[usize], settings: &Settings) -> f64 {
        let weight = |c: usize| settings.class_weights.as_ref().map_or(1.0, |w| f64::from(w[c]));
        let (mut loss, mut all) = (0.0, 0.0);
        for (logits, &label) in logits.chunks(self.classes).zip(labels) {
            let total: f64 = logits.iter().map(|l| l.exp()).sum();
            let smoothing = f64::from(settings.label_smoothing);
            for (c, logit) in logits.iter().enumerate() {
                let share = smoothing / self.classes as f64 + if c == label { 1.0 - smoothing } else { 0.0 };
                loss -= weight(c) * share * (logit - total.ln());
            }
            all += weight(label);
        }
        loss / all
    }
}

/// `weight` is outputs × inputs × kernel × kernel.
fn convolve(weight: &[f64], kernel: usize, stride: usize, outputs: usize, x: &Maps) -> Maps {
    let (side, pad, inputs) = (x.side / stride, kernel / 2, x.channels);
    let taps = kernel * kernel;
    let mut last = vec![0.0; weight.len()];
    for (at, &w) in weight.iter().enumerate() {
        let (o, i, tap) = (at / (inputs * taps), at / taps % inputs, at % taps);
        last[(tap * inputs + i) * outputs + o] = w;
    }
    let mut values = vec![0.0; x.batch * side * side * outputs];
    for (p, sums) in values.chunks_mut(outputs).enumerate() {
        let (b, y, column) = (p / side / side, p / side % side, p % side);
        for tap in 0..taps {
            let (sy, sx) = (y * stride + tap / kernel, column * stride + tap % kernel);
            if !(pad..x.side + pad).contains(&sy) || !(pad..x.side + pad).contains(&sx) {
                continue;
            }
            let pixel = &x.values[((b * x.side + sy - pad) * x.side + sx - pad) * inputs..][..inputs];
            for (i, v) in pixel.iter().enumerate() {
                let row = &last[(tap * inputs + i) * outputs..][..outputs];
                sums.iter_mut().zip(row).for_each(|(s, w)| *s += v * w);
            }
        }
    }
    Maps { batch: x.batch, side, channels: outputs, values }
}

/// The trainer's batch (planes one after the other) as maps.
fn maps(inputs: &[f32], planes: usize, side: usize) -> Maps {
    let (pixels, batch) = (side * side, inputs.len() / planes / side / side);
    let value = |at: usize| {
        let (b, pixel, plane) = (at / planes / pixels, at / planes % pixels, at % planes);
        f64::from(inputs[(b * planes + plane) * pixels + pixel])
    };
    Maps { batch, side, channels: planes, values: (0..inputs.len()).map(value).collect() }
}

fn trainer(network: &Network, batch: usize, isa: Isa, threads: usize) -> Trainer {
    Trainer::new(network.clone(), SIDE, batch, isa, Arc::new(Workers::new(threads))).unwrap()
}

/// No learning: only gradients.
fn still() -> Settings {
    Settings { lr: 0.0, ..Settings::default() }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    const BATCH: usize = 3;
    let weights = vec![1.0, 0.5, 2.0];
    // On planes of 128 pixels an image is several blocks of the first stage's tiles; samples are blended there.
    let cases = [
        (1, SIDE, 1, 0.0, 0.0, None),
        (2, SIDE, 5, 0.1, 0.0, Some(weights.clone())),
        (2, 128, 10, 0.1, 0.3, Some(weights)),
    ];
    for (planes, side, every, smoothing, share, weights) in cases {
        let mut network = Network::with_widths(planes, 3, SMALL, 5).unwrap();
        // Few values near zero: there a rounding error decides whether a ReLU lets a gradient through. One channel in
        // four is shut, the others are open.
        for place in network.shape.places().convs {
            let shifts = &mut network.parameters[place.beta..][..place.shape.outputs];
            (shifts.iter_mut().enumerate()).for_each(|(c, shift)| *shift = if c % 4 == 0 { -4.0 } else { 4.0 });
        }
        let inputs = noise(BATCH * planes * side * side, 11);
        let (labels, maps) = (Labels { of: &[2, 0, 1], beside: &[0, 0, 2], share }, maps(&inputs, planes, side));
        let settings = Settings { label_smoothing: smoothing, class_weights: weights, ..still() };
        let mut reference = Reference::new(&network);
        let expected = reference.loss(&maps, labels, &settings);
        let workers = Arc::new(Workers::new(2));
        let mut trainer = Trainer::new(network.clone(), side, BATCH, Isa::detect(), workers).unwrap();
        let got = trainer.step_blended(&inputs, labels, &settings).unwrap();
        assert!((got.loss - expected).abs() < 1e-5, "loss {} for {expected}", got.loss);
        let gradients = trainer.gradients();
        // Each tensor along a direction of its own, which all of its numbers take part in.
        let mut worst = 0.0f64;
        for (name, gradient) in gradients.iter().step_by(every) {
            let start = reference.tensors[name].clone();
            let size = (start.iter().map(|x| x * x).sum::<f64>() / start.len() as f64).sqrt().max(0.1);
            let direction: Vec<f64> = noise(start.len(), 3).into_iter().map(f64::from).collect();
            let h = 1e-5 * size;
            let mut at = |h: f64| {
                let moved = start.iter().zip(&direction).map(|(x, d)| x + h * d).collect();
                reference.tensors.insert(name.clone(), moved);
                reference.loss(&maps, labels, &settings)
            };
            let expected = (at(h) - at(-h)) / (2.0 * h);
            reference.tensors.insert(name.clone(), start);
            let terms = gradient.values.iter().zip(&direction).map(|(&g, d)| f64::from(g) * d);
            let (got, norm) = (terms.clone().sum::<f64>(), terms.map(|t| t * t).sum::<f64>().sqrt());
            println!("{name}: {got:.6e} {expected:.6e} {:.1e} of the terms' norm", (got - expected).abs() / norm);
            worst = worst.max((got - expected).abs() / norm);
        }
        assert!(worst < 3e-4, "a gradient is off by {worst:.1e} of its terms' norm");
    }
}

/// Largest difference over the largest value.
fn off(got: &[f32], expected: &[f32]) -> f32 {
    let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    got.iter().zip(expected).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest.max(1e-12)
}

#[test]
fn every_instruction_set_and_number_of_threads_gives_the_same_step() {
    const BATCH: usize = 5;
    let network = Network::with_widths(2, 3, [64, 128, 64, 128], 8).unwrap();
    let inputs = noise(BATCH * 2 * SIDE * SIDE, 4);
    let labels = [0, 1, 2, 1, 0];
    let step = |isa: Isa, threads: usize| {
        let mut trainer = trainer(&network, BATCH, isa, threads);
        let result = trainer.step(&inputs, &labels, &Settings::default()).unwrap();
        (result, trainer.gradients(), trainer.state())
    };
    let exact = Isa::available().find(|isa| !isa.multiplies_halves()).unwrap();
    let expected = step(exact, 1);
    for isa in Isa::available() {
        let alone = step(isa, 1);
        for threads in [2, 3] {
            assert!(step(isa, threads) == alone, "{isa}: {threads} threads differ");
        }
        assert!((alone.0.loss - expected.0.loss).abs() < 1e-4, "{isa}");
        for (name, gradient) in &alone.1 {
            let off = off(&gradient.values, &expected.1[name].values);
            assert!(off < 5e-2, "{isa}: gradient of {name} is off by {off:e}");
        }
    }
}

#[test]
fn a_training_that_is_resumed_goes_on_as_if_it_had_not_stopped() {
    const BATCH: usize = 2;
    let inputs = noise(BATCH * SIDE * SIDE, 4);
    let settings = Settings { lr: 1e-3, ..Settings::default() };
    let mut trainer = trainer(&Network::new(1, 2, 3).unwrap(), BATCH, Isa::detect(), 1);
    for _ in 0..2 {
        trainer.step(&inputs, &[0, 1], &settings).unwrap();
    }
    let bytes = postcard::to_stdvec(&trainer.state()).unwrap();
    let state: State = postcard::from_bytes(&bytes).unwrap();
    let workers = Arc::new(Workers::new(1));
    let mut resumed = Trainer::resume(&state, SIDE, BATCH, Isa::detect(), Arc::clone(&workers)).unwrap();
    let expected = trainer.step(&inputs, &[0, 1], &settings).unwrap();
    assert_eq!(resumed.step(&inputs, &[0, 1], &settings).unwrap(), expected);
    assert!(resumed.state() == trainer.state());
    assert_eq!(resumed.steps(), 3);

    let mut broken = state.clone();
    broken.first.remove("fc.bias");
    let refused = Trainer::resume(&broken, SIDE, BATCH, Isa::detect(), workers).err();
    assert_eq!(refused, Some(NetworkError::Missing { name: "fc.bias".into() }.into()));
}

#[test]
fn named_tensors_come_back_and_broken_ones_are_refused() {
    let network = Network::new(2, 3, 1).unwrap();
    let tensors = network.named_tensors();
    assert_eq!(tensors["conv1.weight"].shape, [64, 2, 7, 7]);
    assert_eq!(tensors["layer3.0.downsample.0.weight"].shape, [256, 128, 1, 1]);
    assert_eq!(tensors["layer4.1.bn2.running_var"].shape, [512]);
    // torchvision's ResNet18 has 11,689,512 parameters with 3 colours and 1,000 classes.
    assert_eq!(network.parameter_count(), 11_689_512 - 49 * 64 - 513 * 997);
    assert!(Network::from_named(&tensors).unwrap() == network);

    let refused = |change: &dyn Fn(&mut Tensors)| {
        let mut broken = tensors.clone();
        change(&mut broken);
        Network::from_named(&broken).err().unwrap().to_string()
    };
    assert!(refused(&|t| drop(t.remove("layer2.1.bn1.bias"))).contains("layer2.1.bn1.bias"));
    assert!(refused(&|t| t.get_mut("fc.weight").unwrap().values[5] = f32::NAN).contains("NaN at index 5"));
    assert!(refused(&|t| t.get_mut("bn1.running_var").unwrap().values[2] = -1.0).contains("bn1.running_var holds -1"));
    assert!(refused(&|t| t.get_mut("bn1.bias").unwrap().values.truncate(63)).contains("63 numbers"));
    assert!(refused(&|t| drop(t.insert("layer5.weight".into(), t["fc.bias"].clone()))).contains("layer5.weight"));
    assert_eq!(Network::new(3, 3, 1), Err(NetworkError::Inputs(3)));
    assert_eq!(Network::new(1, 1, 1), Err(NetworkError::Classes(1)));
    assert!(Network::new(1, 2, 1).unwrap() == Network::new(1, 2, 1).unwrap());
    assert!(Network::new(1, 2, 1).unwrap() != Network::new(1, 2, 2).unwrap());
}

#[test]
fn a_loss_that_is_not_finite_names_the_step_and_changes_nothing() {
    const BATCH: usize = 2;
    let mut trainer = trainer(&Network::with_widths(1, 2, SMALL, 3).unwrap(), BATCH, Isa::detect(), 1);
    let mut inputs = noise(BATCH * SIDE * SIDE, 4);
    let settings = Settings::default();
    trainer.step(&inputs, &[0, 1], &settings).unwrap();
    let before = trainer.state();
    inputs[1234] = f32::NAN;
    let refused = trainer.step(&inputs, &[0, 1], &settings);
    assert!(matches!(refused, Err(TrainError::NotFinite { step: 2, .. })), "{refused:?}");
    assert!(trainer.state() == before);
    inputs[1234] = 0.0;
    assert!(trainer.step(&inputs, &[0, 1], &settings).unwrap().loss.is_finite());

    assert!(matches!(trainer.step(&inputs[1..], &[0, 1], &settings), Err(TrainError::Sizes { .. })));
    assert!(matches!(trainer.step(&inputs, &[0], &settings), Err(TrainError::Sizes { .. })));
    let refused = trainer.step(&inputs, &[0, 2], &settings);
    assert_eq!(refused, Err(TrainError::Label { index: 1, label: 2, classes: 2 }));
    let blended = Labels { of: &[0, 1], beside: &[1, 3], share: 0.5 };
    let refused = trainer.step_blended(&inputs, blended, &settings);
    assert_eq!(refused, Err(TrainError::Label { index: 1, label: 3, classes: 2 }));
    for share in [-0.1, 1.1, f32::NAN] {
        let refused = trainer.step_blended(&inputs, Labels { share, ..Labels::from(&[0, 1][..]) }, &settings);
        assert!(matches!(refused, Err(TrainError::Setting { name: "the blended share", .. })), "{refused:?}");
    }
    for weights in [vec![1.0], vec![1.0, 0.0], vec![1.0, f32::NAN]] {
        let settings = Settings { class_weights: Some(weights), ..Settings::default() };
        assert!(matches!(trainer.step(&inputs, &[0, 1], &settings), Err(TrainError::ClassWeights { .. })));
    }
    let good = Settings::default;
    for (name, settings) in [
        ("the learning rate", Settings { lr: f32::NAN, ..good() }),
        ("the weight decay", Settings { weight_decay: -1.0, ..good() }),
        ("beta1", Settings { beta1: 1.0, ..good() }),
        ("beta2", Settings { beta2: f32::INFINITY, ..good() }),
        ("epsilon", Settings { epsilon: 0.0, ..good() }),
        ("the label smoothing", Settings { label_smoothing: 1.5, ..good() }),
    ] {
        let before = trainer.state();
        let refused = trainer.step(&inputs, &[0, 1], &settings);
        assert!(matches!(refused, Err(TrainError::Setting { name: named, .. }) if named == name), "{refused:?}");
        assert!(trainer.state() == before);
    }
}

#[test]
fn a_start_from_the_backbone_gives_what_the_backbone_gives() {
    const BATCH: usize = 3;
    let backbone = crate::backbone::ResNet18::embedded().unwrap();
    let network = Network::from_backbone(&backbone, 1, 1.0, 2, 7).unwrap();
    let inputs = noise(BATCH * SIDE * SIDE, 9);
    let mut trainer = trainer(&network, BATCH, Isa::detect(), 2);
    trainer.match_norms(&inputs).unwrap();
    let last = trainer.plan.blocks[7].y;
    trainer.load(&inputs);
    for mode in [Mode::Batch, Mode::Running] {
        trainer.forward(mode);
        for (b, image) in inputs.chunks_exact(SIDE * SIDE).enumerate() {
            let expected: Vec<f32> =
                crate::backbone::reference::forward(&backbone, image, SIDE)[3].iter().map(|&x| x as f32).collect();
            let memory = Memory::new(trainer.arena.as_mut_slice());
            // SAFETY: the map lies in the arena.
            let got = (0..last.side).flat_map(|y| unsafe { last.line(memory, b, y) }).copied();
            let off = off(&got.collect::<Vec<_>>(), &expected);
            // The running variance is the unbiased one.
            let tolerance = if mode == Mode::Batch { 1e-3 } else { 0.2 };
            println!("sample {b}: off by {off:.1e}");
            assert!(off < tolerance, "sample {b} is off by {off:e}");
        }
    }
}

#[test]
fn the_heatmap_begins_with_its_share_of_the_backbones_weights() {
    let backbone = crate::backbone::ResNet18::embedded().unwrap();
    let first = |planes, share| {
        let network = Network::from_backbone(&backbone, planes, share, 2, 7).unwrap();
        network.named_tensors().remove("conv1.weight").unwrap().values
    };
    let grey = first(1, 1.0);
    for share in [0.0, 0.25] {
        for (both, grey) in first(2, share).chunks_exact(2 * 49).zip(grey.chunks_exact(49)) {
            let (heatmap, image) = both.split_at(49);
            assert!(heatmap.iter().zip(grey).all(|(a, b)| *a == share * b), "{share}");
            assert!(image.iter().zip(grey).all(|(a, b)| *a == (1.0 - share) * b), "{share}");
        }
    }
}

#[test]
fn a_few_steps_learn_a_batch_by_heart() {
    const BATCH: usize = 8;
    let inputs = noise(BATCH * SIDE * SIDE, 21);
    let labels: Vec<usize> = (0..BATCH).map(|b| b / 3 % 3).collect();
    let mut trainer = trainer(&Network::with_widths(1, 3, SMALL, 2).unwrap(), BATCH, Isa::detect(), 2);
    let mut step = || trainer.step(&inputs, &labels, &Settings::default()).unwrap();
    let first = step();
    let last = (0..25).map(|_| step()).last().unwrap();
    assert!(last.correct == BATCH && last.loss < first.loss / 10.0, "{first:?}, {last:?}");
}
