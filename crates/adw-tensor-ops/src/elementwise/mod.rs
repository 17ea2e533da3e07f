//! Operations on tensors element by element, in rayon's threads.

pub(crate) mod kernels;

use crate::backend::{self, Cpu};
use crate::error::{Error, Result};
use crate::raw_output::{SharedOut, filled};
use crate::storage::{read, tensor, with_element};
use adw_cuda::device::CudaRuntime;
use candle_core::Tensor;
use kernels::ElementwiseKernels;
use rayon::prelude::*;

const OP: &str = "add";

/// Elements that one task adds.
const CHUNK: usize = 16 * 1024;

/// Sum of two contiguous tensors of one shape and element type, without recorded gradients.
///
/// candle's own sum of large tensors on the CPU starts threads of its own, one per core of the machine whatever the size of rayon's
/// pool, and waits for them actively.
///
/// # Errors
/// If shapes or element types differ or the tensors lie on different devices; on the CPU also for element types other than f32
/// and f64, and tensors that are not contiguous.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.shape() != b.shape() {
        return Err(Error::Shape { op: OP, what: "b", got: b.shape().clone(), expected: format!("{:?}", a.shape()) });
    }
    backend::of(OP, a)?.add(a, b)
}

impl ElementwiseKernels for Cpu {
    fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        with_element!(OP, a, T => {
            let (x, y) = (read(OP, "a", a)?, read(OP, "b", b)?);
            let (x, y) = (x.slice::<T>()?, y.slice::<T>()?);
            // SAFETY: the chunks cover the result, and each task writes every element of its own.
            let sum = unsafe {
                filled(x.len(), |out: SharedOut<T>| {
                    x.par_chunks(CHUNK).zip(y.par_chunks(CHUNK)).enumerate().for_each(|(i, (x, y))| {
                        for (j, (&x, &y)) in x.iter().zip(y).enumerate() {
                            out.ptr().add(i * CHUNK + j).write(x + y);
                        }
                    });
                })
            };
            tensor(sum, a.shape())
        })
    }
}

impl ElementwiseKernels for CudaRuntime {
    fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok((a + b)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn adds_every_element_and_refuses_other_shapes_and_types() {
        let n = 2 * CHUNK + 3;
        let numbers = |factor: f32| (0..n).map(|i| i as f32 * factor).collect::<Vec<_>>();
        let a = Tensor::from_vec(numbers(1.0), n, &Device::Cpu).unwrap();
        let b = Tensor::from_vec(numbers(0.5), n, &Device::Cpu).unwrap();
        assert_eq!(add(&a, &b).unwrap().to_vec1::<f32>().unwrap(), numbers(1.5));
        for other in [b.narrow(0, 0, 5).unwrap(), b.to_dtype(candle_core::DType::F64).unwrap()] {
            assert!(add(&a, &other).is_err());
        }
    }
}
