//! Normalisation of intensities.

use ndarray::{ArrayView3, ArrayViewMut3, Axis, Zip, parallel::prelude::*};

use crate::error::{Error, Result};
use crate::fingerprint::IntensityStatistics;
use crate::plan::Normalization;

/// Normalises one channel in place. With `masked`, z-score takes statistics from and changes only voxels whose label
/// is not -1.
///
/// # Errors
/// [`Error::Invalid`] if CT normalisation has no statistics of the dataset, or percentiles in the wrong order.
pub(crate) fn normalize(
    channel: &mut ArrayViewMut3<f32>,
    masked: Option<&ArrayView3<i16>>,
    how: Normalization,
    dataset: Option<&IntensityStatistics>,
) -> Result<()> {
    match how {
        Normalization::None => {}
        Normalization::RgbToUnit => channel.par_mapv_inplace(|v| v / 255.0),
        Normalization::RescaleToUnit => {
            let (min, max) = channel.iter().fold((f32::MAX, f32::MIN), |(a, b), &v| (a.min(v), b.max(v)));
            let range = (max - min).max(1e-8);
            channel.par_mapv_inplace(|v| (v - min) / range);
        }
        Normalization::Ct => {
            let missing = || Error::Invalid("the plan has no sound intensity statistics for a CT channel".to_owned());
            let stats = dataset.filter(|s| s.percentile_00_5 <= s.percentile_99_5).ok_or_else(missing)?;
            let (low, high) = (stats.percentile_00_5 as f32, stats.percentile_99_5 as f32);
            let (mean, std) = (stats.mean as f32, stats.std.max(1e-8) as f32);
            channel.par_mapv_inplace(|v| (v.clamp(low, high) - mean) / std);
        }
        Normalization::ZScore => z_score(channel, masked),
    }
    Ok(())
}

fn z_score(channel: &mut ArrayViewMut3<f32>, masked: Option<&ArrayView3<i16>>) {
    // Sums of slices, then their sum: the same for any number of threads.
    let sum = |of: &(dyn Fn(f64) -> f64 + Sync)| {
        let slices = channel.outer_iter().into_par_iter().enumerate();
        let sums = slices.map(|(z, slice)| match masked {
            None => (slice.iter().map(|&v| of(f64::from(v))).sum(), slice.len()),
            Some(labels) => {
                let labels = labels.index_axis(Axis(0), z);
                let inside = slice.iter().zip(labels).filter(|(_, label)| **label >= 0);
                inside.fold((0.0, 0), |(sum, n), (&v, _)| (sum + of(f64::from(v)), n + 1))
            }
        });
        let sums: Vec<(f64, usize)> = sums.collect();
        let (sum, n) = sums.iter().fold((0.0, 0), |(a, n), (b, m)| (a + b, n + m));
        sum / n.max(1) as f64
    };
    let mean = sum(&|v| v);
    let std = sum(&|v| (v - mean).powi(2)).sqrt().max(1e-8);
    let scaled = |v: f32| ((f64::from(v) - mean) / std) as f32;
    match masked {
        None => channel.par_mapv_inplace(scaled),
        Some(labels) => Zip::from(channel).and(labels).par_for_each(|v, &label| {
            if label >= 0 {
                *v = scaled(*v);
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array3, arr3};

    use super::*;

    #[test]
    fn z_score_inside_the_mask_leaves_the_outside_alone() {
        let mut image = arr3(&[[[0.0f32, 2.0, 4.0]]]);
        normalize(&mut image.view_mut(), Some(&arr3(&[[[-1i16, 0, 3]]]).view()), Normalization::ZScore, None).unwrap();
        assert_eq!(image, arr3(&[[[0.0, -1.0, 1.0]]]));
        let mut constant = Array3::from_elem((2, 2, 2), 7.0f32);
        normalize(&mut constant.view_mut(), None, Normalization::ZScore, None).unwrap();
        assert!(constant.iter().all(|&v| v == 0.0), "no division by zero");
    }

    #[test]
    fn ct_clips_and_uses_the_dataset() {
        let stats = IntensityStatistics {
            mean: 10.0,
            median: 0.0,
            std: 2.0,
            min: -500.0,
            max: 500.0,
            percentile_00_5: 0.0,
            percentile_99_5: 20.0,
        };
        let mut image = arr3(&[[[-1000.0f32, 10.0, 12.0, 3000.0]]]);
        normalize(&mut image.view_mut(), None, Normalization::Ct, Some(&stats)).unwrap();
        assert_eq!(image, arr3(&[[[-5.0, 0.0, 1.0, 5.0]]]));
        let reversed = IntensityStatistics { percentile_00_5: 30.0, ..stats };
        assert!(normalize(&mut image.view_mut(), None, Normalization::Ct, Some(&reversed)).is_err());
        assert!(normalize(&mut image.view_mut(), None, Normalization::Ct, None).is_err());
    }

    #[test]
    fn unit_scales() {
        let mut image = arr3(&[[[51.0f32, 102.0, 153.0]]]);
        normalize(&mut image.view_mut(), None, Normalization::RescaleToUnit, None).unwrap();
        assert_eq!(image, arr3(&[[[0.0, 0.5, 1.0]]]));
        let mut image = arr3(&[[[51.0f32]]]);
        normalize(&mut image.view_mut(), None, Normalization::RgbToUnit, None).unwrap();
        adw_testing::assert_close("first voxel", &[image[[0, 0, 0]]], &[0.2f32], adw_testing::tolerance::F32_ROUNDING);
    }
}
