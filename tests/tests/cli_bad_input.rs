//! Bad input ends with exit code 2 and one line that says what is wrong, and leaves nothing behind.
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use cli_support::{Adw, Outcome, TINY, copy_folder, names, phantom, shared_dir};
use msd_data::{read_image, read_labels, write_image, write_labels};

/// A sound dataset, a finished search and a trained model, made once.
struct Sound {
    dir: PathBuf,
    data: PathBuf,
}

impl Sound {
    fn run(&self) -> PathBuf {
        self.dir.join("run")
    }

    fn model(&self) -> PathBuf {
        self.run().join("retrain/fold_0/model.safetensors")
    }

    fn architecture(&self) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.run().join("search/fold_0/architecture.json")).unwrap()).unwrap()
    }
}

fn sound() -> &'static Sound {
    static SOUND: OnceLock<Sound> = OnceLock::new();
    SOUND.get_or_init(|| {
        let dir = shared_dir("bad-input");
        let data = phantom(&dir, 5);
        let sound = Sound { dir, data };
        Adw::new(["search"]).path("--data", &sound.data).path("--run", &sound.run()).args(TINY).succeed();
        Adw::new(["retrain"]).path("--run", &sound.run()).succeed();
        sound
    })
}

/// Damages a copy of the sound dataset, then plans and searches with it.
#[track_caller]
fn assert_dataset_refused(damage: impl FnOnce(&Path), parts: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("Task00_Phantom");
    copy_folder(&sound().data, &data);
    damage(&data);
    Adw::new(["plan"]).path("--data", &data).run().assert_bad_input(parts);
    let run = dir.path().join("runs/phantom/one");
    Adw::new(["search"]).path("--data", &data).path("--run", &run).args(TINY).run().assert_bad_input(parts);
    assert_eq!(names(dir.path()), ["Task00_Phantom"], "a failed search leaves nothing");
}

