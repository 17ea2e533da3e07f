//! `cargo xtask torture`: the program under faults. It is killed at random and before single file operations, its writes, syncs and
//! renames fail, its streams are full or closed, it gets signals, its files are damaged. After each fault it is resumed, and
//! the results must be those of an undisturbed run, to the last bit. Needs Linux (`LD_PRELOAD`, `/dev/full`) and a C compiler.

mod connection;
mod damage;
mod fault;
mod fixture;
mod folders;
mod interrupt;
mod program;
mod scenario;
mod server;
mod soak;
mod study;

use std::{
    fs,
    process::ExitCode,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use anyhow::{Context, Result, bail};

pub(crate) use self::fault::TortureArgs;
use self::{
    fault::{Fault, Survival},
    fixture::Fixture,
};
use crate::{ci, failure::UsageError, launch::build_adw};

/// A kind of fault: its name, and a sentence for the table.
struct Campaign {
    name: &'static str,
    promise: &'static str,
    faults: fn(&Fixture, &TortureArgs) -> Result<Vec<Fault>>,
}

const CAMPAIGNS: &[Campaign] = &[
    Campaign {
        name: "kill",
        promise: "SIGKILL at a random moment, then resumed: the same bits",
        faults: |fixture, args| Ok(interrupt::random_kills(fixture, args)),
    },
    Campaign {
        name: "kill-operation",
        promise: "SIGKILL before a file operation, a write torn in the middle: the same bits after a resume, no leftovers",
        faults: |fixture, args| Ok(interrupt::kills_at_operations(fixture, args)),
    },
    Campaign {
        name: "fail-operation",
        promise: "a file operation fails with EIO or ENOSPC: one line and exit code 2, the same bits after a resume",
        faults: |fixture, args| Ok(interrupt::failing_operations(fixture, args)),
    },
    Campaign {
        name: "full-disk",
        promise: "a disk that is full from some operation on: one line and exit code 2, the same bits after a resume",
        faults: |fixture, args| Ok(interrupt::full_disks(fixture, args)),
    },
    Campaign {
        name: "signal",
        promise: "SIGINT, SIGTERM, SIGHUP, SIGUSR1: exit code 128 + n, the command that resumes, the same bits after it",
        faults: |fixture, args| Ok(interrupt::signals(fixture, args)),
    },
    Campaign {
        name: "stream",
        promise: "stderr full, closed or a broken pipe: the work is done all the same; results that stdout does not take: exit code 2",
        faults: |_, _| Ok(interrupt::streams()),
    },
    Campaign {
        name: "limit",
        promise: "limits of file size and address space, a small file system: an error, not a death; the same bits after a resume",
        faults: interrupt::limits,
    },
    Campaign {
        name: "connection",
        promise: "a download whose server cuts, refuses, lies or sends other bytes: the same files, or one line and exit code 2",
        faults: |_, args| Ok(connection::downloads(args)),
    },
    Campaign {
        name: "damage",
        promise: "a flipped bit or a cut in an image, prepared case, checkpoint, model or probabilities: refused by name, or the same bits",
        faults: damage::binary_files,
    },
    Campaign {
        name: "text",
        promise: "a flipped bit or a cut in a JSON or TOML file: an exit code of 0 or 2 and one line, no panic",
        faults: damage::text_files,
    },
    Campaign {
        name: "soak",
        promise: "hundreds of epochs: memory, open files and processor time per epoch do not grow",
        faults: |_, args| Ok(soak::long_runs(args)),
    },
];

/// Runs the campaigns and prints a table. Exit code 1 if one fault is not survived.
///
/// # Errors
/// An unknown campaign; a program that does not build or does not work without faults.
pub(crate) fn torture(args: &TortureArgs) -> Result<ExitCode> {
    let known: Vec<_> = CAMPAIGNS.iter().map(|campaign| campaign.name).chain(["fuzz"]).collect();
    if let Some(unknown) = args.campaigns.iter().find(|name| !known.contains(&name.as_str())) {
        bail!(UsageError(format!("unknown campaign {unknown:?}: expected {}", known.join(", "))));
    }
    let wanted = |name: &str| args.campaigns.is_empty() || args.campaigns.iter().any(|wanted| wanted == name);
    let fixture = Fixture::new(args.adw.clone().map_or_else(build_adw, Ok)?)?;
    let mut rows = Vec::new();
    let mut lost = 0;
    for campaign in CAMPAIGNS.iter().filter(|campaign| wanted(campaign.name)) {
        let clock = Instant::now();
        let faults = (campaign.faults)(&fixture, args).with_context(|| campaign.name)?;
        let outcomes = run_all(&fixture, &faults, args.jobs);
        let mut counts = [0; 3];
        for (fault, outcome) in faults.iter().zip(outcomes) {
            match outcome {
                Ok(survival) => counts[survival as usize] += 1,
                Err(error) => {
                    lost += 1;
                    println!("LOST {} {}: {error:#}", campaign.name, fault.name);
                }
            }
        }
        let [resumed, unharmed, refused] = counts;
        let row = format!(
            "| {} | {} | {} | {resumed} | {unharmed} | {refused} | {} |",
            campaign.name,
            campaign.promise,
            faults.len(),
            faults.len() - resumed - unharmed - refused
        );
        println!("{row}  ({:.0} s)", clock.elapsed().as_secs_f64());
        rows.push(row);
    }
    if let Some(output) = &args.output {
        let table = format!("{HEADER}{}\n", rows.join("\n"));
        fs::write(output, table).with_context(|| output.display().to_string())?;
    }
    let fuzzed = if wanted("fuzz") { fuzz(args)? } else { ExitCode::SUCCESS };
    if lost > 0 {
        println!("{lost} faults were not survived; their folders are kept in {}", fixture.root().display());
        return Ok(ExitCode::FAILURE);
    }
    fixture.remove()?;
    Ok(fuzzed)
}

const HEADER: &str =
    "| campaign | promise | faults | resumed | unharmed | refused | lost |\n|---|---|---|---|---|---|---|\n";

/// Reads mutated files of every kind by the functions of the program, in one process.
fn fuzz(args: &TortureArgs) -> Result<ExitCode> {
    let inputs = args.fuzz.unwrap_or_else(|| args.count(1_000, 10_000, 100_000));
    let mut rest = vec!["--test".into(), "fuzz".into(), "--".into()];
    rest.extend(["--inputs".into(), inputs.to_string(), "--seed".into(), args.seed.to_string()]);
    ci::test(&rest)
}

/// Runs the faults on several threads; results are in the order of the faults.
fn run_all(fixture: &Fixture, faults: &[Fault], jobs: Option<usize>) -> Vec<Result<Survival>> {
    let jobs = jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)).max(1);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let idx = next.fetch_add(1, Ordering::Relaxed);
            let Some(fault) = faults.get(idx) else { return done };
            done.push((idx, (fault.check)(fixture)));
        }
    };
    let mut outcomes: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a check does not panic")).collect()
    });
    outcomes.sort_by_key(|(idx, _)| *idx);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}
