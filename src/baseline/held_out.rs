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
    let mut strata: BTreeMap<(Option<u64>, &str), Vec<usize>> = BTreeMap::new();
    for index in cells.folds.train(fold) {
        let item = &cells.items[index];
        let key = (item.label.as_ref().map(|label| label.sort_key()), item.kind.as_deref().unwrap_or(""));
        strata.entry(key).or_default().push(index);
    }
    let mut rng = sampling::generator(seed ^ (fold as u64 + 1) << 32);
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
