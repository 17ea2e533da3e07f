//! Batches of patches drawn from prepared cases.

use std::cell::Cell;

use rand::RngExt;

use crate::augment::{Augmentation, DrawnTransforms, Patch, SpatialTransform, enlarged_patch};
use crate::error::{Error, Result};
use crate::random::{Purpose, rng};
use crate::training_case::TrainingCase;

/// Name of a batch. Equal keys give equal batches, whatever was drawn before, on any thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BatchKey {
    /// The run's seed.
    pub seed: u64,
    /// Use of the batch.
    pub purpose: Purpose,
    /// Epoch.
    pub epoch: u64,
    /// Iteration within the epoch.
    pub iteration: u64,
}

/// A batch of patches in memory order.
#[derive(Debug, Clone, PartialEq)]
pub struct SampledBatch {
    /// Images, `[B, C, D, H, W]`.
    pub x: Vec<f32>,
    /// Labels, `[B, D, H, W]`.
    pub target: Vec<u8>,
    /// Shape of `x`.
    pub x_shape: [usize; 5],
    /// Shape of `target`.
    pub target_shape: [usize; 4],
    /// Index of each sample's case.
    pub cases: Vec<usize>,
}

/// Sampler of augmented patches of labelled cases, with the rules of nnU-Net's data loader: cases uniformly with
/// replacement, the last third of each batch centred on foreground, patches that may reach beyond the image (padded with 0
/// and background).
#[derive(Debug, Clone)]
pub struct PatchSampler {
    cases: Vec<TrainingCase>,
    patch_size: [usize; 3],
    batch_size: usize,
    augmentation: Augmentation,
    /// True for channels that are 0 outside the nonzero mask ([`crate::Plan::use_mask_for_norm`]).
    masked_channels: Vec<bool>,
    /// Part of a batch whose patches must show foreground.
    forced_foreground: f64,
}

thread_local! {
    /// Memory of the last patch, to be used again: allocating megabytes costs more than filling them.
    static SPARE: Cell<Patch> = Cell::default();
}

impl PatchSampler {
    /// Builds a sampler over `cases`, where `masked_channels` is [`crate::Plan::use_mask_for_norm`].
    ///
    /// # Errors
    /// [`Error::Invalid`] without cases, for a case without labels or with a label above 255, for an empty patch or
    /// batch, for a probability outside 0..=1. [`Error::Shape`] if cases differ in their number of channels.
    pub fn new(
        cases: Vec<impl Into<TrainingCase>>,
        patch_size: [usize; 3],
        batch_size: usize,
        augmentation: Augmentation,
        masked_channels: &[bool],
    ) -> Result<Self> {
        augmentation.check()?;
        if patch_size.contains(&0) || batch_size == 0 {
            return Err(Error::Invalid(format!(
                "patch size {patch_size:?} and batch size {batch_size}; each must be at least 1"
            )));
        }
        if cases.is_empty() {
            return Err(Error::Invalid("no case to draw patches from".to_owned()));
        }
        let cases: Vec<TrainingCase> = cases.into_iter().map(Into::into).collect();
        for case in &cases {
            case.check()?;
            if case.channels() != masked_channels.len() {
                return Err(Error::Shape {
                    what: "channels of a prepared case",
                    found: vec![case.channels()],
                    expected: vec![masked_channels.len()],
                });
            }
        }
        let masked_channels = masked_channels.to_vec();
        Ok(Self { cases, patch_size, batch_size, augmentation, masked_channels, forced_foreground: 0.33 })
    }

    /// Sets the part of each batch (0 to 1, by default nnU-Net's 0.33) that must show foreground: the samples from
    /// round(`batch_size` (1 - `part`)) on.
    #[must_use]
    pub fn with_forced_foreground(self, part: f64) -> Self {
        Self { forced_foreground: part.clamp(0.0, 1.0), ..self }
    }

