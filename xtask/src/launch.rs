//! Builds `adw` in release mode and hands a command line over to it.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    cuda::{self, Cuda},
    failure::UsageError,
    workspace::{cargo, workspace},
};

/// Commands of `adw`, which `cargo xtask` builds and starts.
pub(crate) const ADW_COMMANDS: [&str; 19] = [
    "download",
    "phantom",
    "check",
    "plan",
    "run",
    "search",
    "retrain",
    "crossval",
    "sweep",
    "rank",
    "predict",
    "submit",
    "postprocess",
    "evaluate",
    "report",
    "watch",
    "export",
    "import",
    "doctor",
];

/// Commands that need a build with CUDA: those that run networks, and `doctor`, which says what they would run on.
const NETWORK_COMMANDS: [&str; 9] =
    ["run", "search", "retrain", "crossval", "sweep", "rank", "predict", "submit", "doctor"];

/// Builds `adw` and becomes that program, with `arguments` as they are. Datasets and runs are those of the workspace
/// wherever `cargo xtask` is called from, unless the environment names other folders.
///
/// # Errors
/// An unknown command, or a build that fails.
pub(crate) fn hand_over(arguments: &[OsString]) -> Result<ExitCode> {
    let command = arguments.first().and_then(|command| command.to_str()).unwrap_or_default();
    if !ADW_COMMANDS.contains(&command) {
        bail!(UsageError(format!("unknown command {command:?}: `cargo xtask --help` lists them")));
    }
    let cuda = if NETWORK_COMMANDS.contains(&command) { cuda::choose(device(arguments).as_deref())? } else { None };
    let mut adw = Command::new(build(cuda.as_ref())?);
    if let Some(cuda) = &cuda {
        cuda.run(&mut adw)?;
    }
    for (variable, folder) in [("ADW_DATA", "data"), ("ADW_RUNS", "runs")] {
        if env::var_os(variable).is_none() {
            let folder = workspace().join(folder);
            // Shorter in messages.
            let below = env::current_dir().ok().and_then(|here| Some(folder.strip_prefix(here).ok()?.to_owned()));
            adw.env(variable, below.unwrap_or(folder));
        }
    }
    adw.args(arguments);
    become_process(adw)
}

/// Value of the last `--device` among the arguments.
fn device(arguments: &[OsString]) -> Option<String> {
    let text = |argument: &OsString| argument.to_str().map(str::to_owned);
    let next = arguments.iter().skip(1).map(Some).chain([None]);
    let values = arguments.iter().zip(next).filter_map(|(argument, next)| match argument.to_str()? {
        "--device" => next.and_then(text),
        argument => argument.strip_prefix("--device=").map(str::to_owned),
    });
    values.last()
}

/// Builds `adw` for the CPU, and returns the binary's path.
pub(crate) fn build_adw() -> Result<PathBuf> {
    build(None)
}

/// Builds `adw`, and returns the binary's path as cargo reports it.
fn build(cuda: Option<&Cuda>) -> Result<PathBuf> {
    let mut cargo = cargo();
    cargo.current_dir(workspace()).args(["build", "--release", "--package", "adw-cli", "--bin", "adw"]);
    if let Some(cuda) = cuda {
        cuda.build(&mut cargo)?;
    }
    let failure = match cuda {
        Some(_) => "adw does not build with CUDA; build it without by --device cpu",
        None => "adw does not build",
    };
    built_program(&mut cargo, "adw-cli", "adw", failure)
}

/// Runs a build of cargo and returns the path of the program that it made of a package's target. `failure`: the error of a
/// build that fails.
pub(crate) fn built_program(cargo: &mut Command, package: &str, target: &str, failure: &str) -> Result<PathBuf> {
    let output = cargo
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("{failure}");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut programs = text.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let wanted = message["target"]["name"] == target && message["package_id"].as_str()?.contains(package);
        Some(PathBuf::from(wanted.then(|| message["executable"].as_str())??))
    });
    programs.next_back().with_context(|| format!("cargo built no program {target}"))
}

/// Replaces this process, so that signals and the exit code are those of the program. Its messages show `cargo xtask` as
/// the command to type.
#[cfg(unix)]
fn become_process(mut command: Command) -> Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    let program = command.get_program().to_owned();
    Err(command.arg0("cargo xtask").exec())
        .with_context(|| format!("cannot start {}", Path::new(OsStr::new(&program)).display()))
}

#[cfg(not(unix))]
fn become_process(mut command: Command) -> Result<ExitCode> {
    let status = command.status().context("cannot start adw")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_device_counts_in_either_spelling() {
        let device = |line: &str| device(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert_eq!(device("search hippocampus --device cuda:1").as_deref(), Some("cuda:1"));
        assert_eq!(device("search --device=cpu --set a=b").as_deref(), Some("cpu"));
        assert_eq!(device("search --device cpu --device auto").as_deref(), Some("auto"));
        assert_eq!(device("search --device"), None);
        assert_eq!(device("search"), None);
    }
}
