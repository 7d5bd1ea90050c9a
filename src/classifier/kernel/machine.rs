//! The machine as a station runs it.

use half::f16;
use serde::{Deserialize, Serialize};

use super::{
    HEAT, KERNEL_RANGE, KIND_DISTANCE, KernelError, MAX_KINDS, MAX_ROWS, MAX_TARGETS, POOLED, Uses, WIDTH, exp_negative,
};
use crate::simd::{Isa, Kernel, Simd};

/// Support rows are padded to a multiple of this: two vectors of the widest instruction set.
const PAD: usize = 32;

/// Support rows that are compared at a time: as many streams of memory, and a share of the row's loads.
const TOGETHER: usize = 4;

/// What a machine is, beside its numbers: for the header of a model file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// Which columns count.
    pub uses: Uses,
    /// The kernel's γ.
    pub gamma: f32,
    /// The heatmap's weight w.
    pub heat_weight: f32,
    /// Support rows.
    pub rows: u32,
    /// Kinds of cells that it tells apart.
    pub kinds: u32,
    /// Numbers that it gives of a cell.
    pub targets: u32,
}

impl Description {
    /// Whether the numbers are in range.
    ///
    /// # Errors
    /// [`KernelError::Parts`] if one is not.
    pub fn validate(&self) -> Result<(), KernelError> {
        let within = |n: u32, most: usize| n >= 1 && n as usize <= most;
        if !within(self.rows, MAX_ROWS) || !within(self.kinds, MAX_KINDS) || !within(self.targets, MAX_TARGETS) {
            return Err(KernelError::Parts("its rows, kinds or targets are out of range"));
        }
        if !KERNEL_RANGE.contains(&self.gamma) || !KERNEL_RANGE.contains(&self.heat_weight) {
            return Err(KernelError::Parts("gamma or the heatmap's weight is out of range"));
        }
        Ok(())
    }

    /// How many floats such a machine has: see [`KernelMachine::floats`].
    #[must_use]
    pub fn float_count(&self) -> usize {
        self.alphas_at() + self.rows as usize * self.targets as usize
    }

    /// How many halves: see [`KernelMachine::support`].
    #[must_use]
    pub fn half_count(&self) -> usize {
        self.rows as usize * self.stride()
    }

    /// Columns of a support row: those of a row that count, one for each kind, zeros.
    fn stride(&self) -> usize {
        (self.columns().len() + self.kinds as usize).next_multiple_of(PAD)
    }

    /// The columns of a row that count.
    fn columns(&self) -> std::ops::Range<usize> {
        columns(self.uses)
    }

    fn bias_at(&self) -> usize {
        2 * (POOLED + self.kinds as usize * HEAT)
    }

    fn alphas_at(&self) -> usize {
        self.bias_at() + self.targets as usize
    }

    /// What a column that says the kind holds, so that two kinds are [`KIND_DISTANCE`] apart.
    fn kind_mark(&self) -> f32 {
        f16::from_f32((self.gamma * KIND_DISTANCE / 2.0).sqrt()).to_f32()
    }
}

fn columns(uses: Uses) -> std::ops::Range<usize> {
    match uses {
        Uses::Pooled => 0..POOLED,
        Uses::Heat => POOLED..WIDTH,
        Uses::Both => 0..WIDTH,
    }
}

/// Mean and scale of every column, those of the heatmap for each kind.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Standard {
    /// Mean and scale of the pooled columns.
    pub pooled: [Vec<f32>; 2],
    /// Mean and scale of the heatmap's columns, for each kind.
    pub heat: Vec<[Vec<f32>; 2]>,
}

/// A fitted kernel machine: support rows in half precision, scaled so that the kernel of two of them is e to the minus
/// their squared distance.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelMachine {
    description: Description,
    floats: Vec<f32>,
    support: Vec<f16>,
}

