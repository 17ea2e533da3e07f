//! `adw evaluate`: score label maps against references.

use std::path::PathBuf;

use anyhow::Result;
use msd_data::{EvaluationOptions, Positions, Report, check::implausible_header, evaluate_folder, metrics::CaseReport};

use crate::{
    args::EvaluateArgs,
    device,
    failure::bad_input,
    memory,
    report::{
        metrics,
        progress::{note, say},
    },
    run_folder::check_text_output,
};

/// Notes the first pair of files whose headers are implausible: metrics in millimetres and positions rely on them.
fn note_headers(report: &Report) {
    let of_case = |case: &CaseReport| {
        let files = [&case.reference_file, &case.prediction_file];
        let of_file = |file: &&PathBuf| {
            let problems = implausible_header(file).unwrap_or_default().into_iter();
            problems.map(|problem| format!("{}: {problem}", file.display())).collect::<Vec<_>>()
        };
        files.iter().flat_map(of_file).collect::<Vec<_>>()
    };
    let mut found = report.metric_per_case.iter().map(of_case).filter(|found| !found.is_empty());
    let Some(first) = found.next() else { return };
    let others = match found.count() {
        0 => String::new(),
        n => format!(" (and {n} other cases have such headers)"),
    };
    for line in first {
        note(&format!("warning: {line}{others}"));
    }
}

/// Refuses options that name no folders.
pub(super) fn check_folders<'a>(options: impl IntoIterator<Item = (&'static str, &'a PathBuf)>) -> Result<()> {
    for (option, folder) in options {
        if !folder.is_dir() {
            let problem =
                if folder.exists() { "is not a folder; expected one with label maps" } else { "no such folder" };
            bad_input!("{option} {}: {problem}", folder.display());
        }
    }
    Ok(())
}

pub(crate) fn run(args: &EvaluateArgs) -> Result<()> {
    device::set_threads(&args.process)?;
    if !(args.tolerance_mm >= 0.0 && args.tolerance_mm.is_finite()) {
        bad_input!("--tolerance-mm {}: expected a length of at least 0", args.tolerance_mm);
    }
    check_folders([("--predictions", &args.predictions), ("--references", &args.references)])?;
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
    if !args.ignore_positions {
        note_headers(&report);
    }
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
