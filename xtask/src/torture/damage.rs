//! Damaged files: flipped bits and cuts.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::{
    fault::{Fault, Survival, TortureArgs, draw},
    fixture::{DATASET, Fixture},
    folders::copy_folder,
    program::{self, Ending},
    scenario::Scenario,
};

/// A kind of file, and the work that reads it.
#[derive(Clone, Copy, Debug)]
struct Target {
    name: &'static str,
    /// Path below the folder of the fault; `*` is the first file of a folder.
    file: &'static str,
    reader: Scenario,
    /// State in which the reader finds the folder.
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// Nothing but a copy of the dataset, and the finished run for a training.
    Fresh,
    /// Killed before that share of its file operations, in hundredths.
    Interrupted(u64),
    /// All undisturbed results.
    Finished,
}

const fn target(name: &'static str, file: &'static str, reader: Scenario, state: State) -> Target {
    Target { name, file, reader, state }
}

const SEARCHED: &str = "run/search/fold_0/checkpoint/latest.safetensors";

const BINARY: &[Target] = &[
    target("image", "Task00_Phantom/imagesTr/*", Scenario::Search, State::Fresh),
    target("labels", "Task00_Phantom/labelsTr/*", Scenario::Search, State::Fresh),
    target("test-image", "Task00_Phantom/imagesTs/*", Scenario::Predict, State::Fresh),
    target("model", "model.safetensors", Scenario::Predict, State::Fresh),
    target("exported-model", "model.safetensors", Scenario::Export, State::Fresh),
    target("probabilities", "predicted/phantom_005.npz", Scenario::Predict, State::Finished),
    target("search-checkpoint", SEARCHED, Scenario::Search, State::Interrupted(75)),
    target("initial-weights", SEARCHED, Scenario::Retrain, State::Fresh),
    target("ranking-weights", SEARCHED, Scenario::Rank, State::Fresh),
    target(
        "retrain-checkpoint",
        "run/retrain/fold_0/checkpoint/latest.safetensors",
        Scenario::Retrain,
        State::Interrupted(75),
    ),
    target(
        "sweep-checkpoint",
        "study/runs/phantom/found/seed_1/search/fold_0/checkpoint/latest.safetensors",
        Scenario::Sweep,
        State::Interrupted(60),
    ),
    target("prepared-case", "run/prepared/*", Scenario::SearchOnDisk, State::Interrupted(75)),
];

const TEXT: &[Target] = &[
    target("dataset", "Task00_Phantom/dataset.json", Scenario::Search, State::Fresh),
    target("architecture", "run/search/fold_0/architecture.json", Scenario::Retrain, State::Fresh),
    target("config", "run/config.toml", Scenario::Retrain, State::Fresh),
    target("plan", "run/plan.json", Scenario::Retrain, State::Fresh),
    target("splits", "run/splits.json", Scenario::Retrain, State::Fresh),
    target("history", "run/search/fold_0/history.jsonl", Scenario::Search, State::Interrupted(75)),
    target("ranking-config", "run/config.toml", Scenario::Rank, State::Fresh),
    target("reported-metrics", "run/retrain/fold_0/metrics.json", Scenario::Report, State::Fresh),
    target("reported-history", "run/retrain/fold_0/history.jsonl", Scenario::Report, State::Fresh),
    target("fingerprint", "run/fingerprint.json", Scenario::Report, State::Fresh),
    target("fold-metrics", "run/retrain/fold_1/metrics.json", Scenario::Crossval, State::Finished),
    target("sweep", "study.toml", Scenario::Sweep, State::Fresh),
    target("sweep-plan", "study/plan.json", Scenario::Sweep, State::Finished),
    target("sweep-task", "study/tasks/*", Scenario::Sweep, State::Finished),
    target("sweep-rows", "study/rows.jsonl", Scenario::Sweep, State::Finished),
    target("sweep-data", "study/data/phantom.json", Scenario::Sweep, State::Finished),
    target("manifest", "manifest.toml", Scenario::Download, State::Fresh),
];

pub(super) fn binary_files(fixture: &Fixture, args: &TortureArgs) -> Result<Vec<Fault>> {
    faults(fixture, args, BINARY, judge_binary)
}

pub(super) fn text_files(fixture: &Fixture, args: &TortureArgs) -> Result<Vec<Fault>> {
    faults(fixture, args, TEXT, |_, _, _, ending| {
        if ending.success() {
            // A changed number is a valid edit.
            return Ok(Survival::Unharmed);
        }
        ending.expect_error(2)?;
        Ok(Survival::Refused)
    })
}

