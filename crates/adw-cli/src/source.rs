//! Batches for `adw-search` from prepared cases, made ahead by threads.

use std::{collections::BTreeMap, sync::Arc};

use adw_search::{Batch, BatchSource, BoxError, Part, Request, Requests};
#[cfg(feature = "cuda")]
use adw_tensor_ops::augment::{Noise, Transforms};
use candle_core::{Device, Tensor};
#[cfg(feature = "cuda")]
use msd_data::augment::DrawnTransforms;
use msd_data::{Augmentation, BatchKey, DrawnBatch, Loader, PatchSampler, Plan, Purpose, SampledBatch, TrainingCase};

/// Batches waiting to be fetched, at most.
pub(crate) const QUEUE: usize = 4;

/// Threads that make batches. Beside a network on the CPU a patch costs a small part of a training step, so a few keep up
/// with all others; beside one on a CUDA device the processor has nothing else to do.
pub(crate) fn num_loader_threads(device: &Device) -> usize {
    let all = rayon::current_num_threads();
    if device.is_cuda() { all } else { (all / 4).max(1) }
}

/// Draws the batches of each part from that part's cases.
pub(crate) struct PatchSource {
    samplers: Arc<BTreeMap<Part, PatchSampler>>,
    seed: u64,
    num_threads: usize,
    /// Each batch with its key, to check that batches are asked for in the order announced.
    loader: Option<Loader<(BatchKey, Sampled)>>,
    /// Where intensities are augmented.
    device: Device,
}

/// What is the same for all parts.
#[derive(Clone, Copy)]
pub(crate) struct Sampling<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) batch_size: usize,
    pub(crate) augmentation: Augmentation,
    pub(crate) seed: u64,
}

impl PatchSource {
    /// A source of the given parts, each with its cases.
    ///
    /// # Errors
    /// A part without cases; see [`PatchSampler::new`].
    pub(crate) fn new(
        parts: Vec<(Part, Vec<TrainingCase>)>,
        sampling: Sampling<'_>,
        device: &Device,
    ) -> msd_data::Result<Self> {
        let Sampling { plan, batch_size, augmentation, seed } = sampling;
        let mut samplers = BTreeMap::new();
        for (part, cases) in parts {
            let augmentation = if is_plain(part) { Augmentation::none() } else { augmentation };
            let sampler = PatchSampler::new(cases, plan.patch_size, batch_size, augmentation, &plan.use_mask_for_norm)?;
            samplers.insert(part, sampler);
        }
        Ok(Self {
            samplers: Arc::new(samplers),
            seed,
            num_threads: num_loader_threads(device),
            loader: None,
            device: device.clone(),
        })
    }
}

/// A batch as the loader's threads leave it.
enum Sampled {
    Ready(SampledBatch),
    /// All but the spatial transforms is left to a CUDA device.
    Drawn(DrawnBatch),
}

impl PatchSource {
    fn to_batch(&self, sampled: Sampled) -> Result<Batch, BoxError> {
        match sampled {
            Sampled::Ready(sampled) => Ok(to_batch(sampled)?),
            Sampled::Drawn(drawn) => self.transform(&drawn),
        }
    }

    #[cfg(feature = "cuda")]
    fn transform(&self, drawn: &DrawnBatch) -> Result<Batch, BoxError> {
        let Device::Cuda(device) = &self.device else {
            unreachable!("batches are drawn for a CUDA device");
        };
        // All parts have the channels of one plan.
        let masked = self.samplers.values().next().map(PatchSampler::masked_channels);
        let transforms: Vec<_> =
            drawn.transforms.iter().flat_map(|sample| transforms(sample, masked.unwrap_or_default())).collect();
        let (x, target) =
            adw_tensor_ops::augment::on_device::apply(device, &drawn.x, &drawn.labels, drawn.x_shape, &transforms)?;
        Ok(Batch { x, target })
    }

    #[cfg(not(feature = "cuda"))]
    #[expect(clippy::unused_self, reason = "the twin of the one with CUDA")]
    fn transform(&self, _: &DrawnBatch) -> Result<Batch, BoxError> {
        unreachable!("no CUDA device is opened by a program without CUDA");
    }
}

