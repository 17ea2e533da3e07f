//! Python with packages from `PyPI`, for comparisons with other programs.

use std::{
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

/// Python that imports `modules`, in an environment `name` below the build's folder, which `pip install` fills with `packages`
/// first. None, with a line on stderr, without Python or the network.
pub fn python(name: &str, packages: &[&str], modules: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // Tests that run at the same time make it once.
    let _lock = locked(&folder);
    let python = folder.join("bin/python");
    let works = |python: &Path| {
        let imported = Command::new(python).args(["-c", &format!("import {modules}")]).output();
        imported.is_ok_and(|it| it.status.success())
    };
    if !works(&python) {
        let _ = Command::new("python3").args(["-m", "venv"]).arg(&folder).status();
        let _ = Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(packages).status();
    }
    let found = works(&python).then_some(python);
    if found.is_none() {
        let _ = writeln!(std::io::stderr(), "SKIPPED: no Python with {modules}, and pip could not install it");
    }
    found
}

fn locked(folder: &Path) -> fs::File {
    let file = fs::File::create(folder.with_extension("lock")).unwrap();
    file.lock().unwrap();
    file
}
