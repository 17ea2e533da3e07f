//! Position of voxels in space, and the NIfTI header needed to write the same grid again.

use nifti::{Endianness, NiftiHeader};

use crate::error::NiftiProblem;
use crate::orientation::Orientation;

/// Bytes of a NIfTI-1 header.
pub(crate) const HEADER_BYTES: usize = 348;

/// The grid of a volume. Triples are in array order: z, y, x.
///
/// Arrays hold voxels in the order of the file, so a result written with the geometry of its image overlays it exactly.
#[derive(Debug, Clone, PartialEq)]
pub struct Geometry {
    /// Number of voxels along z, y, x.
    pub shape: [usize; 3],
    /// Distance of voxel centres along z, y, x, in millimetres. A grid of other distances is another [`Geometry::new`] or
    /// [`Geometry::from_affine`]: one that was changed here is refused when it is written.
    pub spacing_mm: [f64; 3],
    /// The header as it stood in the file: writing patches only the fields that describe the voxels, so qform,
    /// sform, pixdim, units and description survive bit by bit.
    header: [u8; HEADER_BYTES],
    pub(crate) endianness: Endianness,
}

impl Geometry {
    /// Builds an axis-aligned grid with its origin at voxel 0.
    ///
    /// ```
    /// let geometry = msd_data::Geometry::new([36, 50, 35], [1.0, 1.0, 1.0]);
    /// assert_eq!(geometry.shape, [36, 50, 35]);
    /// ```
    pub fn new(shape: [usize; 3], spacing_mm: [f64; 3]) -> Self {
        let mut geometry = Self { shape, spacing_mm, header: [0; HEADER_BYTES], endianness: Endianness::Little };
        let [dz, dy, dx] = spacing_mm.map(|mm| mm as f32);
        geometry.put(76, &[1.0, dx, dy, dz, 1.0, 1.0, 1.0, 1.0].map(f32::to_le_bytes));
        geometry.header[123] = 2; // millimetres
        geometry.put(252, &[1i16.to_le_bytes(), 1i16.to_le_bytes()]); // qform_code, sform_code: scanner
        geometry.put(280, &[dx, 0.0, 0.0, 0.0].map(f32::to_le_bytes));
        geometry.put(296, &[0.0, dy, 0.0, 0.0].map(f32::to_le_bytes));
        geometry.put(312, &[0.0, 0.0, dz, 0.0].map(f32::to_le_bytes));
        geometry
    }

    /// Builds the grid of voxels at millimetres `affine` (i, j, k, 1), rows x, y, z, with i along the last axis of `shape`.
    /// The header stores the matrix in single precision, as its sform.
    ///
    /// ```
    /// let affine = [[-1.0, 0.0, 0.0, 30.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.5, 0.0]];
    /// let geometry = msd_data::Geometry::from_affine([20, 32, 31], affine);
    /// assert_eq!(geometry.spacing_mm, [2.5, 1.0, 1.0]);
    /// assert_eq!(geometry.orientation().unwrap().to_string(), "LAS");
    /// ```
    pub fn from_affine(shape: [usize; 3], affine: [[f64; 4]; 3]) -> Self {
        let lengths = [2, 1, 0].map(|j| affine.iter().map(|row| row[j] * row[j]).sum::<f64>().sqrt());
        let mut geometry = Self::new(shape, lengths);
        geometry.put(252, &[0i16.to_le_bytes(), 1i16.to_le_bytes()]); // qform_code, sform_code
        for (row, offset) in affine.into_iter().zip([280, 296, 312]) {
            geometry.put(offset, &row.map(|v| (v as f32).to_le_bytes()));
        }
        geometry
    }

    /// Matrix from voxel indices to millimetres in the scanner, rows x, y, z: `affine` (i, j, k, 1) with i along the file's
    /// first axis. The sform if the file has one, else the qform, else the voxel sizes alone; a form that is singular or holds
    /// no numbers counts as absent.
    pub fn affine(&self) -> [[f64; 4]; 3] {
        let [dz, dy, dx] = self.spacing_mm;
        self.placement().unwrap_or([[dx, 0.0, 0.0, 0.0], [0.0, dy, 0.0, 0.0], [0.0, 0.0, dz, 0.0]])
    }

