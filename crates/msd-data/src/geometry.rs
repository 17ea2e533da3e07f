//! Position of voxels in space, and the NIfTI header needed to write the same grid again.

use nifti::{Endianness, NiftiHeader};

use crate::error::NiftiProblem;

/// Bytes of a NIfTI-1 header.
pub(crate) const HEADER_BYTES: usize = 348;

/// The grid of a volume. Triples are in array order: z, y, x.
///
/// Arrays hold voxels in the order of the file; orientation is never normalised, so a result written with the
/// geometry of its image overlays it exactly.
#[derive(Debug, Clone, PartialEq)]
pub struct Geometry {
    /// Number of voxels along z, y, x.
    pub shape: [usize; 3],
    /// Distance of voxel centres along z, y, x, in millimetres.
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

    /// Matrix from voxel indices to millimetres in the scanner, rows x, y, z: `affine` (i, j, k, 1) with i along the file's
    /// first axis. The sform if the file has one, else the qform, else the voxel sizes alone.
    pub fn affine(&self) -> [[f64; 4]; 3] {
        let [dz, dy, dx] = self.spacing_mm;
        if self.i16_at(254) > 0 {
            return [280, 296, 312].map(|row| [0, 4, 8, 12].map(|column| self.f32_at(row + column)));
        }
        if self.i16_at(252) <= 0 {
            return [[dx, 0.0, 0.0, 0.0], [0.0, dy, 0.0, 0.0], [0.0, 0.0, dz, 0.0]];
        }
        let [b, c, d, ox, oy, oz] = [256, 260, 264, 268, 272, 276].map(|offset| self.f32_at(offset));
        let a = (1.0 - b * b - c * c - d * d).max(0.0).sqrt();
        let dz = if self.f32_at(76) < 0.0 { -dz } else { dz };
        let row = |r: [f64; 3], origin| [r[0] * dx, r[1] * dy, r[2] * dz, origin];
        [
            row([a * a + b * b - c * c - d * d, 2.0 * (b * c - a * d), 2.0 * (b * d + a * c)], ox),
            row([2.0 * (b * c + a * d), a * a + c * c - b * b - d * d, 2.0 * (c * d - a * b)], oy),
            row([2.0 * (b * d - a * c), 2.0 * (c * d + a * b), a * a + d * d - b * b - c * c], oz),
        ]
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
        // As ITK does: metres and micrometres become millimetres, anything else is millimetres.
        let unit = match header.xyzt_units & 7 {
            1 => 1e3,
            3 => 1e-3,
            _ => 1.0,
        };
        let spacing_mm = [3, 2, 1].map(|i| f64::from(header.pixdim[i]).abs() * unit);
        if spacing_mm.iter().any(|&mm| !mm.is_finite() || mm <= 0.0) {
            return Err(NiftiProblem::Spacing { mm: spacing_mm });
        }
        Ok(Self { shape, spacing_mm, header: *bytes, endianness: header.endianness })
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
