//! Inputs that are odd rather than hostile: the right result, a warning, or one line and exit code 2, never something wrong in
//! silence.
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use cli_support::{Adw, TINY, contents, copy_folder, names, phantom, shared_dir};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use msd_data::{Geometry, read_image, read_labels, write_image, write_labels};
use ndarray::{Array3, Array4};
use serde_json::{Value, json};

/// A phantom dataset and a model of it, made once.
struct Trained {
    dir: PathBuf,
    data: PathBuf,
}

impl Trained {
    fn run(&self) -> PathBuf {
        self.dir.join("run")
    }

    fn model(&self) -> PathBuf {
        self.run().join("retrain/fold_0/model.safetensors")
    }
}

fn trained() -> &'static Trained {
    static TRAINED: OnceLock<Trained> = OnceLock::new();
    TRAINED.get_or_init(|| {
        let dir = shared_dir("odd-input");
        let trained = Trained { data: phantom(&dir, 5), dir };
        train(&trained.run()).path("--data", &trained.data).args(TINY).succeed();
        trained
    })
}

fn train(run: &Path) -> Adw {
    Adw::new(["retrain", "--uniform-width", "4", "--uniform-depth", "1"]).path("--run", run)
}

fn predict(input: &Path, output: &Path) -> Adw {
    Adw::new(["predict"]).path("--model", &trained().model()).path("--input", input).path("--output", output)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Uncompressed bytes of an image.
fn plain(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::copy(&mut GzDecoder::new(fs::File::open(path).unwrap()), &mut bytes).unwrap();
    bytes
}

#[test]
fn descriptions_of_a_dataset_say_each_thing_once() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("Task00_Phantom");
    copy_folder(&trained().data, &data);
    let path = data.join("dataset.json");
    let text = fs::read_to_string(&path).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let with = |key: &str, value: Value| {
        let mut json = json.clone();
        json[key] = value;
        json.to_string()
    };
    let nnunet = |images: Value| {
        let mut json = json.clone();
        json["channel_names"] = json!({"0": "MRI"});
        json["dataset"] = json!({"a": {"images": images, "label": "labelsTr/phantom_000.nii.gz"}});
        json.to_string()
    };
    let image = "imagesTr/phantom_000.nii.gz";
    let twice = nnunet(json!([image])).replace("{\"a\":", "{\"a\": {\"images\": [], \"label\": \"\"}, \"a\":");
    for (text, words) in [
        (text.replace("\"labels\": {", "\"labels\": {\"1\": \"other\","), "the key \"1\" is there twice"),
        (text.replace("\"modality\": {", "\"modality\": {\"0\": \"CT\","), "the key \"0\" is there twice"),
        (twice, "the key \"a\" is there twice"),
        (nnunet(json!([image, image])), "lists 2 images for case \"a\"; expected one per channel, 1 in all"),
        (with("labels", json!(["background", "a", "b"])), "expected names in braces"),
        (
            with("labels", json!({"0": "a", "1": "Background"})),
            "label 1 is called \"Background\"; the background must be label 0",
        ),
        (
            with("modality", json!({})),
            "modality is empty or missing, as is channel_names; expected {\"0\": \"MRI\"}, or the same as channel_names",
        ),
        (with("training", json!([image])), "expected the paths of a case as {\"image\": ..., \"label\": ...}"),
        (with("test", json!([5])), "expected the path of a test image"),
        (with("training", json!([{"image": image, "label": "labelsTr"}])), "labelsTr, which is a folder"),
        ("[]".to_owned(), "expected the description of a dataset in braces"),
    ] {
        fs::write(&path, text).unwrap();
        Adw::new(["plan"]).path("--data", &data).run().assert_bad_input(&["dataset.json", words]);
        let check = Adw::new(["check"]).path("--data", &data).run();
        assert!(check.code == Some(2) && check.stdout.contains(words), "{check:?}");
    }
    for (bytes, words) in [
        (text.encode_utf16().flat_map(u16::to_be_bytes).collect(), "is encoded as UTF-16"),
        (text.chars().flat_map(|c| u32::from(c).to_le_bytes()).collect::<Vec<u8>>(), "is encoded as UTF-32"),
    ] {
        fs::write(&path, bytes).unwrap();
        Adw::new(["plan"]).path("--data", &data).run().assert_bad_input(&["dataset.json", words]);
    }
    // Label values such as 1.0 and a number of cases in quotes are accepted; a negative number of cases gives a warning.
    fs::write(&path, with("labels", json!({"background": 0.0, "a": 1.0, "b": 2.0}))).unwrap();
    Adw::new(["plan"]).path("--data", &data).succeed();
    for (announced, warnings) in [(json!("5"), "0 warnings"), (json!(5.0), "0 warnings"), (json!(-5), "1 warning")] {
        fs::write(&path, with("numTraining", announced)).unwrap();
        let check = Adw::new(["check"]).path("--data", &data).succeed();
        assert!(check.stdout.contains(warnings), "{check:?}");
    }
}