impl KernelMachine {
    /// Puts a machine together from standardised columns, the rows (n × [`WIDTH`]) and what the fit found.
    pub(super) fn build(
        description: Description,
        standard: &Standard,
        (values, kinds): (&[f32], &[usize]),
        bias: &[f32],
        alphas: &[f32],
    ) -> Result<Self, KernelError> {
        description.validate()?;
        let gamma = description.gamma;
        let weight = if description.uses == Uses::Both { description.heat_weight } else { 1.0 };
        let factor = [(gamma / POOLED as f32).sqrt(), (gamma * weight / HEAT as f32).sqrt()];
        let mut floats = standard.pooled[0].clone();
        floats.extend(standard.pooled[1].iter().map(|s| s * factor[0]));
        for [mean, scale] in &standard.heat {
            floats.extend(mean);
            floats.extend(scale.iter().map(|s| s * factor[1]));
        }
        floats.extend(bias);
        floats.extend(alphas);
        let mut machine = Self { description, floats, support: vec![] };
        let mut row = vec![0.0; machine.description.stride()];
        for (values, &kind) in values.chunks_exact(WIDTH).zip(kinds) {
            machine.place(values, kind, &mut row);
            machine.support.extend(row.iter().map(|&x| f16::from_f32(x)));
        }
        machine.validate()?;
        Ok(machine)
    }

    /// A machine from the parts that [`description`](Self::description), [`floats`](Self::floats) and
    /// [`support`](Self::support) give, as a model file holds them.
    ///
    /// # Errors
    /// [`KernelError::Parts`] if lengths do not agree, a number is not finite, or a scale is negative.
    pub fn from_parts(description: Description, floats: Vec<f32>, support: Vec<f16>) -> Result<Self, KernelError> {
        let machine = Self { description, floats, support };
        machine.validate()?;
        Ok(machine)
    }

    /// Whether the parts make a machine.
    ///
    /// # Errors
    /// As [`from_parts`](Self::from_parts).
    pub fn validate(&self) -> Result<(), KernelError> {
        self.description.validate()?;
        if self.floats.len() != self.description.float_count() || self.support.len() != self.description.half_count() {
            return Err(KernelError::Parts("its lengths do not agree"));
        }
        if !self.floats.iter().all(|x| x.is_finite()) || !self.support.iter().all(|x| x.is_finite()) {
            return Err(KernelError::Parts("a number is not finite"));
        }
        let scales = |at: usize, n: usize| self.floats[at + n..at + 2 * n].iter();
        let heat = (0..self.description.kinds as usize).flat_map(|kind| scales(2 * (POOLED + kind * HEAT), HEAT));
        // A column that did not vary has the scale 0: it says nothing.
        if scales(0, POOLED).chain(heat).any(|&s| s < 0.0) {
            return Err(KernelError::Parts("a scale is negative"));
        }
        Ok(())
    }

    /// What it is.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Its single-precision numbers: means and scales of the pooled columns, for each kind means and scales of the
    /// heatmap's columns, the bias of each target, and α (rows × targets).
    #[must_use]
    pub fn floats(&self) -> &[f32] {
        &self.floats
    }

    /// Its support rows, scaled: of each the columns that count, one for each kind, and zeros.
    #[must_use]
    pub fn support(&self) -> &[f16] {
        &self.support
    }

    /// Numbers that it gives of a cell.
    #[must_use]
    pub fn targets(&self) -> usize {
        self.description.targets as usize
    }

