//! Distances between surfaces, in millimetres.
//!
//! The surface of a structure is its voxels with one of the six face neighbours outside (beyond the image counts as
//! outside), as in MONAI's `get_mask_edges`; a voxel is as far from a surface as from its nearest voxel's centre,
//! by an exact Euclidean distance transform with the voxel size. Every surface voxel weighs the same, as in MONAI;
//! DeepMind's `surface-distance` weighs them by the area they stand for.

use std::ops::Range;

use ndarray::{Array3, ArrayView3};

use super::check_shapes;
use super::distance::distance_mm;
use crate::error::Result;
use crate::fingerprint::percentile;

/// Distances between the surfaces of one label in a prediction and its reference.
#[derive(Debug, Clone, PartialEq)]
pub struct SurfaceDistances {
    /// Millimetres from every surface voxel of the prediction to the reference's surface.
    pub prediction_to_reference_mm: Vec<f64>,
    /// Millimetres from every surface voxel of the reference to the prediction's surface.
    pub reference_to_prediction_mm: Vec<f64>,
}

impl SurfaceDistances {
    /// 95 % Hausdorff distance: the larger of the two 95th percentiles (linear between ranks). NaN if both
    /// surfaces are empty, infinite if one is.
    pub fn hd95_mm(&self) -> f64 {
        let (a, b) = (&self.prediction_to_reference_mm, &self.reference_to_prediction_mm);
        match (a.is_empty(), b.is_empty()) {
            (true, true) => f64::NAN,
            (false, false) => percentile(&mut a.clone(), 95.0).max(percentile(&mut b.clone(), 95.0)),
            _ => f64::INFINITY,
        }
    }

    /// Normalised surface Dice: the part of both surfaces that lies within `tolerance_mm` of the other. NaN if both are
    /// empty.
    pub fn nsd(&self, tolerance_mm: f64) -> f64 {
        // Voxel sizes are stored in single precision: a distance of one voxel of 0.8 mm reads 0.80000001.
        let tolerance_mm = tolerance_mm * (1.0 + 1e-6);
        let both = || self.prediction_to_reference_mm.iter().chain(&self.reference_to_prediction_mm);
        both().filter(|&&mm| mm <= tolerance_mm).count() as f64 / both().count() as f64
    }
}

/// Measures the distances between the surfaces of `label`; both maps are `[z, y, x]`, as is `spacing_mm`.
///
/// # Errors
/// [`crate::Error::Shape`] if the shapes differ.
pub fn surface_distances(
    prediction: &ArrayView3<u16>,
    reference: &ArrayView3<u16>,
    label: u16,
    spacing_mm: [f64; 3],
) -> Result<SurfaceDistances> {
    check_shapes(prediction, reference)?;
    let Some(bounds) = bounds(prediction, reference, label) else {
        return Ok(SurfaceDistances { prediction_to_reference_mm: vec![], reference_to_prediction_mm: vec![] });
    };
    // All surface voxels lie in this box, so nothing outside it matters.
    let (a, b) = (surface(prediction, label, &bounds), surface(reference, label, &bounds));
    let towards = |from: &Array3<bool>, to: &Array3<bool>| {
        let distance = distance_mm(to, spacing_mm);
        from.iter().zip(&distance).filter(|(on_surface, _)| **on_surface).map(|(_, &mm)| mm).collect()
    };
    Ok(SurfaceDistances { prediction_to_reference_mm: towards(&a, &b), reference_to_prediction_mm: towards(&b, &a) })
}

/// Computes the 95 % Hausdorff distance of `label` in millimetres ([`SurfaceDistances::hd95_mm`]).
///
/// # Errors
/// [`crate::Error::Shape`] if the shapes differ.
pub fn hd95_mm(
    prediction: &ArrayView3<u16>,
    reference: &ArrayView3<u16>,
    label: u16,
    spacing_mm: [f64; 3],
) -> Result<f64> {
    Ok(surface_distances(prediction, reference, label, spacing_mm)?.hd95_mm())
}

/// Computes the normalised surface Dice of `label` ([`SurfaceDistances::nsd`]).
///
/// # Errors
/// [`crate::Error::Shape`] if the shapes differ.
pub fn nsd(
    prediction: &ArrayView3<u16>,
    reference: &ArrayView3<u16>,
    label: u16,
    spacing_mm: [f64; 3],
    tolerance_mm: f64,
) -> Result<f64> {
    Ok(surface_distances(prediction, reference, label, spacing_mm)?.nsd(tolerance_mm))
}

/// Smallest box that holds `label` in both maps; none if neither has it.
fn bounds(a: &ArrayView3<u16>, b: &ArrayView3<u16>, label: u16) -> Option<[Range<usize>; 3]> {
    let mut bounds: Option<[Range<usize>; 3]> = None;
    for (((z, y, x), &a), &b) in a.indexed_iter().zip(b) {
        if a == label || b == label {
            let old = bounds.unwrap_or([z..z, y..y, x..x]);
            let [oz, oy, ox] = old;
            bounds = Some([(oz, z), (oy, y), (ox, x)].map(|(o, i)| o.start.min(i)..o.end.max(i + 1)));
        }
    }
    bounds
}

/// Marks the surface voxels of `label` within `bounds`.
fn surface(map: &ArrayView3<u16>, label: u16, bounds: &[Range<usize>; 3]) -> Array3<bool> {
    let shape = bounds.each_ref().map(ExactSizeIterator::len);
    Array3::from_shape_fn(shape, |(z, y, x)| {
        let (z, y, x) = (z + bounds[0].start, y + bounds[1].start, x + bounds[2].start);
        // Wrapping below 0 is beyond the image, which is outside.
        let inside = |z: usize, y: usize, x: usize| map.get((z, y, x)) == Some(&label);
        inside(z, y, x)
            && !(inside(z.wrapping_sub(1), y, x)
                && inside(z + 1, y, x)
                && inside(z, y.wrapping_sub(1), x)
                && inside(z, y + 1, x)
                && inside(z, y, x.wrapping_sub(1))
                && inside(z, y, x + 1))
    })
}
