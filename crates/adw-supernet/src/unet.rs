//! The discrete network: a 3D U-Net of any depths and widths.

use crate::architecture::Architecture;
use crate::error::Result;
use crate::network::{Network, Widths};
use crate::parameters::{Builder, Gradients, Parameter, Role};
use adw_tensor_ops::conv3d::Precision;
use adw_tensor_ops::loss::DiceCe;
use candle_core::{DType, Device, Tensor};

/// A 3D U-Net built from an [`Architecture`]. Parameters are named `block.{i}.conv.{l}.weight|gamma|beta`,
/// `up.{u}.weight`, `head.{u}.weight`.
///
/// ```
/// use adw_supernet::{Architecture, Unet};
/// use candle_core::{DType, Device, Tensor};
///
/// let a = Architecture::uniform(1, 3, vec![[2; 3]; 2], vec![[3; 3]; 3], 4, 2, 3)?;
/// let net = Unet::new(&a, 1, DType::F32, &Device::Cpu)?;
/// let x = Tensor::randn(0f32, 1., (1, 1, 8, 12, 8), &Device::Cpu)?;
/// assert_eq!(net.forward(&x)?[0].dims(), [1, 3, 8, 12, 8]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Unet {
    network: Network,
    architecture: Architecture,
}

impl Unet {
    /// He-initialised weights, a function of `seed`.
    ///
    /// # Errors
    /// If the architecture is not valid, or tensors cannot be made on the device.
    pub fn new(architecture: &Architecture, seed: u64, dtype: DType, device: &Device) -> Result<Self> {
        architecture.check()?;
        let a = architecture;
        let widths = Widths { blocks: a.blocks.clone(), ups: (0..a.poolings()).map(|u| a.up_width(u)).collect() };
        let builder = Builder::new(seed, dtype, device);
        let network =
            Network::build(builder, a.in_channels, a.num_classes, &a.strides, &a.kernels, &widths, |_, _, _| Ok(()))?;
        Ok(Self { network, architecture: a.clone() })
    }

    /// What it was built from.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// All weights.
    pub fn parameters(&self) -> &[Parameter] {
        &self.network.parameters
    }

    /// The constants of the loss; the paper's by default.
    pub fn set_loss(&mut self, loss: DiceCe) {
        self.network.loss = loss;
    }

    /// What the layers' factors are rounded to; [`Precision::Full`] at first. Where it is not
    /// [available](Precision::is_available), passes fail.
    pub fn set_precision(&mut self, precision: Precision) {
        self.network.precision = precision;
    }

    /// Logits of every decoder stage, fine to coarse, each `[B, K, D, H, W]`, for `x [B, C, D, H, W]`.
    ///
    /// # Errors
    /// If `x` does not have the right channels, or its size is not a multiple of the product of the strides.
    pub fn forward(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        self.network.forward(x, None, true)
    }

    /// The finest logits alone, `[B, K, D, H, W]`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn predict(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.network.forward(x, None, false)?.swap_remove(0))
    }

    /// The deep-supervision loss (before any weight decay) and its gradients. `target`: `[B, D, H, W]`, integers.
    ///
    /// # Errors
    /// As [`Self::forward`], or if the target does not fit.
    pub fn loss_and_gradients(&self, x: &Tensor, target: &Tensor) -> Result<(f64, Gradients)> {
        let (loss, gradients, _) = self.network.loss_and_gradients(x, target, None, Role::Weight)?;
        Ok((loss.value()?, gradients))
    }
}
