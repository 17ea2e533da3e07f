//! Whole networks, and steps of their training.

use adw_search::optim::{AdamConfig, Ema, EmaConfig, OptimizerConfig, Scale, SgdConfig, clip};
use adw_search::{
    ArchBatches, Batch, BilevelOptimizers, BilevelSettings, CostPenalty, Half, HalfBatches, SearchConfig, bilevel_step,
};
use adw_supernet::{
    Architecture, CostUnit, DiceCe, FixedSizes, GatePosition, Gradients, GumbelNoise, GumbelSample, Loss, NoiseKey,
    Precision, Role, SearchSpace, Supernet, SupernetConfig, Unet,
};
use candle_core::{DType, Device, Tensor, Var};

use crate::{close, device, flat, labels, numbers};

/// Relative L2 error of what one op or two leave.
const OP: f64 = 1e-5;

fn config(mask: GatePosition, anisotropic: bool) -> SupernetConfig {
    SupernetConfig {
        in_channels: 1,
        num_classes: 3,
        strides: vec![if anisotropic { [1, 2, 2] } else { [2, 2, 2] }, [2, 2, 2]],
        kernels: vec![if anisotropic { [1, 3, 3] } else { [3, 3, 3] }, [3, 3, 3], [3, 3, 3]],
        max_width: 12,
        max_depth: 3,
        cap_stage: 3,
        mask,
        gate_up: anisotropic,
        space: SearchSpace::Joint,
        fixed: FixedSizes::default(),
    }
}

/// The same supernet on both devices, with alphas that differ.
fn pair(config: &SupernetConfig) -> [Supernet; 2] {
    [Device::Cpu, device()].map(|device| {
        let net = Supernet::new(config.clone(), 7, DType::F32, &device).unwrap();
        for (i, p) in net.parameters().iter().enumerate() {
            if p.role == Role::Architecture {
                let value = numbers(100 + i as u32, p.var.dims()).to_device(&device).unwrap();
                p.var.set(&value).unwrap();
            }
        }
        net
    })
}

fn batch(index: u32, [d, h, w]: [usize; 3]) -> Batch {
    Batch { x: numbers(index, &[2, 1, d, h, w]), target: labels(index + 1, &[2, d, h, w], 3) }
}

fn loss_and_gradients(net: &Supernet, batch: &Batch, sample: &GumbelSample, role: Role) -> (f64, Gradients) {
    let (logits, trace) = net.forward_with_trace(&batch.x, sample).unwrap();
    let (loss, grad_logits) = DiceCe::default().value_and_gradients(&logits, &batch.target).unwrap();
    let gradients = net.backward(trace, grad_logits, role).unwrap();
    (loss.value().unwrap(), gradients)
}

/// A batch where the gradients of `net` are smooth. In a network this small, one pre-activation that lies within rounding of
/// LeakyReLU's kink moves a gradient by 2 % when a device rounds it to the other side.
fn smooth_batch(net: &Supernet, sample: &GumbelSample, size: [usize; 3]) -> Batch {
    let gradients = |x: &Tensor, batch: &Batch| {
        let batch = Batch { x: x.clone(), target: batch.target.clone() };
        loss_and_gradients(net, &batch, sample, Role::Weight)
            .1
            .into_iter()
            .flatten()
            .map(|g| flat(&g))
            .collect::<Vec<_>>()
    };
    let is_smooth = |batch: &Batch| {
        let here = gradients(&batch.x, batch);
        (0..8).all(|i| {
            let factor = numbers(1000 + i, batch.x.dims()).affine(2e-6, 1.0).unwrap();
            let near = gradients(&batch.x.mul(&factor).unwrap(), batch);
            near.iter().zip(&here).all(|(near, here)| {
                let square = |v: f64| v * v;
                let moved: f64 = near.iter().zip(here).map(|(a, b)| square(a - b)).sum();
                moved <= square(1e-4) * here.iter().copied().map(square).sum::<f64>()
            })
        })
    };
    let mut batches = (0..100).map(|i| batch(1 + 2 * i, size));
    batches.find(is_smooth).expect("few batches lie at a kink")
}

const SMALL: [usize; 3] = [4, 8, 8];

const KEY: NoiseKey = NoiseKey { seed: 11, epoch: 2, iteration: 5, pass: 1 };