    /// Support rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.description.rows as usize
    }

    /// Scales a row to where the support rows lie.
    fn place(&self, row: &[f32], kind: usize, out: &mut [f32]) {
        let columns = self.description.columns();
        let mut at = 0;
        for (group, n) in [(0, POOLED), (2 * (POOLED + kind * HEAT), HEAT)] {
            let from = if group == 0 { 0 } else { POOLED };
            if columns.contains(&from) {
                let (mean, scale) = (&self.floats[group..][..n], &self.floats[group + n..][..n]);
                for (out, ((x, mean), scale)) in out[at..].iter_mut().zip(row[from..].iter().zip(mean).zip(scale)) {
                    *out = (x - mean) * scale;
                }
                at += n;
            }
        }
        out[at..].fill(0.0);
        out[at + kind] = self.description.kind_mark();
    }

    /// Writes the score of each target for a row: the bias and Σ α·K over the support rows. Reads the support rows once;
    /// allocates nothing. Whatever is not finite in the columns that count, or a kind that the machine does not know,
    /// gives scores that are NaN.
    ///
    /// # Panics
    /// If `row` is not [`WIDTH`] long, `out` has not one place for each target, or the scratch is of another machine.
    pub fn scores(&self, row: &[f32], kind: usize, scratch: &mut Scratch, out: &mut [f32]) {
        let stride = self.description.stride();
        assert_eq!((row.len(), out.len()), (WIDTH, self.targets()), "the row, and a place for each target");
        assert_eq!((scratch.row.len(), scratch.kernel.len()), (stride, self.rows()), "the scratch is of this machine");
        if kind >= self.description.kinds as usize {
            return out.fill(f32::NAN);
        }
        self.place(row, kind, &mut scratch.row);
        scratch.isa.run(Compare { support: &self.support, row: &scratch.row, kernel: &mut scratch.kernel });
        let bias = &self.floats[self.description.bias_at()..self.description.alphas_at()];
        let alphas = &self.floats[self.description.alphas_at()..];
        for (target, (out, &bias)) in out.iter_mut().zip(bias).enumerate() {
            let alphas = alphas[target..].iter().step_by(self.targets());
            let sum: f64 = scratch.kernel.iter().zip(alphas).map(|(&k, &a)| f64::from(k) * f64::from(a)).sum();
            *out = (f64::from(bias) + sum) as f32;
        }
    }
}

/// Room for one [`KernelMachine::scores`] at a time.
#[derive(Clone, Debug)]
pub struct Scratch {
    isa: Isa,
    row: Vec<f32>,
    kernel: Vec<f32>,
}

impl Scratch {
    /// For one machine, with the CPU's own instruction set ([`Isa::detect`]).
    #[must_use]
    pub fn new(machine: &KernelMachine) -> Self {
        Self::with_isa(machine, Isa::detect())
    }

    /// For one machine and an instruction set.
    ///
    /// # Panics
    /// If this CPU does not have `isa`.
    #[must_use]
    pub fn with_isa(machine: &KernelMachine, isa: Isa) -> Self {
        assert!(isa.is_available(), "this CPU has no {isa}");
        Self { isa, row: vec![0.0; machine.description.stride()], kernel: vec![0.0; machine.rows()] }
    }
}

/// The kernel of one row with all support rows.
struct Compare<'a> {
    support: &'a [f16],
    row: &'a [f32],
    kernel: &'a mut [f32],
}

impl Kernel for Compare<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let stride = self.row.len();
        let whole = self.kernel.len() / TOGETHER * TOGETHER;
        let (together, rest) = self.kernel.split_at_mut(whole);
        let (first, last) = self.support.split_at(whole * stride);
        // SAFETY: the caller has checked the CPU; every support row has as many columns as the row.
        unsafe {
            for (support, out) in first.chunks_exact(TOGETHER * stride).zip(together.chunks_exact_mut(TOGETHER)) {
                out.copy_from_slice(&distances::<S, TOGETHER>(support, self.row));
            }
            for (support, out) in last.chunks_exact(stride).zip(rest.iter_mut()) {
                [*out] = distances::<S, 1>(support, self.row);
            }
        }
        self.kernel.iter_mut().for_each(|d| *d = exp_negative(*d));
    }
}

/// Squared distances of `row` to R support rows.
///
/// # Safety
/// The CPU must have `S`; `support` holds R rows of `row.len()` halves, a multiple of [`PAD`].
#[inline(always)]
unsafe fn distances<S: Simd, const R: usize>(support: &[f16], row: &[f32]) -> [f32; R] {
    let stride = row.len();
    debug_assert!(support.len() == R * stride && stride.is_multiple_of(PAD));
    // SAFETY: as the caller promised: two vectors divide PAD.
    unsafe {
        let mut sums = [[S::splat(0.0); 2]; R];
        for at in (0..stride).step_by(2 * S::LANES) {
            for half in 0..2 {
                let at = at + half * S::LANES;
                let x = S::load(row.as_ptr().add(at));
                for r in 0..R {
                    let d = S::sub(S::load_f16(support.as_ptr().add(r * stride + at)), x);
                    sums[r][half] = S::fma(d, d, sums[r][half]);
                }
            }
        }
        sums.map(|[a, b]| S::sum(S::add(a, b)))
    }
}
