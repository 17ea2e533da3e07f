//! Comparison of grids that are used together: an image and its labels, its channels, a prediction and its reference.

use std::path::Path;

use ndarray::{Array, Dimension};

use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::nifti::{LabelMap, Volume};
use crate::orientation::AxisMap;

/// Handling of volumes whose headers place them elsewhere in the scanner than the volumes they are used with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Positions {
    /// Refuse them. Volumes that lie at the same place along other axes are brought to the same axes. Nothing is known of a
    /// volume whose header has neither a usable qform nor sform: with it, only shapes and voxel sizes are compared.
    #[default]
    Checked,
    /// Ignore positions and orientations: volumes of one shape and voxel size are used voxel by voxel, as stored.
    Ignored,
}

impl Positions {
    /// [`Self::Ignored`] if `ignored`, else [`Self::Checked`].
    pub fn ignored_if(ignored: bool) -> Self {
        if ignored { Self::Ignored } else { Self::Checked }
    }

    /// Compares the grid of `other` with that of `reference`, each with its file's name. Returns the map that brings arrays of
    /// `other` to the axes of `reference`: the identity unless the same place is stored along other axes.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`], [`Error::SpacingMismatch`], and with [`Self::Checked`] [`Error::PositionMismatch`] for grids
    /// that are farther apart than half of their shortest voxel edge.
    pub(crate) fn compare(self, reference: (&Path, &Geometry), other: (&Path, &Geometry)) -> Result<AxisMap> {
        let ((reference, a), (file, b)) = (reference, other);
        let placed = match self {
            Self::Checked => a.placement().zip(b.placement()),
            Self::Ignored => None,
        };
        let Some((to, from)) = placed else {
            check_sizes((reference, a), (file, b), AxisMap::IDENTITY)?;
            return Ok(AxisMap::IDENTITY);
        };
        let tolerance = half_voxel_mm(a);
        let apart = |map: AxisMap| displacement_mm(a.shape, &to, &moved_affine(&from, b.shape, map));
        let same_axes = check_sizes((reference, a), (file, b), AxisMap::IDENTITY);
        // First as stored: on oblique grids, rounding may decide for other axes.
        if same_axes.is_ok() && apart(AxisMap::IDENTITY) <= tolerance {
            return Ok(AxisMap::IDENTITY);
        }
        let map = match a.orientation().zip(b.orientation()) {
            Some((to, from)) => AxisMap::between(from, to),
            None => AxisMap::IDENTITY,
        };
        let other_axes = check_sizes((reference, a), (file, b), map);
        if other_axes.is_ok() && apart(map) <= tolerance {
            return Ok(map);
        }
        let fitting = [(same_axes.is_ok(), AxisMap::IDENTITY), (other_axes.is_ok(), map)];
        let mm = fitting.into_iter().filter(|(fits, _)| *fits).map(|(_, map)| apart(map)).reduce(f64::min);
        let (reference, file) = (reference.to_path_buf(), file.to_path_buf());
        match mm {
            Some(mm) => Err(Error::PositionMismatch { reference, file, mm }),
            None => same_axes.map(|()| AxisMap::IDENTITY),
        }
    }
}

impl LabelMap {
    /// Brings the labels of `file` to the axes of a reference grid, given with its file's name.
    ///
    /// # Errors
    /// Those of [`Positions::compare`].
    pub(crate) fn onto(self, file: &Path, reference: (&Path, &Geometry), positions: Positions) -> Result<Self> {
        let map = positions.compare(reference, (file, &self.geometry))?;
        if map == AxisMap::IDENTITY {
            return Ok(self);
        }
        Ok(Self { data: moved_voxels(self.data, map), geometry: reference.1.clone() })
    }
}

impl Volume<f32> {
    /// Brings the image of `file` to the axes of a reference grid, given with its file's name.
    ///
    /// # Errors
    /// Those of [`Positions::compare`].
    pub(crate) fn onto(self, file: &Path, reference: (&Path, &Geometry), positions: Positions) -> Result<Self> {
        let map = positions.compare(reference, (file, &self.geometry))?;
        if map == AxisMap::IDENTITY {
            return Ok(self);
        }
        Ok(Self { data: moved_voxels(self.data, map), geometry: reference.1.clone() })
    }
}

fn moved_voxels<T: Clone, D: Dimension>(array: Array<T, D>, map: AxisMap) -> Array<T, D> {
    map.apply(array).as_standard_layout().into_owned()
}

/// Checks that shapes and voxel sizes are equal once `map` is applied to the second grid.
fn check_sizes(reference: (&Path, &Geometry), other: (&Path, &Geometry), map: AxisMap) -> Result<()> {
    let ((reference, a), (file, b)) = (reference, other);
    if a.shape != map.triple(b.shape) {
        return Err(Error::ShapeMismatch {
            reference: reference.to_path_buf(),
            file: file.to_path_buf(),
            reference_shape: a.shape,
            shape: b.shape,
        });
    }
    // Headers store f32; tools that rewrite them lose the last digits.
    if a.spacing_mm.iter().zip(map.triple(b.spacing_mm)).any(|(a, b)| (a - b).abs() > 1e-3 * a) {
        return Err(Error::SpacingMismatch {
            reference: reference.to_path_buf(),
            file: file.to_path_buf(),
            reference_mm: a.spacing_mm,
            mm: b.spacing_mm,
        });
    }
    Ok(())
}

