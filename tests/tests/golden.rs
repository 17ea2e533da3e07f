//! Networks and bilevel steps beside golden numbers from PyTorch.
//!
//! Reads every `*.safetensors` of the folder `ADW_GOLDEN`, or of `tests/golden` and, where it exists beside the
//! repository, of `../shared/golden/supernet`. Each file names its network and loss in its metadata; logits, losses, all
//! gradients and (for `step_*` files) the parameters after bilevel steps are compared in f64 and f32.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use adw_search::{
    ArchBatches, Batch, BilevelOptimizers, BilevelSettings, Half, HalfBatches, SearchConfig, bilevel_step,
};
use adw_supernet::{
    BlockNoise, DiceCe, FixedSizes, GatePosition, Gradients, GumbelNoise, GumbelSample, Loss, NoiseKey, Role,
    SearchSpace, Supernet, SupernetConfig,
};
use adw_tensor_ops::philox::{Purpose, Stream};
use adw_testing::{Tolerance, difference, tolerance};
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

struct Golden {
    tensors: HashMap<String, Tensor>,
    metadata: HashMap<String, serde_json::Value>,
}

impl Golden {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().as_ref().expect("a golden file has metadata").iter();
        Self {
            tensors: candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap(),
            metadata: metadata.map(|(k, v)| (k.clone(), serde_json::from_str(v).unwrap())).collect(),
        }
    }

    fn tensor(&self, name: &str, dtype: DType) -> Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("no tensor {name}")).to_dtype(dtype).unwrap()
    }

    fn vector(&self, name: &str) -> Vec<f64> {
        flat(&self.tensor(name, DType::F64))
    }

    fn number(&self, key: &str, default: f64) -> f64 {
        self.metadata.get(key).map_or(default, |v| v.as_f64().unwrap())
    }

    fn flag(&self, key: &str, default: bool) -> bool {
        self.metadata.get(key).map_or(default, |v| v.as_bool().unwrap())
    }

    fn triples(&self, key: &str) -> Vec<[usize; 3]> {
        serde_json::from_value(self.metadata[key].clone()).unwrap()
    }

    fn config(&self) -> SupernetConfig {
        SupernetConfig {
            in_channels: self.number("c_in", 0.0) as usize,
            num_classes: self.number("n_classes", 0.0) as usize,
            strides: self.triples("strides"),
            kernels: self.triples("kernels"),
            max_width: self.number("base_max", 48.0) as usize,
            max_depth: self.number("max_depth", 3.0) as usize,
            cap_stage: self.number("cap_stage", 3.0) as usize,
            gate_up: self.flag("gate_up", false),
            mask: match self.metadata.get("mask").map(|m| m.as_str().unwrap()) {
                None | Some("pre_norm") => GatePosition::PreNorm,
                Some("post_norm") => GatePosition::PostNorm,
                Some(other) => panic!("mask {other}"),
            },
            space: SearchSpace::Joint,
            fixed: FixedSizes::default(),
        }
    }

    /// The supernet with the parameters `{prefix}.{name}`.
    fn supernet(&self, prefix: &str, dtype: DType) -> Supernet {
        let net = Supernet::new(self.config(), 0, dtype, &Device::Cpu).unwrap();
        for p in net.parameters() {
            p.var.set(&self.tensor(&format!("{prefix}.{}", golden_name(&p.name)), dtype)).unwrap();
        }
        net
    }

    fn sample(&self, prefix: &str, config: &SupernetConfig, dtype: DType) -> GumbelSample {
        let block = |i: usize| BlockNoise {
            width: (0..config.max_depth).map(|l| self.tensor(&format!("{prefix}.{i}.width.{l}"), dtype)).collect(),
            depth: self.tensor(&format!("{prefix}.{i}.depth"), dtype),
        };
        GumbelSample {
            noise: GumbelNoise::Given((0..config.num_blocks()).map(block).collect()),
            tau: self.number("tau", 1.0),
        }
    }
}

