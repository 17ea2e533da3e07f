//! `cargo xtask search|retrain`: build `adw` in release mode and launch it on explicit paths.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    DataArgs, PassThrough, Reported, RetrainArgs, SearchArgs, UsageError,
    cuda::{self, Cuda},
    dataset::{self, Located, Origin, locate, workspace},
    runs::{Run, SearchState, new_run, newest_first},
};

/// The run that a command works on.
#[derive(Debug, PartialEq, Eq)]
struct Choice {
    run: PathBuf,
    /// Of the search found there; without one it is for `adw` to say.
    fold: Option<u32>,
    resume: bool,
}

/// `cargo xtask search`
pub(crate) fn search(args: &SearchArgs) -> Result<ExitCode> {
    let located = locate(&args.task, &args.data)?;
    let preset = args.preset.as_deref().unwrap_or("quick");
    let choice = match &args.run {
        Some(run) => Choice { run: run.clone(), fold: args.pass.fold, resume: args.resume },
        None => choose_search(args, &workspace().join("runs").join(&located.task), preset)?,
    };
    let adw = Program::build(args.pass.device.as_deref())?;
    provide(&located, &args.data, adw.command()?)?;
    let mut command = adw.command()?;
    command.arg("search").arg("--data").arg(&located.folder);
    command.arg("--run").arg(&choice.run);
    // A run that is there has its settings already; a preset that is asked for is compared with them.
    if args.preset.is_some() || !choice.run.join("config.toml").is_file() {
        command.arg("--preset").arg(preset);
    }
    if choice.resume {
        command.arg("--resume");
    }
    command.args(pass_through(&args.pass, choice.fold));
    become_process(command)
}

/// A new run; with `--resume` the newest interrupted search, else the newest finished one, whose result `adw` shows.
fn choose_search(args: &SearchArgs, task_runs: &Path, preset: &str) -> Result<Choice> {
    let wanted = args.pass.fold;
    let runs = newest_first(task_runs)?;
    let interrupted = |run: &Run| {
        let fold = run.find(wanted, SearchState::Interrupted);
        // A run may have been stopped before its search left anything.
        fold.map(Some).or(run.is_untouched().then_some(wanted))
    };
    let finished = |run: &Run| run.find(wanted, SearchState::Finished).map(Some);
    let search = |states: &dyn Fn(&Run) -> Option<Option<u32>>| {
        runs.iter().find_map(|run| states(run).map(|fold| (run.path.clone(), fold)))
    };
    if args.resume {
        if let Some((run, fold)) = search(&interrupted).or_else(|| search(&finished)) {
            eprintln!("taking up {}", shown(&run));
            return Ok(Choice { run, fold, resume: true });
        }
        eprintln!("note: there is no search to resume in {}: this starts one", shown(task_runs));
    } else if let Some(run) = runs.first()
        && let Some(fold) = run.find(wanted, SearchState::Interrupted)
    {
        eprintln!(
            "note: the search in {} (fold {fold}) was interrupted; this starts a new one. To go on with the old one:\n      \
             cargo xtask search {} --resume",
            shown(&run.path),
            args.task
        );
    }
    Ok(Choice { run: new_run(task_runs, preset)?, fold: wanted, resume: false })
}

/// `cargo xtask retrain`
pub(crate) fn retrain(args: &RetrainArgs) -> Result<ExitCode> {
    let (run, fold) = match &args.run {
        Some(run) => (run.clone(), args.pass.fold),
        None => choose_retrain(args)?,
    };
    // The run knows its data's place; a place named here is for data that moved.
    let moved = if args.data.data.is_some() {
        let located = locate(&args.task, &args.data)?;
        Some(located.folder)
    } else {
        None
    };
    let mut command = Program::build(args.pass.device.as_deref())?.command()?;
    command.arg("retrain").arg("--run").arg(run);
    let number = |value: Option<usize>| value.map(|value| value.to_string().into());
    let options: [(&str, Option<OsString>); 5] = [
        ("--data", moved.map(Into::into)),
        ("--architecture", args.architecture.clone().map(Into::into)),
        ("--uniform-width", number(args.uniform_width)),
        ("--uniform-depth", number(args.uniform_depth)),
        ("--name", args.name.clone().map(Into::into)),
    ];
    for (option, value) in options {
        if let Some(value) = value {
            command.arg(option).arg(value);
        }
    }
    if args.resume {
        command.arg("--resume");
    }
    command.args(pass_through(&args.pass, fold));
    become_process(command)
}

