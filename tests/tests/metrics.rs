//! Metrics of `adw evaluate` beside those of `medpy` (`PyPI`), an independent implementation, on random and degenerate masks.
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::{fs, path::Path, process::Command};

use cli_support::{Adw, python::python};
use serde_json::Value;

#[test]
fn metrics_are_those_of_an_independent_implementation() {
    let Some(python) = python("medpy", &["medpy==0.5.2", "nibabel"], "medpy.metric, nibabel") else { return };
    let dir = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/metrics.py");
    assert!(Command::new(python).arg(script).arg(dir.path()).status().unwrap().success());

    let report = dir.path().join("report.json");
    Adw::new(["evaluate", "--tolerance-mm", "1"])
        .path("--predictions", &dir.path().join("predictions"))
        .path("--references", &dir.path().join("references"))
        .path("--output", &report)
        .succeed();
    let read = |name: &str| -> Value { serde_json::from_slice(&fs::read(dir.path().join(name)).unwrap()).unwrap() };
    let (report, expected) = (read("report.json"), read("expected.json"));

    let mut compared = 0;
    for case in report["metric_per_case"].as_array().unwrap() {
        let file = Path::new(case["prediction_file"].as_str().unwrap());
        let name = file.file_name().unwrap().to_str().unwrap().trim_end_matches(".nii.gz");
        for (label, expected) in expected[name].as_object().unwrap() {
            for (metric, expected) in expected.as_object().unwrap() {
                let found = &case["metrics"][label][metric];
                let equal = match (found.as_f64(), expected.as_f64()) {
                    (Some(found), Some(expected)) => (found - expected).abs() <= 1e-6 * expected.abs().max(1.0),
                    _ => found.is_null() && expected.is_null(),
                };
                assert!(equal, "{name}, label {label}, {metric}: {found} instead of {expected}");
                compared += 1;
            }
        }
    }
    assert!(compared > 4 * (40 + 35), "{compared}");
}
