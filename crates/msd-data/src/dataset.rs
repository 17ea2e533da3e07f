//! A dataset on disk: `dataset.json` and the files it lists, in the layout of the decathlon or of nnU-Net v2.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ndarray::{ArrayView3, Axis, concatenate};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::nifti::{LabelMap, Volume, read_image, read_labels};

mod description;

pub use description::channel_of;
use description::{Description, Files};

/// A dataset whose files exist.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// Folder that holds `dataset.json`.
    pub root: PathBuf,
    /// The folder's name if it looks like `Task04_Hippocampus` or `Dataset004_Hippocampus`, else the `name` in
    /// `dataset.json`.
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

/// A label and its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// Value in label maps.
    pub value: u16,
    /// Name in `dataset.json`.
    pub name: String,
}

/// A labelled case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// File name without `.nii.gz` (and, with a file per channel, without `_0000`).
    pub id: String,
    /// Files of the image: one with all channels, or one per channel in the order of the modalities.
    pub image: Vec<PathBuf>,
    /// File of the label map.
    pub label: PathBuf,
}

/// A case without labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestCase {
    /// Name of the case, formed like [`Case::id`].
    pub id: String,
    /// Files of the image, like [`Case::image`].
    pub image: Vec<PathBuf>,
}

/// Path of a file that `dataset.json` lists, without the `./` that the decathlon puts in front.
fn listed(dir: &Path, file: impl AsRef<Path>) -> PathBuf {
    dir.join(file).components().collect()
}

impl Dataset {
    /// Opens the dataset in `dir`: reads `dataset.json` and checks that its labels are 0, 1, 2, ... and that every
    /// listed file exists. Entries for macOS's AppleDouble files (`._name`) are ignored. No volume is read.
    ///
    /// Two layouts are understood: that of the decathlon (`modality`, files listed under `training` and `test`) and
    /// that of nnU-Net v2 (`channel_names`, files found in `imagesTr`, `labelsTr` and `imagesTs`, one per channel and
    /// called `CASE_0000.nii.gz`, or listed under `dataset`).
    ///
    /// # Errors
    /// [`Error::NotADataset`], [`Error::Json`], [`Error::DatasetJson`], [`Error::MissingFile`].
    pub fn open(dir: &Path) -> Result<Self> {
        let dataset = Self::parse(dir)?;
        let missing: Vec<_> = dataset.listed_files().filter(|file| !file.is_file()).collect();
        if let Some((&first, others)) = missing.split_first() {
            let listed_in = dir.join("dataset.json").display().to_string();
            return Err(Error::MissingFile { listed_in, path: first.clone(), others: others.len() });
        }
        Ok(dataset)
    }

    /// All files that `dataset.json` lists.
    pub(crate) fn listed_files(&self) -> impl Iterator<Item = &PathBuf> {
        let training = self.training.iter().flat_map(|case| case.image.iter().chain([&case.label]));
        training.chain(self.test.iter().flat_map(|case| &case.image))
    }

    /// Reads `dataset.json` without checking that its files exist.
    pub(crate) fn parse(dir: &Path) -> Result<Self> {
        let path = dir.join("dataset.json");
        if !path.is_file() {
            return Err(Error::NotADataset { path: dir.to_path_buf() });
        }
        let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
        Self::from_json(dir, &text)
    }

    /// Parses `text` as the `dataset.json` of `dir`, without checking that its files exist. In the layout of nnU-Net v2, cases
    /// are found in the folders.
    ///
    /// # Errors
    /// [`Error::Json`], [`Error::DatasetJson`], [`Error::Io`].
    pub fn from_json(dir: &Path, text: &str) -> Result<Self> {
        let path = dir.join("dataset.json");
        let json: Description =
            serde_json::from_str(text).map_err(|cause| Error::Json { path: path.clone(), cause })?;
        let wrong = |problem| Error::DatasetJson { path: path.clone(), problem };
        let modalities = json.modalities().map_err(&wrong)?;
        let labels = json.labels().map_err(&wrong)?;
        let Files { training, test } = json.files(dir, modalities.len())?;
        let mut seen = BTreeSet::new();
        if let Some(twice) = training.iter().find(|case| !seen.insert(&case.id)) {
            return Err(wrong(format!("training lists case {:?} twice; each case must be listed once", twice.id)));
        }
        Ok(Self { root: dir.to_path_buf(), name: dataset_name(dir, &json.name), modalities, labels, training, test })
    }

    /// Sorted ids of the training cases.
    pub fn training_ids(&self) -> Vec<String> {
        self.training.iter().map(|case| case.id.clone()).collect()
    }

    /// Finds the training case called `id`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is none.
    pub fn training_case(&self, id: &str) -> Result<&Case> {
        let found = self.training.iter().find(|case| case.id == id);
        found.ok_or_else(|| Error::Invalid(format!("{}: no training case is called {id}", self.root.display())))
    }

    /// Finds the training cases called `ids`, in their order.
    ///
    /// # Errors
    /// As [`Self::training_case`].
    pub fn training_cases(&self, ids: &[String]) -> Result<Vec<&Case>> {
        ids.iter().map(|id| self.training_case(id)).collect()
    }

