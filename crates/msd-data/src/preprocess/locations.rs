//! Where the foreground lies, for patches that must show some.

use ndarray::ArrayView3;
use rand::RngExt;

use crate::random::{Purpose, rng};

/// Voxels of one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassLocations {
    /// The label.
    pub label: u16,
    /// Indices (d, h, w), in array order; at most max(10 000, 1 %) of the label's voxels, chosen at random.
    pub voxels: Vec<[u32; 3]>,
}

/// The voxels of every label above 0 that occurs, by ascending label.
pub(crate) fn class_locations(labels: &ArrayView3<i16>) -> Vec<ClassLocations> {
    let highest = labels.iter().copied().max().unwrap_or(0).max(0);
    let mut all = vec![Vec::new(); highest as usize + 1];
    for ((d, h, w), &label) in labels.indexed_iter().filter(|&(_, &label)| label > 0) {
        all[label as usize].push([d as u32, h as u32, w as u32]);
    }
    let found = all
        .into_iter()
        .enumerate()
        .filter(|(_, voxels)| !voxels.is_empty());
    found
        .map(|(label, voxels)| ClassLocations {
            label: label as u16,
            voxels: thin(voxels, label),
        })
        .collect()
}

fn thin(mut voxels: Vec<[u32; 3]>, label: usize) -> Vec<[u32; 3]> {
    let n = voxels.len();
    let kept = n.min(10_000).max(n.div_ceil(100));
    if kept < n {
        // The same voxels in every run, as in nnU-Net, whose seed here is 1234; which ones differs from nnU-Net.
        let mut rng = rng(1234, Purpose::Locations, 0, 0, label as u32);
        for i in 0..kept {
            voxels.swap(i, rng.random_range(i..n));
        }
        voxels.truncate(kept);
        voxels.sort_unstable();
    }
    voxels
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
        assert_eq!(
            locations.iter().map(|l| l.label).collect::<Vec<_>>(),
            [2, 5]
        );
        assert_eq!(locations[0].voxels.len(), 10_000);
        assert_eq!(locations[1].voxels, [[29, 39, 48], [29, 39, 49]]);
        assert!(locations[0].voxels.is_sorted());
        for pair in locations[0].voxels.windows(2) {
            assert_ne!(pair[0], pair[1], "without replacement");
        }
        assert!(
            locations[0]
                .voxels
                .iter()
                .all(|&[z, y, x]| labels[[z as usize, y as usize, x as usize]] == 2)
        );
    }
}
