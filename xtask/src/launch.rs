//! `cargo xtask search|retrain`: build `adw` in release mode and launch it on explicit paths.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    DataArgs, PassThrough, RetrainArgs, SearchArgs, UsageError,
    dataset::{self, Located, Origin, locate, workspace},
    runs::{SearchState, new_run, newest_first},
};

/// `cargo xtask search`
pub(crate) fn search(args: &SearchArgs) -> Result<ExitCode> {
    let located = locate(&args.task, &args.data)?;
    let preset = args.preset.as_deref().unwrap_or("quick");
    let run = match &args.run {
        Some(run) => run.clone(),
        None => choose_search_run(args, &located.task, preset)?,
    };
    let adw = build_adw()?;
    provide(&located, &args.data, &adw)?;
    let mut command = Command::new(adw);
    command
        .arg("search")
        .arg("--data")
        .arg(&located.folder)
        .arg("--run")
        .arg(run);
    // A run that goes on has its preset already; one that is asked for by name is compared with it.
    if !args.resume || args.preset.is_some() {
        command.arg("--preset").arg(preset);
    }
    if args.resume {
        command.arg("--resume");
    }
    command.args(pass_through(&args.pass));
    become_process(command)
}

/// A new run, or with `--resume` the newest interrupted one.
fn choose_search_run(args: &SearchArgs, task: &str, preset: &str) -> Result<PathBuf> {
    let task_runs = workspace().join("runs").join(task);
    let fold = args.pass.fold;
    let runs = newest_first(&task_runs)?;
    if args.resume {
        let interrupted = |(_, state)| state == SearchState::Interrupted;
        return runs
            .iter()
            .find(|run| run.search(fold).is_some_and(interrupted))
            .map(|run| run.path.clone())
            .ok_or_else(|| {
                UsageError(format!(
                    "no interrupted search in {}: there is nothing to resume",
                    task_runs.display()
                ))
                .into()
            });
    }
    if let Some(run) = runs.first()
        && let Some((fold, SearchState::Interrupted)) = run.search(fold)
    {
        eprintln!(
            "note: the search in {} (fold {fold}) was interrupted; this starts a new one. To go on with the old one:\n      \
             cargo xtask search {} --resume",
            shown(&run.path),
            args.task
        );
    }
    new_run(&task_runs, preset)
}

/// `cargo xtask retrain`
pub(crate) fn retrain(args: &RetrainArgs) -> Result<ExitCode> {
    let run = match &args.run {
        Some(run) => run.clone(),
        None => newest_search(args)?,
    };
    // The run knows its data's place; a place named here is for data that moved.
    let moved = if args.data.data.is_some() {
        let located = locate(&args.task, &args.data)?;
        Some(located.folder)
    } else {
        None
    };
    let mut command = Command::new(build_adw()?);
    command.arg("retrain").arg("--run").arg(run);
    if let Some(folder) = moved {
        command.arg("--data").arg(folder);
    }
    if let Some(file) = &args.architecture {
        command.arg("--architecture").arg(file);
    }
    if args.resume {
        command.arg("--resume");
    }
    command.args(pass_through(&args.pass));
    become_process(command)
}

/// The newest run of the task with a finished search (of the fold asked for).
fn newest_search(args: &RetrainArgs) -> Result<PathBuf> {
    let task = locate(
        &args.task,
        &DataArgs {
            offline: false,
            ..args.data.clone()
        },
    )?
    .task;
    let task_runs = workspace().join("runs").join(&task);
    let runs = newest_first(&task_runs)?;
    // With an architecture of one's own, any run says what the data and the preset are.
    let usable = |state| state == SearchState::Finished || args.architecture.is_some();
    let newest = runs.iter().find(|run| {
        run.search(args.pass.fold)
            .is_some_and(|(_, state)| usable(state))
    });
    if let Some(first) = runs.first()
        && newest.is_none_or(|run| run.path != first.path)
        && let Some((_, state)) = first.search(args.pass.fold)
    {
        let (is, what) = match state {
            SearchState::Running => ("is still running", String::new()),
            _ => (
                "was interrupted",
                format!("; go on with it: cargo xtask search {} --resume", args.task),
            ),
        };
        eprintln!(
            "note: the newest search, {}, {is}{what}",
            shown(&first.path)
        );
    }
    let Some(run) = newest else {
        let fold = args
            .pass
            .fold
            .map_or(String::new(), |fold| format!(" of fold {fold}"));
        let problem = format!(
            "no finished search{fold} in {}: run `cargo xtask search {}`",
            task_runs.display(),
            args.task
        );
        return Err(UsageError(problem).into());
    };
    eprintln!("taking up {}", shown(&run.path));
    Ok(run.path.clone())
}

/// Makes the dataset's folder exist.
fn provide(located: &Located, data: &DataArgs, adw: &Path) -> Result<()> {
    match &located.origin {
        Origin::Present => Ok(()),
        Origin::Download(manifest, root) => {
            dataset::fetch(manifest, root, data.mirror.as_deref()).map(drop)
        }
        Origin::Phantom => {
            eprintln!("making the phantom dataset in {}", shown(&located.folder));
            let status = Command::new(adw)
                // Small enough for a search in a minute or two, large enough for three poolings.
                .args(["phantom", "--shape", "24", "32", "24"])
                .arg("--output")
                .arg(&located.folder)
                .stdout(Stdio::null())
                .status()
                .with_context(|| format!("cannot start {}", adw.display()))?;
            if !status.success() {
                bail!("adw phantom failed ({status})");
            }
            Ok(())
        }
    }
}

/// Builds `adw` in release mode and returns the binary's path, wherever cargo is configured to put it.
fn build_adw() -> Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(workspace())
        .args(["build", "--release", "--package", "adw-cli", "--bin", "adw"])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("adw does not build");
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            (message["target"]["name"] == "adw").then_some(())?;
            Some(PathBuf::from(message["executable"].as_str()?))
        })
        .next_back()
        .context("cargo built no adw binary")
}

fn pass_through(pass: &PassThrough) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    let mut option = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            arguments.extend([name.into(), value.into()]);
        }
    };
    option("--fold", pass.fold.map(|fold| fold.to_string()));
    option("--seed", pass.seed.map(|seed| seed.to_string()));
    option("--threads", pass.threads.map(|threads| threads.to_string()));
    option("--device", pass.device.clone());
    option("--memory", pass.memory.map(|gb| gb.to_string()));
    for assignment in &pass.set {
        option("--set", Some(assignment.clone()));
    }
    if pass.json {
        arguments.push("--json".into());
    }
    arguments.extend(pass.rest.iter().map(OsString::from));
    arguments
}

/// The path from where the person stands, if it lies below.
fn shown(path: &Path) -> std::path::Display<'_> {
    env::current_dir()
        .ok()
        .and_then(|here| path.strip_prefix(here).ok())
        .unwrap_or(path)
        .display()
}

/// Replaces this process, so that signals and the exit code are the child's own.
#[cfg(unix)]
fn become_process(mut command: Command) -> Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    let program = command.get_program().to_owned();
    Err(command.exec())
        .with_context(|| format!("cannot start {}", Path::new(OsStr::new(&program)).display()))
}

#[cfg(not(unix))]
fn become_process(mut command: Command) -> Result<ExitCode> {
    let status = command.status().context("cannot start adw")?;
    Ok(ExitCode::from(
        status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(1),
    ))
}
