//! File of a sweep: datasets x folds x seeds x arms.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, Result};
use clap::Parser;
use md5::{Digest as _, Md5};
use msd_data::NUM_FOLDS;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    args::{Cli, ConfigArgs},
    child::Arguments,
    commands::retrain::may_change,
    digest,
    failure::{bad_input, toml_problem},
    run_config::RunConfig,
};

/// A sweep as written in its TOML file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SweepConfig {
    /// Folder of runs and results, relative to the file; by default the file's path without its ending.
    pub(crate) output: Option<String>,
    /// Tasks of the decathlon, or folders.
    pub(crate) datasets: Vec<String>,
    /// Folds, of 0 to 4.
    #[serde(default = "all_folds")]
    pub(crate) folds: Vec<usize>,
    /// Seeds of searches and trainings.
    #[serde(default = "first_seed")]
    pub(crate) seeds: Vec<u64>,
    pub(crate) preset: Option<String>,
    /// Changes of values for all arms.
    #[serde(default)]
    pub(crate) set: Vec<String>,
    pub(crate) arms: Vec<Arm>,
}

/// Kind of network that is compared with others: the result of a search, or a baseline.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Arm {
    pub(crate) name: String,
    /// Changes of values for search and training.
    #[serde(default)]
    pub(crate) set: Vec<String>,
    /// Changes of values for the training alone.
    #[serde(default)]
    pub(crate) retrain_set: Vec<String>,
    /// Arm whose found networks, of the same dataset, seed and fold, are trained, instead of searching for others.
    pub(crate) search_of: Option<String>,
    /// Baselines: the options of the same names of `adw retrain`.
    pub(crate) uniform_width: Option<usize>,
    pub(crate) uniform_depth: Option<usize>,
    pub(crate) uniform_max_features: Option<usize>,
    pub(crate) plain: Option<String>,
    pub(crate) architecture: Option<String>,
    pub(crate) random: Option<u64>,
    pub(crate) cost: Option<String>,
    /// Arm whose found network, of the same dataset, seed and fold, sets the cost of the random one.
    pub(crate) cost_of: Option<String>,
    /// Differences from other arms that are intended.
    #[serde(default)]
    pub(crate) allow_difference: Vec<Difference>,
}

/// Difference between arms that makes a comparison of their networks unfair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Difference {
    Steps,
    Batch,
    Augmentation,
    Averaging,
    /// Learning rate, optimiser, clipping and precision.
    Optimisation,
    /// Random, or those of the network's search (`retrain.warm_start`), which are trained already.
    InitialWeights,
    Scoring,
}

fn all_folds() -> Vec<usize> {
    (0..NUM_FOLDS).collect()
}

fn first_seed() -> Vec<u64> {
    vec![1]
}

