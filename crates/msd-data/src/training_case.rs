//! A prepared case to draw patches from, in memory or in a file.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use rand::RngExt;

use crate::error::{Error, Result};
use crate::preprocess::PreparedCase;
use crate::store::StoredCase;

/// A labelled case, wherever it is kept. Patches drawn from either are the same.
#[derive(Debug, Clone)]
pub enum TrainingCase {
    /// In memory.
    InMemory(Arc<PreparedCase>),
    /// In a file; patches read what they need.
    Stored(Arc<StoredCase>),
}

impl From<Arc<PreparedCase>> for TrainingCase {
    fn from(case: Arc<PreparedCase>) -> Self {
        Self::InMemory(case)
    }
}

impl From<PreparedCase> for TrainingCase {
    fn from(case: PreparedCase) -> Self {
        Self::InMemory(Arc::new(case))
    }
}

impl From<StoredCase> for TrainingCase {
    fn from(case: StoredCase) -> Self {
        Self::Stored(Arc::new(case))
    }
}

/// A part of a case, at least what was asked for as far as the case reaches.
pub(crate) struct Region<'a> {
    /// `[C, D, H, W]`
    pub(crate) image: Cow<'a, [f32]>,
    /// `[D, H, W]`
    pub(crate) labels: Cow<'a, [i16]>,
    pub(crate) channels: usize,
    pub(crate) shape: [usize; 3],
    /// Its first voxel in the case.
    pub(crate) origin: [usize; 3],
}

impl TrainingCase {
    /// Voxels along D, H, W.
    pub(crate) fn shape(&self) -> [usize; 3] {
        match self {
            Self::InMemory(case) => {
                let (_, d, h, w) = case.image.dim();
                [d, h, w]
            }
            Self::Stored(case) => case.shape(),
        }
    }

    pub(crate) fn channels(&self) -> usize {
        match self {
            Self::InMemory(case) => case.image.dim().0,
            Self::Stored(case) => case.channels(),
        }
    }

    /// Whether patches can be drawn from it.
    ///
    /// # Errors
    /// No labels, labels of another shape or above 255.
    pub(crate) fn check(&self) -> Result<()> {
        let highest = match self {
            Self::InMemory(case) => {
                let labels = case
                    .labels
                    .as_ref()
                    .ok_or_else(|| Error::Invalid("a case to draw patches from has no labels".to_owned()))?;
                if labels.shape() != &case.image.shape()[1..] {
                    return Err(Error::Shape {
                        what: "labels of a prepared case",
                        found: labels.shape().to_vec(),
                        expected: case.image.shape()[1..].to_vec(),
                    });
                }
                labels.iter().copied().max().unwrap_or(0)
            }
            Self::Stored(case) => case.highest_label(),
        };
        if highest > 255 {
            return Err(Error::Invalid(format!("label {highest}; batches hold labels up to 255")));
        }
        Ok(())
    }

    /// A voxel of a label drawn uniformly among those present.
    pub(crate) fn foreground_voxel(&self, rng: &mut impl rand::Rng) -> Result<Option<[u32; 3]>> {
        let classes = match self {
            Self::InMemory(case) => case.locations.len(),
            Self::Stored(case) => case.num_classes(),
        };
        if classes == 0 {
            return Ok(None);
        }
        let class = rng.random_range(0..classes);
        match self {
            Self::InMemory(case) => {
                let voxels = &case.locations[class].voxels;
                Ok(Some(voxels[rng.random_range(0..voxels.len())]))
            }
            Self::Stored(case) => {
                let i = rng.random_range(0..case.num_voxels(class));
                case.voxel(class, i).map(Some)
            }
        }
    }

    /// The voxels in the box from `start` of `size`, which may reach beyond the case.
    pub(crate) fn region(&self, start: [isize; 3], size: [usize; 3]) -> Result<Region<'_>> {
        let channels = self.channels();
        match self {
            Self::InMemory(case) => Ok(Region {
                image: case.image.as_slice().expect("prepared in standard layout").into(),
                labels: case
                    .labels
                    .as_ref()
                    .and_then(|labels| labels.as_slice())
                    .expect("the sampler takes labelled cases only")
                    .into(),
                channels,
                shape: self.shape(),
                origin: [0; 3],
            }),
            Self::Stored(case) => {
                let shape = case.shape();
                let part = [0, 1, 2].map(|a| {
                    let within = |v: isize| v.clamp(0, shape[a] as isize) as usize;
                    within(start[a])..within(start[a] + size[a] as isize)
                });
                let origin = part.clone().map(|range: Range<usize>| range.start);
                let (image, labels) = case.read(&part)?;
                Ok(Region {
                    image: image.into_raw_vec_and_offset().0.into(),
                    labels: labels.into_raw_vec_and_offset().0.into(),
                    channels,
                    shape: part.map(|range| range.len()),
                    origin,
                })
            }
        }
    }
}
