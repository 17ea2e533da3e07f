//! Splits of a dataset (`splits.json`): five folds, and the halves A and B of each fold's training cases.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context, Result};
use msd_data::{Dataset, NUM_FOLDS, five_folds, halves};
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
    /// Makes nnU-Net's folds and halves their training cases with `seed`. With a file of groups, folds and halves are drawn of
    /// groups, and the cases of a group stay together.
    ///
    /// # Errors
    /// Fewer than five cases or groups; those of [`read_groups`].
    pub(crate) fn new(dataset: &Dataset, seed: u64, groups: Option<&Path>) -> Result<Self> {
        let ids = dataset.training_ids();
        let group_of = match groups {
            Some(path) => read_groups(path, &ids)?,
            None => ids.iter().map(|id| (id.clone(), id.clone())).collect(),
        };
        let units: Vec<_> = group_of.values().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        if let Some(path) = groups.filter(|_| units.len() < NUM_FOLDS) {
            bad_input!(
                "{}: {} groups, expected at least one for each of {NUM_FOLDS} folds",
                path.display(),
                units.len()
            );
        }
        let cases_of = |units: &[String]| {
            let is_in = |id: &&String| units.binary_search(&group_of[*id]).is_ok();
            group_of.keys().filter(is_in).cloned().collect::<Vec<_>>()
        };
        let folds = five_folds(&units).with_context(|| dataset.root.display().to_string())?;
        let split = |fold: msd_data::Fold| {
            let (a, b) = halves(&fold.train, seed);
            let [train, validation, train_a, train_b] = [&fold.train, &fold.validation, &a, &b].map(|it| cases_of(it));
            Split { train, validation, train_a, train_b }
        };
        Ok(Self { folds: folds.into_iter().map(split).collect() })
    }

    /// Reads `splits.json`, which may have been edited, and checks that its lists are as a [`Split`] says.
    ///
    /// # Errors
    /// Not such a file; lists that are not so.
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
            for (list, ids) in [("train", &split.train), ("validation", &split.validation)] {
                if let Some(id) = repeated(ids) {
                    bad_input!("{}: fold {fold} has {id} twice in {list}", path.display());
                }
            }
            // Both are empty in a fold that is for trainings alone.
            let (a, b) = (split.train_a.len(), split.train_b.len());
            if a + b > 0 && (a == 0 || b == 0 || a + b != split.train.len()) {
                bad_input!(
                    "{}: fold {fold} has {a} cases in A and {b} in B: expected its {} training cases, in halves",
                    path.display(),
                    split.train.len()
                );
            }
        }
        Ok(splits)
    }

    /// Refuses folds in which a case is validated twice, or not once a fold is: their scores are no cross-validation.
    ///
    /// # Errors
    /// A message that begins with `path`.
    pub(crate) fn check_cross_validation(&self, path: &Path) -> Result<()> {
        if let Some(fold) = self.folds.iter().position(|split| split.validation.is_empty()) {
            bad_input!("{}: fold {fold} has no validation case", path.display());
        }
        let validated: Vec<_> = self.folds.iter().flat_map(|split| split.validation.iter().cloned()).collect();
        if let Some(id) = repeated(&validated) {
            bad_input!(
                "{}: {id} is a validation case of two folds; for a cross-validation each case is one once",
                path.display()
            );
        }
        Ok(())
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

/// First id that is in the list a second time.
fn repeated(ids: &[String]) -> Option<&String> {
    let mut seen = BTreeSet::new();
    ids.iter().find(|id| !seen.insert(*id))
}

/// Reads the group, such as a person, of every case: a line `CASE,GROUP` for each, also with a tab between them. Lines of
/// other cases are skipped, such as a heading.
///
/// # Errors
/// A line of another form, a case with two groups, a case without one.
fn read_groups(path: &Path, ids: &[String]) -> Result<BTreeMap<String, String>> {
    let text = adw_files::read_text(path).with_context(|| format!("data.groups: cannot read {}", path.display()))?;
    let mut group_of = BTreeMap::new();
    let text = text.trim_start_matches('\u{feff}'); // of Excel's "CSV UTF-8"
    for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let cells: Vec<_> = line.split([',', '\t']).map(|cell| cell.trim().trim_matches('"')).collect();
        let [case, group] = cells[..] else {
            bad_input!("{}, line {}: {line:?}, expected CASE,GROUP", path.display(), n + 1);
        };
        if group.is_empty() {
            bad_input!("{}, line {}: {case} without a group", path.display(), n + 1);
        }
        if !ids.iter().any(|id| id == case) {
            continue;
        }
        if let Some(other) = group_of.insert(case.to_owned(), group.to_owned()).filter(|other| other != group) {
            bad_input!("{}: {case} is in group {other} and in {group}", path.display());
        }
    }
    if let Some(id) = ids.iter().find(|id| !group_of.contains_key(*id)) {
        bad_input!("{}: no line for case {id}; every training case needs a group", path.display());
    }
    Ok(group_of)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use msd_data::{PhantomOptions, write_phantom};

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
        assert!(message(Split { train_b: strings(&["d"]), ..honest.clone() }).contains("d in A or B but not in train"));
        let twice = message(Split { validation: strings(&["d", "d"]), ..honest.clone() });
        assert!(twice.contains("fold 0 has d twice in validation"), "{twice}");
        let part = message(Split { train_a: strings(&["a"]), ..honest.clone() });
        assert!(part.contains("1 cases in A and 1 in B: expected its 3 training cases"), "{part}");

        let folds = |folds: Vec<Split>| Splits { folds }.check_cross_validation(&path).map_err(|e| e.to_string());
        let other = Split { validation: strings(&["e"]), ..honest.clone() };
        assert_eq!(folds(vec![honest.clone(), other]), Ok(()));
        let message = folds(vec![honest.clone(), honest.clone()]).unwrap_err();
        assert!(message.contains("splits.json: d is a validation case of two folds"), "{message}");
        let message = folds(vec![Split { validation: vec![], ..honest }]).unwrap_err();
        assert!(message.contains("fold 0 has no validation case"), "{message}");
    }

    #[test]
    fn groups_stay_together_in_folds_and_halves() {
        let dir = tempfile::tempdir().unwrap();
        let options = PhantomOptions { num_cases: 14, num_test: 0, ..PhantomOptions::default() };
        write_phantom(dir.path(), &options).unwrap();
        let dataset = Dataset::open(dir.path()).unwrap();
        let ids = dataset.training_ids();
        let file = dir.path().join("groups.csv");
        let write = |lines: &[String]| fs::write(&file, lines.join("\n")).unwrap();
        let splits = || Splits::new(&dataset, 3, Some(&file));

        // Every case alone, under its own name: nnU-Net's folds.
        let mut alone: Vec<_> = ids.iter().map(|id| format!("{id},{id}")).collect();
        alone[0].insert(0, '\u{feff}'); // Excel's mark at the beginning of a file
        write(&alone);
        assert_eq!(splits().unwrap(), Splits::new(&dataset, 3, None).unwrap());

        let person = |id: &String| format!("person {}", ids.iter().position(|other| other == id).unwrap() / 2);
        let mut lines = vec!["case,person".to_owned(), String::new()];
        lines.extend(ids.iter().map(|id| format!("\"{id}\"\t{}", person(id))));
        write(&lines);
        let found = splits().unwrap();
        for split in &found.folds {
            let people = |ids: &[String]| ids.iter().map(&person).collect::<BTreeSet<_>>();
            let parts = [&split.validation, &split.train_a, &split.train_b].map(|ids| people(ids));
            let [validation, a, b] = &parts;
            assert!(!validation.is_empty() && !a.is_empty() && !b.is_empty());
            assert!(validation.is_disjoint(a) && validation.is_disjoint(b) && a.is_disjoint(b), "{parts:?}");
            assert_eq!(split.train.len() + split.validation.len(), ids.len());
            assert_eq!(split.train_a.len() + split.train_b.len(), split.train.len());
        }
        let validated: BTreeSet<_> = found.folds.iter().flat_map(|split| &split.validation).collect();
        assert_eq!(validated.len(), ids.len());

        let message = |lines: &[String]| {
            write(lines);
            splits().unwrap_err().to_string()
        };
        assert!(message(&lines[..5]).contains("no line for case"));
        assert!(message(&[&lines[..], &[format!("{},other", ids[0])]].concat()).contains("and in other"));
        assert!(message(&["a b".into()]).contains("line 1: \"a b\", expected CASE,GROUP"));
        assert!(message(&["a,".into()]).contains("without a group"));
        let two: Vec<_> = ids.iter().enumerate().map(|(i, id)| format!("{id},{}", i % 2)).collect();
        assert!(message(&two).contains("2 groups"));
    }
}
