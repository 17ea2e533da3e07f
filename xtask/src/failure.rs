//! From an error to an exit code.

/// Error that the user can put right: exit code 2. Every other error exits with 1.
#[derive(Debug)]
pub(crate) struct UsageError(pub(crate) String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Exit code for an error: 2 for bad arguments and for what the system refuses, such as a full disk.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    let is_io = |cause: &(dyn std::error::Error + 'static)| cause.is::<std::io::Error>();
    if error.is::<UsageError>() || error.chain().any(is_io) { 2 } else { 1 }
}
