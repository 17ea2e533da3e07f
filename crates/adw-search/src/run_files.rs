//! The files a run keeps in its folder: `history.jsonl`, `checkpoint/latest.safetensors` and the checkpoint before that,
//! `checkpoint/previous.safetensors`, from which a run resumes if the latest is damaged.
//!
//! A row is on disk before the checkpoint that counts it, so on resume the history is cut back to the rows the
//! checkpoint counts and lacks none of them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use adw_files::Lock;
use candle_core::Device;
use serde::Serialize;
use serde_json::{Value, json};

use crate::checkpoint::{Checkpoint, Position};
use crate::ranks::{Alone, Ranks, all_gather};
use crate::{Error, Result};

/// Folder and identity of a run.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Processes that share the batches; none: this one alone. Rank 0 writes the files, the others read them.
    pub ranks: Option<Arc<dyn Ranks>>,
    /// Folder for `history.jsonl` and `checkpoint/`, made if absent. None keeps nothing.
    pub directory: Option<PathBuf>,
    /// Go on from the folder's checkpoint if there is one. Without it, a folder that holds a run is an error.
    pub resume: bool,
    /// Facts beside the settings that determine the result (task, fold, a digest of the plan): a checkpoint with other
    /// values is refused.
    pub identity: BTreeMap<String, String>,
}

impl RunOptions {
    pub(crate) fn ranks(&self) -> &dyn Ranks {
        self.ranks.as_deref().unwrap_or(&Alone)
    }
}

/// The files of one run.
#[derive(Debug)]
pub(crate) struct RunFiles {
    paths: Option<Paths>,
    identity: Value,
    /// Fault of the latest checkpoint, if the run resumes from the one before.
    damage: Option<Error>,
}

#[derive(Debug)]
struct Paths {
    history: PathBuf,
    latest: PathBuf,
    previous: PathBuf,
    /// True if `latest` is whole. A damaged one never takes the place of `previous`.
    latest_is_sound: Cell<bool>,
    /// None on file systems that cannot lock folders.
    _lock: Option<Lock>,
}

impl RunFiles {
    /// Prepares the folder and reads the checkpoint to resume from. `settings` are those that determine the result.
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
            return Ok((Self { paths: None, identity, damage: None }, None));
        };
        let (paths, ranks) = (Paths::of(directory), options.ranks());
        if ranks.rank() > 0 {
            let place = all_gather(ranks, vec![])?.swap_remove(0);
            let (checkpoint, _) = paths.read(&identity, device)?;
            if place_bytes(checkpoint.as_ref()) != place {
                return Err(Error::OtherCheckpoint { path: directory.clone(), rank: ranks.rank() });
            }
            return Ok((Self { paths: None, identity, damage: None }, checkpoint));
        }
        let folder = directory.join("checkpoint");
        adw_files::create_folders(&folder).map_err(|e| Error::io(&folder, e))?;
        let paths = Paths { _lock: lock(&folder)?, ..paths };
        for folder in [directory, &folder] {
            adw_files::remove_stale(folder).map_err(|e| Error::io(folder, e))?;
        }
        let (checkpoint, damage) = paths.resume(options.resume, &identity, device)?;
        paths.latest_is_sound.set(damage.is_none());
        // From here on the others read.
        all_gather(ranks, place_bytes(checkpoint.as_ref()))?;
        Ok((Self { paths: Some(paths), identity, damage }, checkpoint))
    }

    /// Fault of the latest checkpoint, and the checkpoint that the run resumed from instead.
    pub(crate) fn damage(&self) -> Option<(&Error, &Path)> {
        Some((self.damage.as_ref()?, &self.paths.as_ref()?.previous))
    }

    /// Newest sound checkpoint, for messages of errors.
    pub(crate) fn kept(&self) -> Option<PathBuf> {
        let Paths { latest, previous, latest_is_sound, .. } = self.paths.as_ref()?;
        let newest = if latest_is_sound.get() { latest } else { previous };
        newest.exists().then(|| newest.clone())
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
        let is_new = !history.exists();
        let mut file = adw_files::open_own(history).map_err(io)?;
        file.seek(SeekFrom::End(0)).map_err(io)?;
        file.write_all(&line).map_err(io)?;
        file.sync_all().map_err(io)?;
        if is_new { adw_files::sync_parent(history).map_err(io) } else { Ok(()) }
    }

    /// Writes a checkpoint and returns its path, or none if the run keeps no files.
    ///
    /// # Errors
    /// [`Error::Diverged`] for a state that no training recovers from; the files then stay as they are.
    pub(crate) fn save(&self, checkpoint: impl FnOnce() -> Result<Checkpoint>) -> Result<Option<&Path>> {
        let Some(Paths { latest, previous, latest_is_sound, .. }) = &self.paths else {
            return Ok(None);
        };
        let checkpoint = checkpoint()?;
        if let Some((name, value)) = checkpoint.diverged()? {
            let Position { epoch, iteration } = checkpoint.position;
            return Err(Error::Diverged { what: name.to_owned(), value, epoch, iteration, kept: self.kept() });
        }
        checkpoint.write(latest, latest_is_sound.get().then_some(previous), &self.identity)?;
        latest_is_sound.set(true);
        Ok(Some(latest))
    }
}

