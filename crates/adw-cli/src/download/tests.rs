use super::{
    web_server::{Faults, WebServer},
    *,
};
use std::time::Duration;

const IMPATIENT: RetryPolicy =
    RetryPolicy { max_attempts: 3, first_wait: Duration::from_millis(1), timeout: Duration::from_secs(5) };

/// An archive of about 300 kB: several reads of the client, several cuts of the server.
fn dataset_archive() -> Vec<u8> {
    let noise: Vec<u8> = (0..300_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    archive(&[("Task99_Test/dataset.json", b"{}"), ("Task99_Test/imagesTr/a.nii.gz", &noise)])
}

/// A tar archive of files.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn manifest_of(bytes: &[u8]) -> Manifest {
    Manifest {
        task: "test".into(),
        folder: "Task99_Test".into(),
        modality: String::new(),
        target: String::new(),
        url: "http://127.0.0.1:1/never".into(),
        md5: digest::hexadecimal(Md5::new_with_prefix(bytes)),
        approximate_bytes: bytes.len() as u64,
        licence: String::new(),
        citation: String::new(),
    }
}

/// Names in `root`, hidden files included.
fn names(root: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn run(faults: Faults) -> (tempfile::TempDir, WebServer, Result<PathBuf>) {
    let bytes = dataset_archive();
    let root = tempfile::tempdir().unwrap();
    let server = WebServer::start(bytes.clone(), faults);
    let result = download(&manifest_of(&bytes), root.path(), Some(&server.url), IMPATIENT);
    (root, server, result)
}

fn assert_whole(root: &Path, result: Result<PathBuf>) {
    let folder = result.unwrap();
    assert_eq!(fs::read(folder.join("imagesTr/a.nii.gz")).unwrap().len(), 300_000);
    assert_eq!(names(root), ["Task99_Test"], "nothing else may stay behind");
}

#[test]
fn a_sound_server_is_asked_once_and_a_present_dataset_never() {
    let (root, server, result) = run(Faults::default());
    assert_whole(root.path(), result);
    assert_eq!(*server.asked_from.lock().unwrap(), [0]);
    let manifest = manifest_of(&dataset_archive());
    download(&manifest, root.path(), Some("http://127.0.0.1:1"), IMPATIENT).unwrap();
}

#[test]
fn a_server_that_cuts_connections_is_asked_for_the_rest() {
    let (root, server, result) = run(Faults { cut_after: Some(70_000), ..Faults::default() });
    assert_whole(root.path(), result);
    let asked = server.asked_from.lock().unwrap().clone();
    assert!(asked.len() >= 5, "{asked:?}");
    assert!(asked.windows(2).all(|pair| pair[0] < pair[1]), "each request goes on where the last stopped: {asked:?}");
}

#[test]
fn a_server_that_cuts_and_ignores_ranges_is_given_up_and_the_bytes_are_kept() {
    let (root, _, result) = run(Faults { cut_after: Some(70_000), ignore_ranges: true, ..Faults::default() });
    let error = format!("{:#}", result.unwrap_err());
    assert!(error.contains("70000 bytes so far are kept"), "{error}");
    assert_eq!(names(root.path()), [".Task99_Test.tar.part"]);
}

#[test]
fn an_interrupted_download_goes_on_later_even_if_ranges_are_ignored_then() {
    for ignore_ranges in [false, true] {
        let bytes = dataset_archive();
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join(".Task99_Test.tar.part"), &bytes[..123_456]).unwrap();
        let server = WebServer::start(bytes.clone(), Faults { ignore_ranges, ..Faults::default() });
        let result = download(&manifest_of(&bytes), root.path(), Some(&server.url), IMPATIENT);
        assert_whole(root.path(), result);
        assert_eq!(*server.asked_from.lock().unwrap(), [123_456]);
    }
}

#[test]
fn a_part_file_that_is_whole_needs_no_body_and_a_spoiled_one_is_fetched_anew() {
    let bytes = dataset_archive();
    for spoiled in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let mut part = bytes.clone();
        if spoiled {
            part.truncate(100_000);
            part[5000] ^= 1;
        }
        fs::write(root.path().join(".Task99_Test.tar.part"), &part).unwrap();
        let server = WebServer::start(bytes.clone(), Faults::default());
        let result = download(&manifest_of(&bytes), root.path(), Some(&server.url), IMPATIENT);
        assert_whole(root.path(), result);
        let expected: &[usize] = if spoiled { &[100_000, 0] } else { &[bytes.len()] };
        assert_eq!(*server.asked_from.lock().unwrap(), expected);
    }
}

