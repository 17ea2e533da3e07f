//! Op by op.

use adw_cuda::device::{ConvolutionBackend, CudaRuntime};
use adw_cuda::work::{Machine, Recorder};
use adw_tensor_ops::loss::{DiceCe, deep_supervision_loss, dice_ce};
use adw_tensor_ops::norm_act::{Gate, GatePosition, Moments, NormAct};
use adw_tensor_ops::philox::{Purpose, Stream};
use adw_tensor_ops::{Conv3dGeometry, Precision, conv_transpose3d, conv3d, gumbel_softmax, norm_act};
use candle_core::{DType, Device, Tensor, Var};

use crate::{close, convolution_backend, device, flat, labels, numbers};

/// Relative L2 error in f32, and in bf16.
const OP: f64 = 1e-5;
const BF16: f64 = 2e-2;

/// The same function of the same variables on both devices: value and gradients agree.
#[track_caller]
fn op(what: &str, inputs: &[Tensor], f: impl Fn(&[Var]) -> Tensor) {
    let run = |device: &Device| {
        let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(&t.to_device(device).unwrap()).unwrap()).collect();
        let y = f(&vars);
        let weight = numbers(99, y.dims()).to_device(device).unwrap();
        // A sum on the host: candle's own reductions are not what is tested.
        let scalar = (&y * &weight).unwrap().to_device(&Device::Cpu).unwrap().sum_all().unwrap();
        let store = scalar.backward().unwrap();
        let gradients: Vec<Tensor> = vars.iter().map(|v| store.get(v).unwrap().clone()).collect();
        (y, gradients)
    };
    let (expected, got) = (run(&Device::Cpu), run(&device()));
    close(what, &got.0, &expected.0, OP);
    for (i, (g, e)) in got.1.iter().zip(&expected.1).enumerate() {
        close(&format!("{what}, gradient {i}"), g, e, 2.0 * OP);
    }
}

#[test]
fn convolutions_as_candle_ops() {
    for (ci, co, kernel, stride) in [
        (1, 6, [3, 3, 3], [1, 1, 1]),
        (5, 7, [1, 3, 3], [1, 2, 2]),
        (16, 24, [3, 3, 3], [2, 2, 2]),
        (8, 3, [1, 1, 1], [1, 1, 1]),
    ] {
        let inputs = [numbers(1, &[2, ci, 5, 7, 6]), numbers(2, &[co, ci, kernel[0], kernel[1], kernel[2]])];
        op(&format!("conv3d {ci} to {co}, {kernel:?}, {stride:?}"), &inputs, |v| {
            conv3d(&v[0], &v[1], Conv3dGeometry::same(kernel, stride)).unwrap()
        });
    }
    for (ci, co, stride) in [(6, 4, [2, 2, 2]), (5, 9, [1, 2, 2])] {
        let inputs = [numbers(3, &[2, ci, 3, 4, 5]), numbers(4, &[ci, co, stride[0], stride[1], stride[2]])];
        op(&format!("conv_transpose3d {ci} to {co}, {stride:?}"), &inputs, |v| conv_transpose3d(&v[0], &v[1]).unwrap());
    }
}

#[test]
fn normalisation_as_candle_op() {
    for c in [3, 8, 12] {
        let inputs = [numbers(1, &[2, c, 4, 5, 6]), (numbers(2, &[c]) + 1.0).unwrap(), numbers(3, &[c])];
        op(&format!("norm_act of {c} channels"), &inputs, |v| {
            norm_act(&v[0], &v[1], &v[2], NormAct::default()).unwrap()
        });
    }
}

