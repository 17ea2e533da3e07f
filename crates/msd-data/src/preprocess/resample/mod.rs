//! Resampling to another voxel size, as scikit-image's `resize` does it for nnU-Net.
//!
//! Output voxel i of an axis lies at `(i + 0.5) n_in / n_out - 0.5` of the input, edges replicate, there is no
//! anti-aliasing. Every interpolation is separable, so images are resampled one axis at a time, axes that grow most last.

use std::ops::Range;

use ndarray::{Array3, Array4, ArrayView2, ArrayView3, ArrayViewMut3, Axis, parallel::prelude::*};

mod labels;
mod lines;

pub(crate) use labels::{resample_labels, sources};
use lines::{AxisTaps, Interpolation, clamp, nearest_voxels, resample_axis};

/// Shape after resampling: round(shape spacing / target) per axis, at least 1.
pub(crate) fn resampled_shape(shape: [usize; 3], spacing_mm: [f64; 3], target_mm: [f64; 3]) -> [usize; 3] {
    // A slice thinner than half a target voxel would vanish.
    let along = |a: usize| (spacing_mm[a] / target_mm[a] * shape[a] as f64).round_ties_even();
    [0, 1, 2].map(|a| along(a).max(1.0) as usize)
}

/// Axis that is resampled on its own: along it, and it alone, voxels are longest, and more than three times longer than
/// along the finest axis, in the current grid or else in the target grid. None if there is no such axis.
pub(crate) fn separate_axis(current_mm: [f64; 3], target_mm: [f64; 3]) -> Option<usize> {
    let extremes = |mm: [f64; 3]| mm.iter().fold((f64::MAX, f64::MIN), |(a, b), &v| (a.min(v), b.max(v)));
    let anisotropic = |mm: &[f64; 3]| {
        let (min, max) = extremes(*mm);
        max / min > 3.0
    };
    let mm = [current_mm, target_mm].into_iter().find(anisotropic)?;
    let (_, max) = extremes(mm);
    let mut longest = (0..3).filter(|&a| mm[a] == max);
    longest.next().filter(|_| longest.next().is_none())
}

/// Resamples every channel of `[C, z, y, x]` with cubic splines to the spatial `shape`, then clips it to the range it had,
/// per slice along a `separate` axis. An image that has the shape already is returned as it is.
pub(crate) fn resample_image(image: Array4<f32>, shape: [usize; 3], separate: Option<usize>) -> Array4<f32> {
    if image.shape()[1..] == shape {
        return image;
    }
    let mut out = Array4::zeros((image.dim().0, shape[0], shape[1], shape[2]));
    let whole = Planes::whole(image.shape()[1], shape[0]);
    for (from, to) in image.outer_iter().zip(out.outer_iter_mut()) {
        resample_into(&from, to, separate, Interpolation::Cubic, whole.clone());
    }
    out
}

/// Resamples one volume linearly to `shape`, by the nearest slice along a `separate` axis.
pub(crate) fn resample_linear(volume: &ArrayView3<f32>, shape: [usize; 3], separate: Option<usize>) -> Array3<f32> {
    resample_planes(volume, shape, separate, Planes::whole(volume.shape()[0], shape[0]))
}

/// Part of a volume along its first axis.
#[derive(Debug, Clone)]
pub(crate) struct Planes {
    /// First of the planes at hand.
    pub(crate) first: usize,
    /// Planes of the whole volume.
    pub(crate) num_from: usize,
    /// Planes to compute.
    pub(crate) to: Range<usize>,
    /// Planes of the whole result.
    pub(crate) num_to: usize,
}

impl Planes {
    fn whole(num_from: usize, num_to: usize) -> Self {
        Self { first: 0, num_from, to: 0..num_to, num_to }
    }
}

/// Planes of [`resample_linear`]'s result for a whole volume, bit by bit, from a part of it that holds
/// [what they need](sources).
pub(crate) fn resample_planes(
    volume: &ArrayView3<f32>,
    shape: [usize; 3],
    separate: Option<usize>,
    planes: Planes,
) -> Array3<f32> {
    let mut out = Array3::zeros([planes.to.len(), shape[1], shape[2]]);
    resample_into(volume, out.view_mut(), separate, Interpolation::Linear, planes);
    out
}

