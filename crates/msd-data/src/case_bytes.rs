//! Memory that cases take, estimated from the headers of their images.

use std::path::PathBuf;

use crate::dataset::{first_file, volume_bytes};
use crate::error::Result;
use crate::geometry::Geometry;
use crate::nifti::read_geometry;
use crate::plan::Plan;
use crate::preprocess::resampled_shape;

/// Memory that a case takes, estimated from the header of its image. Upper bounds: cropping only reduces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaseBytes {
    /// Voxels of the image along the plan's axes.
    pub shape: [usize; 3],
    /// Voxels once it is prepared.
    pub prepared_shape: [usize; 3],
    /// Bytes once it is prepared: f32 voxels of each channel and i16 labels.
    pub prepared: u64,
    /// Bytes while it is read and prepared: twice the larger of the volumes before and after, labels included, so 12 per voxel of
    /// one channel (`examples/large_case.rs` measures 7 to 8.5).
    pub preparing: u64,
}

impl CaseBytes {
    /// Estimates the memory of preparing the image in `files` ([`crate::Case::image`]) for a plan.
    ///
    /// # Errors
    /// Those of [`read_geometry`]; [`Error::Invalid`](crate::Error::Invalid) without a file.
    pub fn of(files: &[PathBuf], plan: &Plan) -> Result<Self> {
        Ok(Self::on(&read_geometry(first_file(files)?)?.0, plan))
    }

    /// Estimates the memory of preparing an image on a grid for a plan.
    pub fn on(geometry: &Geometry, plan: &Plan) -> Self {
        let axes = plan.axes_of(geometry);
        let (shape, spacing_mm) = (axes.triple(geometry.shape), axes.triple(geometry.spacing_mm));
        let prepared_shape = resampled_shape(shape, spacing_mm, plan.spacing_mm);
        let channels = plan.modalities.len();
        let prepared = volume_bytes(prepared_shape, channels);
        let preparing = prepared.max(volume_bytes(shape, channels)).saturating_mul(2);
        Self { shape, prepared_shape, prepared, preparing }
    }
}
