//! The text of a `dataset.json`, in either layout.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::distinct::Distinct;

use super::case::{Case, Label, Paths, TestCase, listed, nifti_files, nifti_stem};
use crate::error::{Error, Result};

/// Content of `dataset.json`.
#[derive(Deserialize)]
#[serde(expecting = "the description of a dataset in braces")]
pub(super) struct Description {
    #[serde(default)]
    pub(super) name: String,
    /// The decathlon's name for what nnU-Net calls `channel_names`.
    #[serde(default)]
    modality: Distinct<String>,
    channel_names: Option<Distinct<String>>,
    labels: Distinct<Value>,
    #[serde(default)]
    training: Vec<TrainingEntry>,
    #[serde(default)]
    test: Vec<TestEntry>,
    #[serde(default = "compressed")]
    file_ending: String,
    /// nnU-Net: files by case, instead of the folders' content.
    dataset: Option<Distinct<CaseFiles>>,
}

fn compressed() -> String {
    ".nii.gz".to_owned()
}

#[derive(Deserialize)]
#[serde(expecting = "the paths of a case as {\"image\": ..., \"label\": ...}")]
struct TrainingEntry {
    image: PathBuf,
    label: PathBuf,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected the path of a test image")]
enum TestEntry {
    Image(PathBuf),
    Entry { image: PathBuf },
}

#[derive(Deserialize)]
#[serde(expecting = "the paths of a case as {\"images\": [...], \"label\": ...}")]
struct CaseFiles {
    images: Vec<PathBuf>,
    label: PathBuf,
}

/// The cases of a dataset, sorted by id.
pub(super) struct Files {
    pub(super) training: Vec<Case>,
    pub(super) test: Vec<TestCase>,
    pub(super) paths: Paths,
}

impl Description {
    /// Names of the channels, in their order.
    pub(super) fn modalities(&self) -> std::result::Result<Vec<String>, String> {
        match &self.channel_names {
            Some(Distinct(names)) => numbered("channel_names", names),
            None if self.modality.0.is_empty() => {
                Err("modality is empty or missing, as is channel_names; expected {\"0\": \"MRI\"}, or the same as channel_names".to_owned())
            }
            None => numbered("modality", &self.modality.0),
        }
    }

    /// Labels by ascending value.
    pub(super) fn labels(&self) -> std::result::Result<Vec<Label>, String> {
        let Distinct(labels) = &self.labels;
        let names = if labels.values().all(Value::is_string) {
            let names = labels.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned()));
            numbered("labels", &names.collect())?
        } else {
            named(labels)?
        };
        if names.len() < 2 {
            return Err("labels names only the background; at least one structure is needed".to_owned());
        }
        // Targets of a training are bytes, of which 255 stays free.
        if names.len() > 255 {
            return Err(format!("{} labels; at most 255 are possible, the background included", names.len()));
        }
        let labels: Vec<_> =
            names.into_iter().enumerate().map(|(value, name)| Label { value: value as u16, name }).collect();
        // Label 0 is taken as background under any name, so another label of that name is a mistake in the numbers.
        if let Some(label) = labels[1..].iter().find(|label| label.name.eq_ignore_ascii_case("background")) {
            return Err(format!("label {} is called {:?}; the background must be label 0", label.value, label.name));
        }
        Ok(labels)
    }

    /// Files of every case.
    pub(super) fn files(&self, dir: &Path, num_channels: usize) -> Result<Files> {
        let mut files = match (&self.channel_names, &self.dataset) {
            (None, _) => self.listed(dir)?,
            (Some(_), Some(cases)) => Files {
                training: cases
                    .0
                    .iter()
                    .map(|(id, files)| Case {
                        id: id.clone(),
                        image: files.images.iter().map(|file| listed(dir, file)).collect(),
                        label: listed(dir, &files.label),
                    })
                    .collect(),
                test: vec![],
                paths: Paths::Listed,
            },
            (Some(_), None) => self.found(dir, num_channels)?,
        };
        if let Some(case) = files.training.iter().find(|case| ![1, num_channels].contains(&case.image.len())) {
            return Err(Error::DatasetJson {
                path: dir.join("dataset.json"),
                problem: match case.image.len() {
                    0 => format!("dataset lists no image for case {:?}; name one file per channel", case.id),
                    found => format!(
                        "dataset lists {found} images for case {:?}; expected one per channel, {num_channels} in all",
                        case.id
                    ),
                },
            });
        }
        files.training.sort_by(|a, b| a.id.cmp(&b.id));
        files.test.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(files)
    }

    /// Cases of the decathlon's layout, which lists them under `training` and `test`.
    fn listed(&self, dir: &Path) -> Result<Files> {
        let mut files = Files { training: vec![], test: vec![], paths: Paths::Listed };
        for entry in &self.training {
            if let Some((id, image)) = listed_image(dir, &entry.image)? {
                files.training.push(Case { id, image: vec![image], label: listed(dir, &entry.label) });
            }
        }
        for entry in &self.test {
            let (TestEntry::Image(image) | TestEntry::Entry { image }) = entry;
            if let Some((id, image)) = listed_image(dir, image)? {
                files.test.push(TestCase { id, image: vec![image] });
            }
        }
        Ok(files)
    }

    /// Cases of nnU-Net v2's layout, which finds them in the folders.
    fn found(&self, dir: &Path, num_channels: usize) -> Result<Files> {
        let ending = self.file_ending.as_str();
        if ![".nii", ".nii.gz"].contains(&ending) {
            return Err(Error::DatasetJson {
                path: dir.join("dataset.json"),
                problem: format!(
                    "file_ending is {ending:?}; only .nii and .nii.gz, with their dots, can be read; convert other files"
                ),
            });
        }
        let images_of = |folder: &str| -> Result<Vec<(String, Vec<PathBuf>)>> {
            let folder = dir.join(folder);
            let ids = ids_in(&folder, ending, num_channels)?;
            let files = ids.into_iter().map(|id| {
                let channel = |c| folder.join(format!("{id}_{c:04}{ending}"));
                let image = (0..num_channels).map(channel).collect();
                (id, image)
            });
            Ok(files.collect())
        };
        let training = images_of("imagesTr")?.into_iter().map(|(id, image)| Case {
            label: dir.join("labelsTr").join(format!("{id}{ending}")),
            id,
            image,
        });
        let test = dir.join("imagesTs").is_dir().then(|| images_of("imagesTs")).transpose()?;
        let test = test.into_iter().flatten().map(|(id, image)| TestCase { id, image });
        Ok(Files { training: training.collect(), test: test.collect(), paths: Paths::Found })
    }
}

