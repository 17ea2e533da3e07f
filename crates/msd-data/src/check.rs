//! All problems of a dataset at once, for the person who repairs it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::checksum;
use crate::dataset::{Case, Dataset, Label, Paths, described, fault, reading_bytes, without_mark};
use crate::error::{Error, length};
use crate::fingerprint::{CaseFacts, FACTS_CHANNELS, Fingerprint};
use crate::geometry::Geometry;
use crate::grid::{Positions, displacement_mm, half_voxel_mm};
use crate::memory::Memory;
use crate::plan::{PlanOptions, plan};
use crate::preprocess::crop::nonzero_bounds;
use crate::split::NUM_FOLDS;

mod plausibility;

use plausibility::{TypicalGrid, TypicalIntensities};
pub use plausibility::{implausible, implausible_header};

/// Distance of labels from their image above which there is a warning, if not half a voxel is less.
const NOTICEABLE_MM: f64 = 0.1;

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
/// Errors: what [`Dataset::open`] and [`Dataset::load_case`] refuse, fewer than five training cases, cases without a [`plan`]. Warnings: a
/// number of cases other than announced, files that no entry lists or several do, labels that occur nowhere, cases without
/// foreground or too few of a label, constant or equal channels, absurd intensities, labels where the image is 0, a label 0 with the
/// name of a structure, headers that contradict themselves or are sheared, label
/// maps a little away from their image, images that are there twice, cases whose orientation, voxel size, extent or CT numbers are
/// far from the others'.
///
/// Cases are read as many at a time as `memory` allows; one that does not fit alone is an error, and so is a check that was
/// stopped ([`Memory::stopped_by`]).
///
/// ```no_run
/// use msd_data::{Memory, Positions, check_dataset};
/// for problem in check_dataset("data/Task04_Hippocampus".as_ref(), Positions::Checked, Memory::bytes(8 << 30)) {
///     println!("{problem}");
/// }
/// ```
pub fn check_dataset(dir: &Path, positions: Positions, memory: Memory) -> Vec<Problem> {
    survey(dir, positions, memory).problems
}

/// Problems and facts of a dataset.
#[derive(Debug, Clone, PartialEq)]
pub struct Survey {
    /// All problems, as [`check_dataset`] returns them.
    pub problems: Vec<Problem>,
    /// Fingerprint, that of [`fingerprint`](crate::fingerprint()); none where a training case cannot be read or no case has foreground.
    pub fingerprint: Option<Fingerprint>,
}

/// Checks the dataset in `dir` as [`check_dataset`] does, and computes its fingerprint from the same reading.
pub fn survey(dir: &Path, positions: Positions, memory: Memory) -> Survey {
    let dataset = match Dataset::parse(dir) {
        Ok(dataset) => Dataset { positions, ..dataset },
        Err(e) => return Survey { problems: vec![error(&e)], fingerprint: None },
    };
    let json = dir.join("dataset.json").display().to_string();
    let mut problems = Vec::new();
    for (file, fault) in dataset.listed_files().filter_map(|file| Some((file, fault(file)?))) {
        problems.push(error(&dataset.missing(file, &fault, 0)));
    }
    let found = dataset.training.len();
    if found < NUM_FOLDS {
        problems.push(error(&Error::TooFewCases { found }));
    }
    let description = description(dir).unwrap_or_default();
    if let Some(announced) = description.get("numTraining").filter(|announced| !is_number(announced, found)) {
        problems.push(warning(format!("{json}: numTraining is {announced}, but {found} cases are listed")));
    }
    // In the other layout names are the keys, and a background that is not 0 is refused.
    let zero = description.get("labels").and_then(|labels| labels.get("0")?.as_str());
    if let Some(name) = zero.filter(|name| !is_background(name)) {
        problems.push(warning(format!(
            "{json}: label 0 is called {name:?}, but 0 is the background: it is neither learned as a structure nor scored"
        )));
    }
    let mut listed = BTreeSet::new();
    for file in dataset.listed_files() {
        if !listed.insert(file) {
            problems.push(warning(format!("{json}: lists {} more than once", file.display())));
        }
    }
    for folder in ["imagesTr", "labelsTr", "imagesTs"] {
        problems.extend(unlisted(&dir.join(folder), &listed, dataset.paths));
    }
    let channels = dataset.modalities.len();
    let of_training = (channels + FACTS_CHANNELS, memory);
    let training = check_cases(&dataset, &dataset.training, |case| &case.image, of_training, check_case);
    let test = check_cases(
        &dataset,
        &dataset.test,
        |case| &case.image,
        (channels, memory),
        |dataset, case| check_image(dataset, &case.image),
    );
    let grids: Vec<_> = training.iter().filter_map(|case| case.grid.as_ref()).collect();
    let typical = TypicalGrid::of(&grids);
    let facts: Option<Vec<_>> = training.iter().map(|case| case.facts.as_ref()).collect();
    let fingerprint = facts.and_then(|facts| Fingerprint::of_cases(&dataset, &facts).ok());
    let intensities: Vec<_> = training.iter().map(CheckedCase::intensity).collect();
    let typical_intensities = TypicalIntensities::of(&dataset.modalities, &intensities);
    let twice = twice(training.iter().chain(&test));
    let mut seen: BTreeSet<u16> = BTreeSet::new();
    for case in &training {
        problems.extend(case.problems(typical.as_ref(), &typical_intensities));
        seen.extend(&case.labels);
    }
    // With unreadable cases a label may well occur in one of them.
    if problems.iter().all(|p| p.severity == Severity::Warning) {
        for label in &dataset.labels {
            let Label { value, name, .. } = label;
            let cases = training.iter().filter(|case| case.labels.contains(value)).count();
            if cases == 0 {
                problems.push(warning(format!("{json}: label {value} ({name}) occurs in no case")));
            } else if cases < NUM_FOLDS {
                problems.push(warning(format!(
                    "{json}: label {value} ({name}) occurs in {cases} of {found} cases: too few for {NUM_FOLDS} folds, some of \
                     which may have no case to learn it from, or none to score it on"
                )));
            }
        }
        if seen.iter().all(|&label| label == 0) {
            problems.push(error(&Error::NoForeground { dataset: dataset.name.clone() }));
        }
        let plan = fingerprint.as_ref().map(|fingerprint| plan(fingerprint, &dataset, &PlanOptions::default()));
        problems.extend(plan.and_then(Result::err).as_ref().map(error));
    }
    problems.extend(test.into_iter().flat_map(|case| case.problems(typical.as_ref(), &typical_intensities)));
    problems.extend(twice);
    Survey { problems, fingerprint }
}

