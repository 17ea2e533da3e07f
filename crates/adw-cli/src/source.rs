//! Batches for `adw-search`, prepared ahead of the training by threads.

use std::{collections::BTreeMap, sync::Arc};

use adw_search::{Batch, BatchRequest, BatchRequests, BatchSource, BoxError, Part};
use candle_core::{Device, Tensor};
use msd_data::{Augmentation, BatchKey, Loader, MirrorAxes, PatchSampler, Plan, Purpose, SampledBatch, TrainingCase};

/// Maximal number of prepared batches that wait for the training.
pub(crate) const QUEUE: usize = 4;

/// Number of threads that prepare batches. With a network on the CPU a patch costs a small part of a training step, so that a
/// few threads keep up; with a network on a CUDA device the processor has nothing else to do.
pub(crate) fn num_loader_threads(device: &Device) -> usize {
    let all = rayon::current_num_threads();
    if device.is_cuda() { all } else { (all / 4).max(1) }
}

/// Draws the batches of each part from that part's cases.
pub(crate) struct PatchSource {
    samplers: Arc<BTreeMap<Part, PatchSampler>>,
    /// Names of each sampler's cases.
    names: BTreeMap<Part, Vec<String>>,
    seed: u64,
    num_threads: usize,
    /// Prepared batches with their keys, by which the order of the requests is checked.
    loader: Option<Loader<(BatchKey, SampledBatch)>>,
}

/// Cases with their names.
pub(crate) type NamedCases = Vec<(String, TrainingCase)>;

/// Settings of the sampling, the same for all parts.
#[derive(Clone, Copy)]
pub(crate) struct Sampling<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) batch_size: usize,
    pub(crate) augmentation: Augmentation,
    pub(crate) seed: u64,
}

impl PatchSource {
    /// Creates a source of batches of the given parts, each with its cases.
    ///
    /// # Errors
    /// A part without cases, axes of mirroring that the plan lacks; see [`PatchSampler::new`].
    pub(crate) fn new(
        parts: Vec<(Part, NamedCases)>,
        sampling: Sampling<'_>,
        device: &Device,
    ) -> msd_data::Result<Self> {
        let Sampling { plan, batch_size, augmentation, seed } = sampling;
        let mirror_axes = MirrorAxes::of_patch(augmentation.mirrored_axes(plan)?);
        let augmentation = Augmentation { mirror_axes, ..augmentation };
        let (mut samplers, mut names) = (BTreeMap::new(), BTreeMap::new());
        for (part, cases) in parts {
            let (ids, cases): (Vec<String>, Vec<TrainingCase>) = cases.into_iter().unzip();
            names.insert(part, ids);
            let augmentation = if is_plain(part) { Augmentation::none() } else { augmentation };
            let sampler = PatchSampler::new(cases, plan.patch_size, batch_size, augmentation, &plan.use_mask_for_norm)?;
            samplers.insert(part, sampler);
        }
        Ok(Self { samplers: Arc::new(samplers), names, seed, num_threads: num_loader_threads(device), loader: None })
    }
}

/// Converts a batch into tensors in the host's memory.
fn to_batch(sampled: SampledBatch) -> candle_core::Result<Batch> {
    let device = &Device::Cpu;
    Ok(Batch {
        x: Tensor::from_vec(sampled.x, sampled.x_shape.as_slice(), device)?,
        target: Tensor::from_vec(sampled.target, sampled.target_shape.as_slice(), device)?,
    })
}

impl BatchSource for PatchSource {
    fn announce(&mut self, requests: BatchRequests) -> Result<(), BoxError> {
        let (seed, samplers) = (self.seed, Arc::clone(&self.samplers));
        let keys = requests.map(move |request| key(request, seed));
        let make = move |key: BatchKey| match samplers.iter().find(|(part, _)| purpose(**part) == key.purpose) {
            Some((_, sampler)) => Ok((key, sampler.batch(key)?)),
            None => Err(msd_data::Error::Invalid(format!("no cases for {key:?}"))),
        };
        self.loader = Some(Loader::with_maker(make, keys, self.num_threads, QUEUE));
        Ok(())
    }

    fn batch(&mut self, request: BatchRequest) -> Result<Batch, BoxError> {
        let Some(made) = self.loader.as_mut().and_then(Iterator::next) else {
            return Err(format!("{request} was not announced").into());
        };
        let (made_for, sampled) = made?;
        if made_for != key(request, self.seed) {
            return Err(format!("{request} was requested, but {made_for:?} is next").into());
        }
        Ok(to_batch(sampled)?)
    }

    fn cases(&self, request: BatchRequest) -> Vec<String> {
        let part = (self.samplers.get(&request.part), self.names.get(&request.part));
        let (Some(sampler), Some(names)) = part else { return vec![] };
        sampler.cases(key(request, self.seed)).into_iter().map(|case| names[case].clone()).collect()
    }
}

/// Returns true for the parts on which a network is only validated.
fn is_plain(part: Part) -> bool {
    matches!(part, Part::TrainBPlain | Part::Validation)
}

/// Purpose of a part's random numbers; different parts of one run never share them.
fn purpose(part: Part) -> Purpose {
    match part {
        Part::TrainA | Part::Train => Purpose::Weights,
        Part::TrainB => Purpose::Architecture,
        Part::TrainBPlain | Part::Validation => Purpose::Validation,
    }
}

fn key(request: BatchRequest, seed: u64) -> BatchKey {
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

    fn request(part: Part, epoch: usize, iteration: usize) -> BatchRequest {
        BatchRequest { part, epoch, iteration }
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
