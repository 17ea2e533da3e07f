//! Predictions on a prepared case brought back to the image's own grid.

use ndarray::{Array3, ArrayView3, ArrayView4, Slice, Zip};

use super::CaseProperties;
use super::resample::{resample_linear, separate_axis};
use crate::error::{Error, Result};

impl CaseProperties {
    /// Brings a segmentation of the prepared case, `[D, H, W]`, to the image's grid, `[z, y, x]`. Voxels outside the crop are
    /// background.
    ///
    /// # Errors
    /// [`Error::Shape`] if it has not the prepared shape. [`Error::Invalid`] if the case was resampled: labels do
    /// not interpolate, use [`Self::restore_logits`].
    pub fn restore_labels(&self, segmentation: &ArrayView3<u16>) -> Result<Array3<u16>> {
        self.check_shape("segmentation", segmentation.shape())?;
        if self.shape_after_cropping() != self.shape {
            return Err(Error::Invalid(format!(
                "the case was resampled from {:?} to {:?} voxels; restore its logits, not its labels",
                self.shape_after_cropping(),
                self.shape
            )));
        }
        Ok(self.paste(segmentation))
    }

    /// Resamples the logits of a prepared case, `[K, D, H, W]`, to the image's voxels and returns the class with the highest
    /// (the first of equals) on the image's grid, `[z, y, x]`.
    ///
    /// Linear interpolation, nearest-neighbour across an axis with much longer voxels; one class at a time, so that
    /// memory does not grow with the number of classes.
    ///
    /// # Errors
    /// [`Error::Shape`] if the spatial shape is not the prepared one.
    pub fn restore_logits(&self, logits: &ArrayView4<f32>) -> Result<Array3<u16>> {
        self.check_shape("logits", &logits.shape()[1..])?;
        let shape = self.shape_after_cropping();
        let separate = separate_axis(self.target_spacing_mm, self.spacing_mm);
        let mut best = Array3::from_elem(shape, f32::NEG_INFINITY);
        let mut labels = Array3::zeros(shape);
        for (class, logits) in logits.outer_iter().enumerate() {
            let keep = |best: &mut f32, label: &mut u16, &logit: &f32| {
                if logit > *best {
                    *best = logit;
                    *label = class as u16;
                }
            };
            if logits.shape() == shape {
                Zip::from(&mut best).and(&mut labels).and(logits).for_each(keep);
            } else {
                let logits = resample_linear(&logits, shape, separate);
                Zip::from(&mut best).and(&mut labels).and(&logits).for_each(keep);
            }
        }
        Ok(self.paste(&labels.view()))
    }

    /// Inserts the kept part into the image's grid and restores the order of the axes.
    fn paste(&self, cropped: &ArrayView3<u16>) -> Array3<u16> {
        let mut full = Array3::zeros(self.shape_before_cropping);
        full.slice_each_axis_mut(|ax| Slice::from(self.crop[ax.axis.0][0]..self.crop[ax.axis.0][1])).assign(cropped);
        self.axes.inverse().apply(full).as_standard_layout().into_owned()
    }

    fn check_shape(&self, what: &'static str, found: &[usize]) -> Result<()> {
        if found == self.shape {
            return Ok(());
        }
        Err(Error::Shape { what, found: found.to_vec(), expected: self.shape.to_vec() })
    }
}
