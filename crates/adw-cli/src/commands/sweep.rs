//! `adw sweep`: studies over datasets, folds, seeds and arms.

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::json;

use crate::{
    args::{MemoryArgs, ProcessArgs, Stage, SweepAction, SweepArgs, SweepFileArgs, SweepRunArgs},
    child::Arguments,
    device,
    failure::bad_input,
    interrupt, memory,
    report::{
        progress::{emit, note, say},
        table::Table,
    },
    sweep::{
        jobs,
        plan::{Sweep, Task},
        state::State,
        summary, work,
    },
};

pub(crate) fn run(args: &SweepArgs) -> Result<()> {
    match &args.action {
        SweepAction::Plan(args) => plan(args),
        SweepAction::Run(args) => run_here(args),
        SweepAction::Status(args) => status(args),
        SweepAction::Summary(args) => summary::summary(&Sweep::open(&args.sweep)?, args.json),
        SweepAction::Work(args) => work::work(args),
        SweepAction::Submit(args) => jobs::submit(args),
    }
}

fn plan(args: &SweepFileArgs) -> Result<()> {
    let sweep = Sweep::create(&args.sweep)?;
    if args.json {
        for task in &sweep.tasks {
            let after: Vec<_> = task.after.iter().map(|&needed| &sweep.tasks[needed].name).collect();
            emit("task", &json!({ "name": task.name, "stage": task.stage, "after": after }));
        }
        return Ok(());
    }
    let count = |stage| sweep.tasks.iter().filter(|task| task.stage == stage).count();
    let [prepare, search, retrain] = Stage::ALL.map(count);
    say(&format!(
        "{} tasks: {prepare} datasets to prepare, {search} searches, {retrain} trainings: {}\n",
        sweep.tasks.len(),
        sweep.folder.display()
    ));
    Ok(())
}

/// Most failed tasks that are listed.
const MAX_LISTED: usize = 10;

fn status(args: &SweepFileArgs) -> Result<()> {
    let sweep = Sweep::open(&args.sweep)?;
    let states: Vec<State> = sweep.tasks.iter().map(|task| sweep.state(task)).collect();
    if args.json {
        for (task, state) in sweep.tasks.iter().zip(&states) {
            let (word, message) = described(state);
            emit("task", &json!({ "name": task.name, "state": word, "message": message }));
        }
        return Ok(());
    }
    let mut table =
        Table::of_numbers(["dataset", "arm", "task", "done", "running", "interrupted", "ready", "waiting", "failed"]);
    let mut rows: Vec<(Stage, usize, Option<usize>)> = Vec::new();
    for task in &sweep.tasks {
        let row = (task.stage, task.dataset, task.cell.map(|cell| cell.arm));
        if rows.last() != Some(&row) {
            rows.push(row);
        }
    }
    for row in rows {
        let (stage, dataset, arm) = row;
        let of_row = sweep
            .tasks
            .iter()
            .zip(&states)
            .filter(|(task, _)| (task.stage, task.dataset, task.cell.map(|cell| cell.arm)) == row);
        let words: Vec<&str> = of_row.map(|(_, state)| described(state).0).collect();
        let count = |word| words.iter().filter(|other| **other == word).count();
        let number = |word| if count(word) == 0 { String::new() } else { count(word).to_string() };
        let done = format!("{} of {}", count("done"), words.len());
        let arm = arm.map_or("", |arm| &sweep.config.arms[arm].name);
        let counts = ["running", "interrupted", "ready", "waiting", "failed"].map(number);
        let names = [sweep.datasets[dataset].name.clone(), arm.to_owned(), stage.name().to_owned(), done];
        table.row(names.into_iter().chain(counts));
    }
    say(&table.render());
    let failed = sweep.tasks.iter().zip(&states).filter(|(_, state)| matches!(state, State::Failed(_)));
    for (task, state) in failed.clone().take(MAX_LISTED) {
        say(&format!("{}: {}\n", task.name, described(state).1));
    }
    if failed.clone().count() > MAX_LISTED {
        say(&format!("... and {} more, listed by --json\n", failed.count() - MAX_LISTED));
    }
    Ok(())
}

/// Word for a state, and the message of a failure.
fn described(state: &State) -> (&'static str, &str) {
    match state {
        State::Done => ("done", ""),
        State::Running => ("running", ""),
        State::Failed(message) => ("failed", message),
        State::Interrupted => ("interrupted", ""),
        State::Ready => ("ready", ""),
        State::Waiting => ("waiting", ""),
    }
}