#[test]
fn check_refuses_cases_that_have_no_plan() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("Task00_Phantom");
    copy_folder(&trained().data, &data);
    let grid = Geometry::new([3; 3], [1.0; 3]);
    for name in names(&data.join("imagesTr")) {
        let image = Array4::from_shape_fn([1, 3, 3, 3], |(_, z, y, x)| (1 + z + y + x) as f32);
        write_image(data.join("imagesTr").join(&name), &image.view(), &grid).unwrap();
        let labels = Array3::from_shape_fn([3; 3], |(z, y, x)| ((z + y + x) % 3) as u16);
        write_labels(data.join("labelsTr").join(&name), &labels.view(), &grid).unwrap();
    }
    let search =
        |data: &Path| Adw::new(["search"]).path("--data", data).path("--run", &dir.path().join("run")).args(TINY);
    let words = "the cases are too small: [3.0, 3.0, 3.0] voxels";
    let check = Adw::new(["check"]).path("--data", &data).run();
    assert!(check.code == Some(2) && check.stdout.contains(words), "{check:?}");
    Adw::new(["plan"]).path("--data", &data).run().assert_bad_input(&[words]);

    // Nor has a dataset without a labelled voxel.
    let data = dir.path().join("Task01_Empty");
    copy_folder(&trained().data, &data);
    for name in names(&data.join("labelsTr")) {
        let file = data.join("labelsTr").join(&name);
        let map = read_labels(&file).unwrap();
        write_labels(&file, &Array3::zeros(map.data.dim()).view(), &map.geometry).unwrap();
    }
    let words = "no voxel of any label map is foreground";
    let check = Adw::new(["check"]).path("--data", &data).run();
    assert!(check.code == Some(2) && check.stdout.contains(words), "{check:?}");
    let searched = search(&data).run();
    assert!(searched.stderr.contains("phantom_004.nii.gz: no voxel is labelled\n"), "{searched:?}");
    searched.assert_bad_input_last(&[words]);
}

#[test]
fn files_of_other_formats_are_called_by_their_name() {
    let dir = tempfile::tempdir().unwrap();
    let label = trained().data.join("labelsTr/phantom_000.nii.gz");
    let (predictions, references) = (dir.path().join("p"), dir.path().join("r"));
    for folder in [&predictions, &references] {
        fs::create_dir(folder).unwrap();
        fs::copy(&label, folder.join("a.nii.gz")).unwrap();
    }
    let bytes = plain(&label);
    let patched = |at: usize, new: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + new.len()].copy_from_slice(new);
        bytes
    };
    let evaluate = Adw::new(["evaluate"]).path("--predictions", &predictions).path("--references", &references);
    let file = predictions.join("a.nii.gz");
    for (content, words) in [
        (patched(0, &540i32.to_le_bytes()), "it is NIfTI-2; save it as NIfTI-1"),
        (patched(344, b"ni1\0"), "it is the header of a pair of files (.hdr, .img)"),
        (patched(344, &[0; 4]), "as in Analyze 7.5"),
        (gzip(&gzip(&bytes)), "it is compressed twice"),
        ([b"BZh9".as_slice(), &bytes].concat(), "it is compressed, but not by gzip"),
        ([gzip(&bytes), b"rest".to_vec()].concat(), "something else follows the compressed data"),
        (patched(40, &8i16.to_le_bytes()), "8 dimensions; expected three or four"),
        (patched(42, &(-16i16).to_le_bytes()), "dimensions [-16, "),
        (vec![], "truncated"),
    ] {
        fs::write(&file, content).unwrap();
        evaluate.run().assert_bad_input(&["p/a.nii.gz", words]);
    }
    // Several members and zeros at the end are one file.
    let (first, second) = bytes.split_at(200);
    fs::write(&file, [gzip(first), gzip(&[]), gzip(second), vec![0; 512]].concat()).unwrap();
    evaluate.succeed();
}