/// The newest run of the task with a finished search (of the fold asked for), and that fold.
fn choose_retrain(args: &RetrainArgs) -> Result<(PathBuf, Option<u32>)> {
    let data = DataArgs { offline: false, ..args.data.clone() };
    let task = locate(&args.task, &data)?.task;
    let task_runs = workspace().join("runs").join(&task);
    let runs = newest_first(&task_runs)?;
    let wanted = args.pass.fold;
    // With an architecture of one's own, any run says what the data and the preset are.
    if let Some(run) = runs.first()
        && (args.architecture.is_some() || args.uniform_width.is_some())
    {
        eprintln!("taking up {}", shown(&run.path));
        return Ok((run.path.clone(), wanted));
    }
    let finished = |run: &Run| run.find(wanted, SearchState::Finished);
    if let Some(first) = runs.first()
        && finished(first).is_none()
    {
        let unfinished = [
            (SearchState::Running, "is still running".to_owned()),
            (
                SearchState::Interrupted,
                format!("was interrupted; go on with it: cargo xtask search {} --resume", args.task),
            ),
        ];
        let state = unfinished.iter().find(|(state, _)| first.find(wanted, *state).is_some());
        if let Some((_, what)) = state {
            eprintln!("note: the newest search, {}, {what}", shown(&first.path));
        }
    }
    let Some((run, fold)) = runs.iter().find_map(|run| finished(run).map(|fold| (run, fold))) else {
        let fold = wanted.map_or(String::new(), |fold| format!(" of fold {fold}"));
        let problem =
            format!("no finished search{fold} in {}: run `cargo xtask search {}`", task_runs.display(), args.task);
        return Err(UsageError(problem).into());
    };
    eprintln!("taking up {}", shown(&run.path));
    Ok((run.path.clone(), Some(fold)))
}

/// Makes the dataset's folder exist.
pub(crate) fn provide(located: &Located, data: &DataArgs, mut adw: Command) -> Result<()> {
    match &located.origin {
        Origin::Present => Ok(()),
        Origin::Download(manifest, root) => dataset::fetch(manifest, root, data.mirror.as_deref()).map(drop),
        Origin::Phantom => {
            eprintln!("making the phantom dataset in {}", shown(&located.folder));
            let status = adw
                // Small enough for a search in a minute or two, large enough for three poolings.
                .args(["phantom", "--shape", "24", "32", "24"])
                .arg("--output")
                .arg(&located.folder)
                .stdout(Stdio::null())
                .status()
                .context("cannot start adw")?;
            if !status.success() {
                let code = status.code().and_then(|code| u8::try_from(code).ok());
                return Err(Reported(code.unwrap_or(1)).into());
            }
            Ok(())
        }
    }
}

/// A build of `adw`, with CUDA or without.
struct Program {
    path: PathBuf,
    cuda: Option<Cuda>,
}

impl Program {
    /// For what `--device` says.
    fn build(device: Option<&str>) -> Result<Self> {
        let cuda = cuda::choose(device)?;
        let path = build(cuda.as_ref())?;
        Ok(Self { path, cuda })
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new(&self.path);
        if let Some(cuda) = &self.cuda {
            cuda.run(&mut command)?;
        }
        Ok(command)
    }
}

/// Builds `adw` in release mode for the CPU, and returns the binary's path.
pub(crate) fn build_adw() -> Result<PathBuf> {
    build(None)
}

/// The path of what was built, wherever cargo is configured to put it.
fn build(cuda: Option<&Cuda>) -> Result<PathBuf> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace()).args(["build", "--release", "--package", "adw-cli", "--bin", "adw"]);
    if let Some(cuda) = cuda {
        cuda.build(&mut cargo)?;
    }
    let output = cargo
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        if cuda.is_some() {
            bail!("adw does not build with CUDA; --device cpu does without");
        }
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

fn pass_through(pass: &PassThrough, fold: Option<u32>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    let mut option = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            arguments.extend([name.into(), value.into()]);
        }
    };
    option("--fold", fold.map(|fold| fold.to_string()));
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
    env::current_dir().ok().and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path).display()
}

/// Replaces this process, so that signals and the exit code are the child's own.
#[cfg(unix)]
fn become_process(mut command: Command) -> Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    let program = command.get_program().to_owned();
    Err(command.exec()).with_context(|| format!("cannot start {}", Path::new(OsStr::new(&program)).display()))
}

#[cfg(not(unix))]
fn become_process(mut command: Command) -> Result<ExitCode> {
    let status = command.status().context("cannot start adw")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn resume_takes_the_interrupted_search_then_the_finished_one_then_a_new_run() {
        let dir = tempfile::tempdir().expect("a folder");
        let args = SearchArgs {
            task: "phantom".into(),
            data: DataArgs::default(),
            preset: None,
            run: None,
            resume: true,
            pass: PassThrough::default(),
        };
        let choose = || choose_search(&args, dir.path(), "quick").expect("a choice");
        let choice = |name: &str, fold, resume| Choice { run: dir.path().join(name), fold, resume };
        assert_eq!(choose(), choice("quick-001", None, false));

        let run = dir.path().join("quick-001");
        fs::create_dir(&run).expect("a run");
        fs::write(run.join("config.toml"), "").expect("a config");
        assert_eq!(choose(), choice("quick-001", None, true), "not yet begun");

        for fold in [1, 3] {
            let fold = run.join(format!("search/fold_{fold}"));
            fs::create_dir_all(&fold).expect("a search");
            fs::write(fold.join("architecture.json"), "{}").expect("a result");
        }
        assert_eq!(choose(), choice("quick-001", Some(1), true), "finished");

        fs::remove_file(run.join("search/fold_3/architecture.json")).expect("it was there");
        assert_eq!(choose(), choice("quick-001", Some(3), true), "interrupted");
    }
}
