//! From what a person calls a task to the folder its dataset lies in.

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};

use crate::{DataArgs, UsageError, download::download, fetch::Patience, manifest::Manifest};

/// The dataset `cargo xtask search` makes for itself.
pub(crate) const PHANTOM: &str = "phantom";
const PHANTOM_FOLDER: &str = "Task00_Phantom";

/// A task and its dataset's folder.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    /// The task's folder in `runs/`.
    pub(crate) task: String,
    /// The folder with `dataset.json`, which may not exist yet.
    pub(crate) folder: PathBuf,
    /// Where it comes from if it does not.
    pub(crate) origin: Origin,
}

/// How a missing dataset comes to be.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    /// It is there.
    Present,
    /// `adw phantom` makes it.
    Phantom,
    /// It is downloaded into this folder.
    Download(Box<Manifest>, PathBuf),
}

/// The workspace's root: `data/` and `runs/` lie here, wherever `cargo xtask` is called from.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_owned()
}

fn is_dataset(dir: &Path) -> bool {
    dir.join("dataset.json").is_file()
}

/// Finds the dataset that `task` and `--data` mean, without fetching anything.
///
/// # Errors
/// No such task; `--data` is another decathlon task's folder.
pub(crate) fn locate(task: &str, data: &DataArgs) -> Result<Located> {
    let root = match (&data.data, env::var_os("ADW_DATA")) {
        (Some(dir), _) => dir.clone(),
        (None, Some(dir)) => dir.into(),
        (None, None) => workspace().join("data"),
    };
    let root = std::path::absolute(&root).with_context(|| format!("--data {}", root.display()))?;
    let manifest = Manifest::find(task)?;
    let as_path = Path::new(task);

    if is_dataset(as_path) {
        return Ok(present(&std::path::absolute(as_path)?));
    }
    if manifest.is_none() && task != PHANTOM {
        let names: Vec<_> = Manifest::all()?.into_iter().map(|manifest| manifest.task).collect();
        return Err(UsageError(format!(
            "{task:?} is neither a task ({}, {PHANTOM}) nor a folder with a dataset.json",
            names.join(", ")
        ))
        .into());
    }
    // `--data` names one dataset rather than the folder datasets lie in.
    if data.data.is_some() && is_dataset(&root) {
        let located = present(&root);
        let other = Manifest::find(&located.task)?;
        if let (Some(asked), Some(other)) = (&manifest, &other)
            && asked.folder != other.folder
        {
            return Err(UsageError(format!("--data {} is not {}", root.display(), asked.folder)).into());
        }
        return Ok(Located { task: manifest.map_or(located.task, |asked| asked.task), ..located });
    }
    let (task, folder_name) = match &manifest {
        Some(manifest) => (manifest.task.clone(), manifest.folder.as_str()),
        None => (PHANTOM.to_owned(), PHANTOM_FOLDER),
    };
    let folder = root.join(folder_name);
    let origin = match manifest {
        _ if is_dataset(&folder) => Origin::Present,
        None => Origin::Phantom,
        Some(manifest) if data.offline => {
            return Err(UsageError(format!(
                "{} is missing and --offline forbids to download it: put it there, or name its place with --data",
                root.join(manifest.folder).display()
            ))
            .into());
        }
        Some(manifest) => Origin::Download(Box::new(manifest), root),
    };
    Ok(Located { task, folder, origin })
}

/// A dataset that is there, with a task name from its folder: `Task04_Hippocampus` is `hippocampus`.
fn present(folder: &Path) -> Located {
    let name = folder.file_name().map_or_else(|| "dataset".into(), |name| name.to_string_lossy().to_lowercase());
    let task = match name.split_once('_') {
        Some((number, rest)) if number.len() == 6 && number.starts_with("task") && !rest.is_empty() => rest.to_owned(),
        _ => name,
    };
    Located { task, folder: folder.to_owned(), origin: Origin::Present }
}

/// Downloads `manifest` into `root` unless it is there, and says what it is and whose.
pub(crate) fn fetch(manifest: &Manifest, root: &Path, mirror: Option<&str>) -> Result<PathBuf> {
    eprintln!("{}: {}, {}; {}", manifest.folder, manifest.modality, manifest.target, manifest.licence);
    eprintln!("cite: {}", manifest.citation);
    let folder = download(manifest, root, mirror, Patience::default())?;
    eprintln!("{} is ready", folder.display());
    Ok(folder)
}

/// `cargo xtask download TASK|all`
pub(crate) fn download_command(task: &str, data: &DataArgs) -> Result<ExitCode> {
    let tasks = match task {
        "all" => Manifest::all()?.into_iter().map(|manifest| manifest.task).collect(),
        PHANTOM => {
            return Err(UsageError("phantom is not downloaded: `cargo xtask search` makes it".into()).into());
        }
        task => vec![task.to_owned()],
    };
    for task in tasks {
        let located = locate(&task, data)?;
        match located.origin {
            Origin::Download(manifest, root) => {
                fetch(&manifest, &root, data.mirror.as_deref())?;
            }
            Origin::Present | Origin::Phantom => {
                eprintln!("{} is there already", located.folder.display());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn data(dir: &Path) -> DataArgs {
        DataArgs { data: Some(dir.to_owned()), mirror: None, offline: false }
    }

    fn dataset(dir: PathBuf) -> PathBuf {
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("dataset.json"), "{}").unwrap();
        dir
    }

    #[test]
    fn a_task_is_looked_for_below_the_root_and_downloaded_if_missing() {
        let root = tempfile::tempdir().unwrap();
        let located = locate("Hippocampus", &data(root.path())).unwrap();
        assert!(matches!(located.origin, Origin::Download(manifest, into)
            if manifest.task == "hippocampus" && into == root.path()));
        let offline = DataArgs { offline: true, ..data(root.path()) };
        assert!(locate("hippocampus", &offline).unwrap_err().is::<UsageError>());
        let folder = dataset(root.path().join("Task04_Hippocampus"));
        let located = locate("hippocampus", &offline).unwrap();
        assert_eq!((located.task.as_str(), &located.folder), ("hippocampus", &folder));
        assert!(matches!(located.origin, Origin::Present));
        assert!(matches!(locate(PHANTOM, &data(root.path())).unwrap().origin, Origin::Phantom));
    }

    #[test]
    fn data_and_task_may_be_the_dataset_itself() {
        let root = tempfile::tempdir().unwrap();
        let hippocampus = dataset(root.path().join("Task04_Hippocampus"));
        for (task, data) in [
            ("hippocampus", data(&hippocampus)),
            (PHANTOM, data(&hippocampus)),
            (hippocampus.to_str().unwrap(), DataArgs::default()),
        ] {
            let located = locate(task, &data).unwrap();
            assert_eq!((located.task.as_str(), &located.folder), ("hippocampus", &hippocampus));
        }
        assert!(locate("heart", &data(&hippocampus)).unwrap_err().to_string().contains("is not Task02_Heart"));
        let own = dataset(root.path().join("Kidneys"));
        assert_eq!(locate(own.to_str().unwrap(), &DataArgs::default()).unwrap().task, "kidneys");
        assert!(locate("kidney", &data(root.path())).unwrap_err().to_string().contains("neither a task"));
    }
}
