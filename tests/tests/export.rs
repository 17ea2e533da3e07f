//! Exported models in other programs, from `PyPI`: ONNX's checker, `onnxruntime`, `openvino`, and the example script that
//! segments volumes without `adw`.
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::{
    collections::BTreeMap,
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use adw_search::{ModelFile, NamedTensors, load_tensors};
use candle_core::{DType, Device, Tensor};
use cli_support::{Adw, TINY, names, phantom, python::python};
use msd_data::read_labels;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::Value;

const PACKAGES: [&str; 5] = ["onnx", "onnxruntime", "openvino", "nibabel", "scipy"];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Trains a network for some steps and returns its file.
fn train(dir: &Path, data: &Path, name: &str, extra: &[&str]) -> PathBuf {
    let run = dir.join("run");
    let retrain = Adw::new(["retrain", "--name", name]).path("--run", &run).path("--data", data).args(extra);
    // At the preset's learning rate, a network of nine steps labels next to nothing.
    if run.exists() { retrain } else { retrain.args(TINY).arg("--set=retrain.lr.peak=0.03") }.succeed();
    run.join(format!("retrain/{name}/fold_0/model.safetensors"))
}

fn predict(models: &[&Path], input: &Path, output: &Path) -> Adw {
    let models =
        models.iter().fold(Adw::new(["predict", "--mirror", "--step=0.4", "--model"]), |adw, m| adw.arg(m.display()));
    models.path("--input", input).path("--output", output)
}

/// Mean of the models' logits for an input, both written as raw values; arguments for the script that reads them.
fn write_logits(models: &[&Path], shape: [usize; 5], dir: &Path) -> Vec<String> {
    let x = Tensor::randn(0f32, 1.0, &shape, &Device::Cpu).unwrap();
    let logits = models.iter().map(|path| {
        let file = ModelFile::load(path, &Device::Cpu).unwrap();
        file.network(DType::F32, &Device::Cpu).unwrap().predict(&x).unwrap()
    });
    let logits: Vec<Tensor> = logits.collect();
    let mean =
        (logits.iter().skip(1).fold(logits[0].clone(), |sum, y| (sum + y).unwrap()) / logits.len() as f64).unwrap();
    for (name, tensor) in [("x", &x), ("y", &mean)] {
        let values = tensor.contiguous().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        fs::write(dir.join(name), bytes).unwrap();
    }
    let [x, y] = ["x", "y"].map(|name| dir.join(name).display().to_string());
    let classes = mean.dim(1).unwrap().to_string();
    [x, y, classes].into_iter().chain(shape.map(|n| n.to_string())).collect()
}

/// Asserts that label maps of two folders agree in more than 99.99 % of their voxels, and returns the number of voxels.
fn assert_same_labels(found: &Path, expected: &Path) -> usize {
    let (mut voxels, mut different, mut foreground) = (0, 0, 0);
    assert_eq!(names(found), names(expected));
    for name in names(expected) {
        let [found, expected] = [found, expected].map(|folder| read_labels(folder.join(&name)).unwrap());
        assert_eq!(found.geometry.affine(), expected.geometry.affine(), "{name}");
        let here = found.data.iter().zip(&expected.data).filter(|(a, b)| a != b).count();
        assert!(here * 1000 <= found.data.len(), "{name}: {here} of {} voxels differ", found.data.len());
        different += here;
        voxels += found.data.len();
        foreground += expected.data.iter().filter(|&&label| label > 0).count();
    }
    assert!(foreground * 100 > voxels, "{foreground} of {voxels} voxels have a label");
    assert!(different * 10_000 < voxels, "{different} of {voxels} voxels differ");
    voxels
}

#[test]
fn onnx_runtime_and_openvino_compute_the_same_logits_and_labels() {
    let Some(python) = python("onnx", &PACKAGES, "onnx, onnxruntime, nibabel, scipy") else { return };
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let models = ["a", "b"].map(|name| {
        let width = if name == "a" { "4" } else { "6" };
        let mirrored = "--set=data.augmentation.mirror=0.5";
        let extra: &[&str] =
            if name == "a" { &["--uniform-width", width, mirrored] } else { &["--uniform-width", width] };
        train(dir.path(), &data, name, extra)
    });
    let models: Vec<&Path> = models.iter().map(PathBuf::as_path).collect();
    let steps = dir.path().join("postprocessing.json");
    fs::write(&steps, r#"{"keep_largest": ["foreground", {"label": 2}]}"#).unwrap();

    let script = repository().join("tests/golden/onnx_check.py");
    let run = |arguments: &[String]| {
        let mut command = Command::new(&python);
        assert!(command.args(arguments).status().unwrap().success(), "{arguments:?}");
    };
    let text = |path: &Path| path.display().to_string();
    for (name, models) in [("one", &models[..1]), ("several", &models[..])] {
        let folder = dir.path().join(name);
        let onnx = folder.join("network.onnx");
        let export = models
            .iter()
            .fold(Adw::new(["export", "--mirror", "--step=0.4", "--model"]), |adw, m| adw.arg(m.display()));
        export.path("--onnx", &onnx).path("--postprocessing", &steps).succeed();
        for shape in [[1, 1, 16, 16, 16], [2, 1, 8, 24, 16]] {
            let arguments = write_logits(models, shape, dir.path());
            run(&[&[text(&script), "logits".into(), text(&onnx)], &arguments[..]].concat());
        }

        let images = folder.join("images");
        let first = fs::read_dir(data.join("imagesTs")).unwrap().map(|entry| entry.unwrap().path()).min().unwrap();
        run(&[text(&script), "variants".into(), text(&first), text(&images)]);
        let real = repository().join("../shared/data/Task04_Hippocampus/imagesTs");
        let has_real = real.is_dir();
        if !has_real {
            let _ = writeln!(std::io::stderr(), "SKIPPED: {} is not there: phantoms alone", real.display());
        }
        let real_images = if has_real { names(&real) } else { vec![] };
        for image in real_images.into_iter().filter(|name| !name.starts_with('.')).take(2) {
            fs::copy(real.join(&image), images.join(&image)).unwrap();
        }
        let [expected, found] = ["expected", "found"].map(|name| folder.join(name));
        predict(models, &images, &expected).path("--postprocessing", &steps).succeed();
        fs::create_dir(&found).unwrap();
        let example = repository().join("examples/onnx_inference.py");
        run(&[text(&script), "segment".into(), text(&example), text(&onnx), text(&images), text(&found)]);
        // The phantom's variants alone have 66,376.
        let voxels = assert_same_labels(&found, &expected);
        assert!(voxels > if has_real { 100_000 } else { 66_000 }, "{voxels} voxels");
    }

    let [one, several] = ["one", "several"].map(|name| dir.path().join(name));
    fs::copy(one.join("inference.json"), several.join("inference.json")).unwrap();
    let mut command = Command::new(&python);
    command.arg(repository().join("examples/onnx_inference.py")).arg("--model").arg(several.join("network.onnx"));
    let images = data.join("imagesTs");
    command.arg("--output").arg(dir.path().join("labels.nii.gz")).arg(images.join(&names(&images)[0]));
    let output = command.output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && message.contains("inference.json does not describe"), "{message}");
}

/// Python with modules that rest on PyTorch: `$ADW_PYTHON`, else `python3`. They are not installed here, for they take gigabytes.
fn python_with(modules: &str) -> Option<PathBuf> {
    let python = env::var_os("ADW_PYTHON").map_or_else(|| "python3".into(), PathBuf::from);
    let imported = Command::new(&python).args(["-c", &format!("import {modules}")]).output();
    let found = imported.is_ok_and(|it| it.status.success());
    if !found {
        let _ = writeln!(std::io::stderr(), "SKIPPED: ADW_PYTHON names no Python with {modules}");
    }
    found.then_some(python)
}

#[test]
fn pytorch_computes_the_same_logits() {
    let Some(python) = python_with("torch, safetensors, numpy") else { return };
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let models =
        [("a", "4"), ("b", "6")].map(|(name, width)| train(dir.path(), &data, name, &["--uniform-width", width]));
    let models: Vec<&Path> = models.iter().map(PathBuf::as_path).collect();
    for models in [&models[..1], &models[..]] {
        let file = dir.path().join("network.safetensors");
        let export = models.iter().fold(Adw::new(["export", "--model"]), |adw, model| adw.arg(model.display()));
        export.path("--safetensors", &file).succeed();
        let arguments = write_logits(models, [2, 1, 16, 24, 16], dir.path());
        let mut command = Command::new(&python);
        command.arg(repository().join("tests/golden/pytorch_check.py")).arg(repository().join("examples"));
        assert!(command.arg(&file).args(arguments).status().unwrap().success());
    }
}

#[test]
fn monai_runs_a_bundle() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let model = train(dir.path(), &data, "a", &["--uniform-width", "4"]);
    let bundle = dir.path().join("bundle");
    let export = || Adw::new(["export", "--mirror"]).path("--model", &model).path("--monai", &bundle);
    export().succeed();
    assert_eq!(names(&bundle), ["configs", "docs", "models", "scripts"]);
    export().run().assert_bad_input(&["--monai", "not an empty folder"]);

    let Some(python) = python_with("monai, ignite, fire, nibabel, safetensors, scipy, torch") else { return };
    let [images, labels, expected] = ["images", "labels", "expected"].map(|name| bundle.join(name));
    fs::create_dir(&images).unwrap();
    for name in names(&data.join("imagesTs")) {
        fs::copy(data.join("imagesTs").join(&name), images.join(&name)).unwrap();
    }
    let run = |options: &[&str]| {
        let mut command = Command::new(&python);
        command
            .args(["-m", "monai.bundle", "run", "inference", "--config_file", "configs/inference.json"])
            .args(options);
        let output = command.current_dir(&bundle).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let before = fs::read(images.join(&names(&images)[0])).unwrap();
    let (succeeded, message) = run(&["--output_dir", "./images"]);
    assert!(!succeeded && message.contains("label maps would replace the images"), "{message}");
    assert_eq!(fs::read(images.join(&names(&images)[0])).unwrap(), before);
    let (succeeded, message) = run(&[]);
    assert!(succeeded, "{message}");
    Adw::new(["predict", "--mirror", "--model"])
        .arg(model.display())
        .path("--input", &images)
        .path("--output", &expected)
        .succeed();
    assert_same_labels(&labels, &expected);
}

/// Tensors and metadata of a network of nnU-Net as the converter writes them, an input and its logits.
fn golden(name: &str) -> (NamedTensors, BTreeMap<String, String>, [Tensor; 2]) {
    let path = repository().join(format!("tests/golden/nnunet/{name}.safetensors"));
    let (mut tensors, metadata) = load_tensors(&path).unwrap();
    let pair = ["x", "logits"].map(|name| tensors.remove(name).unwrap());
    (tensors, metadata, pair)
}

/// Import of a file of the converter with these contents as `model.safetensors`.
fn import(dir: &Path, tensors: &NamedTensors, metadata: &BTreeMap<String, String>) -> Adw {
    let file = dir.join("nnunet.safetensors");
    let bytes = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let bytes = |tensor: &Tensor| bytes(tensor).into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
    let values: Vec<_> = tensors.iter().map(|(name, tensor)| (name, tensor.dims(), bytes(tensor))).collect();
    let view = |shape: &[usize], bytes| TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap();
    let views = values.iter().map(|(name, shape, bytes)| (name, view(shape, bytes)));
    safetensors::serialize_to_file(views, Some(metadata.clone().into_iter().collect()), &file).unwrap();
    Adw::new(["import"]).path("--nnunet", &file).path("--output", &dir.join("model.safetensors"))
}

/// Asserts that a network computes these logits for `x`.
fn assert_logits(model: &ModelFile, x: &Tensor, expected: &Tensor) {
    let logits = model.network(DType::F32, &Device::Cpu).unwrap().predict(x).unwrap();
    let worst = (logits - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(worst < 1e-4, "{worst}");
}

#[test]
fn a_network_of_nnu_net_computes_the_same_logits() {
    let dir = tempfile::tempdir().unwrap();
    let (tensors, metadata, [x, expected]) = golden("plain");
    let import = |tensors: &NamedTensors, metadata: &BTreeMap<String, String>| import(dir.path(), tensors, metadata);
    import(&tensors, &metadata).succeed();
    let model = ModelFile::load(&dir.path().join("model.safetensors"), &Device::Cpu).unwrap();
    assert_eq!(model.architecture.to_string(), "3-3 4 5-6 | 5 3-4");
    assert_logits(&model, &x, &expected);
    assert_eq!(model.info["mirror_axes"], "[true,false,true]");

    let text = |key: &str, from: &str, to: &str| {
        let mut metadata = metadata.clone();
        assert!(metadata[key].contains(from), "{from}");
        metadata.insert(key.into(), metadata[key].replace(from, to));
        import(&tensors, &metadata).run()
    };
    text("dataset", r#""b": 2"#, r#""b": [1, 2]"#).assert_bad_input(&["region", "b"]);
    text("dataset", r#", "b": 2"#, "").assert_bad_input(&["3 classes", "2 labels"]);
    text("plans", r#""order": 3"#, r#""order": 1"#).assert_bad_input(&["resampling_fn_data_kwargs"]);
    text("plans", "LeakyReLU", "ReLU").assert_bad_input(&["LeakyReLU"]);
    text("plans", "[8, 16, 16]", "[16, 16]").assert_bad_input(&["3d_fullres", "length 2"]);
    text("plans", "ZScoreNormalization", "Mine").assert_bad_input(&["normalisation Mine"]);
    text("configuration", "3d_fullres", "3d_lowres").assert_bad_input(&["3d_lowres", "3d_fullres"]);
    let changed = |change: &dyn Fn(&mut NamedTensors)| {
        let mut tensors = tensors.clone();
        change(&mut tensors);
        import(&tensors, &metadata).run()
    };
    let first = "encoder.stages.0.0.convs.0.conv.weight";
    changed(&|tensors| drop(tensors.remove("decoder.transpconvs.0.weight")))
        .assert_bad_input(&["transpconvs.0.weight"]);
    changed(&|tensors| drop(tensors.insert("encoder.stem.w".into(), x.clone()))).assert_bad_input(&["encoder.stem.w"]);
    changed(&|tensors| drop(tensors.insert(first.into(), x.flatten_all().unwrap()))).assert_bad_input(&[first, "3D"]);
    changed(&|tensors| drop(tensors.insert(first.into(), tensors[first].narrow(0, 0, 2).unwrap())))
        .assert_bad_input(&["block.0.conv.0.weight"]);
    let import = |path: &Path| Adw::new(["import", "--output", "m.safetensors"]).path("--nnunet", path).run();
    import(dir.path()).assert_bad_input(&["a folder", "nnunet_to_safetensors.py"]);
    import(&repository().join("README.md")).assert_bad_input(&["README.md", "safetensors"]);
}

#[test]
fn a_residual_encoder_of_nnu_net_computes_the_same_logits_here_and_exported() {
    let dir = tempfile::tempdir().unwrap();
    let (tensors, metadata, [x, expected]) = golden("residual");
    import(dir.path(), &tensors, &metadata).succeed();
    let path = dir.path().join("model.safetensors");
    let model = ModelFile::load(&path, &Device::Cpu).unwrap();
    assert_eq!(model.architecture.to_string(), "4-3-3 4-4-4-4 5-5 5-5-5-5 | 5 4-4 3");
    assert_logits(&model, &x, &expected);

    let architecture = dir.path().join("architecture.json");
    model.architecture.save(&architecture).unwrap();
    let retrain = Adw::new(["retrain"]).path("--run", &dir.path().join("run"));
    let retrain = retrain.path("--data", &phantom(dir.path(), 5)).path("--architecture", &architecture);
    retrain.run().assert_bad_input(&["architecture.json", "residual encoder", "plain one"]);
    for (remove, reason) in [("conv2.conv.weight", "conv2.conv.bias"), ("skip.0.conv.weight", "skip.0.norm")] {
        let mut tensors = tensors.clone();
        tensors.remove(&format!("encoder.stages.0.blocks.0.{remove}")).unwrap();
        import(dir.path(), &tensors, &metadata).run().assert_bad_input(&[reason]);
    }
    import(dir.path(), &tensors, &metadata).succeed();

    let [onnx, weights] = ["network.onnx", "network.safetensors"].map(|name| dir.path().join(name));
    let export = Adw::new(["export"]).path("--model", &path);
    export.path("--onnx", &onnx).path("--safetensors", &weights).succeed();
    let arguments = write_logits(&[&path], [2, 2, 8, 24, 16], dir.path());
    let run = |python: &Path, script: &str, first: &[&Path]| {
        let mut command = Command::new(python);
        command.arg(repository().join("tests/golden").join(script)).args(first).args(&arguments);
        assert!(command.status().unwrap().success(), "{script}");
    };
    if let Some(python) = python("onnx", &PACKAGES, "onnx, onnxruntime, nibabel, scipy") {
        run(&python, "onnx_check.py", &["logits".as_ref(), &onnx]);
    }
    if let Some(python) = python_with("torch, safetensors, numpy") {
        run(&python, "pytorch_check.py", &[&repository().join("examples"), &weights]);
    }
}

#[test]
fn label_maps_of_an_imported_network_are_those_of_nnu_net() {
    let Some(python) = python_with("torch, safetensors, nnunetv2") else { return };
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("phantom");
    let shape = ["--shape", "24", "30", "28", "--spacing-mm", "1.5", "1", "1", "--cases", "5", "--test", "2"];
    Adw::new(["phantom"]).args(shape).path("--output", &data).succeed();
    let run = |script: &str, arguments: &[&Path]| {
        let mut command = Command::new(&python);
        assert!(command.arg(repository().join(script)).args(arguments).status().unwrap().success(), "{script}");
    };
    for planner in ["ExperimentPlanner", "nnUNetPlannerResEncM"] {
        let dir = dir.path().join(planner);
        let [trained, converted, model, labels] =
            ["nnunet", "n.safetensors", "m.safetensors", "labels"].map(|n| dir.join(n));
        run("tests/golden/nnunet_network.py", &[&data, &trained, planner.as_ref()]);
        let results = trained.join("results/Dataset001_Test");
        let results = results.join(&names(&results)[0]);
        run("examples/nnunet_to_safetensors.py", &[&results, Path::new("--output"), &converted]);
        Adw::new(["import"]).path("--nnunet", &converted).path("--output", &model).succeed();
        let images = data.join("imagesTs");
        Adw::new(["predict"]).path("--model", &model).path("--input", &images).path("--output", &labels).succeed();
        let expected = trained.join("labels");
        for file in names(&expected).into_iter().filter(|name| !name.ends_with(".nii.gz")) {
            fs::remove_file(expected.join(file)).unwrap();
        }
        assert_same_labels(&labels, &expected);
    }
}

#[test]
fn networks_of_nnu_net_v1_and_of_the_papers_authors_compute_the_same_logits() {
    let Some(python) = python_with("torch, safetensors, numpy") else { return };
    let dir = tempfile::tempdir().unwrap();
    let run = |script: &str, arguments: &[&Path]| {
        let output = Command::new(&python).arg(repository().join(script)).args(arguments).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let script = "examples/nnunet_to_safetensors.py";
    let outcome = run("tests/golden/nnunet_v1.py", &[dir.path()]);
    assert!(outcome.0, "{}", outcome.1);
    let (golden, _) = load_tensors(&dir.path().join("golden.safetensors")).unwrap();
    let dataset = dir.path().join("dataset.json");
    fs::write(&dataset, r#"{ "labels": { "0": "background", "1": "Anterior" } }"#).unwrap();
    for style in ["generic", "adwunet"] {
        let [results, converted, model] =
            [style.into(), format!("{style}.safetensors"), "m.safetensors".into()].map(|name| dir.path().join(name));
        let outcome = run(script, &[&results, "--dataset".as_ref(), &dataset, "--output".as_ref(), &converted]);
        assert!(outcome.0, "{}", outcome.1);
        Adw::new(["import"]).path("--nnunet", &converted).path("--output", &model).succeed();
        let model = ModelFile::load(&model, &Device::Cpu).unwrap();
        assert_eq!(model.architecture.to_string(), "3-4 5-6 8-8 | 5-7 4-4");
        assert_logits(&model, &golden["x"], &golden["logits"]);
        assert!(model.info["training"].contains("nnU-Net v1"), "{}", model.info["training"]);
        let plan: Value = serde_json::from_str(&model.info["plan"]).unwrap();
        assert_eq!(plan["labels"][1]["name"], "Anterior");
        assert_eq!(plan["labels"][2]["name"], "label 2");
        assert_eq!(plan["intensity"][1]["percentile_99_5"], 8.0);
    }
    for (trainer, mirror_axes) in
        [("nnUNetTrainerV2_noMirroring", Some("[false,false,false]")), ("nnUNetTrainerV2_ReLU", None)]
    {
        let folder = dir.path().join(trainer);
        let [results, converted, model] = ["generic", "n.safetensors", "m.safetensors"].map(|name| folder.join(name));
        fs::create_dir(&folder).unwrap();
        assert!(run("tests/golden/nnunet_v1.py", &[&folder, trainer.as_ref()]).0);
        let (succeeded, message) = run(script, &[&results, "--output".as_ref(), &converted]);
        assert_eq!(succeeded, mirror_axes.is_some(), "{message}");
        let Some(mirror_axes) = mirror_axes else {
            assert!(message.contains("another activation or norm"), "{message}");
            continue;
        };
        Adw::new(["import"]).path("--nnunet", &converted).path("--output", &model).succeed();
        assert_eq!(ModelFile::load(&model, &Device::Cpu).unwrap().info["mirror_axes"], mirror_axes);
    }
    let absent = dir.path().join("absent");
    let (succeeded, message) = run(script, &[&absent, "--output".as_ref(), &absent]);
    assert!(!succeeded && message.lines().count() == 1 && message.contains("absent"), "{message}");
}

#[test]
fn an_export_of_no_model_or_to_no_place_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 5);
    let model = train(dir.path(), &data, "a", &["--uniform-width", "4"]);
    let export = |model: &Path, onnx: &Path| Adw::new(["export"]).path("--model", model).path("--onnx", onnx);
    let onnx = dir.path().join("out/network.onnx");
    export(&dir.path().join("absent"), &onnx).run().assert_bad_input(&["absent", "No such file"]);
    export(&data.join("dataset.json"), &onnx).run().assert_bad_input(&["not a model file"]);
    export(&model, &dir.path().join("network.pth")).run().assert_bad_input(&["network.pth", ".onnx"]);
    export(&model, &data.join("dataset.json/network.onnx")).run().assert_bad_input(&["not a folder"]);
    export(&model, &onnx).arg("--step=0").run().assert_bad_input(&["--step 0"]);
    Adw::new(["export"]).path("--model", &model).path("--safetensors", &model).run().assert_bad_input(&["overwrite"]);
    assert!(!onnx.parent().unwrap().exists(), "nothing is written by a call that fails");

    let outcome = export(&model, &onnx).arg("--json").succeed();
    assert_eq!(outcome.stdout.lines().count(), 2, "{outcome:?}");
    assert_eq!(names(onnx.parent().unwrap()), ["inference.json", "network.onnx"]);
    let first = fs::read(&onnx).unwrap();
    export(&model, &onnx).succeed();
    assert_eq!(fs::read(&onnx).unwrap(), first, "equal models give equal files");

    let other = train(dir.path(), &data, "b", &["--uniform-width", "2"]);
    let over = Adw::new(["export"]).path("--model", &model).path("--safetensors", &other);
    over.run().assert_bad_input(&["is a trained model"]);
    fs::write(onnx.with_file_name("inference.json"), "{\"imports\": []}").unwrap();
    export(&model, &onnx).run().assert_bad_input(&["inference.json there is of another program"]);

    // The folder of trainings has their postprocessing, which a file of it has not.
    let run = model.ancestors().nth(2).unwrap();
    fs::write(run.join("postprocessing.json"), "{\"keep_largest\": [{\"label\": 1}]}").unwrap();
    for (path, options, expected) in
        [(&model, vec![], 0), (&run.to_owned(), vec![], 1), (&run.to_owned(), vec!["--postprocessing", "none"], 0)]
    {
        fs::remove_file(onnx.with_file_name("inference.json")).unwrap();
        export(path, &onnx).args(options).succeed();
        let text = fs::read_to_string(onnx.with_file_name("inference.json")).unwrap();
        let inference: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            inference["postprocessing"]["keep_largest"].as_array().unwrap().len(),
            expected,
            "{}",
            path.display()
        );
    }
}