fn run_here(args: &SweepRunArgs) -> Result<()> {
    let sweep = Sweep::open_or_create(&args.sweep)?;
    interrupt::is_repeated();
    let workers = usize::from(args.workers);
    let threads = args.threads.unwrap_or_else(|| u16::try_from((device::cores() / workers).max(1)).unwrap_or(u16::MAX));
    let memory = memory::limit(args.memory).limit();
    // Unlimited on systems that do not name their memory.
    let memory = if memory == u64::MAX { args.memory.memory } else { Some(memory as f64 / 1e9 / workers as f64) };
    let arguments = Arguments::of("sweep").flag("work").argument(&args.sweep);
    let arguments = arguments.path("--scratch", args.scratch.scratch.as_deref()).resources(
        &args.device,
        MemoryArgs { memory },
        &ProcessArgs { threads: Some(threads), json: false },
    );
    let pool = Pool { sweep: &sweep, arguments, progress: Mutex::new(Progress::default()) };
    let worked = interrupt::stopping_itself(|| {
        thread::scope(|scope| {
            let start = |_| thread::Builder::new().spawn_scoped(scope, || pool.work());
            let started = (0..workers).map(start).collect::<io::Result<Vec<_>>>();
            for worker in started.context("cannot start a thread per worker")? {
                worker.join().expect("a worker does not panic");
            }
            anyhow::Ok(())
        })
    });
    interrupt::end_if_interrupted();
    worked?;
    let undone = sweep.tasks.iter().filter(|task| !sweep.is_done(task)).count();
    if undone > 0 {
        let failed = pool.progress.into_inner().unwrap_or_else(PoisonError::into_inner).failed.len();
        bad_input!(
            "{undone} of {} tasks are not done, {failed} have failed: see `sweep status` and {}",
            sweep.tasks.len(),
            sweep.folder.join("tasks").display()
        );
    }
    summary::summary(&sweep, false)
}

/// Workers that share the tasks of a sweep.
struct Pool<'a> {
    sweep: &'a Sweep,
    /// Arguments of `adw sweep work` without the task.
    arguments: Arguments,
    progress: Mutex<Progress<'a>>,
}

/// Names of tasks by their progress in this process.
#[derive(Default)]
struct Progress<'a> {
    done: BTreeSet<&'a str>,
    failed: BTreeSet<&'a str>,
    taken: BTreeSet<&'a str>,
}

/// Task that a worker does next.
enum Next<'a> {
    Task(&'a Task),
    /// Others work on what is left.
    Wait,
    Nothing,
}

impl<'a> Pool<'a> {
    /// Does one task after the other until nothing is left.
    fn work(&self) {
        while interrupt::signal().is_none() {
            match self.next() {
                Next::Task(task) => {
                    let run = self.run(task);
                    let mut progress = self.progress();
                    progress.taken.remove(task.name.as_str());
                    // The other workers do not wait for a task that nobody does.
                    if let Err(error) = run {
                        progress.failed.insert(task.name.as_str());
                        note(&format!("{} failed: {error:#}", task.name));
                    }
                }
                Next::Wait => thread::sleep(Duration::from_millis(200)),
                Next::Nothing => break,
            }
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress<'a>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Next<'a> {
        let mut progress = self.progress();
        let mut is_busy = !progress.taken.is_empty();
        for task in &self.sweep.tasks {
            let name = task.name.as_str();
            if progress.done.contains(name) || progress.failed.contains(name) || progress.taken.contains(name) {
                continue;
            }
            if self.sweep.is_done(task) && !self.sweep.was_cut_short(task) {
                progress.done.insert(name);
                continue;
            }
            let mut needed = task.after.iter().map(|&needed| &self.sweep.tasks[needed]);
            if !needed.all(|needed| progress.done.contains(needed.name.as_str())) {
                continue;
            }
            // A process elsewhere.
            if self.sweep.is_running(task) {
                is_busy = true;
                continue;
            }
            progress.taken.insert(name);
            return Next::Task(task);
        }
        if is_busy { Next::Wait } else { Next::Nothing }
    }

    /// Does a task in a process of its own, whose messages go to a file beside the task's state.
    fn run(&self, task: &'a Task) -> Result<()> {
        let log = self.sweep.folder.join("tasks").join(format!("{}.log", task.name));
        let started = Instant::now();
        let mut command = self.arguments.clone().option("--task", Some(&task.name)).command()?;
        let child = appended(&log)
            .and_then(|file| Ok(command.stdout(file.try_clone()?).stderr(file)))
            .and_then(interrupt::start_child);
        let child = child.with_context(|| format!("cannot start {}", task.name))?;
        interrupt::wait_for_child(child).context("cannot wait for a process")?;
        let mut progress = self.progress();
        let name = task.name.as_str();
        let state = self.sweep.state(task);
        match &state {
            State::Done => drop(progress.done.insert(name)),
            // Another process was faster, or a signal has ended this one.
            State::Running => return Ok(()),
            _ if interrupt::signal().is_some() => return Ok(()),
            _ => drop(progress.failed.insert(name)),
        }
        let outcome = match &state {
            State::Done => "done".to_owned(),
            State::Failed(message) => format!("failed: {message}"),
            _ => format!("failed: see {}", log.display()),
        };
        let (done, all) = (progress.done.len(), self.sweep.tasks.len());
        note(&format!("[{done}/{all}] {name} {outcome}, {:.1} s", started.elapsed().as_secs_f64()));
        Ok(())
    }
}

fn appended(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}
