//! Trains a U-Net of one pooling to find bright cubes in noise: layers of `adw_tensor_ops::nn`, optimiser of candle-nn.
//!
//! `cargo run --release -p adw-tensor-ops --example unet_block`

use adw_tensor_ops::loss::{DiceCe, dice_ce};
use adw_tensor_ops::nn::{
    Conv3d, Conv3dConfig, ConvTranspose3d, ConvTranspose3dConfig, InstanceNorm3d, InstanceNorm3dConfig,
    conv_transpose3d, conv3d, conv3d_no_bias, instance_norm3d,
};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{AdamW, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap};

/// Convolution, instance normalisation, LeakyReLU.
struct Block {
    conv: Conv3d,
    norm: InstanceNorm3d,
}

impl Block {
    fn new(channels: [usize; 2], stride: usize, vb: &VarBuilder) -> Result<Self> {
        let conv = Conv3dConfig { stride: [stride; 3], padding: [1; 3], ..Conv3dConfig::default() };
        let norm = InstanceNorm3dConfig { affine: true, leaky_relu_slope: Some(0.01), ..Default::default() };
        Ok(Self {
            conv: conv3d_no_bias(channels[0], channels[1], [3; 3], conv, vb.pp("conv"))?,
            norm: instance_norm3d(channels[1], norm, vb.pp("norm"))?,
        })
    }
}

impl Module for Block {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.forward(&self.conv.forward(x)?)
    }
}

struct SmallUnet {
    encoder: Block,
    bottleneck: Block,
    up: ConvTranspose3d,
    decoder: Block,
    head: Conv3d,
}

impl SmallUnet {
    fn new(vb: &VarBuilder) -> Result<Self> {
        let up = ConvTranspose3dConfig { stride: [2; 3], ..ConvTranspose3dConfig::default() };
        Ok(Self {
            encoder: Block::new([1, 8], 1, &vb.pp("encoder"))?,
            bottleneck: Block::new([8, 16], 2, &vb.pp("bottleneck"))?,
            up: conv_transpose3d(16, 8, [2; 3], up, vb.pp("up"))?,
            decoder: Block::new([16, 8], 1, &vb.pp("decoder"))?,
            head: conv3d(8, 2, [1; 3], Conv3dConfig::default(), vb.pp("head"))?,
        })
    }
}

impl Module for SmallUnet {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let skip = self.encoder.forward(x)?;
        let up = self.up.forward(&self.bottleneck.forward(&skip)?)?;
        self.head.forward(&self.decoder.forward(&Tensor::cat(&[&skip, &up], 1)?)?)
    }
}

/// Noise `[1, 1, 16, 16, 16]` with a cube that is brighter by 1, and the cube's label map `[1, 16, 16, 16]`.
fn cube(step: usize) -> Result<(Tensor, Tensor)> {
    let mut target = Tensor::ones((1, 6, 6, 6), DType::U8, &Device::Cpu)?;
    for axis in 1..4 {
        let before = (step * (2 * axis + 1)) % 11;
        target = target.pad_with_zeros(axis, before, 10 - before)?;
    }
    let noise = Tensor::randn(0f32, 0.5, (1, 1, 16, 16, 16), &Device::Cpu)?;
    Ok(((noise + target.to_dtype(DType::F32)?.unsqueeze(1)?)?, target))
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let variables = VarMap::new();
    let net = SmallUnet::new(&VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu))?;
    let mut optimizer = AdamW::new(variables.all_vars(), ParamsAdamW { lr: 0.01, ..ParamsAdamW::default() })?;
    let (mut first, mut last) = (None, 0.0);
    for step in 0..60 {
        let (x, target) = cube(step)?;
        let loss = dice_ce(&net.forward(&x)?, &target, DiceCe::default())?;
        optimizer.backward_step(&loss)?;
        last = loss.to_scalar::<f32>()?;
        first.get_or_insert(last);
        if step % 10 == 0 {
            println!("step {step:2}  loss {last:.3}");
        }
    }
    let first = first.ok_or("no step was taken")?;
    println!("loss {first:.3} -> {last:.3}");
    if last > first - 0.5 { Err("the loss did not fall".into()) } else { Ok(()) }
}
