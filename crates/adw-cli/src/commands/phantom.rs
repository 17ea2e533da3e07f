//! `adw phantom`: write a synthetic dataset.

use std::fs;

use anyhow::{Context, Result};
use msd_data::PhantomOptions;

use crate::{
    args::PhantomArgs, device, failure::bad_input, phantom, report::progress::say, run_folder::is_empty_or_absent,
    task::default_phantom_folder,
};

pub(crate) fn run(args: &PhantomArgs) -> Result<()> {
    device::set_threads(&args.process)?;
    let output = match &args.output {
        Some(output) => output.clone(),
        None => default_phantom_folder()?,
    };
    if !is_empty_or_absent(&output) {
        bad_input!("--output {}: exists and is not empty", output.display());
    }
    let options = PhantomOptions {
        family: args.family.into(),
        num_cases: args.cases,
        num_test: args.test,
        shape: triple(&args.shape),
        spacing_mm: triple(&args.spacing_mm),
        num_labels: args.labels,
        num_modalities: args.modalities,
        seed: args.seed,
    };
    phantom::write(&output, &options)?;
    if args.process.json {
        let path = fs::canonicalize(&output).context("the new dataset")?;
        say(&format!("{}\n", serde_json::json!({ "dataset": path, "cases": args.cases, "test": args.test })));
    } else {
        say(&format!("{}: {} cases with labels, {} without\n", output.display(), args.cases, args.test));
    }
    Ok(())
}

/// The three values of an option with `num_args = 3`.
fn triple<T: Copy>(values: &[T]) -> [T; 3] {
    [values[0], values[1], values[2]]
}
