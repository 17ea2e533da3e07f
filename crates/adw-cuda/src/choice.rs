//! Which of several ways to do the same work is the fastest on this device: measured once, kept in a file.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Times of every way that was tried, in microseconds.
pub type Times = BTreeMap<String, f64>;

/// Work by its description, and the times of the ways to do it.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("adw-choice-{}", std::process::id()));
/// use adw_cuda::choice::Table;
/// let mut table = Table::open(Some(&dir), "some device", &["libraries 1.0"]);
/// assert!(table.times("product of 3 by 3").is_none());
/// table.insert("product of 3 by 3", [("own".into(), 4.5), ("library".into(), 3.0)].into())?;
/// let again = Table::open(Some(&dir), "some device", &["libraries 1.0"]);
/// assert_eq!(again.times("product of 3 by 3").unwrap()["library"], 3.0);
/// let other = Table::open(Some(&dir), "some device", &["libraries 2.0"]);
/// assert!(other.times("product of 3 by 3").is_none());
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<_, std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Table {
    file: Option<PathBuf>,
    contents: Contents,
    /// What is known, but not for the file.
    remembered: BTreeMap<String, Times>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Contents {
    device: String,
    /// What the times depend on beside the device.
    versions: Vec<String>,
    microseconds: BTreeMap<String, Times>,
}

/// The folder for such tables: `adw` in `XDG_CACHE_HOME`, or in `.cache` of the home folder; none without either.
pub fn cache_folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let caches = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(caches.join("adw"))
}

impl Table {
    /// The table of a device and of versions, in a file of its own in `folder`; without a folder it lasts as long as the
    /// program. A file that is not there, cannot be read or is something else is an empty table.
    pub fn open(folder: Option<&Path>, device: &str, versions: &[&str]) -> Self {
        let mut hasher = DefaultHasher::new();
        (device, versions).hash(&mut hasher);
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let name: String = device.chars().map(plain).collect();
        let file = folder.map(|f| f.join(format!("{name}-{:016x}.json", hasher.finish())));
        let empty = Contents {
            device: device.into(),
            versions: versions.iter().map(|&v| v.into()).collect(),
            microseconds: BTreeMap::new(),
        };
        let on_disk = file.as_deref().and_then(read);
        let contents =
            on_disk.filter(|c| (&c.device, &c.versions) == (&empty.device, &empty.versions)).unwrap_or(empty);
        Self { file, contents, remembered: BTreeMap::new() }
    }

    /// Where it is kept.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// What was measured for this work.
    pub fn times(&self, work: &str) -> Option<&Times> {
        let kept = self.contents.microseconds.get(work);
        kept.or_else(|| self.remembered.get(work))
    }

    /// Takes times up for as long as the program runs.
    pub fn remember(&mut self, work: &str, times: Times) {
        self.remembered.insert(work.into(), times);
    }

    /// Takes times up, and writes the file. If another program has written times for the same work since, those count, so
    /// that all programs on a machine choose alike; what this one has chosen by already stays.
    ///
    /// # Errors
    /// If it cannot be written; the times are known all the same.
    pub fn insert(&mut self, work: &str, times: Times) -> io::Result<()> {
        self.contents.microseconds.insert(work.into(), times);
        let Some(file) = &self.file else {
            return Ok(());
        };
        fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
        // From reading to writing, one program at a time, where the file system has locks and nobody holds one for long:
        // without, a program may have to measure again what another has. The lock goes with the file handle.
        let lock = fs::File::create(file.with_extension("lock"))?;
        for _ in 0..50 {
            match lock.try_lock() {
                Err(fs::TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(20)),
                Ok(()) | Err(fs::TryLockError::Error(_)) => break,
            }
        }
        for (other, times) in read(file).unwrap_or_default().microseconds {
            if other == work {
                self.contents.microseconds.insert(other, times);
            } else {
                self.contents.microseconds.entry(other).or_insert(times);
            }
        }
        // Aside and renamed: who reads without the lock finds a whole file.
        let aside = file.with_extension(format!("{}.tmp", std::process::id()));
        let text = serde_json::to_string_pretty(&self.contents).map_err(io::Error::other)?;
        fs::write(&aside, text).and_then(|()| fs::rename(&aside, file))
    }
}

fn read(file: &Path) -> Option<Contents> {
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_broken_is_measured_anew_and_what_others_wrote_stays() {
        let dir = tempfile::tempdir().expect("a folder");
        let open = || Table::open(Some(dir.path()), "GPU 1 (80 GB)", &["a", "b"]);
        let (mut one, mut other) = (open(), open());
        let times = |own: f64| Times::from([("own".into(), own)]);
        one.insert("x", times(1.0)).expect("written");
        other.insert("y", times(2.0)).expect("written");
        other.insert("x", times(3.0)).expect("written");
        assert_eq!(other.times("x"), Some(&times(1.0)), "who came first is right");
        one.insert("y", times(4.0)).expect("written");
        assert_eq!(one.times("y"), Some(&times(2.0)));
        let both = open();
        assert_eq!(both.times("x"), Some(&times(1.0)));
        assert_eq!(both.times("y"), Some(&times(2.0)));
        assert_eq!(both.contents.device, "GPU 1 (80 GB)");
        one.remember("z", times(5.0));
        one.insert("w", times(6.0)).expect("written");
        assert_eq!(one.times("z"), Some(&times(5.0)));
        assert_eq!(open().times("z"), None, "what is only remembered");
        assert_eq!(open().times("w"), Some(&times(6.0)));

        fs::write(one.file().expect("a file"), "{\"device\": ").expect("written");
        let mut again = open();
        assert_eq!(again.times("x"), None);
        again.insert("x", times(3.0)).expect("written");
        assert_eq!(open().times("x"), Some(&times(3.0)));
        let files = fs::read_dir(dir.path()).expect("a folder").count();
        assert_eq!(files, 2, "the table and its lock");
    }

    #[test]
    fn times_that_cannot_be_written_are_known_all_the_same() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("file");
        fs::write(&file, "").expect("written");
        let mut table = Table::open(Some(&file), "GPU", &[]);
        let times = Times::from([("own".into(), 1.0)]);
        assert!(table.insert("x", times.clone()).is_err());
        assert_eq!(table.times("x"), Some(&times));
    }
}
