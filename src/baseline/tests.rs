use super::*;
use crate::eval::folds::stratified;
use crate::eval::metrics::auroc;
use crate::verdict::Class;

const SIDE: usize = 32;

/// Cells that are striped, class C with a dark spot; one in fifty has no image.
fn data(count: usize) -> (Images, Vec<Item>) {
    let mut rng = crate::sampling::generator(4);
    let (mut images, mut items) = (Vec::new(), Vec::new());
    for index in 0..count {
        let class = [Class::A, Class::A, Class::B, Class::C][index % 4];
        let mut draw = |n| crate::sampling::below(&mut rng, n);
        let (light, x, y) = (draw(100) as f32 / 500.0, 4 + draw(20), 4 + draw(20));
        let mut image: Vec<f32> =
            (0..SIDE * SIDE).map(|i| light + 0.5 * f32::from(u8::from(i % 8 < 2)) + draw(100) as f32 / 500.0).collect();
        let depth = match class {
            Class::A => 0.0,
            Class::B => 0.8,
            Class::C => 2.0,
        };
        (0..36).for_each(|i| image[(y + i / 6) * SIDE + x + i % 6] -= depth);
        images.push(if index % 50 == 13 { Err(Invalid::NotFinite) } else { Ok(image) });
        let mut item = Item::new(format!("{index}.png").into(), format!("{index}.png"));
        item.label = Some(Label::Class(class));
        items.push(item);
    }
    (Images::from_values(SIDE, images), items)
}

fn quiet(_: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// The area under the ROC curve of all test cells, C against the rest; asserts what every evaluation must keep.
fn area(system: System, [count, k]: [usize; 2], epochs: u32, threads: usize) -> (f64, Evaluation) {
    let question = Binarisation::Usable;
    let (images, items) = data(count);
    let folds = stratified(&items, k, 1).unwrap();
    let cells = Cells { images: &images, items: &items, folds: &folds };
    let settings = Settings { epochs, batch: 8, seed: 2 };
    let evaluation = evaluate(system, cells, &settings, &Arc::new(Workers::new(threads)), &quiet).unwrap();
    let (mut scores, mut targets) = (Vec::new(), Vec::new());
    for (number, fold) in evaluation.folds.iter().enumerate() {
        let indices = |answers: &[(usize, Result<Answer, Invalid>)]| answers.iter().map(|a| a.0).collect::<Vec<_>>();
        assert_eq!(indices(&fold.test), folds.test[number]);
        assert!(fold.held_out.iter().all(|(index, _)| folds.train(number).contains(index)));
        for (index, answer) in &fold.test {
            assert_eq!(answer.is_err(), index % 50 == 13, "{index}");
            let score = evaluation.score(answer, question);
            assert_eq!(score.is_nan(), answer.is_err());
            scores.push(score);
            targets.push(question.target(items[*index].label.as_ref().unwrap()).unwrap());
        }
    }
    (auroc(&scores, &targets).unwrap(), evaluation)
}

#[test]
fn reconstructions_find_spots() {
    for (system, epochs) in [(System::Svd, 1), (System::KMeans, 1), (System::AutoencoderAmplitude, 8)] {
        let (area, evaluation) = area(system, [120, 3], epochs, 2);
        assert!(area > 0.8, "{}: {area}", system.name());
        // Half of the 80 training cells are good, a fifth of them is held out, and one or two have no image.
        assert!(evaluation.folds.iter().all(|fold| (30..=32).contains(&fold.fitted)), "{}", system.name());
    }
    let (area, _) = area(System::AutoencoderOtsu, [120, 3], 8, 2);
    assert!(area > 0.8, "otsu: {area}");
}

#[test]
fn a_supervised_network_tells_levels_and_threads_change_nothing() {
    let (_, evaluation) = area(System::ResNet50, [48, 2], 1, 1);
    let (_, again) = area(System::ResNet50, [48, 2], 1, 2);
    let told = |evaluation: &Evaluation| evaluation.folds.iter().map(|fold| fold.test.clone()).collect::<Vec<_>>();
    assert_eq!(told(&evaluation), told(&again));
    assert_eq!(evaluation.levels, [Class::A, Class::B, Class::C].map(Label::Class));
    assert!(evaluation.folds.iter().all(|fold| fold.best_epoch.is_some()));
    let answer = Ok(Answer::Levels(vec![0.5, 0.3, 0.2]));
    assert!((evaluation.score(&answer, Binarisation::AnyDefect) - 0.5).abs() < 1e-6);
    assert!((evaluation.score(&answer, Binarisation::Usable) - 0.2).abs() < 1e-6);
}

#[test]
fn a_question_that_leaves_levels_out_asks_the_others_only() {
    let levels = [0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0].map(Label::Probability).to_vec();
    let evaluation = Evaluation { levels, folds: Vec::new() };
    let answer = Ok(Answer::Levels(vec![0.2, 0.3, 0.4, 0.1]));
    for (question, score) in
        [(Binarisation::AnyDoubt, 0.8), (Binarisation::Likely, 0.5), (Binarisation::Certain, 0.1 / 0.3)]
    {
        assert!((evaluation.score(&answer, question) - score).abs() < 1e-6, "{question:?}");
    }
    assert!(evaluation.score(&Err(Invalid::NotFinite), Binarisation::Likely).is_nan());
}

#[test]
fn what_cannot_be_evaluated_is_said() {
    let (images, mut items) = data(24);
    let folds = stratified(&items, 3, 1).unwrap();
    let settings = Settings { epochs: 1, batch: 8, seed: 2 };
    let workers = Arc::new(Workers::new(1));
    let run = |system, items: &[Item], tick: &Tick<'_>| {
        let cells = Cells { images: &images, items, folds: &folds };
        evaluate(system, cells, &settings, &workers, tick).unwrap_err()
    };
    let stop = |_| ControlFlow::Break(());
    for system in [System::Svd, System::AutoencoderOtsu, System::Vgg11] {
        assert!(matches!(run(system, &items, &stop), BaselineError::Interrupted));
    }
    items.iter_mut().enumerate().for_each(|(i, item)| item.label = Some(Label::Probability(0.01 + i as f32 / 50.0)));
    assert!(matches!(run(System::ResNet50, &items, &quiet), BaselineError::Levels { levels: 24 }));
    let error = run(System::KMeans, &items, &quiet).to_string();
    assert!(error.contains("k-means") && error.contains("fold 1: 0 good cells"), "{error}");
    let error = Images::read(&[], 48, &crate::preprocess::PreprocessConfig::default(), &workers, &quiet).unwrap_err();
    assert!(error.to_string().contains("48"), "{error}");
}
