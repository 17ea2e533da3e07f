//! A dataset on disk: `dataset.json` and the files it lists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use ndarray::ArrayView3;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::nifti::{LabelMap, Volume, read_image, read_labels};

/// A dataset in MSD layout whose listed files exist.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// The folder that holds `dataset.json`.
    pub root: PathBuf,
    /// The folder's name if it looks like `Task04_Hippocampus`, else the `name` in `dataset.json`.
    pub name: String,
    /// Names of the image channels, e.g. `["MRI"]`, `["CT"]`, `["T2", "ADC"]`.
    pub modalities: Vec<String>,
    /// Labels by ascending value; the first is 0, background.
    pub labels: Vec<Label>,
    /// Cases with labels, sorted by id.
    pub training: Vec<Case>,
    /// Cases without labels, sorted by id.
    pub test: Vec<TestCase>,
}

/// A label value and what it means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// The value in label maps.
    pub value: u16,
    /// The name in `dataset.json`.
    pub name: String,
}

/// A labelled case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// The file name without `.nii.gz`.
    pub id: String,
    /// The image file.
    pub image: PathBuf,
    /// The label map.
    pub label: PathBuf,
}

/// A case without labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestCase {
    /// The file name without `.nii.gz`.
    pub id: String,
    /// The image file.
    pub image: PathBuf,
}

#[derive(Deserialize)]
struct DatasetJson {
    #[serde(default)]
    name: String,
    modality: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    training: Vec<TrainingEntry>,
    #[serde(default)]
    test: Vec<TestEntry>,
}

#[derive(Deserialize)]
struct TrainingEntry {
    image: PathBuf,
    label: PathBuf,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TestEntry {
    Image(PathBuf),
    Entry { image: PathBuf },
}

/// A file that `dataset.json` lists, without the `./` that the decathlon puts in front.
fn listed(dir: &Path, file: impl AsRef<Path>) -> PathBuf {
    dir.join(file).components().collect()
}

impl Dataset {
    /// Opens the dataset in `dir`: reads `dataset.json` and checks that its labels are 0, 1, 2, ... and that every
    /// listed file exists. Entries for macOS's AppleDouble files (`._name`) are ignored. No volume is read.
    ///
    /// # Errors
    /// [`Error::NotADataset`], [`Error::Json`], [`Error::DatasetJson`], [`Error::MissingFile`].
    pub fn open(dir: &Path) -> Result<Self> {
        let dataset = Self::parse(dir)?;
        let missing: Vec<_> = dataset
            .listed_files()
            .filter(|file| !file.is_file())
            .collect();
        if let Some((&first, others)) = missing.split_first() {
            let listed_in = dir.join("dataset.json").display().to_string();
            return Err(Error::MissingFile {
                listed_in,
                path: first.clone(),
                others: others.len(),
            });
        }
        Ok(dataset)
    }

    /// Every file that `dataset.json` lists.
    pub(crate) fn listed_files(&self) -> impl Iterator<Item = &PathBuf> {
        let training = self
            .training
            .iter()
            .flat_map(|case| [&case.image, &case.label]);
        training.chain(self.test.iter().map(|case| &case.image))
    }

    /// What `dataset.json` says, whether its files exist or not.
    pub(crate) fn parse(dir: &Path) -> Result<Self> {
        let path = dir.join("dataset.json");
        if !path.is_file() {
            return Err(Error::NotADataset {
                path: dir.to_path_buf(),
            });
        }
        let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
        let json: DatasetJson = serde_json::from_str(&text).map_err(|cause| Error::Json {
            path: path.clone(),
            cause,
        })?;
        let wrong = |problem| Error::DatasetJson {
            path: path.clone(),
            problem,
        };

        let modalities = numbered("modality", &json.modality).map_err(&wrong)?;
        let names = numbered("labels", &json.labels).map_err(&wrong)?;
        if names.len() < 2 {
            return Err(wrong(
                "labels names only the background; at least one structure is needed".to_owned(),
            ));
        }
        if names.len() > usize::from(u16::MAX) {
            return Err(wrong(format!(
                "{} labels; at most {} are possible",
                names.len(),
                u16::MAX
            )));
        }
        let labels = names.into_iter().enumerate().map(|(value, name)| Label {
            value: value as u16,
            name,
        });

        let mut training = Vec::new();
        for entry in &json.training {
            if let Some(id) = case_id(&entry.image) {
                training.push(Case {
                    id,
                    image: listed(dir, &entry.image),
                    label: listed(dir, &entry.label),
                });
            }
        }
        let mut test = Vec::new();
        for TestEntry::Image(image) | TestEntry::Entry { image } in &json.test {
            if let Some(id) = case_id(image) {
                test.push(TestCase {
                    id,
                    image: listed(dir, image),
                });
            }
        }
        training.sort_by(|a, b| a.id.cmp(&b.id));
        test.sort_by(|a, b| a.id.cmp(&b.id));
        let mut seen = BTreeSet::new();
        if let Some(twice) = training.iter().find(|case| !seen.insert(&case.id)) {
            return Err(wrong(format!(
                "training lists case {} twice; each case must be listed once",
                twice.id
            )));
        }
        let labels = labels.collect();
        let name = dataset_name(dir, &json.name);
        Ok(Self {
            root: dir.to_path_buf(),
            name,
            modalities,
            labels,
            training,
            test,
        })
    }

