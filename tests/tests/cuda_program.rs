//! The program on a CUDA device that is emulated (`cargo xtask cuda-check --emulate`): whole runs, and what happens when
//! the device is missing, full or lost.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cli_support;

use std::fs;
use std::path::Path;

use cli_support::{Adw, TINY, phantom};

const FAIL_AT: &str = "ADW_EMULATED_CUDA_FAIL_AT";
const MEMORY: &str = "ADW_EMULATED_CUDA_MEMORY";
const DEVICES: &str = "ADW_EMULATED_CUDA_DEVICES";

fn search(data: &Path, run: &Path, device: &str) -> Adw {
    Adw::new(["search", "--device", device]).path("--data", data).path("--run", run).args(TINY)
}

fn json(file: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

/// Losses of a history, row by row.
fn losses(file: &Path) -> Vec<f64> {
    let rows = fs::read_to_string(file).unwrap();
    rows.lines().map(|row| serde_json::from_str::<serde_json::Value>(row).unwrap()["loss"].as_f64().unwrap()).collect()
}

#[test]
fn a_run_from_search_to_prediction() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 6);
    let runs = ["cpu", "cuda:0"].map(|device| {
        let run = dir.path().join(device.replace(':', "-"));
        // Steps of Muon do not shrink with the gradient, so roundings grow from step to step: its single steps are compared
        // elsewhere (`cuda_device`), and here those of gradient descent.
        let descent = ["--set=search.optimizer.kind=sgd", "--set=retrain.optimizer.kind=sgd"];
        let outcome = search(&data, &run, device).args(descent).succeed();
        assert_eq!(outcome.stderr.contains("device: cuda:0"), device == "cuda:0", "{outcome:?}");
        Adw::new(["retrain", "--device", device]).path("--run", &run).succeed();
        run
    });
    let blocks = runs.clone().map(|run| json(&run.join("search/fold_0/architecture.json"))["blocks"].clone());
    assert_eq!(blocks[0], blocks[1]);
    for history in ["search/fold_0/history.jsonl", "retrain/fold_0/history.jsonl"] {
        let [cpu, cuda] = runs.clone().map(|run| losses(&run.join(history)));
        assert_eq!(cpu.len(), cuda.len());
        for (a, b) in cpu.iter().zip(&cuda) {
            assert!((a - b).abs() < 1e-3 * a.abs(), "{history}: {cpu:?} {cuda:?}");
        }
    }
    // One model, predictions of both devices.
    let model = runs[1].join("retrain/fold_0/model.safetensors");
    let outputs = ["cpu", "cuda:0"].map(|device| {
        let output = dir.path().join(format!("labels-{}", device.replace(':', "-")));
        Adw::new(["predict", "--device", device])
            .path("--model", &model)
            .path("--output", &output)
            .path("--input", &data.join("imagesTs"))
            .succeed();
        output
    });
    let names = cli_support::names(&outputs[0]);
    assert_eq!(names, cli_support::names(&outputs[1]));
    assert!(!names.is_empty());
    for name in names.iter().filter(|n| n.ends_with(".nii.gz")) {
        let [a, b] = outputs.clone().map(|o| msd_data::read_labels(o.join(name)).unwrap().data);
        let differ = a.iter().zip(&b).filter(|(a, b)| a != b).count();
        assert!(differ * 1000 <= a.len(), "{name}: {differ} of {} voxels differ", a.len());
    }
}

#[test]
fn a_lost_device_leaves_a_checkpoint_to_go_on_from() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 6);
    let (whole, broken) = (dir.path().join("whole"), dir.path().join("broken"));
    search(&data, &whole, "cuda:0").succeed();
    let outcome = search(&data, &broken, "cuda:0").env(FAIL_AT, 1500).run();
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    let last = outcome.stderr.lines().last().unwrap();
    assert!(last.starts_with("error: ") && last.contains("CUDA"), "{outcome:?}");
    let checkpoint = "checkpoint/latest.safetensors";
    assert!(broken.join("search/fold_0").join(checkpoint).is_file(), "{outcome:?}");
    search(&data, &broken, "cuda:0").arg("--resume").succeed();
    for file in [checkpoint, "architecture.json"] {
        let [a, b] = [&whole, &broken].map(|run| fs::read(run.join("search/fold_0").join(file)).ok());
        assert!(a == b, "{file} differs from that of an unbroken run");
    }
}

#[test]
fn a_device_that_is_missing_or_full() {
    let bench = |device: &str| {
        Adw::new(["bench", "step", "--device", device, "--batch", "1", "--max-width", "6"]).args([
            "--patch",
            "8",
            "8",
            "8",
            "--repeats",
            "1",
            "--warmup",
            "0",
        ])
    };
    bench("cuda:0").env(DEVICES, 0).run().assert_bad_input(&["--device cuda:0", "no CUDA-capable device"]);
    bench("cuda:1").run().assert_bad_input(&["--device cuda:1", "invalid device ordinal"]);
    bench("cuda:0")
        .env("ADW_EMULATED_CUDA_CAPABILITY", 75)
        .run()
        .assert_bad_input(&["compute capability 7.5", "8.0 (Ampere) or later is needed"]);
    // One with the least shared memory that there is.
    for precision in [&[][..], &["--bf16"]] {
        bench("cuda:0").args(precision).env("ADW_EMULATED_CUDA_CAPABILITY", 86).succeed();
    }
    let outcome = bench("auto").env(DEVICES, 0).succeed();
    assert!(outcome.stderr.contains("device: cpu, since no GPU can be used"), "{outcome:?}");
    let outcome = bench("cuda:0").env(MEMORY, 1_000_000).run();
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    let last = outcome.stderr.lines().last().unwrap();
    assert!(last.contains("smaller batch or patch"), "{outcome:?}");

    // A training says so before it starts.
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 6);
    let outcome = search(&data, &dir.path().join("run"), "cuda:0").env(MEMORY, 100_000).run();
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    assert!(outcome.stderr.contains("of the CUDA device"), "{outcome:?}");
}

#[test]
fn convolutions_run_on_the_chosen_implementation() {
    let step = |arguments: &[&str]| {
        Adw::new(["bench", "step", "--device", "cuda:0", "--batch", "1"])
            .args(["--max-width", "6", "--patch", "8", "8", "8"])
            .args(["--repeats", "1", "--warmup", "0", "--kernels"])
            .args(arguments)
    };
    let cudnn = ["--convolutions", "cudnn"];
    let fails = |variable: Option<&str>, code: i32, words: &str| {
        let variables = variable.map(|name| (name, 1));
        let outcome = variables.into_iter().fold(step(&cudnn), |adw, (name, value)| adw.env(name, value)).run();
        assert_eq!(outcome.code, Some(code), "{outcome:?}");
        assert!(outcome.stderr.contains(words), "{outcome:?}");
    };
    if !adw_cuda::device::has_cudnn() {
        return fails(None, 2, "built without cuDNN");
    }
    let kernels = |arguments: &[&str]| {
        let output = step(arguments).succeed().stdout;
        ["conv_correlate", "cudnn_forward", "cudnn_grad_input", "cudnn_grad_weight"].map(|k| output.contains(k))
    };
    assert_eq!(kernels(&[]), [true, false, false, false]);
    assert_eq!(kernels(&["--convolutions", "own"]), [true, false, false, false]);
    assert_eq!(kernels(&cudnn), [false, true, true, true]);

    fails(Some("ADW_EMULATED_CUDNN_MISSING"), 2, "cuDNN cannot be used");
    fails(Some("ADW_EMULATED_CUDNN_FAILS"), 1, "CUDNN_STATUS_NOT_SUPPORTED");
}
