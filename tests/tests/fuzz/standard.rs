//! Voxels of a NIfTI file by the standard's fields, read from their offsets.

use msd_data::Volume;

/// Compares an image with the uncompressed file that it was read from.
pub(crate) fn compare(bytes: &[u8], image: &Volume<f32>) {
    let big = bytes[0] == 0;
    let i16_at = |at| i16::from_le_bytes(number(bytes, at, big));
    let f32_at = |at| f32::from_le_bytes(number(bytes, at, big));
    let (slope, intercept) = (f64::from(f32_at(112)), f64::from(f32_at(116)));
    let scaled = slope != 0.0 && slope.is_finite();
    let (code, start) = (i16_at(70), f32_at(108) as usize);
    let [c, z, y, x] =
        [3, 2, 1, 0].map(|axis| if axis < i16_at(40) as usize { i16_at(42 + 2 * axis) as usize } else { 1 });
    assert_eq!(image.data.shape(), [c, z, y, x]);
    for (i, voxel) in image.data.iter().enumerate() {
        macro_rules! raw {
            ($($code:literal $t:ty),*) => {
                match code {
                    $($code => <$t>::from_le_bytes(number(bytes, start + i * size_of::<$t>(), big)) as f64,)*
                    _ => panic!("voxel type {code} was read"),
                }
            };
        }
        let raw = raw!(2 u8, 4 i16, 8 i32, 16 f32, 64 f64, 256 i8, 512 u16, 768 u32, 1024 i64, 1280 u64);
        let expected = if scaled { raw * slope + intercept } else { raw };
        assert_eq!(*voxel, expected as f32, "voxel {i}");
    }
}

/// The `N` bytes of a number, the least significant first.
fn number<const N: usize>(bytes: &[u8], at: usize, big: bool) -> [u8; N] {
    let mut number = [0; N];
    number.copy_from_slice(&bytes[at..at + N]);
    if big {
        number.reverse();
    }
    number
}
