//! `adw postprocess`: find the components whose removal improves predictions.

use anyhow::{Context, Result};
use msd_data::{Positions, Postprocessing};

use super::evaluate::check_folders;
use crate::{args::PostprocessArgs, device, memory, report::progress::say, run_folder::check_text_output};

pub(crate) fn run(args: &PostprocessArgs) -> Result<()> {
    device::set_threads(&args.process)?;
    let predictions = args.predictions.iter().map(|folder| ("--predictions", folder));
    check_folders(predictions.chain([("--references", &args.references)]))?;
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
