//! Gradients of candle's `backward` for values that have been computed already.
//!
//! candle computes a custom op's value from storages, with one function per kind of device. The kernels of this crate take
//! tensors and work on any device; so an op computes its value first, and is recorded in candle's graph afterwards.

use crate::error::{Error, Result};
use crate::storage::Computed;
use candle_core::backend::BackendStorage;
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

/// `value`, a function of `x`, in candle's graph. `backward([x], gradient of value)` returns the gradient with respect
/// to `x`.
pub(crate) fn record1<F>(name: &'static str, x: &Tensor, value: Computed, backward: F) -> Result<Tensor>
where
    F: Fn([&Tensor; 1], &Tensor) -> Result<[Tensor; 1]> + Send + Sync + 'static,
{
    Ok(x.apply_op1(Recorded::new(name, value, backward))?)
}

/// `value`, a function of `x` and `y`, in candle's graph. `backward([x, y], gradient of value)` returns the gradients by
/// both, `None` for one that needs none.
pub(crate) fn record2<F>(name: &'static str, [x, y]: [&Tensor; 2], value: Computed, backward: F) -> Result<Tensor>
where
    F: Fn([&Tensor; 2], &Tensor) -> Result<[Option<Tensor>; 2]> + Send + Sync + 'static,
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

/// Records a tensor that has been computed from `x` and `y` outside candle's graph as an operation of the graph: a copy
/// of `value` whose gradients with respect to `x` and `y` are those of `backward([x, y], gradient of value)`, `None`
/// for an argument that needs none. All tensors are on one device; the gradient of value is contiguous.
///
/// # Errors
/// If the device of `value` is not that of the arguments.
pub fn record<F>(name: &'static str, [x, y]: [&Tensor; 2], value: &Tensor, backward: F) -> Result<Tensor>
where
    F: Fn([&Tensor; 2], &Tensor) -> Result<[Option<Tensor>; 2]> + Send + Sync + 'static,
{
    // A view's storage holds other elements, too.
    let value = &value.force_contiguous()?;
    let (storage, layout) = value.storage_and_layout();
    let storage = match &*storage {
        Storage::Cpu(storage) => Storage::Cpu(storage.try_clone(layout)?),
        Storage::Cuda(storage) => Storage::Cuda(storage.try_clone(layout)?),
        Storage::Metal(_) => return Err(Error::Device { op: name }),
    };
    let value = Computed { storage, shape: value.shape().clone() };
    Ok(x.apply_op2(y, Recorded::new(name, value, backward))?)
}

/// Implements candle's trait of operations of `$num` arguments.
macro_rules! custom_op {
    ($op:ident, $num:literal, $($x:ident)*, $gradients:ty) => {
        impl<F, G> $op for Recorded<F>
        where
            F: Fn([&Tensor; $num], &Tensor) -> Result<[G; $num]>,
            G: Into<Option<Tensor>>,
        {
            fn name(&self) -> &'static str {
                self.name
            }

            fn cpu_fwd(&self, $($x: &CpuStorage, _: &Layout),*) -> candle_core::Result<(CpuStorage, Shape)> {
                let _ = ($($x,)*);
                self.cpu()
            }

            fn cuda_fwd(&self, $($x: &CudaStorage, _: &Layout),*) -> candle_core::Result<(CudaStorage, Shape)> {
                let _ = ($($x,)*);
                self.cuda()
            }

            fn bwd(&self, $($x: &Tensor,)* _: &Tensor, gradient: &Tensor) -> candle_core::Result<$gradients> {
                let [$($x),*] = (self.backward)([$($x),*], &gradient.contiguous()?)?;
                Ok(($($x.into()),*))
            }
        }
    };
}

custom_op!(CustomOp1, 1, x, Option<Tensor>);
custom_op!(CustomOp2, 2, x y, (Option<Tensor>, Option<Tensor>));
custom_op!(CustomOp3, 3, x y z, (Option<Tensor>, Option<Tensor>, Option<Tensor>));

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn a_view_is_recorded_with_its_own_elements() {
        let value = Tensor::new(&[[1f64, 2., 3.], [4., 5., 6.]], &Device::Cpu).unwrap();
        let x = Var::new(1f64, &Device::Cpu).unwrap();
        for view in [value.narrow(0, 1, 1).unwrap(), value.t().unwrap()] {
            let y = record("view", [&x, &x], &view, |_, g| Ok([Some(g.sum_all()?), None])).unwrap();
            assert_eq!(y.to_vec2::<f64>().unwrap(), view.to_vec2::<f64>().unwrap());
            let gradient = y.sum_all().unwrap().backward().unwrap().get(&x).unwrap().to_scalar::<f64>().unwrap();
            assert_eq!(gradient, view.elem_count() as f64);
        }
    }
}
