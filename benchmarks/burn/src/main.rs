//! 3D convolutions of `adw-tensor-ops` beside those of burn (its CPU backend flex), in turns on the same shapes:
//! `RAYON_NUM_THREADS=2 cargo run --release --manifest-path benchmarks/burn/Cargo.toml`.
//!
//! Milliseconds of a forward pass and of forward pass, input gradient and weight gradient together: the least of `ROUNDS` rounds.
//! Both programs' results are compared once per shape.

use std::{hint::black_box, time::Instant};

use adw_tensor_ops::{
    Conv3dGeometry, allocation,
    conv3d::{self, Input, Precision},
};
use burn::tensor::{Device, Tensor, TensorData, module, ops::ConvOptions};
use candle_core::{Device as CandleDevice, Tensor as CandleTensor};

/// Turns of the two programs.
const ROUNDS: usize = 7;

/// Input channels, output channels, voxels, kernel, stride.
type Layer = (usize, usize, [usize; 3], [usize; 3], [usize; 3]);

const LAYERS: &[Layer] = &[
    (8, 8, [40, 56, 40], [3; 3], [1; 3]),
    (16, 16, [40, 56, 40], [3; 3], [1; 3]),
    (48, 48, [40, 56, 40], [3; 3], [1; 3]),
    (96, 48, [40, 56, 40], [3; 3], [1; 3]),
    (48, 48, [20, 64, 64], [1, 3, 3], [1; 3]),
    (48, 96, [40, 56, 40], [3; 3], [2; 3]),
    (192, 192, [10, 14, 10], [3; 3], [1; 3]),
];

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    allocation::keep_freed_memory();
    let device = Device::flex();
    let gradients = Device::flex().autodiff();
    println!("| layer | adw: forward, all | burn: forward, all | ratio | relative error |");
    println!("|---|--:|--:|--:|--:|");
    for &(ci, co, [d, h, w], kernel, stride) in LAYERS {
        let g = Conv3dGeometry::same(kernel, stride);
        // Channels last here, first there.
        let x = CandleTensor::randn(0f32, 1., (1, d, h, w, ci), &CandleDevice::Cpu)?;
        let weight = CandleTensor::randn(0f32, 1., (co, ci, kernel[0], kernel[1], kernel[2]), &CandleDevice::Cpu)?;
        let first = x.permute((0, 4, 1, 2, 3))?.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
        let taps = weight.flatten_all()?.to_vec1::<f32>()?;
        let (x_data, w_data) = (
            TensorData::new(first, [1, ci, d, h, w]),
            TensorData::new(taps, [co, ci, kernel[0], kernel[1], kernel[2]]),
        );
        let options = || ConvOptions::new(stride, kernel.map(|k| k / 2), [1; 3], 1);
        let bx = Tensor::<5>::from_data(x_data.clone(), &device);
        let bw = Tensor::<5>::from_data(w_data.clone(), &device);
        let forward = || conv3d::forward_plain(&[Input::from(&x)], &weight, g, Precision::Full).expect("shapes fit");
        let burn_forward = || module::conv3d(bx.clone(), bw.clone(), None, options());
        let y = forward();
        let theirs = burn_forward().into_data().try_to_vec::<f32>().map_err(|e| format!("{e:?}"))?;
        let ours = y.permute((0, 4, 1, 2, 3))?.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
        let square = |v: f32| f64::from(v) * f64::from(v);
        let error = ours.iter().zip(&theirs).map(|(a, b)| square(a - b)).sum::<f64>();
        let error = (error / theirs.iter().map(|&b| square(b)).sum::<f64>()).sqrt();
        // The gradient of a sum, as burn takes it.
        let ones = y.ones_like()?;
        let mut best = [f64::INFINITY; 4];
        for _ in 0..ROUNDS {
            let times = [
                seconds(|| drop(black_box(forward()))),
                seconds(|| {
                    black_box(forward());
                    let dx = conv3d::grad_input((&ones).into(), &weight, g, [d, h, w], 0..ci, Precision::Full);
                    let dw = conv3d::grad_weight(&[Input::from(&x)], (&ones).into(), g, Precision::Full);
                    black_box((dx.expect("shapes fit"), dw.expect("shapes fit")));
                }),
                seconds(|| drop(black_box(burn_forward()))),
                {
                    let gx = Tensor::<5>::from_data(x_data.clone(), &gradients).require_grad();
                    let gw = Tensor::<5>::from_data(w_data.clone(), &gradients).require_grad();
                    seconds(|| {
                        let found = module::conv3d(gx.clone(), gw.clone(), None, options()).sum().backward();
                        black_box((gx.grad(&found), gw.grad(&found)));
                    })
                },
            ];
            best.iter_mut().zip(times).for_each(|(best, time)| *best = best.min(time * 1e3));
        }
        let [forward, all, burn_forward, burn_all] = best;
        println!(
            "| {ci} to {co}, {d}x{h}x{w}, kernel {}x{}x{}, stride {} | {forward:.1}, {all:.1} | {burn_forward:.1}, {burn_all:.1} | {:.2}, {:.2} | {error:.0e} |",
            kernel[0],
            kernel[1],
            kernel[2],
            stride[0],
            forward / burn_forward,
            all / burn_all
        );
    }
    Ok(())
}