    /// Orientation of the file's axes in the scanner; none if the file has no usable form.
    pub fn orientation(&self) -> Option<Orientation> {
        orientation_of(&self.placement()?)
    }

    /// [`Self::affine`], or none if the file has no usable form.
    pub(crate) fn placement(&self) -> Option<[[f64; 4]; 3]> {
        let usable =
            |form: &[[f64; 4]; 3]| form.as_flattened().iter().all(|v| v.is_finite()) && orientation_of(form).is_some();
        self.sform().filter(usable).or_else(|| self.qform().filter(usable))
    }

    /// The sform in millimetres if the header has one, usable or not.
    pub(crate) fn sform(&self) -> Option<[[f64; 4]; 3]> {
        let unit_mm = self.unit_mm();
        let row = |offset: usize| [0, 4, 8, 12].map(|column| self.f32_at(offset + column) * unit_mm);
        (self.i16_at(254) > 0).then(|| [280, 296, 312].map(row))
    }

    /// The qform in millimetres if the header has one, usable or not.
    pub(crate) fn qform(&self) -> Option<[[f64; 4]; 3]> {
        if self.i16_at(252) <= 0 {
            return None;
        }
        let [dz, dy, dx] = self.spacing_mm;
        let [b, c, d] = [256, 260, 264].map(|offset| self.f32_at(offset));
        let [ox, oy, oz] = [268, 272, 276].map(|offset| self.f32_at(offset) * self.unit_mm());
        let a = (1.0 - b * b - c * c - d * d).max(0.0).sqrt();
        let dz = if self.f32_at(76) < 0.0 { -dz } else { dz };
        let row = |r: [f64; 3], origin| [r[0] * dx, r[1] * dy, r[2] * dz, origin];
        Some([
            row([a * a + b * b - c * c - d * d, 2.0 * (b * c - a * d), 2.0 * (b * d + a * c)], ox),
            row([2.0 * (b * c + a * d), a * a + c * c - b * b - d * d, 2.0 * (c * d - a * b)], oy),
            row([2.0 * (b * d - a * c), 2.0 * (c * d + a * b), a * a + d * d - b * b - c * c], oz),
        ])
    }

    /// Returns true if the voxel sizes are those of the header.
    pub(crate) fn has_spacing_of_header(&self) -> bool {
        let unit_mm = self.unit_mm();
        let of_header = [88, 84, 80].map(|offset| self.f32_at(offset).abs() * unit_mm);
        self.spacing_mm.iter().zip(of_header).all(|(a, b)| (a - b).abs() <= 1e-6 * b)
    }

    /// Millimetres per unit of length of the header. As in ITK, metres and micrometres are converted, anything else is
    /// millimetres.
    fn unit_mm(&self) -> f64 {
        match self.header[123] & 7 {
            1 => 1e3,
            3 => 1e-3,
            _ => 1.0,
        }
    }

    fn i16_at(&self, offset: usize) -> i16 {
        let bytes = [self.header[offset], self.header[offset + 1]];
        if self.endianness == Endianness::Big { i16::from_be_bytes(bytes) } else { i16::from_le_bytes(bytes) }
    }

    fn f32_at(&self, offset: usize) -> f64 {
        let bytes = [0, 1, 2, 3].map(|i| self.header[offset + i]);
        let v = if self.endianness == Endianness::Big { f32::from_be_bytes(bytes) } else { f32::from_le_bytes(bytes) };
        f64::from(v)
    }

    /// The geometry of a parsed header and its bytes.
    pub(crate) fn from_header(
        header: &NiftiHeader,
        bytes: &[u8; HEADER_BYTES],
        shape: [usize; 3],
    ) -> Result<Self, NiftiProblem> {
        let mut geometry = Self { shape, spacing_mm: [1.0; 3], header: *bytes, endianness: header.endianness };
        let unit_mm = geometry.unit_mm();
        let spacing_mm = [3, 2, 1].map(|i| f64::from(header.pixdim[i]).abs() * unit_mm);
        if spacing_mm.iter().any(|&mm| !mm.is_finite() || mm <= 0.0) {
            return Err(NiftiProblem::Spacing { mm: spacing_mm });
        }
        geometry.spacing_mm = spacing_mm;
        Ok(geometry)
    }

