//! Command line as typed: one struct per command, made of groups of options that several commands share.

mod bench;
mod crossval;
mod data;
mod examples;
mod exchange;
mod groups;
mod models;
mod program;
mod runs;
mod sweep;

pub(crate) use bench::{BenchArgs, BenchStepArgs, Pass, Subject};
use clap::{Parser, Subcommand};
pub(crate) use crossval::{CrossvalArgs, SearchPer};
pub(crate) use data::{CheckArgs, DownloadArgs, PhantomArgs, PlanArgs};
pub(crate) use exchange::{ExportArgs, ImportArgs};
pub(crate) use groups::{
    ConfigArgs, Convolutions, DatasetArgs, DeviceArgs, FetchArgs, MemoryArgs, ProcessArgs, ScratchArgs,
};
pub(crate) use models::{DicomArgs, EvaluateArgs, ModelArgs, PostprocessArgs, PredictArgs, SubmitArgs};
pub(crate) use program::{CompletionsArgs, DoctorArgs, ManArgs};
pub(crate) use runs::{
    ArchitectureArgs, PlainNetwork, RankArgs, ReportArgs, RetrainArgs, RunArgs, SearchArgs, WatchArgs,
};
pub(crate) use sweep::{
    BatchSystemArgs, Stage, SweepAction, SweepArgs, SweepFileArgs, SweepRunArgs, SweepSubmitArgs, SweepWorkArgs,
};

/// Find, train and apply the 3D U-Net whose depth and width fit a segmentation dataset.
#[derive(Parser, Debug)]
#[command(version, max_term_width = 100, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const AFTER_HELP: &str = "\
TASK is a task of the Medical Segmentation Decathlon (braintumour heart liver hippocampus prostate lung pancreas \
hepaticvessel spleen colon), `phantom`, or the path of a dataset's folder. Datasets lie in `data/` or, if set, $ADW_DATA; \
search and retrain download a missing one. Runs are kept in `runs/TASK/` or, if set, $ADW_RUNS/TASK.

Exit code: 0; 2 for what you can put right, with one line on stderr (bad input, a full disk, results that stdout does not \
take; a reader that closes its pipe is no error); 128 + n after signal n; 1 for a mistake in the program.

Try it, without a download, in some minutes:  adw search && adw retrain";

/// Commands in the order in which a dataset goes through them.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Download, check and unpack tasks of the decathlon; an interrupted download is continued
    #[command(after_help = examples::DOWNLOAD)]
    Download(DownloadArgs),
    /// Write a synthetic dataset
    #[command(after_help = examples::PHANTOM)]
    Phantom(PhantomArgs),
    /// List every problem of a dataset, each with its remedy
    #[command(after_help = examples::CHECK)]
    Check(CheckArgs),
    /// Show patch size, poolings and normalisation planned for a dataset
    #[command(after_help = examples::PLAN)]
    Plan(PlanArgs),
    /// Check, search, retrain, score and report: all that a dataset needs, in one run
    #[command(after_help = examples::RUN)]
    Run(RunArgs),
    /// Search the architecture for a dataset
    #[command(after_help = examples::SEARCH)]
    Search(SearchArgs),
    /// Train the architecture that a search found, and score it on the fold's validation cases
    #[command(after_help = examples::RETRAIN)]
    Retrain(RetrainArgs),
    /// Score architectures with the shared weights of a search, without training them
    #[command(after_help = examples::RANK)]
    Rank(RankArgs),
    /// Search, train and score all folds, and decide the postprocessing on all cases
    #[command(after_help = examples::CROSSVAL)]
    Crossval(CrossvalArgs),
    /// Study datasets, folds, seeds and arms, on this machine or a cluster
    #[command(after_help = examples::SWEEP)]
    Sweep(SweepArgs),
    /// Segment images with trained models
    #[command(after_help = examples::PREDICT)]
    Predict(PredictArgs),
    /// Segment a dataset's test images and name the label maps as the decathlon's server expects
    #[command(after_help = examples::SUBMIT)]
    Submit(SubmitArgs),
    /// Test if keeping only the largest component improves predictions
    #[command(after_help = examples::POSTPROCESS)]
    Postprocess(PostprocessArgs),
    /// Score label maps against reference label maps
    #[command(after_help = examples::EVALUATE)]
    Evaluate(EvaluateArgs),
    /// Write a trained model for other programs
    #[command(after_help = examples::EXPORT)]
    Export(ExportArgs),
    /// Make the report of a run or a sweep: one HTML file with figures, tables and a slice viewer
    #[command(after_help = examples::REPORT)]
    Report(ReportArgs),
    /// Make a model of a network that nnU-Net v2 or the authors' AdwU-Net trained
    #[command(after_help = examples::IMPORT)]
    Import(ImportArgs),
    /// Show the progress of a run, also of one that another machine works on
    #[command(after_help = examples::WATCH)]
    Watch(WatchArgs),
    /// Show what this machine offers, what would be used, and why
    #[command(after_help = examples::DOCTOR)]
    Doctor(DoctorArgs),
    /// Print a script that completes commands and options in a shell
    #[command(after_help = examples::COMPLETIONS)]
    Completions(CompletionsArgs),
    /// Write manual pages
    #[command(after_help = examples::MAN)]
    Man(ManArgs),
    /// Time the program's work on this machine
    #[command(after_help = examples::BENCH)]
    Bench(BenchArgs),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn no_two_options_of_a_command_clash() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples_that_are_read() {
        let named =
            |parent: &str, command: &clap::Command| (format!("{parent} {}", command.get_name()), command.clone());
        let mut commands: Vec<_> = Cli::command().get_subcommands().map(|command| named("adw", command)).collect();
        for (name, command) in commands.clone() {
            commands.extend(command.get_subcommands().map(|part| named(&name, part)));
        }
        for (name, command) in commands.iter().filter(|(_, command)| command.get_name() != "help") {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let lines: Vec<&str> = help.lines().filter_map(|line| line.strip_prefix("  ")).collect();
            assert!(!lines.is_empty(), "{name}");
            for line in lines {
                assert!(line.len() < 98, "too long for a terminal: {line}");
                // Remarks stand three spaces behind the command, redirections are the shell's.
                let words = line.split("   ").next().and_then(|line| line.split(" >").next()).unwrap_or_default();
                let words = words.split(' ').map(|word| word.trim_matches('\''));
                let cli = Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
                drop(cli);
                assert!(line.starts_with(name), "{line}");
            }
        }
    }
}
