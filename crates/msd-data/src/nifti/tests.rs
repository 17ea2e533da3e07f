use std::fs;

use flate2::write::GzEncoder;
use ndarray::{Array3, Array4};
use proptest::prelude::*;

use super::*;

/// A raw NIfTI-1 file in either byte order.
fn raw(big: bool, dim: &[u16], code: i16, scaling: (f32, f32), voxels: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 352];
    let i16b = |v: i16| {
        if big { v.to_be_bytes() } else { v.to_le_bytes() }
    };
    let f32b = |v: f32| {
        if big { v.to_be_bytes() } else { v.to_le_bytes() }
    };
    bytes[0..4].copy_from_slice(&if big { 348i32.to_be_bytes() } else { 348i32.to_le_bytes() });
    bytes[40..42].copy_from_slice(&i16b(dim.len() as i16));
    for (i, &n) in dim.iter().enumerate() {
        bytes[42 + 2 * i..44 + 2 * i].copy_from_slice(&i16b(n as i16));
    }
    bytes[70..72].copy_from_slice(&i16b(code));
    for (offset, v) in [(76, 1.0), (80, 0.5), (84, -0.75), (88, 3.0), (108, 352.0), (112, scaling.0), (116, scaling.1)]
    {
        bytes[offset..offset + 4].copy_from_slice(&f32b(v));
    }
    bytes[123] = 10;
    bytes[344..348].copy_from_slice(b"n+1\0");
    bytes.extend(voxels);
    bytes
}

fn read_bytes(name: &str, bytes: &[u8]) -> Result<Volume<f32>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    read_image(&path)
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn every_voxel_type_in_both_byte_orders() {
    macro_rules! check {
        ($code:expr, $t:ty) => {
            for big in [false, true] {
                let values: Vec<$t> = (0..24).map(|v| v as $t).collect();
                let bytes: Vec<u8> =
                    values.iter().flat_map(|v| if big { v.to_be_bytes() } else { v.to_le_bytes() }).collect();
                let file = raw(big, &[2, 3, 4], $code, (2.0, -5.0), &bytes);
                for file in [gz(&file), file] {
                    let volume = read_bytes("image.nii.gz", &file).unwrap();
                    assert_eq!(volume.data.shape(), [1, 4, 3, 2], "x, y, z in the file is z, y, x in the array");
                    assert_eq!(volume.data[[0, 3, 1, 0]], (3 * 6 + 2) as f32 * 2.0 - 5.0, "type {}, big {big}", $code);
                    assert_eq!(volume.geometry.spacing_mm, [3.0, 0.75, 0.5]);
                }
            }
        };
    }
    check!(2, u8);
    check!(4, i16);
    check!(8, i32);
    check!(16, f32);
    check!(64, f64);
    check!(256, i8);
    check!(512, u16);
    check!(768, u32);
    check!(1024, i64);
    check!(1280, u64);
}

