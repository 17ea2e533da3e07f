//! Layers of the U-Net, their parameters and geometry.

use super::relaxation::Relaxation;
use crate::architecture::Shortcut;
use crate::error::{Error, Result};
use crate::parameters::{Parameter, ParameterBuilder, Role};
use crate::stages::stage_of_block;
use adw_tensor_ops::Conv3dGeometry;
use adw_tensor_ops::Precision;
use adw_tensor_ops::norm_act::NormAct;
use candle_core::{DType, Device, Tensor};

/// Parameter indices and geometry of a layer: convolution, normalisation, gate, LeakyReLU.
pub(super) struct Layer {
    pub(super) weight: usize,
    pub(super) gamma: usize,
    pub(super) beta: usize,
    pub(super) geometry: Conv3dGeometry,
}

impl Layer {
    /// Adds the parameters of a layer with these input and output channels.
    fn build(
        builder: &mut ParameterBuilder,
        name: &str,
        [c_in, width]: [usize; 2],
        geometry: Conv3dGeometry,
    ) -> Result<Self> {
        let [kd, kh, kw] = geometry.kernel;
        Ok(Self {
            weight: builder.he_normal(format!("{name}.weight"), (width, c_in, kd, kh, kw))?,
            gamma: builder.constant(format!("{name}.gamma"), Role::Weight, width, 1.0)?,
            beta: builder.constant(format!("{name}.beta"), Role::Weight, width, 0.0)?,
            geometry,
        })
    }
}

/// Shortcut around two layers.
pub(super) struct Residual {
    /// First of the two layers.
    pub(super) layer: usize,
    /// Cells of the average pooling.
    pub(super) pooling: [usize; 3],
    /// Convolution with kernel 1, where the numbers of channels differ.
    pub(super) projection: Option<Layer>,
}

impl Residual {
    /// Adds the parameters of a shortcut.
    fn build(builder: &mut ParameterBuilder, shortcut: &Shortcut) -> Result<Self> {
        let Shortcut { block, layer, pooling, in_channels, out_channels } = *shortcut;
        let projection = if shortcut.has_projection() {
            let name = format!("block.{block}.shortcut.{layer}");
            Some(Layer::build(builder, &name, [in_channels, out_channels], head_geometry())?)
        } else {
            None
        };
        Ok(Self { layer, pooling, projection })
    }
}

/// Values that determine a network's layers.
pub(crate) struct NetworkShape {
    pub(crate) in_channels: usize,
    pub(crate) num_classes: usize,
    pub(crate) strides: Vec<[usize; 3]>,
    pub(crate) kernels: Vec<[usize; 3]>,
    /// Output channels per block and layer.
    pub(crate) widths: Vec<Vec<usize>>,
    /// Output channels of the transposed convolution of every decoder step, coarse to fine.
    pub(crate) up_widths: Vec<usize>,
    /// Shortcuts of a residual encoder; where there are any, transposed convolutions and heads have biases.
    pub(crate) shortcuts: Vec<Shortcut>,
}

impl NetworkShape {
    fn poolings(&self) -> usize {
        self.strides.len()
    }

    fn out_width(&self, block: usize) -> usize {
        *self.widths[block].last().expect("blocks have layers")
    }

    fn block_in_channels(&self, block: usize) -> usize {
        let poolings = self.poolings();
        match block {
            0 => self.in_channels,
            _ if block <= poolings => self.out_width(block - 1),
            _ => self.up_widths[block - poolings - 1] + self.out_width(stage_of_block(poolings, block)),
        }
    }
}

/// Parameters of a U-Net, and where each belongs.
pub(crate) struct Network {
    pub(crate) parameters: Vec<Parameter>,
    /// Layers of every block, encoder fine to coarse, then decoder coarse to fine.
    pub(super) blocks: Vec<Vec<Layer>>,
    /// Weight of the transposed convolution of every decoder step, coarse to fine.
    pub(super) ups: Vec<usize>,
    /// Weight of the 1x1x1 convolution to the logits of every decoder step, coarse to fine.
    pub(super) heads: Vec<usize>,
    /// Per block: shortcuts of a residual encoder.
    pub(super) residuals: Vec<Vec<Residual>>,
    /// Biases of transposed convolution and head of every decoder step; none beside a plain encoder.
    pub(super) biases: Vec<[usize; 2]>,
    pub(super) strides: Vec<[usize; 3]>,
    in_channels: usize,
    pub(super) num_classes: usize,
    pub(super) norm: NormAct,
}

/// Geometry of the convolutions to the logits.
pub(super) fn head_geometry() -> Conv3dGeometry {
    Conv3dGeometry::same([1; 3], [1; 3])
}

