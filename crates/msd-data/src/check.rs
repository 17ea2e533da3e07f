//! All problems of a dataset at once, for the person who repairs it.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;

use crate::dataset::{Case, Dataset, case_id};
use crate::error::Error;
use crate::geometry::Geometry;
use crate::split::NUM_FOLDS;

/// Severity of a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The dataset cannot be used like this.
    Error,
    /// The dataset can be used, but a person should look at it.
    Warning,
}

/// A problem of a dataset, in one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Severity.
    pub severity: Severity,
    /// The file, its fault, and a remedy.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.severity == Severity::Error { "error" } else { "warning" };
        write!(f, "{kind}: {}", self.message)
    }
}

/// Reads the whole dataset in `dir`, several cases at a time, and returns all its problems: first those of
/// `dataset.json`, then those of the cases in their order. Empty if it is sound.
///
/// Errors: what [`Dataset::open`] and [`Dataset::load_case`] refuse, fewer than five training cases. Warnings: a
/// number of cases other than announced, files that no entry lists, labels that occur nowhere, cases without
/// foreground, constant channels, label maps that lie elsewhere in the scanner than their image.
///
/// ```no_run
/// for problem in msd_data::check_dataset("data/Task04_Hippocampus".as_ref()) {
///     println!("{problem}");
/// }
/// ```
pub fn check_dataset(dir: &Path) -> Vec<Problem> {
    let dataset = match Dataset::parse(dir) {
        Ok(dataset) => dataset,
        Err(e) => return vec![error(&e)],
    };
    let json = dir.join("dataset.json").display().to_string();
    let mut problems = Vec::new();
    for file in dataset.listed_files().filter(|file| !file.is_file()) {
        let missing = Error::MissingFile { listed_in: json.clone(), path: file.clone(), others: 0 };
        problems.push(error(&missing));
    }
    let found = dataset.training.len();
    if found < NUM_FOLDS {
        problems.push(error(&Error::TooFewCases { found }));
    }
    if let Some(announced) = announced_cases(dir).filter(|&n| n != found) {
        problems.push(warning(format!("{json}: numTraining is {announced}, but {found} cases are listed")));
    }
    let listed: BTreeSet<_> = dataset.listed_files().collect();
    for folder in ["imagesTr", "labelsTr", "imagesTs"] {
        problems.extend(unlisted(&dir.join(folder), &listed));
    }
    let cases: Vec<(Vec<Problem>, BTreeSet<u16>)> =
        dataset.training.par_iter().map(|case| check_case(&dataset, case)).collect();
    let mut seen = BTreeSet::new();
    for (found, labels) in cases {
        problems.extend(found);
        seen.extend(labels);
    }
    // With unreadable cases a label may well occur in one of them.
    if problems.iter().all(|p| p.severity == Severity::Warning) {
        for label in dataset.labels.iter().filter(|label| !seen.contains(&label.value)) {
            problems.push(warning(format!("{json}: label {} ({}) occurs in no case", label.value, label.name)));
        }
    }
    let test: Vec<_> = dataset.test.par_iter().map(|case| check_image(&dataset, &case.image)).collect();
    problems.extend(test.into_iter().flatten());
    problems
}

fn error(error: &Error) -> Problem {
    Problem { severity: Severity::Error, message: error.to_string() }
}

fn warning(message: String) -> Problem {
    Problem { severity: Severity::Warning, message }
}

fn announced_cases(dir: &Path) -> Option<usize> {
    let text = fs::read_to_string(dir.join("dataset.json")).ok()?;
    let json: serde_json::Value = serde_json::from_str(&text).ok()?;
    json["numTraining"].as_u64().map(|n| n as usize)
}

fn unlisted(folder: &Path, listed: &BTreeSet<&PathBuf>) -> Option<Problem> {
    let files = fs::read_dir(folder).ok()?;
    let files = files.filter_map(|entry| Some(entry.ok()?.path().components().collect::<PathBuf>()));
    let mut extra: Vec<PathBuf> = files.filter(|file| case_id(file).is_some() && !listed.contains(file)).collect();
    extra.sort();
    let (first, n) = (extra.first()?.display(), extra.len());
    Some(warning(format!("{n} files that dataset.json does not list, e.g. {first}: list them or remove them")))
}

fn check_case(dataset: &Dataset, case: &Case) -> (Vec<Problem>, BTreeSet<u16>) {
    if !case.image.iter().chain([&case.label]).all(|file| file.is_file()) {
        return (vec![], BTreeSet::new()); // reported as missing
    }
    let (image, labels) = match dataset.load_case(case) {
        Ok(loaded) => loaded,
        Err(e) => return (vec![error(&e)], BTreeSet::new()),
    };
    let mut problems = constant_channels(&case.image[0], &image);
    let seen: BTreeSet<u16> = labels.data.iter().copied().collect();
    if seen.iter().all(|&label| label == 0) {
        problems.push(warning(format!("{}: no voxel is labelled", case.label.display())));
    }
    if let Some(mm) = displacement_mm(&image.geometry, &labels.geometry).filter(|&mm| mm > 0.1) {
        let (label, image) = (case.label.display(), case.image[0].display());
        problems.push(warning(format!("{label}: lies up to {mm:.1} mm away from its image {image} in the scanner")));
    }
    (problems, seen)
}

fn check_image(dataset: &Dataset, files: &[PathBuf]) -> Vec<Problem> {
    if !files.iter().all(|file| file.is_file()) {
        return vec![];
    }
    match dataset.load_image(files) {
        Ok(image) => constant_channels(&files[0], &image),
        Err(e) => vec![error(&e)],
    }
}

fn constant_channels(path: &Path, image: &crate::nifti::Volume<f32>) -> Vec<Problem> {
    let channels = image.data.outer_iter().enumerate();
    let constant = channels.filter(|(_, channel)| channel.iter().all(|v| Some(v) == channel.first()));
    constant.map(|(c, _)| warning(format!("{}: every voxel of channel {c} is the same", path.display()))).collect()
}

/// Largest distance between equal corners of two grids of one shape; `None` if a header has values that are no numbers.
fn displacement_mm(a: &Geometry, b: &Geometry) -> Option<f64> {
    let [z, y, x] = a.shape.map(|n| (n - 1) as f64);
    let (a, b) = (a.affine(), b.affine());
    let corners = (0..8).map(|bits| [x * f64::from(bits & 1), y * f64::from(bits >> 1 & 1), z * f64::from(bits >> 2)]);
    let apart = corners.map(|corner| {
        let squares = a.iter().zip(&b).map(|(a, b)| {
            let difference = (0..3).map(|i| (a[i] - b[i]) * corner[i]).sum::<f64>() + a[3] - b[3];
            difference * difference
        });
        squares.sum::<f64>().sqrt()
    });
    Some(apart.fold(0.0, f64::max)).filter(|mm| mm.is_finite())
}

#[cfg(test)]
mod tests;
