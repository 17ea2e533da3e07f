//! `adw report`: the report of a run.

use anyhow::Result;
use serde_json::json;

use crate::{
    args::ReportArgs,
    device,
    report::{
        html,
        progress::{emit, say},
    },
    run_folder::check_output,
};

pub(crate) fn run(args: &ReportArgs) -> Result<()> {
    device::set_threads(&args.process)?;
    if let Some(output) = &args.output {
        check_output(output)?;
    }
    let path = html::write(&args.run, args.output.as_deref())?;
    if args.process.json {
        emit("report", &json!({ "file": path }));
    } else {
        say(&format!("{}\n", path.display()));
    }
    Ok(())
}