/// The first training image and its label map.
fn first_case(data: &Path) -> (PathBuf, PathBuf) {
    let name = names(&data.join("imagesTr")).remove(0);
    (data.join("imagesTr").join(&name), data.join("labelsTr").join(&name))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn a_listed_file_that_is_missing() {
    let name = file_name(&first_case(&sound().data).0);
    assert_dataset_refused(
        |data| fs::remove_file(first_case(data).0).unwrap(),
        &["dataset.json", &name, "does not exist"],
    );
}

#[test]
fn a_truncated_image_and_a_truncated_label_map() {
    for pick in [|case: (PathBuf, PathBuf)| case.0, |case: (PathBuf, PathBuf)| case.1] {
        let name = file_name(&pick(first_case(&sound().data)));
        assert_dataset_refused(
            |data| {
                let path = pick(first_case(data));
                let bytes = fs::read(&path).unwrap();
                fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
            },
            &[&name, "truncated or damaged"],
        );
    }
}

/// Cuts the last plane off a label map and returns the shapes it had and has.
fn cut_plane(from: &Path, to: &Path) -> [[usize; 3]; 2] {
    let map = read_labels(from).unwrap();
    let (z, y, x) = map.data.dim();
    let smaller = map.data.slice(ndarray::s![..z - 1, .., ..]).to_owned();
    let geometry = msd_data::Geometry::new([z - 1, y, x], map.geometry.spacing_mm);
    write_labels(to, &smaller.view(), &geometry).unwrap();
    [[z, y, x], [z - 1, y, x]]
}

#[test]
fn a_label_map_of_another_shape() {
    let dir = tempfile::tempdir().unwrap();
    let label = first_case(&sound().data).1;
    let [before, after] = cut_plane(&label, &dir.path().join("cut.nii.gz"));
    assert_dataset_refused(
        |data| {
            let label = first_case(data).1;
            cut_plane(&label, &label);
        },
        &["labelsTr", &format!("{before:?}"), &format!("{after:?}")],
    );
}

#[test]
fn a_label_value_that_dataset_json_does_not_name() {
    assert_dataset_refused(
        |data| {
            let (_, label) = first_case(data);
            let mut map = read_labels(&label).unwrap();
            map.data[[3, 3, 3]] = 7;
            write_labels(&label, &map.data.view(), &map.geometry).unwrap();
        },
        &["labelsTr", "label 7", "dataset.json"],
    );
}

/// Makes a voxel of an image NaN, which `write_image` refuses.
fn put_nan(image: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let (volume, plain) = (read_image(image).unwrap(), dir.path().join("plain.nii"));
    write_image(&plain, &volume.data.view(), &volume.geometry).unwrap();
    let mut bytes = fs::read(&plain).unwrap();
    bytes[352..356].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(image, bytes).unwrap();
}

#[test]
fn voxels_that_are_not_numbers() {
    assert_dataset_refused(
        |data| {
            let (image, _) = first_case(data);
            put_nan(&image);
        },
        &["imagesTr", "1 of ", " voxels are NaN"],
    );
}

#[test]
fn a_dataset_of_four_cases() {
    let dir = tempfile::tempdir().unwrap();
    let data = phantom(dir.path(), 4);
    let run = dir.path().join("run");
    let search = Adw::new(["search"]).path("--data", &data).path("--run", &run).args(TINY);
    search.run().assert_bad_input(&["4 training cases", "at least 5"]);
    assert!(!run.exists());
}

#[test]
fn a_dataset_json_that_is_no_json_and_a_folder_without_one() {
    assert_dataset_refused(|data| fs::write(data.join("dataset.json"), "{").unwrap(), &["dataset.json", "JSON"]);
    let dir = tempfile::tempdir().unwrap();
    Adw::new(["plan"]).path("--data", dir.path()).run().assert_bad_input(&["no dataset.json"]);
    Adw::new(["plan"]).path("--data", &dir.path().join("absent")).run().assert_bad_input(&["no such folder"]);
}

/// Runs a search of the sound dataset with extra arguments that must be refused.
#[track_caller]
fn assert_search_refused(extra: &[&str], parts: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let search = Adw::new(["search"]).path("--data", &sound().data).path("--run", &run).args(TINY).args(extra);
    search.run().assert_bad_input(parts);
    assert!(names(dir.path()).is_empty(), "a refused search leaves {:?}", names(dir.path()));
}

#[test]
fn a_patch_that_does_not_fit_in_memory() {
    assert_search_refused(&["--memory", "0.001"], &["16x24x16", "GB", "data.patch_size"]);
    assert_search_refused(&["--set=data.patch_size=[4096, 4096, 4096]"], &["4096x4096x4096", "GB"]);
}

#[test]
fn configuration_that_means_nothing() {
    assert_search_refused(&["--set", "search.epoch=3"], &["\"search.epoch\"", "\"search.epochs\""]);
    assert_search_refused(&["--set", "search.epochs=many"], &["search.epochs=many", "an integer"]);
    assert_search_refused(&["--set", "network.mask=behind"], &["mask", "behind", "post_norm"]);
    assert_search_refused(&["--set", "network.max_width=7"], &["7"]);
    assert_search_refused(&["--set", "search.epochs=0"], &["epochs"]);
    let budget = "search.cost={unit=\"macs\",weight=1.0,budget={absolute=10.0}}";
    assert_search_refused(&["--set", budget], &["cost.budget", "10, below", "smallest network"]);
    let budget = "search.cost={unit=\"macs\",weight=1.0,budget={absolute=1e15},at_least=0.9}";
    assert_search_refused(&["--set", budget], &["cost.at_least", "above", "largest network"]);
    assert_search_refused(&["--set", "search.precision=half"], &["half", "`full` or `bf16`"]);
    assert_search_refused(&["--set=search.epochs=1"], &["search.warmup_epochs = 1", "fewer than search.epochs = 1"]);
    assert_search_refused(&["--preset", "fast"], &["fast", "quick, standard, paper"]);
    assert_search_refused(&["--fold", "5"], &["fold", "5"]);
    assert_search_refused(&["--device", "cuda:0"], &["cuda:0", "built without CUDA"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mine.toml");
    fs::write(&file, "[search]\nepocs = 3\n").unwrap();
    assert_search_refused(&["--preset", file.to_str().unwrap()], &["mine.toml", "search.epocs", "search.epochs"]);
}

#[test]
fn runs_that_are_not_there_not_unfinished_or_not_alike() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("absent");
    Adw::new(["search", "--resume"]).path("--run", &absent).run().assert_bad_input(&["absent", "not a run"]);
    Adw::new(["retrain"]).path("--run", &absent).run().assert_bad_input(&["absent", "not a run"]);
    fs::write(dir.path().join("file"), "mine").unwrap();
    let elsewhere = Adw::new(["search"]).path("--data", &sound().data).args(TINY);
    elsewhere.clone().path("--run", dir.path()).run().assert_bad_input(&["exists and is not a run"]);
    assert_eq!(names(dir.path()), ["file"]);
    let again = elsewhere.clone().path("--run", &sound().run());
    again.run().assert_bad_input(&["search/fold_0", "finished"]);
    let otherwise = again.arg("--resume").args(["--set", "search.epochs=5"]);
    otherwise.run().assert_bad_input(&["search.epochs", "4", "5"]);
}

#[test]
fn an_architecture_that_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("architecture.json");
    let before = names(&sound().run().join("retrain"));
    let assert_refused = |text: String, parts: &[&str]| {
        fs::write(&file, text).unwrap();
        let retrain = Adw::new(["retrain", "--name", "other"]).path("--run", &sound().run());
        retrain.path("--architecture", &file).run().assert_bad_input(parts);
    };
    let changed = |key: &str, value: serde_json::Value| {
        let mut architecture = sound().architecture();
        architecture[key] = value;
        architecture.to_string()
    };
    assert_refused("{\"format\": ".into(), &["architecture.json"]);
    assert_refused(changed("format", "adw-architecture/99".into()), &["architecture.json", "adw-architecture/99"]);
    assert_refused(changed("in_channels", 3.into()), &["architecture.json", "3"]);
    assert_refused(changed("num_classes", 9.into()), &["architecture.json", "9"]);
    assert_refused(changed("blocks", serde_json::json!([[4], [4]])), &["architecture.json", "blocks"]);
    assert_refused(changed("strides", serde_json::json!([[3, 3, 3], [3, 3, 3]])), &["architecture.json"]);
    fs::remove_file(&file).unwrap();
    let retrain = Adw::new(["retrain", "--name", "other"]).path("--run", &sound().run()).path("--architecture", &file);
    retrain.run().assert_bad_input(&["architecture.json"]);
    assert_eq!(names(&sound().run().join("retrain")), before);
}

/// Predicts the first test image into `output` with `model`.
fn predict(model: &Path, output: &Path) -> Adw {
    let input = sound().data.join("imagesTs");
    Adw::new(["predict"]).path("--model", model).path("--input", &input).path("--output", output)
}

#[test]
fn a_model_that_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out");
    let bytes = fs::read(sound().model()).unwrap();
    for (name, content) in [
        ("text.safetensors", b"not a model".to_vec()),
        ("cut.safetensors", bytes[..bytes.len() / 2].to_vec()),
        ("empty.safetensors", Vec::new()),
    ] {
        let model = dir.path().join(name);
        fs::write(&model, content).unwrap();
        predict(&model, &output).run().assert_bad_input(&[name]);
    }
    predict(&dir.path().join("absent.safetensors"), &output).run().assert_bad_input(&["absent.safetensors"]);
    assert!(!output.exists());
}

