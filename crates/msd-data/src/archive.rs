//! Unpacking of a dataset's archive, which may be damaged or hostile.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, Entry, EntryType};

use crate::error::{Error, Result};

/// Most entries of an archive; that of the largest task of the decathlon has about 2500.
const MAX_ENTRIES: usize = 100_000;

/// Most folders above a file.
const MAX_DEPTH: usize = 16;

/// Most bytes of an entry that describes the next one: a long name, or times and owners.
const MAX_DESCRIPTION_BYTES: u64 = 1 << 16;

/// Unpacks the tar file `archive` into the folder `into` and returns `into/folder`, which holds a `dataset.json`. Files and
/// folders are on the disk on return.
///
/// Two passes: all headers are looked at before the first file is written.
///
/// # Errors
/// [`Error::Archive`], after which `into` is to be thrown away: an entry is neither a file nor a folder (a link, a device, a
/// sparse file), is absolute or climbs out with `..`, lies outside `folder` or more than 16 folders deep, has a name with
/// control characters, or is there twice; there are more than 100,000 entries, or they claim more than `max_bytes` in all.
/// Sizes are those of the headers: one that claims terabytes costs nothing. [`Error::Io`].
pub fn unpack(mut archive: impl Read + Seek, into: &Path, folder: &str, max_bytes: u64) -> Result<PathBuf> {
    check_headers(&mut archive, max_bytes)?;
    archive.seek(SeekFrom::Start(0)).map_err(damaged("the archive"))?;
    let mut archive = Archive::new(archive);
    // A file of each folder.
    let mut files = BTreeMap::new();
    for entry in archive.entries().map_err(damaged("the archive"))? {
        let mut entry = entry.map_err(damaged("the archive"))?;
        let name = name_of(&entry);
        let is_dir = match entry.header().entry_type() {
            EntryType::XGlobalHeader => continue,
            kind => kind.is_dir(),
        };
        let path = inside(&entry.path().map_err(damaged(&name))?, folder)?;
        // macOS keeps resource forks in such files; the decathlon's archives are full of them.
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("._")) {
            continue;
        }
        let target = into.join(&path);
        let parent = if is_dir { Some(target.as_path()) } else { target.parent() };
        if let Some(parent) = parent {
            adw_files::create_folders(parent).map_err(|cause| not_written(&name, parent, cause))?;
        }
        if !is_dir {
            write(&mut entry, &name, &target)?;
            files.insert(target.parent().map(Path::to_path_buf), target);
        }
    }
    for file in files.values() {
        adw_files::sync_parent(file).map_err(Error::io(file))?;
    }
    let dataset = into.join(folder);
    if !dataset.join("dataset.json").is_file() {
        return Err(refused(folder, "holds no dataset.json".to_owned()));
    }
    Ok(dataset)
}

/// Checks number, kinds and sizes of the entries as they are stored, also of those that describe others, which are read into
/// memory as a whole.
fn check_headers(archive: &mut (impl Read + Seek), max_bytes: u64) -> Result<()> {
    let mut left = max_bytes;
    let mut archive = Archive::new(archive);
    let entries = archive.entries_with_seek().map_err(damaged("the archive"))?.raw(true);
    for (i, entry) in entries.enumerate() {
        let entry = entry.map_err(damaged("the archive"))?;
        let (name, size) = (name_of(&entry), entry.size());
        if i >= MAX_ENTRIES {
            return Err(refused(&name, format!("is one of more than {MAX_ENTRIES} entries; a dataset has fewer")));
        }
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous | EntryType::Directory => {}
            EntryType::GNULongName | EntryType::XHeader | EntryType::XGlobalHeader if size <= MAX_DESCRIPTION_BYTES => {
            }
            EntryType::GNULongName | EntryType::XHeader | EntryType::XGlobalHeader => {
                let problem = format!("has {size} bytes of names and attributes, more than {MAX_DESCRIPTION_BYTES}");
                return Err(refused(&name, problem));
            }
            other => return Err(refused(&name, format!("is a {other:?}, not a file or folder"))),
        }
        left = left
            .checked_sub(size)
            .ok_or_else(|| refused(&name, format!("of {size} bytes takes the archive past {max_bytes} bytes")))?;
    }
    Ok(())
}

