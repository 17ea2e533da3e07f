//! `adw export`: write trained models for other programs.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use adw_export::{Inference, inference, monai, onnx, pytorch};
use adw_search::save_tensors;
use adw_supernet::{Precision, Unet};
use anyhow::{Context, Result};
use candle_core::Device;
use serde_json::{Value, json};

use crate::{
    args::ExportArgs,
    device,
    ensemble::Ensemble,
    failure::bad_input,
    model::{self, Models},
    report::progress::{emit, say},
    run_folder::{check_output, check_writable, is_empty_or_absent, is_same, new_folder, parent},
};

pub(crate) fn run(args: &ExportArgs) -> Result<()> {
    device::set_threads(&args.process)?;
    let beside = args.onnx.as_ref().map(|path| path.with_file_name("inference.json"));
    let outputs = [("onnx", &args.onnx), ("inference", &beside), ("safetensors", &args.safetensors)];
    for path in [&args.onnx, &args.safetensors, &args.monai].into_iter().flatten() {
        // The lock of an export that was killed once its bundle had its name.
        let _ = adw_files::remove_stale(&parent(path));
    }
    if let Some(folder) = args.monai.as_ref().filter(|folder| !is_empty_or_absent(folder)) {
        bad_input!("--monai {}: exists and is not an empty folder", folder.display());
    }
    args.monai.as_deref().map_or(Ok(()), |folder| check_writable(&parent(folder)))?;
    for (kind, path) in outputs.iter().filter_map(|(kind, path)| Some((kind, path.as_ref()?))) {
        if *kind != "inference" && path.extension().is_none_or(|extension| extension != *kind) {
            bad_input!("--{kind} {}: expected a name that ends in .{kind}", path.display());
        }
        if args.model.iter().any(|model| is_same(model, path)) {
            bad_input!("--{kind} {}: would overwrite the model", path.display());
        }
        check_output(path)?;
    }
    args.safetensors.as_deref().map_or(Ok(()), |path| model::check_no_training("--safetensors", path))?;
    let ensemble = Ensemble::find(&args.model)?;
    let models = model::load(&ensemble.models, Precision::Full, &Device::Cpu)?;
    let description = describe(args, &ensemble, &models)?;
    let text = description.to_json();
    if let (Some(onnx), Some(beside)) = (&args.onnx, &beside)
        && let Ok(found) = fs::read(beside)
        && found != text.as_bytes()
    {
        let is_own = serde_json::from_slice::<Value>(&found).is_ok_and(|found| found["format"] == inference::FORMAT);
        if !is_own {
            bad_input!("--onnx {}: inference.json there is of another program; choose another folder", onnx.display());
        }
        if let Some(other) = other_network(onnx) {
            bad_input!(
                "--onnx {}: inference.json there describes another network, {}; choose another folder",
                onnx.display(),
                other.display()
            );
        }
    }
    let mut metadata = BTreeMap::from([("inference".to_owned(), text.clone())]);
    for path in outputs.iter().filter_map(|(_, path)| path.as_ref()) {
        let folder = parent(path);
        adw_files::create_folders(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }

    if let (Some(path), Some(beside)) = (&args.onnx, &beside) {
        let bytes = match onnx::encode(&models.networks, &metadata) {
            Err(error @ adw_export::Error::TooLarge { .. }) => bad_input!("--onnx {}: {error}", path.display()),
            encoded => encoded?,
        };
        write(path, &bytes)?;
        write(beside, text.as_bytes())?;
    }
    let architectures: Vec<_> = models.networks.iter().map(Unet::architecture).collect();
    metadata.insert("architectures".to_owned(), serde_json::to_string(&architectures)?);
    let state = pytorch::state_dict(&models.networks);
    if let Some(path) = &args.safetensors {
        save_tensors(path, &state, &metadata)?;
    }
    if let Some(path) = &args.monai {
        let folder = new_folder(path)?;
        for (name, text) in monai::files(&description) {
            let file = folder.path().join(name);
            adw_files::create_folders(&parent(&file))?;
            write(&file, text.as_bytes())?;
        }
        adw_files::create_folders(&parent(&folder.path().join(monai::WEIGHTS)))?;
        save_tensors(&folder.path().join(monai::WEIGHTS), &state, &metadata)?;
        folder.commit().with_context(|| format!("cannot create {}", path.display()))?;
    }
    for (kind, path) in
        outputs.iter().chain([&("monai", &args.monai)]).filter_map(|(k, path)| Some((k, path.as_ref()?)))
    {
        if args.process.json {
            emit("exported", &json!({ *kind: path }));
        } else {
            say(&format!("{}\n", path.display()));
        }
    }
    Ok(())
}

/// Another ONNX file in the folder of `onnx`.
fn other_network(onnx: &Path) -> Option<PathBuf> {
    let mut files = fs::read_dir(parent(onnx)).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    files.find(|path| path.extension().is_some_and(|extension| extension == "onnx") && !is_same(path, onnx))
}

/// Describes all that the networks need beside their weights.
fn describe(args: &ExportArgs, ensemble: &Ensemble, models: &Models) -> Result<Inference> {
    let window = models.window(args.step, args.mirror)?;
    let postprocessing = models.postprocessing(ensemble, args.postprocessing.as_deref())?;
    let architecture = models.networks[0].architecture();
    let num_networks = models.networks.len();
    Ok(Inference::new(&models.plan, architecture, num_networks, window.step, window.mirror, postprocessing))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    adw_files::write_bytes(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