#[test]
fn predictions_of_implausible_images_come_with_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let here = |name: &str| dir.path().join(name);
    let source = trained().data.join("imagesTs/phantom_005.nii.gz");
    let image = read_image(&source).unwrap();
    let input = here("a.nii.gz");
    let warnings = || {
        let outcome = predict(&input, &here("out")).succeed();
        outcome.stderr.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    fs::copy(&source, &input).unwrap();
    assert_eq!(warnings(), [""; 0]);

    let mut metres = plain(&source);
    metres[80..92].copy_from_slice(&[0.001f32; 3].map(f32::to_le_bytes).concat());
    fs::write(&input, metres).unwrap();
    let found = warnings().join("\n");
    for words in
        ["by its sform, but [0.001, 0.001, 0.001] by its pixdim", "is far from the median of the training cases"]
    {
        assert!(found.contains(words) && found.contains("a.nii.gz"), "{words}: {found}");
    }
    write_image(&input, &image.data.mapv(|_| 7.0).view(), &image.geometry).unwrap();
    assert!(warnings()[0].contains("every voxel of channel 0 is the same"));
    let mut absurd = image.data.clone();
    absurd[[0, 0, 0, 0]] = 3e38;
    write_image(&input, &absurd.view(), &image.geometry).unwrap();
    assert!(warnings()[0].contains("intensities up to 3e38"));

    // Channels beside an image that the model reads alone.
    let channels = here("channels");
    fs::create_dir(&channels).unwrap();
    for name in ["a_0000.nii.gz", "a_0001.nii.gz"] {
        fs::copy(&source, channels.join(name)).unwrap();
    }
    let outcome = predict(&channels, &here("two")).succeed();
    assert!(outcome.stderr.contains("the models take one channel, so"), "{outcome:?}");
    fs::remove_file(channels.join("a_0001.nii.gz")).unwrap();
    assert_eq!(predict(&channels, &here("one")).succeed().stderr, "");
    assert_eq!(names(&here("one")), ["a.nii.gz"]);
}

#[test]
fn predictions_replace_no_file_of_another_origin() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("Task00_Phantom");
    copy_folder(&trained().data, &data);
    let (images, references) = (data.join("imagesTr"), data.join("labelsTr"));
    let before = contents(&references);
    let call = predict(&images, &references);
    for call in [call.clone(), call.arg("--resume")] {
        call.run().assert_bad_input(&["labelsTr/phantom_000.nii.gz", "exists and is not of"]);
    }
    assert_eq!(before, contents(&references));
    let output = dir.path().join("out");
    predict(&images, &output).succeed();
    predict(&images, &output).succeed();
    fs::copy(references.join("phantom_001.nii.gz"), output.join("phantom_001.nii.gz")).unwrap();
    for call in [predict(&images, &output), predict(&images, &output).arg("--skip-existing")] {
        call.run().assert_bad_input(&["out/phantom_001.nii.gz", "exists and is not of"]);
    }
    fs::write(output.join("phantom_001.nii.gz"), "cut off").unwrap();
    predict(&images, &output).arg("--resume").succeed();
    fs::write(output.join("phantom_001.npz"), "of another program").unwrap();
    let call = predict(&images, &output).args(["--resume", "--probabilities"]);
    call.run().assert_bad_input(&["out/phantom_001.npz", "exists and is not of"]);

    // Nor do texts.
    let (map, json) = (references.join("phantom_000.nii.gz"), data.join("dataset.json"));
    let described = fs::read(&json).unwrap();
    for output in [&map, &json] {
        let evaluate = Adw::new(["evaluate"]).path("--predictions", &references).path("--references", &references);
        let postprocess =
            Adw::new(["postprocess"]).path("--predictions", &references).path("--references", &references);
        let plan = Adw::new(["plan"]).path("--data", &data);
        for call in [evaluate, postprocess, plan, Adw::new(["report"]).arg(trained().run().display())] {
            call.path("--output", output).run().assert_bad_input(&["would replace a file of another kind"]);
        }
    }
    assert!(before == contents(&references) && described == fs::read(&json).unwrap());

    let model = trained().model();
    let bytes = fs::read(&model).unwrap();
    let import = Adw::new(["import"]).path("--nnunet", &model).path("--output", &model);
    import.run().assert_bad_input(&["would overwrite"]);
    assert!(bytes == fs::read(&model).unwrap());
}