fn write(entry: &mut Entry<'_, impl Read>, name: &str, target: &Path) -> Result<()> {
    let size = entry.size();
    let mut file = match File::create_new(target) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(refused(name, "is there twice".to_owned()));
        }
        created => created.map_err(|cause| not_written(name, target, cause))?,
    };
    // An extended header may give the entry another size than the first pass has seen.
    let written = io::copy(&mut entry.take(size), &mut file).map_err(Error::io(target))?;
    if written != size {
        return Err(refused(name, format!("is cut off: {written} of {size} bytes")));
    }
    file.sync_all().map_err(Error::io(target))
}

/// `path` without `.` components, if it stays below `folder`.
fn inside(path: &Path, folder: &str) -> Result<PathBuf> {
    let name = path.display().to_string();
    if name.contains(char::is_control) {
        return Err(refused(&name, "has control characters in its name".to_owned()));
    }
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir => {}
            _ => return Err(refused(&name, "leads outside the folder it is unpacked in".to_owned())),
        }
    }
    if !clean.as_os_str().is_empty() && !clean.starts_with(folder) && clean != Path::new(&format!("._{folder}")) {
        return Err(refused(&name, format!("is not in {folder}/")));
    }
    if clean.components().count() > MAX_DEPTH {
        return Err(refused(&name, format!("lies more than {MAX_DEPTH} folders deep")));
    }
    Ok(clean)
}

/// Name of an entry as its header has it.
fn name_of(entry: &Entry<'_, impl Read>) -> String {
    String::from_utf8_lossy(&entry.path_bytes()).into_owned()
}

fn refused(entry: &str, problem: String) -> Error {
    Error::Archive { entry: entry.to_owned(), problem }
}

/// The error of a header that cannot be read. The reader's own text quotes the bytes, which say nothing to a person.
fn damaged(entry: &str) -> impl FnOnce(io::Error) -> Error {
    let entry = entry.to_owned();
    move |cause| {
        let problem = match cause.raw_os_error() {
            Some(_) => format!("cannot be read: {cause}"),
            None => "is damaged or cut off; download the archive again".to_owned(),
        };
        Error::Archive { entry, problem }
    }
}

