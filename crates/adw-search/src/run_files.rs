//! The files a run keeps in its folder: `history.jsonl` and `checkpoint/latest.safetensors`.
//!
//! A row is on disk before the checkpoint that counts it, so on resume the history is cut back to the rows the
//! checkpoint knows and never misses one.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::Device;
use serde::Serialize;
use serde_json::{Value, json};

use crate::checkpoint::Checkpoint;
use crate::patient_lock::lock_patiently;
use crate::{Error, Result, atomic_file};

/// Where a run keeps its files, and whether it goes on with an earlier one.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Folder for `history.jsonl` and `checkpoint/`, made if absent. None keeps nothing.
    pub directory: Option<PathBuf>,
    /// Go on from the folder's checkpoint if there is one. Without it, a folder that holds a run is an error.
    pub resume: bool,
    /// What else makes this run the one it is (task, fold, a digest of the plan): a checkpoint with other values is
    /// refused.
    pub identity: BTreeMap<String, String>,
}

/// The files of one run.
#[derive(Debug)]
pub(crate) struct RunFiles {
    paths: Option<Paths>,
    identity: Value,
}

#[derive(Debug)]
struct Paths {
    history: PathBuf,
    checkpoint: PathBuf,
    /// Held as long as the run lasts; the system lets go of it however the process ends.
    _lock: Option<File>,
}

impl RunFiles {
    /// Prepares the folder and reads what there is to resume from. `settings` are those that determine the result.
    pub(crate) fn open(
        options: &RunOptions,
        settings: &impl Serialize,
        device: &Device,
    ) -> Result<(Self, Option<Checkpoint>)> {
        let settings = serde_json::to_value(settings).map_err(|e| {
            let folder = options.directory.as_deref().unwrap_or(Path::new("run"));
            Error::file(folder, format!("settings cannot be written as JSON: {e}"))
        })?;
        let identity = json!({"settings": settings, "run": options.identity});
        let Some(directory) = &options.directory else {
            return Ok((Self { paths: None, identity }, None));
        };
        let folder = directory.join("checkpoint");
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let paths = Paths {
            history: directory.join("history.jsonl"),
            checkpoint: folder.join("latest.safetensors"),
            _lock: lock(&folder)?,
        };
        let checkpoint = paths.resume(options.resume, &identity, device)?;
        Ok((Self { paths: Some(paths), identity }, checkpoint))
    }

    /// Appends one row to the history and waits until it is on disk.
    pub(crate) fn append(&self, row: &impl Serialize) -> Result<()> {
        let Some(Paths { history, .. }) = &self.paths else {
            return Ok(());
        };
        let mut line =
            serde_json::to_vec(row).map_err(|e| Error::file(history, format!("row cannot be written as JSON: {e}")))?;
        line.push(b'\n');
        let io = |e| Error::io(history, e);
        let mut file = OpenOptions::new().create(true).append(true).open(history).map_err(io)?;
        file.write_all(&line).map_err(io)?;
        file.sync_all().map_err(io)
    }

    /// Writes a checkpoint; its path, or none when the run keeps no files.
    pub(crate) fn save(&self, checkpoint: impl FnOnce() -> Result<Checkpoint>) -> Result<Option<&Path>> {
        let Some(Paths { checkpoint: path, .. }) = &self.paths else {
            return Ok(None);
        };
        checkpoint()?.write(path, &self.identity)?;
        Ok(Some(path))
    }
}

/// Claims the folder for this run: two processes that write the same files would ruin both runs. Where folders cannot be
/// locked (Windows, some network file systems) there is no such protection.
fn lock(folder: &Path) -> Result<Option<File>> {
    let Ok(handle) = File::open(folder) else {
        return Ok(None);
    };
    match lock_patiently(&handle) {
        Ok(()) => Ok(Some(handle)),
        Err(TryLockError::Error(_)) => Ok(None),
        Err(TryLockError::WouldBlock) => Err(Error::file(folder, "another process is running this search or training")),
    }
}

impl Paths {
    fn resume(&self, resume: bool, identity: &Value, device: &Device) -> Result<Option<Checkpoint>> {
        let found = self.checkpoint.exists();
        if !resume {
            if found || self.history.exists() {
                let path = if found { &self.checkpoint } else { &self.history };
                return Err(Error::AlreadyStarted { path: path.clone() });
            }
            return Ok(None);
        }
        let checkpoint = if found { Some(Checkpoint::read(&self.checkpoint, identity, device)?) } else { None };
        self.cut_history(checkpoint.as_ref().map_or(0, |c| c.position.epoch))?;
        Ok(checkpoint)
    }

    /// Leaves the first `rows` rows of the history.
    fn cut_history(&self, rows: usize) -> Result<()> {
        let io = |e| Error::io(&self.history, e);
        let text = match fs::read(&self.history) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => vec![],
            Err(e) => return Err(io(e)),
        };
        let complete = text.split_inclusive(|b| *b == b'\n').filter(|l| l.ends_with(b"\n"));
        let kept: Vec<&[u8]> = complete.take(rows).collect();
        if kept.len() < rows {
            let reason = format!(
                "{} rows, but the checkpoint is {rows} epochs in; restore the file, or remove the checkpoint to start again",
                kept.len()
            );
            return Err(Error::file(&self.history, reason));
        }
        let kept = kept.concat();
        if kept.len() == text.len() {
            return Ok(());
        }
        atomic_file::replace(&self.history, |out| out.write_all(&kept).map_err(io))
    }
}
