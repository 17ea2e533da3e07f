//! A U-Net in candle's graph: one operation, whose backward pass is the network's own.

use crate::error::{Error, Result};
use crate::network::{BackwardRequest, Network, Trace};
use crate::parameters::Role;
use crate::unet::Unet;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, Layout, Module, Shape, Storage, Tensor};
use std::sync::{Arc, Mutex, PoisonError};

impl Module for Unet {
    /// Finest logits `[B, K, D, H, W]` for `xs [B, C, D, H, W]`, differentiable by `xs` and all parameters.
    ///
    /// candle keeps the parameters and the maps of the pass until `backward` is called or the result is dropped; for
    /// inference, [`Unet::predict`] keeps nothing. As in PyTorch, `backward` runs once per forward pass. Parameters
    /// that the finest logits do not depend on, the heads of coarser scales, have gradients of zero.
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        forward(self, xs).map_err(|e| match e {
            Error::Op(e) => e.into(),
            e => candle_core::Error::wrap(e),
        })
    }
}

fn forward(net: &Unet, xs: &Tensor) -> Result<Tensor> {
    let xs = xs.to_device(net.network.device())?;
    let (mut logits, trace) = net.network.forward(&xs, None, net.precision)?;
    // Channels last is how the logits lie in memory: the operation's result is contiguous.
    let logits = logits.swap_remove(0).permute((0, 2, 3, 4, 1))?.contiguous()?;
    // One tensor of all parameters: candle's operations take at most three arguments.
    let parameters =
        net.parameters().iter().map(|p| p.var.flatten_all()).collect::<candle_core::Result<Vec<Tensor>>>()?;
    let parameters = Tensor::cat(&parameters, 0)?;
    let op = UnetOp { network: Arc::clone(&net.network), logits, trace: Mutex::new(Some(trace)) };
    Ok(xs.apply_op2(&parameters, op)?.permute((0, 4, 1, 2, 3))?)
}

/// A forward pass that has been computed already, as an operation of image and parameters.
struct UnetOp {
    network: Arc<Network>,
    /// `[B, D, H, W, K]`, contiguous.
    logits: Tensor,
    /// Present until the backward pass.
    trace: Mutex<Option<Trace>>,
}

impl UnetOp {
    fn result<S>(
        &self,
        storage: impl FnOnce(&Storage, &Layout) -> candle_core::Result<S>,
    ) -> candle_core::Result<(S, Shape)> {
        let (guard, layout) = self.logits.storage_and_layout();
        Ok((storage(&guard, layout)?, self.logits.shape().clone()))
    }
}

impl CustomOp2 for UnetOp {
    fn name(&self) -> &'static str {
        "unet"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.result(|storage, layout| match storage {
            Storage::Cpu(storage) => storage.try_clone(layout),
            _ => unreachable!("logits lie on the device of the parameters"),
        })
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        self.result(|storage, layout| match storage {
            Storage::Cuda(storage) => storage.try_clone(layout),
            _ => unreachable!("logits lie on the device of the parameters"),
        })
    }

    fn bwd(
        &self,
        xs: &Tensor,
        parameters: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let trace = self.trace.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(trace) = trace else {
            candle_core::bail!("unet: backward was called before; its maps are freed, run the forward pass again")
        };
        let mut grad_logits = vec![None; self.network.num_scales()];
        grad_logits[0] = Some(grad.permute((0, 4, 1, 2, 3))?);
        let request = BackwardRequest { relaxation: None, role: Role::Weight, image: xs.track_op() };
        let found = self.network.backward(trace, grad_logits, request).map_err(candle_core::Error::wrap)?;
        let flat: Vec<Tensor> = (self.network.parameters.iter().zip(found.parameters))
            .map(|(p, gradient)| match gradient {
                Some(gradient) => gradient.flatten_all(),
                None => Tensor::zeros(p.var.elem_count(), parameters.dtype(), parameters.device()),
            })
            .collect::<candle_core::Result<_>>()?;
        let image = found.image.map(|g| g.to_dtype(xs.dtype())).transpose()?;
        Ok((image, Some(Tensor::cat(&flat, 0)?)))
    }
}
