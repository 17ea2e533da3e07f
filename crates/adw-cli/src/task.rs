//! Tasks: from a name on the command line to the folder of a dataset.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use msd_data::Dataset;

use crate::{
    args::{DatasetArgs, FetchArgs},
    dataset_folder,
    download::{self, Manifest, RetryPolicy},
    failure::{bad_input, program},
    phantom,
    report::progress::note,
};

/// Name of the task whose dataset is generated.
pub(crate) const PHANTOM: &str = "phantom";
const PHANTOM_FOLDER: &str = "Task00_Phantom";

/// Task and the folder of its dataset, which may not exist yet.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    /// Name of the task's folder in `runs/`.
    pub(crate) name: String,
    /// Folder with `dataset.json`.
    pub(crate) folder: PathBuf,
    /// True if the command line names the place of the dataset, not only its task.
    pub(crate) has_place: bool,
    origin: Origin,
}

/// Way in which a dataset comes into its folder.
#[derive(Clone, Debug)]
enum Origin {
    /// The dataset exists.
    Present,
    /// The dataset is generated.
    Phantom,
    /// The dataset is downloaded into the folder `root`.
    Download { manifest: Box<Manifest>, root: PathBuf },
}

impl Task {
    /// Finds the dataset that `TASK` and `--data` name, without downloading anything; none if both are absent.
    ///
    /// `TASK` is looked for in the folder `--data`, or is that dataset; without `TASK`, `--data` is a dataset or a folder
    /// with a single one.
    ///
    /// # Errors
    /// Neither a task nor a dataset; `--data` is the folder of another task of the decathlon.
    pub(crate) fn locate(args: &DatasetArgs) -> Result<Option<Self>> {
        match (&args.task, &args.data) {
            (None, None) => Ok(None),
            (None, Some(dir)) => Self::present(&dataset_folder::find(dir)?, true).map(Some),
            (Some(task), data) => Self::named(task, data.as_deref()).map(Some),
        }
    }

    /// The phantom in the folder that datasets lie in.
    pub(crate) fn phantom() -> Result<Self> {
        Self::named(PHANTOM, None)
    }

    fn named(task: &str, data: Option<&Path>) -> Result<Self> {
        let as_path = Path::new(task);
        let manifest = Manifest::find(task)?;
        let is_name = manifest.is_some() || task == PHANTOM;
        if dataset_folder::is_dataset(as_path) || (!is_name && as_path.is_dir()) {
            if let Some(data) = data {
                bad_input!("{task} is a dataset's folder: leave out --data {}", data.display());
            }
            return Self::present(&dataset_folder::find(as_path)?, true);
        }
        if !is_name {
            let names: Vec<_> = Manifest::all()?.into_iter().map(|manifest| manifest.task).collect();
            bad_input!("{task:?} is neither a task ({}, {PHANTOM}) nor a folder with a dataset.json", names.join(", "));
        }
        let root = data_root(data)?;
        // `--data` names one dataset rather than the folder that datasets lie in.
        if data.is_some() && dataset_folder::is_dataset(&root) {
            let mut found = Self::present(&root, true)?;
            let other = Manifest::find(&found.name)?;
            if let Some(asked) = &manifest {
                if other.is_some_and(|other| other.folder != asked.folder) {
                    bad_input!("--data {} is not {}", root.display(), asked.folder);
                }
                found.name.clone_from(&asked.task);
            }
            return Ok(found);
        }
        let task = match manifest {
            Some(manifest) => Self::of_archive(manifest, root),
            None => Self::absent(PHANTOM.to_owned(), root.join(PHANTOM_FOLDER), Origin::Phantom),
        };
        Ok(Self { has_place: data.is_some(), ..task })
    }

    /// Dataset of an archive, in the folder `root`.
    pub(crate) fn of_archive(manifest: Manifest, root: PathBuf) -> Self {
        let (name, folder) = (manifest.task.clone(), root.join(&manifest.folder));
        Self::absent(name, folder, Origin::Download { manifest: Box::new(manifest), root })
    }

    /// Dataset that is of `origin` where it does not exist yet.
    fn absent(name: String, folder: PathBuf, origin: Origin) -> Self {
        let origin = if dataset_folder::is_dataset(&folder) { Origin::Present } else { origin };
        Self { name, folder, has_place: true, origin }
    }

    /// Dataset that exists, with a task's name made from its folder's: `Task04_Hippocampus` is `hippocampus`.
    fn present(folder: &Path, has_place: bool) -> Result<Self> {
        let folder = std::path::absolute(folder).with_context(|| folder.display().to_string())?;
        let name = folder.file_name().map_or_else(|| "dataset".into(), |name| name.to_string_lossy().to_lowercase());
        let name = match name.split_once('_') {
            Some((task, rest)) if task.len() == 6 && task.starts_with("task") && !rest.is_empty() => rest.to_owned(),
            _ => name,
        };
        Ok(Self { name, folder, has_place, origin: Origin::Present })
    }

    /// Returns true if the dataset exists.
    pub(crate) fn is_present(&self) -> bool {
        matches!(self.origin, Origin::Present)
    }

    /// Returns the folder of a dataset that exists.
    ///
    /// # Errors
    /// The dataset is missing.
    pub(crate) fn existing(&self) -> Result<&Path> {
        let command = match &self.origin {
            Origin::Present => return Ok(&self.folder),
            Origin::Phantom => PHANTOM.to_owned(),
            Origin::Download { manifest, .. } => format!("download {}", manifest.task),
        };
        bad_input!(
            "{} is missing: get it with `{} {command}`, or name its folder with --data",
            self.folder.display(),
            program()
        );
    }