impl Network {
    /// Builds the layers of `shape`. `after_layer(builder, block, layer)` may add parameters behind those of each
    /// layer, and with no layer behind those of each block.
    pub(crate) fn build(
        mut builder: ParameterBuilder,
        shape: NetworkShape,
        mut after_layer: impl FnMut(&mut ParameterBuilder, usize, Option<usize>) -> Result<()>,
    ) -> Result<Self> {
        let poolings = shape.poolings();
        let (mut blocks, mut residuals) = (Vec::new(), Vec::new());
        for (i, widths) in shape.widths.iter().enumerate() {
            let kernel = shape.kernels[stage_of_block(poolings, i)];
            let mut c_in = shape.block_in_channels(i);
            let mut layers = Vec::new();
            for (l, &width) in widths.iter().enumerate() {
                let stride = if l == 0 && (1..=poolings).contains(&i) { shape.strides[i - 1] } else { [1; 3] };
                let (name, geometry) = (format!("block.{i}.conv.{l}"), Conv3dGeometry::same(kernel, stride));
                layers.push(Layer::build(&mut builder, &name, [c_in, width], geometry)?);
                after_layer(&mut builder, i, Some(l))?;
                c_in = width;
            }
            after_layer(&mut builder, i, None)?;
            blocks.push(layers);
            let shortcuts = shape.shortcuts.iter().filter(|shortcut| shortcut.block == i);
            residuals.push(shortcuts.map(|shortcut| Residual::build(&mut builder, shortcut)).collect::<Result<_>>()?);
        }
        let (mut ups, mut heads, mut biases) = (Vec::new(), Vec::new(), Vec::new());
        for (u, &width) in shape.up_widths.iter().enumerate() {
            let (below, block) = (poolings + u, poolings + u + 1);
            let [sd, sh, sw] = shape.strides[poolings - 1 - u];
            ups.push(builder.he_normal(format!("up.{u}.weight"), (shape.out_width(below), width, sd, sh, sw))?);
            let head = (shape.num_classes, shape.out_width(block), 1, 1, 1);
            heads.push(builder.he_normal(format!("head.{u}.weight"), head)?);
            if !shape.shortcuts.is_empty() {
                let up = builder.constant(format!("up.{u}.bias"), Role::Weight, width, 0.0)?;
                let head = builder.constant(format!("head.{u}.bias"), Role::Weight, shape.num_classes, 0.0)?;
                biases.push([up, head]);
            }
        }
        Ok(Self {
            parameters: builder.parameters,
            blocks,
            ups,
            heads,
            residuals,
            biases,
            strides: shape.strides,
            in_channels: shape.in_channels,
            num_classes: shape.num_classes,
            norm: NormAct::default(),
        })
    }

    pub(super) fn value(&self, parameter: usize) -> &Tensor {
        self.parameters[parameter].var.as_tensor()
    }

    /// Weight of the transposed convolution of decoder step `u`, its output channels multiplied by their gate: a gate
    /// costs nothing per voxel.
    pub(super) fn up_weight(&self, u: usize, relaxation: Option<&Relaxation>) -> Result<Tensor> {
        let weight = self.value(self.ups[u]);
        match relaxation.map(|r| r.up_gate(self.skip_of(u))).transpose()?.flatten() {
            None => Ok(weight.clone()),
            Some(gate) => Ok(weight.broadcast_mul(&gate)?),
        }
    }

    /// Encoder block whose output decoder step `u` is concatenated with.
    pub(super) fn skip_of(&self, u: usize) -> usize {
        self.strides.len() - 1 - u
    }

    /// Device of the parameters, on which passes run.
    pub(crate) fn device(&self) -> &Device {
        self.value(0).device()
    }

    /// Scales of the logits: one per decoder step.
    pub(crate) fn num_scales(&self) -> usize {
        self.heads.len()
    }

    /// Decoder step whose output is that of `block`; none for an encoder block.
    pub(super) fn decoder_step(&self, block: usize) -> Option<usize> {
        block.checked_sub(self.strides.len() + 1)
    }

    /// Checks an image `[B, C, D, H, W]` and lays it out as a map.
    ///
    /// # Errors
    /// If the shape does not fit the network.
    pub(super) fn read_image(&self, x: &Tensor, precision: Precision) -> Result<Tensor> {
        let &[b, c, d, h, w] = x.dims() else {
            return Err(Error::Input(format!("shape {:?}, expected [B, C, D, H, W]", x.shape())));
        };
        if b == 0 {
            return Err(Error::Input("an empty batch, expected at least one sample".into()));
        }
        if c != self.in_channels {
            return Err(Error::Input(format!("{c} channels, but the network takes {}", self.in_channels)));
        }
        for (axis, n) in [d, h, w].into_iter().enumerate() {
            let multiple: usize = self.strides.iter().map(|s| s[axis]).product();
            if n == 0 || n % multiple != 0 {
                return Err(Error::Input(format!(
                    "size {:?}, but the network's strides need a multiple of {multiple} on axis {axis} (D, H, W)",
                    [d, h, w]
                )));
            }
        }
        self.channels_last(x, precision)
    }

    /// `[B, C, D, H, W]` as a contiguous map `[B, D, H, W, C]`, on the network's device and in its maps' element type.
    pub(super) fn channels_last(&self, x: &Tensor, precision: Precision) -> Result<Tensor> {
        let x = x.detach().permute((0, 2, 3, 4, 1))?.contiguous()?;
        if !self.device().is_cuda() {
            return Ok(x);
        }
        let dtype = match precision {
            Precision::Bf16 => DType::BF16,
            Precision::Full => DType::F32,
        };
        Ok(x.to_dtype(dtype)?.to_device(self.device())?)
    }
}