    /// The header of a file with `channels` volumes on this grid, of voxel type `code`.
    pub(crate) fn header_bytes(&self, channels: usize, code: i16, bits: i16) -> [u8; HEADER_BYTES] {
        let big = self.endianness == Endianness::Big;
        let i16_bytes = |v: i16| {
            if big { v.to_be_bytes() } else { v.to_le_bytes() }
        };
        let f32_bytes = |v: f32| {
            if big { v.to_be_bytes() } else { v.to_le_bytes() }
        };
        let [z, y, x] = self.shape;
        let dims = if channels == 1 { 3 } else { 4 };
        let mut out = self.clone();
        out.header[0..4].copy_from_slice(&if big { 348i32.to_be_bytes() } else { 348i32.to_le_bytes() });
        out.put(40, &[dims, x, y, z, channels, 1, 1, 1].map(|n| i16_bytes(n as i16)));
        out.put(56, &[0.0; 3].map(f32_bytes)); // intent parameters
        out.put(68, &[0, code, bits].map(i16_bytes)); // intent, datatype, bits per voxel
        out.put(108, &[352.0, 1.0, 0.0].map(f32_bytes)); // voxel offset, slope, intercept
        out.put(124, &[0.0, 0.0].map(f32_bytes)); // display range
        out.header[328..344].fill(0); // intent name
        out.header[344..348].copy_from_slice(b"n+1\0");
        out.header
    }

    fn put<const N: usize>(&mut self, offset: usize, values: &[[u8; N]]) {
        self.header[offset..offset + N * values.len()].copy_from_slice(values.as_flattened());
    }
}

fn orientation_of(affine: &[[f64; 4]; 3]) -> Option<Orientation> {
    Orientation::nearest(affine.map(|[x, y, z, _]| [x, y, z]))
}

#[cfg(test)]
impl Geometry {
    /// A grid whose header has neither qform nor sform.
    pub(crate) fn without_forms(shape: [usize; 3], spacing_mm: [f64; 3]) -> Self {
        let mut geometry = Self::new(shape, spacing_mm);
        geometry.put(252, &[0i16.to_le_bytes(), 0i16.to_le_bytes()]);
        geometry
    }

    /// The same header with micrometres as its unit.
    pub(crate) fn in_micrometres(mut self) -> Self {
        self.header[123] = 3;
        Self { spacing_mm: self.spacing_mm.map(|v| v / 1e3), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qform_and_sform_agree_on_a_rotated_grid() {
        let mut geometry = Geometry::new([4, 5, 6], [3.0, 2.0, 1.0]);
        let expected = [[0.0, -2.0, 0.0, 7.0], [1.0, 0.0, 0.0, 8.0], [0.0, 0.0, -3.0, 9.0]];
        for (row, offset) in expected.iter().zip([280, 296, 312]) {
            geometry.put(offset, &row.map(|v| (v as f32).to_le_bytes()));
        }
        assert_eq!(geometry.affine(), expected, "sform");
        geometry.put(254, &[0i16.to_le_bytes()]);
        // A quarter turn about z: (a, b, c, d) = (cos 45, 0, 0, sin 45); qfac -1 flips the third axis.
        let quaternion = [0.0, 0.0, 0.5f32.sqrt(), 7.0, 8.0, 9.0];
        geometry.put(256, &quaternion.map(f32::to_le_bytes));
        geometry.put(76, &[(-1f32).to_le_bytes()]);
        for (row, expected) in geometry.affine().iter().zip(expected) {
            for (found, expected) in row.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6, "qform: {found} {expected}");
            }
        }
        geometry.put(252, &[0i16.to_le_bytes()]);
        assert_eq!(geometry.affine()[1], [0.0, 2.0, 0.0, 0.0], "neither");
    }
}