#[test]
fn four_dimensional_files_have_channels() {
    let volume = read_bytes("a.nii", &raw(false, &[2, 1, 1, 3], 2, (0.0, 7.0), &[1, 2, 3, 4, 5, 6])).unwrap();
    assert_eq!(volume.data.shape(), [3, 1, 1, 2]);
    assert_eq!(volume.data.iter().copied().collect::<Vec<_>>(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "slope 0: unscaled");
}

#[test]
fn damaged_and_hostile_files_are_refused_in_one_line() {
    let good = raw(false, &[2, 3, 4], 2, (1.0, 0.0), &[0; 24]);
    let mut wrong_magic = good.clone();
    wrong_magic[344] = b'x';
    let mut squeezed =
        gz(&raw(false, &[200, 30, 4], 2, (1.0, 0.0), &(0..24000u32).map(|v| ((v * v) >> 3) as u8).collect::<Vec<_>>()));
    squeezed.truncate(squeezed.len() / 2);
    let nan = f32::NAN.to_le_bytes();
    let mut flat = good.clone();
    flat[88..92].fill(0);
    for (file, says) in [
        (Vec::new(), "truncated"),
        (good[..200].to_vec(), "truncated or damaged: 200 of 348 bytes"),
        (good[..360].to_vec(), "truncated or damaged: 360 of 376 bytes"),
        (squeezed, "truncated or damaged"),
        (wrong_magic, "not a NIfTI-1 file"),
        (b"{\"this\": \"is JSON\"}".repeat(40), "not a NIfTI-1 file"),
        (raw(false, &[32767, 32767, 32767, 32767], 64, (1.0, 0.0), &[0; 8]), "cannot hold that"),
        (gz(&raw(true, &[32767, 32767, 32767], 16, (1.0, 0.0), &[0; 8])), "cannot hold that"),
        (raw(false, &[60000, 3, 4], 2, (1.0, 0.0), &[0; 24]), "between 1 and 32767"),
        (raw(false, &[2, 12], 2, (1.0, 0.0), &[0; 24]), "three or four dimensions"),
        (raw(false, &[2, 3, 2, 1, 2], 2, (1.0, 0.0), &[0; 24]), "no more than four"),
        (raw(false, &[1, 1, 1], 128, (1.0, 0.0), &[0; 3]), "voxel type 128"),
        (raw(false, &[1, 1, 2], 16, (1.0, 0.0), &[nan, nan].concat()), "2 of 2 voxels are NaN"),
        (flat, "each must be a positive number"),
    ] {
        let message = read_bytes("case.nii", &file).unwrap_err().to_string();
        assert!(
            message.contains(says) && message.contains("case.nii") && !message.contains('\n'),
            "{message} / {says}"
        );
    }
    assert!(read_image("/nowhere/a.nii").unwrap_err().to_string().starts_with("/nowhere/a.nii: No such file"));
}

#[test]
fn labels_may_be_floats_but_must_be_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("label.nii");
    let floats = |v: [f32; 3]| v.map(f32::to_le_bytes).concat();
    fs::write(&path, raw(false, &[3, 1, 1], 16, (1.0, 0.0), &floats([0.0, 1.00001, 300.0]))).unwrap();
    assert_eq!(read_labels(&path).unwrap().data.as_slice().unwrap(), [0, 1, 300]);
    for bad in [0.5, -1.0, 70000.0, f32::INFINITY] {
        fs::write(&path, raw(false, &[3, 1, 1], 16, (1.0, 0.0), &floats([0.0, bad, 1.0]))).unwrap();
        let message = read_labels(&path).unwrap_err().to_string();
        assert!(message.contains("label.nii: 1 "), "{message}");
    }
}

#[test]
fn label_maps_keep_the_header_of_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("image.nii"), dir.path().join("label.nii"));
    for big in [false, true] {
        let mut image = raw(big, &[2, 3, 4, 2], 4, (2.0, 1.0), &[0; 96]);
        image[148..160].copy_from_slice(b"a good scan!"); // descrip
        for (i, byte) in image[252..328].iter_mut().enumerate() {
            *byte = i as u8 % 64; // qform, sform
        }
        fs::write(&from, &image).unwrap();
        let geometry = read_image(&from).unwrap().geometry;
        for top in [200, 700] {
            let labels = Array3::from_shape_fn((4, 3, 2), |(z, y, x)| if z == 3 { top } else { (y + x) as u16 });
            write_labels(&to, &labels.view(), &geometry).unwrap();
            let written = fs::read(&to).unwrap();
            assert_eq!(written.len(), 352 + 24 * if top > 255 { 2 } else { 1 });
            for kept in [76..108, 123..124, 148..228, 252..328] {
                assert_eq!(written[kept.clone()], image[kept.clone()], "bytes {kept:?}, big {big}");
            }
            let back = read_labels(&to).unwrap();
            assert_eq!((back.data, back.geometry.spacing_mm), (labels, geometry.spacing_mm));
            // The nifti crate agrees.
            let header = ::nifti::NiftiHeader::from_file(&to).unwrap();
            assert_eq!((header.dim().unwrap(), header.scl_slope), (&[2u16, 3, 4][..], 1.0));
        }
    }
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "no temporary file is left: {names:?}");
}

