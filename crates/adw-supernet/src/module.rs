//! A U-Net in candle's graph: one operation, whose backward pass is the network's own.

use crate::error::{Error, Result};
use crate::network::{BackwardRequest, Network, Trace};
use crate::parameters::Role;
use crate::unet::Unet;
use candle_core::{Module, Tensor};
use std::sync::{Arc, Mutex, PoisonError};

impl Module for Unet {
    /// Finest logits `[B, K, D, H, W]` for `xs [B, C, D, H, W]`, differentiable by `xs` and all parameters.
    ///
    /// candle keeps the parameters and the maps of the pass until `backward` is called or the result is dropped; for
    /// inference, [`Unet::predict`] keeps nothing. As in PyTorch, `backward` runs once per forward pass. Parameters
    /// that the finest logits do not depend on, the heads of coarser scales, have gradients of zero.
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        forward(self, xs).map_err(|e| e.into_op().into())
    }
}

fn forward(net: &Unet, xs: &Tensor) -> Result<Tensor> {
    let xs = xs.to_device(net.network.device())?;
    let (mut logits, trace) = net.forward_with_trace(&xs)?;
    // Channels last is how the logits lie in memory: the operation's result is contiguous.
    let logits = logits.swap_remove(0).permute((0, 2, 3, 4, 1))?.contiguous()?;
    // One tensor of all parameters: candle's operations take at most three arguments.
    let parameters =
        net.parameters().iter().map(|p| p.var.flatten_all()).collect::<candle_core::Result<Vec<Tensor>>>()?;
    let parameters = Tensor::cat(&parameters, 0)?;
    // Present until the backward pass.
    let trace = Mutex::new(Some(trace));
    let network = Arc::clone(&net.network);
    let logits = adw_tensor_ops::record("unet", [&xs, &parameters], &logits, move |[xs, _], grad_logits| {
        let trace = trace.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(trace) = trace else {
            let what = "backward was called before; its maps are freed, run the forward pass again".into();
            return Err(adw_tensor_ops::Error::Argument { op: "unet", what });
        };
        backward(&network, trace, xs, grad_logits).map_err(Error::into_op)
    })?;
    Ok(logits.permute((0, 4, 1, 2, 3))?)
}

/// Gradients with respect to the image, if candle tracks it, and by all parameters, joined in their order.
fn backward(network: &Network, trace: Trace, xs: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 2]> {
    let mut grad_logits = vec![None; network.num_scales()];
    grad_logits[0] = Some(grad.permute((0, 4, 1, 2, 3))?);
    let request = BackwardRequest { relaxation: None, role: Role::Weight, image: xs.track_op() };
    let found = network.backward(trace, grad_logits, request)?;
    let parameters = network.parameters.iter().zip(found.parameters).map(|(p, gradient)| match gradient {
        Some(gradient) => gradient.flatten_all(),
        None => Tensor::zeros(p.var.elem_count(), p.var.dtype(), p.var.device()),
    });
    let parameters = Tensor::cat(&parameters.collect::<candle_core::Result<Vec<Tensor>>>()?, 0)?;
    let image = found.image.map(|g| g.to_dtype(xs.dtype())).transpose()?;
    Ok([image, Some(parameters)])
}
