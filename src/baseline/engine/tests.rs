use super::*;
use crate::baseline::networks;

/// Deterministic numbers in [−1, 1].
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = sampling::generator(seed);
    (0..count).map(|_| (f64::from(rng.next_u32()) / f64::from(u32::MAX) * 2.0 - 1.0) as f32).collect()
}

fn trainer(graph: Graph, side: usize, batch: usize, threads: usize) -> Trainer {
    Trainer::new(graph, side, batch, 5, Arc::new(Workers::new(threads))).unwrap()
}

/// Compares the gradient of each layer's parameters with finite differences along itself: the loss must change by the
/// gradient's length.
fn check(mut trainer: Trainer, classes: Option<usize>) {
    let side = trainer.shapes[0].side;
    let images = numbers(side * side * trainer.batch, 1);
    let labels: Vec<usize> = (0..trainer.batch).map(|i| i % classes.unwrap_or(1)).collect();
    let targets = numbers(trainer.outcome().len(), 2);
    let loss = |trainer: &mut Trainer| {
        trainer.forward(&images, true);
        if classes.is_some() { trainer.class_deltas(&labels) } else { trainer.image_deltas(&targets) }
    };
    loss(&mut trainer);
    trainer.backward();
    let (gradients, parameters) = (trainer.gradients.clone(), trainer.parameters.clone());
    let mut checked = 0;
    for (index, place) in trainer.places.clone().into_iter().enumerate() {
        for (start, end) in [place.weights, place.others] {
            let gradient = &gradients[start..end];
            let length = gradient.iter().map(|g| f64::from(g * g)).sum::<f64>().sqrt();
            if length < 1e-3 {
                continue;
            }
            let scale = parameters[start..end].iter().map(|p| f64::from(p * p)).sum::<f64>().sqrt();
            let step = (2e-3 * scale).max(1e-3);
            let mut moved = |sign: f64| {
                for (at, g) in (start..end).zip(gradient) {
                    trainer.parameters[at] = parameters[at] + (sign * step * f64::from(*g) / length) as f32;
                }
                let value = f64::from(loss(&mut trainer));
                trainer.parameters[start..end].copy_from_slice(&parameters[start..end]);
                value
            };
            let found = (moved(1.0) - moved(-1.0)) / (2.0 * step);
            let op = trainer.graph.layers()[index].op;
            assert!((found - length).abs() < 0.03 * length + 1e-3, "layer {index}, {op:?}: {found} against {length}");
            checked += 1;
        }
    }
    assert!(checked > 1, "nothing to check");
}

fn conv(outputs: usize, kernel: usize, stride: usize, groups: usize, bias: bool) -> Op {
    Op::Conv { outputs, kernel, stride, padding: kernel / 2, groups, bias }
}

#[test]
fn gradients_of_convolutions_norms_and_sums() {
    let mut graph = Graph::new(1);
    graph.then(conv(8, 7, 2, 1, false));
    graph.then(Op::Norm);
    let start = graph.relu();
    graph.then(conv(8, 3, 1, 4, true));
    graph.relu();
    graph.then(conv(12, 1, 1, 1, false));
    let inside = graph.then(Op::Norm);
    graph.after(start, conv(12, 1, 1, 1, false));
    let other = graph.then(Op::Norm);
    graph.after(inside, Op::Add { other });
    graph.relu();
    graph.then(Op::MeanPool { side: 1 });
    graph.then(Op::Linear { outputs: 3 });
    check(trainer(graph, 12, 5, 2), Some(3));
}

#[test]
fn gradients_of_strides_groups_and_odd_sides() {
    let mut graph = Graph::new(1);
    graph.then(conv(6, 5, 1, 1, true));
    graph.then(conv(6, 3, 2, 3, false));
    graph.then(Op::Conv { outputs: 4, kernel: 1, stride: 2, padding: 0, groups: 2, bias: false });
    graph.then(Op::Linear { outputs: 2 });
    check(trainer(graph, 13, 3, 2), Some(2));
}