#[test]
fn writing_checks_before_it_touches_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let geometry = Geometry::new([2, 2, 2], [1.0; 3]);
    let wrong_shape = write_labels(dir.path().join("a.nii"), &Array3::zeros((2, 2, 3)).view(), &geometry);
    assert!(matches!(wrong_shape, Err(Error::Shape { .. })));
    let labels = Array3::zeros((2, 2, 2));
    assert!(write_labels(dir.path().join("a.png"), &labels.view(), &geometry).is_err());
    assert!(write_labels(dir.path().join("none/a.nii"), &labels.view(), &geometry).is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

proptest! {
    #[test]
    fn images_survive_the_disk(shape in (1usize..3, 1usize..6, 1usize..6, 1usize..6), seed in 0u32..1000, gzip: bool) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(if gzip { "a.nii.gz" } else { "a.nii" });
        let mut n = seed;
        let image = Array4::from_shape_simple_fn(shape, || { n = n.wrapping_mul(747_796_405).wrapping_add(1); n as f32 });
        let geometry = Geometry::new([shape.1, shape.2, shape.3], [2.5, 0.25, 1.0]);
        write_image(&path, &image.view(), &geometry).unwrap();
        let back = read_image(&path).unwrap();
        prop_assert_eq!(back.data, image);
        prop_assert_eq!(back.geometry.spacing_mm, geometry.spacing_mm);
    }

    #[test]
    fn arbitrary_headers_never_panic(mut noise in prop::collection::vec(any::<u8>(), 360), keep in 0usize..3) {
        let good = raw(false, &[2, 2, 2], 2, (1.0, 0.0), &[]);
        // From pure noise to a header of which only some fields are noise.
        match keep {
            1 => { noise[0..4].copy_from_slice(&good[0..4]); noise[344..348].copy_from_slice(&good[344..348]); }
            2 => { let dims: Vec<u8> = noise[40..56].to_vec(); noise[..352].copy_from_slice(&good); noise[40..56].copy_from_slice(&dims); }
            _ => {}
        }
        let _ = read_bytes("noise.nii", &noise);
        let _ = read_bytes("noise.nii.gz", &gz(&noise));
    }
}

/// The fuzz targets' own seeds are sound; what they found is refused in one line.
#[test]
fn what_fuzzing_found_is_refused_and_its_seeds_are_read() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let files = |folder: &str| {
        let entries = fs::read_dir(fuzz.join(folder)).unwrap();
        let files = entries.map(|entry| entry.unwrap().path());
        files.map(|path| (path.clone(), image_from_bytes(&fs::read(&path).unwrap(), &path))).collect::<Vec<_>>()
    };
    for (path, image) in files("crashes/nifti") {
        let error = image.unwrap_err().to_string();
        assert!(!error.contains('\n'), "{}: {error}", path.display());
    }
    let (absurd, sound): (Vec<_>, Vec<_>) =
        files("seeds/nifti").into_iter().partition(|(path, _)| path.to_string_lossy().contains("claims"));
    for (path, image) in sound {
        assert!(image.is_ok(), "{}: {image:?}", path.display());
    }
    assert_eq!(absurd.len(), 2, "compressed and not");
    for (_, image) in absurd {
        let error = image.unwrap_err().to_string();
        assert!(error.contains("the header claims 2199023"), "{error}");
    }
}