#[test]
fn a_pass_of_the_supernet() {
    for (mask, anisotropic) in [(GatePosition::PreNorm, false), (GatePosition::PostNorm, true)] {
        let [cpu, cuda] = pair(&config(mask, anisotropic));
        let sample = cpu.sample(KEY, 0.7).unwrap();
        let batch = smooth_batch(&cpu, &sample, SMALL);
        let (expected, _) = cpu.forward_with_trace(&batch.x, &sample).unwrap();
        for (scale, (got, expected)) in
            cuda.forward_with_trace(&batch.x, &sample).unwrap().0.iter().zip(&expected).enumerate()
        {
            close(&format!("logits {scale}"), got, expected, 1e-4);
        }
        for role in [Role::Weight, Role::Architecture] {
            let run = |net: &Supernet, sample: &GumbelSample| loss_and_gradients(net, &batch, sample, role);
            let (expected_loss, expected) = run(&cpu, &sample);
            // The same noise drawn by the kernel, and handed in.
            let given = GumbelSample { noise: GumbelNoise::Given(cpu.noise(&sample).unwrap()), tau: sample.tau };
            for (way, sample) in [("keyed", &sample), ("given", &given)] {
                let (loss, gradients) = run(&cuda, sample);
                assert!((loss - expected_loss).abs() < 1e-5 * expected_loss, "{way}: {loss}, {expected_loss}");
                for ((p, got), expected) in cuda.parameters().iter().zip(&gradients).zip(&expected) {
                    let what = format!("{way} {mask:?} gradient of {}", p.name);
                    match (got, expected) {
                        // Under pre_norm the gradient of alpha is what eps leaves over: f32 loses 1-2 % of it.
                        (Some(got), Some(expected)) => {
                            let alpha = mask == GatePosition::PreNorm && p.name.ends_with("alpha");
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
    let [cpu, mut cuda] = pair(&config(GatePosition::PostNorm, false));
    cuda.set_precision(Precision::Bf16);
    let (sample, batch) = (cpu.sample(KEY, 0.7).unwrap(), batch(1, [8, 16, 16]));
    let expected = cpu.predict(&batch.x, &sample).unwrap();
    let got = cuda.predict(&batch.x, &sample).unwrap();
    assert_eq!(got.dtype(), DType::BF16);
    close("logits", &got, &expected, 5e-2);
    for role in [Role::Weight, Role::Architecture] {
        let run = |net: &Supernet| loss_and_gradients(net, &batch, &sample, role);
        let ((loss, gradients), (expected_loss, expected)) = (run(&cuda), run(&cpu));
        assert!((loss - expected_loss).abs() < 2e-2 * expected_loss);
        let all = |g: &[Option<Tensor>]| {
            let parts: Vec<Tensor> =
                g.iter().flatten().map(|t| t.to_device(&Device::Cpu).unwrap().flatten_all().unwrap()).collect();
            assert!(parts.iter().all(|t| t.dtype() == DType::F32));
            Tensor::cat(&parts, 0).unwrap()
        };
        let (got, expected) = (flat(&all(&gradients)), flat(&all(&expected)));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let [length, expected_length] = [&got, &expected].map(|g| dot(g, g).sqrt());
        let cosine = dot(&got, &expected) / (length * expected_length);
        let ratio = length / expected_length;
        assert!(cosine > 0.98 && (ratio - 1.0).abs() < 0.05, "{role:?} gradients: cosine {cosine}, lengths {ratio}");
    }
}

#[test]
fn a_bilevel_step() {
    let [cpu, cuda] = pair(&config(GatePosition::PostNorm, false));
    let search = SearchConfig::paper();
    let penalty = CostPenalty { unit: CostUnit::Macs, weight: 0.1, budget: 1e6, patch: [4, 8, 8] };
    let reports = [&cpu, &cuda].map(|net| {
        let mut optimizers = BilevelOptimizers::new(net, &search);
        let loss = DiceCe::default();
        let settings = BilevelSettings {
            loss: &loss,
            arch_lr: search.arch_lr,
            lr: 1e-2,
            clip: 12.0,
            tau: 1.0,
            weights_on: Half::A,
            arch_batches: ArchBatches::AAndB,
            penalty: Some(penalty.clone()),
            ranks: None,
        };
        let (a, b) = (batch(1, SMALL), batch(3, SMALL));
        let mut last = None;
        for iteration in 0..2 {
            let mut sample = |pass: usize| Ok(net.sample(NoiseKey { iteration, pass: pass as u32, ..KEY }, 1.0)?);
            let halves = HalfBatches { a: &a, b: &b };
            last = Some(bilevel_step(net, &mut optimizers, &settings, halves, &mut sample).unwrap());
        }
        last.unwrap()
    });
    for (what, cpu, cuda) in [
        ("arch a", reports[0].arch_a.unwrap(), reports[1].arch_a.unwrap()),
        ("arch b", reports[0].arch_b, reports[1].arch_b),
        ("weights", reports[0].weights, reports[1].weights),
    ] {
        assert!((cpu.loss - cuda.loss).abs() < 1e-4 * cpu.loss, "{what}: {cpu:?} {cuda:?}");
        assert!((cpu.grad_norm / cuda.grad_norm - 1.0).abs() < 1e-3, "{what}: {cpu:?} {cuda:?}");
    }
    for (a, b) in cpu.parameters().iter().zip(cuda.parameters()) {
        close(&a.name, b.var.as_tensor(), a.var.as_tensor(), 1e-3);
    }
    assert_eq!(cpu.architecture().unwrap(), cuda.architecture().unwrap());
}

#[test]
fn a_discrete_network() {
    let architecture =
        Architecture::uniform(2, 3, vec![[2; 3]; 2], vec![[3; 3]; 3], FixedSizes::with_width(6)).unwrap();
    let [cpu, cuda] = [Device::Cpu, device()].map(|d| Unet::new(&architecture, 5, DType::F32, &d).unwrap());
    let (x, target) = (numbers(1, &[1, 2, 8, 4, 8]), labels(2, &[1, 8, 4, 8], 3));
    close("logits", &cuda.predict(&x).unwrap(), &cpu.predict(&x).unwrap(), 1e-4);
    let run = |net: &Unet| {
        let (logits, trace) = net.forward_with_trace(&x).unwrap();
        let (loss, grad_logits) = DiceCe::default().value_and_gradients(&logits, &target).unwrap();
        let gradients = net.backward(trace, grad_logits).unwrap();
        (loss.value().unwrap(), gradients)
    };
    let ((loss, gradients), (expected_loss, expected)) = (run(&cuda), run(&cpu));
    assert!((loss - expected_loss).abs() < 1e-5 * expected_loss);
    for ((got, expected), p) in gradients.iter().zip(&expected).zip(cpu.parameters()) {
        if let (Some(got), Some(expected)) = (got, expected) {
            close(&p.name, got, expected, 2e-4);
        }
    }
}

#[test]
fn optimisers() {
    // Muon treats the kernel unlike the others.
    let shapes: [&[usize]; 3] = [&[1], &[7, 11, 1, 3, 3], &[40_000]];
    let sgd = SgdConfig { momentum: 0.9, weight_decay: 0.02 };
    let kinds =
        [OptimizerConfig::Sgd(sgd.clone()), OptimizerConfig::Muon(sgd), OptimizerConfig::Adam(AdamConfig::default())];
    for kind in kinds {
        let results = [Device::Cpu, device()].map(|device| {
            let vars: Vec<Var> = shapes
                .iter()
                .zip(1..)
                .map(|(s, i)| Var::from_tensor(&numbers(i, s).to_device(&device).unwrap()).unwrap())
                .collect();
            let named = || ["a", "b", "c"].into_iter().zip(&vars);
            let mut optimizer = kind.build(named());
            let mut ema = Ema::new(named(), EmaConfig { decay: 0.9 }).unwrap();
            let mut norms = Vec::new();
            for step in 0..3u32 {
                // The second parameter joins late: its own count of updates matters to Adam.
                let gradients: Vec<Option<Tensor>> = shapes
                    .iter()
                    .zip(1..)
                    .map(|(s, i)| {
                        (i != 2 || step > 0).then(|| numbers(10 * (step + 1) + i, s).to_device(&device).unwrap())
                    })
                    .collect();
                norms.push(
                    clip(&gradients, 12.0, |scale: &Scale| optimizer.step_scaled(&gradients, 1e-2, scale)).unwrap(),
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