    /// Ids of the training cases, sorted.
    pub fn training_ids(&self) -> Vec<String> {
        self.training.iter().map(|case| case.id.clone()).collect()
    }

    /// The training case called `id`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is none.
    pub fn training_case(&self, id: &str) -> Result<&Case> {
        let found = self.training.iter().find(|case| case.id == id);
        found.ok_or_else(|| {
            Error::Invalid(format!(
                "{}: no training case is called {id}",
                self.root.display()
            ))
        })
    }

    /// Reads an image and checks that it has one channel per modality.
    ///
    /// # Errors
    /// Those of [`read_image`]; [`Error::ChannelCount`].
    pub fn load_image(&self, path: &Path) -> Result<Volume<f32>> {
        let volume = read_image(path)?;
        let (found, expected) = (volume.data.shape()[0], self.modalities.len());
        if found != expected {
            return Err(Error::ChannelCount {
                path: path.to_path_buf(),
                found,
                expected,
            });
        }
        Ok(volume)
    }

    /// Reads a training case and checks that image and labels fit each other and `dataset.json`.
    ///
    /// # Errors
    /// Those of [`read_image`] and [`read_labels`]; [`Error::ChannelCount`], [`Error::ShapeMismatch`],
    /// [`Error::SpacingMismatch`], [`Error::UnknownLabel`].
    pub fn load_case(&self, case: &Case) -> Result<(Volume<f32>, LabelMap)> {
        let image = self.load_image(&case.image)?;
        let labels = read_labels(&case.label)?;
        let (a, b) = (&image.geometry, &labels.geometry);
        if a.shape != b.shape {
            return Err(Error::ShapeMismatch {
                image: case.image.clone(),
                label: case.label.clone(),
                image_shape: a.shape,
                label_shape: b.shape,
            });
        }
        // Headers store f32; tools that rewrite them lose the last digits.
        if a.spacing_mm
            .iter()
            .zip(b.spacing_mm)
            .any(|(a, b)| (a - b).abs() > 1e-3 * a)
        {
            return Err(Error::SpacingMismatch {
                image: case.image.clone(),
                label: case.label.clone(),
                image_mm: a.spacing_mm,
                label_mm: b.spacing_mm,
            });
        }
        self.check_label_values(&labels.data.view(), &case.label)?;
        Ok((image, labels))
    }

    fn check_label_values(&self, labels: &ArrayView3<u16>, path: &Path) -> Result<()> {
        let highest = self.labels.len() as u16 - 1;
        let Some(&value) = labels.iter().find(|&&v| v > highest) else {
            return Ok(());
        };
        let voxels = labels.iter().filter(|&&v| v == value).count();
        Err(Error::UnknownLabel {
            path: path.to_path_buf(),
            value,
            voxels,
            known: format!("0 to {highest}"),
        })
    }
}

/// The values of `{"0": a, "1": b, ...}` in the order of their keys, which must be 0, 1, 2, ...
fn numbered(
    what: &str,
    map: &BTreeMap<String, String>,
) -> std::result::Result<Vec<String>, String> {
    let keys = || {
        map.keys()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(", ")
    };
    if map.is_empty() {
        return Err(format!(
            "{what} is empty; expected {{\"0\": ..., \"1\": ...}}"
        ));
    }
    (0..map.len())
        .map(|i| map.get(&i.to_string()).cloned())
        .collect::<Option<_>>()
        .ok_or_else(|| {
            format!(
                "{what} has the keys {}; expected the numbers from 0 to {}",
                keys(),
                map.len() - 1
            )
        })
}

/// The file name without `.nii` or `.nii.gz`; `None` for AppleDouble and hidden files.
pub(crate) fn case_id(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    if name.starts_with('.') {
        return None;
    }
    Some(
        name.strip_suffix(".nii.gz")
            .or_else(|| name.strip_suffix(".nii"))
            .unwrap_or(name)
            .to_owned(),
    )
}

fn dataset_name(dir: &Path, json_name: &str) -> String {
    let resolved = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    let folder = resolved
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let digits = |s: &str| s.len() > 2 && s.as_bytes()[..2].iter().all(u8::is_ascii_digit);
    let task_folder = folder.strip_prefix("Task").is_some_and(digits);
    if task_folder || json_name.is_empty() {
        folder
    } else {
        json_name.to_owned()
    }
}

#[cfg(test)]
mod tests;
