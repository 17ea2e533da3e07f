//! Batches and their source: the interface between training and data.

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

/// Cases that a batch is drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// Half A of the fold's training cases, augmented.
    TrainA,
    /// Half B of the fold's training cases, augmented.
    TrainB,
    /// Half B without augmentation, on which a search validates. A search never requests [`Part::Validation`]: an
    /// architecture chosen on the fold's validation cases would make its cross-validation dishonest.
    TrainBPlain,
    /// All training cases of the fold, augmented.
    Train,
    /// Validation cases of the fold without augmentation; requested by retraining alone, for its report.
    Validation,
}

/// Key of one batch. A source returns the same batch for the same key, whatever was requested before, so that a resumed
/// run equals an unbroken one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchRequest {
    /// Cases that the batch is drawn from.
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

/// Requests in the order in which they will be made; owned, so that a loader thread can prefetch.
pub type BatchRequests = Box<dyn Iterator<Item = BatchRequest> + Send>;

/// Source of batches.
///
/// A search or training calls [`announce`](Self::announce) once, with every request from its start (or the point at
/// which it resumes) to its end, and then [`batch`](Self::batch) in exactly that order. A source that prefetches passes
/// the iterator to its loader; others ignore it.
///
/// ```
/// use adw_search::{Batch, BatchRequest, BatchSource, BoxError};
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
    /// Receives the order of all coming requests.
    ///
    /// # Errors
    /// If the source cannot serve them.
    fn announce(&mut self, requests: BatchRequests) -> Result<(), BoxError> {
        drop(requests);
        Ok(())
    }

    /// Returns the batch of `request`: a function of `request` alone.
    ///
    /// # Errors
    /// If the batch cannot be made.
    fn batch(&mut self, request: BatchRequest) -> Result<Batch, BoxError>;

    /// Names of the cases in the batch of `request`, for messages. None by default.
    fn cases(&self, request: BatchRequest) -> Vec<String> {
        let _ = request;
        vec![]
    }
}