#[test]
fn a_wrong_file_is_named_by_its_checksum_and_leaves_nothing() {
    let bytes = dataset_archive();
    let mut wrong = bytes.clone();
    wrong[100_000] ^= 1;
    let root = tempfile::tempdir().unwrap();
    let server = WebServer::start(wrong, Faults::default());
    let manifest = manifest_of(&bytes);
    let error = download(&manifest, root.path(), Some(&server.url), IMPATIENT).unwrap_err().to_string();
    assert!(error.contains("is not the published Task99_Test.tar") && error.contains(&manifest.md5), "{error}");
    assert!(names(root.path()).is_empty(), "{:?}", names(root.path()));
}

#[test]
fn lies_about_lengths_end_in_the_right_file_or_in_an_error() {
    // Too long a Content-Length: every byte arrives, then the connection closes "early".
    let (root, _, result) = run(Faults { length_lie: 10, ..Faults::default() });
    assert_whole(root.path(), result);
    // Too short a one: what is announced is not the file.
    let (root, _, result) = run(Faults { length_lie: -2000, ignore_ranges: true, ..Faults::default() });
    assert!(result.is_err());
    assert!(!root.path().join("Task99_Test").exists());
    // An absurd one.
    let (root, _, result) = run(Faults { length_lie: 1 << 50, ..Faults::default() });
    let error = result.unwrap_err().to_string();
    assert!(error.contains("the server announces 1125899"), "{error}");
    assert!(names(root.path()).is_empty());
    // None.
    let (root, _, result) = run(Faults { no_length: true, ..Faults::default() });
    assert_whole(root.path(), result);
}

#[test]
fn a_busy_server_is_waited_for_and_a_refusing_one_is_not() {
    let (root, _, result) = run(Faults { busy_requests: 2, ..Faults::default() });
    assert_whole(root.path(), result);
    let (root, server, result) = run(Faults { status: Some("403 Forbidden"), ..Faults::default() });
    assert!(result.unwrap_err().to_string().contains("403"));
    assert_eq!(server.asked_from.lock().unwrap().len(), 1);
    assert!(names(root.path()).is_empty());
    let (_, server, result) = run(Faults { busy_requests: usize::MAX, ..Faults::default() });
    assert!(format!("{:#}", result.unwrap_err()).contains("503"));
    assert_eq!(server.asked_from.lock().unwrap().len(), 3);
}

#[test]
fn a_file_mirror_works_and_a_missing_one_is_named() {
    let bytes = dataset_archive();
    let mirror = tempfile::tempdir().unwrap();
    fs::write(mirror.path().join("Task99_Test.tar"), &bytes).unwrap();
    let url = format!("file://{}", mirror.path().display());
    let root = tempfile::tempdir().unwrap();
    assert_whole(root.path(), download(&manifest_of(&bytes), root.path(), Some(&url), IMPATIENT));
    let error = download(&manifest_of(&bytes), mirror.path(), Some("file:///nowhere"), IMPATIENT).unwrap_err();
    assert!(format!("{error:#}").contains("cannot read /nowhere/Task99_Test.tar"), "{error:#}");
}

#[test]
fn a_hostile_archive_leaves_no_folder() {
    let bytes = archive(&[("Task99_Test/dataset.json", b"{}"), ("Task98_Other/evil", b"x")]);
    let root = tempfile::tempdir().unwrap();
    let server = WebServer::start(bytes.clone(), Faults::default());
    let error = download(&manifest_of(&bytes), root.path(), Some(&server.url), IMPATIENT).unwrap_err();
    assert!(format!("{error:#}").contains("is not in Task99_Test/"), "{error:#}");
    assert_eq!(names(root.path()), [".Task99_Test.tar.part"]);
}

#[test]
fn two_downloads_of_one_task_do_not_mix() {
    let bytes = dataset_archive();
    let root = tempfile::tempdir().unwrap();
    let part = File::create(root.path().join(".Task99_Test.tar.part")).unwrap();
    part.lock().unwrap();
    let error = download(&manifest_of(&bytes), root.path(), Some("http://127.0.0.1:1"), IMPATIENT).unwrap_err();
    assert!(error.to_string().contains("another process is downloading test"), "{error}");
}