/// A damaged byte anywhere in a compressed file is noticed, also where the voxels still unpack.
#[test]
fn compressed_files_are_read_to_their_checksum() {
    let file = raw(false, &[20, 30, 10], 2, (1.0, 0.0), &[7; 6000]);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
    encoder.write_all(&file).unwrap();
    let stored = encoder.finish().unwrap();
    read_bytes("a.nii.gz", &stored).unwrap();
    let mut changed = stored.clone();
    changed[3000] ^= 0x55;
    let message = read_bytes("a.nii.gz", &changed).unwrap_err().to_string();
    assert!(message.contains("a.nii.gz: damaged (") && message.contains("checksum"), "{message}");
    for cut in 1..9 {
        assert!(read_bytes("a.nii.gz", &stored[..stored.len() - cut]).is_err(), "{cut} bytes short");
    }
    // Several members, and zeros behind them, as gzip and tapes leave them.
    let members = [gz(&file[..1000]), gz(&file[1000..]), vec![0; 700]].concat();
    assert_eq!(read_bytes("a.nii.gz", &members).unwrap().data, read_bytes("a.nii.gz", &stored).unwrap().data);
    assert!(read_bytes("a.nii.gz", &[gz(&file), b"junk".to_vec()].concat()).is_err());
    let bomb = gz(&[file, vec![0; 70 << 20]].concat());
    assert!(read_bytes("a.nii.gz", &bomb).unwrap_err().to_string().contains("more than 64 MB follow"));
}

#[test]
fn a_slope_with_an_intercept_that_is_no_number_is_refused() {
    let message = read_bytes("a.nii", &raw(false, &[1, 1, 1], 2, (0.01, f32::NAN), &[5])).unwrap_err().to_string();
    assert!(message.contains("a.nii: unusable header: slope 0.0099") && message.contains("intercept NaN"), "{message}");
    for slope in [0.0, f32::NAN, f32::INFINITY] {
        let volume = read_bytes("a.nii", &raw(false, &[1, 1, 1], 2, (slope, f32::NAN), &[5])).unwrap();
        assert_eq!(volume.data[[0, 0, 0, 0]], 5.0, "not scaled");
    }
}

/// A header that would not describe its voxels is not written.
#[test]
fn volumes_that_no_header_describes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.nii");
    let write = |shape: [usize; 3], geometry: &Geometry| {
        write_image(&path, &Array4::zeros((1, shape[0], shape[1], shape[2])).view(), geometry).unwrap_err().to_string()
    };
    assert!(write([1, 1, 40_000], &Geometry::new([1, 1, 40_000], [1.0; 3])).contains("32767"));
    let mut resampled = Geometry::new([2, 2, 2], [1.5, 1.0, 1.0]);
    resampled.spacing_mm = [1.0; 3];
    assert!(write([2, 2, 2], &resampled).contains("differs from the header's"));
    let (labels, geometry) = (Array3::zeros((2, 2, 2)), Geometry::new([2, 2, 2], [1.5, 1.0, 0.1]));
    let commented =
        |comment| write_commented_labels(folder.path().join("a.nii.gz"), &labels.view(), &geometry, comment);
    assert!(commented(Some("a\0b")).unwrap_err().to_string().contains("NUL"));
    commented(Some("a")).unwrap();
    let long = "c".repeat(65_536);
    assert!(commented(Some(&long)).unwrap_err().to_string().contains("a comment of 65536 bytes"));
    commented(Some(&long[1..])).unwrap();
    assert_eq!(read_comment(folder.path().join("a.nii.gz")).unwrap().as_deref(), Some(&long[1..]));
    for mm in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(write([2, 2, 2], &Geometry::new([2, 2, 2], [1.0, mm, 1.0])).contains("must be a positive number"));
    }
    let nan = Array4::from_elem((1, 2, 2, 2), f32::NAN);
    assert!(matches!(write_image(&path, &nan.view(), &geometry), Err(Error::NotFinite { count: 8, .. })));
    let wrong_twice = write_labels(folder.path().join("a.png"), &Array3::zeros((2, 2, 3)).view(), &geometry);
    assert!(matches!(wrong_twice, Err(Error::Nifti { problem: NiftiProblem::Extension, .. })));
}
