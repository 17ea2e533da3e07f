//! `adw postprocess`: find the components whose removal improves predictions.

use anyhow::{Context, Result};
use msd_data::{Positions, Postprocessing};

use crate::{
    args::PostprocessArgs, device, failure::bad_input, memory, report::progress::say, run_folder::check_text_output,
};

pub(crate) fn run(args: &PostprocessArgs) -> Result<()> {
    device::set_threads(&args.process)?;
    for (option, folder) in
        args.predictions.iter().map(|folder| ("--predictions", folder)).chain([("--references", &args.references)])
    {
        if !folder.is_dir() {
            bad_input!("{option} {}: no such folder", folder.display());
        }
    }
    check_text_output(&args.output, b'{')?;
    let (positions, memory) = (Positions::ignored_if(args.ignore_positions), memory::limit(args.memory));
    let found = Postprocessing::find(&args.predictions, &args.references, positions, memory)?;
    found.postprocessing.save(&args.output)?;
    if args.process.json {
        say(&format!("{}\n", serde_json::to_string(&found)?));
        return Ok(());
    }
    for (label, [before, after]) in &found.dice {
        say(&format!("label {label}: Dice {before:.4} before, {after:.4} after\n"));
    }
    let kept = serde_json::to_string(&found.postprocessing.keep_largest).context("the steps as JSON")?;
    let what = if found.postprocessing.keep_largest.is_empty() {
        "no step helps, everything is kept".to_owned()
    } else {
        format!("keep the largest component of {kept}")
    };
    say(&format!("{what}: {}\n", args.output.display()));
    Ok(())
}
