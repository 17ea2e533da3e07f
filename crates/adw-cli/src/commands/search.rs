//! `adw search`: find the architecture.

use std::{collections::BTreeMap, ops::ControlFlow, path::Path};

use adw_search::{ArchBatches, Part, RunOptions, SearchRow, search};
use adw_supernet::{Architecture, DiceCe, Supernet, SupernetConfig, widths_line};
use anyhow::Result;
use candle_core::DType;
use serde_json::json;

use crate::{
    args::SearchArgs,
    cases::Cases,
    device,
    failure::bad_input,
    memory,
    report::{
        self,
        progress::{emit, say},
        training,
    },
    run::{Run, Wish},
    run_config::check_precision,
    source::{PatchSource, Sampling},
};

pub(crate) fn run(args: &SearchArgs) -> Result<()> {
    let device = device::set_up(&args.process)?;
    let wish = Wish {
        root: &args.run,
        data: args.data.as_deref(),
        config: &args.config,
        fold: args.fold,
        memory: memory::limit(&args.process),
    };
    let mut run = Run::open(&wish, &device::name(&device), |_| false)?;
    let (fold, settings) = (run.fold, run.config.settings.clone());
    if let Some(folder) = run.existing_folder() {
        let directory = folder.search(fold);
        let result = directory.join("architecture.json");
        match (result.is_file(), directory.exists(), args.resume) {
            (true, _, true) => {
                let found = Architecture::load(&result)?;
                report_found(&found, &run, &result, args.process.json);
                return Ok(());
            }
            (true, _, false) => {
                bad_input!("{} is finished: to search again, choose another --run", directory.display())
            }
            (false, true, false) => {
                bad_input!("{} was interrupted: go on with --resume", directory.display())
            }
            (false, _, _) => {}
        }
    }

    check_precision("search", settings.search.precision, &device)?;
    let network = supernet_config(&run);
    network.check()?;
    let patch = run.plan.patch_size;
    let split = run.splits.fold(fold)?.clone();
    let largest = network.largest()?;
    let batch_size = settings.search.batch_size;
    let need = memory::Need::of(&largest, &run.plan, batch_size, settings.search.precision, &device);
    let left = memory::check(need, patch, batch_size, &args.process, &device)?;

    let mut cases = Cases::new(&mut run, &split.train, left)?;
    let train_a = cases.prepare(&run, &split.train_a)?;
    let train_b = cases.prepare(&run, &split.train_b)?;
    let sampling = Sampling {
        plan: &run.plan,
        batch_size: settings.search.batch_size,
        augmentation: settings.data.augmentation,
        seed: settings.seed,
    };
    let parts = vec![(Part::TrainA, train_a), (Part::TrainB, train_b.clone()), (Part::TrainBPlain, train_b)];
    let mut source = PatchSource::new(parts, sampling, &device)?;
    let mut net = Supernet::new(network, settings.seed, DType::F32, &device)?;

    let directory = run.folder()?.search(fold);
    let identity = BTreeMap::from([("task".into(), run.plan.dataset_name.clone()), ("fold".into(), fold.to_string())]);
    let options = RunOptions { directory: Some(directory.clone()), resume: args.resume, identity };
    let work = training::Work {
        epochs: settings.search.epochs,
        iterations_per_epoch: settings.search.iterations_per_epoch,
        warmup_epochs: settings.search.warmup_epochs,
        arch_steps: match settings.search.arch_batches {
            ArchBatches::AAndB => 2,
            ArchBatches::BOnly => 1,
        },
    };
    let mut reporter = training::Reporter::new("search", work, args.process.json);
    let found = search(&mut net, patch, &DiceCe::default(), &settings.search, &options, &mut source, &mut |event| {
        reporter.event(event, |row: &SearchRow| (row.mean_dice, widths_line(&row.blocks)));
        ControlFlow::Continue(())
    });
    drop(reporter);
    let mut architecture = found?;
    architecture.provenance.insert("fold".into(), fold.into());
    architecture.provenance.insert("mask".into(), json!(settings.network.mask));
    let result = directory.join("architecture.json");
    // The picture first: with architecture.json the search is finished.
    report::drawing::save(&architecture, patch, &directory.join("architecture.svg"))?;
    architecture.save(&result)?;
    report_found(&architecture, &run, &result, args.process.json);
    Ok(())
}

/// The search space that the plan and the settings span.
fn supernet_config(run: &Run) -> SupernetConfig {
    let network = &run.config.settings.network;
    SupernetConfig {
        in_channels: run.plan.modalities.len(),
        num_classes: run.plan.labels.len(),
        strides: run.plan.strides.clone(),
        kernels: run.plan.kernels.clone(),
        max_width: network.max_width,
        max_depth: network.max_depth,
        cap_stage: network.cap_stage,
        mask: network.mask,
        space: network.space,
    }
}

fn report_found(architecture: &Architecture, run: &Run, file: &Path, json: bool) {
    let patch = run.plan.patch_size;
    let cost = architecture.cost(patch);
    if json {
        let costs = json!({ "macs_per_patch": cost.macs, "parameters": cost.parameters });
        emit("architecture", &json!({ "file": file, "architecture": architecture, "cost": costs }));
    } else {
        say(&report::architecture::table(architecture, patch).render());
        say(&format!(
            "{:.2} M parameters, {:.2} G multiply-adds per patch\n{}\n",
            cost.parameters as f64 / 1e6,
            cost.macs as f64 / 1e9,
            file.display()
        ));
    }
}