    /// Draws the batch named by `key`.
    ///
    /// # Errors
    /// Those of [`crate::StoredCase::read`]; none for cases in memory.
    pub fn batch(&self, key: BatchKey) -> Result<SampledBatch> {
        let [d, h, w] = self.patch_size;
        let (b, c) = (self.batch_size, self.masked_channels.len());
        let mut batch = SampledBatch {
            x: Vec::with_capacity(b * c * d * h * w),
            target: Vec::with_capacity(b * d * h * w),
            x_shape: [b, c, d, h, w],
            target_shape: [b, d, h, w],
            cases: Vec::with_capacity(b),
        };
        for sample in 0..b {
            let (case, patch) = self.sample(key, sample)?;
            batch.x.extend_from_slice(&patch.image);
            // -1 marks the outside of the image or of its nonzero region, which the loss counts as background.
            batch.target.extend(patch.labels.iter().map(|&label| label.max(0) as u8));
            batch.cases.push(case);
            SPARE.set(patch);
        }
        Ok(batch)
    }

    /// Indices of the cases that the samples of a batch are drawn from, without drawing it.
    pub fn cases(&self, key: BatchKey) -> Vec<usize> {
        let first_draw =
            |sample| self.draw_case(&mut rng(key.seed, key.purpose, key.epoch, key.iteration, sample as u32));
        (0..self.batch_size).map(first_draw).collect()
    }

    fn draw_case(&self, rng: &mut impl rand::Rng) -> usize {
        rng.random_range(0..self.cases.len())
    }

    fn sample(&self, key: BatchKey, sample: usize) -> Result<(usize, Patch)> {
        let (case, mut patch, transforms) = self.draw(key, sample)?;
        transforms.apply_to(&mut patch);
        patch.clear_outside(&self.masked_channels);
        Ok((case, patch))
    }

    /// Draws a case and its patch after the spatial transform, and the transforms that follow.
    fn draw(&self, key: BatchKey, sample: usize) -> Result<(usize, Patch, DrawnTransforms)> {
        let rng = &mut rng(key.seed, key.purpose, key.epoch, key.iteration, sample as u32);
        let case_idx = self.draw_case(rng);
        let case = &self.cases[case_idx];
        let enlarged = enlarged_patch(&self.augmentation, self.patch_size);
        // Rounding makes this every second sample of a batch of two, and none of a batch of one.
        let unforced = (self.batch_size as f64 * (1.0 - self.forced_foreground)).round_ties_even() as usize;
        let shape = case.shape();
        let focus = if sample >= unforced { case.foreground_voxel(rng)? } else { None };
        let start = corner(shape, enlarged, self.patch_size, focus, rng);
        let spatial = SpatialTransform::draw(&self.augmentation, self.patch_size, rng);
        let patch = spatial.extract(case, start, enlarged, self.patch_size, SPARE.take())?;
        let channels = self.masked_channels.len();
        let transforms = self.augmentation.draw(self.patch_size, channels, rng);
        Ok((case_idx, patch, transforms))
    }
}

/// First voxel of the enlarged patch; may be negative. The final patch can reach beyond the image by half of what the
/// enlargement adds; around a focus it may go further at the far end, but not at the near one.
fn corner(
    shape: [usize; 3],
    enlarged: [usize; 3],
    patch: [usize; 3],
    focus: Option<[u32; 3]>,
    rng: &mut impl rand::Rng,
) -> [isize; 3] {
    [0, 1, 2].map(|a| {
        let margin = (enlarged[a] - patch[a]).max(enlarged[a].saturating_sub(shape[a]));
        let lowest = -(margin.div_ceil(2) as isize);
        let highest = (shape[a] + margin.div_ceil(2)) as isize - enlarged[a] as isize;
        match focus {
            Some(voxel) => lowest.max(voxel[a] as isize - (enlarged[a] / 2) as isize),
            None => rng.random_range(lowest as i64..=highest as i64) as isize,
        }
    })
}

#[cfg(test)]
mod tests;
