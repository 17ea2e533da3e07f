//! A prepared case to draw patches from, in memory or in a file.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use rand::RngExt;

use crate::error::{Error, Result};
use crate::preprocess::{PreparedCase, check_highest_label, check_prepared};
use crate::store::StoredCase;

/// A prepared, labelled case, in memory or in a file. Equal cases give equal patches in either form.
#[derive(Debug, Clone)]
pub enum TrainingCase {
    /// Kept in memory.
    InMemory(Arc<PreparedCase>),
    /// Kept in a file, of which patches read the chunks they need.
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

/// A box of a case: the requested voxels as far as the case reaches, or more.
pub(crate) struct CaseRegion<'a> {
    /// Voxels, `[C, D, H, W]`.
    pub(crate) image: Cow<'a, [f32]>,
    /// Labels, `[D, H, W]`.
    pub(crate) labels: Cow<'a, [i16]>,
    pub(crate) channels: usize,
    pub(crate) shape: [usize; 3],
    /// First voxel of the box in the case.
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

    /// Image channels.
    pub(crate) fn channels(&self) -> usize {
        match self {
            Self::InMemory(case) => case.image.dim().0,
            Self::Stored(case) => case.channels(),
        }
    }

    /// Checks that patches can be drawn from the case.
    ///
    /// # Errors
    /// Those of [`check_prepared`]; [`Error::Invalid`] for a case in memory of 2^32 voxels or more.
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Self::InMemory(case) => {
                let voxels = self.shape().iter().product::<usize>();
                // Patches index them with 32 bits.
                if voxels > u32::MAX as usize {
                    let fault = "a case in memory has at most 4294967295; store it in a file";
                    return Err(Error::Invalid(format!("{voxels} voxels; {fault}")));
                }
                check_prepared(case).map(|_| ())
            }
            Self::Stored(case) => check_highest_label(case.highest_label()),
        }
    }

    /// Draws a voxel: first its label, uniformly among those present, then one of that label's voxels. None without
    /// foreground.
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

    /// Reads the box of `size` voxels from `start` on, which may reach beyond the case.
    pub(crate) fn region(&self, start: [isize; 3], size: [usize; 3]) -> Result<CaseRegion<'_>> {
        let channels = self.channels();
        match self {
            Self::InMemory(case) => Ok(CaseRegion {
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
                Ok(CaseRegion {
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
