//! From the classifier's probabilities to a class: what it tells apart, and where the line is drawn.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Class, Outcome};

/// Which classes a classifier tells apart, in rising severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Grading {
    /// A, B and C.
    Abc,
    /// A against B and C: any defect rejects.
    AnyDefect,
    /// A and B against C: what is still usable passes.
    Usable,
}

impl Grading {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Abc, Self::AnyDefect, Self::Usable];

    /// How many levels.
    #[must_use]
    pub fn levels(self) -> usize {
        self.names().len()
    }

    /// The classes of each level.
    #[must_use]
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::Abc => &["A", "B", "C"],
            Self::AnyDefect => &["A", "BC"],
            Self::Usable => &["AB", "C"],
        }
    }

    /// The level of a class, from 0.
    #[must_use]
    pub fn level(self, class: Class) -> usize {
        match self {
            Self::Abc => class as usize,
            Self::AnyDefect => usize::from(class != Class::A),
            Self::Usable => usize::from(class == Class::C),
        }
    }
}

impl fmt::Display for Grading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Abc => "a-b-c",
            Self::AnyDefect => "a-bc",
            Self::Usable => "ab-c",
        })
    }
}

impl std::str::FromStr for Grading {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|grading| grading.to_string() == text)
            .ok_or_else(|| format!("`{text}`: one of a-b-c, a-bc, ab-c"))
    }
}

/// What the border between passing and rejecting is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Cost {
    /// A cell is rejected if it is likelier to be of the rejected level than not.
    Even,
    /// At most this share of the cells to be rejected passes.
    Escape(f64),
    /// At most this share of the cells to be passed is rejected.
    Overkill(f64),
}

/// Why an operating point could not be set.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum GradingError {
    /// A share that is none.
    #[error("setting the operating point: {0} is not a share between 0 and 1 (both excluded)")]
    Share(f64),
    /// Too few cells to promise the share.
    #[error(
        "setting the operating point: a share of {share} needs at least {needed} {which} cells among those that the \
         network has not learnt from, there are {there}; label more, or allow a larger share"
    )]
    TooFew {
        /// The share asked for.
        share: f64,
        /// `defective` or `good`.
        which: &'static str,
        /// Cells there are.
        there: usize,
        /// Cells needed.
        needed: usize,
    },
    /// Stored numbers make no sense.
    #[error("reading the operating point: {0}")]
    Broken(&'static str),
}

/// Where the line is drawn, and what that costs on the cells that it was drawn by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperatingPoint {
    /// What is told apart.
    pub grading: Grading,
    /// What the border was chosen for.
    pub cost: Cost,
    /// Probability of the highest level from which a cell is rejected.
    pub reject_from: f32,
    /// Distance of the heatmap's score from which a cell is rejected whatever the classifier says: beyond every cell of
    /// the passing levels that it was trained on, it knows nothing.
    pub novel_from: f32,
    /// Cells to be rejected among those that the border was chosen by.
    pub defective: u32,
    /// How many of them pass.
    pub escapes: u32,
    /// Cells to be passed among them.
    pub good: u32,
    /// How many of them are rejected.
    pub overkills: u32,
}

impl OperatingPoint {
    /// From calibrated probabilities of the highest level for cells that the classifier has not learnt from, and whether
    /// each is of that level.
    ///
    /// For a share s of n cells the border is such that, were one more cell of the same kind drawn, it would fall on the
    /// wrong side with a probability of at most s, as in split conformal prediction: ⌊s(n + 1)⌋ − 1 of the n may.
    ///
    /// # Errors
    /// If a share is out of range, or there are too few cells for it.
    pub fn choose(
        grading: Grading,
        cost: Cost,
        novel_from: f32,
        probability: &[f32],
        defective: &[bool],
    ) -> Result<Self, GradingError> {
        let of = |wanted: bool| -> Vec<f32> {
            let mut all: Vec<f32> =
                probability.iter().zip(defective).filter(|&(_, &d)| d == wanted).map(|(&p, _)| p).collect();
            all.sort_by(f32::total_cmp);
            all
        };
        let (bad, good) = (of(true), of(false));
        // How many may fall on the wrong side.
        let allowed = |share: f64, cells: &[f32], which| {
            if !(share > 0.0 && share < 1.0) {
                return Err(GradingError::Share(share));
            }
            let needed = (1.0 / share).ceil() as usize - 1;
            let rank = (share * (cells.len() as f64 + 1.0) + 1e-9).floor() as usize;
            if rank == 0 {
                return Err(GradingError::TooFew { share, which, there: cells.len(), needed });
            }
            Ok(rank - 1)
        };
        let reject_from = match cost {
            Cost::Even => 0.5,
            // The cells before this one pass, it does not.
            Cost::Escape(share) => bad[allowed(share, &bad, "defective")?],
            // The cells after this one are rejected, it is not.
            Cost::Overkill(share) => {
                let passes = good[good.len() - 1 - allowed(share, &good, "good")?];
                passes.next_up()
            }
        };
        let count = |cells: &[f32], rejected: bool| cells.iter().filter(|&&p| (p >= reject_from) == rejected).count();
        Ok(Self {
            grading,
            cost,
            reject_from,
            novel_from,
            escapes: count(&bad, false) as u32,
            overkills: count(&good, true) as u32,
            defective: bad.len() as u32,
            good: good.len() as u32,
        })
    }