fn error(error: &Error) -> Problem {
    Problem { severity: Severity::Error, message: error.to_string() }
}

fn warning(message: String) -> Problem {
    Problem { severity: Severity::Warning, message }
}

/// Content of `dataset.json`, as it stands there.
fn description(dir: &Path) -> Option<Value> {
    let text = adw_files::read_text(&dir.join("dataset.json")).ok()?;
    serde_json::from_str(without_mark(&text)).ok()
}

/// Returns true for names of what is no structure.
fn is_background(name: &str) -> bool {
    const WORDS: &str = "back|bg|clear|unlabel|not label|none|nothing|void|empty|air|other|rest|outside";
    let name = name.to_lowercase();
    WORDS.split('|').any(|word| name.contains(word)) || name.trim().parse() == Ok(0)
}

fn is_number(value: &Value, number: usize) -> bool {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.parse() == Ok(number as f64)
}

fn unlisted(folder: &Path, listed: &BTreeSet<&PathBuf>, paths: Paths) -> Option<Problem> {
    let files = fs::read_dir(folder).ok()?;
    let files = files.filter_map(|entry| Some(entry.ok()?.path().components().collect::<PathBuf>()));
    let is_hidden = |file: &Path| file.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let mut extra: Vec<PathBuf> = files.filter(|file| !is_hidden(file) && !listed.contains(file)).collect();
    extra.sort();
    let (first, n) = (extra.first()?.display(), extra.len());
    Some(warning(match paths {
        Paths::Listed => format!("{n} files that dataset.json does not list, e.g. {first}: list them or remove them"),
        Paths::Found => {
            format!("{n} files that belong to no case, e.g. {first}: name them like a case's or remove them")
        }
    }))
}

/// Result of reading a case.
#[derive(Default)]
struct CheckedCase {
    found: Vec<Problem>,
    /// File and grid of the image; none if it could not be read.
    grid: Option<(PathBuf, Geometry)>,
    /// Labels that occur.
    labels: BTreeSet<u16>,
    /// Facts of a training case.
    facts: Option<CaseFacts>,
    /// Checksum of the image's voxels.
    voxels: Option<u32>,
}

impl CheckedCase {
    /// 5, 50 and 95 percentile of the labelled voxels in each channel of a training image.
    fn intensity(&self) -> &[Option<[f64; 3]>] {
        self.facts.as_ref().map_or(&[], |facts| &facts.own.intensity)
    }

    /// Problems of the case, those beside the other cases included.
    fn problems(&self, grid: Option<&TypicalGrid>, intensities: &TypicalIntensities<'_>) -> Vec<Problem> {
        let mut unusual = Vec::new();
        if let Some((path, own)) = &self.grid {
            unusual.extend(grid.into_iter().flat_map(|typical| typical.compare(path, own)));
            unusual.extend(intensities.compare(path, self.intensity()));
        }
        self.found.iter().cloned().chain(unusual.into_iter().map(warning)).collect()
    }
}

