use super::*;
use adw_tensor_ops::philox::{Purpose, Stream};
use adw_testing::{assert_close, central_differences, tolerance};
use candle_core::{DType, Device, Tensor, Var};

fn config(space: SearchSpace) -> SupernetConfig {
    SupernetConfig {
        in_channels: 2,
        num_classes: 3,
        strides: vec![[1, 2, 2], [2, 2, 2]],
        kernels: vec![[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        max_width: 6,
        max_depth: 2,
        cap_stage: 1,
        mask: GatePosition::PostNorm,
        gate_up: true,
        space,
        fixed: FixedSizes { depth: 1, width: 5, max_features: 8 },
    }
}

const SIZE: [usize; 3] = [4, 8, 4];

fn numbers(index: u32, n: usize) -> Vec<f64> {
    Stream { seed: 3, purpose: Purpose::Other, epoch: 0, iteration: 0, index }.normal().take(n).collect()
}

fn batch() -> (Tensor, Tensor) {
    let [d, h, w] = SIZE;
    let x = Tensor::from_vec(numbers(0, 4 * d * h * w), (2, 2, d, h, w), &Device::Cpu).unwrap();
    let target: Vec<u8> = numbers(1, 2 * d * h * w).iter().map(|v| (v.abs() * 1.5) as u8 % 3).collect();
    (x, Tensor::from_vec(target, (2, d, h, w), &Device::Cpu).unwrap())
}

/// Sets every parameter to reproducible random numbers.
fn shake(parameters: &[Parameter]) {
    for (i, p) in parameters.iter().enumerate() {
        let noise = Tensor::from_vec(numbers(10 + i as u32, p.var.elem_count()), p.var.shape(), &Device::Cpu).unwrap();
        p.var.set(&(p.var.as_tensor() + (noise * 0.2).unwrap()).unwrap()).unwrap();
    }
}

fn supernet_loss(net: &Supernet, x: &Tensor, target: &Tensor, sample: &GumbelSample, role: Role) -> (f64, Gradients) {
    let (logits, trace) = net.forward_with_trace(x, sample).unwrap();
    let (loss, grad_logits) = DiceCe::default().value_and_gradients(&logits, target).unwrap();
    (loss.value().unwrap(), net.backward(trace, grad_logits, role).unwrap())
}

fn unet_loss(net: &Unet, x: &Tensor, target: &Tensor) -> (f64, Gradients) {
    let (logits, trace) = net.forward_with_trace(x).unwrap();
    let (loss, grad_logits) = DiceCe::default().value_and_gradients(&logits, target).unwrap();
    (loss.value().unwrap(), net.backward(trace, grad_logits).unwrap())
}

/// Compares gradients with central differences of `loss` at a few elements of every parameter; returns their number.
fn check_gradients(parameters: &[Parameter], gradients: &Gradients, loss: impl Fn() -> f64) -> usize {
    let mut num_checked = 0;
    for (p, g) in parameters.iter().zip(gradients) {
        let Some(g) = g else { continue };
        let values = p.var.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let g = g.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let set = |v: &[f64]| p.var.set(&Tensor::from_slice(v, p.var.shape(), &Device::Cpu).unwrap()).unwrap();
        let indices = (0..values.len()).step_by(values.len().div_ceil(3));
        let numeric = central_differences(&values, indices.clone(), 1e-5, |moved| {
            set(moved);
            loss()
        });
        set(&values);
        let sampled: Vec<f64> = indices.map(|i| g[i]).collect();
        assert_close(&p.name, &sampled, &numeric, tolerance::FINITE_DIFFERENCE_NETWORK);
        num_checked += sampled.len();
    }
    num_checked
}

#[test]
fn gradients_of_the_supernet() {
    use GatePosition::{PostNorm, PreNorm};
    for (mask, gate_up, space) in [
        (PostNorm, true, SearchSpace::Joint),
        (PreNorm, true, SearchSpace::Joint),
        (PostNorm, false, SearchSpace::Joint),
        (PostNorm, true, SearchSpace::WidthOnly),
        (PostNorm, true, SearchSpace::DepthOnly),
    ] {
        let config = SupernetConfig { mask, gate_up, ..config(space) };
        let net = Supernet::new(config, 1, DType::F64, &Device::Cpu).unwrap();
        shake(net.parameters());
        let (x, target) = batch();
        let sample = net.sample(NoiseKey { seed: 1, epoch: 2, iteration: 3, pass: 1 }, 1.3).unwrap();
        for role in [Role::Weight, Role::Architecture] {
            let run = || supernet_loss(&net, &x, &target, &sample, role);
            let gradients = run().1;
            for (p, g) in net.parameters().iter().zip(&gradients) {
                // The coarsest head does not reach the loss.
                assert_eq!(g.is_some(), p.role == role && p.name != "head.0.weight", "{}", p.name);
            }
            let least = if role == Role::Architecture && space != SearchSpace::Joint { 10 } else { 30 };
            assert!(check_gradients(net.parameters(), &gradients, || run().0) >= least, "{space:?}");
        }
    }
}

#[test]
fn gradients_of_the_discrete_net() {
    let c = config(SearchSpace::Joint);
    let a =
        Architecture::new(2, 3, c.strides, c.kernels, vec![vec![3, 5], vec![7], vec![4, 6, 5], vec![8], vec![3, 2]])
            .unwrap();
    let net = Unet::new(&a, 1, DType::F64, &Device::Cpu).unwrap();
    shake(net.parameters());
    let (x, target) = batch();
    let (_, gradients) = unet_loss(&net, &x, &target);
    assert!(check_gradients(net.parameters(), &gradients, || unet_loss(&net, &x, &target).0) >= 40);
}

/// The forward pass without a trace gives the finest logits of the traced one, and the loss of the trainers is that of
/// candle's graph.
#[test]
fn both_forward_passes_agree() {
    let net = Supernet::new(config(SearchSpace::Joint), 1, DType::F64, &Device::Cpu).unwrap();
    let (x, target) = batch();
    let sample = net.no_noise(1.0);
    let (outputs, _) = net.forward_with_trace(&x, &sample).unwrap();
    assert_eq!(outputs.iter().map(|o| o.dims().to_vec()).collect::<Vec<_>>(), [[2, 3, 4, 8, 4], [2, 3, 4, 4, 2]]);
    let loss = adw_tensor_ops::loss::deep_supervision_loss(&outputs, &target, DiceCe::default()).unwrap();
    let traced = supernet_loss(&net, &x, &target, &sample, Role::Weight).0;
    assert!((loss.to_scalar::<f64>().unwrap() - traced).abs() < 1e-14);
    let finest = net.predict(&x, &sample).unwrap();
    let difference = (finest - &outputs[0]).unwrap().abs().unwrap().sum_all().unwrap();
    assert_eq!(difference.to_scalar::<f64>().unwrap(), 0.0);
}

/// With one choice certain everywhere, the gated supernet is the discrete network of that choice, upsampled maps included.
#[test]
fn a_decided_supernet_is_its_architecture() {
    let net = Supernet::new(config(SearchSpace::Joint), 1, DType::F64, &Device::Cpu).unwrap();
    let depths = [1, 2, 1, 2, 2];
    let choice = |i: usize, l: usize| (i + 2 * l) % NUM_WIDTHS;
    for p in net.parameters() {
        let parts: Vec<&str> = p.name.split('.').collect();
        let hot = match parts[..] {
            ["block", i, "conv", l, "alpha"] => choice(i.parse().unwrap(), l.parse().unwrap()),
            ["block", i, "depth"] => depths[i.parse::<usize>().unwrap()] - 1,
            _ => continue,
        };
        let logits: Vec<f64> = (0..p.var.elem_count()).map(|k| if k == hot { 1000.0 } else { 0.0 }).collect();
        p.var.set(&Tensor::from_vec(logits, p.var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
    let a = net.architecture().unwrap();
    for (i, block) in a.blocks.iter().enumerate() {
        assert_eq!(block.len(), depths[i]);
        for (l, &w) in block.iter().enumerate() {
            assert_eq!(w, width_options(net.config().block_max_width(i))[choice(i, l)]);
        }
    }
    // Its expected cost is the architecture's, but for the bytes and products of nothing.
    let sample = net.no_noise(1.0);
    for unit in [CostUnit::Macs, CostUnit::Parameters, CostUnit::ActivationBytes] {
        let (expected, _) = net.expected_cost(SIZE, unit, &sample).unwrap();
        assert!((expected - a.cost(SIZE).get(unit) as f64).abs() < 1e-6, "{unit:?}: {expected} {:?}", a.cost(SIZE));
    }
    // The weights of the leading channels, copied, give the same logits.
    let unet = Unet::new(&a, 0, DType::F64, &Device::Cpu).unwrap();
    let value = |name: &str| net.parameters().iter().find(|p| p.name == name).unwrap().var.as_tensor().clone();
    for p in unet.parameters() {
        let mut from = value(&p.name);
        let parts: Vec<&str> = p.name.split('.').collect();
        let decoder_input = matches!(parts[..], ["block", i, "conv", "0", "weight"] if i.parse::<usize>().unwrap() > 2);
        if decoder_input {
            let i: usize = parts[1].parse().unwrap();
            let (u, skip) = (i - 3, 4 - i);
            let max = net.config().block_max_width(i);
            let up = from.narrow(1, 0, a.up_width(u)).unwrap();
            let skip = from.narrow(1, max, a.out_width(skip)).unwrap();
            from = Tensor::cat(&[up, skip], 1).unwrap();
        }
        for (axis, &n) in p.var.dims().iter().enumerate() {
            from = from.narrow(axis, 0, n).unwrap();
        }
        p.var.set(&from.contiguous().unwrap()).unwrap();
    }
    let (x, _) = batch();
    let (super_logits, logits) = (net.predict(&x, &sample).unwrap(), unet.predict(&x).unwrap());
    let difference = (super_logits - logits).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
    assert!(difference < 1e-12, "{difference}");
}

/// As a module in candle's graph, the network has the gradients of its own backward pass, for the image too, and those
/// agree with finite differences.
#[test]
fn gradients_of_the_module() {
    let c = config(SearchSpace::Joint);
    let blocks = vec![vec![3, 5], vec![7], vec![4, 6, 5], vec![8], vec![3, 2]];
    let a = Architecture::new(2, 3, c.strides, c.kernels, blocks).unwrap();
    let net = Unet::new(&a, 1, DType::F64, &Device::Cpu).unwrap();
    shake(net.parameters());
    let (x, _) = batch();
    let x = Var::from_tensor(&x).unwrap();
    let weights = Tensor::from_vec(numbers(2, 2 * 3 * 4 * 8 * 4), (2, 3, 4, 8, 4), &Device::Cpu).unwrap();
    let loss = |logits: &Tensor| (logits.sqr().unwrap() * &weights).unwrap().mean_all().unwrap();
    let value = || loss(&net.predict(&x).unwrap()).to_scalar::<f64>().unwrap();

    let of_module = loss(&x.apply(&net).unwrap());
    assert_eq!(of_module.to_scalar::<f64>().unwrap(), value());
    let store = of_module.backward().unwrap();
    let by_candle: Gradients = net.parameters().iter().map(|p| store.get(&p.var).cloned()).collect();
    assert!(check_gradients(net.parameters(), &by_candle, value) >= 40);
    let image = Parameter { name: "x".into(), role: Role::Weight, var: x.clone() };
    assert_eq!(check_gradients(&[image], &vec![store.get(&x).cloned()], value), 3);

    // The same bits as by hand; zero where the finest logits do not depend on a parameter.
    let (logits, trace) = net.forward_with_trace(&x).unwrap();
    let finest = Var::from_tensor(&logits[0]).unwrap();
    let grad_logits = vec![loss(&finest).backward().unwrap().get(&finest).cloned(), None];
    let by_hand = net.backward(trace, grad_logits).unwrap();
    for ((p, candle), hand) in net.parameters().iter().zip(&by_candle).zip(&by_hand) {
        let candle = candle.as_ref().unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        match hand {
            Some(hand) => assert_eq!(candle, hand.flatten_all().unwrap().to_vec1::<f64>().unwrap(), "{}", p.name),
            None => assert!(p.name == "head.0.weight" && candle.iter().all(|g| *g == 0.0), "{}", p.name),
        }
    }
    // Its maps are gone.
    let message = of_module.backward().err().unwrap().to_string();
    assert!(message.contains("run the forward pass again"), "{message}");
}

/// A loss written with candle's ops trains the network like the built-in one.
#[test]
fn a_loss_of_candle_ops() {
    let net = Supernet::new(config(SearchSpace::Joint), 1, DType::F64, &Device::Cpu).unwrap();
    let ((x, target), sample) = (batch(), net.no_noise(1.0));
    let own = |logits: &[Tensor], target: &Tensor| {
        adw_tensor_ops::loss::deep_supervision_loss(logits, target, DiceCe::default()).map_err(Into::into)
    };
    let (logits, trace) = net.forward_with_trace(&x, &sample).unwrap();
    let (loss, grad_logits) = own.value_and_gradients(&logits, &target).unwrap();
    let gradients = net.backward(trace, grad_logits, Role::Weight).unwrap();
    let (expected_loss, expected) = supernet_loss(&net, &x, &target, &sample, Role::Weight);
    assert!((loss.value().unwrap() - expected_loss).abs() < 1e-14);
    for (got, expected) in gradients.iter().zip(&expected) {
        assert_eq!(got.is_some(), expected.is_some());
        if let (Some(got), Some(expected)) = (got, expected) {
            let difference = (got - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
            assert!(difference < 1e-14, "{difference}");
        }
    }
}

#[test]
fn gradients_that_do_not_fit_the_logits_are_refused() {
    let c = config(SearchSpace::Joint);
    let a =
        Architecture::uniform(2, 3, c.strides, c.kernels, FixedSizes { width: 2, depth: 1, ..FixedSizes::default() })
            .unwrap();
    let net = Unet::new(&a, 1, DType::F64, &Device::Cpu).unwrap();
    let (x, _) = batch();
    let (logits, _) = net.forward_with_trace(&x).unwrap();
    for (grad_logits, word) in [
        (vec![Some(logits[0].clone())], "1 logit gradients, expected one per scale: 2"),
        (vec![None, Some(logits[1].clone())], "no gradient of the finest"),
        (vec![Some(logits[1].clone()), None], "expected [2, 3, 4, 8, 4]"),
    ] {
        let (_, trace) = net.forward_with_trace(&x).unwrap();
        let message = net.backward(trace, grad_logits).unwrap_err().to_string();
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn traces_of_other_networks_are_refused() {
    let c = config(SearchSpace::Joint);
    let net = |blocks: [&[usize]; 5]| {
        let blocks = blocks.map(<[usize]>::to_vec).to_vec();
        let a = Architecture::new(2, 3, c.strides.clone(), c.kernels.clone(), blocks).unwrap();
        Unet::new(&a, 1, DType::F64, &Device::Cpu).unwrap()
    };
    let own = net([&[2], &[4], &[4], &[4], &[2]]);
    let (x, _) = batch();
    for (other, word) in [
        (net([&[2], &[4], &[4], &[4], &[2, 2]]), "[2, 2] channels in block 4, but the network has [2]"),
        (net([&[2], &[4], &[6], &[4], &[2]]), "[6] channels in block 2, but the network has [4]"),
    ] {
        let (logits, trace) = other.forward_with_trace(&x).unwrap();
        let message = own.backward(trace, logits.into_iter().map(Some).collect()).unwrap_err().to_string();
        assert!(message.contains(word), "{message}");
    }
}

/// Counted layer by layer, by hand.
#[test]
fn cost_of_a_small_net() {
    let a = Architecture::new(1, 2, vec![[2; 3]], vec![[3; 3]; 2], vec![vec![4], vec![6, 5], vec![3]]).unwrap();
    // Patch 4x4x4: 64 voxels fine, 8 coarse. The transposed convolution gives 4 channels, as the skip.
    let macs = 64 * 27 * 4 + 8 * 27 * (4 * 6 + 6 * 5) + 64 * 5 * 4 + 64 * 27 * (8 * 3) + 64 * 3 * 2;
    let parameters = 27 * (4 + 4 * 6 + 6 * 5 + 8 * 3) + 2 * (4 + 6 + 5 + 3) + 5 * 4 * 8 + 3 * 2;
    let values = 64 * 4 + 8 * (6 + 5) + 64 * 4 + 64 * 3 + 64 * 2;
    assert_eq!(a.cost([4; 3]), Cost { macs, parameters, activation_bytes: 4 * values });
    let net = Unet::new(&a, 0, DType::F32, &Device::Cpu).unwrap();
    let counted: usize = net.parameters().iter().map(|p| p.var.elem_count()).sum();
    assert_eq!(counted as u64, parameters);
}

#[test]
fn a_residual_encoder_has_shortcuts_and_is_not_trained() {
    let blocks = vec![vec![3, 4, 4], vec![4, 4, 5, 5], vec![6, 5], vec![4], vec![4, 3]];
    let (strides, kernels) = (vec![[1, 2, 2], [2; 3]], vec![[1, 3, 3], [3; 3], [3; 3]]);
    let plain = Architecture::new(2, 3, strides, kernels, blocks).unwrap();
    let a = plain.clone().with_residual_encoder().unwrap();
    let found: Vec<_> =
        a.shortcuts().iter().map(|s| (s.block, s.layer, s.pooling, s.in_channels, s.out_channels)).collect();
    let expected = [(0, 1, [1; 3], 3, 4), (1, 0, [1, 2, 2], 4, 4), (1, 2, [1; 3], 4, 5), (2, 0, [2; 3], 5, 5)];
    assert_eq!(found, expected);
    assert_eq!(plain.shortcuts(), []);
    let back: Architecture = serde_json::from_str(&a.to_text()).unwrap();
    assert!(back == a && !plain.to_text().contains("encoder"));

    let net = Unet::new(&a, 1, DType::F32, &Device::Cpu).unwrap();
    let values: usize = net.parameters().iter().map(|p| p.var.elem_count()).sum();
    assert_eq!(a.cost(SIZE).parameters, values as u64);
    // Two shortcuts with a convolution, of 4x8x4 and 4x4x2 voxels.
    assert_eq!(a.cost(SIZE).macs - plain.cost(SIZE).macs, 3 * 4 * 128 + 4 * 5 * 32);
    let (x, _) = batch();
    let x = x.to_dtype(DType::F32).unwrap();
    assert_eq!(net.predict(&x).unwrap().dims(), [2, 3, 4, 8, 4]);
    assert!(net.forward_with_trace(&x).err().unwrap().to_string().contains("cannot be trained"));
    for block in [0, 1] {
        let mut wrong = plain.clone();
        wrong.blocks[block].pop();
        let message = wrong.with_residual_encoder().unwrap_err().to_string();
        assert!(message.contains(&format!("block {block}")) && message.contains("pairs"), "{message}");
    }
}

#[test]
fn gradients_of_the_expected_cost() {
    for space in [SearchSpace::Joint, SearchSpace::WidthOnly, SearchSpace::DepthOnly] {
        let net = Supernet::new(config(space), 1, DType::F64, &Device::Cpu).unwrap();
        shake(net.parameters());
        let sample = net.sample(NoiseKey { seed: 1, epoch: 0, iteration: 0, pass: 0 }, 2.0).unwrap();
        // In thousands, so that the check's absolute tolerance means something.
        let cost = || net.expected_cost(SIZE, CostUnit::Macs, &sample).unwrap();
        let scale = 1.0 / cost().0;
        let gradients: Gradients = cost().1.into_iter().map(|g| g.map(|g| (g * scale).unwrap())).collect();
        assert!(check_gradients(net.parameters(), &gradients, || cost().0 * scale) >= 5, "{space:?}");
    }
}

/// Fixed widths and depths are those of plain networks, also in the largest network, the noise and the cost.
#[test]
fn restricted_spaces() {
    let width = Supernet::new(config(SearchSpace::WidthOnly), 1, DType::F32, &Device::Cpu).unwrap();
    assert!(width.architecture().unwrap().blocks.iter().all(|b| b.len() == 1 && b[0] < 6 * 2));
    assert!(!width.parameters().iter().any(|p| p.name.ends_with("depth")));
    assert_eq!(width.config().largest().unwrap().blocks, [[6], [12], [12], [12], [6]]);
    let depth = Supernet::new(config(SearchSpace::DepthOnly), 1, DType::F32, &Device::Cpu).unwrap();
    assert_eq!(depth.architecture().unwrap().blocks, [[5], [8], [8], [8], [5]]);
    assert!(!depth.parameters().iter().any(|p| p.name.ends_with("alpha")));
    let sample = depth.sample(NoiseKey { seed: 1, epoch: 0, iteration: 0, pass: 0 }, 1.0).unwrap();
    assert_eq!(depth.noise(&sample).unwrap()[0].depth.dims(), [2]);
}

#[test]
fn plain_networks_are_nnunets_by_default() {
    let (strides, kernels) = (vec![[2; 3]; 5], vec![[3; 3]; 6]);
    let net = Architecture::uniform(1, 2, strides, kernels, FixedSizes::default()).unwrap();
    assert_eq!(net.to_string(), "32-32 64-64 128-128 256-256 320-320 320-320 | 320-320 256-256 128-128 64-64 32-32");
}

#[test]
fn random_architectures_have_the_cost_and_differ_by_seed() {
    for space in [SearchSpace::Joint, SearchSpace::WidthOnly] {
        let config = config(space);
        let macs = config.largest().unwrap().cost(SIZE).macs as f64 * 0.5;
        let draw = |seed| config.random(seed, SIZE, macs).unwrap();
        for seed in 0..5 {
            let cost = draw(seed).cost(SIZE).macs as f64;
            assert!((cost / macs - 1.0).abs() <= 0.02, "{cost}, {macs}");
        }
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let message = config.random(1, SIZE, 10.0 * macs).unwrap_err().to_string();
        assert!(message.contains("no random architecture of"), "{message}");
    }
}

#[test]
fn noise_is_a_function_of_its_key() {
    let net = Supernet::new(config(SearchSpace::Joint), 1, DType::F64, &Device::Cpu).unwrap();
    let key = NoiseKey { seed: 1, epoch: 0, iteration: 0, pass: 0 };
    let first = |key| net.noise(&net.sample(key, 1.0).unwrap()).unwrap()[0].width[0].to_vec1::<f64>().unwrap();
    assert_eq!(first(key), first(key));
    for other in [
        NoiseKey { seed: 2, ..key },
        NoiseKey { epoch: 1, ..key },
        NoiseKey { iteration: 1, ..key },
        NoiseKey { pass: 1, ..key },
    ] {
        assert_ne!(first(key), first(other), "{other:?}");
    }
    let sample = net.noise(&net.sample(key, 1.0).unwrap()).unwrap();
    let numbers = |t: &Tensor| t.to_vec1::<f64>().unwrap();
    assert_ne!(numbers(&sample[0].width[0]), numbers(&sample[0].width[1]));
    assert_ne!(numbers(&sample[0].width[0]), numbers(&sample[1].width[0]));
}

#[test]
fn wrong_inputs_are_named() {
    let net = Supernet::new(config(SearchSpace::Joint), 1, DType::F32, &Device::Cpu).unwrap();
    let sample = net.no_noise(1.0);
    let x = |shape: (usize, usize, usize, usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    for (x, word) in [
        (x((1, 1, 4, 8, 4)), "channels"),
        (x((1, 2, 3, 8, 4)), "multiple of 2 on axis 0"),
        (x((1, 2, 4, 6, 4)), "multiple of 4 on axis 1"),
    ] {
        let message = net.forward_with_trace(&x, &sample).err().unwrap().to_string();
        assert!(message.contains(word), "{message}");
    }
    let message = SupernetConfig { max_width: 10, ..config(SearchSpace::Joint) }.check().unwrap_err().to_string();
    assert!(message.contains("max_width is 10"), "{message}");
    for (stride, kernel, word) in [(2, 3, "strides multiply to more"), (1, 65_537, "kernel [65537, 65537, 65537]")] {
        let sizes = FixedSizes { width: 1, depth: 1, max_features: 1 };
        let network = Architecture::uniform(1, 2, vec![[stride; 3]; 64], vec![[kernel; 3]; 65], sizes);
        let message = network.unwrap_err().to_string();
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn a_cut_out_network_is_the_decided_supernet() {
    for space in [SearchSpace::Joint, SearchSpace::WidthOnly, SearchSpace::DepthOnly] {
        let net = Supernet::new(config(space), 5, DType::F64, &Device::Cpu).unwrap();
        shake(net.parameters());
        let (x, target) = batch();
        for draw in 0..4 {
            // Gumbel noise so large that every softmax is one-hot.
            let key = NoiseKey { seed: 8, epoch: 0, iteration: draw, pass: 0 };
            let large = |t: &Tensor| (t * 1e5).unwrap();
            let blocks = net.noise(&net.sample(key, 1.0).unwrap()).unwrap();
            let noise = blocks
                .iter()
                .map(|b| BlockNoise { width: b.width.iter().map(large).collect(), depth: large(&b.depth) });
            let sample = GumbelSample { noise: GumbelNoise::Given(noise.collect()), tau: 1.0 };
            let architecture = net.drawn_architecture(&sample).unwrap();
            let subnet = net.subnet(&architecture).unwrap();

            let logits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let decided = logits(&net.predict(&x, &sample).unwrap());
            assert_close("logits", &logits(&subnet.predict(&x).unwrap()), &decided, tolerance::F64_GRADIENT);

            // The supernet's gradients lie where the network's weights were cut out, and are zero elsewhere.
            let (_, whole) = supernet_loss(&net, &x, &target, &sample, Role::Weight);
            let gradients = Supernet::new(config(space), 5, DType::F64, &Device::Cpu).unwrap();
            for (p, whole) in gradients.parameters().iter().zip(&whole) {
                p.var.set(&whole.clone().unwrap_or(p.var.zeros_like().unwrap())).unwrap();
            }
            let expected = gradients.subnet(&architecture).unwrap();
            let (_, found) = unet_loss(&subnet, &x, &target);
            for (p, found) in expected.parameters().iter().zip(&found) {
                let found = found.as_ref().map_or(vec![0.0; p.var.elem_count()], logits);
                assert_close(&p.name, &found, &logits(&p.var), tolerance::F64_GRADIENT_CANCELLING);
            }
            let magnitude =
                |gradients: &Gradients| gradients.iter().flatten().flat_map(logits).map(f64::abs).sum::<f64>();
            assert_close("magnitudes", &[magnitude(&found)], &[magnitude(&whole)], tolerance::F64_GRADIENT_CANCELLING);
        }
    }
}

#[test]
fn a_network_beyond_the_supernet_cannot_be_cut_out() {
    let net = Supernet::new(config(SearchSpace::Joint), 5, DType::F32, &Device::Cpu).unwrap();
    let mut architecture = net.architecture().unwrap();
    architecture.blocks[1] = vec![13];
    let error = net.subnet(&architecture).err().expect("too wide").to_string();
    assert!(error.contains("is no part of the supernet"), "{error}");
}

#[test]
fn the_most_probable_architecture_of_a_cost_departs_least() {
    let net = Supernet::new(config(SearchSpace::Joint), 5, DType::F64, &Device::Cpu).unwrap();
    shake(net.parameters());
    let argmax = net.architecture().unwrap();
    let macs = |a: &Architecture| a.cost(SIZE).macs;
    assert_eq!(net.architecture_within(SIZE, CostUnit::Macs, 0..=u64::MAX).unwrap(), Some(argmax.clone()));
    assert_eq!(net.architecture_within(SIZE, CostUnit::Macs, 0..=1).unwrap(), None);

    // Without one that costs so much, the most probable cheaper one.
    let most = macs(&net.config().largest().unwrap());
    let cheaper = net.architecture_within(SIZE, CostUnit::Macs, most + 1..=most + 1).unwrap();
    assert_eq!(cheaper, Some(argmax.clone()));

    // Departure of an architecture by its definition.
    let probabilities = net.probabilities().unwrap();
    let departure = |a: &Architecture| -> f64 {
        let largest = |p: &[f64]| p.iter().copied().fold(0.0, f64::max);
        let block = |(i, block): (usize, &Vec<usize>)| {
            let p = &probabilities[i];
            let depth = p.depth.as_ref().unwrap();
            let options = width_options(net.config().block_max_width(i));
            let width = |(l, w): (usize, &usize)| {
                let p = p.width[l].as_ref().unwrap();
                (largest(p) / p[options.iter().position(|o| o == w).unwrap()]).ln()
            };
            (largest(depth) / depth[block.len() - 1]).ln() + block.iter().enumerate().map(width).sum::<f64>()
        };
        a.blocks.iter().enumerate().map(block).sum()
    };
    let cost = macs(&argmax);
    for costs in [cost + 1..=cost * 11 / 10, cost * 9 / 10..=cost - 1, cost * 3 / 2..=cost * 8 / 5] {
        let found = net.architecture_within(SIZE, CostUnit::Macs, costs.clone()).unwrap().expect("there is one");
        assert!(costs.contains(&macs(&found)));
        let least = departure(&found);
        let mut num_compared = 0;
        for draw in 0..600 {
            let key = NoiseKey { seed: 4, epoch: 0, iteration: draw, pass: 0 };
            let other = net.drawn_architecture(&net.sample(key, 1.0).unwrap()).unwrap();
            if costs.contains(&macs(&other)) {
                num_compared += 1;
                assert!(departure(&other) >= least - 1e-12, "{:?} departs less than {:?}", other.blocks, found.blocks);
            }
        }
        assert!(num_compared > 4, "{num_compared} of {costs:?}");
    }
}