    /// Reads an image ([`Case::image`]) and checks that it has one channel per modality.
    ///
    /// # Errors
    /// Those of [`read_image`]; [`Error::ChannelCount`]; [`Error::ShapeMismatch`] and [`Error::SpacingMismatch`] if
    /// channels in files of their own do not lie on one grid.
    pub fn load_image(&self, files: &[PathBuf]) -> Result<Volume<f32>> {
        load_image(files, self.modalities.len())
    }

    /// Reads a training case and checks that image and labels fit each other and `dataset.json`.
    ///
    /// # Errors
    /// Those of [`Self::load_image`] and [`read_labels`]; [`Error::ShapeMismatch`], [`Error::SpacingMismatch`],
    /// [`Error::UnknownLabel`].
    pub fn load_case(&self, case: &Case) -> Result<(Volume<f32>, LabelMap)> {
        let image = self.load_image(&case.image)?;
        let labels = read_labels(&case.label)?;
        check_same_grid((&case.image[0], &image.geometry), (&case.label, &labels.geometry))?;
        self.check_label_values(&labels.data.view(), &case.label)?;
        Ok((image, labels))
    }

    fn check_label_values(&self, labels: &ArrayView3<u16>, path: &Path) -> Result<()> {
        let highest = self.labels.len() as u16 - 1;
        let Some(&value) = labels.iter().find(|&&v| v > highest) else {
            return Ok(());
        };
        let voxels = labels.iter().filter(|&&v| v == value).count();
        Err(Error::UnknownLabel { path: path.to_path_buf(), value, voxels, known: format!("0 to {highest}") })
    }
}

/// Reads an image of `num_channels` channels from one file that holds them all, or from a file for each.
///
/// # Errors
/// As [`Dataset::load_image`].
pub fn load_image(files: &[PathBuf], num_channels: usize) -> Result<Volume<f32>> {
    let Some((first, others)) = files.split_first() else {
        return Err(Error::Invalid("an image without a file".to_owned()));
    };
    let mut image = read_image(first)?;
    let expected = if others.is_empty() { num_channels } else { 1 };
    let check_channels = |path: &Path, found: usize| {
        if found == expected {
            return Ok(());
        }
        Err(Error::ChannelCount { path: path.to_path_buf(), found, expected })
    };
    check_channels(first, image.data.shape()[0])?;
    if others.is_empty() {
        return Ok(image);
    }
    let mut channels = vec![image.data];
    for path in others {
        let channel = read_image(path)?;
        check_channels(path, channel.data.shape()[0])?;
        check_same_grid((first, &image.geometry), (path, &channel.geometry))?;
        channels.push(channel.data);
    }
    let views: Vec<_> = channels.iter().map(|channel| channel.view()).collect();
    image.data = concatenate(Axis(0), &views).expect("all channels lie on one grid");
    Ok(image)
}

/// Whether two volumes of one case have equal shapes and voxel sizes.
fn check_same_grid(image: (&Path, &Geometry), label: (&Path, &Geometry)) -> Result<()> {
    let ((image, a), (label, b)) = (image, label);
    if a.shape != b.shape {
        return Err(Error::ShapeMismatch {
            image: image.to_path_buf(),
            label: label.to_path_buf(),
            image_shape: a.shape,
            label_shape: b.shape,
        });
    }
    // Headers store f32; tools that rewrite them lose the last digits.
    if a.spacing_mm.iter().zip(b.spacing_mm).any(|(a, b)| (a - b).abs() > 1e-3 * a) {
        return Err(Error::SpacingMismatch {
            image: image.to_path_buf(),
            label: label.to_path_buf(),
            image_mm: a.spacing_mm,
            label_mm: b.spacing_mm,
        });
    }
    Ok(())
}

/// Lists the NIfTI files in a folder, `.nii` and `.nii.gz`, in the order of their names; hidden files are left out.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be read.
pub fn nifti_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if (name.ends_with(".nii") || name.ends_with(".nii.gz")) && case_id(&path).is_some() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// File name without `.nii` or `.nii.gz`; `None` for AppleDouble and hidden files.
pub fn case_id(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    if name.starts_with('.') {
        return None;
    }
    Some(name.strip_suffix(".nii.gz").or_else(|| name.strip_suffix(".nii")).unwrap_or(name).to_owned())
}

/// The folder's name if it is numbered as the decathlon or nnU-Net do, else the name in `dataset.json`.
fn dataset_name(dir: &Path, json_name: &str) -> String {
    let resolved = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    let folder = resolved.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let numbered = [("Task", 2), ("Dataset", 3)].iter().any(|(prefix, digits)| {
        let number = folder.strip_prefix(prefix).and_then(|s| s.get(..*digits));
        number.is_some_and(|number| number.bytes().all(|b| b.is_ascii_digit()))
    });
    if numbered || json_name.is_empty() { folder } else { json_name.to_owned() }
}

#[cfg(test)]
mod tests;
