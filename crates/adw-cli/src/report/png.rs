//! Small PNG pictures and data URLs.

use std::io::Write;

use flate2::{Compression, write::ZlibEncoder};

/// Picture with a name.
pub(crate) struct Picture {
    pub(crate) name: String,
    /// Height and width.
    pub(crate) size: [usize; 2],
    pub(crate) png: Vec<u8>,
}

/// Encodes rows of 8-bit samples, `channels` per pixel: 1 for grey, 3 for red, green, blue, 4 with opacity.
pub(crate) fn encode(width: usize, channels: usize, samples: &[u8]) -> Vec<u8> {
    let colour_type = [0, 0, 0, 2, 6][channels];
    let stride = width * channels;
    let mut rows = Vec::with_capacity(samples.len() + samples.len() / stride);
    for row in samples.chunks(stride) {
        // Filter "Sub": differences between neighbours are small where pictures are smooth.
        rows.push(1);
        rows.extend(
            row.iter().enumerate().map(|(i, v)| v.wrapping_sub(if i < channels { 0 } else { row[i - channels] })),
        );
    }
    let mut header = Vec::new();
    header.extend((width as u32).to_be_bytes());
    header.extend(((samples.len() / stride) as u32).to_be_bytes());
    header.extend([8, colour_type, 0, 0, 0]);
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [(b"IHDR", header), (b"IDAT", deflate(&rows)), (b"IEND", vec![])] {
        png.extend((data.len() as u32).to_be_bytes());
        let checked = [kind.as_slice(), &data].concat();
        png.extend(&checked);
        png.extend(crc32fast::hash(&checked).to_be_bytes());
    }
    png
}

/// Compresses bytes in zlib's format, which browsers read as `deflate`.
pub(crate) fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("writing to memory does not fail")
}

/// URL that holds `bytes` itself.
pub(crate) fn data_url(kind: &str, bytes: &[u8]) -> String {
    format!("data:{kind};base64,{}", base64(bytes))
}

/// Base64 of RFC 4648, padded.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().enumerate().fold(0, |group, (i, &byte)| group | u32::from(byte) << (16 - 8 * i));
        for i in 0..4 {
            let digit = DIGITS[(group >> (18 - 6 * i)) as usize & 63];
            text.push(if i <= chunk.len() { digit as char } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_pads() {
        let encoded = ["", "f", "fo", "foo", "foob"].map(|text| base64(text.as_bytes()));
        assert_eq!(encoded, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]);
    }

    #[test]
    fn chunks_carry_their_length_and_check() {
        let png = encode(2, 1, &[1, 2, 3, 4]);
        assert_eq!(png[8..29], *b"\0\0\0\x0dIHDR\0\0\0\x02\0\0\0\x02\x08\0\0\0\0");
        assert_eq!(png[29..33], crc32fast::hash(&png[12..29]).to_be_bytes());
        assert!(png.ends_with(b"\0\0\0\0IEND\xae\x42\x60\x82"));
    }
}
