//! Models that `--model` names: files, or the folders of runs, with the models of their folds and their postprocessing.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    failure::{bad_input, program},
    fold::Fold,
    report::progress::note,
    run_folder::{RunFolder, splits_path, trainings_path},
    splits::Splits,
};

/// Name of the steps that were decided on all folds, in the folder of their trainings.
pub(crate) const POSTPROCESSING: &str = "postprocessing.json";

/// Name of the model in the folder of a training.
pub(crate) const MODEL: &str = "model.safetensors";

/// Models whose logits are averaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ensemble {
    pub(crate) models: Vec<PathBuf>,
    /// Steps that cross-validation found to help; none if a model is named by itself.
    pub(crate) postprocessing: Option<PathBuf>,
}

impl Ensemble {
    /// Finds the models: of a run or of the folder `retrain/NAME` those of every fold, of a folder of one training its model.
    ///
    /// # Errors
    /// A folder without a model, or a run with several trainings that have names.
    pub(crate) fn find(paths: &[PathBuf]) -> Result<Self> {
        let mut models = Vec::new();
        for path in paths {
            if path.is_dir() { models.extend(in_folder(path)?) } else { models.push(path.clone()) }
        }
        let postprocessing = match paths {
            [path] if path.is_dir() => Some(trainings_in(path)?.join(POSTPROCESSING)).filter(|file| file.is_file()),
            _ => None,
        };
        Ok(Self { models, postprocessing })
    }
}

/// Models of the folds in a folder.
fn in_folder(path: &Path) -> Result<Vec<PathBuf>> {
    let single = path.join(MODEL);
    if single.is_file() {
        return Ok(vec![single]);
    }
    let trainings = trainings_in(path)?;
    let (all, mut folds): (Vec<_>, Vec<_>) =
        folds_in(&trainings)?.into_iter().partition(|(fold, _)| *fold == Fold::All);
    if folds.is_empty() {
        folds = all;
    }
    folds.sort_by_key(|(fold, _)| if let Fold::Number(number) = fold { *number } else { 0 });
    if folds.is_empty() {
        bad_input!(
            "{}: has no trained model (fold_K/{MODEL}); `{} retrain --run RUN` trains one",
            trainings.display(),
            program()
        );
    }
    let names: Vec<_> = folds.iter().map(|(fold, _)| fold.to_string()).collect();
    let of_run = trainings.ancestors().find(|folder| RunFolder::exists(folder));
    let expected = of_run.and_then(|root| Splits::load(&splits_path(root)).ok()).map(|splits| splits.folds.len());
    let missing = expected.filter(|&expected| expected > folds.len() && folds[0].0 != Fold::All);
    let of_all = missing.map_or(String::new(), |expected| format!(" of {expected}"));
    note(&format!("{}: fold {}{of_all}", trainings.display(), names.join(", ")));
    Ok(folds.into_iter().map(|(_, model)| model).collect())
}

/// Folder with the trainings of the folds: that of a run, its only one with a name if it has no other, else `path` itself.
fn trainings_in(path: &Path) -> Result<PathBuf> {
    if !RunFolder::exists(path) || path.join(MODEL).is_file() {
        return Ok(path.to_owned());
    }
    let unnamed = trainings_path(path, None);
    if !unnamed.is_dir() || !folds_in(&unnamed)?.is_empty() {
        return Ok(unnamed);
    }
    let mut named = Vec::new();
    for entry in fs::read_dir(&unnamed).with_context(|| format!("cannot read {}", unnamed.display()))? {
        let folder = entry?.path();
        if folder.is_dir() && !folds_in(&folder)?.is_empty() {
            named.push(folder);
        }
    }
    named.sort();
    match named.as_slice() {
        [] => Ok(unnamed),
        [only] => Ok(only.clone()),
        [first, ..] => {
            let names: Vec<_> = named.iter().filter_map(|folder| folder.file_name()?.to_str()).collect();
            bad_input!(
                "{}: has several trainings ({}): name one of them, such as {}",
                path.display(),
                names.join(", "),
                first.display()
            )
        }
    }
}

/// Folds with a model in a folder of trainings.
fn folds_in(trainings: &Path) -> Result<Vec<(Fold, PathBuf)>> {
    if !trainings.is_dir() {
        return Ok(Vec::new());
    }
    let mut folds = Vec::new();
    for entry in fs::read_dir(trainings).with_context(|| format!("cannot read {}", trainings.display()))? {
        let folder = entry.with_context(|| format!("cannot read {}", trainings.display()))?.path();
        let fold = folder.file_name().and_then(|name| name.to_str()?.strip_prefix("fold_")?.parse().ok());
        let model = folder.join(MODEL);
        folds.extend(fold.filter(|_| model.is_file()).map(|fold| (fold, model)));
    }
    Ok(folds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_gives_the_models_of_its_folds_in_order_and_its_postprocessing() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path();
        let file = |name: &str| {
            let path = run.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            path
        };
        let find = |path: &Path| Ensemble::find(&[path.to_owned()]);
        file("config.toml");
        assert!(find(run).unwrap_err().to_string().contains("no trained model"));
        let all = file("retrain/fold_all/model.safetensors");
        assert_eq!(find(run).unwrap().models, std::slice::from_ref(&all));
        fs::remove_dir_all(run.join("retrain")).unwrap();

        let named = file("retrain/plain/fold_0/model.safetensors");
        assert_eq!(find(run).unwrap().models, std::slice::from_ref(&named), "the only one");
        file("retrain/wide/fold_0/model.safetensors");
        let message = find(run).unwrap_err().to_string();
        assert!(message.contains("plain, wide"), "{message}");
        assert_eq!(find(&run.join("retrain/plain")).unwrap().models, std::slice::from_ref(&named));

        file("retrain/fold_1/checkpoint/latest.safetensors");
        let folds = [2, 10].map(|fold| file(&format!("retrain/fold_{fold}/model.safetensors")));
        let steps = file("retrain/postprocessing.json");
        let found = find(run).unwrap();
        assert_eq!(found, Ensemble { models: folds.to_vec(), postprocessing: Some(steps) });
        assert_eq!(find(&run.join("retrain/fold_2")).unwrap().models, [folds[0].clone()]);
        let files = Ensemble::find(&folds).unwrap();
        assert_eq!(files, Ensemble { models: folds.to_vec(), postprocessing: None });
    }
}