impl SweepConfig {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Not such a file, names that are no names of folders or occur twice, settings that do not exist.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = adw_files::read_text(path).with_context(|| format!("cannot read {}", path.display()))?;
        let config: Self = match toml::from_str(&text) {
            Ok(config) => config,
            Err(error) => bad_input!("{}: {}", path.display(), toml_problem(&error, &text)),
        };
        config.check().with_context(|| path.display().to_string())?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        for (key, is_empty) in [
            ("datasets", self.datasets.is_empty()),
            ("folds", self.folds.is_empty()),
            ("seeds", self.seeds.is_empty()),
            ("arms", self.arms.is_empty()),
        ] {
            if is_empty {
                bad_input!("{key} = []: expected at least one");
            }
        }
        if let Some(fold) = self.folds.iter().find(|fold| **fold >= NUM_FOLDS) {
            bad_input!("folds: {fold}: there are folds 0 to {}", NUM_FOLDS - 1);
        }
        let arms = self.arms.iter().map(|arm| arm.name.clone());
        unique("folds", self.folds.iter().map(ToString::to_string))?;
        unique("seeds", self.seeds.iter().map(ToString::to_string))?;
        unique("arms", arms)?;
        self.arms.iter().try_for_each(|arm| self.check_arm(arm).with_context(|| format!("arm {}", arm.name)))
    }

    /// Digest of all that an arm's networks depend on beside dataset, fold and seed, also of the files that it names.
    pub(crate) fn digest(&self, arm: &Arm) -> Result<String> {
        let text = |file: Option<&String>| -> Result<String> {
            let Some(file) = file.filter(|file| Path::new(file).is_file()) else { return Ok(String::new()) };
            adw_files::read_text(Path::new(file)).with_context(|| format!("arm {}: cannot read {file}", arm.name))
        };
        let mut own = json!(arm);
        if let Value::Object(keys) = &mut own {
            // `allow_difference` changes no result. Absent keys are left out, so that a key which a later version adds leaves the
            // digests of older files as they are.
            keys.retain(|key, value| key != "allow_difference" && !value.is_null() && *value != json!([]));
        }
        let shared = json!([self.preset, self.set, own]).to_string();
        let mut digest = Md5::new();
        for part in [shared, text(self.preset.as_ref())?, text(arm.architecture.as_ref())?] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        Ok(digest::hexadecimal(digest))
    }

    fn check_arm(&self, arm: &Arm) -> Result<()> {
        check_name(&arm.name)?;
        let of_seed = |set: &&String| set.split('=').next().is_some_and(|key| key.trim() == "seed");
        if let Some(set) = [&self.set, &arm.set, &arm.retrain_set].into_iter().flatten().find(of_seed) {
            bad_input!("{set:?} in set or retrain_set would be the seed of all tasks: list seeds in `seeds`");
        }
        let config = RunConfig::from_args(&self.settings(arm, self.seeds[0]))?;
        let trained = config.changed_by(&ConfigArgs { preset: None, seed: None, set: arm.retrain_set.clone() })?;
        if let Some((key, _, _)) = config.difference(&trained, |key| !may_change(key)) {
            bad_input!("retrain_set: {key} is no setting of the training alone: put it in set");
        }
        if let Some(file) = arm.architecture.as_ref().filter(|file| !Path::new(file).exists()) {
            bad_input!("architecture = {file:?}: no such file; its path starts from the current folder");
        }
        if let Some(other) = &arm.search_of {
            let found = self.arms.iter().take_while(|before| before.name != arm.name).find(|arm| arm.name == *other);
            if !found.is_some_and(Arm::searches) || !arm.baseline(None).is_empty() || !arm.set.is_empty() {
                bad_input!(
                    "search_of = {other:?}: expected the name of an arm before it that searches, for an arm with no set and no baseline"
                );
            }
        }
        if let Some(other) = &arm.cost_of {
            let found = self.arms.iter().find(|arm| arm.name == *other);
            if !found.is_some_and(Arm::searches) || arm.random.is_none() || arm.cost.is_some() {
                bad_input!(
                    "cost_of = {other:?}: expected the name of an arm that searches, for a random arm without cost"
                );
            }
            let theirs = found.map(|found| RunConfig::from_args(&self.settings(found, self.seeds[0]))).transpose()?;
            let is_of_space =
                |key: &str| key.starts_with("network.") && !["network.mask", "network.gate_up"].contains(&key);
            if let Some((key, _, _)) = theirs.and_then(|theirs| theirs.difference(&config, is_of_space)) {
                bad_input!(
                    "cost_of = {other:?}: {key} is another one there, but networks are drawn from this arm's own search space: give both arms the same"
                );
            }
        }
        let arguments = arm.baseline(arm.cost_of.as_ref().map(|_| 1e9));
        if let Err(error) = Cli::try_parse_from(Arguments::of("retrain").option_list(arguments).line()) {
            let text = error.to_string();
            let lines: Vec<_> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
            bad_input!("{}", lines.join(" ").trim_start_matches("error: "));
        }
        Ok(())
    }

    /// Settings of an arm's run.
    pub(crate) fn settings(&self, arm: &Arm, seed: u64) -> ConfigArgs {
        ConfigArgs { preset: self.preset.clone(), seed: Some(seed), set: [self.set.clone(), arm.set.clone()].concat() }
    }
}

impl Arm {
    /// Returns true if the arm searches for its networks.
    pub(crate) fn searches(&self) -> bool {
        self.trains_found() && self.search_of.is_none()
    }

