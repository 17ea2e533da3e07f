//! Comparison with nnU-Net's own results for a dataset: fingerprint, plan, splits, preprocessed volumes.
//!
//! Every folder in `$ADW_NNUNET_GOLDEN` that holds a dataset `msd/` and nnU-Net's `nnUNetPlans.json` is a case; its
//! `dataset_fingerprint.json`, `splits_final.json` and `CASE.safetensors` (`data`, `seg`) are compared where they are
//! there. Without that variable, the cases beside the repository are taken, or the test says that it was skipped.
#![allow(clippy::unwrap_used)]

use std::{
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use msd_data::{
    Dataset, Fingerprint, IntensityStatistics, Memory, Normalization, Plan, PlanOptions, fingerprint, five_folds, plan,
    preprocess,
};
use safetensors::SafeTensors;
use serde_json::{Value, json};

/// Prints past the test harness, which shows the output of a passing test only on request.
fn print(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[test]
fn nnunets_own_numbers_come_out() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let requested = env::var_os("ADW_NNUNET_GOLDEN").map(PathBuf::from);
    let root = requested.clone().unwrap_or_else(|| shared.join("golden/nnunet"));
    if requested.is_none() && !root.is_dir() {
        return print("SKIPPED: ADW_NNUNET_GOLDEN names no folder of nnU-Net's results");
    }
    let mut folders: Vec<PathBuf> = fs::read_dir(&root)
        .unwrap_or_else(|e| panic!("{}: {e}", root.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|folder| folder.join("nnUNetPlans.json").is_file())
        .collect();
    folders.sort();
    let mut failures = Vec::new();
    let mut cases = 0;
    for folder in folders {
        let mut msd = folder.join("msd");
        if !msd.is_dir() && requested.is_none() && folder.ends_with("hippocampus") {
            msd = shared.join("data/Task04_Hippocampus");
        }
        if !msd.is_dir() {
            continue;
        }
        cases += 1;
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let mut comparison = Comparison { folder, facts: Vec::new(), wrong: Vec::new() };
        comparison.of(&Dataset::open(&msd).unwrap());
        let Comparison { facts, wrong, .. } = comparison;
        print(&format!("{name}: {}", facts.join(", ")));
        failures.extend(wrong.into_iter().map(|wrong| format!("{name}: {wrong}")));
    }
    assert!(cases > 0, "{}: no folder with msd/ and nnUNetPlans.json", root.display());
    assert!(failures.is_empty(), "{failures:#?}");
}

struct Comparison {
    folder: PathBuf,
    /// Facts for the printed line.
    facts: Vec<String>,
    wrong: Vec<String>,
}

impl Comparison {
    fn of(&mut self, dataset: &Dataset) {
        let golden = self.json("nnUNetPlans.json").unwrap();
        let found = fingerprint(dataset, Memory::unlimited()).unwrap();
        self.fingerprint(&found);
        let mut plan = plan(&found, dataset, &PlanOptions::default()).unwrap();
        self.plan(&plan, &golden);
        if let Some(expected) = self.json("splits_final.json") {
            let folds = five_folds(&dataset.training_ids()).unwrap();
            let found: Vec<_> =
                folds.iter().map(|fold| json!({ "train": fold.train, "val": fold.validation })).collect();
            self.equal("splits", &json!(found), &expected);
            self.facts.push(format!("{} folds", found.len()));
        }
        // Its intensity statistics are a sample and ours are not; with CT they scale every voxel.
        for (c, statistics) in plan.intensity.iter_mut().enumerate() {
            let theirs = &golden["foreground_intensity_properties_per_channel"][c.to_string()];
            *statistics = serde_json::from_value::<IntensityStatistics>(theirs.clone()).unwrap();
        }
        self.volumes(dataset, &plan);
    }

    fn json(&self, name: &str) -> Option<Value> {
        let text = fs::read_to_string(self.folder.join(name)).ok()?;
        Some(serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}")))
    }

    fn equal(&mut self, what: &str, found: &Value, expected: &Value) {
        if !same(found, expected) {
            self.wrong.push(format!("{what}: {found}, nnU-Net {expected}"));
        }
    }

    fn fingerprint(&mut self, found: &Fingerprint) {
        let Some(expected) = self.json("dataset_fingerprint.json") else {
            return;
        };
        let shapes = json!(found.shapes_after_crop);
        self.equal("shapes after cropping", &shapes, &expected["shapes_after_crop"]);
        self.equal("spacings", &json!(found.spacings), &expected["spacings"]);
        let relative = json!(found.median_relative_size_after_cropping);
        let theirs = &expected["median_relative_size_after_cropping"];
        self.equal("relative size", &relative, theirs);
        let mut worst = 0.0f64;
        for (c, statistics) in found.intensity.iter().enumerate() {
            let channel = &expected["foreground_intensity_properties_per_channel"][c.to_string()];
            for (name, expected) in channel.as_object().unwrap() {
                let found = json!(statistics)[name].as_f64().unwrap();
                let expected = expected.as_f64().unwrap();
                // A mean near zero has no relative error of its own.
                let error = (found - expected).abs() / statistics.std.max(expected.abs());
                worst = worst.max(error);
                if error > 1e-3 {
                    self.wrong.push(format!("{name} of channel {c}: {found}, nnU-Net {expected}"));
                }
            }
        }
        self.facts.push(format!("intensities within {worst:.0e}"));
    }

    fn plan(&mut self, plan: &Plan, golden: &Value) {
        let network = &golden["configurations"]["3d_fullres"];
        let architecture = &network["architecture"]["arch_kwargs"];
        let strides = [vec![[1; 3]], plan.strides.clone()].concat();
        let schemes: Vec<_> = plan.normalization.iter().copied().map(scheme).collect();
        for (what, found, expected) in [
            ("patch size", json!(plan.patch_size), &network["patch_size"]),
            ("batch size", json!(plan.batch_size), &network["batch_size"]),
            ("spacing", json!(plan.spacing_mm), &network["spacing"]),
            ("median shape", json!(plan.median_shape), &network["median_image_size_in_voxels"]),
            ("kernels", json!(plan.kernels), &architecture["kernel_sizes"]),
            ("strides", json!(strides), &architecture["strides"]),
            ("normalisation", json!(schemes), &network["normalization_schemes"]),
            ("mask", json!(plan.use_mask_for_norm), &network["use_mask_for_norm"]),
            ("batch dice", json!(plan.batch_dice), &network["batch_dice"]),
            ("transpose", json!(plan.transpose_forward), &golden["transpose_forward"]),
            ("transpose back", json!(plan.transpose_backward), &golden["transpose_backward"]),
        ] {
            self.equal(what, &found, expected);
        }
        self.facts.push(format!("patch {:?} batch {}", plan.patch_size, plan.batch_size));
    }

    fn volumes(&mut self, dataset: &Dataset, plan: &Plan) {
        let (mut volumes, mut worst, mut worst_mean, mut worst_labels) = (0, 0.0f32, 0.0f64, 0.0f64);
        for case in &dataset.training {
            let path = self.folder.join(format!("{}.safetensors", case.id));
            let Ok(bytes) = fs::read(path) else { continue };
            volumes += 1;
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let (data, seg) = (tensors.tensor("data").unwrap(), tensors.tensor("seg").unwrap());
            let (image, labels) = dataset.load_case(case).unwrap();
            let found = preprocess(image, Some(labels), plan).unwrap();
            if found.image.shape() != data.shape() {
                let (found, expected) = (found.image.shape(), data.shape());
                self.wrong.push(format!("{}: shape {found:?}, nnU-Net {expected:?}", case.id));
                continue;
            }
            let expected = data.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b));
            let errors = found.image.iter().zip(expected).map(|(a, b)| (a - b).abs());
            let (max, sum) = errors.fold((0.0f32, 0.0f64), |(max, sum), e| (max.max(e), sum + f64::from(e)));
            let mean = sum / found.image.len() as f64;
            let found = found.labels.unwrap();
            let expected = seg.data().as_chunks().0.iter().map(|&b| i16::from_le_bytes(b));
            let differ = found.iter().zip(expected).filter(|(a, b)| **a != *b).count();
            let differ = differ as f64 / found.len() as f64;
            if max > 1e-3 || mean > 1e-5 || differ > 1e-4 {
                self.wrong.push(format!(
                    "{}: image differs by {max:.1e} at most and {mean:.1e} in the mean, {differ:.1e} of the labels",
                    case.id
                ));
            }
            worst = worst.max(max);
            (worst_mean, worst_labels) = (worst_mean.max(mean), worst_labels.max(differ));
        }
        self.facts.push(format!(
            "{volumes} volumes: at most {worst:.1e}, mean {worst_mean:.1e}, {worst_labels:.0e} of the labels differ"
        ));
    }
}

/// Equal, numbers up to the last digits.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= 1e-12 * a.abs()
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| same(v, w)))
        }
        _ => a == b,
    }
}

/// nnU-Net's name.
fn scheme(normalization: Normalization) -> &'static str {
    match normalization {
        Normalization::Ct => "CTNormalization",
        Normalization::ZScore => "ZScoreNormalization",
        Normalization::RescaleToUnit => "RescaleTo01Normalization",
        Normalization::RgbToUnit => "RGBTo01Normalization",
        Normalization::None => "NoNormalization",
    }
}
