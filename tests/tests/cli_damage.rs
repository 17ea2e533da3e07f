//! Damaged checkpoints and models are refused or replaced by the one before; a training that diverges keeps its last good
//! checkpoint and names its cases.
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::{fs, path::Path};

use cli_support::{Adw, TINY, names, phantom};

fn search(data: &Path, run: &Path) -> Adw {
    Adw::new(["search"]).path("--data", data).path("--run", run).args(TINY)
}

/// Changes one bit in the byte at `at`.
fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1 << (at % 8);
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_checkpoint_gives_way_to_the_one_before_and_a_damaged_model_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let run = dir.path().join("run");
    search(&data, &run).succeed();
    let (search_folder, architecture) = (run.join("search/fold_0"), run.join("search/fold_0/architecture.json"));
    let found = fs::read(&architecture).unwrap();
    let latest = search_folder.join("checkpoint/latest.safetensors");
    let size = fs::metadata(&latest).unwrap().len() as usize;
    for at in [0, 97, size / 2, size - 1] {
        fs::remove_file(&architecture).unwrap();
        flip(&latest, at);
        let outcome = search(&data, &run).arg("--resume").succeed();
        let warning = outcome.stderr.lines().find(|line| line.starts_with("warning: ")).unwrap();
        assert!(warning.contains("latest.safetensors: not a checkpoint"), "{at}: {warning}");
        assert!(warning.contains("previous.safetensors"), "{at}: {warning}");
        assert!(found == fs::read(&architecture).unwrap(), "{at}");
    }
    fs::remove_file(&architecture).unwrap();
    flip(&latest, size / 2);
    flip(&search_folder.join("checkpoint/previous.safetensors"), size / 2);
    let parts = ["latest.safetensors", "previous.safetensors", "remove "];
    search(&data, &run).arg("--resume").run().assert_bad_input(&parts);
    // The remedy that the error names.
    fs::remove_dir_all(search_folder.join("checkpoint")).unwrap();
    search(&data, &run).arg("--resume").succeed();
    assert!(found == fs::read(&architecture).unwrap());

    Adw::new(["retrain"]).path("--run", &run).succeed();
    let model = run.join("retrain/fold_0/model.safetensors");
    let whole = fs::read(&model).unwrap();
    let predict = Adw::new(["predict"]).path("--model", &model).path("--input", &data.join("imagesTs"));
    let predict = predict.path("--output", &dir.path().join("maps"));
    for at in (0..whole.len()).step_by(whole.len() / 40) {
        flip(&model, at);
        predict.run().assert_bad_input(&["model.safetensors: not a model file"]);
        fs::write(&model, &whole).unwrap();
    }
    predict.succeed();
}

#[test]
fn a_training_that_diverges_keeps_its_last_good_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let run = dir.path().join("run");
    let retrain = Adw::new(["retrain"]).path("--run", &run).path("--data", &data).args(TINY);
    let lr = ["--set=retrain.lr.peak=1e6", "--set=retrain.lr.warmup_epochs=0"];
    let retrain = retrain.args(["--uniform-width", "8"]).args(lr);
    let outcome = retrain.run();
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    let line = outcome.stderr.lines().last().unwrap();
    assert!(line.contains("lower the learning rate"), "{line}");
    let checkpoint = run.join("retrain/fold_0/checkpoint/latest.safetensors");
    if let Ok(bytes) = fs::read(&checkpoint) {
        assert!(line.contains("the last good checkpoint is"), "{line}");
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (name, tensor) in file.iter().filter(|(name, _)| name.starts_with("parameter/")) {
            let (values, _) = tensor.data().as_chunks();
            assert!(values.iter().all(|value| f32::from_le_bytes(*value).abs() < 1e6), "{name}");
        }
    }
}

/// Text files that the program has written: what is lost is said, and foreign text is not shown.
#[test]
fn lost_epochs_leftovers_and_foreign_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    Adw::new(["retrain", "--uniform-width", "4", "--uniform-depth", "1"])
        .path("--data", &phantom(dir.path(), 5))
        .path("--run", &run)
        .args(TINY)
        .succeed();
    // A process that was killed while it wrote the report, which is its last work.
    fs::write(run.join(".report.html.1-0.adw-tmp"), "<!").unwrap();
    Adw::new(["retrain", "--resume"]).path("--run", &run).succeed();
    assert!(!names(&run).iter().any(|name| name.ends_with(".adw-tmp")), "{:?}", names(&run));

    let report = || Adw::new(["report"]).arg(run.display());
    assert_eq!(report().succeed().stderr, "");
    let history = run.join("retrain/fold_0/history.jsonl");
    let text = fs::read_to_string(&history).unwrap();
    fs::write(&history, &text[..text.len() - 9]).unwrap();
    assert!(report().succeed().stderr.contains("history.jsonl has 2 of 3 epochs"));
    fs::write(&history, format!("{{}}\n{text}")).unwrap();
    report().run().assert_bad_input(&["history.jsonl: line 1"]);

    let foreign = dir.path().join("passwd");
    fs::write(&foreign, "\nroot:x:0:0\n").unwrap();
    for command in [&["sweep", "plan"][..], &["download", "--manifest"], &["search", "--preset"]] {
        let outcome = Adw::new(command).arg(foreign.display()).run();
        outcome.assert_bad_input(&["passwd", "line 2: "]);
        assert!(!outcome.stderr.contains("root"), "{outcome:?}");
    }

    // Every place of a result is looked at before the first is written.
    let model = run.join("retrain/fold_0/model.safetensors");
    let onnx = dir.path().join("network.onnx");
    let export = Adw::new(["export"]).path("--model", &model).path("--onnx", &onnx);
    export.path("--monai", &foreign.join("bundle")).run().assert_bad_input(&["passwd is not a folder"]);
    assert!(!onnx.exists());
}
