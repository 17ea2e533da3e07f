//! `adw search`: find the architecture.

use std::path::{Path, PathBuf};

use adw_search::{Event, Part, RunOptions, SearchRow, config::CostConfig, search};
use adw_supernet::{Architecture, Supernet};
use anyhow::Result;
use candle_core::{DType, Device};
use msd_data::training_cases_bytes;
use serde_json::json;

use crate::{
    architecture_choice::{architecture_in, search_space},
    args::SearchArgs,
    cases::Cases,
    device,
    failure::{bad_input, program},
    fold::Fold,
    interrupt, memory, ranks,
    report::{
        self,
        forecast::Forecast,
        number::number,
        plain::quoted,
        progress::{emit, note, say},
        tensorboard::EventFile,
        training,
    },
    run::{Run, RunRequest},
    run_config::RunConfig,
    run_folder::{RunFolder, check_run, check_run_or_new},
    runs::{RunChoice, choose_for_search, task_runs},
    source::{PatchSource, Sampling},
    task::Task,
};

/// Searches, and returns the folder of the run and the fold.
pub(crate) fn run(args: &SearchArgs) -> Result<(PathBuf, usize)> {
    let device = device::set_up(&args.device, &args.process)?;
    let mut args = args.clone();
    ranks::join("search", &mut args.config, &mut args.run, &mut args.resume)?;
    let args = &args;
    let (choice, data) = choose_run(args)?;
    let request = RunRequest {
        root: &choice.root,
        data: data.as_deref(),
        config: &args.config,
        fold: choice.fold.map(Fold::Number),
        fingerprint: args.fetch.fingerprint.as_deref(),
        memory: memory::limit(args.memory),
    };
    let mut run = Run::open(&request, &device, |_| false)?;
    let fold = run.search_fold();
    if let Some(folder) = run.existing_folder() {
        let directory = folder.search(fold);
        let result = architecture_in(&directory);
        match (result.is_file(), directory.exists(), choice.resume) {
            (true, _, true) => {
                let found = Architecture::load(&result)?;
                report_found(&found, &run, &result, args.process.json);
                return Ok((run.root, fold));
            }
            (true, _, false) => {
                bad_input!(
                    "{} is finished: train what it found with `{} retrain --run {}`; to search again, choose another --run",
                    directory.display(),
                    program(),
                    quoted(&run.root)
                )
            }
            (false, true, false) => {
                bad_input!("{} was interrupted: continue it with --resume", directory.display())
            }
            (false, _, _) => {}
        }
    }
    search_run(args, &mut run, choice.resume, &device)?;
    Ok((run.root, fold))
}

/// Run of the search, and its dataset's folder unless that is the run's; a missing dataset is downloaded.
fn choose_run(args: &SearchArgs) -> Result<(RunChoice, Option<PathBuf>)> {
    let exists = args.run.as_ref().is_some_and(|root| RunFolder::exists(root));
    if !exists && !args.resume {
        // Mistakes in the arguments are found before a download, which may take hours.
        RunConfig::from_args(&args.config)?;
        args.run.as_deref().map(check_run_or_new).transpose()?;
    }
    args.run.as_deref().filter(|_| exists).map(check_run).transpose()?;
    let named = Task::locate(&args.dataset)?;
    let provide = |task: &Task| task.provide_unless(args.dry_run, &args.fetch).map(ToOwned::to_owned);
    let Some(root) = &args.run else {
        let task = named.map_or_else(phantom, Ok)?;
        let preset = args.config.preset.as_deref();
        let choice = choose_for_search(&task.name, &task_runs(&task.name), args.fold, preset, args.resume)?;
        let data = if choice.resume && !task.has_place { None } else { Some(provide(&task)?) };
        return Ok((choice, data));
    };
    let task = match named {
        None if args.resume || exists => None,
        None => Some(phantom()?),
        named => named,
    };
    let data = task.as_ref().map(provide).transpose()?;
    if args.resume && !exists && data.is_some() {
        note(&format!("no search to continue in {}: starting one", root.display()));
    }
    Ok((RunChoice { root: root.clone(), fold: args.fold, resume: args.resume }, data))
}

fn phantom() -> Result<Task> {
    note("no TASK is given: searching on the phantom dataset");
    Task::phantom()
}

