//! `adw phantom`: a synthetic dataset.

use std::fs;

use anyhow::{Context, Result};
use msd_data::{PhantomOptions, write_phantom};

use crate::{
    args::PhantomArgs,
    device,
    failure::bad_input,
    report::progress::say,
    run_folder::{Aside, check_writable},
};

pub(crate) fn run(args: &PhantomArgs) -> Result<()> {
    device::set_up_host(&args.process)?;
    let output = &args.output;
    if output.exists() && fs::read_dir(output).map_or(true, |mut entries| entries.next().is_some()) {
        bad_input!("--output {}: exists and is not empty", output.display());
    }
    check_writable(output)?;
    let options = PhantomOptions {
        num_cases: args.cases,
        num_test: args.test,
        shape: triple(&args.shape),
        spacing_mm: triple(&args.spacing_mm),
        num_labels: args.labels,
        num_modalities: args.modalities,
        seed: args.seed,
    };
    let aside = Aside::new(output)?;
    write_phantom(aside.path(), &options)?;
    aside.put_in_place()?;
    if args.process.json {
        let path = fs::canonicalize(output).context("the new dataset")?;
        say(&format!("{}\n", serde_json::json!({ "dataset": path, "cases": args.cases, "test": args.test })));
    } else {
        say(&format!("{}: {} cases with labels, {} without\n", output.display(), args.cases, args.test));
    }
    Ok(())
}

/// clap has counted them.
fn triple<T: Copy>(values: &[T]) -> [T; 3] {
    [values[0], values[1], values[2]]
}
