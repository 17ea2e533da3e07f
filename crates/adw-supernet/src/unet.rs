//! The discrete network: a 3D U-Net of any depths and widths.

use crate::architecture::Architecture;
use crate::error::{Error, Result};
use crate::network::{BackwardRequest, Network, NetworkShape, Trace};
use crate::parameters::{Gradients, Parameter, ParameterBuilder, Role};
use adw_tensor_ops::Precision;
use candle_core::{DType, Device, Shape, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A 3D U-Net built from an [`Architecture`]. Parameters are named `block.{i}.conv.{l}.weight|gamma|beta`,
/// `up.{u}.weight`, `head.{u}.weight`; with a residual encoder also `block.{i}.shortcut.{l}.weight|gamma|beta`, `up.{u}.bias`,
/// `head.{u}.bias`.
///
/// There are two ways to train it. [`Self::forward_with_trace`] and [`Self::backward`] free every map as soon as its
/// gradients are known, and give the logits of all scales for deep supervision. As a [`candle_core::Module`] the network
/// is part of candle's graph, with the same gradients.
///
/// ```
/// use adw_supernet::{Architecture, DiceCe, FixedSizes, Loss, Unet};
/// use candle_core::{DType, Device, Tensor};
///
/// let a = Architecture::uniform(1, 3, vec![[2; 3]; 2], vec![[3; 3]; 3], FixedSizes::with_width(4))?;
/// let net = Unet::new(&a, 1, DType::F32, &Device::Cpu)?;
/// let x = Tensor::randn(0f32, 1., (1, 1, 8, 12, 8), &Device::Cpu)?;
/// let target = Tensor::zeros((1, 8, 12, 8), DType::U8, &Device::Cpu)?;
///
/// let (logits, trace) = net.forward_with_trace(&x)?;
/// assert_eq!(logits[0].dims(), [1, 3, 8, 12, 8]);
/// let (loss, grad_logits) = DiceCe::default().value_and_gradients(&logits, &target)?;
/// let gradients = net.backward(trace, grad_logits)?;
/// assert!(loss.value()?.is_finite() && gradients.len() == net.parameters().len());
///
/// let gradients = x.apply(&net)?.sqr()?.mean_all()?.backward()?;
/// assert!(gradients.get(&net.parameters()[0].var).is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Unet {
    pub(crate) network: Arc<Network>,
    architecture: Architecture,
    pub(crate) precision: Precision,
}

impl Unet {
    /// Builds a network with He-initialised weights, a function of `seed`.
    ///
    /// # Errors
    /// If the architecture is not valid, or tensors cannot be made on the device.
    pub fn new(architecture: &Architecture, seed: u64, dtype: DType, device: &Device) -> Result<Self> {
        Self::build(architecture, ParameterBuilder::new(seed, dtype, device))
    }

    /// Builds a network with copies of `weights`, each under its parameter's name.
    ///
    /// # Errors
    /// If the architecture is not valid, a weight is missing, has another shape or is of no parameter, or tensors cannot be made
    /// on the device.
    pub fn with_weights(
        architecture: &Architecture,
        weights: &BTreeMap<String, Tensor>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let value = |name: &str, shape: &Shape| match weights.get(name) {
            Some(weight) if weight.shape() == shape => Ok(weight.detach()),
            weight => {
                let got = weight.map_or_else(|| "none".to_owned(), |weight| format!("{:?}", weight.dims()));
                Err(Error::Weights(format!("{name}: expected {:?}, got {got}", shape.dims())))
            }
        };
        let net = Self::build(architecture, ParameterBuilder::of(&value, dtype, device))?;
        match weights.keys().find(|name| net.parameters().iter().all(|p| p.name != **name)) {
            Some(name) => Err(Error::Weights(format!("{name}: the network has no such parameter"))),
            None => Ok(net),
        }
    }

    /// Builds a network whose parameters `builder` fills.
    pub(crate) fn build(architecture: &Architecture, builder: ParameterBuilder) -> Result<Self> {
        architecture.check()?;
        let a = architecture;
        let shape = NetworkShape {
            in_channels: a.in_channels,
            num_classes: a.num_classes,
            strides: a.strides.clone(),
            kernels: a.kernels.clone(),
            widths: a.blocks.clone(),
            up_widths: (0..a.poolings()).map(|u| a.up_width(u)).collect(),
            shortcuts: a.shortcuts(),
        };
        let network = Network::build(builder, shape, |_, _, _| Ok(()))?;
        Ok(Self { network: Arc::new(network), architecture: a.clone(), precision: Precision::Full })
    }

    /// Architecture the network was built from.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// All weights.
    pub fn parameters(&self) -> &[Parameter] {
        &self.network.parameters
    }

    /// Sets the precision of the convolutions' factors; [`Precision::Full`] at first.
    pub fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// Logits of every decoder step, fine to coarse, each `[B, K, D, H, W]`, for `x [B, C, D, H, W]`, and the trace for
    /// [`Self::backward`]. candle's graph records nothing.
    ///
    /// # Errors
    /// If `x` does not have the right channels, its size is not a multiple of the product of the strides, or the
    /// [encoder](crate::Encoder) is residual.
    pub fn forward_with_trace(&self, x: &Tensor) -> Result<(Vec<Tensor>, Trace)> {
        self.architecture.check_trainable()?;
        self.network.forward(x, None, self.precision)
    }

    /// Gradients of a scalar with respect to the parameters, from its gradients with respect to the logits of
    /// [`Self::forward_with_trace`]: one per scale, fine to coarse, none for scales that do not enter the scalar; the finest is
    /// required. Maps are freed on the way.
    ///
    /// # Errors
    /// If `trace` or `grad_logits` do not fit the network.
    pub fn backward(&self, trace: Trace, grad_logits: Vec<Option<Tensor>>) -> Result<Gradients> {
        let request = BackwardRequest { relaxation: None, role: Role::Weight, image: false };
        Ok(self.network.backward(trace, grad_logits, request)?.parameters)
    }

    /// Finest logits, `[B, K, D, H, W]`, without a trace.
    ///
    /// # Errors
    /// If `x` does not have the right channels, or its size is not a multiple of the product of the strides.
    pub fn predict(&self, x: &Tensor) -> Result<Tensor> {
        self.network.predict(x, None, self.precision)
    }
}
