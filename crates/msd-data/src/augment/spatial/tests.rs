use ndarray::{Array3, Array4};
use proptest::prelude::*;

use super::*;
use crate::preprocess::{CaseProperties, PreparedCase};

proptest! {
    /// Rows with their ranges and vectors as voxel by voxel.
    #[test]
    fn rows_equal_their_voxels(
        angles in prop::array::uniform3(-3.2f32..3.2),
        scale in 0.7f32..1.4,
        start in prop::array::uniform3(-9isize..9),
        shape in prop::array::uniform3(2usize..17),
        patch in prop::array::uniform3(1usize..10),
        flat: bool,
    ) {
        let mut n = 1u32;
        let mut noise = || {
            n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            n >> 16
        };
        let [d, h, w] = shape;
        let image = Array4::from_shape_simple_fn((2, d, h, w), || noise() as f32 / 65536.0);
        let labels = Array3::from_shape_fn(shape, |(z, y, x)| ((z / 3 + y / 2 + x / 4) % 4) as i16 - 1);
        let properties = CaseProperties {
            spacing_mm: [1.0; 3],
            target_spacing_mm: [1.0; 3],
            shape_before_cropping: shape,
            crop: [[0, d], [0, h], [0, w]],
            shape,
            axes: crate::AxisMap::IDENTITY,
        };
        let case = PreparedCase { image, labels: Some(labels), locations: vec![], properties };
        let transform = SpatialTransform::affine(angles, scale, flat);
        let enlarged = enlarged(patch);
        let case = TrainingCase::from(case);
        let found = transform.extract(&case, start, enlarged, patch, Patch::default()).unwrap();

        let region = case.region(start, enlarged).unwrap();
        let source = EnlargedPatch::new(&region, start, enlarged);
        let voxels: usize = patch.iter().product();
        let mut expected = Patch { image: vec![0.0; 2 * voxels], labels: vec![-1; voxels], shape: patch };
        let m = transform.matrix.expect("affine");
        let centre = |n: usize| (n as f32 - 1.0) / 2.0;
        for (at, (z, y, x)) in ndarray::indices(patch).into_iter().enumerate() {
            let o = [z as f32 - centre(patch[0]), y as f32 - centre(patch[1]), x as f32 - centre(patch[2])];
            let row = [0, 1, 2].map(|a| m[a][0] * o[0] + m[a][1] * o[1] + centre(enlarged[a]));
            source.voxel([0, 1, 2].map(|a| row[a] + m[a][2] * o[2]), at, voxels, &mut expected);
        }
        prop_assert_eq!(&found.labels, &expected.labels);
        for (a, b) in found.image.iter().zip(&expected.image) {
            prop_assert!((a - b).abs() < 1e-5, "{} {}", a, b);
        }
    }
}