/// Resamples one volume, or a part of it, to the shape of `to`, by the nearest slice along a `separate` axis. Cubic results are
/// clipped to the input's range.
fn resample_into(
    from: &ArrayView3<f32>,
    mut to: ArrayViewMut3<f32>,
    separate: Option<usize>,
    interpolation: Interpolation,
    planes: Planes,
) {
    let n_in = [planes.num_from, from.shape()[1], from.shape()[2]];
    let n_out = [planes.num_to, to.shape()[1], to.shape()[2]];
    let taps = |axis: usize| {
        let taps = AxisTaps::new(n_in[axis], n_out[axis], interpolation);
        if axis == 0 { taps.part(planes.first, planes.to.clone()) } else { taps }
    };
    let mut axes: Vec<usize> = (0..3).filter(|&a| Some(a) != separate && n_in[a] != n_out[a]).collect();
    // The axis that grows most is resampled last, which keeps the intermediate volumes small.
    axes.sort_by(|&a, &b| (n_out[a] * n_in[b]).cmp(&(n_out[b] * n_in[a])));
    let clip = interpolation == Interpolation::Cubic && !axes.is_empty();
    let whole = (clip && separate.is_none()).then(|| range(from));
    let across = separate.filter(|&a| n_in[a] != n_out[a]);
    let mut current: Option<Array3<f32>> = None;
    for (i, &axis) in axes.iter().enumerate() {
        let source = current.as_ref().map_or(from.view(), |c| c.view());
        let last = i + 1 == axes.len();
        let bounds = whole.filter(|_| last);
        if last && across.is_none() {
            resample_axis(&source, &mut to, axis, &taps(axis), bounds);
        } else {
            let mut shape = [0, 1, 2].map(|a| source.shape()[a]);
            shape[axis] = if axis == 0 { planes.to.len() } else { n_out[axis] };
            let mut next = Array3::from_elem(shape, 0.0);
            resample_axis(&source, &mut next.view_mut(), axis, &taps(axis), bounds);
            current = Some(next);
        }
    }
    if let Some(axis) = separate.filter(|_| clip) {
        let in_plane = match &mut current {
            Some(current) if across.is_some() => current.view_mut(),
            _ => to.view_mut(),
        };
        clip_slices(in_plane, from, axis);
    }
    match across {
        Some(axis) => {
            let source = current.as_ref().map_or(from.view(), |c| c.view());
            let picked = nearest_voxels(n_in[axis], n_out[axis]);
            let (first, out) = if axis == 0 { (planes.first, planes.to) } else { (0, 0..n_out[axis]) };
            let slices = to.axis_iter_mut(Axis(axis)).into_par_iter().zip(&picked[out]);
            slices.for_each(|(mut to, i)| to.assign(&source.index_axis(Axis(axis), i - first)));
        }
        None if axes.is_empty() => to.assign(from),
        None => {}
    }
}

/// Smallest and largest value; zeros for an empty volume.
fn range(volume: &ArrayView3<f32>) -> (f32, f32) {
    let wider = |a: (f32, f32), b: (f32, f32)| (a.0.min(b.0), a.1.max(b.1));
    let slices = volume.outer_iter().into_par_iter();
    let of_slice = |slice: ArrayView2<f32>| slice.iter().map(|&v| (v, v)).reduce(wider);
    let all = slices.filter_map(of_slice).reduce_with(wider);
    all.unwrap_or((0.0, 0.0))
}

/// Clips each slice along `axis` to the range of the same slice of `like`.
fn clip_slices(mut volume: ArrayViewMut3<f32>, like: &ArrayView3<f32>, axis: usize) {
    let slices = volume.axis_iter_mut(Axis(axis)).into_par_iter();
    let likes = like.axis_iter(Axis(axis)).into_par_iter();
    slices.zip(likes).for_each(|(mut slice, like)| {
        let bounds = range(&like.insert_axis(Axis(0)));
        slice.mapv_inplace(|v| clamp(v, bounds));
    });
}

#[cfg(test)]
mod tests;
