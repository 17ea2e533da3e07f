//! Ops, networks and optimisers on a CUDA device beside the same on the host: f32 within 1e-5 per op, bf16 within 2e-2.
//!
//! Built with the feature `cuda` only. Runs on the first CUDA device, which may be the emulated one (`cargo xtask
//! cuda-check --emulate`).

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use adw_search::optim::{Adam, AdamConfig, Ema, EmaConfig, Optimizer, Scale, Sgd, SgdConfig, clip};
use adw_search::{
    ArchBatches, Batch, BilevelOptimizers, BilevelSettings, CostPenalty, Half, HalfBatches,
    SearchConfig, bilevel_step,
};
use adw_supernet::{
    Architecture, CostUnit, GumbelSample, MaskPosition, Noise, NoiseKey, Precision, Role,
    SearchSpace, Supernet, SupernetConfig, Unet,
};
use adw_tensor_ops::loss::{DiceCe, deep_supervision_loss, dice_ce};
use adw_tensor_ops::norm_act::{Moments, NormAct};
use adw_tensor_ops::philox::{Purpose, Stream};
use adw_tensor_ops::{Conv3dGeometry, conv_transpose3d, conv3d, norm_act};
use candle_core::{DType, Device, Tensor, Var};

/// `cudnn`: convolutions are cuDNN's. Else they are those of adw-tensor-ops.
#[cfg(feature = "cudnn")]
const CONVOLUTIONS: &str = "ADW_TEST_CONVOLUTIONS";

/// Relative L2 error of an op in f32.
const OP: f64 = 1e-5;

fn device() -> Device {
    static OPEN: std::sync::OnceLock<Device> = std::sync::OnceLock::new();
    OPEN.get_or_init(|| {
        let device = adw_cuda::device::open(0).expect("these tests need a CUDA device");
        #[cfg(feature = "cudnn")]
        if let Device::Cuda(cuda) = &device {
            use adw_cuda::{convolutions::Convolutions, device::CudaRuntime};
            let how = match std::env::var(CONVOLUTIONS).as_deref() {
                Ok("cudnn") => Convolutions::Cudnn,
                Ok("own") | Err(_) => Convolutions::Own,
                Ok(other) => panic!("{CONVOLUTIONS}={other}: expected own or cudnn"),
            };
            CudaRuntime::of(cuda).set_convolutions(how, |what| eprintln!("{what}"));
        }
        device
    })
    .clone()
}

fn numbers(index: u32, shape: &[usize]) -> Tensor {
    let stream = Stream {
        seed: 3,
        purpose: Purpose::Other,
        epoch: 0,
        iteration: 0,
        index,
    };
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
    t.to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

#[track_caller]
fn close(what: &str, got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), expected.dims(), "{what}");
    let (got, expected) = (flat(got), flat(expected));
    let error: f64 = got
        .iter()
        .zip(&expected)
        .map(|(a, b)| (a - b).powi(2))
        .sum();
    let norm: f64 = expected.iter().map(|b| b * b).sum();
    assert!(
        error.sqrt() <= tolerance * norm.sqrt().max(1e-12),
        "{what}: relative error {:e}, {tolerance:e} allowed",
        (error / norm).sqrt()
    );
}

/// The same function of the same variables on both devices: value and gradients agree.
#[track_caller]
fn op(what: &str, inputs: &[Tensor], f: impl Fn(&[Var]) -> Tensor) {
    let run = |device: &Device| {
        let vars: Vec<Var> = inputs
            .iter()
            .map(|t| Var::from_tensor(&t.to_device(device).unwrap()).unwrap())
            .collect();
        let y = f(&vars);
        let weight = numbers(99, y.dims()).to_device(device).unwrap();
        // A sum on the host: candle's own reductions are not what is tested.
        let scalar = (&y * &weight)
            .unwrap()
            .to_device(&Device::Cpu)
            .unwrap()
            .sum_all()
            .unwrap();
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
        let inputs = [
            numbers(1, &[2, ci, 5, 7, 6]),
            numbers(2, &[co, ci, kernel[0], kernel[1], kernel[2]]),
        ];
        op(
            &format!("conv3d {ci} to {co}, {kernel:?}, {stride:?}"),
            &inputs,
            |v| conv3d(&v[0], &v[1], Conv3dGeometry::same(kernel, stride)).unwrap(),
        );
    }
    for (ci, co, stride) in [(6, 4, [2, 2, 2]), (5, 9, [1, 2, 2])] {
        let inputs = [
            numbers(3, &[2, ci, 3, 4, 5]),
            numbers(4, &[ci, co, stride[0], stride[1], stride[2]]),
        ];
        op(
            &format!("conv_transpose3d {ci} to {co}, {stride:?}"),
            &inputs,
            |v| conv_transpose3d(&v[0], &v[1]).unwrap(),
        );
    }
}

