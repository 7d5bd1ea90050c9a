//! Stratified folds, and the questions that labels are turned into.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::dataset::Item;
use super::labels::Label;
use crate::sampling;
use crate::verdict::Class;

/// A split of a data set into k test sets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Folds {
    /// The seed of the shuffle.
    pub seed: u64,
    /// For each fold the indices of its test items, rising; together every item once.
    pub test: Vec<Vec<usize>>,
    /// What a reader must know, such as a class with fewer items than folds.
    pub notes: Vec<String>,
}

/// Why a data set cannot be split.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum FoldsError {
    /// Too few or too many folds.
    #[error("cannot split {items} labelled images into {k} folds; choose 2 to {items}")]
    Count {
        /// The folds asked for.
        k: usize,
        /// The items there are.
        items: usize,
    },
    /// An image without a label.
    #[error("cannot split: {id:?} has no label")]
    Unlabelled {
        /// The image.
        id: String,
    },
}

/// Splits into `k` folds so that each holds its share of every (label × type), seeded by `seed`.
///
/// Within a stratum the folds differ by at most one item, and so do the folds in total. A stratum with fewer items
/// than folds is absent from some of them; [`Folds::notes`] says so.
///
/// # Errors
/// If `k` is below 2 or above the number of items, or an item has no label.
pub fn stratified(items: &[Item], k: usize, seed: u64) -> Result<Folds, FoldsError> {
    if k < 2 || k > items.len() {
        return Err(FoldsError::Count { k, items: items.len() });
    }
    let mut strata: BTreeMap<(u64, &str), (Label, Vec<usize>)> = BTreeMap::new();
    for (index, item) in items.iter().enumerate() {
        let label = item.label.ok_or_else(|| FoldsError::Unlabelled { id: item.id.clone() })?;
        let key = (label.sort_key(), item.kind.as_deref().unwrap_or(""));
        strata.entry(key).or_insert_with(|| (label, Vec::new())).1.push(index);
    }
    let mut rng = sampling::generator(seed);
    let mut test = vec![Vec::new(); k];
    let mut notes = Vec::new();
    // Each stratum goes on dealing where the last one stopped, which keeps the totals even.
    let mut next = 0;
    for ((_, kind), (label, mut indices)) in strata {
        if indices.len() < k {
            let kind = if kind.is_empty() { String::new() } else { format!(", type {kind:?}") };
            let count = indices.len();
            notes.push(format!("label {label}{kind}: {count} images for {k} folds, so some folds test none of them"));
        }
        sampling::shuffle(&mut rng, &mut indices);
        for index in indices {
            test[next].push(index);
            next = (next + 1) % k;
        }
    }
    for fold in &mut test {
        fold.sort_unstable();
    }
    Ok(Folds { seed, test, notes })
}

impl Folds {
    /// The number of folds.
    #[must_use]
    pub fn k(&self) -> usize {
        self.test.len()
    }

    /// The indices that fold `fold` trains on: all that it does not test, rising.
    ///
    /// # Panics
    /// If there is no such fold.
    #[must_use]
    pub fn train(&self, fold: usize) -> Vec<usize> {
        assert!(fold < self.k(), "no fold {fold} among {}", self.k());
        let mut train: Vec<usize> =
            (0..self.k()).filter(|&other| other != fold).flat_map(|other| self.test[other].iter().copied()).collect();
        train.sort_unstable();
        train
    }
}

/// A yes-or-no question about a cell: is it defective?
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Binarisation {
    /// Probability: p > 0 against p = 0.
    AnyDoubt,
    /// Probability: p ≥ 2/3 against less.
    Likely,
    /// Probability: p = 1 against p = 0, the others left out.
    Certain,
    /// Class: B or C against A.
    AnyDefect,
    /// Class: C against A or B.
    Usable,
    /// Class: C against A, B left out.
    Clear,
}

impl Binarisation {
    /// All of them, those of probabilities first.
    pub const ALL: [Self; 6] =
        [Self::AnyDoubt, Self::Likely, Self::Certain, Self::AnyDefect, Self::Usable, Self::Clear];

    /// Whether the cell counts as defective; `None` if the question leaves it out.
    #[must_use]
    pub fn target(self, label: &Label) -> Option<bool> {
        match (self, *label) {
            (Self::AnyDoubt, Label::Probability(p)) => Some(p > 0.0),
            // Label files round 2/3 to two digits.
            (Self::Likely, Label::Probability(p)) => Some(p > 2.0 / 3.0 - 0.01),
            (Self::Certain, Label::Probability(p)) => (p == 0.0 || p >= 1.0).then_some(p >= 1.0),
            (Self::AnyDefect, Label::Class(class)) => Some(class != Class::A),
            (Self::Usable, Label::Class(class)) => Some(class == Class::C),
            (Self::Clear, Label::Class(class)) => (class != Class::B).then_some(class == Class::C),
            _ => None,
        }
    }

