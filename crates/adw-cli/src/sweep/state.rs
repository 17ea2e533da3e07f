//! State of a task: a file of lines about its attempts, which is locked while a process works on it.
//!
//! Locks are those of `flock`. NFS (version 4, or 3 with lockd), GPFS, and Lustre mounted with `flock` carry them between
//! machines; where a file system has none, no task is started.

use std::{
    fs::{self, File},
    io::{self, Seek, SeekFrom, Write},
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use adw_files::Lock;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::plan::{Sweep, Task};
use crate::args::Stage;

/// State of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Its result exists.
    Done,
    /// A process works on it.
    Running,
    /// The last attempt ended with this error.
    Failed(String),
    /// The last attempt was interrupted; the next goes on from its checkpoint.
    Interrupted,
    /// All tasks that it needs are done.
    Ready,
    /// It needs a task that is not done.
    Waiting,
}

/// Line about an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub(crate) enum Attempt {
    Started { unix_s: u64, host: String, pid: u32 },
    Finished { unix_s: u64 },
    Failed { unix_s: u64, message: String },
}

impl Attempt {
    /// Line of an attempt that starts now, in this process.
    pub(crate) fn started() -> Self {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        Self::Started { unix_s: unix_s(), host, pid: std::process::id() }
    }
}

/// Seconds since 1970.
pub(crate) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Task that this process works on, until it is dropped.
pub(crate) struct Claim(Lock);

impl Claim {
    /// Takes a task; none if another process works on it.
    ///
    /// # Errors
    /// A file system without locks, or one that cannot be written to.
    pub(crate) fn take(sweep: &Sweep, task: &Task) -> Result<Option<Self>> {
        // The system releases the lock of a killed process a moment later.
        match adw_files::lock_with_timeout(&file(sweep, task), Duration::from_secs(2)) {
            Ok(lock) => Ok(Some(Self(lock))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot lock {}", file(sweep, task).display())),
        }
    }

    /// Adds a line.
    ///
    /// # Errors
    /// The disk is full or read-only.
    pub(crate) fn record(&self, attempt: &Attempt) -> Result<()> {
        let mut file: &File = self.0.file();
        // A killed process may have left half a line.
        let line = format!("\n{}\n", serde_json::to_string(attempt)?);
        file.seek(SeekFrom::End(0))
            .and_then(|_| file.write_all(line.as_bytes()))
            .and_then(|()| file.sync_data())
            .context("cannot record the state of a task")
    }
}

impl Sweep {
    /// Lines about a task's attempts, oldest first.
    pub(crate) fn attempts(&self, task: &Task) -> Vec<Attempt> {
        let text = fs::read_to_string(file(self, task)).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Returns true if the last attempt at a task has no end: its process works on it, or was killed, perhaps after its result was
    /// there and before its report.
    pub(crate) fn was_cut_short(&self, task: &Task) -> bool {
        matches!(self.attempts(task).last(), Some(Attempt::Started { .. }))
    }

    /// Returns true if a process works on a task.
    pub(crate) fn is_running(&self, task: &Task) -> bool {
        let path = file(self, task);
        let is_locked = || {
            let lock = adw_files::lock_with_timeout(&path, Duration::ZERO);
            lock.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        };
        path.is_file() && is_locked()
    }

    /// State of a task.
    pub(crate) fn state(&self, task: &Task) -> State {
        if self.is_done(task) {
            return State::Done;
        }
        if self.is_running(task) {
            return State::Running;
        }
        match self.attempts(task).pop() {
            Some(Attempt::Failed { message, .. }) => State::Failed(message),
            Some(Attempt::Started { .. }) => State::Interrupted,
            _ if task.after.iter().all(|&needed| self.is_done(&self.tasks[needed])) => State::Ready,
            _ => State::Waiting,
        }
    }

    /// Task because of which `task` will not be done unless a person steps in: the task itself or one that it needs, which has
    /// failed or, where only tasks of one stage are still to begin, is of an earlier stage and neither done nor worked on.
    pub(crate) fn obstacle<'a>(&'a self, task: &'a Task, only: Option<Stage>) -> Option<&'a Task> {
        match self.state(task) {
            State::Done | State::Running => None,
            State::Failed(_) => Some(task),
            _ if only.is_some_and(|stage| stage != task.stage) => Some(task),
            _ => task.after.iter().find_map(|&needed| self.obstacle(&self.tasks[needed], only)),
        }
    }
}

fn file(sweep: &Sweep, task: &Task) -> PathBuf {
    sweep.folder.join("tasks").join(format!("{}.jsonl", task.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_taken_once_and_remembers_how_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let toml = dir.path().join("study.toml");
        fs::write(&toml, "datasets = [\"phantom\"]\nfolds = [0]\n[[arms]]\nname = \"a\"").unwrap();
        let sweep = Sweep::create(&toml).unwrap();
        assert_eq!(Sweep::open(&toml).unwrap(), sweep);
        let [prepare, search, _] = sweep.tasks.as_slice() else { panic!("three tasks") };
        assert_eq!((sweep.state(prepare), sweep.state(search)), (State::Ready, State::Waiting));

        let claim = Claim::take(&sweep, prepare).unwrap().unwrap();
        assert!(Claim::take(&sweep, prepare).unwrap().is_none());
        claim.record(&Attempt::started()).unwrap();
        assert_eq!(sweep.state(prepare), State::Running);
        drop(claim);
        assert_eq!(sweep.state(prepare), State::Interrupted);
        // A line cut by a kill.
        fs::OpenOptions::new().append(true).open(file(&sweep, prepare)).unwrap().write_all(b"{\"event\":").unwrap();
        let claim = Claim::take(&sweep, prepare).unwrap().unwrap();
        claim.record(&Attempt::Failed { unix_s: 1, message: "no disk".into() }).unwrap();
        drop(claim);
        assert_eq!(sweep.state(prepare), State::Failed("no disk".into()));
        assert_eq!(sweep.attempts(prepare).len(), 2);
        adw_files::create_folders(&dir.path().join("study/data")).unwrap();
        fs::write(sweep.result(prepare), "{}").unwrap();
        assert_eq!((sweep.state(prepare), sweep.state(search)), (State::Done, State::Ready));

        // A training that waits for another one of its stage.
        let [.., retrain] = sweep.tasks.as_slice() else { panic!("three tasks") };
        let obstacle = |only| sweep.obstacle(retrain, only).map(|task| &task.name);
        assert_eq!((obstacle(None), obstacle(Some(Stage::Retrain))), (None, Some(&search.name)));
        let claim = Claim::take(&sweep, search).unwrap().unwrap();
        assert_eq!(obstacle(Some(Stage::Retrain)), None);
        claim.record(&Attempt::Failed { unix_s: 1, message: "no disk".into() }).unwrap();
        drop(claim);
        assert_eq!(obstacle(None), Some(&search.name));

        fs::write(&toml, "datasets = [\"phantom\"]\nfolds = [1]\n[[arms]]\nname = \"a\"").unwrap();
        assert!(Sweep::open(&toml).unwrap_err().to_string().contains("has changed"));
    }
}
