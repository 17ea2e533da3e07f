//! Which of several ways to do the same work is the fastest on this device: measured once, kept in a file.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Times of every way that was tried, in microseconds.
pub type Times = BTreeMap<String, f64>;

/// Work by its description, and the times of the ways to do it.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("adw-choice-{}", std::process::id()));
/// use adw_cuda::choice::Table;
/// let mut table = Table::open(Some(&dir), "some device", &["libraries 1.0"]);
/// assert_eq!(table.fastest("product of 3 by 3"), None);
/// table.insert("product of 3 by 3", [("own".into(), 4.5), ("library".into(), 3.0)].into())?;
/// let again = Table::open(Some(&dir), "some device", &["libraries 1.0"]);
/// assert_eq!(again.fastest("product of 3 by 3"), Some("library"));
/// let other = Table::open(Some(&dir), "some device", &["libraries 2.0"]);
/// assert_eq!(other.fastest("product of 3 by 3"), None);
/// # std::fs::remove_dir_all(&dir)?;
/// # Ok::<_, std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Table {
    file: Option<PathBuf>,
    contents: Contents,
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
    let set = |name| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
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
        let contents = on_disk
            .filter(|c| (&c.device, &c.versions) == (&empty.device, &empty.versions))
            .unwrap_or(empty);
        Self { file, contents }
    }

    /// Where it is kept.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The way that took the least time for this work, if it was measured; of equals the first by name.
    pub fn fastest(&self, work: &str) -> Option<&str> {
        let times = self.contents.microseconds.get(work)?;
        let fastest = times.iter().min_by(|a, b| a.1.total_cmp(b.1))?;
        Some(fastest.0)
    }

    /// Takes times up, and writes the file. What others have written into it since stays, also for the same work, so that
    /// all programs on a machine choose alike.
    ///
    /// # Errors
    /// If it cannot be written; the times are known all the same.
    pub fn insert(&mut self, work: &str, times: Times) -> io::Result<()> {
        self.contents.microseconds.insert(work.into(), times);
        let Some(file) = &self.file else {
            return Ok(());
        };
        if let Some(on_disk) = read(file) {
            self.contents.microseconds.extend(on_disk.microseconds);
        }
        let folder = file.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        // Aside and renamed: who reads at the same time finds a whole file.
        let aside = file.with_extension(format!("{}.tmp", std::process::id()));
        let text = serde_json::to_string_pretty(&self.contents).map_err(io::Error::other)?;
        let written = fs::File::create(&aside)
            .and_then(|mut f| f.write_all(text.as_bytes()))
            .and_then(|()| fs::rename(&aside, file));
        if written.is_err() {
            let _ = fs::remove_file(&aside);
        }
        written
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
        let times = |own: f64, library: f64| {
            Times::from([("own".into(), own), ("library".into(), library)])
        };
        one.insert("x", times(1.0, 2.0)).expect("written");
        other.insert("y", times(2.0, 1.0)).expect("written");
        other.insert("x", times(2.0, 1.0)).expect("written");
        assert_eq!(other.fastest("x"), Some("own"), "who came first is right");
        let both = open();
        assert_eq!(
            (both.fastest("x"), both.fastest("y")),
            (Some("own"), Some("library"))
        );
        assert_eq!(both.contents.device, "GPU 1 (80 GB)");

        fs::write(one.file().expect("a file"), "{\"device\": ").expect("written");
        let mut again = open();
        assert_eq!(again.fastest("x"), None);
        again.insert("x", times(3.0, 2.0)).expect("written");
        assert_eq!(open().fastest("x"), Some("library"));
        let files = fs::read_dir(dir.path()).expect("a folder").count();
        assert_eq!(files, 1, "nothing is left aside");
    }

    #[test]
    fn a_table_that_cannot_be_written_still_chooses() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("file");
        fs::write(&file, "").expect("written");
        let mut table = Table::open(Some(&file), "GPU", &[]);
        let times = Times::from([("own".into(), 1.0)]);
        assert!(table.insert("x", times).is_err());
        assert_eq!(table.fastest("x"), Some("own"));
    }
}
