//! From an error to one line on stderr and an exit code.

use std::{env, error::Error, fmt, io, path::Path};

use crate::report::plain::{plain, quoted};

/// Error that the user can put right.
#[derive(Debug)]
pub(crate) struct BadInput(String);

impl BadInput {
    /// `message` names the file or option, its value, and what would be right.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for BadInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for BadInput {}

/// Failure of a child process, which has printed its error: its exit code.
#[derive(Debug)]
pub(crate) struct Reported(pub(crate) u8);

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a child process ended with exit code {}", self.0)
    }
}

impl Error for Reported {}

/// End of another rank of this search or training: its exit code, 0 if its work is done, and its error.
#[derive(Debug)]
pub(crate) struct RankFailed {
    pub(crate) rank: usize,
    pub(crate) code: u8,
    pub(crate) message: String,
}

impl fmt::Display for RankFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {}: {}", self.rank, self.message)
    }
}

impl Error for RankFailed {}

/// End of another rank, if that is the cause of `error`.
pub(crate) fn rank_failed(error: &anyhow::Error) -> Option<&RankFailed> {
    error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(adw_search::Error::Ranks(inner)) => inner.downcast_ref(),
        _ => cause.downcast_ref(),
    })
}

/// Returns early with a [`BadInput`].
macro_rules! bad_input {
    ($($message:tt)*) => {
        return Err($crate::failure::BadInput::new(format!($($message)*)).into())
    };
}
pub(crate) use bad_input;

/// Message of a file that is not TOML or not as expected, with the line. The line itself may be one of a foreign file and is not
/// shown.
pub(crate) fn toml_problem(error: &toml::de::Error, text: &str) -> String {
    let start = error.span().map(|span| span.start);
    let line = start.and_then(|start| text.get(..start)).map(|before| before.matches('\n').count() + 1);
    line.map_or_else(|| error.message().to_owned(), |line| format!("line {line}: {}", error.message()))
}

/// Name or path that the program was started by, for messages with a command to run next. A name may be words, such as those that
/// `cargo xtask` starts the program by.
pub(crate) fn program() -> String {
    let Some(name) = env::args_os().next() else { return "adw".to_owned() };
    let path = Path::new(&name);
    if path.components().count() > 1 { quoted(path) } else { path.display().to_string() }
}

/// Exit code for an error: 2 if the user can put it right (arguments, files, folders, a full disk or device, a server that
/// refuses), 1 if only the program's authors can.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(failed) = rank_failed(error) {
        return failed.code;
    }
    let is_bad_input = error.chain().any(|cause| {
        cause.is::<BadInput>()
            || cause.is::<io::Error>()
            || cause.is::<ureq::Error>()
            || cause.downcast_ref().is_some_and(data_is_bad)
            || cause.downcast_ref().is_some_and(training_input_is_bad)
            || cause.downcast_ref().is_some_and(network_is_bad)
            || matches!(cause.downcast_ref(), Some(adw_inference::Error::NotFinite))
    });
    if is_bad_input || is_out_of_memory(error) { 2 } else { 1 }
}

/// Returns true if a CUDA device had too little memory.
fn is_out_of_memory(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref().is_some_and(adw_search::Error::is_out_of_memory)
            || cause.downcast_ref().is_some_and(adw_supernet::Error::is_out_of_memory)
            || cause.downcast_ref().is_some_and(adw_tensor_ops::Error::is_out_of_memory)
            || cause.downcast_ref().is_some_and(adw_cuda::device::is_out_of_memory)
            // Not in the chain of causes, because the outer error is transparent.
            || matches!(cause.downcast_ref(), Some(adw_inference::Error::Tensor(error)) if adw_cuda::device::is_out_of_memory(error))
    })
}

fn data_is_bad(error: &msd_data::Error) -> bool {
    !matches!(error, msd_data::Error::WorkerPanic { .. } | msd_data::Error::Shape { .. })
}

fn training_input_is_bad(error: &adw_search::Error) -> bool {
    use adw_search::Error as E;
    match error {
        // Not in the chain of causes, because the outer error is transparent.
        E::Supernet(error) => network_is_bad(error),
        E::Tensor(_)
        | E::Op(_)
        | E::Cuda(_)
        | E::Ranks(_)
        | E::Batch { .. }
        | E::Shape { .. }
        | E::UnknownClass { .. } => false,
        _ => true,
    }
}

fn network_is_bad(error: &adw_supernet::Error) -> bool {
    use adw_supernet::Error as E;
    matches!(error, E::Config(_) | E::Architecture(_) | E::File { .. })
}

/// Remedy that a library's error leaves out, because it names options of the command line.
fn advice(error: &anyhow::Error) -> Option<&'static str> {
    if is_out_of_memory(error) {
        return Some("the CUDA device is full; take a smaller batch or patch, or bf16 precision");
    }
    let is_memory_limit = |cause: &msd_data::Error| matches!(cause, msd_data::Error::Memory { .. });
    let is_limit = error.chain().any(|cause| cause.downcast_ref().is_some_and(is_memory_limit));
    is_limit
        .then_some("--memory GB sets the limit; for a training, --set data.spacing_mm=[Z,Y,X] sets the size of voxels")
}

/// Formats the error and its causes on one line that is fit to be shown ([`plain`]). A cause that an outer message already
/// quotes is not repeated.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        // candle appends a backtrace, numbered from 0, where RUST_BACKTRACE is set.
        let words =
            text.lines().take_while(|line| !line.trim_start().starts_with("0: ")).flat_map(str::split_whitespace);
        let text = words.collect::<Vec<_>>().join(" ");
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
    }
    if let Some(advice) = advice(error) {
        line = format!("{line}: {advice}");
    }
    plain(&line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn what_the_person_can_put_right_exits_with_2_and_the_rest_with_1() {
        let disk_full = io::Error::from(io::ErrorKind::StorageFull);
        for (error, code) in [
            (BadInput::new("no such fold").into(), 2),
            (anyhow::Error::from(disk_full).context("writing model.safetensors"), 2),
            (anyhow::anyhow!("an invariant broke"), 1),
            (adw_search::Error::Tensor(candle_core::Error::Msg("shape".into())).into(), 1),
            (adw_search::Error::Cuda(adw_cuda::Error::Lost("gone".into())).into(), 1),
            (device_is_full().into(), 2),
        ] {
            assert_eq!(exit_code(&error), code, "{error:#}");
        }
    }

    fn device_is_full() -> adw_search::Error {
        adw_search::Error::Cuda(adw_cuda::Error::OutOfMemory { bytes: 3, free: 1, total: 2 })
    }

    #[test]
    fn a_full_device_comes_with_advice() {
        let line = one_line(&anyhow::Error::from(device_is_full()).context("epoch 3"));
        assert!(line.starts_with("epoch 3: the device has no 3 bytes left"), "{line}");
        assert!(line.ends_with("take a smaller batch or patch, or bf16 precision"), "{line}");
    }

    #[test]
    fn an_error_is_one_line_without_repetition() {
        let source = io::Error::other("no space\nleft");
        let error: anyhow::Error = adw_search::Error::Io { path: "a.txt".into(), source }.into();
        let error = Err::<(), _>(error).context("saving").unwrap_err();
        assert_eq!(one_line(&error), "saving: a.txt: no space left");
    }

    #[test]
    fn a_backtrace_is_not_part_of_the_line() {
        let error = anyhow::anyhow!("wrong shape\n   0: candle_core::error::Error::bt\n   1: main");
        assert_eq!(one_line(&error), "wrong shape");
    }
}
