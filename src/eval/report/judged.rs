//! What the paper shows of judged cells, for `eval --report`: examples (Figure 2), the course of training (Figure 6),
//! the confusion matrix in pictures (Figure 7), and a table of variants.
//!
//! The types are plain and the caller fills them; what is empty draws nothing.

use super::{Picture, Pictures};
use crate::eval::result::Figures;

/// A cell shown as an example of its level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The level that it stands for, as a heading: `class A`, `67 %`. Examples of one level form one strip; strips
    /// stand in the order in which their levels first come.
    pub level: String,
    /// Label and type, for the caption.
    pub label: String,
    /// The cell.
    pub id: String,
    /// Picture and overlay.
    pub pictures: Pictures,
}

/// The course of one training. Values that are not finite are left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CourseCurve {
    /// The chart's headline: `fold 1`.
    pub name: String,
    /// Step and accuracy on that step's batch, from 0 to 1, with rising steps.
    pub batch: Vec<(u64, f64)>,
    /// Step, and accuracy and F1 on the validation cells, from 0 to 1, with rising steps.
    pub validation: Vec<(u64, f64, f64)>,
    /// The step whose network was kept.
    pub kept: Option<u64>,
}

/// A confusion matrix in pictures.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// The question, in words.
    pub question: String,
    /// The four quadrants, in any order.
    pub quadrants: [Quadrant; 4],
}

/// The cells of one class that were judged in one way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quadrant {
    /// What they are.
    pub defective: bool,
    /// How they were judged.
    pub rejected: bool,
    /// How many they are.
    pub cells: usize,
    /// How many cells the class has.
    pub of: usize,
    /// Those that are shown, in this order.
    pub tiles: Vec<Tile>,
}

/// A cell in a quadrant.
#[derive(Clone, Debug, PartialEq)]
pub struct Tile {
    /// The cell.
    pub id: String,
    /// Label and type.
    pub label: String,
    /// Of being defective, from 0 to 1. The page shows the probability of the right class.
    pub probability: f32,
    /// The cell with its heatmap.
    pub overlay: Picture,
}

/// One line of the table of variants.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VariantRow {
    /// The variant.
    pub name: String,
    /// A question and the figures on it, for each question that was asked. Accuracy, F1 and AUROC are shown.
    pub figures: Vec<(String, Figures)>,
}
