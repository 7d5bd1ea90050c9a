//! The ResNet18 on this machine's processor, in f32; on [`Isa::NeonFp16`] its convolutions multiply halves.
//!
//! Everything is decided when a [`CpuBackbone`] is made: for each convolution the algorithm and the packed weights, for
//! each map its place in one arena. A run then allocates nothing. The rooms:
//!
//! - `memory`: aligned memory, and tensors (HWC, with a border of zeros) as places in it;
//! - `gemm`: packed matrices and the register-blocked micro-kernel, written once over [`Simd`](crate::simd::Simd);
//! - `stem`: conv1 and the maximum after it, direct or by Winograd along the rows;
//! - `direct`: other convolutions as products read in place;
//! - `winograd`: 3×3 convolutions at a quarter of the multiplications, with stride 2 at nine sixteenths;
//! - `network`: the steps and their buffers;
//! - `share`: who does which item of a step.
//!
//! The threads meet once a step ([`Workers::run`]) and take items of work in between, so a thread that loses its core
//! delays the others by one item at most. Which thread takes an item changes nothing in its result:
//! outputs are the same to the bit for any number of threads.

mod direct;
pub(crate) mod gemm;
pub(crate) mod memory;
pub(crate) mod network;
mod share;
mod stem;
pub(crate) mod winograd;

use std::sync::Arc;

use crate::simd::Isa;
use crate::workers::Workers;

use super::{Backbone, BackboneError, Identity, Pyramid, ResNet18};
use network::Network;

pub use network::{Method, StepInfo};

/// What an engine is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How convolutions are computed.
    pub method: Method,
    /// Stages to pack weights for, 1 to 4: a pyramid can hold none beyond them. Stage 4 has three quarters of all
    /// weights.
    pub depth: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { method: Method::Winograd, depth: 4 }
    }
}

/// A ResNet18 packed for one image side, one instruction set and a set of threads.
pub struct CpuBackbone {
    size: usize,
    identity: Identity,
    workers: Arc<Workers>,
    network: Network,
}

impl CpuBackbone {
    /// Packs the weights of `net` for images of side `size` and allocates all that a run needs.
    ///
    /// # Errors
    /// [`BackboneError::Side`] if `size` is not a multiple of 32 from 64 to 1024.
    ///
    /// # Panics
    /// If this CPU does not have `isa`.
    pub fn new(net: &ResNet18, size: usize, isa: Isa, workers: Arc<Workers>) -> Result<Self, BackboneError> {
        Self::with_options(net, size, Options::default(), isa, workers)
    }

    /// For the stages that are wanted, on the instruction set of this machine: as many steps as the last of them needs.
    ///
    /// # Errors
    /// As [`CpuBackbone::new`].
    pub fn for_stages(
        net: &ResNet18,
        size: usize,
        stages: [bool; 4],
        workers: &Arc<Workers>,
    ) -> Result<Self, BackboneError> {
        let options = Options { depth: crate::backbone::depth(stages).max(1), ..Options::default() };
        Self::with_options(net, size, options, Isa::detect(), Arc::clone(workers))
    }

    /// [`CpuBackbone::new`] with a choice of how convolutions are computed, and how many stages.
    ///
    /// # Errors
    /// As [`CpuBackbone::new`].
    ///
    /// # Panics
    /// As [`CpuBackbone::new`], and if the depth is not 1 to 4.
    pub fn with_options(
        net: &ResNet18,
        size: usize,
        options: Options,
        isa: Isa,
        workers: Arc<Workers>,
    ) -> Result<Self, BackboneError> {
        if !crate::backbone::is_side(size) {
            return Err(BackboneError::Side(size));
        }
        assert!(isa.is_available(), "this CPU has no {isa}");
        assert!((1..=4).contains(&options.depth), "a ResNet18 has 4 stages, not {}", options.depth);
        let network = Network::new(net.convs(), size, options, isa, workers.count());
        Ok(Self { size, identity: net.identity(), workers, network })
    }

    /// How many stages it can compute.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.network.depth()
    }

    /// Another engine on the same packed weights, with an arena of its own: for a second cell at the same time. Where it
    /// has several threads, it takes turns with this one: see [`CpuBackbone::another_on`].
    #[must_use]
    pub fn another(&self) -> Self {
        self.another_on(Arc::clone(&self.workers))
    }

    /// [`CpuBackbone::another`] with threads of its own.
    ///
    /// # Panics
    /// If there are not as many of them as this engine has.
    #[must_use]
    pub fn another_on(&self, workers: Arc<Workers>) -> Self {
        assert_eq!(workers.count(), self.workers.count(), "engines on the same packed weights have as many threads");
        Self { size: self.size, identity: self.identity, workers, network: self.network.another() }
    }

    /// [`Backbone::run`] that calls `observe` after each step: for profiles, and at no cost where `observe` does nothing.
    ///
    /// # Errors
    /// As [`Backbone::run`].
    pub fn run_observed(
        &mut self,
        image: &[f32],
        pyramid: &mut Pyramid,
        observe: impl FnMut(&StepInfo),
    ) -> Result<(), BackboneError> {
        let size = self.size;
        if image.len() != size * size {
            return Err(BackboneError::ImageSize { got: image.len(), size });
        }
        if pyramid.size() != size {
            return Err(BackboneError::PyramidSize { size });
        }
        let (wanted, built) = (pyramid.depth(), self.network.depth());
        if wanted > built {
            return Err(BackboneError::Stage { wanted, built });
        }
        self.network.run(&[image], pyramid, &self.workers, observe);
        Ok(())
    }
}

impl Backbone for CpuBackbone {
    fn size(&self) -> usize {
        self.size
    }

    fn identity(&self) -> Identity {
        self.identity
    }

    fn run(&mut self, image: &[f32], pyramid: &mut Pyramid) -> Result<(), BackboneError> {
        self.run_observed(image, pyramid, |_| ())
    }
}

#[cfg(test)]
mod tests;
