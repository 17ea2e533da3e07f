//! `cargo xtask bench`: one search iteration, or one training step, of `adw` beside the same work in PyTorch, in turns on the same machine.

use std::{
    collections::BTreeMap,
    fmt::Write,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Map, Value, json};

use crate::{
    failure::UsageError,
    launch::build_adw,
    output::{note, say},
    workspace::workspace,
};

#[derive(Args, Clone, Debug)]
pub(crate) struct BenchArgs {
    /// Only these cases [default: all]
    #[arg(value_name = "CASE")]
    cases: Vec<String>,
    /// Number of turns of the two programs; medians are shown
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Threads of both programs
    #[arg(long, default_value_t = default_threads())]
    threads: usize,
    /// Python with PyTorch; without one, only `adw` is timed
    #[arg(long, value_name = "FILE", default_value = "python3")]
    python: PathBuf,
    /// Write every round to this file, one JSON line each
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Work that both programs are timed on.
struct Case {
    name: &'static str,
    about: &'static str,
    arguments: &'static [&'static str],
    /// Arguments for `adw` alone.
    adw_only: &'static [&'static str],
}

const fn case(
    name: &'static str,
    about: &'static str,
    arguments: &'static [&'static str],
    adw_only: &'static [&'static str],
) -> Case {
    Case { name, about, arguments, adw_only }
}

/// Setting of PyTorch: its heading in the table of results, and the arguments of `torch_step.py` that select it.
type Setting = (&'static str, &'static [&'static str]);

/// Settings of PyTorch that may be the fastest on this processor.
fn torch_settings() -> Vec<Setting> {
    let mut settings: Vec<Setting> = vec![("PyTorch", &[])];
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512bf16") {
        settings.push(("bf16", &["--amp", "bf16"]));
        settings.push(("bf16, last", &["--amp", "bf16", "--channels-last"]));
    }
    settings
}

const CASES: &[Case] = &[
    case("batch-1", "patch 40x56x40, batch 1", &["--batch", "1"], &[]),
    case("batch-2", "patch 40x56x40, batch 2", &["--batch", "2"], &[]),
    case("narrow", "at most 12 channels, batch 2", &["--batch", "2", "--max-width", "12"], &[]),
    case(
        "anisotropic",
        "patch 20x64x64, first kernel 1x3x3, batch 1",
        &["--batch", "1", "--anisotropic", "--patch", "20", "64", "64"],
        &[],
    ),
    case(
        "large",
        "inference on one patch 80x160x128",
        &["--batch", "1", "--patch", "80", "160", "128", "--passes", "inference", "--repeats", "1"],
        &[],
    ),
    case(
        "plain-8",
        "training step of a plain U-Net, 8 channels, batch 2",
        &["--batch", "2", "--uniform-width", "8"],
        &[],
    ),
    case("plain-16", "the same, 16 channels", &["--batch", "2", "--uniform-width", "16"], &[]),
    case("plain-24", "the same, 24 channels", &["--batch", "2", "--uniform-width", "24"], &[]),
    case("plain-32", "the same, 32 channels", &["--batch", "2", "--uniform-width", "32"], &[]),
    case(
        "found-0.3G",
        "a found network of 0.31 G multiply-adds, batch 2",
        &["--batch", "2", "--architecture", "benchmarks/found/0.3G.json"],
        &[],
    ),
    case("found-3.7G", "of 3.7 G", &["--batch", "2", "--architecture", "benchmarks/found/3.7G.json"], &[]),
    case("found-4.0G", "of 4.0 G", &["--batch", "2", "--architecture", "benchmarks/found/4.0G.json"], &[]),
    case("bf16", "batch-1, adw in bfloat16 (meant for Intel AMX)", &["--batch", "1"], &["--bf16"]),
];

const SECONDS: [&str; 4] = ["inference", "weight_pass", "arch_pass", "search_iteration"];

pub(crate) fn bench(args: &BenchArgs) -> Result<ExitCode> {
    let cases = chosen(&args.cases)?;
    if args.rounds == 0 || args.threads == 0 {
        bail!(UsageError("--rounds and --threads: expected at least 1".into()));
    }
    let adw = build_adw()?;
    let settings = if has_torch(&args.python) { torch_settings() } else { vec![] };
    if settings.is_empty() {
        note(&format!(
            "note: {} has no PyTorch (pip install torch), so `adw` is timed alone; --python names another",
            args.python.display()
        ));
    }
    let mut rows = String::new();
    let mut lines = String::new();
    for case in cases {
        let (mut ours, mut theirs) = (Samples::default(), vec![Samples::default(); settings.len()]);
        for round in 0..args.rounds {
            note(&format!("{}: round {} of {}", case.name, round + 1, args.rounds));
            let line = ours.add(&run(our_command(&adw, case, args))?);
            writeln!(lines, "{}", json!({"case": case.name, "program": "adw", "result": line}))?;
            for ((_, setting), theirs) in settings.iter().zip(&mut theirs) {
                let line = theirs.add(&run(torch_command(case, args, setting))?);
                writeln!(lines, "{}", json!({"case": case.name, "program": "pytorch", "result": line}))?;
            }
        }
        rows += &table(case, &ours, &theirs)?;
    }
    if let Some(output) = &args.output {
        std::fs::write(output, lines).with_context(|| format!("cannot write {}", output.display()))?;
    }
    let mut heading = format!("{:18}{:>12}", "", "adw");
    for (theirs, _) in &settings {
        write!(heading, "{theirs:>12}")?;
    }
    say(&format!("\n{heading}{:>8}\n{}", "ratio", rows.trim_end()))?;
    Ok(ExitCode::SUCCESS)
}

fn chosen(names: &[String]) -> Result<Vec<&'static Case>> {
    if names.is_empty() {
        return Ok(CASES.iter().collect());
    }
    let find = |name: &String| {
        CASES.iter().find(|case| case.name == name).ok_or_else(|| {
            let known: Vec<_> = CASES.iter().map(|case| case.name).collect();
            UsageError(format!("no case {name}: expected one of {}", known.join(", "))).into()
        })
    };
    names.iter().map(find).collect()
}

