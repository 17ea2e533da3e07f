//! Arguments of the commands about the program itself.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

use super::groups::ProcessArgs;

/// `adw doctor`
#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
}

/// `adw completions`
#[derive(Args, Debug)]
pub(crate) struct CompletionsArgs {
    /// Shell that the script is for
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

/// `adw man`
#[derive(Args, Debug)]
pub(crate) struct ManArgs {
    /// Folder that the pages are written to
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
}
