//! Label maps as files of the class Segmentation Storage.

use md5::{Digest, Md5};
use ndarray::{ArrayView2, ArrayView3, Axis};

use crate::codes::{Code, SegmentCodes};
use crate::data_set::{DataSet, Value};
use crate::error::{Error, Result};
use crate::image::{Frame, Image};
use crate::series::Series;
use crate::tags::{self, Tag};

/// Class of segmentations.
const SEGMENTATION: &str = "1.2.840.10008.5.1.4.1.1.66.4";
/// Transfer syntax that files are written in: explicit VR little endian.
const EXPLICIT: &str = "1.2.840.10008.1.2.1";
/// Identifier of this implementation, from a random UUID.
const IMPLEMENTATION: &str = "2.25.143362983554871575227984693401799147250";
/// Beginning of the implementation's name, by which its files are recognised.
const IMPLEMENTATION_NAME: &str = "ADW";

/// Attributes of the patient and of the study, which are the source's, empty where it has none.
const COPIED: [Tag; 10] = [
    tags::PATIENT_NAME,
    tags::PATIENT_ID,
    tags::BIRTH_DATE,
    tags::PATIENT_SEX,
    tags::STUDY_UID,
    tags::STUDY_DATE,
    tags::STUDY_TIME,
    tags::REFERRING_PHYSICIAN,
    tags::STUDY_ID,
    tags::ACCESSION_NUMBER,
];

/// Attributes that are copied where the source has them.
const COPIED_IF_PRESENT: [Tag; 7] = [
    tags::CHARACTER_SET,
    tags::TIMEZONE,
    tags::IDENTITY_REMOVED,
    tags::DEIDENTIFICATION,
    tags::FRAME_OF_REFERENCE,
    tags::LOSSY_RATIO,
    tags::LOSSY_METHOD,
];

/// Origin and meaning of a label map.
#[derive(Clone, Debug)]
pub struct Description<'a> {
    /// Name and codes of each label but the background, in the order of their values 1, 2, ...
    pub segments: Vec<(&'a str, SegmentCodes)>,
    /// Name of the algorithm.
    pub algorithm: &'a str,
    /// Version of the algorithm.
    pub version: &'a str,
    /// Digest of what the label map was made with, such as model and settings. The file's identifiers come from it, from the
    /// identifiers of the images and from the labels, so that the same label map is the same file.
    pub origin: &'a str,
}

/// Most bytes of the pixels of a file, whose length has 32 bits and is even.
const MAX_VALUE_BYTES: usize = u32::MAX as usize - 1;

/// Encodes a label map on the grid of a series as a file: a binary segment for each label, and a frame for each plane where it
/// occurs.
///
/// # Errors
/// [`Error::Labels`] if the map has another shape than the series, a label without a segment, or more labelled planes than a file
/// holds (4 GiB, a bit per pixel).
pub fn encode(series: &Series, labels: &ArrayView3<u16>, description: &Description<'_>) -> Result<Vec<u8>> {
    if labels.shape() != series.shape() {
        let problem = format!("shape {:?}, but the series has {:?}", labels.shape(), series.shape());
        return Err(Error::Labels { problem });
    }
    let num_segments = description.segments.len();
    let largest = labels.iter().copied().max().unwrap_or(0);
    if usize::from(largest) > num_segments || num_segments == 0 {
        return Err(Error::Labels { problem: format!("label {largest}, but {num_segments} segments") });
    }
    let frames = frames(labels, num_segments);
    let pixels = labels.len_of(Axis(1)) * labels.len_of(Axis(2));
    if (frames.len() * pixels).div_ceil(8) > MAX_VALUE_BYTES {
        return Err(Error::Labels { problem: format!("{} labelled planes, more than a file holds", frames.len()) });
    }
    let mut bits = BitPacker::default();
    for &(segment, plane) in &frames {
        bits.push(&labels.index_axis(Axis(0), plane), segment);
    }
    let bytes = bits.bytes;
    let images = series.images.iter().map(|image| image.sop_instance.as_str()).collect::<Vec<_>>().join(" ");
    let uid = |purpose: &str, content: &[u8]| uid(&[purpose, &format!("{description:?}"), &images], content);
    let instance = uid("instance", &bytes);
    let (algorithm, version) = (long_string(description.algorithm, false), long_string(description.version, false));
    let description = &Description { algorithm: &algorithm, version: &version, ..description.clone() };
    let set = general(series, description, &instance, &uid("series", &[]));
    let set = with_segments(set, description);
    let mut set = with_frames(set, series, &frames, &uid("dimensions", &[]))
        .with_shorts(tags::ROWS, &[labels.len_of(Axis(1)) as u16])
        .with_shorts(tags::COLUMNS, &[labels.len_of(Axis(2)) as u16]);
    set.insert(tags::PIXEL_DATA, Value::Bytes(bytes));

    let mut meta = DataSet::default()
        .with(tags::META_SOP_CLASS, SEGMENTATION)
        .with(tags::META_SOP_INSTANCE, &instance)
        .with(tags::TRANSFER_SYNTAX, EXPLICIT)
        .with(tags::IMPLEMENTATION_CLASS, IMPLEMENTATION)
        .with(tags::IMPLEMENTATION_VERSION, &format!("{IMPLEMENTATION_NAME}_{}", env!("CARGO_PKG_VERSION")));
    meta.insert(tags::META_VERSION, Value::Bytes(vec![0, 1]));
    let mut group = Vec::new();
    meta.write(&mut group);
    let mut file = [&[0; 128][..], b"DICM"].concat();
    DataSet::default().with_longs(tags::META_LENGTH, &[group.len() as u32]).write(&mut file);
    file.extend(group);
    set.write(&mut file);
    Ok(file)
}