fn has_torch(python: &Path) -> bool {
    let mut command = Command::new(python);
    command.args(["-c", "import torch"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn common(command: &mut Command, case: &Case, args: &BenchArgs) {
    let threads = args.threads.to_string();
    command.args(["--device", "cpu", "--threads", &threads]);
    command.args(["--warmup", "1"]);
    if !case.arguments.contains(&"--repeats") {
        command.args(["--repeats", "3"]);
    }
    for argument in case.arguments {
        // Files are named from the workspace's root.
        if argument.starts_with("benchmarks/") {
            command.arg(workspace().join(argument));
        } else {
            command.arg(argument);
        }
    }
}

fn our_command(adw: &Path, case: &Case, args: &BenchArgs) -> Command {
    let mut command = Command::new(adw);
    command.args(["bench", "step", "--json"]);
    common(&mut command, case, args);
    command.args(case.adw_only);
    command
}

fn torch_command(case: &Case, args: &BenchArgs, setting: &[&str]) -> Command {
    let mut command = Command::new(&args.python);
    command.arg(workspace().join("benchmarks/torch_step.py"));
    common(&mut command, case, args);
    command.args(setting);
    command
}

/// Runs a program and returns the JSON object in its last line.
fn run(mut command: Command) -> Result<Map<String, Value>> {
    let program = command.get_program().display().to_string();
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!("{program} failed: {command:?}");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("{program} printed {last:?}"))
}

/// Measurements of all rounds by name.
#[derive(Clone, Default)]
struct Samples(BTreeMap<String, Vec<f64>>);

impl Samples {
    fn add(&mut self, line: &Map<String, Value>) -> Value {
        for (key, value) in line {
            if let Some(number) = value.as_f64() {
                self.0.entry(key.clone()).or_default().push(number);
            }
        }
        Value::Object(line.clone())
    }

    fn median(&self, key: &str) -> Option<f64> {
        let mut values = self.0.get(key)?.clone();
        values.sort_by(f64::total_cmp);
        Some(f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2]))
    }
}

/// Medians of ours and of each of theirs, and the ratio of ours to the least of theirs.
fn table(case: &Case, ours: &Samples, theirs: &[Samples]) -> Result<String> {
    let mut rows = format!("{}: {}\n", case.name, case.about);
    let mut row = |name: &str, key: &str, scale: f64, unit: &str| -> Result<()> {
        let Some(our) = ours.median(key) else {
            return Ok(());
        };
        write!(rows, "  {name:16}")?;
        let theirs: Vec<f64> = theirs.iter().filter_map(|theirs| theirs.median(key)).collect();
        for value in [our].iter().chain(&theirs) {
            write!(rows, "{:>12}", format!("{:.3} {unit}", value * scale))?;
        }
        let best = theirs.into_iter().reduce(f64::min);
        writeln!(rows, "{:>8}", best.map_or("-".into(), |best| format!("{:.2}", our / best)))?;
        Ok(())
    };
    for key in SECONDS {
        row(key, key, 1.0, "s")?;
    }
    row("peak memory", "peak_bytes", 1e-9, "GB")?;
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(seconds: &[f64]) -> Samples {
        let mut samples = Samples::default();
        for &second in seconds {
            let line = json!({"inference": second, "device": "cpu"});
            samples.add(line.as_object().expect("an object"));
        }
        samples
    }

    #[test]
    fn the_table_shows_medians_and_their_ratio() {
        let ours = samples(&[9.0, 1.0, 2.0]);
        let text = table(&CASES[0], &ours, &[samples(&[5.0]), samples(&[4.0, 3.0, 5.0])]).expect("text");
        assert!(text.contains("2.000 s     5.000 s     4.000 s    0.50"), "{text}");
        assert!(!text.contains("peak"), "{text}");
        let alone = table(&CASES[0], &ours, &[]).expect("text");
        assert!(alone.contains("2.000 s       -"), "{alone}");
    }

    #[test]
    fn an_unknown_case_is_refused_with_the_known_ones() {
        let error = chosen(&["batch-3".into()]).err().expect("no such case");
        assert!(error.to_string().contains("batch-2"), "{error}");
        assert_eq!(chosen(&[]).expect("all").len(), CASES.len());
    }
}
