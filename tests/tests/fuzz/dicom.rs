//! Files of DICOM: made by hand, mutated, read as a series, and segmented.

use std::fs;

use adw_dicom::{Description, SegmentCodes, Series, encode, is_own};

use super::kinds::{Answer, CASE_MEMORY, Examples};
use super::mutate::{self, Random};

/// Encoded elements, one after the other.
#[derive(Default)]
struct Elements(Vec<u8>);

impl Elements {
    fn add(mut self, tag: u32, vr: &str, value: &[u8]) -> Self {
        let value = if value.len() % 2 == 1 { [value, b" "].concat() } else { value.to_vec() };
        self.0.extend(((tag >> 16) as u16).to_le_bytes());
        self.0.extend((tag as u16).to_le_bytes());
        self.0.extend(vr.as_bytes());
        if matches!(vr, "SQ" | "OB" | "OW") {
            self.0.extend([0, 0]);
            self.0.extend((value.len() as u32).to_le_bytes());
        } else {
            self.0.extend((value.len() as u16).to_le_bytes());
        }
        self.0.extend(value);
        self
    }

    fn shorts(self, tag: u32, values: &[u16]) -> Self {
        self.add(tag, "US", &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())
    }

    /// A sequence of one item, of known length or with delimiters.
    fn item(self, tag: u32, item: &[u8], is_delimited: bool) -> Self {
        if !is_delimited {
            return self.add(tag, "SQ", &fragment(item));
        }
        let mut bytes = self.add(tag, "SQ", &[]).0;
        let length = bytes.len() - 4;
        bytes[length..].fill(0xff);
        bytes.extend([0xfe, 0xff, 0x00, 0xe0, 0xff, 0xff, 0xff, 0xff]);
        bytes.extend(item);
        bytes.extend([0xfe, 0xff, 0x0d, 0xe0, 0, 0, 0, 0, 0xfe, 0xff, 0xdd, 0xe0, 0, 0, 0, 0]);
        Self(bytes)
    }
}

/// An item of known length.
fn fragment(bytes: &[u8]) -> Vec<u8> {
    [&[0xfe, 0xff, 0x00, 0xe0][..], &(bytes.len() as u32).to_le_bytes(), bytes].concat()
}

