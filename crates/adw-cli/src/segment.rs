//! Segmentation of a prepared case into a label map on the image's own grid.

use adw_search::infer::{Predict, SlidingWindow};
use adw_supernet::Unet;
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use msd_data::PreparedCase;
use ndarray::{Array3, Array4};

/// Trained networks whose logits are averaged, and the windows in which they see an image.
pub(crate) struct Segmenter<'a> {
    pub(crate) models: &'a [Unet],
    pub(crate) window: SlidingWindow,
}

impl Segmenter<'_> {
    /// Computes the label of every voxel of the image that `case` was prepared from, `[z, y, x]`. `progress(done, total)`
    /// counts windows.
    ///
    /// # Errors
    /// A network fails, or its logits are not finite.
    pub(crate) fn segment(&self, case: &PreparedCase, progress: &mut dyn FnMut(usize, usize)) -> Result<Array3<u16>> {
        let logits = self.logits(case, progress)?;
        Ok(case.properties.restore_logits(&logits.view())?)
    }

    /// Computes the mean logits of the networks, `[K, D, H, W]` on the grid of `case`.
    ///
    /// # Errors
    /// Those of [`Self::segment`].
    pub(crate) fn logits(&self, case: &PreparedCase, progress: &mut dyn FnMut(usize, usize)) -> Result<Array4<f32>> {
        let (c, d, h, w) = case.image.dim();
        let voxels = case.image.as_standard_layout();
        let voxels = voxels.as_slice().expect("standard layout is contiguous");
        let image = Tensor::from_slice(voxels, (1, c, d, h, w), &Device::Cpu)?;
        let mut networks: Vec<_> = self.models.iter().map(|model| |x: &Tensor| Ok(model.predict(x)?)).collect();
        let mut networks: Vec<&mut Predict<'_>> = networks.iter_mut().map(|network| network as _).collect();
        let logits = self.window.logits(&image, &mut networks, progress)?;
        let (_, k, d, h, w) = logits.dims5()?;
        let values = logits.flatten_all()?.to_vec1::<f32>()?;
        Array4::from_shape_vec((k, d, h, w), values).context("the logits' shape")
    }
}
