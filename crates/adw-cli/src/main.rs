//! `adw`: find, train and apply the 3D U-Net whose depth and width fit a segmentation dataset.
#![forbid(unsafe_code)]

mod args;
mod cases;
mod commands;
mod dataset_folder;
mod device;
mod download;
mod failure;
mod host_memory;
mod memory;
mod model;
mod overrides;
mod phantom;
mod report;
mod run;
mod run_config;
mod run_folder;
mod runs;
mod segment;
mod source;
mod splits;
mod task;

use std::{panic, process::ExitCode};

use clap::Parser;

use crate::args::{Cli, Command, Subject};

fn main() -> ExitCode {
    // clap prints its own message and exits with 2.
    let cli = Cli::parse();
    // A broken invariant is reported like any other failure: one line.
    panic::set_hook(Box::new(|info| {
        eprintln!("error: internal: {}", info.to_string().split_whitespace().collect::<Vec<_>>().join(" "));
    }));
    let result = panic::catch_unwind(|| match &cli.command {
        Command::Download(args) => commands::download::run(args),
        Command::Phantom(args) => commands::phantom::run(args),
        Command::Check(args) => commands::check::run(args),
        Command::Plan(args) => commands::plan::run(args),
        Command::Search(args) => commands::search::run(args),
        Command::Retrain(args) => commands::retrain::run(args),
        Command::Predict(args) => commands::predict::run(args),
        Command::Submit(args) => commands::submit::run(args),
        Command::Postprocess(args) => commands::postprocess::run(args),
        Command::Evaluate(args) => commands::evaluate::run(args),
        Command::Bench(args) => match &args.subject {
            Subject::Step(args) => commands::bench::step(args),
        },
    });
    match result {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            eprintln!("error: {}", failure::one_line(&error));
            ExitCode::from(failure::exit_code(&error))
        }
        Err(_panic) => ExitCode::FAILURE,
    }
}
