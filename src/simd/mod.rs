//! One vector type, five instruction sets, chosen at run time.
//!
//! A kernel is written once over [`Simd`] and started by [`Isa::run`], which enters a function compiled for the
//! instruction set in question. Everything that a kernel calls in its inner loops must be `#[inline(always)]`, so that
//! it is compiled inside that function; what is not inlined loses the instruction set (and is slow, not wrong).

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_fp16;
pub mod roofs;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::fmt;
use std::str::FromStr;

use half::f16;

#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
#[cfg(target_arch = "aarch64")]
pub use neon_fp16::NeonFp16;
pub use scalar::Scalar;
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

/// A vector of f32 lanes and what can be done with it.
///
/// # Safety
/// The methods are `unsafe` for two reasons: the CPU must have the instruction set (which [`Isa::run`] has checked),
/// and pointers must be valid for as many values as the method says. No method asks for alignment.
#[allow(clippy::missing_safety_doc)]
pub trait Simd: Copy + 'static {
    /// f32 values in a vector.
    const LANES: usize;
    /// Vector registers that the instruction set has.
    const REGISTERS: usize;
    /// The vector.
    type V: Copy;

    /// All lanes equal to `x`.
    unsafe fn splat(x: f32) -> Self::V;
    /// Reads `LANES` floats.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Reads `LANES` halves and widens them.
    unsafe fn load_f16(p: *const f16) -> Self::V;
    /// Reads `LANES` 16-bit integers as floats.
    unsafe fn load_i16(p: *const i16) -> Self::V;
    /// Writes `LANES` floats.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// a + b.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// a − b.
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// a · b.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// a · b + c, rounded once; by the scalar path twice in rare cases, which changes the last bit.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger of each pair; where one is not a number, `b`.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// `v` with the lanes before `lane` set to zero (`lane` ≤ `LANES`).
    unsafe fn keep_from(v: Self::V, lane: usize) -> Self::V;
    /// The sum of all lanes.
    unsafe fn sum(v: Self::V) -> f32;

    /// Reads `LANES` rows of `LANES` floats that start `from_step` floats apart, and writes them as columns: rows that start
    /// `to_step` floats apart.
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_step: usize, to: *mut f32, to_step: usize) {
        for row in 0..Self::LANES {
            for column in 0..Self::LANES {
                // SAFETY: as the caller promised.
                unsafe { *to.add(column * to_step + row) = *from.add(row * from_step + column) };
            }
        }
    }

    /// Asks for the cache line at `p`, which may be any address. Does nothing where there is no such instruction.
    #[inline(always)]
    unsafe fn prefetch<T>(p: *const T) {
        let _ = p;
    }

    /// The same for a line that is needed later: into the second cache level.
    #[inline(always)]
    unsafe fn prefetch_far<T>(p: *const T) {
        let _ = p;
    }

    /// Whether products with packed halves are made in halves, by [`Simd::multiply_halves`].
    const HALVES: bool = false;

    /// `sums[m][n] += Σ_segments Σ_k a[m][segment + k] · b[…][n]`, where `a` is rounded to halves and runs of a few terms
    /// are added up in halves before they are widened. A sum that leaves the range of halves on its way becomes NaN.
    /// Only where [`Simd::HALVES`] says so.
    ///
    /// `length` is a multiple of 8 and N even; `a[m] + segment` is readable for `length` floats, and `b` holds
    /// `segments · length` rows of N vectors, one half for each lane.
    #[inline(always)]
    unsafe fn multiply_halves<const M: usize, const N: usize>(
        sums: &mut [[Self::V; N]; M],
        a: &[*const f32; M],
        segments: &[usize],
        length: usize,
        b: *const f16,
    ) {
        let _ = (sums, a, segments, length, b);
        unreachable!("this instruction set does not multiply halves");
    }

    /// max(v, 0) that lets a NaN through: a broken number must reach the verdict, not turn into a clean zero.
    #[inline(always)]
    unsafe fn relu(v: Self::V) -> Self::V {
        // SAFETY: as the caller promised.
        unsafe { Self::max(Self::splat(0.0), v) }
    }
}

