//! Settings of a run: a preset, overlaid by files and single values, checked, and kept in `config.toml`.

use std::path::{Path, PathBuf};

use adw_search::{RetrainConfig, SearchConfig};
use adw_supernet::{FixedSizes, GatePosition, Precision, SearchSpace};
use anyhow::{Context, Result};
use candle_core::Device;
use msd_data::{Augmentation, Positions};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::{
    args::ConfigArgs,
    device,
    failure::{BadInput, bad_input, toml_problem},
    overrides,
};

const PRESETS: [(&str, &str); 3] = [
    ("quick", include_str!("../configs/quick.toml")),
    ("standard", include_str!("../configs/standard.toml")),
    ("paper", include_str!("../configs/paper.toml")),
];

/// Settings of the data path.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DataConfig {
    /// Patch in voxels, D H W; that of the plan if absent.
    pub(crate) patch_size: Option<[usize; 3]>,
    /// Voxel size that cases are resampled to, D H W; that of the plan if absent.
    pub(crate) spacing_mm: Option<[f64; 3]>,
    /// GPU memory that the plan is made for.
    pub(crate) gpu_memory_gb: f64,
    /// Uses files of a case voxel by voxel, even if their headers place them apart. Absent in runs of earlier versions.
    #[serde(default)]
    pub(crate) ignore_positions: bool,
    /// File with the group of every case, such as a person, which folds and halves do not divide. Absent in runs of earlier versions.
    #[serde(default)]
    pub(crate) groups: Option<PathBuf>,
    /// Probability of each transform of a patch.
    pub(crate) augmentation: Augmentation,
}

impl DataConfig {
    /// Handling of files whose headers place them apart.
    pub(crate) fn positions(&self) -> Positions {
        Positions::ignored_if(self.ignore_positions)
    }
}

/// The search space.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkConfig {
    pub(crate) max_width: usize,
    pub(crate) cap_stage: usize,
    pub(crate) max_depth: usize,
    pub(crate) mask: GatePosition,
    /// Gates upsampled maps, see [`adw_supernet::SupernetConfig::gate_up`]. Absent in runs of earlier versions.
    #[serde(default)]
    pub(crate) gate_up: bool,
    pub(crate) space: SearchSpace,
    /// Depth and widths where they are not searched. Absent in runs of earlier versions.
    #[serde(default)]
    pub(crate) fixed: FixedSizes,
}

/// Settings of the sliding window.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PredictConfig {
    pub(crate) step: f64,
    pub(crate) mirror: bool,
    pub(crate) windows_per_forward: usize,
    #[serde(default)]
    pub(crate) precision: Precision,
}

/// Settings with their types; `configs/*.toml` explains each.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    pub(crate) data: DataConfig,
    pub(crate) network: NetworkConfig,
    pub(crate) search: SearchConfig,
    pub(crate) retrain: RetrainConfig,
    pub(crate) predict: PredictConfig,
}

/// Settings and the table that they were read from.
#[derive(Clone, Debug)]
pub(crate) struct RunConfig {
    table: Table,
    pub(crate) settings: Settings,
}

impl RunConfig {
    /// Settings of the command line: the preset, then `--seed`, then every `--set`.
    ///
    /// # Errors
    /// No such preset, an unknown key, a value of the wrong type or without sense.
    pub(crate) fn from_args(args: &ConfigArgs) -> Result<Self> {
        let mut table = preset(args.preset.as_deref().unwrap_or("quick"))?;
        apply(&mut table, args)?;
        Self::from_table(table)
    }

    /// Configuration with the changes of the command line; a preset replaces all of it.
    ///
    /// # Errors
    /// As [`RunConfig::from_args`].
    pub(crate) fn changed_by(&self, args: &ConfigArgs) -> Result<Self> {
        let mut table = match &args.preset {
            Some(name) => preset(name)?,
            None => self.table.clone(),
        };
        apply(&mut table, args)?;
        Self::from_table(table)
    }

