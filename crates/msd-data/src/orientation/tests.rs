use ndarray::{Array3, Array4};
use proptest::prelude::*;

use super::*;

/// Matrices and their orientations by nibabel 5.4.2, `aff2axcodes`: rotations, every third of them sheared.
#[test]
fn orientations_are_those_of_nibabel() {
    let expected = [
        ([[-3.213, -0.178, -0.693], [1.238, -2.438, -0.485], [-2.208, -1.217, 0.73]], "LPS"),
        ([[-2.197, 0.186, -0.534], [-1.627, -0.119, 1.583], [1.019, 0.21, 1.373]], "LSA"),
        ([[-0.225, -0.714, -2.787], [-0.806, -0.823, 1.522], [-0.82, 1.006, -0.733]], "IPL"),
        ([[0.065, 1.073, 2.457], [0.513, -3.477, 0.251], [1.729, 1.007, -0.088]], "SPR"),
        ([[-1.686, 0.083, -2.665], [3.258, -1.038, -1.296], [-0.92, -3.83, 0.294]], "AIL"),
        ([[-0.882, 0.124, 1.424], [1.036, -0.153, 1.188], [1.16, 0.231, 0.021]], "ASR"),
        ([[0.008, 2.988, -1.562], [-0.17, -0.466, -1.053], [0.193, 1.609, 2.691]], "PRS"),
        ([[-2.05, -0.145, -2.596], [1.432, -1.377, -0.642], [-2.416, -0.693, 1.823]], "IPL"),
        ([[-1.072, -0.1, 0.074], [-0.053, -0.717, -0.351], [0.19, -0.763, 0.32]], "LIP"),
        ([[-1.242, 0.328, -0.457], [-0.561, -3.0, 0.325], [-0.736, 1.436, 1.162]], "LPS"),
        ([[-0.501, -1.286, 1.721], [-1.805, -0.876, -0.987], [1.232, -1.805, -0.747]], "PIR"),
        ([[-1.059, -0.908, -0.206], [-0.614, -0.386, 0.425], [-1.506, 0.796, -0.028]], "ILA"),
        ([[-0.297, 1.999, -0.313], [-0.724, -0.531, -1.373], [-2.261, 0.46, 0.506]], "IRP"),
        ([[-0.989, -1.44, -0.027], [0.559, -1.743, -2.095], [0.374, -1.206, 3.061]], "LPS"),
        ([[-3.129, 0.36, 0.536], [0.896, -0.469, 1.626], [0.773, 2.002, 0.284]], "LSA"),
        ([[-0.255, -0.581, -1.533], [-0.264, -1.157, 1.28], [-0.185, 1.705, 0.31]], "PSL"),
        ([[-0.582, 1.428, -0.389], [-0.739, -1.085, -0.788], [-0.278, -0.102, 2.913]], "PRS"),
        ([[-0.493, -0.656, -0.747], [0.178, -0.478, -3.427], [0.165, -1.445, 1.472]], "LIP"),
        ([[-0.04, 1.938, -0.692], [-3.605, 0.228, 0.325], [0.579, 0.713, 1.692]], "PRS"),
        ([[-0.754, -1.566, -0.201], [0.771, 0.488, -0.243], [0.532, -2.926, 0.067]], "LIP"),
        ([[-0.311, -3.695, 0.228], [0.396, -0.964, -1.479], [0.93, -0.826, 0.707]], "SLP"),
        ([[-0.773, 2.62, -0.149], [-2.042, -0.771, 0.46], [0.69, 0.43, 0.912]], "PRS"),
        ([[-0.267, -2.185, 0.4], [1.886, -1.314, -0.183], [1.162, 1.633, 0.388]], "ALS"),
        ([[-1.145, -0.125, -1.2], [-0.04, -0.786, 1.382], [-0.496, 0.352, 2.661]], "LPS"),
    ];
    for (matrix, code) in expected {
        assert_eq!(Orientation::nearest(matrix).unwrap().to_string(), code, "{matrix:?}");
    }
}

/// All 48 orientations.
fn all() -> Vec<Orientation> {
    let letters = ["L", "R", "P", "A", "I", "S"];
    let mut found = Vec::new();
    for a in letters {
        for b in letters {
            found.extend(letters.iter().filter_map(|c| format!("{a}{b}{c}").parse::<Orientation>().ok()));
        }
    }
    assert_eq!(found.len(), 48);
    found
}

#[test]
fn unusable_matrices_have_no_orientation_and_ties_fall_alike_for_every_order_of_the_columns() {
    for matrix in [[[0.0; 3]; 3], [[f64::NAN; 3]; 3], [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]] {
        assert_eq!(Orientation::nearest(matrix), None);
    }
    let s = 0.5f64.sqrt();
    let columns = [[s, s, 0.0], [-s, s, 0.0], [0.0, 0.0, 2.0]];
    let first = "RAS".parse().unwrap();
    for to in all() {
        // The columns of the volume stored in another orientation.
        let map = AxisMap::between(first, to);
        let stored = |i: usize| {
            let sign = if map.reversed[2 - i] { -1.0 } else { 1.0 };
            columns[2 - map.from[2 - i]].map(|v| v * sign)
        };
        let stored = [stored(0), stored(1), stored(2)];
        let matrix = [0, 1, 2].map(|row| [0, 1, 2].map(|j| stored[j][row]));
        assert_eq!(Orientation::nearest(matrix), Some(to));
    }
}

#[test]
fn letters_and_their_mistakes() {
    for orientation in all() {
        let json = serde_json::to_string(&orientation).unwrap();
        assert_eq!(serde_json::from_str::<Orientation>(&json).unwrap(), orientation);
    }
    for wrong in ["", "RA", "RASS", "RAR", "RLS", "ras", "XYZ"] {
        assert!(wrong.parse::<Orientation>().unwrap_err().contains("such as RAS"), "{wrong}");
    }
}

/// Expected is the result of nibabel's `as_reoriented` for an array of shape 2, 3, 4 (x, y, z) from RAS to PIR.
#[test]
fn a_map_moves_voxels_where_they_belong() {
    let array = Array3::from_shape_fn((4, 3, 2), |(z, y, x)| 100 * x + 10 * y + z);
    let map = AxisMap::between("RAS".parse().unwrap(), "PIR".parse().unwrap());
    let moved = map.apply(array.view());
    assert_eq!(moved.shape(), [2, 4, 3], "x right, z down, y backwards");
    for ((x, z, y), v) in moved.indexed_iter() {
        assert_eq!(*v, 100 * x + 10 * (2 - y) + 3 - z);
    }
}

proptest! {
    #[test]
    fn maps_compose_and_invert(from in 0usize..48, to in 0usize..48, order in 0usize..6) {
        let (from, to) = (all()[from], all()[to]);
        let order = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]][order];
        let array = Array4::from_shape_fn((2, 2, 3, 4), |(c, z, y, x)| [c, z, y, x]);
        let map = AxisMap::between(from, to).reordered(order);
        let there = map.apply(array.view());
        let axes = [0, 1 + order[0], 1 + order[1], 1 + order[2]];
        let expected = AxisMap::between(from, to).apply(array.view());
        prop_assert_eq!(&there, &expected.permuted_axes(axes));
        prop_assert_eq!(&map.triple([2, 3, 4]), &there.shape()[1..]);
        prop_assert_eq!(map.inverse().apply(there), array.view());
        prop_assert_eq!(AxisMap::between(from, from), AxisMap::IDENTITY);
    }
}
