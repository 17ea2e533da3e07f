//! Faults that interrupt a run: kills, failing file operations, signals, streams, limits.

use std::{
    fs::{self, File},
    io,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Result, bail};

use super::{
    fault::{Fault, Survival, TortureArgs, draw},
    fixture::Fixture,
    program::{self, Ending, Running},
    scenario::Scenario,
};

/// A fault that starts `scenario` in a new folder, lets `disturb` run it, and has it finished afterwards. `disturb` checks how
/// the program ended.
fn fault(
    name: String,
    scenario: Scenario,
    disturb: impl Fn(&Fixture, &Path) -> Result<Ending> + Send + Sync + 'static,
) -> Fault {
    let folder_name = name.clone();
    let check = move |fixture: &Fixture| {
        let folder = fixture.prepare(scenario, &folder_name)?;
        let ending = disturb(fixture, &folder)?;
        let survival = if ending.success() { Survival::Unharmed } else { Survival::Resumed };
        if survival == Survival::Unharmed {
            fixture.compare(scenario, &folder)?;
        }
        fixture.finish(scenario, &folder).map_err(|error| error.context(format!("after {}", ending.summary())))?;
        // Kept where a check fails, to be looked at.
        fs::remove_dir_all(&folder)?;
        Ok(survival)
    };
    Fault { name, check: Box::new(check) }
}

/// Random moment of a run of that duration, in its order of keys.
fn moment(duration: Duration, keys: &[u64]) -> Duration {
    duration.mul_f64(draw(keys, 1000) as f64 / 1000.0)
}

pub(super) fn random_kills(fixture: &Fixture, args: &TortureArgs) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (kind, scenario) in Scenario::ALL.into_iter().enumerate() {
        let duration = fixture.extent(scenario).duration;
        for n in 0..scenario.share(args.count(2, 15, 60)) {
            let life = moment(duration, &[args.seed, 1, kind as u64, n as u64]);
            faults.push(fault(format!("kill-{}-{n}", scenario.name()), scenario, move |fixture, folder| {
                let mut running = Running::start(fixture.command(scenario, folder, false), None, None)?;
                thread::sleep(life);
                running.kill();
                running.wait()
            }));
        }
    }
    faults
}

/// Operations that a fault hits: all if `limit` allows, else evenly spread ones with a random start.
fn spread(operations: u64, limit: usize, keys: &[u64]) -> Vec<u64> {
    let step = operations.div_ceil(limit as u64).max(1);
    (1 + draw(keys, step)..=operations).step_by(step as usize).collect()
}

/// Faults of one action at many operations of each scenario.
fn at_operations(
    fixture: &Fixture,
    args: &TortureArgs,
    actions: &'static [&'static str],
    limit: usize,
    check: fn(Scenario, &Ending) -> Result<()>,
) -> Vec<Fault> {
    let mut faults = Vec::new();
    for scenario in Scenario::ALL.into_iter().chain([Scenario::SearchOnDisk]) {
        let operations = fixture.extent(scenario).operations;
        for (number, action) in actions.iter().enumerate() {
            for operation in spread(operations, scenario.share(limit), &[args.seed, number as u64]) {
                let name = format!("{action}-{}-{operation}", scenario.name());
                faults.push(fault(name, scenario, move |fixture, folder| {
                    let ending = fixture.run_with_fault(scenario, folder, &format!("{action}:{operation}"))?;
                    if !ending.success() {
                        check(scenario, &ending)?;
                    }
                    Ok(ending)
                }));
            }
        }
    }
    faults
}

pub(super) fn kills_at_operations(fixture: &Fixture, args: &TortureArgs) -> Vec<Fault> {
    at_operations(fixture, args, &["kill"], args.count(2, 25, usize::MAX >> 1), |scenario, ending| {
        match ending.signal {
            Some(9) => Ok(()),
            // One of several processes was killed.
            None if scenario.has_children() => ending.expect_error(2),
            _ => bail!("expected SIGKILL: {}", ending.summary()),
        }
    })
}

pub(super) fn failing_operations(fixture: &Fixture, args: &TortureArgs) -> Vec<Fault> {
    at_operations(fixture, args, &["eio", "enospc"], args.count(1, 12, usize::MAX >> 1), |_, ending| {
        ending.expect_error(2)
    })
}

pub(super) fn full_disks(fixture: &Fixture, args: &TortureArgs) -> Vec<Fault> {
    at_operations(fixture, args, &["full"], args.count(1, 12, 100), |_, ending| ending.expect_error(2))
}

const SIGNALS: [(&str, i32); 4] = [("INT", 2), ("TERM", 15), ("HUP", 1), ("USR1", 10)];

pub(super) fn signals(fixture: &Fixture, args: &TortureArgs) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (kind, scenario) in Scenario::ALL.into_iter().enumerate() {
        let duration = fixture.extent(scenario).duration;
        for (signal, number) in SIGNALS {
            for n in 0..scenario.share(args.count(1, 4, 15)) {
                let moment = moment(duration, &[args.seed, 2, kind as u64, number as u64, n as u64]);
                let name = format!("signal-{signal}-{}-{n}", scenario.name());
                faults.push(fault(name, scenario, move |fixture, folder| {
                    let running = Running::start(fixture.command(scenario, folder, false), None, None)?;
                    thread::sleep(moment);
                    running.signal(signal)?;
                    let ending = running.wait()?;
                    // Before the program has set up its handlers, the system's default applies.
                    let early = ending.signal == Some(number) && ending.stderr.is_empty();
                    if !ending.success() && ending.code != Some(128 + number) && !early {
                        bail!("expected exit code {}: {}", 128 + number, ending.summary());
                    }
                    Ok(ending)
                }));
            }
        }
    }
    faults
}