    /// The questions for which these labels give both answers, but none that asks what another has asked of them (without
    /// class B, what is clear is what is usable).
    #[must_use]
    pub fn applicable<'a>(labels: impl Iterator<Item = &'a Label> + Clone) -> Vec<Self> {
        let answers = |question: Self, wanted: bool| labels.clone().any(|label| question.target(label) == Some(wanted));
        let some_b = labels.clone().any(|label| *label == Label::Class(Class::B));
        let asked = |&question: &Self| {
            answers(question, true) && answers(question, false) && (question != Self::Clear || some_b)
        };
        Self::ALL.into_iter().filter(asked).collect()
    }

    /// A short name, as in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AnyDoubt => "any_doubt",
            Self::Likely => "likely",
            Self::Certain => "certain",
            Self::AnyDefect => "any_defect",
            Self::Usable => "usable",
            Self::Clear => "clear",
        }
    }

    /// The question in a few words.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::AnyDoubt => "Any doubt: p > 0 against p = 0",
            Self::Likely => "Likely defective: p ≥ 2/3 against p ≤ 1/3",
            Self::Certain => "Certain cells only: p = 1 against p = 0",
            Self::AnyDefect => "Any defect: B or C against A",
            Self::Usable => "Unusable: C against A or B",
            Self::Clear => "Clear cells only: C against A",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn items(labels: &[(f32, &str)]) -> Vec<Item> {
        let item = |(index, &(p, kind)): (usize, &(f32, &str))| {
            let mut item = Item::new(format!("{index}.png").into(), format!("{index}.png"));
            (item.label, item.kind) = (Some(Label::Probability(p)), Some(kind.to_string()));
            item
        };
        labels.iter().enumerate().map(item).collect()
    }

    #[test]
    fn folds_hold_their_share_of_every_stratum() {
        let mut labels = Vec::new();
        for (p, kind, n) in [(0.0, "mono", 588), (0.0, "poly", 920), (1.0, "mono", 313), (1.0, "poly", 402)] {
            labels.extend(std::iter::repeat_n((p, kind), n));
        }
        let items = items(&labels);
        let folds = stratified(&items, 5, 42).unwrap();
        assert!(folds.notes.is_empty());
        for (p, kind) in [(0.0, "mono"), (0.0, "poly"), (1.0, "mono"), (1.0, "poly")] {
            let count = |fold: &Vec<usize>| fold.iter().filter(|&&i| labels[i] == (p, kind)).count();
            let counts: Vec<usize> = folds.test.iter().map(count).collect();
            assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{p} {kind} {counts:?}");
        }
        assert_eq!(folds, stratified(&items, 5, 42).unwrap());
        assert_ne!(folds.test, stratified(&items, 5, 43).unwrap().test);
        assert_eq!(folds.train(0).len() + folds.test[0].len(), items.len());
        assert!(folds.train(0).iter().all(|index| !folds.test[0].contains(index)));
    }

    #[test]
    fn small_classes_are_split_and_said() {
        let items = items(&[(0.0, "m"), (0.0, "m"), (0.0, "m"), (0.0, "m"), (1.0, "m")]);
        let folds = stratified(&items, 3, 0).unwrap();
        assert_eq!(folds.notes.len(), 1);
        assert!(folds.notes[0].contains("label 1, type \"m\": 1 images for 3 folds"), "{:?}", folds.notes);
    }

    #[test]
    fn impossible_splits_are_refused() {
        let mut some = items(&[(0.0, "m"), (1.0, "m")]);
        assert_eq!(stratified(&some, 1, 0), Err(FoldsError::Count { k: 1, items: 2 }));
        assert_eq!(stratified(&some, 3, 0), Err(FoldsError::Count { k: 3, items: 2 }));
        some[1].label = None;
        assert_eq!(stratified(&some, 2, 0), Err(FoldsError::Unlabelled { id: "1.png".into() }));
    }

    #[test]
    fn binarisations_answer_as_defined() {
        use Binarisation::*;
        let p = |p: f32, question: Binarisation| question.target(&Label::Probability(p));
        let third = 0.333_333_34;
        let two = 0.666_666_7;
        assert_eq!([0.0, third, two, 1.0].map(|v| p(v, AnyDoubt)), [Some(false), Some(true), Some(true), Some(true)]);
        assert_eq!([0.0, third, two, 1.0].map(|v| p(v, Likely)), [Some(false), Some(false), Some(true), Some(true)]);
        assert_eq!([0.0, third, two, 1.0].map(|v| p(v, Certain)), [Some(false), None, None, Some(true)]);
        let c = |question: Binarisation| [Class::A, Class::B, Class::C].map(|c| question.target(&Label::Class(c)));
        assert_eq!(c(AnyDefect), [Some(false), Some(true), Some(true)]);
        assert_eq!(c(Usable), [Some(false), Some(false), Some(true)]);
        assert_eq!(c(Clear), [Some(false), None, Some(true)]);
        assert_eq!(c(AnyDoubt), [None, None, None]);
        let labels = [Label::Class(Class::A), Label::Class(Class::B)];
        assert_eq!(Binarisation::applicable(labels.iter()), [AnyDefect]);
    }

    proptest! {
        #[test]
        fn every_item_is_tested_once(n in 2usize..60, k in 2usize..8, seed: u64, choices in proptest::collection::vec(0u8..4, 60)) {
            prop_assume!(k <= n);
            let labels: Vec<(f32, &str)> = choices[..n].iter().map(|c| (f32::from(c / 2), ["m", "p"][usize::from(c % 2)])).collect();
            let folds = stratified(&items(&labels), k, seed).unwrap();
            let mut all: Vec<usize> = folds.test.iter().flatten().copied().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..n).collect::<Vec<_>>());
            let sizes: Vec<usize> = folds.test.iter().map(Vec::len).collect();
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
        }
    }
}