#[test]
fn images_a_model_cannot_read() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out");
    let predict = |input: &Path| {
        Adw::new(["predict"]).path("--model", &sound().model()).path("--input", input).path("--output", &output)
    };
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    predict(&empty).run().assert_bad_input(&["empty", ".nii"]);
    predict(&dir.path().join("absent.nii.gz")).run().assert_bad_input(&["absent.nii.gz"]);

    // The second of two images is damaged: the first is not written either.
    let mixed = dir.path().join("mixed");
    copy_folder(&sound().data.join("imagesTs"), &mixed);
    let second = mixed.join(names(&mixed).remove(1));
    let volume = read_image(&second).unwrap();
    let bytes = fs::read(&second).unwrap();
    fs::write(&second, &bytes[..100]).unwrap();
    predict(&mixed).run().assert_bad_input(&[&file_name(&second), "truncated or damaged"]);
    let two = ndarray::concatenate![ndarray::Axis(0), volume.data, volume.data];
    write_image(&second, &two.view(), &volume.geometry).unwrap();
    predict(&mixed).run().assert_bad_input(&[&file_name(&second), "2 channels"]);
    fs::write(&second, &bytes).unwrap();
    put_nan(&second);
    predict(&mixed).run().assert_bad_input(&[&file_name(&second), "NaN"]);
    assert!(!output.exists());

    let onto_itself = Adw::new(["predict"]).path("--model", &sound().model()).path("--input", &mixed);
    onto_itself.path("--output", &mixed).run().assert_bad_input(&["--output", "overwrite"]);
    let into_a_file = Adw::new(["predict"]).path("--model", &sound().model()).path("--input", &mixed);
    into_a_file.path("--output", &dir.path().join("one.nii.gz")).run().assert_bad_input(&["one.nii.gz", "a folder"]);
}

