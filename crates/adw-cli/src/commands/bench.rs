//! `adw bench step`: time one iteration of a search, or one step of a training.

use std::time::Instant;

use adw_cuda::{
    device::CudaRuntime,
    work::{Machine, Recorder},
};
use adw_search::{
    ArchBatches, Batch, BilevelOptimizers, BilevelSettings, Half, RetrainConfig, SearchConfig, arch_step,
    training_step, weight_step,
};
use adw_supernet::{Architecture, DiceCe, FixedSizes, NoiseKey, SearchSpace, Supernet, SupernetConfig, Unet};
use adw_tensor_ops::InstructionSet;
use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value, json};

use crate::{
    args::{BenchStepArgs, Pass},
    device,
    failure::bad_input,
    report::{progress::say, table::Table},
};

pub(crate) fn step(args: &BenchStepArgs) -> Result<()> {
    let device = device::set_up(&args.device, &args.process)?;
    if args.repeats == 0 {
        bad_input!("--repeats 0: expected at least 1");
    }
    if args.kernels && !device.is_cuda() {
        bad_input!("--kernels: the kernels are those of a CUDA device; see --device");
    }
    match discrete(args)? {
        Some(architecture) => training(args, &architecture, &device),
        None => search_iteration(args, &device),
    }
}

/// Discrete network of the command line; none for the supernet.
fn discrete(args: &BenchStepArgs) -> Result<Option<Architecture>> {
    if let Some(file) = &args.architecture {
        return Ok(Some(Architecture::load(file)?));
    }
    let plain = |width| {
        let (strides, kernels) = stages(args);
        Architecture::uniform(args.in_channels, args.classes, strides, kernels, FixedSizes::with_width(width))
    };
    Ok(args.uniform_width.map(plain).transpose()?)
}

/// Strides between the stages, and kernels of the stages.
fn stages(args: &BenchStepArgs) -> (Vec<[usize; 3]>, Vec<[usize; 3]>) {
    let mut strides = vec![[2; 3]; args.poolings];
    let mut kernels = vec![[3; 3]; args.poolings + 1];
    if args.anisotropic {
        (strides[0], kernels[0]) = ([1, 2, 2], [1, 3, 3]);
    }
    (strides, kernels)
}

/// Times the passes of a training of a discrete network.
fn training(args: &BenchStepArgs, architecture: &Architecture, device: &Device) -> Result<()> {
    let mut net = Unet::new(architecture, 0, DType::F32, device)?;
    net.set_precision(device::precision(args.bf16));
    let batch = random_batch(args, architecture.in_channels, architecture.num_classes, device)?;
    let config = RetrainConfig::paper();
    let mut optimizer = config.optimizer.build(net.parameters().iter().map(|p| (p.name.as_str(), &p.var)));
    let loss = DiceCe::default();
    measure(args, device, &[Pass::Inference, Pass::Weights], &mut |pass| {
        match pass {
            Pass::Inference => drop(net.predict(&batch.x)?),
            Pass::Weights => {
                training_step(&net, &mut *optimizer, &loss, &batch, 1e-2, config.clip, None)?;
            }
            Pass::Arch => bad_input!("--passes arch_pass: a discrete network has no architecture to search"),
        }
        Ok(())
    })
}

/// Times the passes of a search iteration of the supernet.
fn search_iteration(args: &BenchStepArgs, device: &Device) -> Result<()> {
    let (strides, kernels) = stages(args);
    let mut net = Supernet::new(
        SupernetConfig {
            in_channels: args.in_channels,
            num_classes: args.classes,
            strides,
            kernels,
            max_width: args.max_width,
            max_depth: 3,
            cap_stage: 3,
            mask: args.mask,
            gate_up: false,
            space: SearchSpace::Joint,
            fixed: FixedSizes::default(),
        },
        0,
        DType::F32,
        device,
    )?;
    net.set_precision(device::precision(args.bf16));
    let batch = random_batch(args, args.in_channels, args.classes, device)?;
    let config = SearchConfig::paper();
    let mut optimizers = BilevelOptimizers::new(&net, &config);
    let loss = DiceCe::default();
    let settings = BilevelSettings {
        loss: &loss,
        arch_lr: config.arch_lr,
        lr: 1e-2,
        clip: config.clip,
        tau: 2.0,
        weights_on: Half::A,
        arch_batches: ArchBatches::AAndB,
        penalty: None,
        ranks: None,
    };
    let key = NoiseKey { seed: 0, epoch: 0, iteration: 0, pass: 0 };
    let (noise, no_noise) = (net.sample(key, settings.tau)?, net.no_noise(settings.tau));
    measure(args, device, &Pass::ALL, &mut |pass| {
        match pass {
            Pass::Inference => drop(net.predict(&batch.x, &no_noise)?),
            Pass::Weights => {
                weight_step(&net, &mut optimizers, &settings, &batch, &noise)?;
            }
            Pass::Arch => {
                arch_step(&net, &mut optimizers, &settings, &batch, &noise)?;
            }
        }
        Ok(())
    })
}

