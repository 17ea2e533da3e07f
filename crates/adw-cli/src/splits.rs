//! Splits of a dataset (`splits.json`): five folds, and the halves A and B of each fold's training cases.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, Result};
use msd_data::{Dataset, five_folds, halves};
use serde::{Deserialize, Serialize};

use crate::{failure::bad_input, fold::Fold};

/// Folds of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Splits {
    pub(crate) folds: Vec<Split>,
}

/// Case ids of one fold. A and B are disjoint and together make up `train`; no other list holds a case of `validation`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Split {
    pub(crate) train: Vec<String>,
    pub(crate) validation: Vec<String>,
    pub(crate) train_a: Vec<String>,
    pub(crate) train_b: Vec<String>,
}

impl Splits {
    /// Makes nnU-Net's folds and halves their training cases with `seed`.
    ///
    /// # Errors
    /// Fewer than five cases.
    pub(crate) fn new(dataset: &Dataset, seed: u64) -> Result<Self> {
        let folds = five_folds(&dataset.training_ids()).with_context(|| dataset.root.display().to_string())?;
        let split = |fold: msd_data::Fold| {
            let (train_a, train_b) = halves(&fold.train, seed);
            Split { train: fold.train, validation: fold.validation, train_a, train_b }
        };
        Ok(Self { folds: folds.into_iter().map(split).collect() })
    }

    /// Reads `splits.json`, which may have been edited, and checks that its lists are disjoint as they should be.
    ///
    /// # Errors
    /// Not such a file; a validation case among the training cases; A and B overlap.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = adw_files::read_text(path).with_context(|| format!("cannot read {}", path.display()))?;
        let splits: Self = match serde_json::from_str(&text) {
            Ok(splits) => splits,
            Err(error) => bad_input!("{}: {error}", path.display()),
        };
        for (fold, split) in splits.folds.iter().enumerate() {
            let shared = |a: &[String], b: &[String]| a.iter().find(|id| b.contains(id)).cloned();
            if let Some(id) = shared(&split.validation, &split.train) {
                bad_input!("{}: fold {fold} trains and validates on {id}", path.display());
            }
            if let Some(id) = shared(&split.train_a, &split.train_b) {
                bad_input!("{}: fold {fold} has {id} in A and in B", path.display());
            }
            if let Some(id) = split.train_a.iter().chain(&split.train_b).find(|id| !split.train.contains(id)) {
                bad_input!("{}: fold {fold} has {id} in A or B but not in train", path.display());
            }
        }
        Ok(splits)
    }

    /// Ids of the cases of every fold.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &String> {
        let splits = self.folds.iter();
        splits.flat_map(|split| split.train.iter().chain(&split.validation))
    }

    /// Returns the cases of a fold; of all folds, every case to train on and none to validate on.
    ///
    /// # Errors
    /// There is no such fold.
    pub(crate) fn fold(&self, fold: Fold) -> Result<Split> {
        let Fold::Number(number) = fold else {
            let train = self.ids().cloned().collect::<BTreeSet<_>>().into_iter().collect();
            return Ok(Split { train, validation: vec![], train_a: vec![], train_b: vec![] });
        };
        let Some(split) = self.folds.get(number) else {
            bad_input!("--fold {fold}: there are folds 0 to {}", self.folds.len().saturating_sub(1));
        };
        Ok(split.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_dishonest_split_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("splits.json");
        let strings = |ids: &[&str]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
        let honest = Split {
            train: strings(&["a", "b", "c"]),
            validation: strings(&["d"]),
            train_a: strings(&["a", "c"]),
            train_b: strings(&["b"]),
        };
        let load = |split: Split| {
            let splits = Splits { folds: vec![split] };
            fs::write(&path, serde_json::to_string(&splits).unwrap()).unwrap();
            Splits::load(&path)
        };
        let splits = load(honest.clone()).unwrap();
        assert!(splits.fold(Fold::Number(1)).unwrap_err().to_string().contains("folds 0 to 0"));
        let all = splits.fold(Fold::All).unwrap();
        assert_eq!((all.train, all.validation), (strings(&["a", "b", "c", "d"]), vec![]));
        let message = |split| load(split).unwrap_err().to_string();
        assert!(message(Split { validation: strings(&["b"]), ..honest.clone() }).contains("trains and validates on b"));
        assert!(message(Split { train_b: strings(&["a"]), ..honest.clone() }).contains("a in A and in B"));
        assert!(message(Split { train_b: strings(&["d"]), ..honest }).contains("d in A or B but not in train"));
    }
}
