//! `adw evaluate`: score label maps against references.

use anyhow::Result;
use msd_data::{EvaluationOptions, Positions, evaluate_folder};

use crate::{
    args::EvaluateArgs,
    device,
    failure::bad_input,
    memory,
    report::{metrics, progress::say},
    run_folder::check_text_output,
};

pub(crate) fn run(args: &EvaluateArgs) -> Result<()> {
    device::set_threads(&args.process)?;
    if !(args.tolerance_mm >= 0.0 && args.tolerance_mm.is_finite()) {
        bad_input!("--tolerance-mm {}: expected a length of at least 0", args.tolerance_mm);
    }
    for (option, folder) in [("--predictions", &args.predictions), ("--references", &args.references)] {
        if !folder.is_dir() {
            bad_input!("{option} {}: no such folder", folder.display());
        }
    }
    if let Some(output) = &args.output {
        check_text_output(output, b'{')?;
    }
    let options = EvaluationOptions {
        tolerance_mm: args.tolerance_mm,
        positions: Positions::ignored_if(args.ignore_positions),
        memory: memory::limit(args.memory),
        ..EvaluationOptions::default()
    };
    let report = evaluate_folder(&args.predictions, &args.references, &options)?;
    if let Some(output) = &args.output {
        report.save(output)?;
    }
    if args.process.json {
        say(&format!("{}\n", serde_json::to_string(&report)?));
    } else {
        say(&metrics::table(&report, &[]));
    }
    Ok(())
}
