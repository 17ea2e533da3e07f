//! `adw report`: the report of a run or of a sweep.

use anyhow::Result;
use serde_json::json;

use crate::{
    args::ReportArgs,
    device,
    report::{
        html,
        progress::{emit, say},
    },
    run_folder::{RunFolder, check_text_output},
    sweep::{plan::Sweep, summary},
};

pub(crate) fn run(args: &ReportArgs) -> Result<()> {
    device::set_threads(&args.process)?;
    if let Some(output) = &args.output {
        check_text_output(output, b'<')?;
    }
    let (root, output) = (&args.run, args.output.as_deref());
    let path = if root.is_file() {
        summary::report(&Sweep::open(root)?, output)?
    } else if !RunFolder::exists(root) && root.join("tasks").is_dir() {
        summary::report(&Sweep::in_folder(root)?, output)?
    } else {
        html::write(root, output)?
    };
    if args.process.json {
        emit("report", &json!({ "file": path }));
    } else {
        say(&format!("{}\n", path.display()));
    }
    Ok(())
}
