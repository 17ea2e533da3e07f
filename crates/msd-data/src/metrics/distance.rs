//! The exact Euclidean distance transform (Felzenszwalb & Huttenlocher, Theory of Computing 2012).

use ndarray::{Array3, ArrayViewMut1, Axis};

/// Computes the distance in millimetres from every voxel to the nearest `true` one; infinite if there is none.
pub(crate) fn distance_mm(sites: &Array3<bool>, spacing_mm: [f64; 3]) -> Array3<f64> {
    let mut squared = sites.mapv(|site| if site { 0.0 } else { f64::INFINITY });
    let mut envelope = Envelope::default();
    // The last axis is contiguous and still sparse: cheapest first.
    for axis in [2, 1, 0] {
        for line in squared.lanes_mut(Axis(axis)) {
            envelope.transform(line, spacing_mm[axis]);
        }
    }
    squared.mapv_into(f64::sqrt)
}

/// Lower envelope of the parabolas f(q) + (x - q)^2.
#[derive(Default)]
struct Envelope {
    /// Position and height of each parabola's vertex.
    vertices: Vec<(f64, f64)>,
    /// Position from which each parabola is the lowest.
    from: Vec<f64>,
}

impl Envelope {
    /// Replaces the values f of a line by min over q of f(q) + (x - q)^2.
    fn transform(&mut self, mut line: ArrayViewMut1<f64>, spacing: f64) {
        self.vertices.clear();
        self.from.clear();
        for (i, &height) in line.iter().enumerate().filter(|(_, height)| height.is_finite()) {
            let x = i as f64 * spacing;
            let mut from = f64::NEG_INFINITY;
            while let (Some(&(vx, vh)), Some(&begin)) = (self.vertices.last(), self.from.last()) {
                from = ((height + x * x) - (vh + vx * vx)) / (2.0 * (x - vx));
                if from > begin {
                    break;
                }
                self.vertices.pop();
                self.from.pop();
                from = f64::NEG_INFINITY;
            }
            self.vertices.push((x, height));
            self.from.push(from);
        }
        if self.vertices.is_empty() {
            return;
        }
        let mut lowest = 0;
        for (i, value) in line.iter_mut().enumerate() {
            let x = i as f64 * spacing;
            while lowest + 1 < self.from.len() && self.from[lowest + 1] < x {
                lowest += 1;
            }
            let (vx, vh) = self.vertices[lowest];
            *value = vh + (x - vx).powi(2);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn equals_the_search_over_all_sites(
            shape in prop::array::uniform3(1usize..9),
            spacing in prop::array::uniform3(0.3f64..4.0),
            picks in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut sites = Array3::from_elem(shape, false);
            let n = sites.len();
            for pick in picks {
                sites.as_slice_mut().unwrap()[pick.index(n)] = true;
            }
            let found = distance_mm(&sites, spacing);
            let at = |(z, y, x): (usize, usize, usize)| [z as f64 * spacing[0], y as f64 * spacing[1], x as f64 * spacing[2]];
            for (index, &found) in found.indexed_iter() {
                let to_sites = sites.indexed_iter().filter(|(_, site)| **site).map(|(site, _)| {
                    at(site).iter().zip(at(index)).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
                });
                let expected = to_sites.fold(f64::INFINITY, f64::min);
                prop_assert!(found == expected || (found - expected).abs() < 1e-9, "{} {}", found, expected);
            }
        }
    }
}