#[test]
fn losses() {
    for (classes, batch_dice) in [(2, true), (3, false), (6, true)] {
        let config = DiceCe { smooth: 1e-5, batch_dice };
        let target = labels(1, &[2, 4, 6, 8], classes);
        let run = |device: &Device| {
            let logits = Var::from_tensor(&numbers(2, &[2, classes, 4, 6, 8]).to_device(device).unwrap()).unwrap();
            let loss = dice_ce(&logits, &target, config).unwrap();
            let store = loss.to_device(&Device::Cpu).unwrap().backward().unwrap();
            (loss, store.get(&logits).unwrap().clone())
        };
        let (expected, got) = (run(&Device::Cpu), run(&device()));
        close("loss", &got.0, &expected.0, OP);
        close("gradient", &got.1, &expected.1, OP);
    }
    // Scales of deep supervision, the target resized by the kernel.
    let target = labels(3, &[2, 4, 6, 8], 3);
    let scales = [numbers(4, &[2, 3, 4, 6, 8]), numbers(5, &[2, 3, 2, 3, 4]), numbers(6, &[2, 3, 1, 2, 2])];
    let expected = deep_supervision_loss(&scales, &target, DiceCe::default()).unwrap();
    let last = |t: &Tensor| t.permute((0, 2, 3, 4, 1)).unwrap().contiguous().unwrap().to_device(&device()).unwrap();
    let (fine, coarse) = (last(&scales[0]), last(&scales[1]));
    let (loss, _) =
        DiceCe::default().losses_and_gradients(&[(&fine, 2.0 / 3.0), (&coarse, 1.0 / 3.0)], &target).unwrap();
    let expected = flat(&expected)[0];
    assert!((loss.value().unwrap() - expected).abs() < 1e-5 * expected.abs());
    // A label that has no class.
    let unknown = (target + 5.0).unwrap();
    let message = match DiceCe::default().losses_and_gradients(&[(&fine, 1.0)], &unknown) {
        Err(e) => e.to_string(),
        Ok((loss, _)) => loss.value().unwrap_err().to_string(),
    };
    assert!(message.contains("3 classes"), "{message}");
}

/// The passes of a convolution in bf16, of maps that are normalised and joined on the way, beside f32.
#[test]
fn convolutions_in_bf16() {
    let rounded = |t: Tensor| t.to_dtype(DType::BF16).unwrap();
    let f32 = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
    let there = |t: &Tensor| t.to_device(&device()).unwrap();
    for (ci, co, kernel, stride) in [
        (&[1][..], 6, [3, 3, 3], [1, 1, 1]),
        (&[16, 8], 24, [3, 3, 3], [1, 2, 2]),
        (&[5, 3], 7, [1, 3, 3], [1, 1, 1]),
        (&[24], 16, [2, 2, 2], [2, 2, 2]),
        (&[8], 3, [1, 1, 1], [1, 1, 1]),
    ] {
        let geometry = Conv3dGeometry::new(kernel, stride, kernel.map(|k| k % 2 * (k / 2)));
        let size = [4, 6, 8];
        let shape = |[d, h, w]: [usize; 3], c| [2, d, h, w, c];
        let maps: Vec<Tensor> =
            ci.iter().enumerate().map(|(i, &c)| rounded(numbers(i as u32, &shape(size, c)))).collect();
        let total = ci.iter().sum::<usize>();
        let weight = numbers(9, &[co, total, kernel[0], kernel[1], kernel[2]]);
        // Rounded as on the device.
        let weight = f32(&rounded(weight));
        let output = geometry.output_size("test", size).unwrap();
        let gradient = rounded(numbers(10, &shape(output, co)));
        let run = |map: &dyn Fn(&Tensor) -> Tensor, weight: &Tensor| {
            let maps: Vec<Tensor> = maps.iter().map(map).collect();
            let gradient = map(&gradient);
            let norm = |map: &Tensor, moments: &Moments| {
                let c = map.dim(4).unwrap();
                let [one, zero] = [1f32, 0.0].map(|v| {
                    let t = Tensor::full(v, c, &Device::Cpu).unwrap();
                    t.to_device(map.device()).unwrap()
                });
                NormAct::default().coefficients(moments, &one, &zero, None).unwrap()
            };
            let norms: Vec<_> = maps.iter().map(|m| norm(m, &norm_act::moments(m).unwrap())).collect();
            let last = maps.len() - 1;
            let inputs: Vec<conv3d::Input> = maps
                .iter()
                .zip(&norms)
                .enumerate()
                .map(|(i, (map, norm))| conv3d::Input { map, norm: (i == last).then_some(norm) })
                .collect();
            let plain = conv3d::Input { map: &gradient, norm: None };
            let full = Precision::Full;
            let (y, moments) = conv3d::forward(&inputs, weight, geometry, full).unwrap();
            // Its moments, by what they do.
            let normalised = norm_act::weighted_sum(&[(&y, &norm(&y, &moments))], None).unwrap();
            let half = total / 2..total;
            [
                y,
                normalised,
                conv3d::grad_input(plain, weight, geometry, size, half, full).unwrap(),
                conv3d::grad_weight(&inputs, plain, geometry, full).unwrap(),
            ]
        };
        let expected = run(&f32, &weight);
        record(true);
        let got = run(&there, &there(&weight));
        let launched = record(false);
        for kernel in ["cudnn_forward", "cudnn_grad_input", "cudnn_grad_weight"] {
            let expected = convolution_backend() == ConvolutionBackend::Cudnn;
            assert_eq!(launched.contains(&kernel), expected, "{kernel}: {launched:?}");
        }
        for (i, name) in ["y", "normalised y", "gradient of x", "gradient of w"].into_iter().enumerate() {
            let what = format!("{name}, {ci:?} to {co}, {kernel:?}, {stride:?}");
            close(&what, &got[i], &expected[i], BF16);
        }
    }
}

