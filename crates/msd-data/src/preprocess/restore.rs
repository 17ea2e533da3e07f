//! Predictions on a prepared case brought back to the image's own grid.

use std::ops::Range;

use ndarray::{Array3, Array4, ArrayView3, ArrayView4, Axis, CowArray, Ix3, Slice, Zip, concatenate};

use super::CaseProperties;
use super::resample::{Planes, resample_linear, resample_planes, separate_axis, sources};
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
    /// memory does not grow with the number of classes. [`LabelRestorer`] does the same plane by plane.
    ///
    /// # Errors
    /// [`Error::Shape`] if the spatial shape is not the prepared one.
    pub fn restore_logits(&self, logits: &ArrayView4<f32>) -> Result<Array3<u16>> {
        self.check_shape("logits", &logits.shape()[1..])?;
        let mut labels = LabelRestorer::new(self);
        labels.add(logits)?;
        labels.finish()
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
                    // Its exponential adds nothing, but as the largest so far, the difference of infinities is no number.
                    if logit == f32::NEG_INFINITY {
                        return;
                    }
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
        resample_linear(&logits, shape, self.separate_axis()).into()
    }

    /// Axis of the prepared case along which the nearest plane is taken.
    fn separate_axis(&self) -> Option<usize> {
        separate_axis(self.target_spacing_mm, self.spacing_mm)
    }

    /// Inserts the kept part into the image's grid and restores the order of the axes.
    fn paste<T: Copy>(&self, cropped: &ArrayView3<T>, outside: T) -> Array3<T> {
        let mut full = Array3::from_elem(self.shape_before_cropping, outside);
        full.slice_each_axis_mut(|ax| Slice::from(self.crop[ax.axis.0][0]..self.crop[ax.axis.0][1])).assign(cropped);
        self.axes.inverse().apply(full).as_standard_layout().into_owned()
    }

    fn check_shape(&self, what: &'static str, found: &[usize]) -> Result<()> {
        self.check()?;
        if found == self.shape {
            return Ok(());
        }
        Err(Error::Shape { what, found: found.to_vec(), expected: self.shape.to_vec() })
    }
}

/// [`CaseProperties::restore_logits`] for logits that come plane by plane along the first axis, so that they need not exist all
/// at once; the labels are the same.
#[derive(Debug)]
pub struct LabelRestorer<'a> {
    properties: &'a CaseProperties,
    /// Planes of logits that every plane of labels depends on.
    sources: Vec<Range<usize>>,
    /// Logits, `[K, planes, H, W]`, that later labels depend on, and the place of their first plane.
    pending: Array4<f32>,
    first: usize,
    /// Labels on the voxels of the crop; planes from `done` on are still to come.
    labels: Array3<u16>,
    done: usize,
}

impl<'a> LabelRestorer<'a> {
    /// Starts with the first plane of the prepared case.
    ///
    /// # Panics
    /// If [`CaseProperties::check`] refuses the properties.
    pub fn new(properties: &'a CaseProperties) -> Self {
        assert!(properties.check().is_ok(), "{properties:?}");
        let shape = properties.shape_after_cropping();
        let sources = sources(properties.shape[0], shape[0], properties.separate_axis() == Some(0));
        let pending = Array4::zeros((0, 0, 0, 0));
        Self { properties, sources, pending, first: 0, labels: Array3::zeros(shape), done: 0 }
    }

    /// Takes the logits of the planes that follow, `[K, planes, H, W]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the planes are not of the prepared case, or too many.
    pub fn add(&mut self, logits: &ArrayView4<f32>) -> Result<()> {
        let planes = self.pending.len_of(Axis(1));
        let [_, height, width] = self.properties.shape;
        let all = self.first + planes + logits.len_of(Axis(1));
        let is_first = self.first + planes == 0;
        let &[classes, _, rows, columns] = logits.shape() else { unreachable!("four axes") };
        if [rows, columns] != [height, width] || all > self.properties.shape[0] {
            let (found, expected) = (vec![all, rows, columns], self.properties.shape.to_vec());
            return Err(Error::Shape { what: "logits", found, expected });
        }
        let expected = if is_first { classes } else { self.pending.len_of(Axis(0)) };
        if classes != expected {
            return Err(Error::Shape { what: "classes", found: vec![classes], expected: vec![expected] });
        }
        let joined;
        let known = if planes == 0 {
            logits.view()
        } else {
            joined = concatenate![Axis(1), self.pending, *logits];
            joined.view()
        };
        let ready = self.sources[self.done..].iter().take_while(|planes| planes.end <= all).count();
        self.label(&known, self.done..self.done + ready);
        self.done += ready;
        // Nothing is kept if no label is to come, or if the next one depends on planes to come alone.
        let keep = self.sources.get(self.done).map_or(all, |planes| planes.start.clamp(self.first, all));
        let pending = known.slice_axis(Axis(1), Slice::from(keep - self.first..)).to_owned();
        (self.pending, self.first) = (pending, keep);
        Ok(())
    }

    /// Computes the labels of these planes from `logits`, whose first plane is `first`.
    fn label(&mut self, logits: &ArrayView4<f32>, to: Range<usize>) {
        if to.is_empty() {
            return;
        }
        let (properties, shape) = (self.properties, self.properties.shape_after_cropping());
        let mut labels = self.labels.slice_axis_mut(Axis(0), Slice::from(to.clone()));
        let mut best = Array3::from_elem(labels.dim(), f32::NEG_INFINITY);
        for (class, logits) in logits.outer_iter().enumerate() {
            let own: CowArray<f32, Ix3> = if properties.shape == shape {
                logits.slice_axis(Axis(0), Slice::from(0..to.len())).into()
            } else {
                let planes =
                    Planes { first: self.first, num_from: properties.shape[0], to: to.clone(), num_to: shape[0] };
                resample_planes(&logits, shape, properties.separate_axis(), planes).into()
            };
            Zip::from(&mut best).and(&mut labels).and(&own).par_for_each(|best, label, &logit| {
                if logit > *best {
                    *best = logit;
                    *label = class as u16;
                }
            });
        }
    }

    /// Labels on the image's grid, `[z, y, x]`; voxels outside the crop are background.
    ///
    /// # Errors
    /// [`Error::Shape`] if planes are missing.
    pub fn finish(self) -> Result<Array3<u16>> {
        let [_, height, width] = self.properties.shape;
        let planes = self.first + self.pending.len_of(Axis(1));
        self.properties.check_shape("logits", &[planes, height, width])?;
        Ok(self.properties.paste(&self.labels.view(), 0))
    }
}