#[test]
fn settings_with_line_breaks_moved_datasets_and_too_many_threads() {
    let dir = tempfile::tempdir().unwrap();
    let search = Adw::new(["search"]).path("--data", &trained().data).path("--run", &dir.path().join("run"));
    search.args(["--set", "search.epochs=3\nsearch.tau=1"]).run().assert_bad_input(&["expected an integer"]);
    // An empty variable is one that is not set.
    let doctor = Adw::new(["doctor"]).env("ADW_RUNS", "").env("ADW_DATA", "").in_folder(dir.path()).succeed().stdout;
    assert!(doctor.contains("runs, $ADW_RUNS is not set") && doctor.contains("data, $ADW_DATA is not set"), "{doctor}");

    let (before, after) = (dir.path().join("before"), dir.path().join("after"));
    copy_folder(&trained().data, &before);
    let run = dir.path().join("moved");
    train(&run).path("--data", &before).args(TINY).succeed();
    fs::rename(&before, &after).unwrap();
    let more = train(&run).args(["--name", "more"]);
    more.run().assert_bad_input(&["before: no such folder", "--data"]);
    more.path("--data", &after).succeed();

    if cfg!(target_os = "linux") {
        let many = predict(&trained().data.join("imagesTs"), &dir.path().join("out")).args(["--threads", "5000"]);
        // Large stacks: the limit is then met where a thread is started, and never by one that has just begun.
        let many = many.env("RUST_MIN_STACK", "67108864");
        many.after("ulimit -v 4000000").run().assert_bad_input(&["cannot start a thread per core", "--threads"]);
        let tight = predict(&trained().data.join("imagesTs"), &dir.path().join("out")).after("ulimit -v 30000");
        tight.run().assert_bad_input(&["`ulimit -v` leaves", "raise it"]);
        // As with few open files, without a home, a temporary folder and streams.
        let few = predict(&trained().data.join("imagesTs"), &dir.path().join("out"));
        let few = few.env("TMPDIR", "/nonexistent").env("LANG", "C").after("unset HOME; ulimit -n 16; exec <&- >&-");
        few.succeed();
        assert_eq!(names(&dir.path().join("out")).len(), 2);
    }
}

