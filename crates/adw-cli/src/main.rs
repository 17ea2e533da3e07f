//! `adw`: find, train and apply the 3D U-Net whose depth and width fit a segmentation dataset.
#![deny(unsafe_code)]

mod architecture_choice;
mod args;
mod batch_job;
mod cases;
mod child;
mod commands;
mod dataset_folder;
mod device;
mod dicom;
mod digest;
mod download;
mod ensemble;
mod failure;
mod fold;
mod host_memory;
mod image;
mod interrupt;
mod memory;
mod model;
mod npz;
mod overrides;
mod phantom;
mod provenance;
mod ranks;
mod report;
mod run;
mod run_config;
mod run_folder;
mod runs;
mod segment;
mod source;
mod splits;
mod statistics;
mod sweep;
mod task;

use std::{env, panic, process::ExitCode};

use clap::Parser;

use crate::{
    args::{Cli, Command, Subject},
    report::progress::{mute, note, output_error, print_by},
};

fn main() -> ExitCode {
    // Before the first thread: those that start earlier have memory of their own.
    adw_tensor_ops::allocation::keep_freed_memory();
    limit_candle_threads();
    if let Err(error) = host_memory::check_room() {
        return exit_code(Err(error));
    }
    interrupt::catch_signals();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(message) if message.use_stderr() => {
            // Nothing is left to do if the message cannot be printed.
            let _ = message.print();
            return ExitCode::from(2);
        }
        Err(help) => {
            print_by(|| help.print());
            return exit_code(Ok(()));
        }
    };
    // A broken invariant is reported like any other failure: one line.
    panic::set_hook(Box::new(|info| {
        mute(false);
        note(&format!("error: internal: {}", info.to_string().split_whitespace().collect::<Vec<_>>().join(" ")));
    }));
    let code = match panic::catch_unwind(|| ranks::start(&cli.command).and_then(|()| execute(&cli.command))) {
        Ok(result) => exit_code(ranks::close(result)),
        Err(_panic) => {
            let _ = ranks::close(Err(anyhow::anyhow!("internal error")));
            ExitCode::FAILURE
        }
    };
    ranks::finish();
    code
}

/// Keeps candle from starting threads. Otherwise it adds and multiplies large tensors element by element in a pool of its own, of as
/// many threads as the machine has cores, whatever `--threads`, the batch system or control groups allow, and waits for them
/// actively. What takes time runs in rayon's threads instead.
#[expect(unsafe_code, reason = "candle reads its number of threads from the environment alone")]
fn limit_candle_threads() {
    const VARIABLE: &str = "CANDLE_NUM_THREADS";
    if env::var_os(VARIABLE).is_none() {
        // SAFETY: no other thread runs yet that could read or change the environment.
        unsafe { env::set_var(VARIABLE, "1") };
    }
}

fn execute(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Download(args) => commands::download::run(args),
        Command::Phantom(args) => commands::phantom::run(args),
        Command::Check(args) => commands::check::run(args),
        Command::Plan(args) => commands::plan::run(args),
        Command::Search(args) => commands::search::run(args).map(drop),
        Command::Retrain(args) => commands::retrain::run(args),
        Command::Rank(args) => commands::rank::run(args),
        Command::Crossval(args) => commands::crossval::run(args),
        Command::Sweep(args) => commands::sweep::run(args),
        Command::Predict(args) => commands::predict::run(args),
        Command::Submit(args) => commands::submit::run(args),
        Command::Postprocess(args) => commands::postprocess::run(args),
        Command::Evaluate(args) => commands::evaluate::run(args),
        Command::Export(args) => commands::export::run(args),
        Command::Run(args) => commands::run::run(args),
        Command::Watch(args) => commands::watch::run(args),
        Command::Doctor(args) => commands::doctor::run(args),
        Command::Completions(args) => commands::manual::completions(args),
        Command::Man(args) => commands::manual::pages(args),
        Command::Report(args) => commands::report::run(args),
        Command::Import(args) => commands::import::run(args),
        Command::Bench(args) => match &args.subject {
            Subject::Step(args) => commands::bench::step(args),
        },
    }
}

/// Reports how a command ended.
fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    if let Err(error) = result {
        if matches!(error.downcast_ref(), Some(adw_search::Error::Stopped { .. })) {
            interrupt::end_if_interrupted_after(ranks::finish);
        }
        if let Some(failure::Reported(code)) = error.downcast_ref() {
            return ExitCode::from(*code);
        }
        note(&format!("error: {}", failure::one_line(&error)));
        return ExitCode::from(failure::exit_code(&error));
    }
    match output_error() {
        None => ExitCode::SUCCESS,
        Some(error) => {
            note(&format!("error: stdout: {error}: what was to be printed there is incomplete"));
            ExitCode::from(2)
        }
    }
}
