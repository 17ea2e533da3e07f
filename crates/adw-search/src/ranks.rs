//! Processes that share the batches of one search or training.
//!
//! Every rank holds the whole network and does every optimiser step; what is divided are the passes of the network on the samples
//! of a batch. Nothing that is computed depends on the number of ranks: results travel as they are, and are put together in
//! the order of the samples.

use std::fmt;
use std::ops::{ControlFlow, Range};

use adw_supernet::Gradients;
use adw_tensor_ops::elementwise;
use candle_core::{DType, Device, Shape, Tensor};

use crate::events::Stop;
use crate::{BoxError, Error, Result};

/// Communication of the processes ("ranks") that share the batches of a search or training.
///
/// Rank 0 writes all files. The ranks exchange data in the same order of calls, each of which waits for all of them. An
/// implementation reports a rank that has failed as an error of the next exchange, on all others.
pub trait Ranks: fmt::Debug + Send + Sync {
    /// Number of this process, from 0.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn size(&self) -> usize;

    /// Sends `parts[r]` to rank r, for every r, and returns the parts that all ranks have sent to this one, in their order.
    ///
    /// # Errors
    /// If a rank has failed or cannot be reached.
    fn all_to_all(&self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, BoxError>;
}

/// A process without others.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Ranks for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_to_all(&self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, BoxError> {
        Ok(parts)
    }
}

/// Refuses several ranks for passes of the whole batch, which have no parts.
///
/// # Errors
/// [`Error::Config`] for the key `per_sample`.
pub(crate) fn check(ranks: &dyn Ranks, per_sample: bool) -> Result<()> {
    if per_sample || ranks.size() == 1 {
        return Ok(());
    }
    Err(Error::Config { key: "per_sample".into(), value: "false".into(), expected: "true on several ranks" })
}

/// Bytes of every rank, in their order.
pub(crate) fn all_gather(ranks: &dyn Ranks, own: Vec<u8>) -> Result<Vec<Vec<u8>>> {
    exchange(ranks, vec![own; ranks.size()])
}

fn exchange(ranks: &dyn Ranks, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
    ranks.all_to_all(parts).map_err(Error::Ranks)
}

/// Samples of a batch that this rank computes; every sample belongs to one rank, in the order of the ranks.
///
/// # Errors
/// If there are more ranks than samples.
pub(crate) fn own_samples(ranks: &dyn Ranks, batch_size: usize) -> Result<Range<usize>> {
    if ranks.size() > batch_size {
        return Err(Error::TooManyRanks { ranks: ranks.size(), batch_size });
    }
    Ok(part_of(batch_size, ranks, ranks.rank()))
}

/// Contiguous part of `0..n` that is assigned to a rank.
fn part_of(n: usize, ranks: &dyn Ranks, rank: usize) -> Range<usize> {
    n * rank / ranks.size()..n * (rank + 1) / ranks.size()
}

/// Stop that any rank requests, on all of them: the more urgent one.
pub(crate) fn agree(ranks: &dyn Ranks, own: ControlFlow<Stop>) -> Result<ControlFlow<Stop>> {
    if ranks.size() == 1 {
        return Ok(own);
    }
    let urgency = match own {
        ControlFlow::Continue(()) => 0,
        ControlFlow::Break(Stop::AfterSaving) => 1,
        ControlFlow::Break(Stop::Immediately) => 2,
    };
    Ok(match all_gather(ranks, vec![urgency])?.concat().into_iter().max() {
        Some(2) => ControlFlow::Break(Stop::Immediately),
        Some(1) => ControlFlow::Break(Stop::AfterSaving),
        _ => ControlFlow::Continue(()),
    })
}

/// Gathers a tensor `[B, ...]` from all ranks, of which each holds its own samples, `[1, ...]` each.
pub(crate) fn gather_samples(ranks: &dyn Ranks, own: &[&Tensor]) -> Result<Tensor> {
    let joined = Tensor::cat(own, 0)?;
    if ranks.size() == 1 {
        return Ok(joined);
    }
    let mut shape = joined.dims().to_vec();
    let all = all_gather(ranks, bytes(&joined)?)?.concat();
    let sample: usize = shape[1..].iter().product();
    shape[0] = all.len() / (sample * joined.dtype().size_in_bytes());
    Ok(Tensor::from_raw_buffer(&all, joined.dtype(), &shape, joined.device())?)
}