/// A folder in which nobody, not even root, can create files.
const NEVER_WRITABLE: &str = "/proc/adw-test";

#[test]
fn an_output_folder_that_cannot_be_written_to() {
    if !Path::new("/proc/self").exists() {
        println!("SKIPPED: this system has no /proc");
        return;
    }
    let run = Path::new(NEVER_WRITABLE);
    let search = Adw::new(["search"]).path("--data", &sound().data).args(TINY);
    search.path("--run", run).run().assert_bad_input(&["/proc"]);
    predict(&sound().model(), run).run().assert_bad_input(&["/proc"]);
    Adw::new(["phantom"]).path("--output", run).run().assert_bad_input(&["/proc"]);

    // Where permissions are enforced (not for root), a folder of one's own.
    let dir = tempfile::tempdir().unwrap();
    let closed = dir.path().join("closed");
    fs::create_dir(&closed).unwrap();
    let mut permissions = fs::metadata(&closed).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&closed, permissions).unwrap();
    if fs::write(closed.join("probe"), "").is_ok() {
        println!("SKIPPED: permissions do not bind this user");
        return;
    }
    let search = Adw::new(["search"]).path("--data", &sound().data).path("--run", &closed.join("run")).args(TINY);
    search.run().assert_bad_input(&["closed"]);
    predict(&sound().model(), &closed).run().assert_bad_input(&["closed"]);
    assert!(names(&closed).is_empty());
}

/// Runs a command with `$1` a file system of 64 kB that is full before the command is done; prints, after the command's
/// own output, the files that are left there.
fn on_a_small_disk(mount_point: &Path, command: &Adw) -> Option<Outcome> {
    const SCRIPT: &str = "mount -t tmpfs -o size=64k none \"$1\" || exit 77; mount_point=$1; shift; \
                          \"$@\"; code=$?; find \"$mount_point\" -type f; exit $code";
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--map-root-user", "sh", "-c", SCRIPT, "sh"]);
    unshare.arg(mount_point).arg(cli_support::adw()).args(command.arguments());
    let output = unshare.output().ok()?;
    // The child's own complaint about missing rights, not adw's.
    let refused = output.status.code() == Some(77) || output.status.code() == Some(1);
    (!refused).then(|| Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    })
}

#[test]
fn a_disk_that_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let mount_point = dir.path();
    let run = mount_point.join("run");
    let search = Adw::new(["search", "--json"]).path("--data", &sound().data).path("--run", &run).args(TINY);
    let phantom = Adw::new(["phantom"]).path("--output", &mount_point.join("phantom"));
    let mut left = Vec::new();
    for command in [search, phantom] {
        let Some(outcome) = on_a_small_disk(mount_point, &command) else {
            println!("SKIPPED: no right to mount a small file system");
            return;
        };
        outcome.assert_bad_input(&["No space left on device"]);
        let files = outcome.stdout.lines().filter(|line| line.starts_with('/'));
        left.push(files.map(str::to_owned).collect::<Vec<_>>());
    }
    // What was written of the search is whole, so that it can go on when there is room; of a dataset nothing stays.
    assert!(left[0].iter().any(|file| file.ends_with("run/splits.json")), "{left:?}");
    assert!(left[0].iter().all(|file| Path::new(file).extension().is_none_or(|end| end != "tmp")), "{left:?}");
    assert!(left[1].is_empty(), "{left:?}");
}

#[test]
fn evaluation_of_folders_that_do_not_match() {
    let dir = tempfile::tempdir().unwrap();
    let predictions = dir.path().join("predictions");
    let references = sound().data.join("labelsTr");
    let report = dir.path().join("metrics.json");
    let evaluate = || {
        Adw::new(["evaluate"])
            .path("--predictions", &predictions)
            .path("--references", &references)
            .path("--output", &report)
    };
    evaluate().run().assert_bad_input(&["predictions"]);
    fs::create_dir(&predictions).unwrap();
    evaluate().run().assert_bad_input(&["predictions"]);
    let (_, label) = first_case(&sound().data);
    fs::copy(&label, predictions.join("stranger.nii.gz")).unwrap();
    evaluate().run().assert_bad_input(&["stranger"]);
    fs::remove_file(predictions.join("stranger.nii.gz")).unwrap();
    let [_, cut] = cut_plane(&label, &predictions.join(label.file_name().unwrap()));
    evaluate().run().assert_bad_input(&[&file_name(&label), &format!("{cut:?}")]);
    assert!(!report.exists());
}
