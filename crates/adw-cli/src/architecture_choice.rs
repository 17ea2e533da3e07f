//! Architecture that a training takes: a file, a baseline, or the result of the run's search.

use std::path::{Path, PathBuf};

use adw_search::load_shared_weights;
use adw_supernet::{Architecture, FixedSizes, Supernet, SupernetConfig};
use anyhow::Result;
use candle_core::{DType, Device};
use msd_data::Plan;
use serde_json::{Value, json};

use crate::{
    args::{ArchitectureArgs, PlainNetwork},
    failure::{bad_input, program},
    fold::Fold,
    report::{plain::quoted, progress::note},
    run::Run,
    run_config::NetworkConfig,
};

/// Search space of a plan and settings.
pub(crate) fn search_space(plan: &Plan, network: &NetworkConfig) -> SupernetConfig {
    SupernetConfig {
        in_channels: plan.modalities.len(),
        num_classes: plan.labels.len(),
        strides: plan.strides.clone(),
        kernels: plan.kernels.clone(),
        max_width: network.max_width,
        max_depth: network.max_depth,
        cap_stage: network.cap_stage,
        mask: network.mask,
        gate_up: network.gate_up,
        space: network.space,
        fixed: network.fixed,
    }
}

/// Path of the architecture in the folder of a search or training.
pub(crate) fn architecture_in(directory: &Path) -> PathBuf {
    directory.join("architecture.json")
}

/// Architecture of the interrupted training in `earlier`, of the command line, or of the search.
///
/// # Errors
/// There is none, it does not fit the run, or the training in `earlier` has another one than the command line.
pub(crate) fn choose(args: &ArchitectureArgs, run: &Run, earlier: Option<&Path>) -> Result<Architecture> {
    let Some(directory) = earlier.filter(|directory| architecture_in(directory).is_file()) else {
        return wanted(args, run);
    };
    let path = architecture_in(directory);
    let stored = Architecture::load(&path)?;
    check_fit(&stored, run, &path)?;
    if args.is_given() {
        let mut wanted = wanted(args, run)?;
        // Provenance makes no difference to a training.
        wanted.provenance.clone_from(&stored.provenance);
        if wanted != stored {
            bad_input!(
                "{} was started with the architecture {stored}, not {wanted}: leave that out, or give another --name",
                directory.display()
            );
        }
    }
    Ok(stored)
}

/// Architecture of the command line, or of the search.
fn wanted(args: &ArchitectureArgs, run: &Run) -> Result<Architecture> {
    if let Some((mut architecture, key, origin)) = baseline(args, run)? {
        architecture.provenance.insert("task".into(), json!(run.plan.dataset_name));
        architecture.provenance.insert(key.into(), origin);
        return Ok(architecture);
    }
    let path = match &args.architecture {
        Some(path) => path.clone(),
        None => match run.existing_folder().map(|folder| architecture_in(&folder.search(run.search_fold()))) {
            Some(path) if path.is_file() => path,
            _ => bad_input!(
                "{root} has no finished search of fold {fold}: start one with `{program} search --run {word} --fold {fold}`, \
                 or give --architecture, --plain, --uniform-width or --random",
                root = run.root.display(),
                word = quoted(&run.root),
                fold = run.search_fold(),
                program = program()
            ),
        },
    };
    let architecture = Architecture::load(&path)?;
    check_fit(&architecture, run, &path)?;
    if let Some(text) = seen_cases(&architecture, run) {
        note(&format!("{}: {text}", path.display()));
    }
    Ok(architecture)
}

/// Network that the command line describes, with key and value of its provenance; none if it names a file or nothing.
fn baseline(args: &ArchitectureArgs, run: &Run) -> Result<Option<(Architecture, &'static str, Value)>> {
    if let (Some(seed), Some(macs)) = (args.random, args.cost) {
        return random(run, seed, macs).map(Some);
    }
    let sizes = match (args.plain, args.uniform_width) {
        (Some(PlainNetwork::Nnunet), _) => FixedSizes::default(),
        (None, Some(width)) => FixedSizes { depth: args.uniform_depth, width, max_features: args.uniform_max_features },
        (None, None) => return Ok(None),
    };
    Ok(Some((plain(&run.plan, sizes)?, "uniform", json!(sizes))))
}