/// Returns true if the beginning of a file is that of one which [`encode`] has made.
pub fn is_own(start: &[u8]) -> bool {
    let name = format!("{IMPLEMENTATION_NAME}_");
    let has = |text: &str| start.windows(text.len()).any(|window| window == text.as_bytes());
    start.get(128..132) == Some(b"DICM") && has(IMPLEMENTATION) && has(&name)
}

/// Segments and planes that have frames: those where the label occurs, or the first plane alone if there is no label at all, since
/// a file has at least one frame.
fn frames(labels: &ArrayView3<u16>, num_segments: usize) -> Vec<(u16, usize)> {
    let mut occurs = vec![vec![false; labels.len_of(Axis(0))]; num_segments + 1];
    for (plane, labels) in labels.outer_iter().enumerate() {
        labels.iter().for_each(|&label| occurs[usize::from(label)][plane] = true);
    }
    let planes_of = |(segment, planes): (usize, &Vec<bool>)| {
        let planes: Vec<_> = (0..planes.len()).filter(|&plane| planes[plane]).collect();
        planes.into_iter().map(move |plane| (segment as u16, plane))
    };
    let frames: Vec<_> = occurs.iter().enumerate().skip(1).flat_map(planes_of).collect();
    if frames.is_empty() { vec![(1, 0)] } else { frames }
}

/// Bits of frames one after the other, the first in the lowest bit of a byte.
#[derive(Default)]
struct BitPacker {
    bytes: Vec<u8>,
    num_bits: usize,
}

impl BitPacker {
    fn push(&mut self, plane: &ArrayView2<u16>, segment: u16) {
        self.bytes.resize((self.num_bits + plane.len()).div_ceil(8), 0);
        for &label in plane {
            self.bytes[self.num_bits / 8] |= u8::from(label == segment) << (self.num_bits % 8);
            self.num_bits += 1;
        }
    }
}

