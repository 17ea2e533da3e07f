//! Ops, networks and optimisers on a CUDA device beside the same on the host: f32 within 1e-5 per op, bf16 within 2e-2.
//!
//! Built with the feature `cuda` only. Runs on the first CUDA device, which may be the emulated one (`cargo xtask
//! cuda-check --emulate`).

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod networks;
mod ops;

use adw_cuda::device::{ConvolutionBackend, CudaRuntime};
use adw_tensor_ops::philox::{Purpose, Stream};
use candle_core::{DType, Device, Tensor};

/// Implementation of convolutions that the tests run on, from the environment: `own` (default) or `cudnn`.
fn convolution_backend() -> ConvolutionBackend {
    const VARIABLE: &str = "ADW_TEST_CONVOLUTIONS";
    match std::env::var(VARIABLE).as_deref() {
        Ok("cudnn") => ConvolutionBackend::Cudnn,
        Ok("own") | Err(_) => ConvolutionBackend::Own,
        Ok(other) => panic!("{VARIABLE}={other}: expected own or cudnn"),
    }
}

fn device() -> Device {
    static OPEN: std::sync::OnceLock<Device> = std::sync::OnceLock::new();
    OPEN.get_or_init(|| {
        let device = adw_cuda::device::open(0).expect("these tests need a CUDA device");
        if let Device::Cuda(cuda) = &device {
            let runtime = CudaRuntime::of(cuda).unwrap();
            runtime.set_convolutions(convolution_backend()).unwrap();
        }
        device
    })
    .clone()
}

fn numbers(index: u32, shape: &[usize]) -> Tensor {
    let stream = Stream { seed: 3, purpose: Purpose::Other, epoch: 0, iteration: 0, index };
    let n = shape.iter().product();
    let values: Vec<f32> = stream.normal().take(n).map(|x| x as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn labels(index: u32, shape: &[usize], classes: usize) -> Tensor {
    let values: Vec<u8> = numbers(index, shape)
        .flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap()
        .iter()
        .map(|x| ((x * 7.0).abs() as usize % classes) as u8)
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn flat(t: &Tensor) -> Vec<f64> {
    let t = t.to_device(&Device::Cpu).unwrap();
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn close(what: &str, got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), expected.dims(), "{what}");
    let (got, expected) = (flat(got), flat(expected));
    let error: f64 = got.iter().zip(&expected).map(|(a, b)| (a - b).powi(2)).sum();
    let norm: f64 = expected.iter().map(|b| b * b).sum();
    assert!(
        error.sqrt() <= tolerance * norm.sqrt().max(1e-12),
        "{what}: relative error {:e}, {tolerance:e} allowed",
        (error / norm).sqrt()
    );
}