/// Plain U-Net of these sizes on a plan's stages.
pub(crate) fn plain(plan: &Plan, sizes: FixedSizes) -> Result<Architecture> {
    let (strides, kernels) = (plan.strides.clone(), plan.kernels.clone());
    Ok(Architecture::uniform(plan.modalities.len(), plan.labels.len(), strides, kernels, sizes)?)
}

/// Random architecture of the run's search space that costs `macs` multiply-adds per patch, with key and value of its provenance.
pub(crate) fn random(run: &Run, seed: u64, macs: f64) -> Result<(Architecture, &'static str, Value)> {
    let space = search_space(&run.plan, &run.config.settings.network);
    let architecture = space.random(seed, run.plan.patch_size, macs)?;
    Ok((architecture, "random", json!({ "seed": seed, "macs_per_patch": macs })))
}

/// Supernet of the run's search space with the weights that the search in `directory` has reached.
///
/// # Errors
/// The search has no checkpoint, or that of another supernet.
pub(crate) fn searched_supernet(run: &Run, directory: &Path, device: &Device) -> Result<Supernet> {
    let settings = &run.config.settings;
    let net = Supernet::new(search_space(&run.plan, &settings.network), settings.seed, DType::F32, device)?;
    load_shared_weights(&net, directory)?;
    Ok(net)
}

/// Warning that the search of an architecture has seen the run's validation cases: that of another fold has trained on
/// them. None if it has not, or if the file does not name its search.
fn seen_cases(architecture: &Architecture, run: &Run) -> Option<String> {
    let Fold::Number(validated) = run.fold else { return None };
    let origin = |key: &str| architecture.provenance.get(key);
    let (fold, task) = (origin("fold")?.as_u64()?, origin("task")?.as_str()?);
    // Files of earlier versions name the task alone.
    let same_cases = match origin("dataset").and_then(Value::as_str) {
        Some(dataset) => dataset == run.dataset_digest(),
        None => task == run.plan.dataset_name,
    };
    match (same_cases, fold == validated as u64) {
        (true, true) => None,
        (true, false) => Some(format!(
            "found by the search of fold {fold}, which has seen the validation cases of fold {validated}: their scores \
             will be too good"
        )),
        (false, _) => Some(format!(
            "found by a search of fold {fold} of {task} with other cases or splits than this run's: if it has seen this \
             run's validation cases, their scores will be too good"
        )),
    }
}

/// Refuses an architecture that the run's data do not fit.
pub(crate) fn check_fit(architecture: &Architecture, run: &Run, path: &Path) -> Result<()> {
    let plan = &run.plan;
    let file = path.display();
    if let Err(error) = architecture.check_trainable() {
        bad_input!("{file}: {error}");
    }
    let (channels, classes) = (plan.modalities.len(), plan.labels.len());
    if architecture.in_channels != channels {
        bad_input!(
            "{file}: in_channels = {}, but images of {} have {channels}",
            architecture.in_channels,
            plan.dataset_name
        );
    }
    if architecture.num_classes != classes {
        bad_input!(
            "{file}: num_classes = {}, but {} has {classes} labels with the background",
            architecture.num_classes,
            plan.dataset_name
        );
    }
    for axis in 0..3 {
        let divisor: usize = architecture.strides.iter().map(|stride| stride[axis]).product();
        if !plan.patch_size[axis].is_multiple_of(divisor) {
            bad_input!(
                "{file}: strides divide the patch {:?} by {divisor} along axis {axis}, which leaves a rest",
                plan.patch_size
            );
        }
    }
    Ok(())
}
