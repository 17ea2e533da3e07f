//! Where batches come from: the one seam between training and data.

use std::fmt;

use candle_core::Tensor;

/// Any error of a [`BatchSource`].
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// One batch of patches.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Images `[B, C, D, H, W]`, in the network's dtype.
    pub x: Tensor,
    /// Class indices `[B, D, H, W]`, u8.
    pub target: Tensor,
}

/// Which cases a batch is drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// Half A of the fold's training cases, augmented.
    TrainA,
    /// Half B of the fold's training cases, augmented.
    TrainB,
    /// Half B without augmentation: what a search validates on. A search never asks for [`Part::Validation`]: an
    /// architecture chosen on the fold's validation cases would make its cross-validation dishonest.
    TrainBPlain,
    /// All training cases of the fold, augmented.
    Train,
    /// The fold's validation cases without augmentation; only retraining asks for them, to report on itself.
    Validation,
}

/// The key of one batch. A source returns the same batch for the same key, whatever was asked before: this is what
/// makes a resumed run equal to an unbroken one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchRequest {
    /// Which cases.
    pub part: Part,
    /// Epoch, from 0.
    pub epoch: usize,
    /// Iteration in the epoch, from 0; for validation parts the number of the validation batch.
    pub iteration: usize,
}

impl fmt::Display for BatchRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({:?}, epoch {}, iteration {})", self.part, self.epoch, self.iteration)
    }
}

/// BatchRequests in the order in which they will be made; owned, so that a loader thread can walk ahead of the training.
pub type BatchRequests = Box<dyn Iterator<Item = BatchRequest> + Send>;

/// Supplies batches.
///
/// A search or training calls [`announce`](Self::announce) once, with every request it will make from where it starts
/// (or resumes) to its end, and then [`batch`](Self::batch) exactly in that order. A source that prefetches hands the
/// iterator to its loader; one that does not ignores it.
///
/// ```
/// use adw_search::{Batch, BatchSource, BoxError, BatchRequest};
/// use candle_core::{DType, Device, Tensor};
///
/// /// Every batch is zeros.
/// struct Zeros;
///
/// impl BatchSource for Zeros {
///     fn batch(&mut self, _: BatchRequest) -> Result<Batch, BoxError> {
///         Ok(Batch {
///             x: Tensor::zeros((2, 1, 8, 8, 8), DType::F32, &Device::Cpu)?,
///             target: Tensor::zeros((2, 8, 8, 8), DType::U8, &Device::Cpu)?,
///         })
///     }
/// }
/// ```
pub trait BatchSource {
    /// Learns the order of all coming requests.
    fn announce(&mut self, requests: BatchRequests) -> Result<(), BoxError> {
        drop(requests);
        Ok(())
    }

    /// The batch of `request`: a function of `request` alone.
    fn batch(&mut self, request: BatchRequest) -> Result<Batch, BoxError>;
}