/// A file of an enhanced CT of two frames of 4x4 pixels, or of one of the two files of a CT.
fn example(random: &mut Random) -> Vec<u8> {
    let (is_enhanced, encoding) = (random.one_in(2), random.below(3));
    let class = if is_enhanced { "1.2.840.10008.5.1.4.1.1.2.1" } else { "1.2.840.10008.5.1.4.1.1.2" };
    let syntax = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.70"][encoding];
    let meta = Elements::default().add(0x0002_0002, "UI", class.as_bytes()).add(0x0002_0010, "UI", syntax.as_bytes());
    let spacing = Elements::default().add(0x0028_0030, "DS", b"1\\1.5").0;
    let orientation = Elements::default().add(0x0020_0037, "DS", b"1\\0\\0\\0\\1\\0").0;
    let scale = |e: Elements| e.add(0x0028_1052, "DS", b"-1024").add(0x0028_1053, "DS", b"2");
    let place = |z: &str| Elements::default().add(0x0020_0032, "DS", format!("0\\0\\{z}").as_bytes());
    let mut set = Elements::default().add(0x0008_0016, "UI", class.as_bytes()).add(0x0008_0018, "UI", b"1.2.3.4");
    set = set.add(0x0009_0010, "LO", b"SOMEONE").add(0x0010_0010, "PN", b"A^B").add(0x0020_000d, "UI", b"1.2");
    set = set.add(0x0020_000e, "UI", b"1.2.3");
    if !is_enhanced {
        set.0.extend(place("0").0);
        set.0.extend(&orientation);
    }
    set = set.add(0x0020_0052, "UI", b"1.9").shorts(0x0028_0002, &[1]).add(0x0028_0004, "CS", b"MONOCHROME2");
    if is_enhanced {
        set = set.add(0x0028_0008, "IS", b"2");
    }
    set = set.shorts(0x0028_0010, &[4]).shorts(0x0028_0011, &[4]);
    if !is_enhanced {
        set.0.extend(&spacing);
    }
    for (tag, value) in [(0x0028_0100, 16), (0x0028_0101, 12), (0x0028_0102, 11), (0x0028_0103, 1)] {
        set = set.shorts(tag, &[value]);
    }
    if is_enhanced {
        let delimited = random.one_in(2);
        let shared = Elements::default().item(0x0020_9116, &orientation, delimited);
        let shared = shared.item(0x0028_9110, &spacing, delimited);
        let shared = shared.item(0x0028_9145, &scale(Elements::default()).0, delimited);
        set = set.item(0x5200_9229, &shared.0, delimited);
        let frames = ["0", "2.5"].map(|z| fragment(&Elements::default().item(0x0020_9113, &place(z).0, delimited).0));
        set = set.add(0x5200_9230, "SQ", &frames.concat());
    } else {
        set = scale(set);
    }
    let frame = match encoding {
        0 => (0..32).collect(),
        1 => {
            let offsets: Vec<u8> = [2u32, 64, 66].into_iter().chain([0; 13]).flat_map(u32::to_le_bytes).collect();
            [&offsets[..], &[0xf1, 1, 0xf1, 7]].concat()
        }
        // All differences 0, by a code of five bits.
        _ => {
            let mut jpeg = vec![0xff, 0xd8, 0xff, 0xc3, 0, 11, 12, 0, 4, 0, 4, 1, 1, 0x11, 0];
            jpeg.extend([0xff, 0xc4, 0, 36, 0, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            jpeg.extend(0..17);
            jpeg.extend([0xff, 0xda, 0, 8, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xd9]);
            jpeg
        }
    };
    let frames = vec![frame; 1 + usize::from(is_enhanced)];
    if encoding == 0 {
        set = set.add(0x7fe0_0010, "OW", &frames.concat());
    } else {
        set = set.add(0x7fe0_0010, "OB", &[]);
        let length = set.0.len() - 4;
        set.0[length..].fill(0xff);
        let fragments = [vec![]].into_iter().chain(frames).map(|frame| fragment(&frame));
        set.0.extend(fragments.flatten());
        set.0.extend([0xfe, 0xff, 0xdd, 0xe0, 0, 0, 0, 0]);
    }
    [vec![0; 128], b"DICM".to_vec(), meta.0, set.0].concat()
}

/// Mutates bytes behind the preamble, some of them lengths and numbers of elements.
pub(crate) fn make(_examples: &Examples, random: &mut Random) -> Vec<u8> {
    let mut bytes = example(random);
    for _ in 0..random.below(3) {
        let at = 132 + random.below(bytes.len() - 140);
        mutate::number(&mut bytes, at, random);
    }
    if random.one_in(2) {
        mutate::bytes(&mut bytes, random);
    }
    bytes
}

/// Reads a file by itself, or as one of two planes, and segments it.
pub(crate) fn read(examples: &Examples, bytes: &[u8]) -> Answer {
    let folder = examples.folder.join("series");
    fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    fs::write(folder.join("a"), bytes).map_err(|error| error.to_string())?;
    // The other plane: its place is that of the first, moved.
    let place = b"DS\x06\x000\\0\\0 ";
    let mut other = bytes.to_vec();
    let at = bytes.windows(place.len()).position(|window| window == place);
    if let Some(at) = at.filter(|_| !bytes.windows(4).any(|tag| tag == [0x00, 0x52, 0x30, 0x92])) {
        other[at + 8] = b'3';
        fs::write(folder.join("b"), other).map_err(|error| error.to_string())?;
    } else {
        let _ = fs::remove_file(folder.join("b"));
    }
    let read = || -> adw_dicom::Result<Result<(), String>> {
        let series = Series::open(&folder, None)?;
        if series.shape().iter().map(|&n| n as u64).product::<u64>() > CASE_MEMORY / 8 {
            return Ok(Err("too large for a test".to_owned()));
        }
        let labels = series.voxels()?.mapv(|v| u16::from(v > 0.0));
        let segments = vec![("bone", SegmentCodes::of("", "bone"))];
        let description = Description { segments, algorithm: "fuzz", version: "1", origin: "" };
        let file = encode(&series, &labels.view(), &description)?;
        assert!(is_own(&file));
        Ok(Ok(()))
    };
    read().map_err(|error| error.to_string())?
}