    /// Returns true if the arm's networks come from a search, its own or that of another arm.
    pub(crate) fn trains_found(&self) -> bool {
        self.baseline(None).is_empty()
    }

    /// Name of the arm's trainings in a run that is another arm's.
    pub(crate) fn training_name(&self) -> Option<&str> {
        self.search_of.as_ref().map(|_| self.name.as_str())
    }

    /// Options of `adw retrain` for a baseline; none for an arm that searches. `cost` is that of a random network that has none
    /// of its own.
    pub(crate) fn baseline(&self, cost: Option<f64>) -> Vec<(&'static str, String)> {
        let cost = self.cost.clone().or(cost.map(|cost| cost.to_string()));
        let options = [
            ("--uniform-width", self.uniform_width.map(|n| n.to_string())),
            ("--uniform-depth", self.uniform_depth.map(|n| n.to_string())),
            ("--uniform-max-features", self.uniform_max_features.map(|n| n.to_string())),
            ("--plain", self.plain.clone()),
            ("--architecture", self.architecture.clone()),
            ("--random", self.random.map(|n| n.to_string())),
            ("--cost", cost),
        ];
        options.into_iter().filter_map(|(option, value)| Some((option, value?))).collect()
    }
}

/// Refuses what is no name of a folder on every system.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let is_plain = |c: char| c.is_alphanumeric() || "-_+".contains(c);
    if name.is_empty() || !name.chars().all(is_plain) {
        bad_input!("name = {name:?}: expected letters, digits, - and _");
    }
    Ok(())
}

/// Refuses a list in which a value occurs twice.
pub(crate) fn unique(key: &str, values: impl IntoIterator<Item = String>) -> Result<()> {
    let mut seen = BTreeSet::new();
    for value in values {
        if !seen.insert(value.clone()) {
            bad_input!("{key}: {value} occurs twice");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(arms: &str) -> Result<SweepConfig> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("study.toml");
        std::fs::write(&path, format!("datasets = [\"phantom\"]\n{arms}")).unwrap();
        SweepConfig::load(&path)
    }

    #[test]
    fn a_file_is_checked_before_any_work() {
        let sound = "[[arms]]\nname = \"found\"\n[[arms]]\nname = \"random\"\nrandom = 1\ncost_of = \"found\"";
        let config = load(sound).unwrap();
        assert_eq!((config.folds.len(), config.seeds.as_slice()), (5, [1].as_slice()));
        assert!(config.arms[0].searches() && !config.arms[1].searches());
        let arm = |text: &str| crate::failure::one_line(&load(&format!("[[arms]]\nname = \"a\"\n{text}")).unwrap_err());
        for (text, part) in [
            ("set = [\"search.epoch=3\"]", "did you mean \"search.epochs\""),
            ("retrain_set = [\"search.clip=3.0\"]", "put it in set"),
            ("retrain_set = [\"seed = 5\"]", "list seeds in `seeds`"),
            ("set = [\"seed=5\"]", "list seeds in `seeds`"),
            ("plain = \"nnunet\"\nuniform_depth = 4", "cannot be used with"),
            ("plain = \"nnunet\"\ncost = \"3G\"", "cannot be used with"),
            ("random = 1", "--cost"),
            ("random = 1\ncost_of = \"b\"", "cost_of"),
            ("search_of = \"a\"", "search_of"),
            (
                "[[arms]]\nname = \"r\"\nrandom = 1\ncost_of = \"a\"\nset = [\"network.max_width=24\"]",
                "network.max_width",
            ),
            ("[[arms]]\nname = \"b\"\nsearch_of = \"a\"\nset = [\"search.clip=3.0\"]", "no set"),
            ("plain = \"unet\"", "unet"),
            ("uniform_width = 4\nplain = \"nnunet\"", "cannot be used with"),
            ("uniform_width = 0", "above 0"),
            ("sets = []", "unknown field"),
            ("[[arms]]\nname = \"a\"", "occurs twice"),
            ("[[arms]]\nname = \"../b\"", "letters"),
        ] {
            let message = arm(text);
            assert!(message.contains(part) && message.contains("study.toml"), "{text}: {message}");
        }
    }
}
