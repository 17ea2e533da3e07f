//! Bytes that claim to be a NIfTI file: whatever they are, an answer or an error of one line. What is read as an image
//! holds the numbers that the standard's fields, taken from their offsets, say.
#![no_main]

use libfuzzer_sys::fuzz_target;
use msd_data::nifti::{image_from_bytes, labels_from_bytes};

fuzz_target!(|bytes: &[u8]| {
    let image = image_from_bytes(bytes, "fuzz.nii");
    let labels = labels_from_bytes(bytes, "fuzz.nii");
    for error in [image.as_ref().err(), labels.as_ref().err()].into_iter().flatten() {
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    let Ok(image) = image else {
        return assert!(labels.is_err(), "labels are an image too");
    };
    if let Ok(labels) = &labels {
        for (label, v) in labels.data.iter().zip(&image.data) {
            let tolerance = 1e-4 + 1e-7 * f32::from(*label);
            assert!((f32::from(*label) - v).abs() <= tolerance, "label {label}, voxel {v}");
        }
    }
    if bytes.starts_with(&[0x1f, 0x8b]) {
        return;
    }
    let big = bytes[0] == 0;
    let i16_at = |at| i16::from_le_bytes(number(bytes, at, big));
    let f32_at = |at| f32::from_le_bytes(number(bytes, at, big));
    let (slope, inter) = (f64::from(f32_at(112)), f64::from(f32_at(116)));
    let scaled = slope != 0.0 && slope.is_finite() && inter.is_finite();
    let (code, start) = (i16_at(70), f32_at(108) as usize);
    let [c, z, y, x] =
        [3, 2, 1, 0].map(|axis| if axis < i16_at(40) as usize { i16_at(42 + 2 * axis) as usize } else { 1 });
    assert_eq!(image.data.shape(), [c, z, y, x]);
    for (i, v) in image.data.iter().enumerate() {
        macro_rules! raw {
            ($($code:literal $t:ty),*) => {
                match code {
                    $($code => <$t>::from_le_bytes(number(bytes, start + i * size_of::<$t>(), big)) as f64,)*
                    _ => panic!("voxel type {code} was read"),
                }
            };
        }
        let raw = raw!(2 u8, 4 i16, 8 i32, 16 f32, 64 f64, 256 i8, 512 u16, 768 u32, 1024 i64, 1280 u64);
        let expected = if scaled { raw * slope + inter } else { raw };
        assert_eq!(*v, expected as f32, "voxel {i}");
    }
});

/// The `N` bytes of a number, the least significant first.
fn number<const N: usize>(bytes: &[u8], at: usize, big: bool) -> [u8; N] {
    let mut number = [0; N];
    number.copy_from_slice(&bytes[at..at + N]);
    if big {
        number.reverse();
    }
    number
}
