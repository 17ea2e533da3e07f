//! Faults, how many of them, and where chance puts them.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::fixture::Fixture;

#[derive(Args, Clone, Debug)]
pub(crate) struct TortureArgs {
    /// Only these campaigns [default: all]
    #[arg(value_name = "CAMPAIGN")]
    pub(super) campaigns: Vec<String>,
    /// Few faults per campaign: under a minute
    #[arg(long, conflicts_with = "long")]
    pub(super) short: bool,
    /// Every file operation, and hundreds of random faults: an hour
    #[arg(long)]
    pub(super) long: bool,
    /// Seed of the random faults
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
    /// Programs at once [default: number of cores]
    #[arg(long)]
    pub(super) jobs: Option<usize>,
    /// Inputs of the fuzzer [default: 1000 with --short, 100000 with --long, else 10000]
    #[arg(long, value_name = "N")]
    pub(super) fuzz: Option<usize>,
    /// Program to run [default: built from this workspace]
    #[arg(long, value_name = "FILE")]
    pub(super) adw: Option<PathBuf>,
    /// Write the table to this file, in Markdown
    #[arg(long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
}

impl TortureArgs {
    /// Number of faults of a campaign, by the length of the torture.
    pub(super) fn count(&self, short: usize, default: usize, long: usize) -> usize {
        match (self.short, self.long) {
            (true, _) => short,
            (_, true) => long,
            _ => default,
        }
    }
}

/// Does the work under a fault and checks what becomes of it. An error describes what was lost.
type Check = dyn Fn(&Fixture) -> Result<Survival> + Send + Sync;

/// One disturbed run.
pub(super) struct Fault {
    pub(super) name: String,
    pub(super) check: Box<Check>,
}

/// Outcome of a fault after which everything is right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Survival {
    /// The program ended with an error or a signal, and a second call finished the work.
    Resumed,
    /// The fault did not change the result.
    Unharmed,
    /// The damaged file was refused by its name.
    Refused,
}

/// Pseudo-random number below `bound` that depends on all keys (`SplitMix64`).
pub(super) fn draw(keys: &[u64], bound: u64) -> u64 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let hash = keys.iter().fold(0, |hash: u64, &key| mix(hash.wrapping_add(key).wrapping_add(0x9e37_79b9_7f4a_7c15)));
    hash % bound.max(1)
}
