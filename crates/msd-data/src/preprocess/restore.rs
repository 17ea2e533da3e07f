//! Predictions on a prepared case brought back to the image's own grid.

use ndarray::{Array3, ArrayView3, ArrayView4, Axis, CowArray, Ix3, Slice, Zip};

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
        Ok(self.paste(segmentation, 0))
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
        let mut best = Array3::from_elem(shape, f32::NEG_INFINITY);
        let mut labels = Array3::zeros(shape);
        for class in 0..logits.len_of(Axis(0)) {
            let keep = |best: &mut f32, label: &mut u16, &logit: &f32| {
                if logit > *best {
                    *best = logit;
                    *label = class as u16;
                }
            };
            Zip::from(&mut best).and(&mut labels).and(&self.on_own_voxels(logits, class)).for_each(keep);
        }
        Ok(self.paste(&labels.view(), 0))
    }

    /// Resamples logits as [`Self::restore_logits`] does and hands their softmax over the classes to `each`, class by class in
    /// their order, on the image's grid, `[z, y, x]`. Voxels outside the crop are background with certainty.
    ///
    /// # Errors
    /// [`Error::Shape`] if the spatial shape is not the prepared one; the errors of `each`.
    pub fn restore_probabilities<E: From<Error>>(
        &self,
        logits: &ArrayView4<f32>,
        mut each: impl FnMut(Array3<f32>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        self.check_shape("logits", &logits.shape()[1..])?;
        let shape = self.shape_after_cropping();
        let num_classes = logits.len_of(Axis(0));
        // The largest logit of each voxel so far, and the sum of exp(logit - largest).
        let mut largest = Array3::from_elem(shape, f32::NEG_INFINITY);
        let mut sum = Array3::<f32>::zeros(shape);
        for class in 0..num_classes {
            Zip::from(&mut largest).and(&mut sum).and(&self.on_own_voxels(logits, class)).for_each(
                |max, sum, &logit| {
                    let above = max.max(logit);
                    *sum = *sum * (*max - above).exp() + (logit - above).exp();
                    *max = above;
                },
            );
        }
        for class in 0..num_classes {
            let mut probability = self.on_own_voxels(logits, class).into_owned();
            Zip::from(&mut probability).and(&largest).and(&sum).for_each(|p, &max, &sum| *p = (*p - max).exp() / sum);
            each(self.paste(&probability.view(), if class == 0 { 1.0 } else { 0.0 }))?;
        }
        Ok(())
    }

    /// Logits of a class on the voxels of the image's crop.
    fn on_own_voxels<'a>(&self, logits: &'a ArrayView4<f32>, class: usize) -> CowArray<'a, f32, Ix3> {
        let (logits, shape) = (logits.index_axis(Axis(0), class), self.shape_after_cropping());
        if logits.shape() == shape {
            return logits.into();
        }
        let separate = separate_axis(self.target_spacing_mm, self.spacing_mm);
        resample_linear(&logits, shape, separate).into()
    }

    /// Inserts the kept part into the image's grid and restores the order of the axes.
    fn paste<T: Copy>(&self, cropped: &ArrayView3<T>, outside: T) -> Array3<T> {
        let mut full = Array3::from_elem(self.shape_before_cropping, outside);
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
