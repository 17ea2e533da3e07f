//! Memory that cases take.

use crate::dataset::Case;
use crate::error::Result;
use crate::nifti::read_geometry;
use crate::plan::Plan;
use crate::preprocess::resampled_shape;

/// Memory that a case takes, estimated from the header of its image. Upper bounds: cropping only reduces it.
pub(crate) struct CaseBytes {
    /// Bytes once it is prepared: f32 voxels of each channel and i16 labels.
    pub(crate) prepared: u64,
    /// Bytes while it is read and prepared: twice the larger of the volumes before and after (`examples/large_case.rs`
    /// measures 1.7 to 2.1 times its image, labels included).
    pub(crate) preparing: u64,
}

impl CaseBytes {
    pub(crate) fn of(case: &Case, plan: &Plan) -> Result<Self> {
        let (geometry, _) = read_geometry(&case.image[0])?;
        let axes = plan.axes_of(&geometry);
        let (shape, spacing_mm) = (axes.triple(geometry.shape), axes.triple(geometry.spacing_mm));
        // In floating point, which saturates where an absurd voxel size leads to an absurd number of voxels.
        let bytes = |shape: [usize; 3]| {
            let per_voxel = (4 * plan.modalities.len() + 2) as f64;
            per_voxel * shape.iter().map(|&n| n as f64).product::<f64>()
        };
        let prepared = bytes(resampled_shape(shape, spacing_mm, plan.spacing_mm));
        Ok(Self { prepared: prepared as u64, preparing: (2.0 * prepared.max(bytes(shape))) as u64 })
    }
}
