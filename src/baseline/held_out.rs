//! Which training cells of a fold are fitted to, and which are held out.

use std::collections::BTreeMap;

use super::Cells;
use crate::sampling;

/// Share of the training cells of each label and type that is held out.
pub(super) const SHARE: f64 = 0.2;

/// The cells of a fold by what they are for, each rising.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Split {
    /// Training cells to fit to.
    pub(super) fit: Vec<usize>,
    /// Training cells for the threshold and the choice of the epoch.
    pub(super) held_out: Vec<usize>,
    /// Cells of the fold.
    pub(super) test: Vec<usize>,
}

/// Splits the fold's training cells: at least one of each label and type is held out, if there are two.
pub(super) fn split(cells: Cells<'_>, fold: usize, seed: u64) -> Split {
    // Where good cells have no type, the types are kinds of defect, each too rare to be split.
    let typed = cells.items.iter().all(|item| item.kind.is_some());
    let mut strata: BTreeMap<(Option<u64>, &str), Vec<usize>> = BTreeMap::new();
    for index in cells.folds.train(fold) {
        let item = &cells.items[index];
        let key =
            (item.label.as_ref().map(|label| label.sort_key()), item.kind.as_deref().filter(|_| typed).unwrap_or(""));
        strata.entry(key).or_default().push(index);
    }
    let mut rng = sampling::generator(seed ^ ((fold as u64 + 1) << 32));
    let (mut fit, mut held_out) = (Vec::new(), Vec::new());
    for (_, mut members) in strata {
        sampling::shuffle(&mut rng, &mut members);
        let count = ((members.len() as f64 * SHARE).round() as usize).max(usize::from(members.len() > 1));
        fit.extend(members.split_off(count));
        held_out.extend(members);
    }
    fit.sort_unstable();
    held_out.sort_unstable();
    Split { fit, held_out, test: cells.folds.test[fold].clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::baseline::Images;
    use crate::eval::dataset::{Item, Label};
    use crate::eval::folds::stratified;
    use crate::verdict::Invalid;

    fn items(kinds: bool) -> Vec<Item> {
        let item = |index: usize| {
            let mut item = Item::new(format!("{index}.png").into(), format!("{index}.png"));
            item.label = Some(Label::Probability(f32::from(u8::from(index.is_multiple_of(3)))));
            item.kind = kinds.then(|| ["mono", "poly"][index / 3 % 2].to_string());
            item
        };
        (0..120).map(item).collect()
    }

    #[test]
    fn a_fifth_of_each_label_and_type_is_held_out_and_no_test_cell() {
        let items = items(true);
        let folds = stratified(&items, 4, 1).unwrap();
        let images = Images::from_values(16, vec![Err(Invalid::NotMeasured); 120]);
        let cells = Cells { images: &images, items: &items, folds: &folds };
        for fold in 0..4 {
            let parts = split(cells, fold, 7);
            let mut all = [&parts.fit[..], &parts.held_out, &parts.test].concat();
            all.sort_unstable();
            assert_eq!(all, (0..120).collect::<Vec<_>>());
            assert_eq!(parts.test, folds.test[fold]);
            for kind in ["mono", "poly"] {
                let of = |all: &[usize]| {
                    let defective = |i: &&usize| i.is_multiple_of(3) && items[**i].kind.as_deref() == Some(kind);
                    all.iter().filter(defective).count()
                };
                assert!((2..=4).contains(&of(&parts.held_out)), "{} of {}", of(&parts.held_out), of(&parts.fit));
            }
            assert_eq!(parts, split(cells, fold, 7));
            assert_ne!(parts.held_out, split(cells, fold, 8).held_out);
        }
    }

    #[test]
    fn kinds_of_defects_are_not_split() {
        let mut items = items(false);
        items.iter_mut().step_by(3).enumerate().for_each(|(i, item)| item.kind = Some(format!("kind {i}")));
        let folds = stratified(&items, 4, 1).unwrap();
        let images = Images::from_values(16, vec![Err(Invalid::NotMeasured); 120]);
        let parts = split(Cells { images: &images, items: &items, folds: &folds }, 0, 7);
        // Thirty defective training cells, each of a kind of its own.
        let defective = parts.held_out.iter().filter(|index| index.is_multiple_of(3)).count();
        assert!((5..=7).contains(&defective), "{defective}");
    }
}
