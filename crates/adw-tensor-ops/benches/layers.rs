//! The layers of a 3D U-Net at the hippocampus patch, all three passes, with their share of the machine's measured
//! multiply-add peak: `cargo bench -p adw-tensor-ops`.

use adw_tensor_ops::Precision;
use adw_tensor_ops::conv3d::{self, Input};
use adw_tensor_ops::norm_act::{self, NormAct};
use adw_tensor_ops::{Conv3dGeometry, InstructionSet, allocation, conv_transpose3d, peak};
use candle_core::{DType, Device, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

struct Layer {
    name: &'static str,
    ci: usize,
    co: usize,
    size: [usize; 3],
    kernel: [usize; 3],
    stride: [usize; 3],
}

const fn layer(
    name: &'static str,
    ci: usize,
    co: usize,
    size: [usize; 3],
    kernel: [usize; 3],
    stride: [usize; 3],
) -> Layer {
    Layer { name, ci, co, size, kernel, stride }
}

const LAYERS: &[Layer] = &[
    layer("first", 1, 48, [40, 56, 40], [3; 3], [1; 3]),
    layer("first_4ch", 4, 48, [40, 56, 40], [3; 3], [1; 3]),
    layer("full_res", 48, 48, [40, 56, 40], [3; 3], [1; 3]),
    layer("narrow_4", 4, 4, [40, 56, 40], [3; 3], [1; 3]),
    layer("narrow_6", 6, 6, [40, 56, 40], [3; 3], [1; 3]),
    layer("narrow_8_to_4", 8, 4, [40, 56, 40], [3; 3], [1; 3]),
    layer("narrow_8", 8, 8, [40, 56, 40], [3; 3], [1; 3]),
    layer("narrow_first", 1, 8, [40, 56, 40], [3; 3], [1; 3]),
    layer("narrow_head", 8, 3, [40, 56, 40], [1; 3], [1; 3]),
    layer("narrow_8_down", 8, 16, [40, 56, 40], [3; 3], [2; 3]),
    layer("narrow_12", 12, 12, [40, 56, 40], [3; 3], [1; 3]),
    layer("narrow_16", 16, 16, [40, 56, 40], [3; 3], [1; 3]),
    layer("narrow_decoder", 32, 16, [40, 56, 40], [3; 3], [1; 3]),
    layer("narrow_down", 16, 32, [40, 56, 40], [3; 3], [2; 3]),
    layer("narrow_stage_1", 32, 32, [20, 28, 20], [3; 3], [1; 3]),
    layer("narrow_stage_2", 64, 64, [10, 14, 10], [3; 3], [1; 3]),
    layer("narrow_bottom", 128, 128, [5, 7, 5], [3; 3], [1; 3]),
    layer("full_res_decoder", 96, 48, [40, 56, 40], [3; 3], [1; 3]),
    layer("full_res_1x3x3", 48, 48, [20, 64, 64], [1, 3, 3], [1; 3]),
    layer("down_1", 48, 96, [40, 56, 40], [3; 3], [2; 3]),
    layer("stage_1", 96, 96, [20, 28, 20], [3; 3], [1; 3]),
    layer("stage_2", 192, 192, [10, 14, 10], [3; 3], [1; 3]),
    layer("bottom", 384, 384, [5, 7, 5], [3; 3], [1; 3]),
    layer("head", 48, 3, [40, 56, 40], [1; 3], [1; 3]),
];

fn random(shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1., shape, &Device::Cpu).expect("a small tensor")
}

