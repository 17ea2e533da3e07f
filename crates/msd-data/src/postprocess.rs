//! Removal of all but the largest connected component, where cross-validation shows that it helps.
//!
//! nnU-Net's rule: first the union of all foreground, accepted if the mean Dice over labels rises and no label's
//! falls; then, with several labels, each label by itself, accepted if its own mean Dice rises.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ndarray::Array3;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::grid::Positions;
use crate::json_file;
use crate::memory::Memory;
use crate::metrics::report::{each_pair, matched_files, read_pair};
use crate::metrics::{dice, labels_in};
use crate::nifti::read_labels;

/// Voxels that are reduced to their largest component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Structure {
    /// Voxels of all labels above 0 together.
    Foreground,
    /// Voxels of a single label.
    Label(u16),
}

/// Steps applied to every prediction, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Postprocessing {
    /// The structures of which only the largest component is kept.
    pub keep_largest: Vec<Structure>,
}

/// Result of [`Postprocessing::find`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FoundPostprocessing {
    /// Steps that raise Dice; may be empty.
    pub postprocessing: Postprocessing,
    /// Mean Dice of each label before and after them.
    pub dice: BTreeMap<u16, [f64; 2]>,
}

impl Postprocessing {
    /// Applies the steps to a label map, `[z, y, x]`.
    pub fn apply(&self, labels: &mut Array3<u16>) {
        for &structure in &self.keep_largest {
            keep_largest_component(labels, structure);
        }
    }

    /// Finds the steps that raise Dice on the label maps in `predictions` (cases the networks were not trained on)
    /// against the files of the same name in `references`, for every label that occurs in either. Reads the files once
    /// per candidate, as many at a time as `memory` allows.
    ///
    /// # Errors
    /// Those of [`crate::evaluate_folder`]; [`Error::FileName`] for two predictions of one case.
    pub fn find(
        predictions: &[PathBuf],
        references: &Path,
        positions: Positions,
        memory: Memory,
    ) -> Result<FoundPostprocessing> {
        let mut files: Vec<(PathBuf, PathBuf)> = Vec::new();
        for folder in predictions {
            for (prediction, reference) in matched_files(folder, references)?.pairs {
                if let Some((other, _)) = files.iter().find(|(_, known)| *known == reference) {
                    let problem = format!("is of the same case as {}; one of them has to go", other.display());
                    return Err(Error::FileName { path: prediction, problem });
                }
                files.push((prediction, reference));
            }
        }
        Self::find_in(files, positions, memory)
    }

    /// Does the work of [`Self::find`] for pairs of a prediction and its reference.
    ///
    /// # Errors
    /// Those of [`crate::evaluate_pairs`].
    pub fn find_in(
        pairs: Vec<(PathBuf, PathBuf)>,
        positions: Positions,
        memory: Memory,
    ) -> Result<FoundPostprocessing> {
        let files = Files { pairs, positions, memory };
        let labels: Vec<u16> = labels_of(&files)?.into_iter().collect();
        let mut found = Self::default();
        let before = found.mean_dice(&files, &labels)?;
        let mut best = before.clone();
        let candidates = labels.iter().filter(|_| labels.len() > 1).map(|&label| Structure::Label(label));
        for candidate in std::iter::once(Structure::Foreground).chain(candidates) {
            let mut tried = found.clone();
            tried.keep_largest.push(candidate);
            let dice = tried.mean_dice(&files, &labels)?;
            let mean = |dice: &BTreeMap<u16, f64>| dice.values().sum::<f64>() / dice.len() as f64;
            let helps = match candidate {
                Structure::Foreground => mean(&dice) > mean(&best) && labels.iter().all(|l| dice[l] >= best[l]),
                Structure::Label(label) => dice[&label] > best[&label],
            };
            if helps {
                (found, best) = (tried, dice);
            }
        }
        let dice = before.into_iter().map(|(label, dice)| (label, [dice, best[&label]]));
        Ok(FoundPostprocessing { postprocessing: found, dice: dice.collect() })
    }