/// An entry that cannot be written because of its name is the archive's fault, anything else that of the disk.
fn not_written(entry: &str, target: &Path, cause: io::Error) -> Error {
    use io::ErrorKind::{AlreadyExists, InvalidFilename, NotADirectory};
    match cause.kind() {
        AlreadyExists | InvalidFilename | NotADirectory => refused(entry, format!("has an impossible name: {cause}")),
        _ => Error::io(target)(cause),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use std::fs;

    type Stored<'a> = (&'a str, EntryType, u64, &'a [u8]);

    /// A tar archive of entries (name as written in the header, type, claimed size, content).
    fn archive(entries: &[Stored]) -> Cursor<Vec<u8>> {
        let mut bytes = Vec::new();
        for (name, kind, size, content) in entries {
            let mut header = tar::Header::new_gnu();
            // Written by hand: the builder's own setters refuse the names this is about.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(*size);
            header.set_mode(0o644);
            if *kind == EntryType::Symlink || *kind == EntryType::Link {
                header.set_link_name("/etc/passwd").unwrap();
            }
            header.set_cksum();
            bytes.extend_from_slice(header.as_bytes());
            bytes.extend_from_slice(content);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
        bytes.resize(bytes.len() + 1024, 0);
        Cursor::new(bytes)
    }

    fn file<'a>(name: &'a str, content: &'a [u8]) -> Stored<'a> {
        (name, EntryType::Regular, content.len() as u64, content)
    }

    const GOOD: Stored = ("T/dataset.json", EntryType::Regular, 2, b"{}");

    #[test]
    fn files_and_folders_come_out_and_resource_forks_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let long = format!("T/imagesTr/{}.nii", "b".repeat(150));
        let archive = archive(&[
            ("./T/", EntryType::Directory, 0, b""),
            GOOD,
            file("./T/imagesTr/a.nii.gz", b"voxels"),
            file("T/imagesTr/._a.nii.gz", b"junk"),
            file("./._T", b"junk"),
            ("././@LongLink", EntryType::GNULongName, long.len() as u64, long.as_bytes()),
            file("T/imagesTr/bbb", b"long"),
        ]);
        let folder = unpack(archive, dir.path(), "T", 1000).unwrap();
        assert_eq!(fs::read(folder.join("imagesTr/a.nii.gz")).unwrap(), b"voxels");
        assert_eq!(fs::read(dir.path().join(&long)).unwrap(), b"long");
        assert_eq!(fs::read_dir(folder.join("imagesTr")).unwrap().count(), 2);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn hostile_entries_are_refused_by_name() {
        let outside = tempfile::tempdir().unwrap();
        let absolute = outside.path().join("x").display().to_string();
        let (deep, long_name) = ("T/".repeat(17), vec![b'x'; 70_000]);
        for (entry, complaint) in [
            (file("../evil", b"x"), "\"../evil\" leads outside"),
            (file("T/../../evil", b"x"), "leads outside"),
            (file(&absolute, b"x"), "leads outside"),
            (file("Other/a", b"x"), "is not in T/"),
            (file(&deep, b"x"), "folders deep"),
            (file("T/a\u{1b}[2J", b"x"), "\"T/a\\u{1b}[2J\" has control characters"),
            (("T/link", EntryType::Symlink, 0, b"".as_slice()), "\"T/link\" is a Symlink"),
            (("T/link", EntryType::Link, 0, b""), "\"T/link\" is a Link"),
            (("T/tty", EntryType::Char, 0, b""), "\"T/tty\" is a Char"),
            (("T/hole", EntryType::GNUSparse, 0, b""), "\"T/hole\" is a GNUSparse"),
            (("T/big", EntryType::Regular, 1 << 32, b""), "of 4294967296 bytes takes the archive past 100000"),
            (("L", EntryType::GNULongName, 70_000, &long_name), "70000 bytes of names"),
            (file("T/dataset.json", b"again"), "\"T/dataset.json\" is there twice"),
            (file("T/dataset.json/x", b"x"), "impossible name"),
            (("T/dataset.json", EntryType::Directory, 0, b""), "impossible name"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let into = dir.path().join("into");
            fs::create_dir(&into).unwrap();
            let error = unpack(archive(&[GOOD, entry]), &into, "T", 100_000).unwrap_err().to_string();
            assert!(error.contains(complaint), "{error} for {complaint}");
            assert!(!dir.path().join("evil").exists());
        }
        assert!(!outside.path().join("x").exists());
    }

    #[test]
    fn too_many_entries_are_refused_before_the_first_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let folder: Stored = ("T/", EntryType::Directory, 0, b"");
        let many: Vec<_> = std::iter::repeat_n(folder, MAX_ENTRIES + 1).collect();
        let error = unpack(archive(&many), dir.path(), "T", 100).unwrap_err().to_string();
        assert!(error.contains("more than 100000 entries"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_archive_cut_short_or_without_a_dataset_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut whole = archive(&[GOOD, file("T/a", &[7; 2000])]).into_inner();
        whole.truncate(2048);
        let error = unpack(Cursor::new(whole), dir.path(), "T", 10_000).unwrap_err().to_string();
        assert!(error.contains("T/a"), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let error = unpack(archive(&[file("T/a", b"x")]), dir.path(), "T", 100).unwrap_err();
        assert!(error.to_string().contains("\"T\" holds no dataset.json"));
    }
}