    /// The first key, among those for which `concerns` returns true, whose value differs in `other`, with both values.
    pub(crate) fn difference(&self, other: &Self, concerns: impl Fn(&str) -> bool) -> Option<(String, Value, Value)> {
        let theirs = overrides::leaves(&other.table);
        let absent = || Value::String("absent".to_owned());
        let value_in = |leaves: &[(String, Value)], key: &str| {
            leaves.iter().find(|(name, _)| name == key).map_or_else(absent, |(_, value)| value.clone())
        };
        let ours = overrides::leaves(&self.table);
        ours.iter().chain(&theirs).map(|(key, _)| key).filter(|key| concerns(key)).find_map(|key| {
            let (a, b) = (value_in(&ours, key), value_in(&theirs, key));
            (a != b).then(|| (key.clone(), a, b))
        })
    }

    fn from_table(mut table: Table) -> Result<Self> {
        let settings = settings(&table)?;
        complete(&mut table, &settings)?;
        Ok(Self { table, settings })
    }
}

/// Origin of a run: program, device, dataset, fold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunFacts {
    /// Version of the program that started the run.
    pub(crate) version: String,
    pub(crate) device: String,
    /// Model of the CUDA device, if there is one, of the processor, number of threads and vector instructions. Empty in
    /// runs of earlier versions.
    #[serde(default)]
    pub(crate) processor: String,
    /// Folder of the dataset.
    pub(crate) data: PathBuf,
    /// Fold that the run was started for; further folds may have joined it.
    pub(crate) fold: usize,
}

impl RunFacts {
    /// Facts of a run or training that starts here and now.
    pub(crate) fn new(data: PathBuf, fold: usize, device: &Device) -> Self {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { version, device: device::name(device), processor: device::machine(device), data, fold }
    }
}

/// Formats `config.toml`: the facts in `[run]`, then every setting.
pub(crate) fn render(facts: &RunFacts, config: &RunConfig) -> Result<String> {
    let mut table = Table::from_iter([("run".to_owned(), Value::try_from(facts)?)]);
    table.extend(config.table.clone());
    Ok(toml::to_string(&table)?)
}

/// Reads `config.toml`.
///
/// # Errors
/// Not such a file; keys it lacks or that this version does not know.
pub(crate) fn load(path: &Path) -> Result<(RunFacts, RunConfig)> {
    let mut table = read(path)?;
    let Some(facts) = table.remove("run") else {
        bad_input!("{}: no section [run]; was it written by adw?", path.display());
    };
    let in_file = |error: &dyn std::fmt::Display| BadInput::new(format!("{}: {error}", path.display()));
    let facts = facts.try_into().map_err(|error| in_file(&error))?;
    let config = RunConfig::from_table(table).map_err(|error| in_file(&error))?;
    Ok((facts, config))
}

/// Reads a built-in preset, or a file that changes one: `base = "standard"` in its first line, quick by default.
fn preset(name: &str) -> Result<Table> {
    if let Some((_, text)) = PRESETS.iter().find(|(preset, _)| *preset == name) {
        let mut table: Table = toml::from_str(text).context("a built-in preset")?;
        table.entry("seed").or_insert(Value::Integer(1));
        let settings = settings(&table)?;
        complete(&mut table, &settings)?;
        return Ok(table);
    }
    let path = Path::new(name);
    if !path.exists() {
        bad_input!("--preset {name}: expected quick, standard, paper or a TOML file");
    }
    let mut changes = read(path)?;
    // The configuration of a run is a preset that repeats it.
    if let Some(Err(error)) = changes.remove("run").map(Value::try_into::<RunFacts>) {
        bad_input!(
            "{name}: [run]: {}; that section is of a run's config.toml: leave it out, settings are in the others",
            error.message()
        );
    }
    let base = match changes.remove("base") {
        None => "quick".to_owned(),
        Some(Value::String(base)) => base,
        Some(other) => bad_input!("{name}: base = {other}: expected quick, standard or paper"),
    };
    if !PRESETS.iter().any(|(preset, _)| *preset == base) {
        bad_input!("{name}: base = {base:?}: expected quick, standard or paper");
    }
    let mut table = preset(&base)?;
    overrides::overlay(&mut table, changes, name)?;
    Ok(table)
}

