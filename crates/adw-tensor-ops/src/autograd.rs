//! Gradients of candle's `backward` for values that have been computed already.
//!
//! candle computes a custom op's value from storages, with one function per kind of device. The kernels of this crate take
//! tensors and work on any device; so an op computes its value first, and is recorded in candle's graph afterwards.

use crate::error::Result;
use crate::storage::Computed;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Shape, Storage, Tensor, bail};
use std::sync::{Mutex, PoisonError};

/// Custom op whose value has been computed.
struct Recorded<F> {
    name: &'static str,
    /// Taken out when candle computes the op, once.
    value: Mutex<Option<Computed>>,
    backward: F,
}

impl<F> Recorded<F> {
    fn new(name: &'static str, value: Computed, backward: F) -> Self {
        Self { name, value: Mutex::new(Some(value)), backward }
    }

    fn take(&self) -> candle_core::Result<(Storage, Shape)> {
        match self.value.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(value) => Ok((value.storage, value.shape)),
            None => bail!("{}: the value was taken before", self.name),
        }
    }

    fn cpu(&self) -> candle_core::Result<(CpuStorage, Shape)> {
        match self.take()? {
            (Storage::Cpu(storage), shape) => Ok((storage, shape)),
            _ => bail!("{}: arguments on the host, but the value on a device", self.name),
        }
    }

    fn cuda(&self) -> candle_core::Result<(CudaStorage, Shape)> {
        match self.take()? {
            (Storage::Cuda(storage), shape) => Ok((storage, shape)),
            _ => bail!("{}: arguments on a CUDA device, but the value elsewhere", self.name),
        }
    }
}

/// `value`, a function of `x`, in candle's graph. `backward([x], gradient of value)` returns the gradient by `x`.
pub(crate) fn record1<F>(name: &'static str, x: &Tensor, value: Computed, backward: F) -> Result<Tensor>
where
    F: Fn([&Tensor; 1], &Tensor) -> Result<[Tensor; 1]> + Send + Sync + 'static,
{
    Ok(x.apply_op1(Recorded::new(name, value, backward))?)
}

/// `value`, a function of `x` and `y`, in candle's graph. `backward([x, y], gradient of value)` returns the gradients by
/// both.
pub(crate) fn record2<F>(name: &'static str, [x, y]: [&Tensor; 2], value: Computed, backward: F) -> Result<Tensor>
where
    F: Fn([&Tensor; 2], &Tensor) -> Result<[Tensor; 2]> + Send + Sync + 'static,
{
    Ok(x.apply_op2(y, Recorded::new(name, value, backward))?)
}

/// `value`, a function of `x`, `y` and `z`, in candle's graph. `backward([x, y, z], gradient of value)` returns the gradients
/// by all three.
pub(crate) fn record3<F>(name: &'static str, [x, y, z]: [&Tensor; 3], value: Computed, backward: F) -> Result<Tensor>
where
    F: Fn([&Tensor; 3], &Tensor) -> Result<[Tensor; 3]> + Send + Sync + 'static,
{
    Ok(x.apply_op3(y, z, Recorded::new(name, value, backward))?)
}

impl<F> CustomOp1 for Recorded<F>
where
    F: Fn([&Tensor; 1], &Tensor) -> Result<[Tensor; 1]>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let [x] = (self.backward)([x], &gradient.contiguous()?)?;
        Ok(Some(x))
    }
}

impl<F> CustomOp2 for Recorded<F>
where
    F: Fn([&Tensor; 2], &Tensor) -> Result<[Tensor; 2]>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let [x, y] = (self.backward)([x, y], &gradient.contiguous()?)?;
        Ok((Some(x), Some(y)))
    }
}

impl<F> CustomOp3 for Recorded<F>
where
    F: Fn([&Tensor; 3], &Tensor) -> Result<[Tensor; 3]>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        z: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [x, y, z] = (self.backward)([x, y, z], &gradient.contiguous()?)?;
        Ok((Some(x), Some(y), Some(z)))
    }
}