/// Identifier from a digest of texts and bytes, as of a name-based UUID.
fn uid(texts: &[&str], bytes: &[u8]) -> String {
    let mut digest = Md5::new();
    for part in texts.iter().map(|text| text.as_bytes()).chain([bytes]) {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    let mut uuid: [u8; 16] = digest.finalize().into();
    // Version 3 and the variant of RFC 9562.
    uuid[6] = uuid[6] & 0x0f | 0x30;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    format!("2.25.{}", u128::from_be_bytes(uuid))
}

/// Attributes of patient, study, series, equipment and of the image as a whole.
fn general(series: &Series, description: &Description<'_>, instance: &str, series_uid: &str) -> DataSet {
    let source = &series.attributes;
    let mut set = DataSet::default();
    for tag in COPIED {
        set.insert(tag, source.get(tag).cloned().unwrap_or(Value::Bytes(Vec::new())));
    }
    for tag in COPIED_IF_PRESENT {
        if let Some(value) = source.get(tag) {
            set.insert(tag, value.clone());
        }
    }
    let first =
        |tags: [Tag; 3], otherwise: &str| tags.iter().find_map(|&tag| source.text(tag)).unwrap_or(otherwise.to_owned());
    let is_lossy = source.text(tags::LOSSY).is_some_and(|text| text == "01");
    let number: u64 = source.text(tags::SERIES_NUMBER).and_then(|text| text.parse().ok()).unwrap_or(0);
    set.with(tags::SOP_CLASS, SEGMENTATION)
        .with(tags::SOP_INSTANCE, instance)
        .with(tags::SERIES_UID, series_uid)
        .with(tags::SERIES_NUMBER, &(number % 1_000_000 * 100 + 1).to_string())
        .with(tags::SERIES_DESCRIPTION, "Segmentation")
        .with(tags::MODALITY, "SEG")
        .with(tags::INSTANCE_NUMBER, "1")
        .with(tags::IMAGE_TYPE, "DERIVED\\PRIMARY")
        .with(tags::CONTENT_DATE, &first([tags::CONTENT_DATE, tags::SERIES_DATE, tags::STUDY_DATE], "19000101"))
        .with(tags::CONTENT_TIME, &first([tags::CONTENT_TIME, tags::SERIES_TIME, tags::STUDY_TIME], "000000"))
        .with(tags::REFERENCE_INDICATOR, "")
        .with(tags::MANUFACTURER, "adw")
        .with(tags::MANUFACTURER_MODEL, description.algorithm)
        .with(tags::SERIAL_NUMBER, "0")
        .with(tags::SOFTWARE_VERSIONS, description.version)
        .with(tags::CONTENT_LABEL, "SEGMENTATION")
        .with(tags::CONTENT_DESCRIPTION, "")
        .with(tags::CONTENT_CREATOR, "")
        .with(tags::LOSSY, if is_lossy { "01" } else { "00" })
        .with(tags::PHOTOMETRIC, "MONOCHROME2")
        .with(tags::SEGMENTATION_TYPE, "BINARY")
        .with(tags::SEGMENTS_OVERLAP, "NO")
        .with_shorts(tags::SAMPLES, &[1])
        .with_shorts(tags::BITS_ALLOCATED, &[1])
        .with_shorts(tags::BITS_STORED, &[1])
        .with_shorts(tags::HIGH_BIT, &[0])
        .with_shorts(tags::REPRESENTATION, &[0])
}

/// Adds what the segments are, and the program that made them.
fn with_segments(set: DataSet, description: &Description<'_>) -> DataSet {
    let is_utf8 = set.text(tags::CHARACTER_SET).is_none_or(|set| set == "ISO_IR 192");
    let algorithm = DataSet::default()
        .with_items(tags::ALGORITHM_FAMILY, vec![Code::new("123110", "DCM", "Artificial Intelligence").item()])
        .with(tags::ALGORITHM_NAME, description.algorithm)
        .with(tags::ALGORITHM_VERSION, description.version);
    let segment = |(at, (name, codes)): (usize, &(&str, SegmentCodes))| {
        let mut property = codes.property.item();
        if let Some(modifier) = &codes.modifier {
            property = property.with_items(tags::TYPE_MODIFIER, vec![modifier.item()]);
        }
        let item = DataSet::default()
            .with_shorts(tags::SEGMENT_NUMBER, &[at as u16 + 1])
            .with(tags::SEGMENT_LABEL, &long_string(name, is_utf8))
            .with(tags::ALGORITHM_TYPE, "AUTOMATIC")
            .with(tags::SEGMENT_ALGORITHM, description.algorithm)
            .with_items(tags::ALGORITHM_IDENTIFICATION, vec![algorithm.clone()])
            .with_items(tags::CATEGORY, vec![codes.category.item()])
            .with_items(tags::PROPERTY_TYPE, vec![property])
            .with_shorts(tags::DISPLAY_COLOUR, &COLOURS[at % COLOURS.len()]);
        match &codes.region {
            Some(region) => item.with_items(tags::ANATOMIC_REGION, vec![region.item()]),
            None => item,
        }
    };
    let segments = description.segments.iter().enumerate().map(segment).collect();
    let set = set.with_items(tags::SEGMENTS, segments);
    if set.get(tags::CHARACTER_SET).is_some() { set } else { set.with(tags::CHARACTER_SET, "ISO_IR 192") }
}

/// Lightness and chromaticity of segments, in the units of the standard: red, green, blue, yellow, magenta, cyan, orange, violet.
const COLOURS: [[u16; 3]; 8] = [
    [34729, 49596, 45013],
    [42652, 19835, 43802],
    [31904, 37305, 15827],
    [57050, 33206, 53602],
    [37246, 52232, 22391],
    [48515, 24348, 27410],
    [44502, 42856, 49236],
    [28065, 46670, 17896],
];

/// Text of at most 64 characters, without back-slashes, and in ASCII if it stands among texts of other encodings.
fn long_string(text: &str, is_utf8: bool) -> String {
    let fits = |c: char| !c.is_control() && c != '\\' && (is_utf8 || c.is_ascii());
    text.chars().take(64).map(|c| if fits(c) { c } else { '_' }).collect()
}

/// Adds the places of the frames and the images that they belong to.
fn with_frames(set: DataSet, series: &Series, frames: &[(u16, usize)], organization: &str) -> DataSet {
    let Frame { orientation, spacing_mm, .. } = series.frame(0);
    let thickness = series.attributes.decimals(tags::SLICE_THICKNESS).filter(|&[mm]: &[f64; 1]| mm > 0.0);
    let measures = DataSet::default()
        .with_decimals(tags::SLICE_THICKNESS, &thickness.unwrap_or([series.slice_spacing_mm]))
        .with_decimals(tags::SLICE_SPACING, &[series.slice_spacing_mm])
        .with_decimals(tags::PIXEL_SPACING, spacing_mm);
    let shared = DataSet::default()
        .with_items(tags::PIXEL_MEASURES, vec![measures])
        .with_items(tags::PLANE_ORIENTATION, vec![DataSet::default().with_decimals(tags::ORIENTATION, orientation)]);

    let is_used = |plane: &usize| frames.iter().any(|(_, used)| used == plane);
    let used: Vec<usize> = (0..series.planes.len()).filter(is_used).collect();
    let groups = frames.iter().map(|&(segment, plane)| {
        let place = used.binary_search(&plane).expect("planes of frames are listed") as u32 + 1;
        let content = DataSet::default().with_longs(tags::INDEX_VALUES, &[u32::from(segment), place]);
        let position = DataSet::default().with_decimals(tags::POSITION, &series.frame(plane).position);
        DataSet::default()
            .with_items(tags::FRAME_CONTENT, vec![content])
            .with_items(tags::PLANE_POSITION, vec![position])
            .with_items(tags::DERIVATION_IMAGES, vec![derivation(series, plane)])
            .with_items(
                tags::SEGMENT_IDENTIFICATION,
                vec![DataSet::default().with_shorts(tags::REFERENCED_SEGMENT, &[segment])],
            )
    });
    let groups = groups.collect();
    let dimension = |pointer, group, label: &str| {
        DataSet::default()
            .with(tags::ORGANIZATION_UID, organization)
            .with_pointer(tags::INDEX_POINTER, pointer)
            .with_pointer(tags::GROUP_POINTER, group)
            .with(tags::DIMENSION_LABEL, label)
    };
    let dimensions = vec![
        dimension(tags::REFERENCED_SEGMENT, tags::SEGMENT_IDENTIFICATION, "Segment"),
        dimension(tags::POSITION, tags::PLANE_POSITION, "Plane"),
    ];
    let mut instances: Vec<(&str, &str)> =
        used.iter().map(|&plane| reference(series, plane)).map(|(image, _)| ids(image)).collect();
    instances.dedup();
    let instances = instances.into_iter().map(|(class, instance)| {
        DataSet::default().with(tags::REFERENCED_SOP_CLASS, class).with(tags::REFERENCED_SOP_INSTANCE, instance)
    });
    let referenced = DataSet::default()
        .with(tags::SERIES_UID, &series.attributes.text(tags::SERIES_UID).unwrap_or_default())
        .with_items(tags::REFERENCED_INSTANCES, instances.collect());
    set.with(tags::NUM_FRAMES, &frames.len().to_string())
        .with_items(tags::SHARED_GROUPS, vec![shared])
        .with_items(tags::FRAME_GROUPS, groups)
        .with_items(tags::ORGANIZATIONS, vec![DataSet::default().with(tags::ORGANIZATION_UID, organization)])
        .with_items(tags::DIMENSION_INDICES, dimensions)
        .with_items(tags::REFERENCED_SERIES, vec![referenced])
}

/// Image of a plane, and the number of its frame if it is one of several.
fn reference(series: &Series, plane: usize) -> (&Image, Option<usize>) {
    let (image, frame) = series.planes[plane];
    let image = &series.images[image];
    (image, image.is_multi_frame.then_some(frame + 1))
}

fn ids(image: &Image) -> (&str, &str) {
    (&image.sop_class, &image.sop_instance)
}

/// Item that says which image a frame was segmented from.
fn derivation(series: &Series, plane: usize) -> DataSet {
    let (image, frame) = reference(series, plane);
    let (class, instance) = ids(image);
    let purpose = Code::new("121322", "DCM", "Source image for image processing operation");
    let mut source = DataSet::default()
        .with(tags::REFERENCED_SOP_CLASS, class)
        .with(tags::REFERENCED_SOP_INSTANCE, instance)
        .with(tags::LOCATIONS_PRESERVED, "YES")
        .with_items(tags::PURPOSE, vec![purpose.item()]);
    if let Some(frame) = frame {
        source = source.with(tags::REFERENCED_FRAME, &frame.to_string());
    }
    DataSet::default()
        .with_items(tags::SOURCE_IMAGES, vec![source])
        .with_items(tags::DERIVATION_CODE, vec![Code::new("113076", "DCM", "Segmentation").item()])
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::*;

    #[test]
    fn bits_of_frames_follow_each_other_without_gaps() {
        let labels = Array3::from_shape_vec([2, 1, 3], vec![1, 2, 1, 0, 1, 1]).unwrap();
        let frames = frames(&labels.view(), 3);
        assert_eq!(frames, [(1, 0), (1, 1), (2, 0)], "label 3 does not occur");
        let mut bits = BitPacker::default();
        for (segment, plane) in frames {
            bits.push(&labels.index_axis(Axis(0), plane), segment);
        }
        assert_eq!(bits.bytes, [0b1011_0101, 0b0]);
        assert_eq!(super::frames(&Array3::zeros([2, 1, 3]).view(), 3), [(1, 0)], "a file has a frame");
    }

    #[test]
    fn identifiers_are_those_of_uuids_and_depend_on_all_parts() {
        let found = uid(&["instance", "a"], b"x");
        assert_eq!(found, uid(&["instance", "a"], b"x"));
        let uuid: u128 = found.strip_prefix("2.25.").unwrap().parse().unwrap();
        assert_eq!((uuid >> 76 & 0xf, uuid >> 62 & 0x3), (3, 2));
        for other in [uid(&["series", "a"], b"x"), uid(&["instance", "b"], b"x"), uid(&["instance", "a"], b"y")] {
            assert_ne!(found, other);
        }
    }

    #[test]
    fn values_of_a_source_that_are_longer_than_their_length_can_say_are_cut() {
        let mut bytes = Vec::new();
        DataSet::default().with(tags::PATIENT_NAME, &"x".repeat(70_000)).write(&mut bytes);
        assert_eq!((bytes.len(), &bytes[6..8]), (8 + 65_534, &65_534u16.to_le_bytes()[..]));
    }

    #[test]
    fn names_of_segments_fit_into_their_attribute() {
        assert_eq!(long_string("Tumör\\a\n", true), "Tumör_a_");
        assert_eq!(long_string("Tumör", false), "Tum_r");
        assert_eq!(long_string(&"x".repeat(70), true).len(), 64);
    }
}
