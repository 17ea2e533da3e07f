use std::collections::BTreeSet;

use super::*;
use crate::codes::SegmentCodes;
use crate::segmentation::{Description, encode, is_own};

const CT: &str = "1.2.840.10008.5.1.4.1.1.2";

/// Attributes of plane `k` of a CT of 2 rows and 3 columns, 2.5 mm apart, and its file.
fn plane(k: usize) -> DataSet {
    DataSet::default()
        .with(tags::SOP_CLASS, CT)
        .with(tags::SOP_INSTANCE, &format!("1.2.{k}"))
        .with(tags::STUDY_UID, "1.3")
        .with(tags::SERIES_UID, "1.4.567")
        .with(tags::FRAME_OF_REFERENCE, "1.5")
        .with(tags::PATIENT_NAME, "A^B")
        .with_decimals(tags::POSITION, &[10.0, -20.0, 2.5 * k as f64 - 5.0])
        .with(tags::ORIENTATION, "1\\0\\0\\0\\1\\0")
        .with_decimals(tags::PIXEL_SPACING, &[0.5, 0.75])
        .with_decimals(tags::SLOPE, &[2.0])
        .with_decimals(tags::INTERCEPT, &[-1000.0 + k as f64])
        .with_shorts(tags::SAMPLES, &[1])
        .with_shorts(tags::ROWS, &[2])
        .with_shorts(tags::COLUMNS, &[3])
        .with_shorts(tags::BITS_ALLOCATED, &[16])
        .with_shorts(tags::BITS_STORED, &[16])
        .with_shorts(tags::HIGH_BIT, &[15])
        .with_shorts(tags::REPRESENTATION, &[1])
        .with_shorts(tags::PIXEL_DATA, &[0, 1, 2, 3, 4, 0xffff])
}

fn write(path: &Path, set: &DataSet) {
    let mut file = [&[0; 128][..], b"DICM"].concat();
    DataSet::default().with(tags::TRANSFER_SYNTAX, "1.2.840.10008.1.2.1").write(&mut file);
    set.write(&mut file);
    fs::write(path, file).unwrap();
}

/// Writes four planes, each changed, under names in another order, and opens them.
fn open(change: impl Fn(usize, DataSet) -> DataSet) -> Result<Series> {
    let dir = tempfile::tempdir().unwrap();
    for k in 0..4 {
        write(&dir.path().join(["c", "a", "d", "b"][k]), &change(k, plane(k)));
    }
    fs::write(dir.path().join("LICENSE"), "no image").unwrap();
    let series = Series::open(dir.path(), None)?;
    assert_eq!(series.skipped(), [dir.path().join("LICENSE")]);
    // While the folder is there.
    series.voxels().map(|voxels| assert_eq!(voxels.shape(), series.shape()))?;
    Ok(series)
}

fn refusal(change: impl Fn(usize, DataSet) -> DataSet) -> String {
    open(change).unwrap_err().to_string()
}

#[test]
fn planes_are_sorted_by_place_and_scaled() {
    let dir = tempfile::tempdir().unwrap();
    for k in 0..4 {
        write(&dir.path().join(["c", "a", "d", "b"][k]), &plane(k));
    }
    let series = Series::open(dir.path(), Some("567")).unwrap();
    assert_eq!(series.files(), ["c", "a", "d", "b"].map(|name| dir.path().join(name)));
    assert_eq!(series.shape(), [4, 2, 3]);
    assert_eq!(series.affine(), [[-0.75, 0.0, 0.0, -10.0], [0.0, -0.5, 0.0, 20.0], [0.0, 0.0, 2.5, -5.0]]);
    let voxels = series.voxels().unwrap();
    assert_eq!(voxels[[0, 0, 2]], -996.0);
    assert_eq!(voxels[[3, 1, 2]], -999.0);
    let other = Series::open(dir.path(), Some("8")).unwrap_err().to_string();
    assert!(other.contains("1 series: ...1.4.567 ("), "{other}");
}