#[test]
fn gradients_of_pools_and_dropout() {
    let mut graph = Graph::new(1);
    graph.then(conv(4, 3, 1, 1, true));
    graph.then(Op::MaxPool { kernel: 3, stride: 2, padding: 1 });
    graph.then(conv(4, 3, 1, 1, true));
    graph.then(Op::MeanPool { side: 7 });
    graph.then(Op::Linear { outputs: 6 });
    graph.then(Op::Dropout);
    graph.then(Op::Linear { outputs: 2 });
    let mut trainer = trainer(graph, 10, 4, 2);
    // Their start is too small for differences to show.
    trainer.parameters.iter_mut().for_each(|value| *value *= 3.0);
    check(trainer, Some(2));
}

#[test]
fn gradients_of_an_autoencoder() {
    let mut graph = Graph::new(1);
    graph.then(conv(6, 3, 2, 1, false));
    graph.then(Op::Norm);
    graph.relu();
    graph.then(Op::Upsample);
    graph.then(conv(1, 3, 1, 1, true));
    check(trainer(graph, 8, 4, 2), None);
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let outcome = |threads| {
        let mut trainer = trainer(networks::resnet50(1, 4), 32, 4, threads);
        let images = numbers(32 * 32 * 4, 3);
        for _ in 0..2 {
            trainer.learn_classes(&images, &[0, 1, 2, 3], &optimiser::Settings::default()).unwrap();
        }
        (trainer.run(&images).to_vec(), trainer.snapshot())
    };
    let (one, three) = (outcome(1), outcome(3));
    assert!(one.0.iter().all(|value| value.is_finite()));
    assert!(one == three, "threads change the outcome");
}

#[test]
fn an_autoencoder_learns_and_comes_back_to_a_snapshot() {
    let mut trainer = trainer(networks::autoencoder(), 32, 8, 2);
    let images: Vec<f32> = (0..8 * 32 * 32).map(|i| ((i % 32) as f32 * 0.3 + (i / 1024) as f32).sin()).collect();
    let settings = optimiser::Settings { lr: 3e-3, ..optimiser::Settings::default() };
    let losses: Vec<f32> = (0..40).map(|_| trainer.learn_images(&images, &images, &settings).unwrap()).collect();
    assert!(losses[39] < 0.3 * losses[0], "{losses:?}");
    let (snapshot, before) = (trainer.snapshot(), trainer.run(&images).to_vec());
    trainer.learn_images(&images, &images, &settings).unwrap();
    assert_ne!(trainer.run(&images), before);
    trainer.restore(&snapshot);
    assert_eq!(trainer.run(&images), before);
}

#[test]
fn a_loss_that_is_no_number_stops_at_its_step() {
    let mut trainer = trainer(networks::autoencoder(), 16, 2, 1);
    let settings = optimiser::Settings::default();
    let images = numbers(2 * 256, 1);
    trainer.learn_images(&images, &images, &settings).unwrap();
    let kept = trainer.parameters.clone();
    let error = trainer.learn_images(&images, &vec![f32::NAN; 512], &settings).unwrap_err();
    assert!(matches!(error, TrainError::NotFinite { step: 2, .. }), "{error}");
    assert_eq!(kept, trainer.parameters);
}

#[test]
fn a_small_network_learns_classes() {
    let mut graph = Graph::new(1);
    graph.then(conv(8, 3, 2, 1, false));
    graph.then(Op::Norm);
    graph.relu();
    graph.then(Op::MeanPool { side: 1 });
    graph.then(Op::Linear { outputs: 2 });
    let mut trainer = trainer(graph, 16, 16, 2);
    // Stripes across or along.
    let images: Vec<f32> = (0..16 * 256)
        .map(|i| if (if i / 256 % 2 == 0 { i } else { i / 16 }) / 2 % 2 == 0 { 1.0 } else { -1.0 })
        .collect();
    let labels: Vec<usize> = (0..16).map(|i| i % 2).collect();
    let settings = optimiser::Settings { lr: 1e-2, ..optimiser::Settings::default() };
    let losses: Vec<f32> = (0..60).map(|_| trainer.learn_classes(&images, &labels, &settings).unwrap()).collect();
    assert!(losses[59] < 0.2 && losses[0] > 0.5, "{losses:?}");
    let logits = trainer.run(&images);
    assert!((0..16).all(|image| (logits[16 + image] > logits[image]) == (labels[image] == 1)), "{logits:?}");
}