/// Each of these is right, refused or named by every command that it concerns.
#[test]
fn voxel_sizes_places_and_contents_that_people_stumbled_over() {
    let dir = tempfile::tempdir().unwrap();
    let here = |name: &str| dir.path().join(name);
    // 0.8 mm in single precision is 0.800000012.
    let (p, r) = (here("p"), here("r"));
    fs::create_dir(&p).unwrap();
    fs::create_dir(&r).unwrap();
    let cube = |offset: usize| {
        let inside = |v: usize, start: usize| (start..start + 5).contains(&v);
        Array3::from_shape_fn([12; 3], |(z, y, x)| u16::from(inside(z, 3) && inside(y, 3) && inside(x, 3 + offset)))
    };
    let grid = Geometry::new([12; 3], [0.8; 3]);
    write_labels(r.join("a.nii.gz"), &cube(0).view(), &grid).unwrap();
    write_labels(p.join("a.nii.gz"), &cube(1).view(), &grid).unwrap();
    let evaluate = Adw::new(["evaluate", "--json", "--tolerance-mm", "0.8"]).path("--predictions", &p);
    let report: Value = serde_json::from_str(&evaluate.path("--references", &r).succeed().stdout).unwrap();
    assert_eq!(report["mean"]["1"]["NSD"], 1.0);

    // A prediction without a place in the scanner.
    let mut nowhere = plain(&p.join("a.nii.gz"));
    nowhere[252..256].fill(0);
    fs::write(p.join("a.nii.gz"), gzip(&nowhere)).unwrap();
    let noted = Adw::new(["evaluate"]).path("--predictions", &p).path("--references", &r).succeed().stderr;
    assert!(noted.contains("p/a.nii.gz: has neither sform nor qform"), "{noted}");

    // A channel elsewhere in space, in training and prediction.
    let data = here("Dataset001_Two");
    let source = trained().data.join("imagesTr");
    for folder in ["imagesTr", "labelsTr", "apart"] {
        fs::create_dir_all(data.join(folder)).unwrap();
    }
    for name in names(&source) {
        let id = name.strip_suffix(".nii.gz").unwrap();
        fs::copy(source.join(&name), data.join(format!("imagesTr/{id}_0000.nii.gz"))).unwrap();
        // Not the same voxels: the last one differs.
        let mut other = plain(&source.join(&name));
        let last = other.len() - 4;
        other[last..].copy_from_slice(&0.5f32.to_le_bytes());
        fs::write(data.join(format!("imagesTr/{id}_0001.nii.gz")), gzip(&other)).unwrap();
        fs::copy(trained().data.join("labelsTr").join(&name), data.join("labelsTr").join(&name)).unwrap();
    }
    let json = json!({"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "a": 1, "b": 2}});
    fs::write(data.join("dataset.json"), json.to_string()).unwrap();
    train(&here("run")).path("--data", &data).args(TINY).succeed();
    let mut away = plain(&source.join("phantom_002.nii.gz"));
    away[292..296].copy_from_slice(&40f32.to_le_bytes());
    let channel = data.join("imagesTr/phantom_002_0001.nii.gz");
    fs::write(&channel, gzip(&away)).unwrap();
    fs::copy(&channel, data.join("apart/phantom_002_0001.nii.gz")).unwrap();
    fs::copy(data.join("imagesTr/phantom_002_0000.nii.gz"), data.join("apart/phantom_002_0000.nii.gz")).unwrap();
    let words = ["phantom_002_0001.nii.gz", "lies up to 40.0 mm away from"];
    let crossval = Adw::new(["crossval", "--uniform-width", "4"]).path("--run", &here("cv")).args(TINY);
    for call in [Adw::new(["plan"]), train(&here("other")).args(TINY)] {
        call.path("--data", &data).run().assert_bad_input(&words);
    }
    let outcome = crossval.path("--data", &data).run();
    assert!(outcome.code == Some(2) && words.iter().all(|word| outcome.stderr.contains(word)), "{outcome:?}");
    let apart = Adw::new(["predict"]).path("--model", &here("run")).path("--input", &data.join("apart"));
    let apart = apart.path("--output", &here("out"));
    apart.run().assert_bad_input_last(&words);
    apart.arg("--ignore-positions").succeed();
    fs::rename(&channel, data.join("imagesTr/phantom_002_0001.nii")).unwrap();
    let ending = Adw::new(["check"]).path("--data", &data).run();
    assert!(ending.code == Some(2) && ending.stdout.contains("does not end in .nii.gz"), "{ending:?}");

    // Positions in micrometres, and labels where the image is 0.
    let data = here("Task00_Small");
    copy_folder(&trained().data, &data);
    let (image, label) = (data.join("imagesTr/phantom_000.nii.gz"), data.join("labelsTr/phantom_000.nii.gz"));
    for (file, shift) in [(&image, 0f32), (&label, 30.0)] {
        let mut bytes = plain(file);
        bytes[80..92].copy_from_slice(&[1000f32; 3].map(f32::to_le_bytes).concat());
        for offset in [280, 300, 320] {
            bytes[offset..offset + 4].copy_from_slice(&1000f32.to_le_bytes());
        }
        bytes[292..296].copy_from_slice(&shift.to_le_bytes());
        bytes[123] = 3;
        fs::write(file, gzip(&bytes)).unwrap();
    }
    let mut other = read_image(data.join("imagesTr/phantom_001.nii.gz")).unwrap();
    let labels = read_labels(data.join("labelsTr/phantom_001.nii.gz")).unwrap();
    let labelled = labels.data.indexed_iter().filter(|(_, value)| **value > 0).map(|((z, ..), _)| z);
    let middle = labelled.clone().sum::<usize>() / labelled.count();
    other.data.slice_mut(ndarray::s![.., middle.., .., ..]).fill(0.0);
    write_image(data.join("imagesTr/phantom_001.nii.gz"), &other.data.view(), &other.geometry).unwrap();
    let check = Adw::new(["check"]).path("--data", &data).succeed();
    assert!(!check.stdout.contains("away from") && check.stdout.contains("outside its content"), "{check:?}");
}

#[test]
fn what_a_check_warns_of_is_said_where_a_run_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    copy_folder(&trained().data, &data);
    let file = |folder: &str, i: usize| data.join(format!("{folder}/phantom_00{i}.nii.gz"));
    for folder in ["imagesTr", "labelsTr"] {
        fs::copy(file(folder, 0), file(folder, 1)).unwrap();
    }
    let [first, second] = [0, 1].map(|i| file("imagesTr", i));
    fs::write(data.join("imagesTr/stray.nii.gz"), "").unwrap();
    let json = data.join("dataset.json");
    let text = fs::read_to_string(&json).unwrap();
    let labels = serde_json::from_str::<Value>(&text).unwrap()["labels"].clone();
    let name = |label: &str| labels[label].as_str().unwrap().to_owned();
    let sided = text.replace(&name("1"), "left side").replace(&name("2"), "right side");
    fs::write(&json, sided).unwrap();
    let (run, mirrored) = (dir.path().join("run"), ["--set", "data.augmentation.mirror=0.5"]);
    let new = || Adw::new(["search", "--dry-run"]).path("--run", &run).path("--data", &data).args(TINY);
    for (command, sides) in [(new(), false), (new().args(mirrored), true)] {
        let warnings = command.succeed().stderr;
        for words in ["phantom_001.nii.gz: has the same voxels as ", "1 files that dataset.json does not list"] {
            assert_eq!(warnings.matches(words).count(), 1, "{words} in {warnings}");
        }
        let says = "mirrored from left to right, where left side and right side cannot be told apart";
        assert_eq!(warnings.contains(says), sides, "{warnings}");
    }
    // An error of a test image is none for a search; otherwise one error alone, or how to see all.
    let test = names(&data.join("imagesTs")).remove(0);
    let sound = fs::read(data.join("imagesTs").join(&test)).unwrap();
    fs::write(data.join("imagesTs").join(&test), "short").unwrap();
    assert!(new().succeed().stderr.contains(&format!("{test}: truncated")));
    fs::write(data.join("imagesTs").join(&test), sound).unwrap();
    fs::remove_file(data.join("imagesTr/stray.nii.gz")).unwrap();
    fs::write(&first, "short").unwrap();
    new().run().assert_bad_input(&["phantom_000.nii.gz", "truncated"]);
    fs::write(&second, "short").unwrap();
    let both = new().run();
    assert_eq!(both.stderr.lines().count(), 2, "{both:?}");
    assert!(both.stderr.starts_with("2 errors: `"), "{both:?}");
    assert!(both.stderr.contains(&format!("adw check {}` lists all\n", data.display())), "{both:?}");
    both.assert_bad_input_last(&["phantom_000.nii.gz", "truncated"]);
}