/// Time to wait for a lock. The system releases the locks of a killed process with a delay, and a run that is resumed
/// at once would meet that of its predecessor.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Locks a file in the folder for this run: two processes that write the same files would ruin both runs. Where a file system has
/// no locks, there is no such protection.
fn lock(folder: &Path) -> Result<Option<Lock>> {
    match adw_files::lock_with_timeout(&folder.join(".lock"), LOCK_TIMEOUT) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            Err(Error::file(folder, "another process is running this search or training"))
        }
        Err(_) => Ok(None),
    }
}

/// Returns true if there is such a file; a disk that cannot be read is an error, not an absent file.
fn exists(path: &Path) -> Result<bool> {
    path.try_exists().map_err(|e| Error::io(path, e))
}

/// Epoch and iteration of a checkpoint; nothing without one.
fn place_bytes(checkpoint: Option<&Checkpoint>) -> Vec<u8> {
    checkpoint.map_or(vec![], |Checkpoint { position: Position { epoch, iteration }, .. }| {
        [epoch, iteration].into_iter().flat_map(|n| n.to_le_bytes()).collect()
    })
}

impl Paths {
    /// Files of the run in `directory`, not locked.
    fn of(directory: &Path) -> Self {
        let folder = directory.join("checkpoint");
        Self {
            history: directory.join("history.jsonl"),
            latest: folder.join("latest.safetensors"),
            previous: folder.join("previous.safetensors"),
            latest_is_sound: Cell::new(true),
            _lock: None,
        }
    }

    /// Reads the checkpoint to resume from and cuts the history back to it, or finds a folder without a run.
    fn resume(&self, resume: bool, identity: &Value, device: &Device) -> Result<(Option<Checkpoint>, Option<Error>)> {
        if !resume {
            for path in [&self.latest, &self.previous, &self.history] {
                if exists(path)? {
                    return Err(Error::AlreadyStarted { path: path.clone() });
                }
            }
            return Ok((None, None));
        }
        let (checkpoint, damage) = self.read(identity, device)?;
        self.cut_history(checkpoint.as_ref().map_or(0, |c| c.position.epoch))?;
        Ok((checkpoint, damage))
    }

    /// Reads the latest checkpoint that is whole, and returns the fault of the latest if that is not it.
    fn read(&self, identity: &Value, device: &Device) -> Result<(Option<Checkpoint>, Option<Error>)> {
        let read = |path: &Path| Checkpoint::read(path, identity, device);
        let lost = |latest: &Error, previous: String| {
            let folder = self.latest.parent().unwrap_or(Path::new(".")).to_owned();
            Error::CheckpointsLost { latest: latest.to_string(), previous, folder }
        };
        Ok(match (exists(&self.latest)?, exists(&self.previous)?) {
            (true, has_previous) => match read(&self.latest) {
                Err(damage @ (Error::File { .. } | Error::Io { .. })) if has_previous => {
                    let other = read(&self.previous).map_err(|error| lost(&damage, error.to_string()))?;
                    (Some(other), Some(damage))
                }
                Err(damage @ Error::File { .. }) => return Err(lost(&damage, "there is none before it".into())),
                latest => (Some(latest?), None),
            },
            // A process was killed between giving the latest its new name and giving its name to the next.
            (false, true) => (Some(read(&self.previous)?), None),
            (false, false) => (None, None),
        })
    }

    /// Removes all but the first `rows` rows of the history.
    fn cut_history(&self, rows: usize) -> Result<()> {
        let io = |e| Error::io(&self.history, e);
        let text = match adw_files::read_small(&self.history) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => vec![],
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
        adw_files::write_bytes(&self.history, &kept).map_err(io)
    }
}