/// Work that is written over [`Simd`]. Implementations must mark `run` `#[inline(always)]`.
pub trait Kernel {
    /// What it gives back.
    type Output;

    /// Does the work.
    ///
    /// # Safety
    /// The CPU must have the instruction set `S`; [`Isa::run`] is the way to make sure.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// An instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust, one lane: the reference that the others are held to.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C: 8 lanes.
    Avx2,
    /// x86-64 with AVX-512 F and VL: 16 lanes.
    Avx512,
    /// aarch64: 4 lanes.
    Neon,
    /// aarch64 with arithmetic in half precision (`fphp` and `asimdhp`: Cortex-A78AE and most since 2018): as
    /// [`Isa::Neon`], but the network's convolutions multiply halves, 8 at a time. Its maps are off by less than 1 % of
    /// their largest value; the projection and the distance stay in f32.
    NeonFp16,
}

impl Isa {
    const ALL: [Self; 5] = [Self::Avx512, Self::Avx2, Self::NeonFp16, Self::Neon, Self::Scalar];

    /// The widest instruction set of this CPU that computes in f32, or the one that the environment variable
    /// `CELLGATE_ISA` names (`avx512`, `avx2`, `neon-fp16`, `neon`, `scalar`) if the CPU has it; [`Isa::wanted`] tells
    /// when it hasn't. [`Isa::NeonFp16`] must be asked for: it moves the distances by half a percent against the
    /// statistics of a fit that was made elsewhere, and what the fit saw and the station computes should agree.
    #[must_use]
    pub fn detect() -> Self {
        let wanted = Self::wanted().ok().flatten();
        let exact = || Self::available().find(|isa| !isa.multiplies_halves());
        wanted.or_else(exact).unwrap_or(Self::Scalar)
    }

    /// The instruction set that the environment variable `CELLGATE_ISA` names; none if it isn't set, or empty.
    ///
    /// # Errors
    /// If it names none, or one that this CPU does not have.
    pub fn wanted() -> Result<Option<Self>, String> {
        match std::env::var_os("CELLGATE_ISA") {
            None => Ok(None),
            Some(name) if name.is_empty() => Ok(None),
            Some(name) => Self::named(&name.to_string_lossy()).map(Some),
        }
    }

    fn named(name: &str) -> Result<Self, String> {
        let isa: Self = name.parse()?;
        if isa.is_available() {
            return Ok(isa);
        }
        let there: Vec<String> = Self::available().map(|isa| isa.to_string()).collect();
        Err(format!("this CPU has no {isa}, but {}", there.join(", ")))
    }

    /// Every instruction set of this CPU, widest first, [`Isa::Scalar`] last.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// Whether this CPU has it.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") && Self::Avx2.is_available()
            }
            #[cfg(target_arch = "aarch64")]
            Self::Neon => true,
            #[cfg(target_arch = "aarch64")]
            Self::NeonFp16 => std::arch::is_aarch64_feature_detected!("fp16"),
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// f32 values in a vector.
    #[must_use]
    pub fn lanes(self) -> usize {
        match self {
            Self::Scalar => 1,
            Self::Neon | Self::NeonFp16 => 4,
            Self::Avx2 => 8,
            Self::Avx512 => 16,
        }
    }

    /// Vector registers.
    #[must_use]
    pub fn registers(self) -> usize {
        match self {
            Self::Scalar | Self::Avx2 => 16,
            Self::Neon | Self::NeonFp16 | Self::Avx512 => 32,
        }
    }

    /// Whether products with packed halves are made in halves: [`Simd::HALVES`].
    #[must_use]
    pub fn multiplies_halves(self) -> bool {
        self == Self::NeonFp16
    }

    /// Runs `kernel` with this instruction set.
    ///
    /// # Panics
    /// If the CPU does not have it.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        assert!(self.is_available(), "this CPU has no {self}");
        // SAFETY: the instruction set is there, as checked just above.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => x86::run_avx2(kernel),
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => x86::run_avx512(kernel),
                #[cfg(target_arch = "aarch64")]
                Self::Neon => kernel.run::<Neon>(),
                #[cfg(target_arch = "aarch64")]
                Self::NeonFp16 => neon_fp16::run(kernel),
                _ => kernel.run::<Scalar>(),
            }
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
            Self::NeonFp16 => "neon-fp16",
        })
    }
}

