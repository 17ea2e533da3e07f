//! Work on one task of a sweep, in this process.

use std::{env, thread, time::Duration};

use adw_supernet::Architecture;
use anyhow::Result;
use clap::Parser;
use msd_data::{Dataset, Plan};

use super::{
    config::Arm,
    plan::{Cell, Sweep, Task},
    state::{Attempt, Claim, State, unix_s},
};
use crate::{
    architecture_choice::architecture_in,
    args::{Cli, Command, ConfigArgs, DatasetArgs, FetchArgs, Stage, SweepWorkArgs},
    child::Arguments,
    commands::{retrain, search},
    dataset_folder,
    failure::{BadInput, bad_input, one_line},
    interrupt, memory,
    report::{html, progress::note},
    run_config::RunConfig,
    task::Task as DatasetTask,
};

/// Does the task of the command line, unless it is done.
///
/// # Errors
/// Another process works on it, a task that it needs is not done; those of the work.
pub(crate) fn work(args: &SweepWorkArgs) -> Result<()> {
    let sweep = Sweep::open_or_create(&args.sweep)?;
    let task = chosen(&sweep, args)?;
    interrupt::is_repeated();
    for &needed in &task.after {
        wait_for(&sweep, &sweep.tasks[needed], args)?;
    }
    let Some(claim) = Claim::take(&sweep, task)? else {
        bad_input!("{} is in use by another process", task.name);
    };
    if sweep.is_done(task) {
        if sweep.was_cut_short(task) {
            if let Some(cell) = task.cell {
                html::write(&sweep.run(task.dataset, cell), None)?;
            }
            claim.record(&Attempt::Finished { unix_s: unix_s() })?;
        }
        note(&format!("{} is done", task.name));
        return Ok(());
    }
    claim.record(&Attempt::started())?;
    let result = execute(&sweep, task, args);
    match &result {
        Ok(()) => claim.record(&Attempt::Finished { unix_s: unix_s() })?,
        // Without a last line, the attempt counts as interrupted.
        Err(error) if matches!(error.downcast_ref(), Some(adw_search::Error::Stopped { .. })) => {}
        Err(error) => claim.record(&Attempt::Failed { unix_s: unix_s(), message: one_line(error) })?,
    }
    result
}

/// Task of `--task`, or of the index that a batch system gives.
fn chosen<'a>(sweep: &'a Sweep, args: &SweepWorkArgs) -> Result<&'a Task> {
    if let Some(name) = &args.task {
        let found = sweep.tasks.iter().find(|task| task.name == *name);
        return found.ok_or_else(|| BadInput::new(format!("--task {name}: there is no such task")).into());
    }
    // Batch systems set the variable of an array to nothing or 0 in other jobs.
    let variables =
        [("SLURM_ARRAY_TASK_ID", 1), ("LSB_JOBINDEX", 1), ("PBS_ARRAY_INDEX", 1), ("JOB_COMPLETION_INDEX", 0)];
    let index = variables.iter().find_map(|(name, first)| {
        let text = env::var(name).ok()?;
        Some((name, text.parse::<usize>().ok()?.checked_sub(*first)?))
    });
    let Some((variable, index)) = index else {
        bad_input!(
            "no task is named: give --task, or set SLURM_ARRAY_TASK_ID, LSB_JOBINDEX, PBS_ARRAY_INDEX or JOB_COMPLETION_INDEX"
        );
    };
    if let Some(name) = &args.dataset
        && sweep.datasets.iter().all(|dataset| dataset.name != *name)
    {
        bad_input!("--dataset {name}: there is no such dataset");
    }
    let mut counted = sweep.tasks.iter().filter(|task| {
        let is_of = |name: &String| sweep.datasets[task.dataset].name == *name;
        args.stage.is_none_or(|stage| stage == task.stage) && args.dataset.as_ref().is_none_or(is_of)
    });
    let all = counted.clone().count();
    let found = counted.nth(index);
    found.ok_or_else(|| BadInput::new(format!("{variable}: there are {all} tasks")).into())
}

