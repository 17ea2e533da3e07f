//! `adw completions` and `adw man`: scripts for shells and manual pages, made from the arguments themselves.

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::{
    args::{Cli, CompletionsArgs, ManArgs},
    report::progress::say,
};

/// Name of the program in scripts and pages.
const NAME: &str = "adw";

pub(crate) fn completions(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), NAME, &mut script);
    say(&String::from_utf8(script).context("a script is text")?);
    Ok(())
}

pub(crate) fn pages(args: &ManArgs) -> Result<()> {
    let folder = &args.output;
    adw_files::create_folders(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let written = clap_mangen::generate_to(Cli::command().name(NAME), folder);
    written.with_context(|| format!("cannot write manual pages to {}", folder.display()))
}