    /// The verdict on a cell: `of_highest` is the probability of the highest level, `above_lowest` that of any level but
    /// the lowest, `distance` the heatmap's score, and `heatmap` what the heatmap alone says, which tells A from B where
    /// the classifier does not.
    #[must_use]
    pub fn decide(&self, of_highest: f32, above_lowest: f32, distance: f32, heatmap: &Outcome) -> Outcome {
        if let Outcome::Invalid(_) = heatmap {
            return heatmap.clone();
        }
        // Written so that whatever is not a number does not pass.
        if !(of_highest < self.reject_from && distance < self.novel_from) {
            return Outcome::Reject;
        }
        match self.grading {
            Grading::Abc if above_lowest < 0.5 => Outcome::Pass(Class::A),
            Grading::Abc => Outcome::Pass(Class::B),
            Grading::AnyDefect => Outcome::Pass(Class::A),
            Grading::Usable if *heatmap == Outcome::Pass(Class::A) => Outcome::Pass(Class::A),
            Grading::Usable => Outcome::Pass(Class::B),
        }
    }

    /// Whether the stored numbers make sense.
    ///
    /// # Errors
    /// What is wrong.
    pub fn validate(&self) -> Result<(), GradingError> {
        if !(self.reject_from > 0.0 && self.reject_from <= 1.0f32.next_up()) {
            return Err(GradingError::Broken("the probability from which a cell is rejected is not between 0 and 1"));
        }
        if self.novel_from.is_nan() || self.novel_from <= 0.0 {
            return Err(GradingError::Broken("the distance from which a cell is rejected is not positive"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Invalid;
    use super::*;

    /// 100 good cells at 0.005 to 0.5, 50 defective ones at 0.31 to 0.8.
    fn cells() -> (Vec<f32>, Vec<bool>) {
        let good = (1..=100).map(|i| (i as f32 * 0.005, false));
        let bad = (1..=50).map(|i| (0.3 + i as f32 * 0.01, true));
        good.chain(bad).unzip()
    }

    #[test]
    fn an_operating_point_keeps_its_share() {
        let (p, bad) = cells();
        let choose = |cost| OperatingPoint::choose(Grading::Abc, cost, 9.0, &p, &bad);
        let even = choose(Cost::Even).unwrap();
        assert_eq!((even.reject_from, even.escapes, even.overkills), (0.5, 19, 1));
        // ⌊0.1·51⌋ − 1 = 4 may pass.
        let escape = choose(Cost::Escape(0.1)).unwrap();
        assert_eq!((escape.escapes, escape.defective, escape.good), (4, 50, 100));
        assert!(escape.overkills > even.overkills);
        // ⌊0.05·101⌋ − 1 = 4 may be rejected.
        let overkill = choose(Cost::Overkill(0.05)).unwrap();
        assert_eq!(overkill.overkills, 4);
        let few = choose(Cost::Escape(0.01)).unwrap_err();
        assert_eq!(few, GradingError::TooFew { share: 0.01, which: "defective", there: 50, needed: 99 });
        assert_eq!(choose(Cost::Overkill(1.5)), Err(GradingError::Share(1.5)));
        for point in [even, escape, overkill] {
            point.validate().unwrap();
        }
    }

    #[test]
    fn nothing_in_doubt_passes() {
        let (p, bad) = cells();
        let point = |grading| OperatingPoint::choose(grading, Cost::Even, 9.0, &p, &bad).unwrap();
        let (a, b) = (Outcome::Pass(Class::A), Outcome::Pass(Class::B));
        let abc = point(Grading::Abc);
        assert_eq!(abc.decide(0.1, 0.2, 3.0, &a), a);
        assert_eq!(abc.decide(0.1, 0.7, 3.0, &a), b);
        assert_eq!(abc.decide(0.5, 0.7, 3.0, &a), Outcome::Reject);
        assert_eq!(abc.decide(0.1, 0.2, 9.0, &a), Outcome::Reject, "farther than anything known");
        for (p, d) in [(f32::NAN, 3.0), (0.1, f32::NAN), (0.1, f32::INFINITY)] {
            assert_eq!(abc.decide(p, 0.2, d, &a), Outcome::Reject);
        }
        let invalid = Outcome::Invalid(Invalid::NotFinite);
        assert_eq!(abc.decide(0.1, 0.2, 3.0, &invalid), invalid);
        assert_eq!(point(Grading::AnyDefect).decide(0.1, 0.1, 3.0, &b), a);
        let usable = point(Grading::Usable);
        assert_eq!((usable.decide(0.1, 0.1, 3.0, &a), usable.decide(0.1, 0.1, 3.0, &Outcome::Reject)), (a, b));
    }

    #[test]
    fn gradings_have_names_and_levels() {
        for grading in Grading::ALL {
            assert_eq!(grading.to_string().parse::<Grading>(), Ok(grading));
            assert_eq!((grading.level(Class::A), grading.level(Class::C)), (0, grading.levels() - 1));
        }
        assert!("abc".parse::<Grading>().is_err());
        let mut broken = OperatingPoint::choose(Grading::Usable, Cost::Even, 9.0, &[], &[]).unwrap();
        broken.novel_from = f32::NAN;
        assert!(broken.validate().is_err());
        broken = OperatingPoint { novel_from: 1.0, reject_from: f32::NAN, ..broken };
        assert!(broken.validate().is_err());
    }
}