impl FromStr for Isa {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|isa| isa.to_string() == name)
            .ok_or_else(|| format!("unknown instruction set `{name}`: one of avx512, avx2, neon-fp16, neon, scalar"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every operation on every instruction set of this CPU, checked lane by lane.
    struct EveryOperation;

    impl Kernel for EveryOperation {
        type Output = ();

        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            let a: Vec<f32> = (0..S::LANES).map(|i| i as f32 - 3.5).collect();
            let b: Vec<f32> = (0..S::LANES).map(|i| 0.25 * i as f32 + 1.0).collect();
            let halves: Vec<f16> = a.iter().map(|&x| f16::from_f32(x)).collect();
            let read = |v: S::V| {
                let mut out = vec![0.0; S::LANES];
                // SAFETY: `out` holds LANES floats.
                unsafe { S::store(out.as_mut_ptr(), v) };
                out
            };
            let map = |f: &dyn Fn(f32, f32) -> f32| a.iter().zip(&b).map(|(&x, &y)| f(x, y)).collect::<Vec<_>>();
            // SAFETY: every slice holds LANES values.
            unsafe {
                let (va, vb) = (S::load(a.as_ptr()), S::load(b.as_ptr()));
                assert_eq!(read(S::load_f16(halves.as_ptr())), a);
                let whole: Vec<i16> = (0..S::LANES).map(|i| (i as i32 * 4000 - 32_000) as i16).collect();
                assert_eq!(read(S::load_i16(whole.as_ptr())), whole.iter().map(|&x| f32::from(x)).collect::<Vec<_>>());
                assert_eq!(read(S::splat(2.5)), vec![2.5; S::LANES]);
                assert_eq!(read(S::add(va, vb)), map(&|x, y| x + y));
                assert_eq!(read(S::sub(va, vb)), map(&|x, y| x - y));
                assert_eq!(read(S::mul(va, vb)), map(&|x, y| x * y));
                assert_eq!(read(S::fma(va, vb, va)), map(&|x, y| x.mul_add(y, x)));
                assert_eq!(read(S::max(va, vb)), map(&f32::max));
                assert_eq!(read(S::relu(va)), map(&|x, _| x.max(0.0)));
                assert!(read(S::relu(S::splat(f32::NAN))).iter().all(|x| x.is_nan()), "relu must let a NaN through");
                for lane in 0..=S::LANES {
                    let kept: Vec<f32> = (0..S::LANES).map(|i| if i < lane { 0.0 } else { a[i] }).collect();
                    assert_eq!(read(S::keep_from(va, lane)), kept);
                }
                assert_eq!(S::sum(va), a.iter().sum::<f32>());
                let (wide, tall) = (S::LANES + 3, S::LANES + 1);
                let square: Vec<f32> = (0..S::LANES * wide).map(|i| i as f32).collect();
                let mut turned = vec![0.0; S::LANES * tall];
                S::transpose(square.as_ptr(), wide, turned.as_mut_ptr(), tall);
                for (i, j) in (0..S::LANES * S::LANES).map(|at| (at / S::LANES, at % S::LANES)) {
                    assert_eq!(turned[j * tall + i], square[i * wide + j], "row {i}, column {j}");
                }
            }
        }
    }

    #[test]
    fn every_operation_on_every_instruction_set() {
        for isa in Isa::available() {
            isa.run(EveryOperation);
        }
    }

    #[test]
    fn names_parse_back() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse::<Isa>().unwrap(), isa);
        }
        assert!("sse9".parse::<Isa>().is_err());
        assert_eq!(Isa::named("scalar"), Ok(Isa::Scalar));
        assert!(Isa::named("avx2 ").unwrap_err().contains("one of avx512, avx2, neon-fp16, neon, scalar"));
        let foreign = if cfg!(target_arch = "aarch64") { "avx2" } else { "neon" };
        let error = Isa::named(foreign).unwrap_err();
        assert!(error.contains(foreign) && error.contains("scalar"), "{error}");
    }
}