/// Destination of stderr.
#[derive(Clone, Copy, Debug)]
enum Stderr {
    Full,
    Closed,
    /// A pipe that nobody reads.
    Broken,
}

pub(super) fn streams() -> Vec<Fault> {
    let mut faults = Vec::new();
    for scenario in Scenario::ALL {
        for stderr in [Stderr::Full, Stderr::Closed, Stderr::Broken] {
            let name = format!("stderr-{stderr:?}-{}", scenario.name()).to_lowercase();
            faults.push(fault(name, scenario, move |fixture, folder| {
                let command = fixture.command(scenario, folder, false);
                let running = match stderr {
                    Stderr::Full => Running::start(command, None, Some(full_device()?))?,
                    Stderr::Closed => Running::start(program::through_shell(&command, "exec \"$@\" 2>&-"), None, None)?,
                    Stderr::Broken => Running::start(command, None, Some(io::pipe()?.1.into()))?,
                };
                let ending = running.wait()?;
                if ending.success() { Ok(ending) } else { bail!("stderr ended the work: {}", ending.summary()) }
            }));
        }
        // A sweep has no `--json`.
        for json in [false, true].into_iter().filter(|json| !json || scenario != Scenario::Sweep) {
            let name = format!("stdout-full-{}{}", scenario.name(), if json { "-json" } else { "" });
            faults.push(fault(name, scenario, move |fixture, folder| {
                let mut command = fixture.command(scenario, folder, false);
                if json {
                    command.arg("--json");
                }
                let ending = Running::start(command, Some(full_device()?), None)?.wait()?;
                ending.expect_error(2)?;
                Ok(ending)
            }));
        }
    }
    faults
}

/// A device that takes no byte.
fn full_device() -> Result<Stdio> {
    Ok(File::options().write(true).open("/dev/full")?.into())
}

pub(super) fn limits(_: &Fixture, args: &TortureArgs) -> Result<Vec<Fault>> {
    let mut faults = Vec::new();
    for scenario in Scenario::ALL {
        // Blocks of 512 bytes, and kB of address space.
        let file_sizes = (0..scenario.share(args.count(1, 4, 8))).map(|n| format!("ulimit -f {}", 1 << n));
        let address_spaces =
            (0..scenario.share(args.count(1, 4, 12))).map(|n| format!("ulimit -v {}", 20_000 + 40_000 * n));
        for limit in file_sizes.chain(address_spaces) {
            let name = format!("{}-{}", limit.replace(' ', ""), scenario.name());
            faults.push(fault(name, scenario, move |fixture, folder| {
                let script = format!("{limit}; exec \"$@\"");
                let command = program::through_shell(&fixture.command(scenario, folder, false), &script);
                error_or_success(program::run(command)?)
            }));
        }
    }
    let namespaces = program::run(program::through_namespace(&Command::new("true"), "mount -t tmpfs tmpfs /mnt"))?;
    if !namespaces.success() {
        println!("note: no small file systems, since `unshare` may not mount here: {}", namespaces.summary());
        return Ok(faults);
    }
    for scenario in Scenario::ALL {
        for kilobytes in (0..scenario.share(args.count(1, 5, 15))).map(|n| 8 * (n + 1) * (n + 1)) {
            let name = format!("tmpfs-{kilobytes}k-{}", scenario.name());
            faults.push(fault(name, scenario, move |fixture, folder| {
                small_file_system(fixture, scenario, folder, kilobytes)
            }));
        }
    }
    Ok(faults)
}

/// Runs a scenario in `folder` as a file system that holds so much more than the scenario begins with. The file system ends with
/// the program; its content is kept.
fn small_file_system(fixture: &Fixture, scenario: Scenario, folder: &Path, kilobytes: usize) -> Result<Ending> {
    let kept = folder.with_extension("kept");
    let (small, beside) = (folder.display(), kept.display());
    let script = format!(
        "used=$(du -sk '{small}' | cut -f1); cp -a '{small}' '{beside}' && \
         mount -t tmpfs -o size=$((used + {kilobytes}))k tmpfs '{small}' && cp -a '{beside}/.' '{small}' && {{ \
         \"$@\"; code=$?; rm -r '{beside}'; cp -a '{small}' '{beside}'; exit $code; }}"
    );
    let ending = program::run(program::through_namespace(&fixture.command(scenario, folder, false), &script))?;
    fs::remove_dir_all(folder)?;
    fs::rename(&kept, folder)?;
    error_or_success(ending)
}

/// Refuses every end but success and an error with exit code 2.
fn error_or_success(ending: Ending) -> Result<Ending> {
    if !ending.success() {
        ending.expect_error(2)?;
    }
    Ok(ending)
}
