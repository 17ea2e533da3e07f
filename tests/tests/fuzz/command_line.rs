//! Inputs that only the program reads, in a process for each.

use std::process::Command;

use super::cli_support::adw;
use super::kinds::{Answer, Examples};

/// Kibibytes of address space of a process. Threads and libraries take some hundred thousand of them.
const MAX_KIB: usize = 2_000_000;

/// Reads settings with a search that has no memory to begin: it checks them and estimates what its network needs.
///
/// # Panics
/// If the program ends in another way than with one plain line and exit code 2.
pub(crate) fn read_config(examples: &Examples, bytes: &[u8]) -> Answer {
    let path = examples.write("preset.toml", bytes);
    let limited = format!("ulimit -v {MAX_KIB}; exec \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &limited, "sh"]).arg(adw()).args(["search", "--threads", "1", "--memory", "0.0001", "--run"]);
    command.arg(examples.folder.join("never")).arg("--data").arg(&examples.data).arg("--preset").arg(path);
    let output = command.output().expect("a shell starts");
    let message = String::from_utf8(output.stderr).expect("messages are UTF-8");
    assert_eq!(output.status.code(), Some(2), "{:?}: {message}", output.status);
    let line = message.strip_suffix('\n').unwrap_or(&message);
    assert!(line.starts_with("error: ") && !line.contains(char::is_control) && line.len() < 10_000, "{message}");
    if line.contains("are available") { Ok(()) } else { Err(message) }
}
