//! Mutated files of every kind, read by the functions that read them in the program: whatever the bytes, an answer or an error
//! of one line, in seconds, within a limit of memory.
//!
//! `cargo test --release -p adw-e2e --test fuzz -- --inputs 100000 --seed 1` prints a table; without arguments a few thousand
//! inputs are read. An input depends on the seed and its number alone: `--only N` reads one again.

mod allocation;
#[path = "../cli_support/mod.rs"]
mod cli_support;
mod command_line;
mod dicom;
mod kinds;
mod mutate;
mod standard;
mod training;

use std::any::Any;
use std::fs;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use allocation::{Counted, MAX_BYTES, measured};
use kinds::{Examples, KINDS};
use mutate::Random;

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// Longest time that an input may take.
const MAX_TIME: Duration = Duration::from_secs(10);

/// Number of the input that is read, for messages from other threads; `u64::MAX` between inputs.
static CURRENT: AtomicU64 = AtomicU64::new(u64::MAX);

/// Place and message of the last panic.
static PANIC: Mutex<String> = Mutex::new(String::new());

/// Options of the command line; others, which `cargo test` hands to every test, mean nothing here.
struct Options {
    inputs: u64,
    seed: u64,
    only: Option<u64>,
}

impl Options {
    fn parse() -> Self {
        let arguments: Vec<String> = std::env::args().collect();
        let value = |name: &str| {
            let at = arguments.iter().position(|argument| argument == name)?;
            Some(arguments.get(at + 1).and_then(|value| value.parse().ok()).expect("a number after the option"))
        };
        Self { inputs: value("--inputs").unwrap_or(3000), seed: value("--seed").unwrap_or(1), only: value("--only") }
    }
}

/// Results of one kind.
#[derive(Clone, Default)]
struct Tally {
    accepted: u64,
    refused: u64,
    slowest: (Duration, u64),
    largest: (usize, u64),
}

fn main() -> ExitCode {
    let options = Options::parse();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let examples = Examples::new(dir.path()).expect("sound examples");
    // Built before the clock runs.
    cli_support::adw();
    panic::set_hook(Box::new(|info| *PANIC.lock().expect("no panic holds it") = info.to_string()));
    thread::spawn(watch);
    let mut tallies = vec![Tally::default(); KINDS.len()];
    let mut failures = 0;
    let inputs = options.only.map_or(0..options.inputs, |only| only..only + 1);
    for input in inputs {
        let index = (input % KINDS.len() as u64) as usize;
        let kind = &KINDS[index];
        let bytes = (kind.make)(&examples, &mut Random::new(options.seed, input));
        CURRENT.store(input, Relaxed);
        let started = Instant::now();
        let (outcome, used) = measured(|| catch_unwind(AssertUnwindSafe(|| (kind.read)(&examples, &bytes))));
        let time = started.elapsed();
        CURRENT.store(u64::MAX, Relaxed);
        let tally = &mut tallies[index];
        let fault = match &outcome {
            Ok(Ok(())) => {
                tally.accepted += 1;
                None
            }
            Ok(Err(message)) => {
                tally.refused += 1;
                (kind.name != "config.toml" && message.contains('\n')).then(|| format!("more than one line: {message}"))
            }
            Err(panic) => Some(panic_message(panic.as_ref())),
        };
        let too_much = (used > MAX_BYTES).then(|| format!("{used} bytes"));
        let too_long = (time > MAX_TIME).then(|| format!("{time:?}"));
        if let Some(fault) = fault.or(too_much).or(too_long) {
            failures += 1;
            let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{}-{input}", options.seed));
            let _ = fs::write(&kept, &bytes);
            eprintln!("input {input} ({}): {fault}; kept in {}", kind.name, kept.display());
        }
        if options.only.is_some() {
            println!("{outcome:?}");
        }
        tally.slowest = tally.slowest.max((time, input));
        tally.largest = tally.largest.max((used, input));
    }
    print(&tallies);
    println!("{failures} failures");
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ends the process if an input takes so long that it may never end.
fn watch() {
    let mut last = (u64::MAX, Instant::now());
    loop {
        thread::sleep(Duration::from_millis(200));
        let current = CURRENT.load(Relaxed);
        if current != last.0 {
            last = (current, Instant::now());
        } else if current != u64::MAX && last.1.elapsed() > 3 * MAX_TIME {
            eprintln!("input {current} ({}) hangs", KINDS[(current % KINDS.len() as u64) as usize].name);
            std::process::exit(1);
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    let place = PANIC.lock().expect("no panic holds it").clone();
    if place.is_empty() { format!("panic: {text}") } else { place.replace('\n', " ") }
}

fn print(tallies: &[Tally]) {
    println!("kind                  inputs accepted  refused   slowest (input)         memory (input)");
    for (kind, tally) in KINDS.iter().zip(tallies) {
        println!(
            "{:<20} {:>7} {:>8} {:>8} {:>7.3} s {:<9} {:>8.1} MB {:<9}",
            kind.name,
            tally.accepted + tally.refused,
            tally.accepted,
            tally.refused,
            tally.slowest.0.as_secs_f64(),
            format!("({})", tally.slowest.1),
            tally.largest.0 as f64 / 1e6,
            format!("({})", tally.largest.1),
        );
    }
}