/// Matrix of a volume of this shape, `[z, y, x]`, after `map` was applied to its array.
pub(crate) fn moved_affine(affine: &[[f64; 4]; 3], shape: [usize; 3], map: AxisMap) -> [[f64; 4]; 3] {
    affine.map(|row| {
        let mut out = [0.0, 0.0, 0.0, row[3]];
        for i in 0..3 {
            // File axes x, y, z are the array axes 2, 1, 0.
            let from = map.from[2 - i];
            let step = row[2 - from];
            if map.reversed[2 - i] {
                out[3] += step * (shape[from] - 1) as f64;
                out[i] = -step;
            } else {
                out[i] = step;
            }
        }
        out
    })
}

/// Half of a grid's shortest voxel edge.
pub(crate) fn half_voxel_mm(grid: &Geometry) -> f64 {
    0.5 * grid.spacing_mm.into_iter().fold(f64::MAX, f64::min)
}

/// Largest distance between equal corners of two grids of one shape, `[z, y, x]`.
pub(crate) fn displacement_mm(shape: [usize; 3], a: &[[f64; 4]; 3], b: &[[f64; 4]; 3]) -> f64 {
    let [z, y, x] = shape.map(|n| (n - 1) as f64);
    let corners = (0..8).map(|bits| [x * f64::from(bits & 1), y * f64::from(bits >> 1 & 1), z * f64::from(bits >> 2)]);
    let apart = corners.map(|corner| {
        let squares = a.iter().zip(b).map(|(a, b)| {
            let difference = (0..3).map(|i| (a[i] - b[i]) * corner[i]).sum::<f64>() + a[3] - b[3];
            difference * difference
        });
        squares.sum::<f64>().sqrt()
    });
    apart.fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::*;

    const RAS: [[f64; 4]; 3] = [[1.0, 0.0, 0.0, -10.0], [0.0, 0.8, 0.0, 5.0], [0.0, 0.0, 3.0, 7.0]];

    fn compare(a: &Geometry, b: &Geometry) -> Result<AxisMap> {
        Positions::Checked.compare((Path::new("a.nii"), a), (Path::new("b.nii"), b))
    }

    /// The grid of `RAS` with shape 4, 5, 6, stored in another orientation, and its voxels, numbered as in RAS.
    fn stored(code: &str) -> LabelMap {
        let map = AxisMap::between("RAS".parse().unwrap(), code.parse().unwrap());
        let shape = [4, 5, 6];
        let mut n = 0;
        let data = Array3::from_shape_simple_fn(shape, || {
            n += 1;
            n
        });
        let geometry = Geometry::from_affine(map.triple(shape), moved_affine(&RAS, shape, map));
        LabelMap { data: moved_voxels(data, map), geometry }
    }

    #[test]
    fn one_place_along_other_axes_is_brought_over() {
        let ras = stored("RAS");
        for code in ["RAS", "LAS", "LPS", "PIR", "SRA", "IPL", "ASR"] {
            let other = stored(code);
            assert_eq!(other.geometry.orientation().unwrap().to_string(), code);
            let brought =
                other.onto(Path::new("b.nii"), (Path::new("a.nii"), &ras.geometry), Positions::Checked).unwrap();
            assert_eq!(brought, ras, "{code}");
        }
    }

    #[test]
    fn other_sizes_and_other_places_are_refused_with_names_and_millimetres() {
        let geometry = |affine| Geometry::from_affine([4, 5, 6], affine);
        let a = geometry(RAS);
        let mut near = RAS;
        near[0][3] += 0.39;
        assert_eq!(compare(&a, &geometry(near)).unwrap(), AxisMap::IDENTITY, "less than half a voxel");
        let mut away = RAS;
        away[2][3] += 40.0;
        let message = compare(&a, &geometry(away)).unwrap_err().to_string();
        assert!(message.starts_with("b.nii: lies up to 40.0 mm away from a.nii in the scanner"), "{message}");
        let ignored = Positions::Ignored.compare((Path::new("a"), &a), (Path::new("b"), &geometry(away)));
        assert_eq!(ignored.unwrap(), AxisMap::IDENTITY);
        // Flipped without a new origin: the box of the other side.
        let flipped = RAS.map(|[x, y, z, origin]| [-x, y, z, origin]);
        assert!(compare(&a, &geometry(flipped)).unwrap_err().to_string().contains("lies up to 5.0 mm away"));
        let coarse = RAS.map(|[x, y, z, origin]| [x, y, 1.1 * z, origin]);
        assert!(matches!(compare(&a, &geometry(coarse)), Err(Error::SpacingMismatch { .. })));
        assert!(matches!(compare(&a, &Geometry::from_affine([4, 5, 7], RAS)), Err(Error::ShapeMismatch { .. })));
        // Without a form there is no place to compare.
        assert_eq!(compare(&a, &Geometry::without_forms([4, 5, 6], a.spacing_mm)).unwrap(), AxisMap::IDENTITY);
    }

    #[test]
    fn micrometres_of_the_header_are_micrometres_of_positions() {
        let micro = |x: f64| {
            let affine = [[50.0, 0.0, 0.0, x], [0.0, 50.0, 0.0, 0.0], [0.0, 0.0, 50.0, 0.0]];
            Geometry::from_affine([4, 5, 6], affine).in_micrometres()
        };
        assert_eq!(micro(0.0).spacing_mm, [0.05; 3]);
        compare(&micro(0.0), &micro(20.0)).unwrap();
        // The whole grid measures a quarter of a millimetre.
        let message = compare(&micro(0.0), &micro(30.0)).unwrap_err().to_string();
        assert!(message.contains("lies up to 0.0300 mm away"), "{message}");
        let message = compare(&micro(0.0), &micro(3000.0)).unwrap_err().to_string();
        assert!(message.contains("lies up to 3.0 mm away"), "{message}");
    }
}