    /// Mean Dice of each label over the cases where it is a number.
    fn mean_dice(&self, files: &Files, labels: &[u16]) -> Result<BTreeMap<u16, f64>> {
        let case = |(prediction, reference): &(PathBuf, PathBuf)| -> Result<Vec<f64>> {
            let (mut prediction, reference) = read_pair(prediction, reference, files.positions)?;
            self.apply(&mut prediction.data);
            labels.iter().map(|&label| dice(&prediction.data.view(), &reference.data.view(), label)).collect()
        };
        let cases = each_pair(&files.pairs, files.memory, case)?;
        let mean = |i: usize| {
            let dice: Vec<f64> = cases.iter().map(|case| case[i]).filter(|dice| !dice.is_nan()).collect();
            // A label that occurs nowhere must not make every comparison with NaN false.
            dice.iter().sum::<f64>() / dice.len().max(1) as f64
        };
        Ok(labels.iter().enumerate().map(|(i, &label)| (label, mean(i))).collect())
    }

    /// Reads a `postprocessing.json`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Json`]; [`Error::Invalid`] for more steps than there are structures.
    pub fn load(path: &Path) -> Result<Self> {
        const MAX_STEPS: usize = 256;
        let steps: Self = json_file::load(path)?;
        let found = steps.keep_largest.len();
        if found > MAX_STEPS {
            return Err(Error::Invalid(format!("{}: {found} steps; at most {MAX_STEPS} make sense", path.display())));
        }
        Ok(steps)
    }

    /// Writes a `postprocessing.json`, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: &Path) -> Result<()> {
        json_file::save(path, self)
    }
}

/// Predictions with their references.
struct Files {
    pairs: Vec<(PathBuf, PathBuf)>,
    positions: Positions,
    memory: Memory,
}

/// Labels above 0 that occur in any of the files.
fn labels_of(files: &Files) -> Result<BTreeSet<u16>> {
    let labels = |path: &PathBuf| labels_in(&read_labels(path)?.data.view(), path);
    let found =
        each_pair(
            &files.pairs,
            files.memory,
            |(prediction, reference)| Ok(&labels(prediction)? | &labels(reference)?),
        )?;
    Ok(found.into_iter().flatten().collect())
}

/// Sets to 0 every voxel of `structure` outside its largest component; voxels are neighbours if they share a face,
/// an edge or a corner. Components of equal largest size are all kept.
pub fn keep_largest_component(labels: &mut Array3<u16>, structure: Structure) {
    let (d, h, w) = labels.dim();
    let belongs = |label: u16| match structure {
        Structure::Foreground => label > 0,
        Structure::Label(wanted) => label == wanted,
    };
    // 0: not part of the structure or not visited yet; components count from 1.
    let mut component = Array3::<u32>::zeros((d, h, w));
    let mut sizes = vec![0usize];
    let mut stack = Vec::new();
    for (start, _) in labels.indexed_iter().filter(|(_, label)| belongs(**label)) {
        if component[start] != 0 {
            continue;
        }
        let id = sizes.len() as u32;
        let mut size = 0;
        component[start] = id;
        stack.push(start);
        while let Some((z, y, x)) = stack.pop() {
            size += 1;
            for nz in z.saturating_sub(1)..(z + 2).min(d) {
                for ny in y.saturating_sub(1)..(y + 2).min(h) {
                    for nx in x.saturating_sub(1)..(x + 2).min(w) {
                        let next = (nz, ny, nx);
                        if component[next] == 0 && belongs(labels[next]) {
                            component[next] = id;
                            stack.push(next);
                        }
                    }
                }
            }
        }
        sizes.push(size);
    }
    let largest = sizes.iter().copied().max().unwrap_or(0);
    ndarray::Zip::from(labels).and(&component).for_each(|label, &id| {
        if id != 0 && sizes[id as usize] < largest {
            *label = 0;
        }
    });
}

#[cfg(test)]
mod tests;