/// Waits for a task that another process works on or, with `--wait`, may work on later.
///
/// # Errors
/// It is not done and nobody works on it; with `--wait`, it will not be done.
fn wait_for(sweep: &Sweep, needed: &Task, args: &SweepWorkArgs) -> Result<()> {
    loop {
        match sweep.state(needed) {
            State::Done => return Ok(()),
            State::Running => {}
            State::Failed(message) => bad_input!("{} has failed: {message}", needed.name),
            _ if !args.wait => bad_input!("{} is not done: it comes first", needed.name),
            _ => {
                if let Some(obstacle) = sweep.obstacle(needed, args.stage) {
                    bad_input!("{} is not done and nobody works on it: {} comes first", obstacle.name, needed.name);
                }
            }
        }
        thread::sleep(Duration::from_secs(1));
    }
}

fn execute(sweep: &Sweep, task: &Task, args: &SweepWorkArgs) -> Result<()> {
    let Some(cell) = task.cell else { return prepare(sweep, task.dataset, args) };
    let arm = sweep.arm(cell);
    let mut settings = sweep.config.settings(arm, cell.seed);
    let arguments = Arguments::of(task.stage.name())
        .path("--run", Some(&sweep.run(task.dataset, cell)))
        .path("--data", Some(&sweep.datasets[task.dataset].folder))
        .path("--fingerprint", Some(&sweep.fingerprint(task.dataset)))
        .option("--fold", Some(cell.fold))
        .flag("--resume")
        .path("--scratch", args.scratch.scratch.as_deref())
        .resources(&args.device, args.memory, &args.process);
    if task.stage == Stage::Search {
        let line = arguments.config(&settings).line();
        return match Cli::try_parse_from(line).map(|cli| cli.command) {
            Ok(Command::Search(args)) => search::run(&args).map(drop),
            _ => unreachable!("the arguments are those of a search"),
        };
    }
    if arm.trains_found() {
        // The run has the others.
        settings = ConfigArgs { preset: None, set: vec![], ..settings };
    }
    settings.set.extend(arm.retrain_set.iter().cloned());
    let drawn = Arm { random: arm.random.map(|number| cell.draw(number)), ..arm.clone() };
    let baseline = drawn.baseline(cost_of_other(sweep, task.dataset, cell)?);
    let line = arguments.config(&settings).option("--name", arm.training_name()).option_list(baseline).line();
    match Cli::try_parse_from(line).map(|cli| cli.command) {
        Ok(Command::Retrain(args)) => retrain::run(&args),
        _ => unreachable!("the arguments are those of a training"),
    }
}

/// Multiply-adds of the network that sets the cost of a random one.
fn cost_of_other(sweep: &Sweep, dataset: usize, cell: Cell) -> Result<Option<f64>> {
    let Some(name) = &sweep.arm(cell).cost_of else { return Ok(None) };
    let Some(arm) = sweep.config.arms.iter().position(|arm| arm.name == *name) else {
        bad_input!("cost_of = {name:?}: there is no such arm");
    };
    let other = Cell { arm, ..cell };
    let found = Architecture::load(&architecture_in(&sweep.search(dataset, other)))?;
    let plan = Plan::load(&sweep.run(dataset, other).join("plan.json"))?;
    Ok(Some(found.cost(plan.patch_size).macs as f64))
}

/// Downloads a dataset if it is missing, and computes what all plans of it need.
fn prepare(sweep: &Sweep, dataset: usize, args: &SweepWorkArgs) -> Result<()> {
    let of_sweep = &sweep.datasets[dataset];
    crate::device::set_threads(&args.process)?;
    let named = DatasetArgs { task: Some(of_sweep.task.clone()), data: None };
    let folder = match DatasetTask::locate(&named)? {
        Some(task) => task.provide(&FetchArgs::default())?.to_owned(),
        None => of_sweep.folder.clone(),
    };
    let settings = sweep.config.settings(&sweep.config.arms[0], 0);
    let positions = RunConfig::from_args(&settings)?.settings.data.positions();
    let memory = memory::limit(args.memory);
    let checked = dataset_folder::check(&folder, positions, memory)?;
    let opened = Dataset { positions, ..dataset_folder::open(&folder)? };
    let found = dataset_folder::checked_fingerprint(&opened, checked.fingerprint, memory)?;
    if let Some(error) = checked.error {
        note(&format!("warning: {error}"));
    }
    let path = sweep.fingerprint(dataset);
    adw_files::create_folders(&sweep.folder.join("data"))?;
    Ok(found.save(&path)?)
}