/// Id and path of an image that `dataset.json` lists; none for macOS's AppleDouble files.
fn listed_image(dir: &Path, file: &Path) -> Result<Option<(String, PathBuf)>> {
    let path = listed(dir, file);
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        let problem = format!("lists {:?}, which names no file", file.display().to_string());
        return Err(Error::DatasetJson { path: dir.join("dataset.json"), problem });
    };
    if name.starts_with("._") {
        return Ok(None);
    }
    Ok(Some((nifti_stem(name).unwrap_or(name).to_owned(), path)))
}

/// Sorted ids of the files `ID_0000.nii.gz`, `ID_0001.nii.gz`, ... in a folder.
fn ids_in(folder: &Path, ending: &str, num_channels: usize) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for path in nifti_files(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let wrong = |problem| Error::FileName { path: path.clone(), problem };
        let Some(stem) = name.strip_suffix(ending) else {
            return Err(wrong(format!(
                "the name does not end in {ending}, which is the file_ending in dataset.json; rename the file or change that"
            )));
        };
        let Some((id, channel)) = channel_of(stem) else {
            return Err(wrong(format!("the name must end in the number of its channel, as in {stem}_0000{ending}")));
        };
        if channel >= num_channels {
            return Err(wrong(format!("channel {channel}, but dataset.json names {num_channels} (from 0)")));
        }
        ids.push(id.to_owned());
    }
    ids.sort();
    ids.dedup();
    Ok(ids)
}

/// Splits nnU-Net's name for the file of a channel: `CASE_0001` into `CASE` and 1.
pub fn channel_of(stem: &str) -> Option<(&str, usize)> {
    let (id, number) = stem.rsplit_once('_')?;
    let is_number = number.len() == 4 && number.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| Some((id, number.parse().ok()?)))?
}

/// Values of `{"0": a, "1": b, ...}` in the order of their keys, which must be 0, 1, 2, ...
fn numbered(what: &str, map: &BTreeMap<String, String>) -> std::result::Result<Vec<String>, String> {
    if map.is_empty() {
        return Err(format!("{what} is empty; expected {{\"0\": ..., \"1\": ...}}"));
    }
    let values = (0..map.len()).map(|i| map.get(&i.to_string()).cloned());
    values.collect::<Option<_>>().ok_or_else(|| {
        let keys: Vec<_> = map.keys().map(|key| format!("{key:?}")).collect();
        let is_reversed = map.values().all(|value| value.parse::<u64>().is_ok());
        let remedy = if is_reversed { ", or names with numbers outside of quotation marks" } else { "" };
        format!("{what} has the keys {}; expected the numbers from 0 to {}{remedy}", keys.join(", "), map.len() - 1)
    })
}

/// Keys of `{"background": 0, "liver": 1, ...}` in the order of their values, which must be 0, 1, 2, ...
fn named(map: &BTreeMap<String, Value>) -> std::result::Result<Vec<String>, String> {
    if let Some((name, _)) = map.iter().find(|(_, value)| value.is_array()) {
        return Err(format!(
            "label {name:?} is a region of several values; regions are not supported, give each value a name"
        ));
    }
    if let Some(value) = map.get("ignore") {
        return Err(format!("label \"ignore\" ({value}) is not supported; relabel those voxels"));
    }
    let whole = |number: &f64| number.fract() == 0.0 && (0.0..1e6).contains(number);
    let by_value: BTreeMap<u64, &String> =
        map.iter().filter_map(|(name, value)| Some((value.as_f64().filter(whole)? as u64, name))).collect();
    let values = (0..map.len() as u64).map(|value| by_value.get(&value).map(ToString::to_string));
    values.collect::<Option<_>>().ok_or_else(|| {
        let values: Vec<_> = map.values().map(ToString::to_string).collect();
        format!(
            "labels has the values {}; expected each of the numbers from 0 to {} once{}",
            values.join(", "),
            map.len() - 1,
            if by_value.contains_key(&0) || by_value.is_empty() { "" } else { ", 0 for \"background\"" }
        )
    })
}
