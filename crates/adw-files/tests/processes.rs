//! Kills, full disks, planted links and competing processes. Children are this test program again, in the role that an
//! environment variable names.

#![cfg(unix)]
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use adw_files::{
    NewFile, NewFolder, create_folders, lock_with_timeout, open_regular, remove_own, remove_stale, write_atomic,
    write_bytes,
};

const ROLE: &str = "ADW_FILES_TEST_ROLE";
const FOLDER: &str = "ADW_FILES_TEST_FOLDER";
const READY: &str = "child is ready";

/// Entry point of the children; does nothing in the parent's list of tests.
#[test]
fn child() {
    let (Ok(role), Ok(folder)) = (std::env::var(ROLE), std::env::var(FOLDER)) else { return };
    let folder = Path::new(&folder);
    let wait = || {
        println!("{READY}");
        std::thread::sleep(Duration::from_mins(1));
    };
    match role.as_str() {
        "write and wait" => {
            let mut file = NewFile::create(&folder.join("a.txt")).unwrap();
            file.write_all(&vec![b'x'; 100_000]).unwrap();
            let run = NewFolder::create(&folder.join("run")).unwrap();
            write_bytes(&run.path().join("config.toml"), b"seed = 1").unwrap();
            wait();
        }
        "remove own" => {
            let replaced = folder.join("a.txt");
            write_bytes(&replaced, b"whole").unwrap();
            let file = NewFile::create(&replaced).unwrap();
            let run = NewFolder::create(&folder.join("run")).unwrap();
            write_bytes(&run.path().join("config.toml"), b"seed = 1").unwrap();
            let removed = remove_own();
            assert_eq!(names(folder), ["a.txt"]);
            let waiting = std::thread::spawn(move || (file.commit().is_err(), write_bytes(&replaced, b"late").is_ok()));
            std::thread::sleep(Duration::from_millis(200));
            assert!(!waiting.is_finished() && fs::read(folder.join("a.txt")).unwrap() == b"whole");
            drop(removed);
            assert_eq!(waiting.join().unwrap(), (true, true));
        }
        "lock and wait" => {
            let _lock = lock_with_timeout(&folder.join(".lock"), Duration::ZERO).unwrap();
            let _folder = lock_with_timeout(folder, Duration::ZERO).unwrap();
            wait();
        }
        "replace often" => {
            for round in 0..200u32 {
                write_bytes(&folder.join("a.txt"), &vec![round as u8; 30_000]).unwrap();
                remove_stale(folder).unwrap();
            }
        }
        "exceed the file size" => {
            let error = write_bytes(&folder.join("a.txt"), &vec![b'x'; 1_000_000]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        }
        role => panic!("no role {role}"),
    }
}

fn command(program: impl AsRef<std::ffi::OsStr>, role: &str, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.env(ROLE, role).env(FOLDER, folder).stdout(Stdio::piped());
    command
}

fn child_command(role: &str, folder: &Path) -> Command {
    let mut command = command(std::env::current_exe().unwrap(), role, folder);
    command.args(["--exact", "child", "--nocapture"]);
    command
}

/// Starts a child and waits until it has done its part.
fn start(role: &str, folder: &Path) -> Child {
    let mut child = child_command(role, folder).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map(Result::unwrap).any(|line| line.contains(READY)));
    child
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_kill_leaves_the_old_content_and_what_it_left_is_removed_once_it_is_dead() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    write_bytes(&path, b"old").unwrap();
    let mut child = start("write and wait", dir.path());
    assert_eq!(remove_stale(dir.path()).unwrap(), 0, "its files are in use");
    assert_eq!(names(dir.path()).len(), 4, "the old file, the new one, the folder and its lock");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert!(!dir.path().join("run").exists());
    assert_eq!(remove_stale(dir.path()).unwrap(), 2);
    assert_eq!(names(dir.path()), ["a.txt"]);
    assert_eq!(remove_stale(&dir.path().join("absent")).unwrap(), 0);
}

#[test]
fn a_failed_write_leaves_the_old_content_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    write_bytes(&path, b"old").unwrap();
    let failed = write_atomic(&path, |file| {
        file.write_all(b"new, half")?;
        Err(io::Error::other("no more data"))
    });
    assert_eq!(failed.unwrap_err().to_string(), "no more data");
    drop(NewFile::create(&path).unwrap());
    drop(NewFolder::create(&dir.path().join("run")).unwrap());
    assert_eq!(names(dir.path()), ["a.txt"]);
    // A folder that could not be removed keeps its lock, by which it is found.
    let folder = NewFolder::create(&dir.path().join("run")).unwrap();
    let temporary = folder.path().to_owned();
    fs::remove_dir(&temporary).unwrap();
    fs::write(&temporary, "").unwrap();
    drop(folder);
    fs::remove_file(&temporary).unwrap();
    fs::create_dir(&temporary).unwrap();
    assert_eq!(remove_stale(dir.path()).unwrap(), 1);
    assert_eq!(names(dir.path()), ["a.txt"]);
    assert_eq!(fs::read(&path).unwrap(), b"old");
}

/// A limit on the size of files fails as a full disk does: in the middle of a write.
#[test]
fn a_disk_that_is_full_half_way_leaves_the_old_content_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    write_bytes(&path, b"old").unwrap();
    let script = "trap '' XFSZ; ulimit -f 100; exec \"$0\" --exact child";
    let program = std::env::current_exe().unwrap();
    let status = command("sh", "exceed the file size", dir.path()).args(["-c", script]).arg(program).status().unwrap();
    assert!(status.success());
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(names(dir.path()), ["a.txt"]);
}