/// Times those of the `passes` that the command line asks for, each by calls of `work`, and reports them.
fn measure(
    args: &BenchStepArgs,
    device: &Device,
    passes: &[Pass],
    work: &mut dyn FnMut(Pass) -> Result<()>,
) -> Result<()> {
    let mut seconds = Map::new();
    let mut peak_bytes = None;
    let mut tables = Vec::new();
    let passes = if args.passes.is_empty() { passes } else { &args.passes };
    for &pass in passes {
        let mut work = || {
            work(pass)?;
            // Launches return before they have run.
            Ok(device.synchronize()?)
        };
        // What the first steps measure takes memory that no later one does.
        for _ in 0..args.warmup {
            work()?;
        }
        device::reset_peak_memory(device);
        let median = median_seconds(args.repeats, &mut work)?;
        peak_bytes = peak_bytes.max(device::peak_memory(device));
        seconds.insert(pass.key().into(), json!(median));
        if args.kernels {
            tables.push((pass.key(), kernel_floors(device, &mut work)?));
        }
    }
    if let (Some(weights), Some(arch)) =
        (seconds.get("weight_pass").and_then(Value::as_f64), seconds.get("arch_pass").and_then(Value::as_f64))
    {
        seconds.insert("search_iteration".into(), json!(2.0 * arch + weights));
    }
    report(args, seconds, peak_bytes, device);
    for (pass, table) in tables {
        say(&format!("\n{pass}, floors of an H100:\n\n{table}"));
    }
    Ok(())
}

/// Table of the launches of `work` on a CUDA device.
fn kernel_floors(device: &Device, work: &mut impl FnMut() -> Result<()>) -> Result<String> {
    let Device::Cuda(cuda) = device else {
        return Ok(String::new());
    };
    let rt = CudaRuntime::of(cuda)?;
    rt.record(Some(Recorder::new(Machine::H100)));
    let done = work();
    let recorded = rt.record(None);
    done?;
    Ok(recorded.map_or(String::new(), |r| r.to_markdown()))
}

/// Random batch on the network's device, so that transfers are not timed.
fn random_batch(args: &BenchStepArgs, in_channels: usize, classes: usize, device: &Device) -> Result<Batch> {
    let &[d, h, w] = args.patch.as_slice() else {
        bad_input!("--patch: expected three sizes, D H W");
    };
    let host = &Device::Cpu;
    let x = Tensor::randn(0f32, 1.0, (args.batch, in_channels, d, h, w), host)?;
    let target = Tensor::rand(0f32, classes as f32, (args.batch, d, h, w), host)?.to_dtype(DType::U8)?;
    Ok(Batch { x: x.to_device(device)?, target: target.to_device(device)? })
}

/// Median duration of `repeats` calls of `work`.
fn median_seconds(repeats: usize, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut seconds = Vec::with_capacity(repeats);
    for _ in 0..repeats {
        let start = Instant::now();
        work()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(f64::midpoint(seconds[(repeats - 1) / 2], seconds[repeats / 2]))
}

fn report(args: &BenchStepArgs, seconds: Map<String, Value>, peak_bytes: Option<u64>, device: &Device) {
    if args.process.json {
        let mut line = seconds;
        let about = json!({
            "peak_bytes": peak_bytes,
            "adw": env!("CARGO_PKG_VERSION"),
            "instruction_set": format!("{:?}", InstructionSet::detect()),
            "device": device::name(device),
            "threads": rayon::current_num_threads(),
            "patch": args.patch,
            "batch": args.batch,
            "max_width": args.max_width,
            "uniform_width": args.uniform_width,
            "architecture": args.architecture,
            "poolings": args.poolings,
            "anisotropic": args.anisotropic,
            "mask": args.mask,
            "precision": if args.bf16 { "bf16" } else { "f32" },
        });
        if let Value::Object(about) = about {
            line.extend(about);
        }
        say(&format!("{}\n", Value::Object(line)));
        return;
    }
    let mut table = Table::of_text(["pass", "seconds"]);
    for (pass, value) in &seconds {
        table.row([pass.as_str(), &format!("{:.3}", value.as_f64().unwrap_or_default())]);
    }
    say(&table.render());
    if let Some(bytes) = peak_bytes {
        say(&format!("peak memory {:.2} GB\n", bytes as f64 / 1e9));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_call_does_not_move_the_median() {
        let mut calls = 0;
        let median = median_seconds(3, || {
            std::thread::sleep(std::time::Duration::from_millis(if calls == 0 { 500 } else { 1 }));
            calls += 1;
            Ok(())
        });
        assert_eq!(calls, 3);
        assert!(median.expect("nothing fails") < 0.4);
    }
}