/// Seconds per call, the least of some calls.
fn seconds(mut f: impl FnMut()) -> f64 {
    (0..5)
        .map(|_| {
            let start = std::time::Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

fn convolutions(c: &mut Criterion) {
    // As programs do: the page faults of maps allocated anew are no part of a layer's time.
    allocation::keep_freed_memory();
    let peak = peak::flops_per_second(InstructionSet::detect());
    println!("peak of the register tile: {:.0} GFLOP/s", peak / 1e9);
    for l in LAYERS {
        for precision in [Precision::Full, Precision::Bf16] {
            convolution(c, l, precision, peak);
        }
    }
}

fn convolution(c: &mut Criterion, l: &Layer, precision: Precision, peak: f64) {
    let g = Conv3dGeometry::same(l.kernel, l.stride);
    let [d, h, w] = l.size;
    let x = random(&[1, d, h, w, l.ci]);
    let weight = random(&[l.co, l.ci, l.kernel[0], l.kernel[1], l.kernel[2]]);
    let forward = || conv3d::forward_plain(&[Input::from(&x)], &weight, g, precision).expect("shapes fit");
    let y = forward();
    let flops = 2 * y.elem_count() * l.ci * l.kernel.iter().product::<usize>();
    let grad_input = || conv3d::grad_input((&y).into(), &weight, g, l.size, 0..l.ci, precision).expect("shapes fit");
    let grad_weight = || conv3d::grad_weight(&[Input::from(&x)], (&y).into(), g, precision).expect("shapes fit");
    let rates = [seconds(|| drop(forward())), seconds(|| drop(grad_input())), seconds(|| drop(grad_weight()))];
    let name = match precision {
        Precision::Full => l.name.to_owned(),
        Precision::Bf16 => format!("{} bf16", l.name),
    };
    println!(
        "{name:22} ms: {:6.2?}, GFLOP/s: {:?}, % of the f32 peak: {:?}",
        rates.map(|s| s * 1e3),
        rates.map(|s| (flops as f64 / s / 1e9).round()),
        rates.map(|s| (100.0 * flops as f64 / s / peak).round())
    );
    let mut group = c.benchmark_group(name);
    group.sample_size(10).throughput(Throughput::Elements(flops as u64));
    group.bench_function("forward", |b| b.iter(|| black_box(forward())));
    group.bench_function("grad_input", |b| b.iter(|| black_box(grad_input())));
    group.bench_function("grad_weight", |b| b.iter(|| black_box(grad_weight())));
}

fn transposed(c: &mut Criterion) {
    let (x, weight) = (random(&[1, 20, 28, 20, 96]), random(&[96, 48, 2, 2, 2]));
    let y = conv_transpose3d::forward((&x).into(), &weight).expect("shapes fit");
    let mut group = c.benchmark_group("up_96_to_48");
    group.sample_size(10).throughput(Throughput::Elements((2 * y.elem_count() * 96) as u64));
    group.bench_function("forward", |b| {
        b.iter(|| conv_transpose3d::forward((&x).into(), &weight));
    });
    group.bench_function("grad_input", |b| {
        b.iter(|| conv_transpose3d::grad_input(&y, &weight));
    });
    group.bench_function("grad_weight", |b| {
        b.iter(|| conv_transpose3d::grad_weight((&x).into(), &y, [2; 3]));
    });
}

fn normalisation(c: &mut Criterion) {
    let y = random(&[1, 40, 56, 40, 48]);
    let gamma = Tensor::ones(48, DType::F32, &Device::Cpu).expect("a small tensor");
    let beta = gamma.zeros_like().expect("a small tensor");
    let n = NormAct::default()
        .coefficients(&norm_act::moments(&y).expect("a map"), &gamma, &beta, None)
        .expect("shapes fit");
    let bytes = (y.elem_count() * 4) as u64;
    let mut group = c.benchmark_group("norm_act_full_res");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(bytes));
    group.bench_function("moments", |b| b.iter(|| norm_act::moments(&y)));
    group.throughput(Throughput::Bytes(2 * bytes));
    group.bench_function("apply", |b| {
        b.iter(|| norm_act::weighted_sum(&[(&y, &n)], None));
    });
    group.throughput(Throughput::Bytes(5 * bytes));
    group.bench_function("backward", |b| {
        b.iter(|| norm_act::backward(&y, &n, &gamma, &beta, None, None, Some(&y)));
    });
}

criterion_group!(benches, convolutions, transposed, normalisation);
criterion_main!(benches);