/// Searches from the start or from the last checkpoint, and writes the architecture.
fn search_run(args: &SearchArgs, run: &mut Run, resume: bool, device: &Device) -> Result<()> {
    let (fold, mut settings) = (run.search_fold(), run.config.settings.clone());
    let (warmup, epochs) = (settings.search.warmup_epochs, settings.search.epochs);
    if warmup >= epochs {
        bad_input!("search.warmup_epochs = {warmup}: expected fewer than search.epochs = {epochs}: the others decide");
    }
    let network = search_space(&run.plan, &settings.network);
    network.check()?;
    let patch = run.plan.patch_size;
    settings.search.cost.as_ref().map_or(Ok(()), |cost| cost.check_for(&network, patch))?;
    let split = run.splits.fold(run.fold)?;
    let largest = network.largest()?;
    if let Some(cost) = &settings.search.cost {
        let smallest = network.smallest()?.cost(patch).get(cost.unit) as f64;
        let budget = cost.budget.of(largest.cost(patch).get(cost.unit));
        if smallest > budget {
            note(&format!(
                "warning: the smallest network of the search space costs {}, more than the budget of {}: set a larger one in search.cost",
                number(smallest),
                number(budget)
            ));
        }
    }
    let batch_size = *settings.search.batch_size.get_or_insert(run.plan.batch_size);
    ranks::check(batch_size)?;
    let need = memory::Need::new(&largest, &run.plan, batch_size, settings.search.precision, device);
    let left = memory::check(need, patch, batch_size, args.memory, device)?;
    let workload = training::Workload::of_search(&settings.search);
    if args.dry_run {
        let cases = training_cases_bytes(&run.dataset, &split.train, &run.plan)?;
        let net = Supernet::new(network, settings.seed, DType::F32, device)?;
        let sample = net.no_noise(1.0);
        let forecast = Forecast { run, workload, batch_size, architecture: &largest, need, left, cases };
        return forecast.print(device, args.process.json, |x| net.predict(x, &sample));
    }

    let mut cases = Cases::new(run, &split.train, left, &args.scratch)?;
    let train_a = cases.prepare(run, &split.train_a)?;
    let train_b = cases.prepare(run, &split.train_b)?;
    let sampling =
        Sampling { plan: &run.plan, batch_size, augmentation: settings.data.augmentation, seed: settings.seed };
    let parts = vec![(Part::TrainA, train_a), (Part::TrainB, train_b.clone()), (Part::TrainBPlain, train_b)];
    let mut source = PatchSource::new(parts, sampling, device)?;
    let space = network.clone();
    let mut net = Supernet::new(network, settings.seed, DType::F32, device)?;

    let directory = run.folder()?.search(fold);
    let identity = run.identity()?;
    let is_follower = ranks::is_follower();
    if !is_follower {
        ranks::lead(&run.root)?;
    }
    let options = RunOptions { ranks: ranks::shared(), directory: Some(directory.clone()), resume, identity };
    let mut reporter = training::Reporter::new("search", workload, args.process.json);
    let mut events = (!is_follower).then(|| EventFile::new(&directory));
    let mut on_event = |event: &Event<'_, SearchRow>| {
        reporter.event(event);
        if let (Event::Epoch(row), Some(events)) = (event, &mut events) {
            events.search(row, &space);
        }
        interrupt::stop()
    };
    let found = interrupt::stopping_itself(|| {
        search(&mut net, patch, &run.loss(), &settings.search, &options, &mut source, &mut on_event)
    });
    drop(reporter);
    let mut architecture = found?;
    if is_follower {
        return Ok(());
    }
    if let Some(cost) = &settings.search.cost {
        note_cost(&architecture, cost, cost.budget.of(largest.cost(patch).get(cost.unit)), patch);
    }
    architecture.provenance.insert("fold".into(), fold.into());
    architecture.provenance.insert("dataset".into(), run.dataset_digest().into());
    architecture.provenance.insert("mask".into(), json!(settings.network.mask));
    let result = architecture_in(&directory);
    // The picture first: with architecture.json the search is finished.
    report::drawing::save(&architecture, patch, &directory.join("architecture.svg"))?;
    architecture.save(&result)?;
    report::html::write_at_end(&run.root);
    report_found(&architecture, run, &result, args.process.json);
    Ok(())
}

/// Notes a found network that costs more than the budget, or less than it must spend.
fn note_cost(found: &Architecture, config: &CostConfig, budget: f64, patch: [usize; 3]) {
    let spent = found.cost(patch).get(config.unit) as f64;
    let least = config.at_least.unwrap_or(0.0) * budget;
    if spent > budget || spent < least {
        let remedy = if spent > budget { "a larger budget or weight" } else { "a smaller budget or at_least" };
        note(&format!(
            "warning: the found network costs {} and should cost {} to {}: no such network is among the 20,000 most probable \
             ones; try {remedy} in search.cost, or more epochs",
            number(spent),
            number(least),
            number(budget)
        ));
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
            "{} parameters, {} multiply-adds per patch\n{}\n",
            number(cost.parameters as f64),
            number(cost.macs as f64),
            file.display()
        ));
    }
}