#[test]
fn normalisation_as_candle_op() {
    for c in [3, 8, 12] {
        let inputs = [
            numbers(1, &[2, c, 4, 5, 6]),
            (numbers(2, &[c]) + 1.0).unwrap(),
            numbers(3, &[c]),
        ];
        op(&format!("norm_act of {c} channels"), &inputs, |v| {
            norm_act(&v[0], &v[1], &v[2], NormAct::default()).unwrap()
        });
    }
}

#[test]
fn losses() {
    for (classes, batch_dice) in [(2, true), (3, false), (6, true)] {
        let config = DiceCe {
            smooth: 1e-5,
            batch_dice,
        };
        let target = labels(1, &[2, 4, 6, 8], classes);
        let run = |device: &Device| {
            let logits = Var::from_tensor(
                &numbers(2, &[2, classes, 4, 6, 8])
                    .to_device(device)
                    .unwrap(),
            )
            .unwrap();
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
    let scales = [
        numbers(4, &[2, 3, 4, 6, 8]),
        numbers(5, &[2, 3, 2, 3, 4]),
        numbers(6, &[2, 3, 1, 2, 2]),
    ];
    let expected = deep_supervision_loss(&scales, &target, DiceCe::default()).unwrap();
    let last = |t: &Tensor| {
        t.permute((0, 2, 3, 4, 1))
            .unwrap()
            .contiguous()
            .unwrap()
            .to_device(&device())
            .unwrap()
    };
    let (fine, coarse) = (last(&scales[0]), last(&scales[1]));
    let (loss, _) = DiceCe::default()
        .losses_and_gradients(&[(&fine, 2.0 / 3.0), (&coarse, 1.0 / 3.0)], &target)
        .unwrap();
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

fn config(mask: MaskPosition, anisotropic: bool) -> SupernetConfig {
    SupernetConfig {
        in_channels: 1,
        num_classes: 3,
        strides: vec![if anisotropic { [1, 2, 2] } else { [2, 2, 2] }, [2, 2, 2]],
        kernels: vec![
            if anisotropic { [1, 3, 3] } else { [3, 3, 3] },
            [3, 3, 3],
            [3, 3, 3],
        ],
        max_width: 12,
        max_depth: 3,
        cap_stage: 3,
        mask,
        space: SearchSpace::Joint,
    }
}

/// The same supernet on both devices, with alphas that differ.
fn pair(config: &SupernetConfig) -> [Supernet; 2] {
    [Device::Cpu, device()].map(|device| {
        let net = Supernet::new(config.clone(), 7, DType::F32, &device).unwrap();
        for (i, p) in net.parameters().iter().enumerate() {
            if p.role == Role::Architecture {
                let value = numbers(100 + i as u32, p.var.dims())
                    .to_device(&device)
                    .unwrap();
                p.var.set(&value).unwrap();
            }
        }
        net
    })
}

fn batch(index: u32, [d, h, w]: [usize; 3]) -> Batch {
    Batch {
        x: numbers(index, &[2, 1, d, h, w]),
        target: labels(index + 1, &[2, d, h, w], 3),
    }
}

const SMALL: [usize; 3] = [4, 8, 8];

const KEY: NoiseKey = NoiseKey {
    seed: 11,
    epoch: 2,
    iteration: 5,
    pass: 1,
};

#[test]
fn a_pass_of_the_supernet() {
    for (mask, anisotropic) in [
        (MaskPosition::PreNorm, false),
        (MaskPosition::PostNorm, true),
    ] {
        let [cpu, cuda] = pair(&config(mask, anisotropic));
        let (sample, batch) = (cpu.sample(KEY, 0.7).unwrap(), batch(1, SMALL));
        let expected = cpu.forward(&batch.x, &sample).unwrap();
        for (scale, (got, expected)) in cuda
            .forward(&batch.x, &sample)
            .unwrap()
            .iter()
            .zip(&expected)
            .enumerate()
        {
            close(&format!("logits {scale}"), got, expected, 1e-4);
        }
        for role in [Role::Weight, Role::Architecture] {
            let run = |net: &Supernet, sample: &GumbelSample| {
                net.loss_and_gradients(&batch.x, &batch.target, sample, role)
                    .unwrap()
            };
            let (expected_loss, expected) = run(&cpu, &sample);
            // The same noise drawn by the kernel, and handed in.
            let given = GumbelSample {
                noise: Noise::Given(cpu.noise(&sample).unwrap()),
                tau: sample.tau,
            };
            for (way, sample) in [("keyed", &sample), ("given", &given)] {
                let (loss, gradients) = run(&cuda, sample);
                assert!(
                    (loss - expected_loss).abs() < 1e-5 * expected_loss,
                    "{way}: {loss}, {expected_loss}"
                );
                for ((p, got), expected) in cuda.parameters().iter().zip(&gradients).zip(&expected)
                {
                    let what = format!("{way} {mask:?} gradient of {}", p.name);
                    match (got, expected) {
                        // Under pre_norm the gradient of alpha is what eps leaves over: f32 loses 1-2 % of it.
                        (Some(got), Some(expected)) => {
                            let alpha = mask == MaskPosition::PreNorm && p.name.ends_with("alpha");
                            close(&what, got, expected, if alpha { 5e-2 } else { 2e-4 });
                        }
                        (None, None) => {}
                        _ => panic!("{what}: there on one device only"),
                    }
                }
            }
        }
    }
}

/// Half precision through some thirty layers. Its error in gradients is more than that of eight significant bits: where
/// rounding flips the sign before a LeakyReLU, that voxel's gradient changes wholly, and a share p of such voxels makes
/// an error of sqrt(p). So gradients are held to their direction and length here; ops one by one are held to 2e-2 below.
#[test]
fn a_pass_in_bf16() {
    let [cpu, mut cuda] = pair(&config(MaskPosition::PostNorm, false));
    cuda.set_precision(Precision::Bf16);
    let (sample, batch) = (cpu.sample(KEY, 0.7).unwrap(), batch(1, [8, 16, 16]));
    let expected = cpu.predict(&batch.x, &sample).unwrap();
    let got = cuda.predict(&batch.x, &sample).unwrap();
    assert_eq!(got.dtype(), DType::BF16);
    close("logits", &got, &expected, 5e-2);
    for role in [Role::Weight, Role::Architecture] {
        let run = |net: &Supernet| {
            net.loss_and_gradients(&batch.x, &batch.target, &sample, role)
                .unwrap()
        };
        let ((loss, gradients), (expected_loss, expected)) = (run(&cuda), run(&cpu));
        assert!((loss - expected_loss).abs() < 2e-2 * expected_loss);
        let all = |g: &[Option<Tensor>]| {
            let parts: Vec<Tensor> = g
                .iter()
                .flatten()
                .map(|t| t.to_device(&Device::Cpu).unwrap().flatten_all().unwrap())
                .collect();
            assert!(parts.iter().all(|t| t.dtype() == DType::F32));
            Tensor::cat(&parts, 0).unwrap()
        };
        let (got, expected) = (flat(&all(&gradients)), flat(&all(&expected)));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let [length, expected_length] = [&got, &expected].map(|g| dot(g, g).sqrt());
        let cosine = dot(&got, &expected) / (length * expected_length);
        let ratio = length / expected_length;
        assert!(
            cosine > 0.98 && (ratio - 1.0).abs() < 0.05,
            "{role:?} gradients: cosine {cosine}, lengths {ratio}"
        );
    }
}

/// The passes of a convolution in bf16, of maps that are normalised and joined on the way, beside f32.
#[test]
fn convolutions_in_bf16() {
    const TOLERANCE: f64 = 2e-2;
    #[cfg(feature = "cudnn")]
    record(true);
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
        let geometry = Conv3dGeometry {
            kernel,
            stride,
            padding: kernel.map(|k| k % 2 * (k / 2)),
        };
        let size = [4, 6, 8];
        let shape = |[d, h, w]: [usize; 3], c| [2, d, h, w, c];
        let maps: Vec<Tensor> = ci
            .iter()
            .enumerate()
            .map(|(i, &c)| rounded(numbers(i as u32, &shape(size, c))))
            .collect();
        let total = ci.iter().sum::<usize>();
        let weight = numbers(9, &[co, total, kernel[0], kernel[1], kernel[2]]);
        // As the device rounds them.
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
                NormAct::default()
                    .coefficients(moments, &one, &zero, None)
                    .unwrap()
            };
            let norms: Vec<_> = maps
                .iter()
                .map(|m| norm(m, &norm_act::moments(m).unwrap()))
                .collect();
            let last = maps.len() - 1;
            let inputs: Vec<conv3d::Input> = maps
                .iter()
                .zip(&norms)
                .enumerate()
                .map(|(i, (map, norm))| conv3d::Input {
                    map,
                    norm: (i == last).then_some(norm),
                })
                .collect();
            let plain = conv3d::Input {
                map: &gradient,
                norm: None,
            };
            let full = conv3d::Precision::Full;
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
        let got = run(&there, &there(&weight));
        for (i, name) in ["y", "normalised y", "gradient of x", "gradient of w"]
            .into_iter()
            .enumerate()
        {
            let what = format!("{name}, {ci:?} to {co}, {kernel:?}, {stride:?}");
            close(&what, &got[i], &expected[i], TOLERANCE);
        }
    }
    #[cfg(feature = "cudnn")]
    {
        let launched = record(false);
        let asked = std::env::var(CONVOLUTIONS).as_deref() == Ok("cudnn");
        for kernel in ["cudnn_forward", "cudnn_grad_input", "cudnn_grad_weight"] {
            assert_eq!(launched.contains(&kernel), asked, "{kernel}: {launched:?}");
        }
    }
}

/// Begins to record launches on the device, or ends it: their kernels.
#[cfg(feature = "cudnn")]
fn record(begin: bool) -> Vec<&'static str> {
    use adw_cuda::device::CudaRuntime;
    use adw_cuda::work::{Machine, Recorder};
    let Device::Cuda(cuda) = device() else {
        unreachable!("it is a CUDA device");
    };
    let recorder = begin.then(|| Recorder::new(Machine::H100));
    let recorded = CudaRuntime::of(&cuda).record(recorder);
    let kernels = recorded.map(|r| r.records().keys().copied().collect());
    kernels.unwrap_or_default()
}

