//! Segmentation of a prepared case into a label map on the image's own grid.

use adw_inference::{BoxError, Predict, SlidingWindow};
use adw_supernet::Unet;
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use msd_data::{LabelRestorer, PreparedCase};
use ndarray::{Array3, Array4};

/// Trained networks whose logits are averaged, and the windows in which they see an image.
pub(crate) struct Segmenter<'a> {
    pub(crate) models: &'a [Unet],
    pub(crate) window: SlidingWindow,
}

impl Segmenter<'_> {
    /// Computes the label of every voxel of the image that `case` was prepared from, `[z, y, x]`. `progress(done, total)`
    /// counts windows. Logits exist for as many planes at once as a window has.
    ///
    /// # Errors
    /// A network fails, or its logits are not finite.
    pub(crate) fn segment(&self, case: PreparedCase, progress: &mut dyn FnMut(usize, usize)) -> Result<Array3<u16>> {
        let PreparedCase { image, properties, .. } = case;
        let mut planes = self.window.planes(&tensor(image)?)?;
        let mut labels = LabelRestorer::new(&properties);
        self.with_networks(|networks| {
            while let Some(logits) = planes.advance(networks, progress)? {
                labels.add(&array(&logits)?.view())?;
            }
            Ok(())
        })?;
        // The image goes before the label map is copied to its own grid.
        drop(planes);
        Ok(labels.finish()?)
    }

    /// Computes the mean logits of the networks, `[K, D, H, W]` on the grid of the prepared `image`, `[C, D, H, W]`.
    ///
    /// # Errors
    /// Those of [`Self::segment`].
    pub(crate) fn logits(&self, image: Array4<f32>, progress: &mut dyn FnMut(usize, usize)) -> Result<Array4<f32>> {
        let image = tensor(image)?;
        self.with_networks(|networks| array(&self.window.logits(&image, networks, progress)?))
    }

    fn with_networks<T>(&self, f: impl FnOnce(&mut [&mut Predict<'_>]) -> Result<T>) -> Result<T> {
        let mut networks: Vec<_> = self
            .models
            .iter()
            .map(|model| |x: &Tensor| -> Result<Tensor, BoxError> { Ok(model.predict(x)?) })
            .collect();
        let mut networks: Vec<&mut Predict<'_>> = networks.iter_mut().map(|network| network as _).collect();
        f(&mut networks)
    }
}

/// Image `[C, D, H, W]` as a batch of one.
fn tensor(image: Array4<f32>) -> Result<Tensor> {
    let (c, d, h, w) = image.dim();
    let image = if image.is_standard_layout() { image } else { image.as_standard_layout().into_owned() };
    let (mut voxels, first) = image.into_raw_vec_and_offset();
    // A part that was cut out in place still lies in its whole; no copy otherwise.
    voxels.drain(..first.unwrap_or(0));
    voxels.truncate(c * d * h * w);
    Ok(Tensor::from_vec(voxels, (1, c, d, h, w), &Device::Cpu)?)
}

/// Logits `[1, K, D, H, W]` without the batch.
fn array(logits: &Tensor) -> Result<Array4<f32>> {
    let (_, k, d, h, w) = logits.dims5()?;
    let values = logits.flatten_all()?.to_vec1::<f32>()?;
    Array4::from_shape_vec((k, d, h, w), values).context("the logits' shape")
}
