use super::bf16::Bf16;
use super::cpu::{ConvElement, KernelConfig, WinogradUse, convolve, input_gradient, weight_gradient};
use super::job::{ConvShape, Norm, Source};
use super::winograd::TileShape;
use super::*;
use crate::simd::InstructionSet;
use crate::testing::{finite_difference, numbers};
use adw_testing::{Tolerance, assert_close, tolerance};
use candle_core::{Device, Var};

#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    ci: usize,
    co: usize,
    size: [usize; 3],
    geometry: Conv3dGeometry,
}

const fn case(
    batch: usize,
    ci: usize,
    co: usize,
    size: [usize; 3],
    kernel: [usize; 3],
    stride: [usize; 3],
    padding: [usize; 3],
) -> Case {
    Case { batch, ci, co, size, geometry: Conv3dGeometry::new(kernel, stride, padding) }
}

impl Case {
    const fn dilated(mut self, dilation: [usize; 3]) -> Self {
        self.geometry.dilation = dilation;
        self
    }

    fn shape(&self) -> ConvShape {
        ConvShape {
            batch: self.batch,
            input: self.size,
            output: self.geometry.output_size("test", self.size).unwrap(),
            in_channels: self.ci,
            out_channels: self.co,
            geometry: self.geometry,
        }
    }
}

const CASES: &[Case] = &[
    case(2, 1, 5, [3, 4, 5], [3, 3, 3], [1, 1, 1], [1, 1, 1]),
    case(1, 4, 48, [4, 3, 13], [3, 3, 3], [1, 1, 1], [1, 1, 1]),
    case(2, 7, 33, [5, 6, 7], [3, 3, 3], [2, 2, 2], [1, 1, 1]),
    case(1, 17, 12, [4, 9, 10], [1, 3, 3], [1, 2, 2], [0, 1, 1]),
    case(2, 3, 2, [6, 5, 4], [1, 1, 1], [1, 1, 1], [0, 0, 0]),
    case(1, 5, 70, [4, 4, 6], [2, 2, 2], [2, 2, 2], [0, 0, 0]),
    case(1, 2, 3, [7, 8, 9], [5, 3, 1], [3, 1, 2], [2, 0, 0]),
    case(1, 6, 9, [5, 5, 5], [3, 3, 3], [1, 2, 3], [0, 2, 1]),
    case(1, 3, 4, [2, 2, 2], [1, 1, 1], [2, 2, 2], [0, 0, 0]),
    case(1, 20, 100, [3, 2, 1], [3, 3, 3], [1, 1, 1], [1, 1, 1]),
    case(2, 13, 21, [5, 9, 7], [1, 3, 3], [1, 1, 1], [0, 1, 1]),
    case(1, 9, 35, [8, 6, 11], [3, 3, 3], [1, 1, 1], [0, 2, 1]),
    case(2, 9, 20, [7, 8, 9], [3, 3, 3], [1, 1, 1], [2, 2, 2]).dilated([2, 2, 2]),
    case(1, 5, 18, [6, 11, 13], [3, 3, 3], [1, 1, 1], [1, 1, 3]).dilated([1, 1, 3]),
    case(1, 17, 6, [5, 12, 12], [1, 3, 2], [1, 2, 3], [0, 4, 1]).dilated([1, 4, 2]),
    case(2, 3, 4, [9, 10, 11], [2, 3, 3], [2, 2, 4], [0, 1, 2]).dilated([3, 2, 2]),
];

