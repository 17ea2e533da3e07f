//! Trains a 3D U-Net on generated images with a loss of its own: bright cubes in noise, Tversky loss.
//!
//! `cargo run --release -p adw-supernet --example train_unet`

use adw_supernet::{Architecture, FixedSizes, Loss, Unet};
use candle_core::{DType, Device, Result, Tensor};

const SIZE: usize = 16;
const STEPS: usize = 60;
const LEARNING_RATE: f64 = 0.1;

/// Images `[2, 1, 16, 16, 16]` of a bright cube in noise, and the voxels of the cube, `[2, 16, 16, 16]`.
fn batch() -> Result<(Tensor, Tensor)> {
    let device = Device::Cpu;
    let mut cubes = Vec::new();
    for _ in 0..2 {
        let corner = Tensor::rand(0f32, (SIZE - 8) as f32, 3, &device)?.to_vec1::<f32>()?;
        let mut cube = Tensor::ones((8, 8, 8), DType::F32, &device)?;
        for (axis, at) in corner.into_iter().enumerate() {
            cube = cube.pad_with_zeros(axis, at as usize, SIZE - 8 - at as usize)?;
        }
        cubes.push(cube);
    }
    let target = Tensor::stack(&cubes, 0)?;
    let image = (&target + target.randn_like(0., 1.)?)?.unsqueeze(1)?;
    Ok((image, target))
}

/// `1 - TP / (TP + 0.3 FP + 0.7 FN)` of the foreground, averaged over the scales (Salehi et al. 2017). False negatives
/// weigh more than false positives.
fn tversky(logits: &[Tensor], target: &Tensor) -> Result<Tensor> {
    let mut losses = Vec::new();
    for logits in logits {
        let exp = logits.broadcast_sub(&logits.detach().max_keepdim(1)?)?.exp()?;
        let p = exp.narrow(1, 1, 1)?.broadcast_div(&exp.sum_keepdim(1)?)?;
        // Every scale is compared with the part of the target that falls into its cells.
        let cell = SIZE / p.dim(2)?;
        let n = SIZE / cell;
        let t = target.reshape(vec![2, n, cell, n, cell, n, cell])?;
        let t = t.mean(6)?.mean(4)?.mean(2)?.unsqueeze(1)?;
        let hits = (&p * &t)?.sum_all()?;
        let (false_positives, misses) = ((p.sum_all()? - &hits)?, (t.sum_all()? - &hits)?);
        let all = ((&hits + (false_positives * 0.3)?)? + (misses * 0.7)?)?;
        losses.push((1.0 - (hits / all)?)?);
    }
    Tensor::stack(&losses, 0)?.mean_all()
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    // Two poolings; 8, 16, 32 channels; two convolutions per block.
    let architecture = Architecture::uniform(1, 2, vec![[2; 3]; 2], vec![[3; 3]; 3], FixedSizes::with_width(8))?;
    let net = Unet::new(&architecture, 1, DType::F32, &Device::Cpu)?;
    for step in 0..STEPS {
        let (image, target) = batch()?;
        let (logits, trace) = net.forward_with_trace(&image)?;
        let (loss, grad_logits) = tversky.value_and_gradients(&logits, &target)?;
        let gradients = net.backward(trace, grad_logits)?;
        for (parameter, gradient) in net.parameters().iter().zip(&gradients) {
            let Some(gradient) = gradient else { continue };
            parameter.var.set(&(parameter.var.as_tensor() - (gradient * LEARNING_RATE)?)?)?;
        }
        if step % 10 == 0 || step + 1 == STEPS {
            println!("step {step:2}: loss {:.3}", loss.value()?);
        }
    }
    Ok(())
}