/// Names images with the voxels of an earlier one: in different folds, a network is scored on a case that it was trained on.
fn twice<'a>(cases: impl Iterator<Item = &'a CheckedCase>) -> Vec<Problem> {
    let mut first = BTreeMap::new();
    let again = cases.filter_map(|case| {
        let (path, grid) = case.grid.as_ref()?;
        let earlier: &PathBuf = first.insert((grid.shape, case.voxels?), path).filter(|earlier| *earlier != path)?;
        let (file, earlier) = (path.display(), earlier.display());
        Some(warning(format!(
            "{file}: has the same voxels as {earlier}; a case that is there twice is no test of the other"
        )))
    });
    again.collect()
}

/// Checks cases, as many at a time as the memory allows for so many channels of each; `image` returns a case's files.
fn check_cases<C: Sync>(
    dataset: &Dataset,
    cases: &[C],
    image: impl Fn(&C) -> &[PathBuf] + Sync,
    (channels, memory): (usize, Memory),
    check: impl Fn(&Dataset, &C) -> CheckedCase + Sync,
) -> Vec<CheckedCase> {
    // A header that cannot be read is found again when the case is checked.
    let need = |case: &C| reading_bytes(image(case), channels).unwrap_or(0);
    let checked = memory.each(
        cases,
        |case| described(image(case)),
        |case| Ok(need(case).min(memory.limit())),
        |case| match memory.check(need(case), || described(image(case))) {
            Ok(_) => Ok(check(dataset, case)),
            Err(e) => Ok(CheckedCase { found: vec![error(&e)], ..CheckedCase::default() }),
        },
    );
    // Problems of cases are no errors: only a stop is.
    checked.unwrap_or_else(|e| vec![CheckedCase { found: vec![error(&e)], ..CheckedCase::default() }])
}

fn check_case(dataset: &Dataset, case: &Case) -> CheckedCase {
    if !case.image.iter().chain([&case.label]).all(|file| file.is_file()) {
        return CheckedCase::default(); // reported as missing
    }
    let (image, labels) = match dataset.load_case(case) {
        Ok(loaded) => loaded,
        Err(e) => return CheckedCase { found: vec![error(&e)], ..CheckedCase::default() },
    };
    let file = &case.image[0];
    let mut warnings = plausibility::image(&case.image, &image);
    warnings.extend(headers(&image.geometry, case.image[1..].iter().chain([&case.label])));
    let seen: BTreeSet<u16> = labels.data.iter().copied().collect();
    let label = case.label.display();
    if seen.iter().all(|&label| label == 0) {
        warnings.push(format!("{label}: no voxel is labelled"));
    }
    let placements = image.geometry.placement().zip(labels.geometry.placement());
    let apart = placements.map(|(a, b)| displacement_mm(image.geometry.shape, &a, &b));
    if let Some(mm) = apart.filter(|&mm| mm > NOTICEABLE_MM.min(half_voxel_mm(&image.geometry))) {
        let (image, mm) = (file.display(), length(mm));
        warnings.push(format!("{label}: lies up to {mm} mm away from its image {image} in the scanner"));
    }
    let bounds = nonzero_bounds(&image.data.view());
    warnings.extend(plausibility::labels_outside(&case.label, &labels, &bounds));
    let mut found: Vec<_> = warnings.into_iter().map(warning).collect();
    let facts = CaseFacts::of(dataset, case, &image, &labels, &bounds);
    let facts = facts.inspect_err(|e| found.push(error(e))).ok();
    let voxels = Some(checksum::of_voxels(&image.data));
    CheckedCase { found, grid: Some((file.clone(), image.geometry)), labels: seen, facts, voxels }
}

/// Describes what is implausible in the headers of files beside an image, as far as it is not so in the image's own.
fn headers<'a>(image: &Geometry, beside: impl Iterator<Item = &'a PathBuf>) -> Vec<String> {
    let own = plausibility::header(image);
    let of_file = |file: &PathBuf| {
        let problems = implausible_header(file).unwrap_or_default().into_iter();
        let others = problems.filter(|problem| !own.contains(problem));
        others.map(|problem| format!("{}: {problem}", file.display())).collect::<Vec<_>>()
    };
    beside.flat_map(of_file).collect()
}

fn check_image(dataset: &Dataset, files: &[PathBuf]) -> CheckedCase {
    if !files.iter().all(|file| file.is_file()) {
        return CheckedCase::default();
    }
    match dataset.load_image(files) {
        Ok(image) => {
            let found =
                plausibility::image(files, &image).into_iter().chain(headers(&image.geometry, files[1..].iter()));
            let found = found.map(warning).collect();
            let voxels = Some(checksum::of_voxels(&image.data));
            CheckedCase { found, grid: Some((files[0].clone(), image.geometry)), voxels, ..CheckedCase::default() }
        }
        Err(e) => CheckedCase { found: vec![error(&e)], ..CheckedCase::default() },
    }
}

#[cfg(test)]
mod tests;
