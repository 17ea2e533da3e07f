//! Mutations of files, of their bytes and of their structure.

use serde_json::{Value, json};

/// Random numbers that depend on the seed and the number of the input alone (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64, input: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ input);
        random.next();
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// True once in `n` times.
    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// Numbers at the edges of their types and of what files of each kind allow.
const NUMBERS: [i64; 16] =
    [0, 1, -1, 2, 7, 127, 255, 256, 32_767, 65_535, 65_536, 1 << 24, 1 << 31, 1 << 40, i64::MAX, i64::MIN];

const FLOATS: [f64; 12] =
    [0.0, -0.0, 1e-300, 1e-30, 1e-6, 0.5, 1e6, 1e30, 1e300, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];

/// Flips, overwrites, cuts, repeats and inserts bytes, a few times.
pub(crate) fn bytes(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        let length = 1 + random.below(64);
        let range = at..(at + length).min(bytes.len());
        match random.below(7) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(range)),
            2 => {
                let copied = bytes[range].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, copied);
            }
            3 => {
                let noise: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
                bytes.splice(at..at, noise);
            }
            4 => bytes[range].fill(*random.pick(&[0, 0xff, b'9', b'[', b'"', b'/', b'\n'])),
            _ => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
        }
    }
}

/// Writes an extreme number of 1, 2, 4 or 8 bytes, or a float, at `at`, in either byte order.
pub(crate) fn number(bytes: &mut [u8], at: usize, random: &mut Random) {
    let integer = *random.pick(&NUMBERS);
    let float = *random.pick(&FLOATS);
    let mut number = match random.below(6) {
        0 => (integer as i8).to_le_bytes().to_vec(),
        1 | 2 => (integer as i16).to_le_bytes().to_vec(),
        3 => (integer as i32).to_le_bytes().to_vec(),
        4 => integer.to_le_bytes().to_vec(),
        _ => (float as f32).to_le_bytes().to_vec(),
    };
    if random.one_in(8) {
        number.reverse();
    }
    for (to, from) in bytes.iter_mut().skip(at).zip(number) {
        *to = from;
    }
}

/// Changes a few values of a JSON document, and now and then its text.
pub(crate) fn json(document: &Value, random: &mut Random) -> Vec<u8> {
    let mut document = document.clone();
    for _ in 0..=random.below(2) {
        change(&mut document, random);
    }
    let mut text = document.to_string().into_bytes();
    match random.below(12) {
        0 => bytes(&mut text, random),
        1 => {
            // Deeper than a stack, if anything recurses.
            let at = random.below(text.len());
            text.splice(at..at, std::iter::repeat_n(*random.pick(b"[{"), 100_000));
        }
        2 => text.splice(0..0, *b"\xef\xbb\xbf").for_each(drop),
        _ => {}
    }
    text
}

/// Changes one value somewhere in the document, the deeper ones as often as the others.
fn change(value: &mut Value, random: &mut Random) {
    let here = random.one_in(12);
    match value {
        Value::Object(map) if !map.is_empty() && !here => {
            let key = map.keys().nth(random.below(map.len())).cloned().unwrap_or_default();
            match random.below(8) {
                0 => drop(map.remove(&key)),
                1 => drop(map.insert(word(random), replacement(random))),
                2 => {
                    let moved = map.remove(&key).unwrap_or_default();
                    map.insert(word(random), moved);
                }
                _ => change(&mut map[&key], random),
            }
        }
        Value::Array(array) if !array.is_empty() && !here => {
            let at = random.below(array.len());
            match random.below(8) {
                0 => drop(array.remove(at)),
                1 => array.insert(at, replacement(random)),
                2 => {
                    let copies = std::iter::repeat_n(array[at].clone(), *random.pick(&[1, 30, 1000]));
                    array.splice(at..at, copies.collect::<Vec<_>>()).for_each(drop);
                }
                _ => change(&mut array[at], random),
            }
        }
        other => *other = replacement(random),
    }
}

fn replacement(random: &mut Random) -> Value {
    match random.below(9) {
        0 => Value::Null,
        1 => json!(random.one_in(2)),
        2 | 3 => json!(random.pick(&NUMBERS)),
        4 => json!(random.pick(&FLOATS)),
        5 => json!(u64::MAX),
        6 => json!([replacement(random), replacement(random)]),
        7 => json!({ word(random): replacement(random) }),
        _ => json!(word(random)),
    }
}

/// Names that are paths, commands to a terminal, or far too long.
pub(crate) fn word(random: &mut Random) -> String {
    let words =
        ["", ".", "..", "../../x", "/etc/passwd", "a/b", "a\\b", "\0", "\u{1b}[2J", "\u{202e}", "nan", "0", "-1", "CT"];
    match random.below(16) {
        0 => "x".repeat(1 << 16),
        1 => format!("{}.nii.gz", "ü".repeat(130)),
        _ => (*random.pick(&words)).to_owned(),
    }
}