#[test]
fn a_bilevel_step() {
    let [cpu, cuda] = pair(&config(MaskPosition::PostNorm, false));
    let search = SearchConfig::paper();
    let penalty = CostPenalty {
        unit: CostUnit::Macs,
        weight: 0.1,
        budget: 1e6,
        patch: [4, 8, 8],
    };
    let reports = [&cpu, &cuda].map(|net| {
        let mut optimizers = BilevelOptimizers::new(net, &search);
        let settings = BilevelSettings {
            arch_lr: search.arch_lr,
            lr: 1e-2,
            clip: 12.0,
            tau: 1.0,
            weights_on: Half::A,
            arch_batches: ArchBatches::AAndB,
            penalty: Some(penalty.clone()),
        };
        let (a, b) = (batch(1, SMALL), batch(3, SMALL));
        let mut last = None;
        for iteration in 0..2 {
            let mut sample = |pass: usize| {
                Ok(net.sample(
                    NoiseKey {
                        iteration,
                        pass: pass as u32,
                        ..KEY
                    },
                    1.0,
                )?)
            };
            let halves = HalfBatches { a: &a, b: &b };
            last =
                Some(bilevel_step(net, &mut optimizers, &settings, halves, &mut sample).unwrap());
        }
        last.unwrap()
    });
    for (what, cpu, cuda) in [
        (
            "arch a",
            reports[0].arch_a.unwrap(),
            reports[1].arch_a.unwrap(),
        ),
        ("arch b", reports[0].arch_b, reports[1].arch_b),
        ("weights", reports[0].weights, reports[1].weights),
    ] {
        assert!(
            (cpu.loss - cuda.loss).abs() < 1e-4 * cpu.loss,
            "{what}: {cpu:?} {cuda:?}"
        );
        assert!(
            (cpu.grad_norm / cuda.grad_norm - 1.0).abs() < 1e-3,
            "{what}: {cpu:?} {cuda:?}"
        );
    }
    for (a, b) in cpu.parameters().iter().zip(cuda.parameters()) {
        close(&a.name, b.var.as_tensor(), a.var.as_tensor(), 1e-3);
    }
    assert_eq!(cpu.architecture().unwrap(), cuda.architecture().unwrap());
}