#[test]
fn two_processes_that_replace_one_file_leave_it_whole_at_every_instant() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    write_bytes(&path, &vec![7; 30_000]).unwrap();
    let mut children: Vec<_> = (0..2).map(|_| child_command("replace often", dir.path()).spawn().unwrap()).collect();
    while children.iter_mut().any(|child| child.try_wait().unwrap().is_none()) {
        let content = fs::read(&path).unwrap();
        assert_eq!(content, vec![content[0]; 30_000]);
    }
    assert!(children.iter_mut().all(|child| child.wait().unwrap().success()));
    assert_eq!(names(dir.path()), ["a.txt"]);
}

#[test]
fn a_process_that_ends_suddenly_removes_its_own() {
    let dir = tempfile::tempdir().unwrap();
    assert!(child_command("remove own", dir.path()).status().unwrap().success());
    assert_eq!(names(dir.path()), ["a.txt"]);
}

#[test]
fn the_old_content_is_kept_under_another_name() {
    let dir = tempfile::tempdir().unwrap();
    let (latest, previous) = (dir.path().join("latest"), dir.path().join("previous"));
    for round in 0..3 {
        let mut file = NewFile::create(&latest).unwrap();
        write!(file, "{round}").unwrap();
        file.commit_keeping(&previous).unwrap();
        assert_eq!(fs::read_to_string(&latest).unwrap(), round.to_string());
        assert_eq!(fs::read_to_string(&previous).ok(), (round > 0).then(|| (round - 1).to_string()));
    }
    fs::remove_file(&previous).unwrap();
    fs::create_dir(&previous).unwrap();
    let error = NewFile::create(&latest).unwrap().commit_keeping(&previous).unwrap_err();
    assert_eq!(error.to_string(), "is a folder, not a regular file");
    assert_eq!(fs::read_to_string(&latest).unwrap(), "2");
    assert_eq!(names(dir.path()), ["latest", "previous"]);
}

#[test]
fn folders_are_created_with_those_above_them() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("a/b/c");
    create_folders(&deep).unwrap();
    create_folders(&deep).unwrap();
    assert!(deep.is_dir());
    fs::write(dir.path().join("file"), "").unwrap();
    create_folders(&dir.path().join("file")).unwrap_err();
    create_folders(&dir.path().join("file/below")).unwrap_err();
}

#[test]
fn planted_links_are_neither_followed_nor_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("precious");
    fs::write(&outside, b"precious").unwrap();
    // Under all names that the next temporary files could have.
    for n in 0..100 {
        symlink(&outside, dir.path().join(format!(".a.txt.{}-{n}.adw-tmp", std::process::id()))).unwrap();
    }
    write_bytes(&dir.path().join("a.txt"), b"new").unwrap();
    assert_eq!(fs::read(&outside).unwrap(), b"precious");
    assert_eq!(fs::read(dir.path().join("a.txt")).unwrap(), b"new");
    assert_eq!(remove_stale(dir.path()).unwrap(), 0, "links are none of ours");

    symlink(&outside, dir.path().join("link.txt")).unwrap();
    let error = write_bytes(&dir.path().join("link.txt"), b"new").unwrap_err();
    assert_eq!(error.to_string(), "is a symbolic link, not a regular file");
    assert_eq!(fs::read(&outside).unwrap(), b"precious");
}

#[test]
fn devices_pipes_and_folders_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let start = Instant::now();
    for (path, kind) in
        [(pipe.as_path(), "a named pipe"), (Path::new("/dev/null"), "a device"), (dir.path(), "a folder")]
    {
        let expected = format!("is {kind}, not a regular file");
        assert_eq!(write_bytes(path, b"x").unwrap_err().to_string(), expected);
        assert_eq!(open_regular(path).unwrap_err().to_string(), expected);
        if kind != "a folder" {
            assert_eq!(lock_with_timeout(path, Duration::ZERO).unwrap_err().to_string(), expected);
        }
    }
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    assert_eq!(names(dir.path()), ["pipe"]);
    let mut text = String::new();
    write_bytes(&dir.path().join("a.txt"), b"text").unwrap();
    open_regular(&dir.path().join("a.txt")).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "text");
}

#[test]
fn a_folder_appears_with_its_content_in_place_of_nothing_or_of_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["new", "empty"] {
        let target = dir.path().join(name);
        if name == "empty" {
            fs::create_dir(&target).unwrap();
        }
        let folder = NewFolder::create(&target).unwrap();
        write_bytes(&folder.path().join("a.txt"), b"a").unwrap();
        folder.commit().unwrap();
        assert_eq!(names(&target), ["a.txt"]);
    }
    let taken = NewFolder::create(&dir.path().join("new")).unwrap_err();
    assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
    for nameless in [".", "..", "/"] {
        assert!(NewFolder::create(Path::new(nameless)).is_err());
        assert!(NewFile::create(Path::new(nameless)).is_err());
    }
}

#[test]
fn a_lock_excludes_other_processes_and_ends_with_its_holder() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(".lock");
    let mut child = start("lock and wait", dir.path());
    for path in [file.as_path(), dir.path()] {
        let error = lock_with_timeout(path, Duration::from_millis(100)).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (io::ErrorKind::WouldBlock, "is in use by another process")
        );
    }
    let waiting = std::thread::spawn(move || lock_with_timeout(&file, Duration::from_secs(20)).map(|_| ()));
    std::thread::sleep(Duration::from_millis(200));
    assert!(!waiting.is_finished());
    child.kill().unwrap();
    child.wait().unwrap();
    waiting.join().unwrap().unwrap();
    lock_with_timeout(dir.path(), Duration::from_secs(5)).unwrap();
    assert!(File::open(dir.path().join(".lock")).is_ok());
}
