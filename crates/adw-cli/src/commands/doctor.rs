//! `adw doctor`: what this machine offers, what would be used, and why.

use std::{env, path::Path};

use adw_cuda::device::{has_cuda, has_cudnn, open};
use adw_supernet::Precision;
use adw_tensor_ops::InstructionSet;
use anyhow::Result;
use serde_json::{Map, Value};

use crate::{
    args::DoctorArgs,
    batch_job, device,
    host_memory::{self, Limit},
    report::{progress::say, table::Table},
    run_folder::check_writable,
    runs::runs_root,
    task::data_root,
};

pub(crate) fn run(args: &DoctorArgs) -> Result<()> {
    device::set_threads(&args.process)?;
    let findings = findings()?;
    if args.process.json {
        let object: Map<String, Value> =
            findings.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        say(&format!("{}\n", Value::Object(object)));
        return Ok(());
    }
    let mut table = Table::of_text(["adw", env!("CARGO_PKG_VERSION")]);
    for (name, value) in findings {
        table.row([name, &value]);
    }
    say(&table.render());
    Ok(())
}

fn findings() -> Result<Vec<(&'static str, String)>> {
    let cores = device::cores();
    let gb = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), |bytes| format!("{:.1} GB", bytes as f64 / 1e9));
    let bf16 = if Precision::has_matrix_unit() {
        "precision = \"bf16\" uses the matrix unit (AMX), about twice as fast"
    } else {
        "no matrix unit (Intel AMX, under Linux): precision = \"bf16\" rounds factors, at about the cost of full"
    };
    // Control groups without a limit give one that no machine has.
    let limit = match host_memory::least_limit().filter(|limit| limit.left < 1 << 50) {
        Some(Limit { left, origin }) => format!("{}: what {origin} leaves", gb(Some(left))),
        None => "none set".to_owned(),
    };
    let of_job = if batch_job::cores().is_some() { " (SLURM_CPUS_PER_TASK)" } else { "" };
    Ok(vec![
        ("processor", device::processor()),
        (
            "threads",
            format!(
                "{} of {cores} cores{of_job}; --threads takes fewer, with the same results",
                rayon::current_num_threads()
            ),
        ),
        ("vectors", format!("{:?}, the widest that this processor and this program have", InstructionSet::detect())),
        ("bf16", bf16.to_owned()),
        (
            "memory",
            format!(
                "{} available: work that needs more is refused, cases that do not fit go to files",
                gb(host_memory::available_bytes())
            ),
        ),
        ("memory limit", limit),
        ("CUDA", cuda()),
        ("datasets", folder(&data_root(None)?, "ADW_DATA")),
        ("runs", folder(&runs_root(), "ADW_RUNS")),
    ])
}

/// State of CUDA, and the device that `--device auto` takes.
fn cuda() -> String {
    if !has_cuda() {
        return "not in this build, auto takes the cpu: build with `cargo xtask search` where a GPU is, or --features cuda".to_owned();
    }
    let cudnn = if has_cudnn() { "with cuDNN" } else { "without cuDNN" };
    match open(0) {
        Ok(device) => format!("{cudnn}; auto takes {}", device::describe(&device)),
        Err(error) => format!("{cudnn}, but no device: auto takes the cpu ({error})"),
    }
}

/// State of a folder that may be set by a variable.
fn folder(path: &Path, variable: &str) -> String {
    let is_set = env::var_os(variable).is_some_and(|value| !value.is_empty());
    let origin = if is_set { format!("from ${variable}") } else { format!("${variable} is not set") };
    let state = match check_writable(path) {
        Ok(()) if path.is_dir() => "writable".to_owned(),
        Ok(()) => "will be created".to_owned(),
        Err(error) => format!("cannot be written to: {error:#}"),
    };
    format!("{}, {origin}, {state}", path.display())
}
