//! `cargo xtask test` and `cargo xtask ci`.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::workspace::{cargo, workspace};

/// Runs all tests of all crates in release mode: numeric code, and programs that tests start, are too slow otherwise, and
/// one profile means one build.
pub(crate) fn test(rest: &[String]) -> Result<ExitCode> {
    run(cargo().args(["test", "--workspace", "--release"]).args(rest))
}

/// Runs the tests of a file that need a program of others, and no other. The output shows why they are skipped where it is missing.
pub(crate) fn test_alone(file: &str) -> Result<ExitCode> {
    test(&["--test", file, "--", "--ignored", "--nocapture"].map(str::to_owned))
}

/// Runs the script of the CI service.
pub(crate) fn ci() -> Result<ExitCode> {
    run(&mut Command::new(workspace().join(".ci/run")))
}

fn run(command: &mut Command) -> Result<ExitCode> {
    let status = command
        .current_dir(workspace())
        .status()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