/// Sum of the gradients of all samples of a batch, in the order of the samples.
///
/// Every rank adds the gradients of its own samples. For the sum, rank r gets the r-th part of every sample's gradients, adds
/// them up, and sends the sum of that part to all.
pub(crate) struct GradientSum<'a> {
    ranks: &'a dyn Ranks,
    /// Shape of each gradient that there is.
    shapes: Vec<Option<Shape>>,
    /// Gradients of each own sample, flattened and joined; without other ranks their sum so far.
    samples: Vec<Tensor>,
}

impl<'a> GradientSum<'a> {
    /// Sum without samples.
    pub(crate) fn new(ranks: &'a dyn Ranks) -> Self {
        Self { ranks, shapes: vec![], samples: vec![] }
    }

    /// Adds the next of this rank's own samples.
    pub(crate) fn add(&mut self, gradients: &[Option<Tensor>]) -> Result<()> {
        self.shapes = gradients.iter().map(|g| g.as_ref().map(|g| g.shape().clone())).collect();
        let flat = gradients.iter().flatten().map(Tensor::flatten_all).collect::<candle_core::Result<Vec<_>>>()?;
        let flat = Tensor::cat(&flat, 0)?;
        match self.samples.last_mut() {
            Some(sum) if self.ranks.size() == 1 => *sum = elementwise::add(sum, &flat)?,
            _ => self.samples.push(flat),
        }
        Ok(())
    }

    /// Sum over the samples of all ranks, multiplied by `scale`.
    pub(crate) fn finish(self, scale: f64) -> Result<Gradients> {
        let (ranks, first) = (self.ranks, &self.samples[0]);
        let sum = if ranks.size() == 1 { first.clone() } else { self.sum_with_others()? };
        let sum = (sum * scale)?;
        let mut start = 0;
        let gradient = |shape: Option<Shape>| -> Result<Option<Tensor>> {
            let Some(shape) = shape else { return Ok(None) };
            let values = sum.narrow(0, start, shape.elem_count())?;
            start += shape.elem_count();
            Ok(Some(values.reshape(shape)?))
        };
        self.shapes.into_iter().map(gradient).collect()
    }

    fn sum_with_others(&self) -> Result<Tensor> {
        let (ranks, first) = (self.ranks, &self.samples[0]);
        let (dtype, num_values) = (first.dtype(), first.elem_count());
        let part = |rank| -> Result<Vec<u8>> {
            let Range { start, end } = part_of(num_values, ranks, rank);
            let values = self.samples.iter().map(|sample| bytes(&sample.narrow(0, start, end - start)?));
            Ok(values.collect::<Result<Vec<_>>>()?.concat())
        };
        let parts = (0..ranks.size()).map(part).collect::<Result<Vec<_>>>()?;
        let own = part_of(num_values, ranks, ranks.rank()).len();
        let received = exchange(ranks, parts)?.concat();
        let mut sum = None;
        for sample in received.chunks((own * dtype.size_in_bytes()).max(1)) {
            let sample = on_host(sample, dtype)?;
            sum = Some(match sum {
                None => sample,
                Some(sum) => elementwise::add(&sum, &sample)?,
            });
        }
        let sum = sum.map_or(Ok(vec![]), |sum| bytes(&sum))?;
        Ok(on_host(&all_gather(ranks, sum)?.concat(), dtype)?.to_device(first.device())?)
    }
}

/// Values of a tensor in its order, in the host's memory.
fn bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(tensor.elem_count() * tensor.dtype().size_in_bytes());
    tensor.write_bytes(&mut bytes)?;
    Ok(bytes)
}

fn on_host(bytes: &[u8], dtype: DType) -> Result<Tensor> {
    Ok(Tensor::from_raw_buffer(bytes, dtype, &[bytes.len() / dtype.size_in_bytes()], &Device::Cpu)?)
}