/// The definition, written as loops. `f(x index, weight index, y index)` for every product; `x` and `y` channels last.
fn for_every_product(c: &Case, out: [usize; 3], mut f: impl FnMut(usize, usize, usize)) {
    let g = c.geometry;
    for b in 0..c.batch {
        for co in 0..c.co {
            for ci in 0..c.ci {
                for od in 0..out[0] {
                    for oh in 0..out[1] {
                        for ow in 0..out[2] {
                            for kd in 0..g.kernel[0] {
                                for kh in 0..g.kernel[1] {
                                    for kw in 0..g.kernel[2] {
                                        let at = |o: usize, k: usize, i: usize| {
                                            (o * g.stride[i] + k * g.dilation[i])
                                                .checked_sub(g.padding[i])
                                                .filter(|&p| p < c.size[i])
                                        };
                                        let (Some(d), Some(h), Some(w)) = (at(od, kd, 0), at(oh, kh, 1), at(ow, kw, 2))
                                        else {
                                            continue;
                                        };
                                        f(
                                            (((b * c.size[0] + d) * c.size[1] + h) * c.size[2] + w) * c.ci + ci,
                                            (((co * c.ci + ci) * g.kernel[0] + kd) * g.kernel[1] + kh) * g.kernel[2]
                                                + kw,
                                            (((b * out[0] + od) * out[1] + oh) * out[2] + ow) * c.co + co,
                                        );
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

struct Expected {
    x: Vec<f64>,
    weight: Vec<f64>,
    grad_y: Vec<f64>,
    y: Vec<f64>,
    grad_x: Vec<f64>,
    grad_weight: Vec<f64>,
}

fn expected(c: &Case) -> Expected {
    expected_of(c, |x| x)
}

/// The passes over numbers rounded by `round`.
fn expected_of(c: &Case, round: impl Fn(f64) -> f64) -> Expected {
    let voxels = c.batch * c.size.iter().product::<usize>();
    expected_of_input(c, &numbers(1, voxels * c.ci), round)
}

/// The passes over an input and numbers, all rounded by `round`.
fn expected_of_input(c: &Case, x: &[f64], round: impl Fn(f64) -> f64) -> Expected {
    let rounded = |v: &[f64]| -> Vec<f64> { v.iter().map(|&v| round(v)).collect() };
    let out = c.geometry.output_size("test", c.size).unwrap();
    let x = rounded(x);
    let weight = rounded(&numbers(2, c.co * c.ci * c.geometry.kernel.iter().product::<usize>()));
    let grad_y = rounded(&numbers(3, c.batch * out.iter().product::<usize>() * c.co));
    let (mut y, mut grad_x, mut grad_weight) = (vec![0.0; grad_y.len()], vec![0.0; x.len()], vec![0.0; weight.len()]);
    for_every_product(c, out, |xi, wi, yi| {
        y[yi] += x[xi] * weight[wi];
        grad_x[xi] += grad_y[yi] * weight[wi];
        grad_weight[wi] += x[xi] * grad_y[yi];
    });
    Expected { x, weight, grad_y, y, grad_x, grad_weight }
}

/// Every instruction set of this processor with all algorithms.
fn all_configs() -> impl Iterator<Item = KernelConfig> {
    InstructionSet::available().into_iter().flat_map(|set| {
        let shapes = [1, 3].into_iter().flat_map(move |taps| TileShape::available::<f32>(set, taps));
        let config = move |winograd| KernelConfig { instruction_set: set, shorter: None, winograd, bf16: None };
        shapes.map(WinogradUse::IfSupported).chain([WinogradUse::Never]).map(config)
    })
}

/// The kernels of full precision with rounding, and the matrix unit if this processor has one.
fn bf16_configs() -> impl Iterator<Item = KernelConfig> {
    let fastest = KernelConfig { bf16: Some(Bf16::Rounded), ..KernelConfig::fastest() };
    let direct = KernelConfig { winograd: WinogradUse::Never, ..fastest };
    let unit = KernelConfig { bf16: Some(Bf16::detect()), ..fastest };
    [fastest, direct].into_iter().chain(Precision::has_matrix_unit().then_some(unit))
}

fn bf16(x: f64) -> f64 {
    let bits = (x as f32).to_bits();
    f64::from(f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000))
}

fn check<T: ConvElement + Into<f64>>(c: &Case, config: KernelConfig, e: &Expected, tolerance: Tolerance) {
    let cast = |v: &[f64]| v.iter().map(|&x| T::from_f64(x)).collect::<Vec<T>>();
    let (x, weight, grad_y) = (cast(&e.x), cast(&e.weight), cast(&e.grad_y));
    let source = |data, channels| Source::<T> { data, channels, norm: None, round: None };
    let shape = c.shape();
    let what = format!("{c:?} {config:?}");
    // The input once whole and once as two maps side by side.
    let split = c.ci / 2;
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for v in x.chunks_exact(c.ci) {
        first.extend_from_slice(&v[..split]);
        second.extend_from_slice(&v[split..]);
    }
    let mut inputs = vec![vec![source(&x, c.ci)]];
    if split > 0 {
        inputs.push(vec![source(&first, split), source(&second, c.ci - split)]);
    }
    for sources in &inputs {
        let (y, moments) = convolve(config, &shape, sources, &weight, true);
        assert_close(format!("forward {what}"), &y, &e.y, tolerance);
        let moments = moments.unwrap();
        let n = e.y.len() / c.batch / c.co;
        let (mean, variance): (Vec<f64>, Vec<f64>) = (0..c.batch * c.co)
            .map(|i| {
                let v = (0..n).map(|j| e.y[(i / c.co * n + j) * c.co + i % c.co]);
                let mean = v.clone().sum::<f64>() / n as f64;
                (mean, v.map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64)
            })
            .unzip();
        // Moments are sums over a whole channel, and a variance is a sum of squares.
        assert_close(format!("mean {what}"), &moments.mean, &mean, Tolerance::elements(20.0 * tolerance.rel, 0.0));
        let of_squares = Tolerance::elements(50.0 * tolerance.rel, 50.0 * tolerance.rel);
        assert_close(format!("variance {what}"), &moments.variance, &variance, of_squares);
        let grad = weight_gradient(config, &shape, sources, source(&grad_y, c.co));
        assert_close(format!("weight gradient {what}"), &grad, &e.grad_weight, tolerance);
    }
    let grads = [source(&grad_y, c.co)];
    for channels in [0..c.ci, split..c.ci] {
        let grad = input_gradient(config, &shape, &grads, &weight, &channels);
        let part: Vec<f64> = e.grad_x.chunks_exact(c.ci).flat_map(|v| v[channels.clone()].to_vec()).collect();
        assert_close(format!("input gradient {what} {channels:?}"), &grad, &part, tolerance);
    }
}

#[test]
fn every_pass_equals_its_definition() {
    for c in CASES {
        let e = expected(c);
        for config in all_configs() {
            check::<f32>(c, config, &e, tolerance::F32_CONVOLUTION);
            check::<f64>(c, config, &e, tolerance::F64_SUM);
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 48, ..Default::default() })]
    #[test]
    fn any_shape(
        batch in 1usize..3, ci in 1usize..40, co in 1usize..70,
        size in proptest::array::uniform3(1usize..12),
        kernel in proptest::array::uniform3(1usize..5),
        stride in proptest::array::uniform3(1usize..4),
        padding in proptest::array::uniform3(0usize..3),
        dilation in proptest::array::uniform3(1usize..4),
        winograd: bool,
    ) {
        let (kernel, stride, dilation) =
            if winograd { ([kernel[0] / 2 * 2 + 1, 3, 3], [1; 3], [1; 3]) } else { (kernel, stride, dilation) };
        let c = Case { batch, ci, co, size, geometry: Conv3dGeometry { kernel, stride, padding, dilation } };
        if c.geometry.output_size("test", size).is_ok() {
            let (full, rounded) = (expected(&c), expected_of(&c, bf16));
            let configs = all_configs().map(|config| (config, &full));
            for (config, e) in configs.chain(bf16_configs().map(|config| (config, &rounded))) {
                check::<f32>(&c, config, e, tolerance::F32_CONVOLUTION_ANY_SHAPE);
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let c = case(2, 24, 40, [9, 11, 13], [3, 3, 3], [1, 1, 1], [1, 1, 1]);
    let e = expected(&c);
    let cast = |v: &[f64]| v.iter().map(|&x| x as f32).collect::<Vec<f32>>();
    let (x, weight, g) = (cast(&e.x), cast(&e.weight), cast(&e.grad_y));
    let sources = [Source { data: &x[..], channels: c.ci, norm: None, round: None }];
    let grad_output = Source { data: &g[..], channels: c.co, norm: None, round: None };
    let run = |config, threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (y, m) = convolve(config, &c.shape(), &sources, &weight, true);
            let bits = |v: Vec<f32>| v.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            let gw = weight_gradient(config, &c.shape(), &sources, grad_output);
            (bits(y), bits(m.unwrap().variance), bits(gw))
        })
    };
    for config in all_configs().chain(bf16_configs()) {
        let one = run(config, 1);
        for threads in [2, 3, 7] {
            assert!(run(config, threads) == one, "{threads} threads, {config:?}");
        }
    }
}

#[test]
fn candle_gradients() {
    let device = Device::Cpu;
    for c in CASES {
        let k = c.geometry.kernel;
        let x = Var::from_vec(
            numbers(1, c.batch * c.ci * c.size.iter().product::<usize>()),
            (c.batch, c.ci, c.size[0], c.size[1], c.size[2]),
            &device,
        )
        .unwrap();
        let w = Var::from_vec(
            numbers(2, c.co * c.ci * k.iter().product::<usize>()),
            (c.co, c.ci, k[0], k[1], k[2]),
            &device,
        )
        .unwrap();
        let f = |x: &Tensor, w: &Tensor| conv3d(x, w, c.geometry).unwrap().sqr().unwrap().sum_all().unwrap();
        finite_difference(&format!("{c:?} x"), &x, |x| f(x, &w));
        finite_difference(&format!("{c:?} weight"), &w, |w| f(&x, w));
    }
}

#[test]
fn normalised_on_load() {
    let device = Device::Cpu;
    let map = Tensor::from_vec(numbers(5, 2 * 4 * 5 * 6 * 3), (2, 4, 5, 6, 3), &device).unwrap();
    let weight = Tensor::from_vec(numbers(6, 7 * 3 * 27), (7, 3, 3, 3, 3), &device).unwrap();
    let (gamma, beta) =
        (Tensor::new(&[1.5, -0.5, 0.7f64], &device).unwrap(), Tensor::new(&[0.1, 0.2, -0.3f64], &device).unwrap());
    let norm = crate::norm_act::NormAct::default();
    let n = norm.coefficients(&crate::norm_act::moments(&map).unwrap(), &gamma, &beta, None).unwrap();
    let lazy = Input { map: &map, norm: Some(&n) };
    let z = crate::norm_act::weighted_sum(&[(&map, &n)], None).unwrap();
    let g = Conv3dGeometry::same([3, 3, 3], [2, 1, 2]);
    let flat = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
    let expected = forward_plain(&[(&z).into()], &weight, g, Precision::Full).unwrap();
    assert_close(
        "forward",
        &flat(forward_plain(&[lazy], &weight, g, Precision::Full).unwrap()),
        &flat(expected.clone()),
        tolerance::F64_SUM,
    );
    let gw = flat(grad_weight(&[(&z).into()], (&expected).into(), g, Precision::Full).unwrap());
    assert_close(
        "weight gradient",
        &flat(grad_weight(&[lazy], (&expected).into(), g, Precision::Full).unwrap()),
        &gw,
        tolerance::F64_SUM,
    );
}

#[test]
fn wrong_arguments_are_named() {
    let x = Tensor::zeros((1, 3, 4, 4, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
    let w = Tensor::zeros((8, 2, 3, 3, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    let message = conv3d(&x, &w, Conv3dGeometry::same([3; 3], [1; 3])).unwrap_err().to_string();
    assert!(message.contains("weight") && message.contains("[Cout, 3, 3, 3, 3]"), "{message}");
    let dilated = Conv3dGeometry { dilation: [1, 1, 3], ..Conv3dGeometry::same([3; 3], [1; 3]) };
    let ones = Tensor::zeros((8, 3, 3, 3, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert!(conv3d(&x, &ones, dilated).unwrap_err().to_string().contains("dilation"));
    let w = Tensor::zeros((8, 3, 7, 3, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    let g = Conv3dGeometry::new([7, 3, 3], [1; 3], [0; 3]);
    assert!(conv3d(&x, &w, g).unwrap_err().to_string().contains("kernel"));
    let half = x.to_dtype(candle_core::DType::F16).unwrap();
    let w = Tensor::zeros((8, 3, 3, 3, 3), candle_core::DType::F16, &Device::Cpu).unwrap();
    assert!(conv3d(&half, &w, Conv3dGeometry::same([3; 3], [1; 3])).is_err());
}

/// Sizes whose product wraps around, and dimensions of nothing, are refused before anything is allocated.
#[test]
fn impossible_sizes_are_refused() {
    let ones = |shape: [usize; 5]| Tensor::ones(&shape[..], candle_core::DType::F32, &Device::Cpu).unwrap();
    let (g, w) = (ones([1; 5]), ones([1; 5]));
    let geometry = Conv3dGeometry::new([1; 3], [1 << 32, 1 << 32, 1], [0; 3]);
    assert!(grad_input((&g).into(), &w, geometry, [1 << 32, 1 << 32, 1], 0..1, Precision::Full).is_err());
    let padded = Conv3dGeometry::new([1; 3], [1; 3], [usize::MAX / 2; 3]);
    assert!(conv3d(&g, &w, padded).is_err());
    // Two outputs whose distance in the input is near the largest number: positions times channels would wrap around.
    let far = (1 << 60) - 1;
    let geometry =
        Conv3dGeometry { kernel: [2, 1, 1], stride: [far, 1, 1], padding: [far, 0, 0], dilation: [far, 1, 1] };
    let error = conv3d(&ones([1, 16, 1, 1, 1]), &ones([8, 16, 2, 1, 1]), geometry).unwrap_err().to_string();
    assert!(error.contains("padded input"), "{error}");
    let same = Conv3dGeometry::same([1; 3], [1; 3]);
    for (x, w) in
        [([0, 1, 2, 2, 2], [1, 1, 1, 1, 1]), ([1, 0, 2, 2, 2], [1, 0, 1, 1, 1]), ([1, 1, 2, 2, 2], [0, 1, 1, 1, 1])]
    {
        let zeros = |s: [usize; 5]| Tensor::zeros(&s[..], candle_core::DType::F32, &Device::Cpu);
        let error = conv3d(&zeros(x).unwrap(), &zeros(w).unwrap(), same).unwrap_err().to_string();
        assert!(error.contains("dimensions of at least 1"), "{error}");
    }
}

/// Long sums keep their digits: a layer with many voxels, all terms of one sign.
#[test]
fn long_sums() {
    let c = case(2, 1, 17, [64, 48, 40], [1, 1, 1], [1, 1, 1], [0, 0, 0]);
    let voxels = 2 * 64 * 48 * 40;
    let x: Vec<f32> = numbers(1, voxels).into_iter().map(|v| (v + 2.0) as f32).collect();
    let ones = vec![1f32; voxels * c.co];
    let sources = [Source { data: &x[..], channels: 1, norm: None, round: None }];
    let grad_output = Source { data: &ones[..], channels: c.co, norm: None, round: None };
    let gradient = weight_gradient(KernelConfig::fastest(), &c.shape(), &sources, grad_output);
    let sum: f64 = x.iter().map(|&v| f64::from(v)).sum();
    assert_close("weight gradient", &gradient, &[sum; 17], tolerance::F32_CONVOLUTION);
    // A constant channel has no variance, however large it is.
    let weight = vec![100.1f32; c.co];
    let ones = vec![1f32; voxels];
    let sources = [Source { data: &ones[..], channels: 1, norm: None, round: None }];
    let (_, m) = convolve(KernelConfig::fastest(), &c.shape(), &sources, &weight, true);
    let m = m.unwrap();
    assert!(m.variance.iter().all(|&v| v < 1e-8), "{:?}", m.variance);
    assert!(m.mean.iter().all(|&v| (v - 100.1).abs() < 1e-4), "{:?}", m.mean);
}

/// Factors are rounded to bf16, and everything after that is f32, so a result is that of rounded factors to the
/// accuracy of f32, and as far off that of the factors themselves as their rounding makes it.
#[test]
fn bf16_factors() {
    let cases = [
        case(2, 16, 16, [4, 5, 6], [3, 3, 3], [1, 1, 1], [1, 1, 1]),
        case(1, 48, 48, [9, 11, 40], [3, 3, 3], [1, 1, 1], [1, 1, 1]),
        case(2, 37, 53, [5, 9, 7], [3, 3, 3], [1, 1, 1], [1, 1, 1]),
        case(1, 96, 20, [5, 7, 5], [3, 3, 3], [1, 1, 1], [1, 1, 1]),
        case(2, 17, 33, [5, 6, 9], [1, 3, 3], [1, 1, 1], [0, 1, 1]),
        case(1, 24, 48, [8, 6, 10], [3, 3, 3], [2, 2, 2], [1, 1, 1]),
        case(1, 16, 70, [4, 9, 33], [1, 3, 3], [1, 2, 2], [0, 1, 1]),
        case(1, 19, 16, [6, 5, 8], [2, 3, 5], [1, 1, 1], [0, 2, 1]),
        case(1, 32, 64, [4, 4, 6], [2, 2, 2], [2, 2, 2], [0, 0, 0]),
        case(1, 16, 16, [3, 4, 8], [2, 1, 2], [1, 1, 1], [0, 0, 0]),
    ];
    for c in &cases {
        let (full, of_rounded) = (expected(c), expected_of(c, bf16));
        for config in bf16_configs() {
            check::<f32>(c, config, &of_rounded, tolerance::F32_CONVOLUTION);
            check::<f32>(c, config, &full, tolerance::BF16_FACTORS);
            // f64 is not rounded.
            check::<f64>(c, config, &full, tolerance::F64_SUM);
        }
        // Unrounded factors give the results of rounded ones in cases in which every pass rounds: without a stride, and
        // with 16 channels in either half of the input.
        if c.geometry.stride == [1; 3] && c.ci >= 32 {
            let Expected { x, weight, grad_y, .. } = full;
            let e = Expected { x, weight, grad_y, ..of_rounded };
            bf16_configs().for_each(|config| check::<f32>(c, config, &e, tolerance::F32_CONVOLUTION));
        }
    }
}

/// A map is normalised first and rounded then; a weight gradient of a stride rounds nothing. The normalisation's numbers
/// are exact in f32, so that every implementation rounds the same ones.
#[test]
fn bf16_factors_are_rounded_after_the_normalisation() {
    let cases = [
        case(2, 16, 24, [4, 5, 9], [3, 3, 3], [1, 1, 1], [1, 1, 1]),
        case(1, 20, 16, [7, 6, 9], [3, 3, 3], [2, 2, 2], [1, 1, 1]),
        case(2, 17, 16, [3, 8, 9], [1, 3, 3], [1, 2, 2], [0, 1, 1]),
    ];
    for c in &cases {
        let voxels: usize = c.size.iter().product();
        let x: Vec<f32> =
            numbers(1, c.batch * voxels * c.ci).iter().map(|x| (x * 1024.0).round() as f32 / 1024.0).collect();
        let scale: Vec<f32> = (0..c.batch * c.ci).map(|i| [1.5, -0.5, 0.75][i % 3]).collect();
        let shift: Vec<f32> = (0..c.batch * c.ci).map(|i| (i % 7) as f32 / 1024.0 - 0.125).collect();
        let normalised = |(i, &x): (usize, &f32)| {
            let channel = i / (voxels * c.ci) * c.ci + i % c.ci;
            let z = f64::from(scale[channel]) * f64::from(x) + f64::from(shift[channel]);
            if z < 0.0 { 0.25 * z } else { z }
        };
        let z: Vec<f64> = x.iter().enumerate().map(normalised).collect();
        let (full, rounded) = (expected_of_input(c, &z, |z| z), expected_of_input(c, &z, bf16));
        let cast = |v: &[f64]| v.iter().map(|&x| x as f32).collect::<Vec<f32>>();
        let (weight, grad_y) = (cast(&full.weight), cast(&full.grad_y));
        let norm = Some(Norm { scale: &scale, shift: &shift, slope: 0.25 });
        let sources = [Source { data: &x[..], channels: c.ci, norm, round: None }];
        let grad_output = Source { data: &grad_y[..], channels: c.co, norm: None, round: None };
        let is_rounded = c.geometry.stride == [1; 3];
        let grad_weight = if is_rounded { &rounded.grad_weight } else { &full.grad_weight };
        for config in bf16_configs() {
            let what = format!("{c:?} {config:?}");
            let (y, _) = convolve(config, &c.shape(), &sources, &weight, false);
            assert_close(format!("forward {what}"), &y, &rounded.y, tolerance::F32_CONVOLUTION);
            let grad = weight_gradient(config, &c.shape(), &sources, grad_output);
            assert_close(format!("weight gradient {what}"), &grad, grad_weight, tolerance::F32_CONVOLUTION);
        }
    }
}

#[test]
fn few_channels_take_the_shorter_vectors() {
    let config = KernelConfig::fastest();
    let Some(shorter) = config.shorter else {
        eprintln!("skipped: this processor has vectors of one length");
        return;
    };
    let data = vec![0f32; 48];
    let set = |channels: &[usize], written| {
        let sources: Vec<_> =
            channels.iter().map(|&channels| Source { data: &data, channels, norm: None, round: None }).collect();
        config.for_channels(&sources, written).instruction_set
    };
    for (channels, written) in [(&[8][..], 8), (&[1], 4), (&[8, 5], 8)] {
        assert_eq!(set(channels, written), shorter, "{channels:?} to {written}");
    }
    for (channels, written) in [(&[8][..], 9), (&[12], 8), (&[16, 16], 16), (&[8, 12], 8)] {
        assert_eq!(set(channels, written), config.instruction_set, "{channels:?} to {written}");
    }
}