fn read(path: &Path) -> Result<Table> {
    let text = adw_files::read_text(path).with_context(|| format!("cannot read {}", path.display()))?;
    match toml::from_str(&text) {
        Ok(table) => Ok(table),
        Err(error) => bad_input!("{}: not TOML: {}", path.display(), toml_problem(&error, &text)),
    }
}

fn apply(table: &mut Table, args: &ConfigArgs) -> Result<()> {
    if let Some(seed) = args.seed {
        let Ok(seed) = i64::try_from(seed) else { bad_input!("--seed {seed}: expected a number below 2^63") };
        let is_seed = |assignment: &&String| assignment.split('=').next().is_some_and(|key| key.trim() == "seed");
        if let Some(assignment) = args.set.iter().find(is_seed) {
            bad_input!("--seed {seed} and --set {assignment}: leave one of them out");
        }
        table.insert("seed".to_owned(), Value::Integer(seed));
    }
    args.set.iter().try_for_each(|assignment| overrides::set(table, assignment))
}

/// Converts a table into settings and checks the values.
fn settings(table: &Table) -> Result<Settings> {
    let mut words = overrides::leaves(table);
    words.retain(|(_, value)| overrides::is_placeholder(value));
    let mut table = table.clone();
    leave_out_words(&mut table);
    // Search and retraining take the seed of the whole configuration.
    let seed = table.get("seed").cloned();
    if let Some(seed) = seed.as_ref().filter(|seed| seed.as_integer().is_none_or(|seed| seed < 0)) {
        bad_input!("seed = {seed}: expected a whole number of at least 0");
    }
    for section in ["search", "retrain"] {
        if let (Some(Value::Table(section)), Some(seed)) = (table.get_mut(section), &seed) {
            section.insert("seed".to_owned(), seed.clone());
        }
    }
    let settings: Settings = match table.try_into() {
        Ok(settings) => settings,
        Err(error) => {
            let error = error.to_string();
            if let Some((key, word)) = words.iter().find(|(key, _)| is_missing(key, &error)) {
                bad_input!("{key} = {word}: expected a value; this key cannot be absent");
            }
            bad_input!("configuration: {}", error.trim())
        }
    };
    in_section("search", settings.search.check())?;
    in_section("retrain", settings.retrain.check())?;
    let step = settings.predict.step;
    if !(step > 0.0 && step <= 1.0) {
        bad_input!("predict.step = {step}: expected a fraction of the patch above 0, at most 1");
    }
    if settings.predict.windows_per_forward == 0 {
        bad_input!("predict.windows_per_forward = 0: expected at least 1");
    }
    Ok(settings)
}

/// Returns true if `error`, of a conversion from TOML, says that the dotted key is missing.
fn is_missing(key: &str, error: &str) -> bool {
    let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
    error.contains(&format!("missing field `{name}`"))
        && (section.is_empty() || error.contains(&format!("in `{section}`")))
}

/// Adds the keys that the table leaves to their defaults: a new key needs no line in the presets, and can be set all the
/// same.
fn complete(table: &mut Table, settings: impl Serialize) -> Result<()> {
    let serde_json::Value::Object(values) = serde_json::to_value(settings)? else {
        return Ok(());
    };
    for (key, value) in values {
        match table.get_mut(&key) {
            Some(Value::Table(section)) => complete(section, value)?,
            Some(_) => {}
            // There is one seed for all sections.
            None if key == "seed" => {}
            None if value.is_null() => {
                table.insert(key, Value::String("none".to_owned()));
            }
            None => {
                table.insert(key, Value::try_from(value)?);
            }
        }
    }
    Ok(())
}

/// Removes the values `"plan"` and `"none"`, which stand for absent ones: TOML has no null.
fn leave_out_words(table: &mut Table) {
    table.retain(|_, value| !overrides::is_placeholder(value));
    for (_, value) in table.iter_mut() {
        if let Value::Table(section) = value {
            leave_out_words(section);
        }
    }
}

/// Adds the section to the key in an error of a library, which knows only its own keys.
fn in_section(section: &str, checked: adw_search::Result<()>) -> Result<()> {
    match checked {
        Err(adw_search::Error::Config { key, value, expected }) => {
            bad_input!("{section}.{key} = {value}: expected {expected}")
        }
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests;
