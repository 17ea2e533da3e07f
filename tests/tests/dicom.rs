//! Series of DICOM that pydicom has made, as images of `adw predict`: the label maps of the same volumes as NIfTI files, and
//! segmentations that highdicom and dciodvfy read.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use adw_dicom::Series;
use cli_support::{Adw, TINY, contents, names, phantom, python::python, shared_dir};
use msd_data::{read_image, read_labels};

/// Series in folders, the same volumes as NIfTI files, and a model for them.
struct Made {
    dir: PathBuf,
    python: PathBuf,
}

impl Made {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    #[track_caller]
    fn script(&self, arguments: &[&Path]) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/dicom_series.py");
        let output = Command::new(&self.python).arg(script).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn predict(&self, input: &Path, output: &str) -> Adw {
        let adw = Adw::new(["predict"]).path("--model", &self.path("run")).path("--input", input);
        adw.path("--output", &self.path(output))
    }
}

/// Series and model, made once; none where pip cannot install the packages.
fn made() -> Option<&'static Made> {
    static MADE: OnceLock<Option<Made>> = OnceLock::new();
    let make = || {
        let packages = ["pydicom>=3,<4", "highdicom>=0.28", "nibabel", "SimpleITK"];
        let python = python("dicom-venv", &packages, "pydicom, highdicom, nibabel, SimpleITK")?;
        let dir = shared_dir("dicom");
        let made = Made { dir, python };
        let data = phantom(&made.dir, 5);
        let retrain = Adw::new(["retrain", "--uniform-width", "2", "--set=retrain.lr.peak=0.03"]).args(TINY);
        retrain.path("--data", &data).path("--run", &made.path("run")).succeed();
        made.script(&["make".as_ref(), &data.join("imagesTs/phantom_005.nii.gz"), &made.dir]);
        Some(made)
    };
    MADE.get_or_init(make).as_ref()
}

/// Names of the series and of their volumes; that of lossless JPEG has the voxels of the one of run lengths.
const SERIES: [(&str, &str); 6] =
    [("ct", "ct"), ("enhanced", "enhanced"), ("jpeg", "rle"), ("mr", "mr"), ("rle", "rle"), ("scanner", "scanner")];

#[test]
fn series_are_the_volumes_that_other_programs_read() {
    let Some(made) = made() else { return };
    for (name, nifti) in SERIES {
        let series = Series::open(&made.path("series").join(name), None).unwrap();
        let image = read_image(made.path(&format!("nifti/{nifti}.nii.gz"))).unwrap();
        assert_eq!(series.shape(), image.geometry.shape, "{name}");
        assert!(series.voxels().unwrap().insert_axis(ndarray::Axis(0)) == image.data, "{name}");
        let (found, expected) = (series.affine(), image.geometry.affine());
        let differ = found.as_flattened().iter().zip(expected.as_flattened()).any(|(a, b)| (a - b).abs() > 1e-4);
        assert!(!differ, "{name}: {found:?} {expected:?}");
    }
}