#[test]
fn what_is_no_volume_is_refused() {
    open(|_, set| set).unwrap();
    let moved = |at: usize, by: [f64; 3]| {
        refusal(move |k, set| {
            let [x, y, z] = set.decimals(tags::POSITION).unwrap();
            let by = if k >= at { by } else { [0.0; 3] };
            set.with_decimals(tags::POSITION, &[x + by[0], y + by[1], z + by[2]])
        })
    };
    assert!(moved(2, [0.0, 0.0, 2.5]).contains("lies 5.00 mm behind"));
    assert!(moved(3, [0.0, 0.0, -2.5]).contains("lies where"));
    assert!(moved(3, [0.2, 0.0, 0.0]).contains("lies 0.2 mm beside the axis"));
    let cases = [
        (
            refusal(|k, set| if k == 1 { set.with(tags::ORIENTATION, "0\\1\\0\\0\\0\\1") } else { set }),
            "a volume has one",
        ),
        (refusal(|_, set| set.with(tags::ORIENTATION, "1\\0\\0\\1\\0\\0")), "two perpendicular unit vectors"),
        (refusal(|_, set| set.with(tags::PIXEL_SPACING, "0.5\\0")), "two lengths above 0"),
        (refusal(|k, set| if k == 1 { set.with_shorts(tags::ROWS, &[1]) } else { set }), "rows and columns"),
        (refusal(|k, set| if k == 1 { set.with_shorts(tags::ROWS, &[3]) } else { set }), "12 bytes of pixels"),
        (
            refusal(|_, set| set.with(tags::SLOPE, "0")),
            "is 0, RescaleIntercept -999; expected two numbers, a slope not 0",
        ),
        (refusal(|_, set| set.with(tags::SLOPE, "")), "RescaleSlope is missing or no number, RescaleIntercept -999;"),
        (refusal(|_, set| set.with(tags::SOP_INSTANCE, "1.2.3")), "(0008,0018) SOPInstanceUID is 1.2.3, as in "),
        (refusal(|_, set| set.with(tags::SLOPE, "1e300")), "makes infinite intensities"),
        (refusal(|_, set| set.with_shorts(tags::HIGH_BIT, &[14])), "(0028,0102) HighBit is 14"),
        (
            refusal(|k, set| if k == 2 { set.with(tags::SOP_CLASS, "1.2.840.10008.5.1.4.1.1.4") } else { set }),
            "SOPClassUID",
        ),
        (
            refusal(|k, set| {
                let mr = set.with(tags::SOP_CLASS, "1.2.840.10008.5.1.4.1.1.4");
                if k == 1 { mr.with(tags::SLOPE, "").with(tags::INTERCEPT, "") } else { mr }
            }),
            "is missing, but other images of the series have one",
        ),
    ];
    for (message, expected) in cases {
        assert!(message.contains(expected) && !message.contains('\n'), "{message}: {expected}");
    }
}

#[test]
fn planes_stand_where_equal_distances_have_them() {
    let stack = |upper_mm: f64, orientation: &str| {
        let dir = tempfile::tempdir().unwrap();
        for k in 0..40 {
            let z = k.min(20) as f64 + upper_mm * (k as f64 - 20.0).max(0.0);
            let set = plane(k).with_decimals(tags::POSITION, &[0.0, 0.0, z]).with(tags::ORIENTATION, orientation);
            write(&dir.path().join(k.to_string()), &set);
        }
        Series::open(dir.path(), None)
    };
    // Neighbours are a tenth apart at most, the plane between both halves would lie most of a millimetre off.
    let message = stack(1.09, "1\\0\\0\\0\\1\\0").unwrap_err().to_string();
    assert!(message.contains("mm from where planes at equal distances"), "{message}");
    stack(1.01, "1\\0\\0\\0\\1\\0").unwrap();
    // Directions rounded to three digits lean, a tilted gantry leans more.
    stack(1.0, "1\\0\\0.0009\\0\\1\\0.0009").unwrap();
    assert!(stack(1.0, "1\\0\\0.01\\0\\1\\0").unwrap_err().to_string().contains("tilted gantry"));
}

