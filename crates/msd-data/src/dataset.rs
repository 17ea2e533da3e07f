//! A dataset on disk: `dataset.json` and the files it lists, in the layout of the decathlon or of nnU-Net v2.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ndarray::{ArrayView3, Axis, concatenate};

use crate::error::{Error, Result};
use crate::grid::Positions;
use crate::nifti::{LabelMap, Volume, read_geometry, read_image, read_labels};
use crate::orientation::Orientation;

mod case;
mod description;
mod distinct;

pub use case::{Case, Label, Paths, TestCase, case_id, described, described_grid, nifti_files};
pub(crate) use case::{first_file, reading_bytes, volume_bytes};
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
    /// Origin of the cases' paths.
    pub paths: Paths,
    /// Handling of files of a case whose headers place them apart.
    pub positions: Positions,
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
        let missing: Vec<_> = dataset.listed_files().filter_map(|file| Some((file.clone(), fault(file)?))).collect();
        if let Some(((path, fault), others)) = missing.split_first() {
            return Err(dataset.missing(path, fault, others.len()));
        }
        Ok(dataset)
    }

    /// Error of a file that cannot be used, and of `others` further ones.
    pub(crate) fn missing(&self, path: &Path, fault: &str, others: usize) -> Error {
        let (origin, remedy) = match self.paths {
            Paths::Listed => {
                let json = self.root.join("dataset.json");
                (format!("{} lists", json.display()), "restore the file or correct its entry")
            }
            Paths::Found => {
                let root = self.root.display();
                (format!("{root} has images of a case without"), "add the file, or remove the case's other files")
            }
        };
        Error::MissingFile { origin, path: path.to_path_buf(), fault: fault.to_owned(), others, remedy }
    }

    /// All files of the cases.
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
        let bytes = adw_files::read_small(&path).map_err(Error::io(&path))?;
        let encoding = match bytes.as_slice() {
            [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] | [0, 0, 0, _, ..] | [_, 0, 0, 0, ..] => {
                "encoded as UTF-32"
            }
            // Without a byte order mark, every other byte of plain letters is 0.
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, _, ..] | [_, 0, ..] => "encoded as UTF-16",
            _ => match String::from_utf8(bytes) {
                Ok(text) => return Self::from_json(dir, &text),
                Err(_) => "not encoded as UTF-8",
            },
        };
        Err(Error::DatasetJson { path, problem: format!("is {encoding}; save it as UTF-8") })
    }

    /// Parses `text` as the `dataset.json` of `dir`, without checking that its files exist. In the layout of nnU-Net v2, cases
    /// are found in the folders.
    ///
    /// # Errors
    /// [`Error::Json`], [`Error::DatasetJson`], [`Error::Io`].
    pub fn from_json(dir: &Path, text: &str) -> Result<Self> {
        let path = dir.join("dataset.json");
        let json: Description =
            serde_json::from_str(without_mark(text)).map_err(|cause| Error::Json { path: path.clone(), cause })?;
        let wrong = |problem| Error::DatasetJson { path: path.clone(), problem };
        let modalities = json.modalities().map_err(&wrong)?;
        let labels = json.labels().map_err(&wrong)?;
        let Files { training, test, paths } = json.files(dir, modalities.len())?;
        let training_ids: Vec<_> = training.iter().map(|case| case.id.as_str()).collect();
        let test_ids: Vec<_> = test.iter().map(|case| case.id.as_str()).collect();
        check_ids("training", &training_ids).and_then(|()| check_ids("test", &test_ids)).map_err(&wrong)?;
        let name = dataset_name(dir, &json.name);
        if name == json.name {
            check_name("name", &name).map_err(&wrong)?;
        }
        Ok(Self {
            root: dir.to_path_buf(),
            name,
            modalities,
            labels,
            training,
            test,
            paths,
            positions: Positions::Checked,
        })
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
    /// Those of [`Self::training_case`].
    pub fn training_cases(&self, ids: &[String]) -> Result<Vec<&Case>> {
        ids.iter().map(|id| self.training_case(id)).collect()
    }

    /// Reads an image ([`Case::image`]) and checks that it has one channel per modality.
    ///
    /// # Errors
    /// Those of [`read_image`]; [`Error::ChannelCount`]; [`Error::ShapeMismatch`], [`Error::SpacingMismatch`] and
    /// [`Error::PositionMismatch`] if channels in files of their own do not lie on one grid.
    pub fn load_image(&self, files: &[PathBuf]) -> Result<Volume<f32>> {
        load_image(files, self.modalities.len(), self.positions)
    }

    /// Reads a training case and checks that image and labels fit each other and `dataset.json`. Labels stored along other axes
    /// than their image are brought to its axes. Where positions are ignored, labels have the geometry of their image.
    ///
    /// # Errors
    /// Those of [`Self::load_image`] and [`read_labels`]; [`Error::ShapeMismatch`], [`Error::SpacingMismatch`],
    /// [`Error::PositionMismatch`], [`Error::UnknownLabel`].
    pub fn load_case(&self, case: &Case) -> Result<(Volume<f32>, LabelMap)> {
        // By their headers first: a label map of another size is not read.
        let (image, labels) = (first_file(&case.image)?, &case.label);
        self.positions.compare((image, &read_geometry(image)?.0), (labels, &read_geometry(labels)?.0))?;
        let image = self.load_image(&case.image)?;
        let labels = read_labels(&case.label)?;
        let mut labels = labels.onto(&case.label, (&case.image[0], &image.geometry), self.positions)?;
        if self.positions == Positions::Ignored {
            labels.geometry = image.geometry.clone();
        }
        self.check_label_values(&labels.data.view(), &case.label)?;
        Ok((image, labels))
    }

    /// Most frequent orientation of the training images, by their headers; of equals, that of the first case. None if no header
    /// gives one.
    ///
    /// # Errors
    /// Those of [`read_geometry`].
    pub fn orientation(&self) -> Result<Option<Orientation>> {
        let headers = self.training.iter().map(|case| Ok(read_geometry(first_file(&case.image)?)?.0.orientation()));
        Ok(Orientation::most_frequent(headers.collect::<Result<Vec<_>>>()?))
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

/// Reads an image of `num_channels` channels from one file that holds them all, or from a file for each. Channels stored along
/// other axes than the first are brought to its axes.
///
/// # Errors
/// Those of [`Dataset::load_image`].
pub fn load_image(files: &[PathBuf], num_channels: usize, positions: Positions) -> Result<Volume<f32>> {
    let Some((first, others)) = files.split_first() else {
        return Err(Error::Invalid("an image without a file".to_owned()));
    };
    // All headers before any voxel: the size that the first one gives holds for the others.
    let (grid, found) = read_geometry(first)?;
    let expected = if others.is_empty() { num_channels } else { 1 };
    let check_channels = |path: &Path, found: usize| {
        if found == expected {
            return Ok(());
        }
        Err(Error::ChannelCount { path: path.to_path_buf(), found, expected })
    };
    check_channels(first, found)?;
    for path in others {
        let (channel, found) = read_geometry(path)?;
        check_channels(path, found)?;
        positions.compare((first, &grid), (path, &channel))?;
    }
    let mut image = read_image(first)?;
    if others.is_empty() {
        return Ok(image);
    }
    let mut channels = vec![image.data];
    for path in others {
        channels.push(read_image(path)?.onto(path, (first, &grid), positions)?.data);
    }
    let views: Vec<_> = channels.iter().map(|channel| channel.view()).collect();
    image.data = concatenate(Axis(0), &views).expect("all channels lie on one grid");
    Ok(image)
}

/// Text behind the byte order mark that some editors put in front.
pub(crate) fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Reason why a listed file cannot be one of a case; none if it is a file.
pub(crate) fn fault(file: &Path) -> Option<String> {
    match fs::metadata(file) {
        Ok(found) if found.is_file() => None,
        Ok(found) if found.is_dir() => Some("is a folder".to_owned()),
        Ok(_) => Some("is no regular file".to_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => Some("does not exist".to_owned()),
        Err(error) => Some(format!("cannot be read ({error})")),
    }
}

/// Checks that ids are unique and can become file names.
fn check_ids(list: &str, ids: &[&str]) -> std::result::Result<(), String> {
    let mut seen = BTreeSet::new();
    if let Some(twice) = ids.iter().find(|id| !seen.insert(**id)) {
        return Err(format!(
            "{list} lists case {twice:?} twice; each case must be listed once, under a file name of its own"
        ));
    }
    ids.iter().try_for_each(|id| check_name("case", id))
}

/// Checks that a name can become a file or folder in a folder of our choice, whatever dataset it comes from.
fn check_name(what: &str, name: &str) -> std::result::Result<(), String> {
    let plain = !name.starts_with('.')
        && !name.contains(['/', '\\'])
        && !name.contains(char::is_control)
        && (1..=200).contains(&name.len());
    if plain {
        return Ok(());
    }
    Err(format!(
        "{what} {name:?}; expected 1 to 200 characters without slashes, back-slashes and control characters, not beginning with a dot"
    ))
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
