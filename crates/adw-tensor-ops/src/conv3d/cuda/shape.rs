//! Shapes that the kernels of `conv3d.cu` support.

use crate::geometry::Conv3dGeometry;
use crate::precision::Precision;
use adw_cuda::Module;

/// Source of the kernels.
pub(super) const MODULE: Module = adw_cuda::module!("conv3d");

/// Output voxels of a block of threads.
pub(super) const BOX: usize = 128;
/// Most taps along an axis.
pub(super) const MAX_AXIS_TAPS: usize = 8;
/// Largest stride along an axis.
const MAX_STRIDE: usize = 32;
/// Most taps of all axes together: as many as one block of the weight gradient keeps in registers.
pub(super) const MAX_TAPS: usize = 27;
/// Bytes of shared memory that a block may have on every device since compute capability 8.0.
pub(super) const MAX_SHARED: usize = 99 * 1024;

/// Most input positions that a dilated kernel covers along an axis, so that its region fits into shared memory.
const MAX_DILATED_REACH: usize = 5;

/// Returns true if the kernels support this geometry.
pub(super) fn supports(geometry: &Conv3dGeometry) -> bool {
    let num_taps = geometry.kernel.iter().product::<usize>();
    let is_dense = geometry.dilation == [1; 3];
    let is_small = geometry.stride == [1; 3] && (0..3).all(|i| geometry.reach(i) <= MAX_DILATED_REACH);
    let is_near = geometry.stride.iter().all(|&stride| stride <= MAX_STRIDE);
    num_taps <= MAX_TAPS && geometry.kernel.iter().all(|&k| k <= MAX_AXIS_TAPS) && is_near && (is_dense || is_small)
}

/// Shape of a convolution, the same for its three passes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConvShape {
    /// Number of samples.
    pub(crate) batch: usize,
    /// Spatial size of the input: D, H, W.
    pub(crate) size: [usize; 3],
    /// Kernel, stride and padding.
    pub(crate) geometry: Conv3dGeometry,
    /// Precision of all maps.
    pub(crate) precision: Precision,
}

impl ConvShape {
    /// Spatial size of the output.
    ///
    /// # Panics
    /// If [`supports`] is false or the kernel does not fit the input: callers have checked.
    pub(super) fn output(&self) -> [usize; 3] {
        let geometry = &self.geometry;
        assert!(supports(geometry), "{geometry:?} is not supported");
        geometry.output_size("conv3d", self.size).expect("checked by the caller")
    }
}