/// Begins to record launches on the device, or ends it and returns the kernels.
fn record(begin: bool) -> Vec<&'static str> {
    let Device::Cuda(cuda) = device() else {
        unreachable!("it is a CUDA device");
    };
    let recorder = begin.then(|| Recorder::new(Machine::H100));
    let recorded = CudaRuntime::of(&cuda).unwrap().record(recorder);
    let kernels = recorded.map(|r| r.records().keys().copied().collect());
    kernels.unwrap_or_default()
}

/// Maps in one element type after the other, and what is allowed for it.
const TYPES: [(DType, f64); 2] = [(DType::F32, OP), (DType::BF16, BF16)];

/// A map on the host, in f32 but rounded as the device has it, and on the device.
fn map(index: u32, shape: &[usize], dtype: DType) -> [Tensor; 2] {
    let rounded = numbers(index, shape).to_dtype(dtype).unwrap();
    [rounded.to_dtype(DType::F32).unwrap(), rounded.to_device(&device()).unwrap()]
}

/// The same numbers in f32 on both.
fn both(t: &Tensor) -> [Tensor; 2] {
    [t.clone(), t.to_device(&device()).unwrap()]
}

#[test]
fn normalisation_and_the_sum_over_depths() {
    for (dtype, tolerance) in TYPES {
        for (channels, position) in
            [(24, GatePosition::PostNorm), (8, GatePosition::PreNorm), (5, GatePosition::PostNorm)]
        {
            let shape = [2, 4, 6, 5, channels];
            let maps = [1, 2, 3].map(|i| map(i, &shape, dtype));
            let [outer, direct] = [4, 5].map(|i| map(i, &shape, dtype));
            let [gamma, beta, factor] = [6, 7, 8].map(|i| {
                let v = numbers(i, &[channels]);
                both(&((v * 0.2).unwrap() + 1.0).unwrap())
            });
            let weights = both(&Tensor::new(&[0.5f32, 0.3, 0.2], &Device::Cpu).unwrap());
            let run = |on: usize| {
                let gate = Gate { factor: &factor[on], position };
                let (gamma, beta) = (&gamma[on], &beta[on]);
                let norms = maps.each_ref().map(|map| {
                    let moments = norm_act::moments(&map[on]).unwrap();
                    NormAct::default().coefficients(&moments, gamma, beta, Some(gate)).unwrap()
                });
                let terms = [0, 1, 2].map(|i| (&maps[i][on], &norms[i]));
                let sum = norm_act::weighted_sum(&terms, Some(&weights[on])).unwrap();
                let weight = weights[on].narrow(0, 1, 1).unwrap();
                let g = norm_act::backward(
                    &maps[1][on],
                    &norms[1],
                    gamma,
                    beta,
                    Some(gate),
                    Some((&outer[on], &weight)),
                    Some(&direct[on]),
                )
                .unwrap();
                let by_weight: f64 = flat(&g.weight).iter().sum();
                let by_weight = Tensor::new(&[by_weight], &Device::Cpu).unwrap();
                [sum, g.y, g.gamma, g.beta, by_weight, g.gate.unwrap()]
            };
            let (expected, got) = (run(0), run(1));
            let names = ["sum", "y", "gamma", "beta", "weight", "gate"];
            for (i, name) in names.into_iter().enumerate() {
                let what = format!("{name}, {channels} channels, {dtype:?}, {position:?}");
                close(&what, &got[i], &expected[i], tolerance);
            }
        }
    }
}

#[test]
fn transposed_convolutions() {
    for (dtype, tolerance) in TYPES {
        for (ci, co, stride) in [(24, 16, [2, 2, 2]), (8, 5, [1, 2, 2])] {
            let size = [3, 4, 5];
            let up = [0, 1, 2].map(|i| size[i] * stride[i]);
            let x = map(1, &[2, 3, 4, 5, ci], dtype);
            let gradient = map(2, &[2, up[0], up[1], up[2], co], dtype);
            let shape = [ci, co, stride[0], stride[1], stride[2]];
            let weight = both(&map(3, &shape, dtype)[0]);
            let run = |on: usize| {
                let input = conv3d::Input { map: &x[on], norm: None };
                [
                    conv_transpose3d::forward(input, &weight[on]).unwrap(),
                    conv_transpose3d::grad_input(&gradient[on], &weight[on]).unwrap(),
                    conv_transpose3d::grad_weight(input, &gradient[on], stride).unwrap(),
                ]
            };
            let (expected, got) = (run(0), run(1));
            for (i, name) in ["y", "x", "w"].into_iter().enumerate() {
                let what = format!("{name}, {ci} to {co}, {stride:?}, {dtype:?}");
                close(&what, &got[i], &expected[i], tolerance);
            }
        }
    }
}

