//! `adw import`: make models of networks that other programs trained.

use adw_export::nnunet;
use adw_search::{ModelFile, load_tensors};
use anyhow::{Context, Result};
use candle_core::{DType, Device};
use serde_json::json;

use crate::{
    args::ImportArgs,
    device,
    failure::bad_input,
    model::{self, TestTime},
    report::progress::{emit, say},
    run_folder::{check_output, is_same, parent},
};

pub(crate) fn run(args: &ImportArgs) -> Result<()> {
    device::set_threads(&args.process)?;
    check_output(&args.output)?;
    let source = args.nnunet.display();
    if args.nnunet.is_dir() {
        bad_input!("--nnunet {source}: a folder; make a file of its fold with examples/nnunet_to_safetensors.py");
    }
    if is_same(&args.nnunet, &args.output) {
        bad_input!("--output {}: would overwrite --nnunet", args.output.display());
    }
    model::check_no_training("--output", &args.output)?;
    let (tensors, metadata) = load_tensors(&args.nnunet)
        .with_context(|| format!("--nnunet {source}: expected a file of examples/nnunet_to_safetensors.py"))?;
    let network = match nnunet::import(&tensors, &metadata) {
        Ok(network) => network,
        // Shapes that do not fit together, too.
        Err(error) => bad_input!("{source}: not a network to import: {error}"),
    };
    // nnU-Net's own settings for prediction.
    let test_time = TestTime { step: 0.5, mirror: true };
    let program = metadata.get("program").map_or("nnU-Net v2", String::as_str);
    let training = json!({ "task": network.plan.dataset_name, "fold": network.fold, "program": program });
    let model = ModelFile {
        info: model::entries(&network.plan, network.mirror_axes, test_time, &training)?,
        architecture: network.architecture,
        weights: network.weights,
    };
    if let Err(error) = model.network(DType::F32, &Device::Cpu) {
        bad_input!("{source}: not a network to import: {error}");
    }
    adw_files::create_folders(&parent(&args.output))?;
    model.save(&args.output)?;
    if args.process.json {
        emit("imported", &json!({ "model": args.output, "architecture": model.architecture }));
    } else {
        say(&format!("{}: {}\n", args.output.display(), model.architecture));
    }
    Ok(())
}
