//! Lines on stdout and stderr.

use std::io::{self, Write};

use anyhow::{Context, Result};

/// Prints a line on stderr, if that can be written to: messages never end the work.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Prints a line of the result on stdout.
///
/// # Errors
/// Stdout cannot be written to.
pub(crate) fn say(line: &str) -> Result<()> {
    writeln!(io::stdout(), "{line}").and_then(|()| io::stdout().flush()).context("stdout")
}