#[test]
fn losses_in_bf16() {
    let target = labels(1, &[2, 4, 6, 8], 3);
    let scales = [map(2, &[2, 4, 6, 8, 3], DType::BF16), map(3, &[2, 2, 3, 4, 3], DType::BF16)];
    let run = |on: usize| {
        let scales = [(&scales[0][on], 2.0 / 3.0), (&scales[1][on], 1.0 / 3.0)];
        let (loss, gradients) = DiceCe::default().losses_and_gradients(&scales, &target).unwrap();
        (loss.value().unwrap(), gradients)
    };
    let ((expected_loss, expected), (loss, got)) = (run(0), run(1));
    assert!((loss - expected_loss).abs() < OP * expected_loss);
    for (i, (g, e)) in got.iter().zip(&expected).enumerate() {
        close(&format!("gradient of scale {i}"), g, e, BF16);
    }
}

#[test]
fn softmaxes_with_the_noise_of_the_host() {
    use gumbel_softmax::{GumbelDraw, SoftmaxNoise, SoftmaxSpec};
    let (seed, epoch, iteration, tau) = (5, 2, 7, 0.7);
    let draw = GumbelDraw { noise: SoftmaxNoise::Streams { seed, epoch, iteration }, tau };
    let widths = vec![4, 8, 12, 16];
    let logits = [numbers(1, &[4]), numbers(2, &[3])].map(|l| both(&l));
    let width = SoftmaxSpec {
        logits: &logits[0][1],
        purpose: Purpose::WidthNoise,
        index: 3,
        widths: Some(widths.clone()),
        channels: 16,
    };
    let depth =
        SoftmaxSpec { logits: &logits[1][1], purpose: Purpose::DepthNoise, index: 1, widths: None, channels: 16 };
    let got = gumbel_softmax::forward(&[width, depth], &draw).unwrap();
    for (i, (purpose, index)) in [(Purpose::WidthNoise, 3), (Purpose::DepthNoise, 1)].into_iter().enumerate() {
        let stream = Stream { seed, purpose, epoch, iteration, index };
        let logits = logits[i][0].to_dtype(DType::F64).unwrap();
        let n = logits.elem_count();
        let noise = gumbel_softmax::noise(stream, n, DType::F64, &Device::Cpu).unwrap();
        let expected = gumbel_softmax(&logits, &noise, tau).unwrap();
        close("probabilities", &got[i].probabilities, &expected, OP);
    }
    let p = flat(&got[0].probabilities);
    let gate: Vec<f64> =
        (0..16).map(|c| p.iter().zip(&widths).filter(|(_, w)| **w > c).map(|(p, _)| p).sum()).collect();
    let gate = Tensor::new(gate, &Device::Cpu).unwrap();
    close("gate", got[0].gate.as_ref().unwrap(), &gate, OP);
}

#[test]
fn what_a_device_cannot_take_is_an_error() {
    let device = device();
    let x = numbers(1, &[1, 2, 4, 4, 4]);
    let on_device = x.to_device(&device).unwrap();
    let weight = numbers(2, &[2, 2, 3, 3, 3]);
    let geometry = Conv3dGeometry::same([3; 3], [1; 3]);
    // One argument here, one there.
    assert!(conv3d(&on_device, &weight, geometry).is_err());
    // Element types.
    let double = x.to_dtype(DType::F64).unwrap().to_device(&device).unwrap();
    let weight = weight.to_dtype(DType::F64).unwrap().to_device(&device).unwrap();
    let message = conv3d(&double, &weight, geometry).unwrap_err().to_string();
    assert!(message.contains("F64"), "{message}");
    // A kernel of more taps than the kernels keep in registers.
    let weight = numbers(3, &[2, 2, 5, 5, 5]).to_device(&device).unwrap();
    let message = conv3d(&on_device, &weight, Conv3dGeometry::same([5; 3], [1; 3])).unwrap_err().to_string();
    assert!(message.contains("27"), "{message}");
}