#[test]
fn a_discrete_network() {
    let architecture =
        Architecture::uniform(2, 3, vec![[2; 3]; 2], vec![[3; 3]; 3], 6, 2, 3).unwrap();
    let [cpu, cuda] =
        [Device::Cpu, device()].map(|d| Unet::new(&architecture, 5, DType::F32, &d).unwrap());
    let (x, target) = (numbers(1, &[1, 2, 8, 4, 8]), labels(2, &[1, 8, 4, 8], 3));
    close(
        "logits",
        &cuda.predict(&x).unwrap(),
        &cpu.predict(&x).unwrap(),
        1e-4,
    );
    let (loss, gradients) = cuda.loss_and_gradients(&x, &target).unwrap();
    let (expected_loss, expected) = cpu.loss_and_gradients(&x, &target).unwrap();
    assert!((loss - expected_loss).abs() < 1e-5 * expected_loss);
    for ((got, expected), p) in gradients.iter().zip(&expected).zip(cpu.parameters()) {
        if let (Some(got), Some(expected)) = (got, expected) {
            close(&p.name, got, expected, 2e-4);
        }
    }
}

#[test]
fn optimisers() {
    let shapes: [&[usize]; 3] = [&[1], &[7, 11], &[40_000]];
    for is_adam in [false, true] {
        let results = [Device::Cpu, device()].map(|device| {
            let vars: Vec<Var> = shapes
                .iter()
                .zip(1..)
                .map(|(s, i)| Var::from_tensor(&numbers(i, s).to_device(&device).unwrap()).unwrap())
                .collect();
            let named = || ["a", "b", "c"].into_iter().zip(&vars);
            let mut optimizer: Box<dyn Optimizer> = if is_adam {
                Box::new(Adam::new(named(), AdamConfig::default()))
            } else {
                Box::new(Sgd::new(
                    named(),
                    SgdConfig {
                        momentum: 0.9,
                        weight_decay: 0.02,
                    },
                ))
            };
            let mut ema = Ema::new(named(), EmaConfig { decay: 0.9 }).unwrap();
            let mut norms = Vec::new();
            for step in 0..3u32 {
                // The second parameter joins late: its own count of updates matters to Adam.
                let gradients: Vec<Option<Tensor>> = shapes
                    .iter()
                    .zip(1..)
                    .map(|(s, i)| {
                        (i != 2 || step > 0)
                            .then(|| numbers(10 * (step + 1) + i, s).to_device(&device).unwrap())
                    })
                    .collect();
                norms.push(
                    clip(&gradients, 12.0, |scale: &Scale| {
                        optimizer.step_scaled(&gradients, 1e-2, scale)
                    })
                    .unwrap(),
                );
                ema.update().unwrap();
            }
            // State goes into a file and comes back.
            let state = optimizer.state().unwrap();
            optimizer.load_state(&state).unwrap();
            optimizer.step(&vec![None; 3], 1e-2, 0.5).unwrap();
            let average = ema.state().unwrap();
            (vars, norms, state, average)
        });
        let [cpu, cuda] = results;
        for (a, b) in cpu.1.iter().zip(&cuda.1) {
            assert!((a / b - 1.0).abs() < 1e-6, "{a} {b}");
        }
        for (a, b) in cpu.0.iter().zip(&cuda.0) {
            close("parameter", b, a, OP);
        }
        for (groups, others) in [(&cpu.2, &cuda.2), (&cpu.3, &cuda.3)] {
            assert_eq!(groups.len(), others.len());
            for (name, a) in groups {
                close(name, &others[name], a, OP);
            }
        }
    }
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
    let weight = weight
        .to_dtype(DType::F64)
        .unwrap()
        .to_device(&device)
        .unwrap();
    let message = conv3d(&double, &weight, geometry).unwrap_err().to_string();
    assert!(message.contains("F64"), "{message}");
    // A kernel of more taps than the kernels keep in registers.
    let weight = numbers(3, &[2, 2, 5, 5, 5]).to_device(&device).unwrap();
    let message = conv3d(&on_device, &weight, Conv3dGeometry::same([5; 3], [1; 3]))
        .unwrap_err()
        .to_string();
    assert!(message.contains("27"), "{message}");
}
