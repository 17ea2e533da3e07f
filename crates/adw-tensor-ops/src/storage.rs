//! From candle tensors to slices and back, for ops that take more tensors than candle's custom ops can.

use crate::error::{Error, Result};
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, DType, Device, Layout, Shape, Storage, StorageRef, Tensor, WithDType};

/// Result of a kernel: storage and shape of a tensor that does not exist yet, on any device.
pub(crate) struct Computed {
    pub(crate) storage: Storage,
    pub(crate) shape: Shape,
}

impl Computed {
    /// A result in the host's memory, which takes over `data` without copying it.
    ///
    /// # Panics
    /// If `data` has another number of elements than `shape`.
    pub(crate) fn on_host<T: WithDType>(data: Vec<T>, shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        assert_eq!(data.len(), shape.elem_count(), "elements of {shape:?}");
        Self { storage: Storage::Cpu(T::to_cpu_storage_owned(data)), shape }
    }

    /// Scalar on the device of `like`, f64 if `like` is, else f32.
    pub(crate) fn scalar(value: f64, like: &Tensor) -> Result<Self> {
        let host = match like.dtype() {
            DType::F64 => CpuStorage::F64(vec![value]),
            _ => CpuStorage::F32(vec![value as f32]),
        };
        let storage = match like.device() {
            Device::Cpu => Storage::Cpu(host),
            Device::Cuda(device) => Storage::Cuda(device.storage_from_cpu_storage_owned(host)?),
            Device::Metal(device) => Storage::Metal(device.storage_from_cpu_storage_owned(host)?),
        };
        Ok(Self { storage, shape: ().into() })
    }

    /// The result as a tensor without gradient.
    pub(crate) fn into_tensor(self) -> Tensor {
        Tensor::from_storage(self.storage, self.shape, BackpropOp::none(), false)
    }
}

/// A contiguous tensor, locked for reading.
pub(crate) struct Reader<'a> {
    op: &'static str,
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

/// Locks `t` for reading; it must be contiguous.
pub(crate) fn read<'a>(op: &'static str, what: &'static str, t: &'a Tensor) -> Result<Reader<'a>> {
    let (storage, layout) = t.storage_and_layout();
    if !layout.is_contiguous() {
        return Err(Error::Shape { op, what, got: t.shape().clone(), expected: "a contiguous tensor".into() });
    }
    Ok(Reader { op, storage, layout })
}

impl Reader<'_> {
    pub(crate) fn slice<T: WithDType>(&self) -> Result<&[T]> {
        match &*self.storage {
            Storage::Cpu(cpu) => cpu_slice(self.op, cpu, self.layout),
            _ => Err(Error::Device { op: self.op }),
        }
    }
}

/// The elements of a contiguous tensor, as a custom op gets it.
pub(crate) fn cpu_slice<'a, T: WithDType>(op: &'static str, cpu: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let data = cpu.as_slice::<T>().map_err(|_| Error::dtype(op, cpu.dtype(), "f32 or f64, all arguments alike"))?;
    let (start, end) =
        layout.contiguous_offsets().ok_or(Error::Argument { op, what: "a tensor is not contiguous".into() })?;
    Ok(&data[start..end])
}

/// A tensor that takes over `data` without copying it.
pub(crate) fn tensor<T: WithDType>(data: Vec<T>, shape: impl Into<Shape>) -> Result<Tensor> {
    Ok(Tensor::from_vec(data, shape.into(), &Device::Cpu)?)
}

/// Calls `$body` with the type alias `$t` set to the element type of `$x`.
macro_rules! with_element {
    ($op:expr, $x:expr, $t:ident => $body:expr) => {
        match $x.dtype() {
            candle_core::DType::F32 => {
                type $t = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $t = f64;
                $body
            }
            got => Err($crate::error::Error::dtype($op, got, "f32 or f64, all arguments alike")),
        }
    };
}
pub(crate) use with_element;