/// What was drawn for a sample, as the device takes it: per channel.
#[cfg(feature = "cuda")]
fn transforms(drawn: &DrawnTransforms, masked: &[bool]) -> Vec<Transforms> {
    let noise = drawn.noise.map(|(std, stream)| Noise { std, key: stream.key, position: stream.position });
    let channels = drawn.channels.iter().zip(masked);
    channels
        .map(|(c, &masked)| Transforms {
            noise,
            blur: c.blur,
            brightness: c.brightness,
            contrast: c.contrast,
            low_resolution: c.low_resolution,
            gamma_inverted: c.gamma_inverted,
            gamma: c.gamma,
            masked,
            mirror: drawn.mirror,
        })
        .collect()
}

/// In the host's memory; the network takes it to its device.
fn to_batch(sampled: SampledBatch) -> candle_core::Result<Batch> {
    let device = &Device::Cpu;
    Ok(Batch {
        x: Tensor::from_vec(sampled.x, sampled.x_shape.as_slice(), device)?,
        target: Tensor::from_vec(sampled.target, sampled.target_shape.as_slice(), device)?,
    })
}

impl BatchSource for PatchSource {
    fn announce(&mut self, requests: Requests) -> Result<(), BoxError> {
        let (seed, samplers) = (self.seed, Arc::clone(&self.samplers));
        let keys = requests.map(move |request| key(request, seed));
        let on_device = self.device.is_cuda();
        let make = move |key: BatchKey| match samplers.iter().find(|(part, _)| purpose(**part) == key.purpose) {
            Some((_, sampler)) if on_device => Ok((key, Sampled::Drawn(sampler.drawn_batch(key)?))),
            Some((_, sampler)) => Ok((key, Sampled::Ready(sampler.batch(key)?))),
            None => Err(msd_data::Error::Invalid(format!("no cases for {key:?}"))),
        };
        self.loader = Some(Loader::with_maker(make, keys, self.num_threads, QUEUE));
        Ok(())
    }

    fn batch(&mut self, request: Request) -> Result<Batch, BoxError> {
        let Some(made) = self.loader.as_mut().and_then(Iterator::next) else {
            return Err(format!("{request} was not announced").into());
        };
        let (made_for, sampled) = made?;
        if made_for != key(request, self.seed) {
            return Err(format!("{request} was asked for when {made_for:?} was due").into());
        }
        self.to_batch(sampled)
    }
}

/// Parts that are for looking, not for learning.
fn is_plain(part: Part) -> bool {
    matches!(part, Part::TrainBPlain | Part::Validation)
}

/// Different parts of one run never share random numbers.
fn purpose(part: Part) -> Purpose {
    match part {
        Part::TrainA | Part::Train => Purpose::Weights,
        Part::TrainB => Purpose::Architecture,
        Part::TrainBPlain | Part::Validation => Purpose::Validation,
    }
}

fn key(request: Request, seed: u64) -> BatchKey {
    BatchKey {
        seed,
        purpose: purpose(request.part),
        // Every epoch validates on the same patches, so that epochs can be compared.
        epoch: if is_plain(request.part) { 0 } else { request.epoch as u64 },
        iteration: request.iteration as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(part: Part, epoch: usize, iteration: usize) -> Request {
        Request { part, epoch, iteration }
    }

    #[test]
    fn keys_tell_parts_epochs_and_iterations_apart_and_validation_stays_the_same() {
        let train = key(request(Part::TrainA, 2, 3), 9);
        assert_eq!((train.seed, train.epoch, train.iteration), (9, 2, 3));
        assert_ne!(train, key(request(Part::TrainB, 2, 3), 9));
        assert_ne!(train, key(request(Part::TrainA, 3, 3), 9));
        for part in [Part::TrainBPlain, Part::Validation] {
            assert_eq!(key(request(part, 0, 3), 9), key(request(part, 7, 3), 9));
        }
    }
}
