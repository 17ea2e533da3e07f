//! What nnU-Net computed, for tests; the files are not part of the repository.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// The folder of `task`'s golden files: under `MSD_DATA_GOLDEN`, else beside the repository.
pub(crate) fn folder(task: &str) -> Option<PathBuf> {
    let root =
        std::env::var_os("MSD_DATA_GOLDEN").map_or_else(|| shared("golden/nnunet"), PathBuf::from);
    present(root.join(task))
}

/// The dataset that `task`'s golden files were computed from.
pub(crate) fn dataset(task: &str) -> Option<PathBuf> {
    if task == "hippocampus" {
        present(shared("data/Task04_Hippocampus"))
    } else {
        folder(task).map(|f| f.join("msd"))
    }
}

fn shared(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared")
        .join(path)
}

fn present(path: PathBuf) -> Option<PathBuf> {
    let there = path.is_dir();
    if !there {
        // Past the test harness, which shows what eprintln! says only if the test fails.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: {} is not there",
            path.display()
        );
    }
    there.then_some(path)
}

/// `3d_fullres` of the golden plan.
pub(crate) fn plan_json(task: &str) -> Option<(serde_json::Value, serde_json::Value)> {
    let path = folder(task)?.join("nnUNetPlans.json");
    let text = std::fs::read_to_string(&path)
        .map_err(Error::io(&path))
        .expect("the golden plan is readable");
    let json: serde_json::Value = serde_json::from_str(&text).expect("the golden plan is JSON");
    Some((json["configurations"]["3d_fullres"].clone(), json))
}
