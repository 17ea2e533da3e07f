//! `adw check`: list every problem of a dataset.

use anyhow::Result;
use msd_data::{Positions, Problem, Severity, check_dataset};

use crate::{
    args::CheckArgs,
    device,
    failure::bad_input,
    memory,
    report::{
        plain::plain,
        progress::{emit, say},
    },
    task::dataset_folder,
};

pub(crate) fn run(args: &CheckArgs) -> Result<()> {
    device::set_threads(&args.process)?;
    let folder = dataset_folder(&args.dataset)?;
    let problems = check_dataset(&folder, Positions::ignored_if(args.ignore_positions), memory::limit(args.memory));
    for problem in &problems {
        if args.process.json {
            emit("problem", problem);
        } else {
            say(&format!("{}\n", plain(&problem.to_string())));
        }
    }
    let count = |severity| {
        let severe = |problem: &&Problem| problem.severity == severity;
        problems.iter().filter(severe).count()
    };
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let (folder, warned) = (folder.display(), plural(warnings, "warning"));
    if errors > 0 {
        bad_input!("{folder}: {} to put right, {warned}", plural(errors, "error"));
    }
    if !args.process.json {
        say(&format!("{folder}: sound, {warned}\n"));
    }
    Ok(())
}

fn plural(n: usize, what: &str) -> String {
    let s = if n == 1 { "" } else { "s" };
    format!("{n} {what}{s}")
}