/// The same results, or a refusal that names the damaged file.
fn judge_binary(fixture: &Fixture, target: Target, folder: &Path, ending: &Ending) -> Result<Survival> {
    if ending.success() {
        fixture.compare(target.reader, folder)?;
        return Ok(Survival::Unharmed);
    }
    ending.expect_error(2)?;
    let file = target.file.trim_end_matches('*');
    if !ending.stderr.contains(file) {
        bail!("the error does not name {file}: {}", ending.summary());
    }
    Ok(Survival::Refused)
}

type Judge = fn(&Fixture, Target, &Path, &Ending) -> Result<Survival>;

fn faults(fixture: &Fixture, args: &TortureArgs, targets: &'static [Target], judge: Judge) -> Result<Vec<Fault>> {
    let mut faults = Vec::new();
    for (kind, &target) in targets.iter().enumerate() {
        let template = template(fixture, target)?;
        for n in 0..target.reader.share(args.count(2, 14, 100)) {
            let (template, keys) = (template.clone(), [args.seed, 3, kind as u64, n as u64]);
            let name = format!("{}-{n}", target.name);
            let folder_name = format!("damage-{name}");
            let check = move |fixture: &Fixture| {
                let folder = fixture.root().join(&folder_name);
                copy_folder(&template, &folder, "")?;
                let file = find(&folder, target.file)?;
                let damage = damage(&file, &keys)?;
                let mut command = fixture.command_on(target.reader, &folder, target.state != State::Fresh);
                command.env("RUST_BACKTRACE", "0");
                let ending = program::run(command)?;
                let survival = judge(fixture, target, &folder, &ending).with_context(|| damage)?;
                fs::remove_dir_all(&folder)?;
                Ok(survival)
            };
            faults.push(Fault { name, check: Box::new(check) });
        }
    }
    Ok(faults)
}

/// Makes the folder that each fault of a target starts from.
fn template(fixture: &Fixture, target: Target) -> Result<PathBuf> {
    let name = format!("template-{}", target.name);
    let folder = fixture.prepare(target.reader, &name)?;
    copy_folder(&fixture.data(), &folder.join(DATASET), "")?;
    fs::copy(fixture.model(), folder.join("model.safetensors"))?;
    fixture.write_file_manifest(&folder)?;
    let percent = match target.state {
        State::Fresh => return Ok(folder),
        State::Finished => return copy_folder(&fixture.undisturbed(), &folder, "").map(|()| folder),
        State::Interrupted(percent) => percent,
    };
    let first = fixture.extent(target.reader).operations * percent / 100;
    // A file that is about to be replaced may be absent for a few operations.
    for operation in first..first + 10 {
        let attempt = fixture.root().join(format!("{name}-{operation}"));
        copy_folder(&folder, &attempt, "")?;
        let mut command = fixture.command_on(target.reader, &attempt, false);
        fixture.set_fault(&mut command, &format!("kill:{operation}"));
        let ending = Fixture::run_counted(command, &attempt)?;
        let was_killed = ending.signal == Some(9) || (target.reader.has_children() && !ending.success());
        if was_killed && find(&attempt, target.file).is_ok_and(|file| file.is_file()) {
            return Ok(attempt);
        }
    }
    bail!("{name}: there is no {} after a kill", target.file);
}

/// Path of a file; `*` at the end is the first name of that folder.
fn find(folder: &Path, file: &str) -> Result<PathBuf> {
    let Some(parent) = file.strip_suffix("/*") else { return Ok(folder.join(file)) };
    let parent = folder.join(parent);
    let mut names = Vec::new();
    for entry in fs::read_dir(&parent).with_context(|| parent.display().to_string())? {
        names.push(entry?.path());
    }
    names.sort();
    names.into_iter().next().with_context(|| format!("{} is empty", parent.display()))
}

/// Flips a bit or cuts the file, and returns a description.
fn damage(file: &Path, keys: &[u64; 4]) -> Result<String> {
    let mut bytes = fs::read(file).with_context(|| file.display().to_string())?;
    let [seed, campaign, kind, n] = *keys;
    let at = draw(&[seed, campaign, kind, n, 1], bytes.len() as u64) as usize;
    let what = if draw(&[seed, campaign, kind, n, 2], 5) == 0 {
        bytes.truncate(at);
        format!("{} cut to {at} bytes", file.display())
    } else {
        let bit = draw(&[seed, campaign, kind, n, 3], 8);
        bytes[at] ^= 1 << bit;
        format!("bit {bit} of byte {at} of {} flipped", file.display())
    };
    fs::write(file, bytes)?;
    Ok(what)
}
