//! Foreground voxels of a case, for patches that must show some.

use ndarray::{ArrayView2, ArrayView3, Axis, parallel::prelude::*};

use crate::random::{Purpose, rng};

/// Voxels of a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassLocations {
    /// The label.
    pub label: u16,
    /// Indices (d, h, w), in array order; at most max(10 000, 1 %) of the label's voxels, chosen at random.
    pub voxels: Vec<[u32; 3]>,
}

/// Finds voxels of every label above 0 that occurs, by ascending label.
///
/// Counts first and then finds the drawn voxels by their rank, so that memory does not grow with the labels' size.
pub(crate) fn class_locations(labels: &ArrayView3<i16>) -> Vec<ClassLocations> {
    let counts: Vec<Vec<usize>> = labels.outer_iter().into_par_iter().map(|slice| count(&slice)).collect();
    let highest = counts.iter().map(Vec::len).max().unwrap_or(0);
    let label = |label: usize| {
        // Before each slice, and after the last.
        let mut before = vec![0];
        for counts in &counts {
            before.push(before[before.len() - 1] + counts.get(label).copied().unwrap_or(0));
        }
        let ranks = draw(before[counts.len()], label);
        let of_slice = |d: usize| {
            let from = ranks.partition_point(|&rank| rank < before[d]);
            let to = ranks.partition_point(|&rank| rank < before[d + 1]);
            let wanted = ranks[from..to].iter().map(|&rank| rank - before[d]);
            let slice = labels.index_axis(Axis(0), d);
            find(&slice, label as i16, wanted).into_iter().map(move |[h, w]| [d as u32, h, w])
        };
        ClassLocations { label: label as u16, voxels: (0..counts.len()).flat_map(of_slice).collect() }
    };
    let found = (1..highest).into_par_iter().map(label);
    found.filter(|class| !class.voxels.is_empty()).collect()
}

/// Counts the voxels of each label above 0; entry 0 stays 0.
fn count(slice: &ArrayView2<i16>) -> Vec<usize> {
    let mut counts = vec![0; 1];
    for &label in slice.iter().filter(|&&label| label > 0) {
        let label = label as usize;
        if label >= counts.len() {
            counts.resize(label + 1, 0);
        }
        counts[label] += 1;
    }
    counts
}

/// Draws the ranks of the voxels to keep of `n`, ascending. They are the same in every run, as in nnU-Net, whose seed is
/// 1234; the drawn ranks differ from nnU-Net's.
fn draw(n: usize, label: usize) -> Vec<usize> {
    let kept = n.min(10_000).max(n.div_ceil(100));
    if kept == n {
        return (0..n).collect();
    }
    let mut rng = rng(1234, Purpose::Locations, 0, 0, label as u32);
    let mut ranks = rand::seq::index::sample(&mut rng, n, kept).into_vec();
    ranks.sort_unstable();
    ranks
}

/// Finds the indices of the voxels of a label in a slice whose ranks are `wanted`.
fn find(slice: &ArrayView2<i16>, label: i16, wanted: impl Iterator<Item = usize>) -> Vec<[u32; 2]> {
    let mut wanted = wanted.peekable();
    let (mut rank, mut found) = (0, Vec::new());
    for (h, row) in slice.outer_iter().enumerate() {
        let Some(&next) = wanted.peek() else { break };
        let in_row = row.iter().filter(|&&v| v == label).count();
        if next >= rank + in_row {
            rank += in_row;
            continue;
        }
        for (w, _) in row.iter().enumerate().filter(|&(_, &v)| v == label) {
            if wanted.next_if_eq(&rank).is_some() {
                found.push([h as u32, w as u32]);
            }
            rank += 1;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::*;

    #[test]
    fn every_label_is_found_and_large_ones_are_thinned() {
        let labels = Array3::from_shape_fn((30, 40, 50), |(z, y, x)| match (z, y, x) {
            (0, ..) => -1,
            (29, 39, 48..) => 5,
            (1..10, ..) => 0,
            _ => 2,
        });
        let locations = class_locations(&labels.view());
        assert_eq!(locations.iter().map(|l| l.label).collect::<Vec<_>>(), [2, 5]);
        assert_eq!(locations[0].voxels.len(), 10_000);
        assert_eq!(locations[1].voxels, [[29, 39, 48], [29, 39, 49]]);
        assert!(locations[0].voxels.is_sorted());
        for pair in locations[0].voxels.windows(2) {
            assert_ne!(pair[0], pair[1], "without replacement");
        }
        assert!(locations[0].voxels.iter().all(|&[z, y, x]| labels[[z as usize, y as usize, x as usize]] == 2));
    }
}