#[test]
fn a_series_gets_the_labels_of_its_volume_and_a_segmentation_that_others_read() {
    let Some(made) = made() else { return };
    let (input, out) = (made.path("series"), made.path("out"));
    let outcome = made.predict(&input, "out").arg("--json").succeed();
    assert!(outcome.stderr.contains("ct/LICENSE: no DICOM image; left out"), "{outcome:?}");
    assert!(outcome.stdout.contains("\"segmentation\":"), "{outcome:?}");
    made.predict(&made.path("nifti"), "from-nifti").succeed();
    let has_dciodvfy = Command::new("dciodvfy").arg("-version").output().is_ok();
    if !has_dciodvfy {
        let _ = writeln!(std::io::stderr(), "SKIPPED: no dciodvfy (apt-get install dicom3tools)");
    }
    for (name, nifti) in SERIES {
        let [labels, segmentation] = ["nii.gz", "seg.dcm"].map(|ending| out.join(format!("{name}.{ending}")));
        let found = read_labels(&labels).unwrap();
        assert!(found.data == read_labels(made.path(&format!("from-nifti/{nifti}.nii.gz"))).unwrap().data, "{name}");
        assert!(found.data.iter().filter(|&&label| label > 0).count() > 100, "{name}");
        made.script(&["check".as_ref(), &input.join(name), &segmentation, &labels]);
        if has_dciodvfy {
            let output = Command::new("dciodvfy").arg("-new").arg(&segmentation).output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(text.contains("Segmentation") && !text.contains("Error"), "{name}: {text}");
        }
    }

    // The same bytes again; a second call keeps them, and makes those anew that are missing or cut.
    made.predict(&input, "again").succeed();
    assert!(contents(&out) == contents(&made.path("again")));
    let (ct, mr) = (out.join("ct.seg.dcm"), out.join("mr.seg.dcm"));
    let whole = fs::read(&ct).unwrap();
    fs::write(&ct, &whole[..whole.len() - 9]).unwrap();
    let written = fs::metadata(&mr).unwrap().modified().unwrap();
    let labels = fs::metadata(out.join("ct.nii.gz")).unwrap().modified().unwrap();
    made.predict(&input, "out").arg("--skip-existing").succeed();
    assert!(fs::read(&ct).unwrap() == whole);
    assert_eq!(fs::metadata(&mr).unwrap().modified().unwrap(), written);
    assert_eq!(fs::metadata(out.join("ct.nii.gz")).unwrap().modified().unwrap(), labels);

    // As on a CD: the file DICOMDIR, and folders of patients and studies.
    let cd = made.path("cd");
    cli_support::copy_folder(&input.join("ct"), &cd.join("PA0/ST0/SE0"));
    fs::write(cd.join("DICOMDIR"), &whole).unwrap();
    made.predict(&cd, "from-cd").succeed();
    assert_eq!(names(&made.path("from-cd")), ["PA0_ST0_SE0.nii.gz", "PA0_ST0_SE0.seg.dcm"]);
    // Segmentations of an earlier call are no series.
    for _ in 0..2 {
        made.predict(&cd, "cd/labels").arg("--resume").succeed();
    }
    assert_eq!(names(&cd.join("labels")), names(&made.path("from-cd")));

    // A series by itself; codes from a file.
    let codes = made.path("codes.json");
    let liver = r#"{"category": ["91723000", "SCT", "Anatomical Structure"], "type": ["10200004", "SCT", "Liver"]}"#;
    fs::write(&codes, format!(r#"{{"organ 1": {liver}}}"#)).unwrap();
    made.predict(&input.join("enhanced/image.dcm"), "one").path("--segments", &codes).succeed();
    assert_eq!(names(&made.path("one")), ["image.nii.gz", "image.seg.dcm"]);
    let coded = fs::read(made.path("one/image.seg.dcm")).unwrap();
    assert!(coded.windows(8).any(|bytes| bytes == b"10200004"));
    fs::write(&codes, format!(r#"{{"organ 7": {liver}}}"#)).unwrap();
    let refused = made.predict(&input.join("ct"), "one").path("--segments", &codes).run();
    refused.assert_bad_input_last(&["codes.json", "\"organ 7\" is no label of the models; they have organ 1, organ 2"]);
}

#[test]
fn series_that_are_no_volume_are_refused_in_one_line() {
    let Some(made) = made() else { return };
    let spoiled = made.path("spoiled");
    made.script(&["spoil".as_ref(), &made.path("series/ct"), &spoiled]);
    let refusals: &[(&str, &[&str])] = &[
        ("gap", &["lies 3.00 mm behind", "1.50 mm apart"]),
        ("double", &["lies where", "lies, -104.20 mm along the normal"]),
        ("lean", &["leans by 7.6 degrees (a tilted gantry)"]),
        ("orientation", &["(0020,0037) ImageOrientationPatient is [0.0, 1.0, 0.0, 0.0, 0.0, 1.0], but [1.0, 0.0"]),
        ("spacing", &["(0028,0030) PixelSpacing is [2.0, 2.0], but [1.0, 1.25]"]),
        ("size", &["has [20, 17] rows and columns", "[22, 17]"]),
        (
            "mixed",
            &[
                "2 series: ...",
                "\"ct of a phantom\", files: 10",
                "\"the others\", files: 6",
                "--series UID names one by its end",
            ],
        ),
        ("place", &["(0020,0032) ImagePositionPatient is missing"]),
        ("unit", &["(0028,1053) RescaleSlope is missing"]),
        ("frame", &["(0020,0052) FrameOfReferenceUID is"]),
        ("syntax", &["1.2.840.10008.1.2.4.90 (JPEG 2000 Lossless) is not supported", "gdcmconv"]),
        ("colour", &["(0028,0002) SamplesPerPixel is 3; expected 1: colours are not supported"]),
        ("class", &["(0008,0016) SOPClassUID is 1.2.840.10008.5.1.4.1.1.128 (modality \"PT\"), neither CT nor MR"]),
        ("table", &["(0028,3000) ModalityLUTSequence is a table of intensities"]),
        ("single", &["one image; a volume has at least two"]),
        ("short", &["truncated or damaged: ", " bytes are expected at byte "]),
        ("shorter", &["truncated or damaged: ", " bytes are expected at byte ", " of 400"]),
        ("claim", &["truncated or damaged: 2147483647 bytes are expected at byte "]),
        ("nested", &["truncated or damaged: items are nested more than 16 deep"]),
    ];
    let folders: Vec<_> = refusals.iter().map(|(name, _)| (*name).to_owned()).collect();
    let mut found = names(&spoiled);
    found.sort_by_key(|name| folders.iter().position(|folder| folder == name));
    assert_eq!(found, folders, "each has an expectation");
    for (name, parts) in refusals {
        let folder = spoiled.join(name);
        let limited = made.predict(&folder, "none").after("ulimit -v 4000000");
        limited.run().assert_bad_input_last(&[&[folder.to_str().unwrap()], *parts].concat());
        assert!(!made.path("none").exists(), "{name}");
    }

    // One of several series, and places that are no place for results.
    let mixed = spoiled.join("mixed");
    let other = made.predict(&mixed, "none").run().stderr;
    let tail = other.split("...").nth(2).unwrap().split(' ').next().unwrap().to_owned();
    made.predict(&mixed, "chosen").args(["--series", &tail]).succeed();
    assert_eq!(names(&made.path("chosen")), ["mixed.nii.gz", "mixed.seg.dcm"]);
    made.predict(&mixed, "none").args(["--series", "0.0.0"]).run().assert_bad_input_last(&["2 series: "]);
    made.predict(&made.path("series"), "series").run().assert_bad_input_last(&["is the folder of the series"]);
    made.predict(&made.path("nifti"), "none").args(["--series", "1"]).run().assert_bad_input_last(&["no DICOM there"]);
    fs::write(made.path("chosen/mixed.seg.dcm"), "notes").unwrap();
    let replaced = made.predict(&mixed, "chosen").args(["--series", &tail]).run();
    replaced.assert_bad_input_last(&["mixed.seg.dcm: exists and is not of"]);
    let memory = made.predict(&made.path("series/ct"), "none").arg("--memory=0.0001").run();
    memory.assert_bad_input_last(&["series/ct (16x22x17 voxels of 1.5x1x1.25 mm): needs about"]);
}
