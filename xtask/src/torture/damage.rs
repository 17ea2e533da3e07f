//! Damaged files: flipped bits and cuts.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::{
    fault::{Fault, Survival, TortureArgs, draw},
    fixture::{DATASET, Fixture, copy_folder},
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
}

const BINARY: &[Target] = &[
    Target { name: "image", file: "Task00_Phantom/imagesTr/*", reader: Scenario::Search, state: State::Fresh },
    Target { name: "labels", file: "Task00_Phantom/labelsTr/*", reader: Scenario::Search, state: State::Fresh },
    Target { name: "test-image", file: "Task00_Phantom/imagesTs/*", reader: Scenario::Predict, state: State::Fresh },
    Target { name: "model", file: "model.safetensors", reader: Scenario::Predict, state: State::Fresh },
    Target {
        name: "search-checkpoint",
        file: "run/search/fold_0/checkpoint/latest.safetensors",
        reader: Scenario::Search,
        state: State::Interrupted(75),
    },
    Target {
        name: "retrain-checkpoint",
        file: "run/retrain/fold_0/checkpoint/latest.safetensors",
        reader: Scenario::Retrain,
        state: State::Interrupted(75),
    },
    Target {
        name: "prepared-case",
        file: "run/prepared/*",
        reader: Scenario::SearchOnDisk,
        state: State::Interrupted(75),
    },
];

const TEXT: &[Target] = &[
    Target { name: "dataset", file: "Task00_Phantom/dataset.json", reader: Scenario::Search, state: State::Fresh },
    Target {
        name: "architecture",
        file: "run/search/fold_0/architecture.json",
        reader: Scenario::Retrain,
        state: State::Fresh,
    },
    Target { name: "config", file: "run/config.toml", reader: Scenario::Retrain, state: State::Fresh },
    Target { name: "plan", file: "run/plan.json", reader: Scenario::Retrain, state: State::Fresh },
    Target { name: "splits", file: "run/splits.json", reader: Scenario::Retrain, state: State::Fresh },
    Target {
        name: "history",
        file: "run/search/fold_0/history.jsonl",
        reader: Scenario::Search,
        state: State::Interrupted(75),
    },
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
        for n in 0..args.count(2, 20, 100) {
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
    let State::Interrupted(percent) = target.state else { return Ok(folder) };
    let first = fixture.extent(target.reader).operations * percent / 100;
    // A file that is about to be replaced may be absent for a few operations.
    for operation in first..first + 10 {
        let attempt = fixture.root().join(format!("{name}-{operation}"));
        copy_folder(&folder, &attempt, "")?;
        let mut command = fixture.command_on(target.reader, &attempt, false);
        fixture.set_fault(&mut command, &format!("kill:{operation}"));
        let ending = program::run(command)?;
        if ending.signal == Some(9) && find(&attempt, target.file).is_ok_and(|file| file.is_file()) {
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
