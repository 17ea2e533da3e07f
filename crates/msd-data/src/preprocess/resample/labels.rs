//! Resampling of labels: each voxel is decided from the eight around it, without a map per label.

use std::ops::Range;

use ndarray::{Array3, parallel::prelude::*};

use super::lines::{AxisTaps, Interpolation, nearest_voxels};

/// Resamples labels to `shape`. A voxel gets the highest label, -1 included, whose indicator interpolates to at least one
/// half, or 0 if none does. Along a `separate` axis the nearest slice is taken.
pub(crate) fn resample_labels(labels: Array3<i16>, shape: [usize; 3], separate: Option<usize>) -> Array3<i16> {
    if labels.shape() == shape {
        return labels;
    }
    let [z_taps, y_taps, x_taps] =
        [0, 1, 2].map(|axis| LabelTap::along(labels.shape()[axis], shape[axis], separate == Some(axis)));
    let (_, height, width) = labels.dim();
    let voxels = labels.as_slice().expect("labels are in standard layout");
    let mut out = Array3::zeros(shape);
    let slices = out.outer_iter_mut().into_par_iter().zip(&z_taps);
    slices.for_each(|(mut slice, z)| {
        for (mut row, y) in slice.outer_iter_mut().zip(&y_taps) {
            let row = row.as_slice_mut().expect("made in standard layout");
            let rows = [(z.low, y.low), (z.low, y.high), (z.high, y.low), (z.high, y.high)]
                .map(|(z, y)| &voxels[(z * height + y) * width..][..width]);
            let alike = rows[1..].iter().all(|other| *other == rows[0]);
            if alike && width == shape[2] {
                row.copy_from_slice(rows[0]);
                continue;
            }
            for (label, x) in row.iter_mut().zip(&x_taps) {
                let first = rows[0][x.low];
                let uniform = |row: &&[i16]| row[x.low] == first && row[x.high] == first;
                let all = if alike { uniform(&rows[0]) } else { rows.iter().all(uniform) };
                *label = if all {
                    first
                } else {
                    let at = rows.map(|row| [row[x.low], row[x.high]]);
                    winner(at, [z.weights, y.weights, x.weights])
                };
            }
        }
    });
    out
}

/// The two input voxels along an axis between which an output voxel lies, and their weights.
struct LabelTap {
    low: usize,
    high: usize,
    weights: [f64; 2],
}

impl LabelTap {
    fn along(n_in: usize, n_out: usize, nearest: bool) -> Vec<Self> {
        let only = |i| Self { low: i, high: i, weights: [1.0, 0.0] };
        if n_in == n_out {
            return (0..n_out).map(only).collect();
        }
        if nearest {
            return nearest_voxels(n_in, n_out).into_iter().map(only).collect();
        }
        let taps = AxisTaps::new(n_in, n_out, Interpolation::Linear).taps;
        let tap = |(low, [a, b, ..]): (usize, [f64; 4])| Self { low, high: (low + 1).min(n_in - 1), weights: [a, b] };
        taps.into_iter().map(tap).collect()
    }
}

/// Voxels along an axis that each voxel of the resampled axis depends on, linearly or as the nearest.
pub(crate) fn sources(n_in: usize, n_out: usize, nearest: bool) -> Vec<Range<usize>> {
    LabelTap::along(n_in, n_out, nearest).iter().map(|tap| tap.low..tap.high + 1).collect()
}

/// Label of a voxel between eight, `corners[2 z + y][x]`. Sums are taken along z, then y, then x, as in three passes over a
/// whole volume: that decides ties.
fn winner(corners: [[i16; 2]; 4], [z, y, x]: [[f64; 2]; 3]) -> i16 {
    let mut candidates = corners.concat();
    candidates.sort_unstable();
    candidates.dedup();
    let mut won = 0;
    for label in candidates {
        let is = |at: i16| f64::from(u8::from(at == label));
        let along_z = |y: usize, x: usize| z[0] * is(corners[y][x]) + z[1] * is(corners[2 + y][x]);
        let along_y = |x: usize| y[0] * along_z(0, x) + y[1] * along_z(1, x);
        if x[0] * along_y(0) + x[1] * along_y(1) >= 0.5 {
            won = label;
        }
    }
    won
}