/// `block.0.conv.1.weight` is `block.0.aw.1.conv` there; `up.0.weight` is `up.0`.
fn golden_name(name: &str) -> String {
    match name.split('.').collect::<Vec<_>>()[..] {
        ["block", i, "conv", l, "weight"] => format!("block.{i}.aw.{l}.conv"),
        ["block", i, "conv", l, what] => format!("block.{i}.aw.{l}.{what}"),
        [part, u, "weight"] => format!("{part}.{u}"),
        _ => name.to_string(),
    }
}

fn flat(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Loss of a golden file.
fn loss_of(golden: &Golden) -> DiceCe {
    DiceCe { batch_dice: golden.flag("batch_dice", true), ..DiceCe::default() }
}

fn loss_and_gradients(
    net: &Supernet,
    loss: &dyn Loss,
    (x, target): (&Tensor, &Tensor),
    sample: &GumbelSample,
    role: Role,
) -> (f64, Gradients) {
    let (logits, trace) = net.forward_with_trace(x, sample).unwrap();
    let (loss, grad_logits) = loss.value_and_gradients(&logits, target).unwrap();
    (loss.value().unwrap(), net.backward(trace, grad_logits, role).unwrap())
}

/// Comparisons of one file in one precision.
struct Report {
    dtype: DType,
    mask: GatePosition,
    /// Largest relative error but for those of `worst_alpha`, and its tensor.
    worst: (f64, String),
    /// Largest relative error of a gradient of alpha in f32 under `pre_norm`.
    worst_alpha: f64,
    failures: Vec<String>,
}

impl Report {
    fn new(dtype: DType, mask: GatePosition) -> Self {
        Self { dtype, mask, worst: (0.0, String::new()), worst_alpha: 0.0, failures: vec![] }
    }

    fn tolerance(&self, name: &str) -> Tolerance {
        let alpha = name.starts_with("grad.") && name.ends_with("alpha");
        match (self.dtype, self.mask) {
            (DType::F64, _) => tolerance::GOLDEN_F64,
            (_, GatePosition::PreNorm) if alpha => tolerance::GOLDEN_F32_PRE_NORM_ALPHA,
            _ => tolerance::GOLDEN_F32,
        }
    }

    fn compare(&mut self, name: &str, got: &[f64], expected: &[f64]) {
        let tolerance = self.tolerance(name);
        let found = difference(got, expected, tolerance);
        if !found.is_close() {
            self.failures.push(format!("{name} in {:?}: {found}", self.dtype));
        }
        let relative = if found.allowed > 0.0 { tolerance.rel * found.error / found.allowed } else { 0.0 };
        if tolerance == tolerance::GOLDEN_F32_PRE_NORM_ALPHA {
            self.worst_alpha = self.worst_alpha.max(relative);
        } else if relative > self.worst.0 {
            self.worst = (relative, name.to_string());
        }
    }
}

fn check_forward(golden: &Golden, dtype: DType, report: &mut Report) {
    let loss = loss_of(golden);
    let net = golden.supernet("param", dtype);
    let sample = golden.sample("noise", net.config(), dtype);
    let (x, target) = (golden.tensor("x", dtype), golden.tensor("target", DType::U8));
    let (logits, _) = net.forward_with_trace(&x, &sample).unwrap();
    for (k, l) in logits.iter().enumerate() {
        report.compare(&format!("logits.{k}"), &flat(l), &golden.vector(&format!("logits.{k}")));
    }
    let (finest, _) = loss.value_and_gradients(&logits[..1], &target).unwrap();
    report.compare("loss_dice_ce", &[finest.value().unwrap()], &golden.vector("loss_dice_ce"));
    for role in [Role::Weight, Role::Architecture] {
        let (loss, gradients) = loss_and_gradients(&net, &loss, (&x, &target), &sample, role);
        report.compare("loss", &[loss], &golden.vector("loss"));
        for (p, g) in net.parameters().iter().zip(&gradients) {
            let name = format!("grad.{}", golden_name(&p.name));
            if p.role == role {
                let expected = golden.vector(&name);
                let got = g.as_ref().map_or_else(|| vec![0.0; expected.len()], flat);
                report.compare(&name, &got, &expected);
            } else {
                assert!(g.is_none(), "{name}: a gradient of the other role");
            }
        }
    }
}

/// The case with the results in f64 of a slightly different image: each voxel differs by at most 1e-6 of itself.
///
/// A gradient jumps where a voxel crosses the kink of `LeakyReLU`. Where the golden case has one within the roundings of f32, a right
/// computation in f32 may lie on the other side; it then agrees with the gradients of an image nearby.
fn beside(golden: &Golden, attempt: usize) -> Golden {
    let x = golden.tensor("x", DType::F64);
    let shift = |(i, x): (usize, f64)| x * (1.0 + 1e-6 * ((i + 1) as f64 * (attempt as f64 + 1.7)).sin());
    let moved: Vec<f64> = flat(&x).into_iter().enumerate().map(shift).collect();
    let moved = Tensor::from_vec(moved, x.shape(), &Device::Cpu).unwrap();
    let net = golden.supernet("param", DType::F64);
    let sample = golden.sample("noise", net.config(), DType::F64);
    let (loss, target) = (loss_of(golden), golden.tensor("target", DType::U8));
    let (logits, _) = net.forward_with_trace(&moved, &sample).unwrap();
    let (finest, _) = loss.value_and_gradients(&logits[..1], &target).unwrap();
    let mut tensors = golden.tensors.clone();
    tensors.insert("loss_dice_ce".into(), Tensor::new(finest.value().unwrap(), &Device::Cpu).unwrap());
    tensors.extend(logits.into_iter().enumerate().map(|(k, logits)| (format!("logits.{k}"), logits)));
    for role in [Role::Weight, Role::Architecture] {
        let (loss, gradients) = loss_and_gradients(&net, &loss, (&moved, &target), &sample, role);
        tensors.insert("loss".into(), Tensor::new(loss, &Device::Cpu).unwrap());
        let named = net.parameters().iter().zip(gradients);
        tensors.extend(named.filter_map(|(p, g)| Some((format!("grad.{}", golden_name(&p.name)), g?))));
    }
    Golden { tensors, metadata: golden.metadata.clone() }
}

fn check_steps(golden: &Golden, dtype: DType, report: &mut Report) {
    let loss = loss_of(golden);
    let net = golden.supernet("before", dtype);
    let losses = golden.vector("losses");
    let on_b = golden.metadata.get("weights_on").is_some_and(|v| v == "b");
    let config = SearchConfig::paper();
    let mut optimizers = BilevelOptimizers::new(&net, &config);
    let settings = BilevelSettings {
        loss: &loss,
        arch_lr: 4e-4,
        lr: 1e-2,
        clip: 12.0,
        tau: golden.number("tau", 1.0),
        weights_on: if on_b { Half::B } else { Half::A },
        arch_batches: ArchBatches::AAndB,
        penalty: None,
        ranks: None,
    };
    for s in 0..golden.number("steps", 0.0) as usize {
        let batch = |which: &str| Batch {
            x: golden.tensor(&format!("batch.{s}.{which}.x"), dtype),
            target: golden.tensor(&format!("batch.{s}.{which}.target"), DType::U8),
        };
        let (a, b) = (batch("a"), batch("b"));
        let batches = HalfBatches { a: &a, b: &b };
        let mut sample = |k| Ok(golden.sample(&format!("noise.{s}.{k}"), net.config(), dtype));
        let seen = bilevel_step(&net, &mut optimizers, &settings, batches, &mut sample).unwrap();
        let row = [seen.arch_a.unwrap().loss, seen.arch_b.loss, seen.weights.loss];
        report.compare(&format!("losses.{s}"), &row, &losses[3 * s..3 * s + 3]);
    }
    for p in net.parameters() {
        let name = format!("after.{}", golden_name(&p.name));
        report.compare(&name, &flat(p.var.as_tensor()), &golden.vector(&name));
    }
}

/// Compares all files of a folder and returns their number.
fn check_folder(folder: &Path) -> usize {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} holds no *.safetensors", folder.display());
    let mut failures = Vec::new();
    for path in &files {
        let golden = Golden::read(path);
        let mut line = format!("{:32}", path.file_name().unwrap().to_string_lossy());
        for dtype in [DType::F64, DType::F32] {
            let mut report = Report::new(dtype, golden.config().mask);
            if golden.metadata.contains_key("steps") {
                check_steps(&golden, dtype, &mut report);
            } else {
                check_forward(&golden, dtype, &mut report);
                let nearby = (0..if dtype == DType::F32 { 20 } else { 0 }).map(|attempt| beside(&golden, attempt));
                for golden in nearby {
                    if report.failures.is_empty() {
                        break;
                    }
                    line += ", beside a kink";
                    report = Report::new(dtype, golden.config().mask);
                    check_forward(&golden, dtype, &mut report);
                }
            }
            write!(line, "  {}: worst {:.1e} ({})", dtype.as_str(), report.worst.0, report.worst.1).unwrap();
            if report.worst_alpha > 0.0 {
                write!(line, ", alpha gradient {:.1e}", report.worst_alpha).unwrap();
            }
            failures.extend(report.failures.into_iter().map(|f| format!("{}: {f}", path.display())));
        }
        println!("{line}");
    }
    assert!(failures.is_empty(), "{} comparisons failed:\n{}", failures.len(), failures.join("\n"));
    files.len()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

#[test]
fn golden_cases() {
    if let Some(folder) = std::env::var_os("ADW_GOLDEN") {
        println!("{} golden cases of {}", check_folder(Path::new(&folder)), folder.display());
        return;
    }
    println!("{} golden cases of tests/golden", check_folder(&repository().join("tests/golden")));
    let shared = repository().join("../shared/golden/supernet");
    if shared.is_dir() {
        println!("{} golden cases of {}", check_folder(&shared), shared.display());
    } else {
        println!("SKIPPED: {} is not there", shared.display());
    }
}

/// The published gate has next to no gradient: the same net, noise and batch, with the gate in front of and behind the
/// normalisation.
#[test]
fn golden_alpha_gradient_is_real_behind_the_normalisation() {
    let norm = |mask: GatePosition| {
        let config = SupernetConfig {
            in_channels: 1,
            num_classes: 3,
            strides: vec![[2; 3]; 2],
            kernels: vec![[3; 3]; 3],
            max_width: 12,
            max_depth: 3,
            cap_stage: 1,
            mask,
            gate_up: false,
            space: SearchSpace::Joint,
            fixed: FixedSizes::default(),
        };
        let net = Supernet::new(config, 1, DType::F64, &Device::Cpu).unwrap();
        let stream = |index| Stream { seed: 1, purpose: Purpose::Other, epoch: 0, iteration: 0, index };
        let (shape, voxels) = ((2, 1, 16, 12, 16), 2 * 16 * 12 * 16);
        let x: Vec<f64> = stream(0).normal().take(voxels).collect();
        let target: Vec<u8> = stream(1).uniform().take(voxels).map(|u| (3.0 * u) as u8).collect();
        let x = Tensor::from_vec(x, shape, &Device::Cpu).unwrap();
        let target = Tensor::from_vec(target, (2, 16, 12, 16), &Device::Cpu).unwrap();
        let sample = net.sample(NoiseKey { seed: 1, epoch: 0, iteration: 0, pass: 0 }, 1.5).unwrap();
        let loss = DiceCe::default();
        let (_, gradients) = loss_and_gradients(&net, &loss, (&x, &target), &sample, Role::Architecture);
        let alphas = net.parameters().iter().zip(&gradients).filter(|(p, _)| p.name.ends_with("alpha"));
        alphas.flat_map(|(_, g)| flat(g.as_ref().unwrap())).map(|g| g * g).sum::<f64>().sqrt()
    };
    let (pre, post) = (norm(GatePosition::PreNorm), norm(GatePosition::PostNorm));
    println!("alpha gradient: pre_norm {pre:.2e}, post_norm {post:.2e}, ratio {:.0}", post / pre);
    assert!(post > 100.0 * pre, "pre_norm {pre:e}, post_norm {post:e}");
}
