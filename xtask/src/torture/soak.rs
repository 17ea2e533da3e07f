//! Long runs: memory, open files and processor time per epoch must not grow.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::{Result, bail};

use super::{
    fault::{Fault, Survival, TortureArgs},
    fixture::Fixture,
    program::Running,
    scenario::Scenario,
};

/// Interval between two looks at a running program.
const POLL: Duration = Duration::from_millis(20);

/// Growth from the second quarter of a run to the last one that is taken for noise, as a factor.
const MAX_GROWTH: f64 = 1.25;

/// State of a running program.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    epochs: usize,
    /// Processor time, which does not depend on what else the machine does.
    seconds: f64,
    resident_kb: f64,
    open_files: f64,
}

pub(super) fn long_runs(args: &TortureArgs) -> Vec<Fault> {
    let epochs = args.count(60, 300, 1000);
    let fault = |scenario: Scenario, key: &'static str, history: &'static str| {
        let run = move |fixture: &Fixture, epochs: usize| {
            let folder = fixture.prepare(scenario, &format!("soak-{}-{epochs}", scenario.name()))?;
            let mut command = fixture.command(scenario, &folder, false);
            command.arg(format!("--set={key}.epochs={epochs}"));
            let samples = watch(Running::start(command, None, None)?, &folder.join(history))?;
            compare(&samples, epochs)?;
            fs::remove_dir_all(&folder)?;
            Ok(Survival::Unharmed)
        };
        // Growth is larger in a longer run, and the noise of a shared processor smaller.
        let check = move |fixture: &Fixture| run(fixture, epochs).or_else(|_| run(fixture, 4 * epochs));
        Fault { name: scenario.name().into(), check: Box::new(check) }
    };
    vec![
        fault(Scenario::Search, "search", "run/search/fold_0/history.jsonl"),
        fault(Scenario::Retrain, "retrain", "run/retrain/fold_0/history.jsonl"),
    ]
}

/// Samples a program until it ends, which must be a success.
fn watch(mut running: Running, history: &Path) -> Result<Vec<Sample>> {
    let process = Path::new("/proc").join(running.id().to_string());
    let mut samples = Vec::new();
    while running.is_alive() {
        let status = fs::read_to_string(process.join("status")).unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|kb| kb.trim().trim_end_matches(" kB").parse().ok());
        // Both are missing for a moment before the process ends.
        if let (Some(resident_kb), Ok(open)) = (resident, fs::read_dir(process.join("fd"))) {
            samples.push(Sample {
                epochs: fs::read_to_string(history).map_or(0, |text| text.lines().count()),
                seconds: processor_seconds(&fs::read_to_string(process.join("stat")).unwrap_or_default()),
                resident_kb,
                open_files: open.count() as f64,
            });
        }
        thread::sleep(POLL);
    }
    let ending = running.wait()?;
    if !ending.success() {
        bail!("{}", ending.summary());
    }
    Ok(samples)
}

/// Time in user and system mode in `/proc/PID/stat`, whose unit is a hundredth of a second.
fn processor_seconds(stat: &str) -> f64 {
    // The name of the program, in parentheses, may hold spaces.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Compares the second quarter of the epochs with the last.
fn compare(samples: &[Sample], epochs: usize) -> Result<()> {
    let between = |from: usize, to: usize| -> Vec<Sample> {
        samples.iter().copied().filter(|sample| (from..to).contains(&sample.epochs)).collect()
    };
    let (early, late) = (between(epochs / 4, epochs / 2), between(3 * epochs / 4, epochs));
    let span = |quarter: &[Sample]| match quarter {
        [first, .., last] if last.epochs > first.epochs => {
            Ok((last.seconds - first.seconds) / (last.epochs - first.epochs) as f64)
        }
        _ => bail!("too short to be measured: {} samples", samples.len()),
    };
    let mean =
        |quarter: &[Sample], value: fn(&Sample) -> f64| quarter.iter().map(value).sum::<f64>() / quarter.len() as f64;
    let rows = [
        ("processor seconds per epoch", span(&early)?, span(&late)?),
        ("resident memory, kB", mean(&early, |it| it.resident_kb), mean(&late, |it| it.resident_kb)),
        ("open files", mean(&early, |it| it.open_files), mean(&late, |it| it.open_files)),
    ];
    for (what, early, late) in rows {
        if late > MAX_GROWTH * early {
            bail!("{what}: {early:.4} in the second quarter of {epochs} epochs, {late:.4} in the last");
        }
    }
    Ok(())
}