    /// Returns the dataset's folder; one that is missing is made by [`Self::provide`], or refused in a dry run.
    ///
    /// # Errors
    /// Those of [`Self::existing`] and [`Self::provide`].
    pub(crate) fn provide_unless(&self, dry_run: bool, args: &FetchArgs) -> Result<&Path> {
        if dry_run { self.existing() } else { self.provide(args) }
    }

    /// Makes the dataset's folder exist, by a download or by generating a phantom, and returns it.
    ///
    /// # Errors
    /// The dataset is missing and `--offline` is given; the download fails; the disk is full or read-only.
    pub(crate) fn provide(&self, args: &FetchArgs) -> Result<&Path> {
        match &self.origin {
            Origin::Present => download::remove_leftovers(&self.folder),
            Origin::Phantom => {
                note(&format!("generating the phantom dataset in {}", self.folder.display()));
                phantom::write(&self.folder, &phantom::options())?;
            }
            Origin::Download { .. } if args.offline => {
                bad_input!(
                    "{} is missing, and --offline forbids to download it: name its folder with --data",
                    self.folder.display()
                );
            }
            Origin::Download { manifest, root } => {
                download::download(manifest, root, args.mirror.as_deref(), RetryPolicy::default())?;
            }
        }
        Ok(&self.folder)
    }
}

/// Folder of the dataset that the command line names.
///
/// # Errors
/// The command line names none, or the dataset is missing; those of [`Task::locate`].
pub(crate) fn dataset_folder(args: &DatasetArgs) -> Result<PathBuf> {
    let Some(task) = Task::locate(args)? else {
        bad_input!("no dataset is named: give a TASK such as `hippocampus`, or --data DIR");
    };
    task.existing().map(Path::to_owned)
}

/// Opens the dataset that the command line names.
///
/// # Errors
/// As [`dataset_folder()`] and [`Dataset::open`].
pub(crate) fn open_dataset(args: &DatasetArgs) -> Result<Dataset> {
    Ok(Dataset::open(&dataset_folder(args)?)?)
}

/// Folder that datasets lie in: `data` if given, else `$ADW_DATA` unless that is empty, else `data/` in the current folder.
///
/// # Errors
/// There is no current folder.
pub(crate) fn data_root(data: Option<&Path>) -> Result<PathBuf> {
    let root = match data {
        Some(dir) => dir.to_owned(),
        None => env::var_os("ADW_DATA").filter(|value| !value.is_empty()).map_or_else(|| "data".into(), PathBuf::from),
    };
    std::path::absolute(&root).with_context(|| format!("--data {}", root.display()))
}

/// Folder of the phantom in [`data_root`].
pub(crate) fn default_phantom_folder() -> Result<PathBuf> {
    Ok(data_root(None)?.join(PHANTOM_FOLDER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn args(task: &str, data: Option<&Path>) -> DatasetArgs {
        DatasetArgs { task: Some(task.to_owned()), data: data.map(Path::to_owned) }
    }

    fn locate(task: &str, data: Option<&Path>) -> Result<Task> {
        Ok(Task::locate(&args(task, data))?.unwrap())
    }

    fn dataset(dir: PathBuf) -> PathBuf {
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("dataset.json"), "{}").unwrap();
        dir
    }

    #[test]
    fn a_task_is_looked_for_below_the_root_and_downloaded_if_missing() {
        let root = tempfile::tempdir().unwrap();
        let task = locate("Hippocampus", Some(root.path())).unwrap();
        assert!(matches!(&task.origin, Origin::Download { manifest, root: into }
            if manifest.task == "hippocampus" && into == root.path()));
        let offline = FetchArgs { offline: true, ..FetchArgs::default() };
        let error = task.provide(&offline).unwrap_err();
        assert_eq!(crate::failure::exit_code(&error), 2);
        let missing = dataset_folder(&args("hippocampus", Some(root.path()))).unwrap_err().to_string();
        assert!(missing.contains("download hippocampus"), "{missing}");
        assert!(error.to_string().contains("Task04_Hippocampus is missing"), "{error}");
        let folder = dataset(root.path().join("Task04_Hippocampus"));
        let task = locate("hippocampus", Some(root.path())).unwrap();
        assert_eq!((task.name.as_str(), task.provide(&offline).unwrap()), ("hippocampus", folder.as_path()));
        assert!(matches!(locate(PHANTOM, Some(root.path())).unwrap().origin, Origin::Phantom));
    }

    #[test]
    fn data_and_task_may_be_the_dataset_itself() {
        let root = tempfile::tempdir().unwrap();
        let hippocampus = dataset(root.path().join("Task04_Hippocampus"));
        for (task, data) in [
            (Some("hippocampus"), Some(&hippocampus)),
            (Some(PHANTOM), Some(&hippocampus)),
            (None, Some(&hippocampus)),
            (None, Some(&root.path().to_owned())),
            (Some(hippocampus.to_str().unwrap()), None),
            (Some(root.path().to_str().unwrap()), None),
        ] {
            let args = DatasetArgs { task: task.map(str::to_owned), data: data.cloned() };
            let task = Task::locate(&args).unwrap().unwrap();
            assert_eq!((task.name.as_str(), &task.folder), ("hippocampus", &hippocampus));
        }
        let message = |task: &str, data| locate(task, data).unwrap_err().to_string();
        assert!(message("heart", Some(&hippocampus)).contains("is not Task02_Heart"));
        assert!(message(hippocampus.to_str().unwrap(), Some(root.path())).contains("leave out --data"));
        let own = dataset(root.path().join("Kidneys"));
        assert_eq!(locate(own.to_str().unwrap(), None).unwrap().name, "kidneys");
        assert!(message("kidney", Some(root.path())).contains("neither a task"));
    }
}