#[test]
fn a_series_is_named_by_its_whole_identifier_or_its_end() {
    let dir = tempfile::tempdir().unwrap();
    for (i, uid) in ["1.2.34", "9.1.2.34", "9.é34567890123"].into_iter().enumerate() {
        for k in 0..4 {
            write(&dir.path().join(format!("{i}_{k}")), &plane(k).with(tags::SERIES_UID, uid));
        }
    }
    let first = |uid| Series::open(dir.path(), Some(uid)).map(|series| series.files().swap_remove(0));
    assert!(first("1.2.34").unwrap().ends_with("0_0") && first("9.1.2.34").unwrap().ends_with("1_0"));
    assert!(first("123").unwrap().ends_with("2_0"));
    assert!(first("34").unwrap_err().to_string().contains("3 series: ...1.2.34 ("));
}

#[test]
fn a_segmentation_holds_what_it_should_and_is_read_again() {
    let series =
        open(|k, set| set.with(tags::SERIES_DESCRIPTION, "a secret").with_longs(tags::META_LENGTH, &[k as u32]))
            .unwrap();
    let labels = Array3::from_shape_fn([4, 2, 3], |(z, y, _)| if z == 2 { y as u16 + 1 } else { 0 });
    let description = |origin| Description {
        segments: vec![("liver", SegmentCodes::of("", "liver")), ("blob", SegmentCodes::of("", "blob"))],
        algorithm: "a test",
        version: "1",
        origin,
    };
    let bytes = encode(&series, &labels.view(), &description("x")).unwrap();
    assert!(is_own(&bytes[..1 << 10]) && bytes == encode(&series, &labels.view(), &description("x")).unwrap());
    assert!(!bytes.windows(8).any(|window| window == b"a secret"));
    let dir = tempfile::tempdir().unwrap();
    let read = |bytes: &[u8]| {
        let path = dir.path().join("a.seg.dcm");
        fs::write(&path, bytes).unwrap();
        read_header(&path).unwrap().unwrap().data_set
    };
    let set = read(&bytes);
    assert_eq!(set.text(tags::PATIENT_NAME).as_deref(), Some("A^B"));
    assert_eq!(set.text(tags::NUM_FRAMES).as_deref(), Some("2"));
    assert_eq!(set.items(tags::SEGMENTS).len(), 2);
    let frame = &set.items(tags::FRAME_GROUPS)[1];
    let source = &frame.items(tags::DERIVATION_IMAGES)[0].items(tags::SOURCE_IMAGES)[0];
    assert_eq!(source.text(tags::REFERENCED_SOP_INSTANCE).as_deref(), Some("1.2.2"));
    assert_eq!(frame.items(tags::PLANE_POSITION)[0].decimals(tags::POSITION), Some([10.0, -20.0, 0.0]));
    // Another label map, another origin, or that of other images is another instance.
    let other = labels.mapv(|label| label.min(1));
    let of_others = open(|k, set| set.with(tags::SOP_INSTANCE, &format!("1.3.{k}"))).unwrap();
    let others = [
        encode(&series, &other.view(), &description("x")),
        encode(&series, &labels.view(), &description("y")),
        encode(&of_others, &labels.view(), &description("x")),
    ];
    let instances: BTreeSet<_> =
        others.map(Result::unwrap).iter().chain([&bytes]).map(|bytes| read(bytes).text(tags::SOP_INSTANCE)).collect();
    assert_eq!(instances.len(), 4);

    let wrong = encode(&series, &labels.mapv(|label| 3 * label).view(), &description("x")).unwrap_err();
    assert_eq!(wrong.to_string(), "label map: label 6, but 2 segments");
    encode(&series, &Array3::zeros([4, 3, 2]).view(), &description("x")).unwrap_err();
}
