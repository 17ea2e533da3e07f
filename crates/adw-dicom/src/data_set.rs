//! Data sets: attributes and their values, written as explicit VR little endian.

use crate::tags::{self, Tag, Vr};

/// Representations whose length is written with 32 bits.
pub(crate) const LONG: [Vr; 13] =
    [*b"OB", *b"OD", *b"OF", *b"OL", *b"OV", *b"OW", *b"SQ", *b"SV", *b"UC", *b"UN", *b"UR", *b"UT", *b"UV"];

/// Tags that enclose items, with a length and no representation.
pub(crate) const ITEM: u32 = 0xfffe_e000;
pub(crate) const ITEM_END: u32 = 0xfffe_e00d;
pub(crate) const SEQUENCE_END: u32 = 0xfffe_e0dd;

/// Value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// Numbers in little endian, or text in the data set's character set.
    Bytes(Vec<u8>),
    /// Items of a sequence.
    Items(Vec<DataSet>),
}

/// Attributes by tag: a whole file, or an item of a sequence.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct DataSet(Vec<(u32, Value)>);

impl DataSet {
    pub(crate) fn insert(&mut self, tag: Tag, value: Value) {
        match self.place(tag) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => self.0.insert(at, (tag.id, value)),
        }
    }

    /// Index of an attribute, or the one that it would have: they are sorted by their tags.
    fn place(&self, tag: Tag) -> Result<usize, usize> {
        self.0.binary_search_by_key(&tag.id, |(id, _)| *id)
    }

    pub(crate) fn get(&self, tag: Tag) -> Option<&Value> {
        self.place(tag).ok().map(|at| &self.0[at].1)
    }

    fn bytes(&self, tag: Tag) -> Option<&[u8]> {
        match self.get(tag) {
            Some(Value::Bytes(bytes)) => Some(bytes),
            _ => None,
        }
    }

    /// Text without padding; none if it is absent or empty. What is not UTF-8 is replaced, since identifiers and codes are ASCII,
    /// and so are control characters, since messages are one line.
    pub(crate) fn text(&self, tag: Tag) -> Option<String> {
        let text = String::from_utf8_lossy(self.bytes(tag)?);
        let text = text.trim_matches([' ', '\0']).replace(char::is_control, "?");
        (!text.is_empty()).then_some(text)
    }

    /// Decimal numbers of a text; none if it is absent or one of them is no finite number.
    pub(crate) fn decimals<const N: usize>(&self, tag: Tag) -> Option<[f64; N]> {
        let text = self.text(tag)?;
        let mut numbers = text.split('\\').map(|number| number.trim().parse().ok().filter(|v: &f64| v.is_finite()));
        let mut found = [0.0; N];
        for slot in &mut found {
            *slot = numbers.next()??;
        }
        numbers.next().is_none().then_some(found)
    }

    /// A 16-bit number.
    pub(crate) fn short(&self, tag: Tag) -> Option<u16> {
        self.bytes(tag)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
    }

    /// Items of a sequence; none if it is absent.
    pub(crate) fn items(&self, tag: Tag) -> &[DataSet] {
        match self.get(tag) {
            Some(Value::Items(items)) => items,
            _ => &[],
        }
    }

    /// Sets a text, and returns the set. Identifiers are padded with zeros, other texts with spaces.
    #[must_use]
    pub(crate) fn with(mut self, tag: Tag, text: &str) -> Self {
        let mut bytes = text.as_bytes().to_vec();
        if bytes.len() % 2 == 1 {
            bytes.push(if tag.vr == *b"UI" { 0 } else { b' ' });
        }
        self.insert(tag, Value::Bytes(bytes));
        self
    }

    /// Sets numbers of 16 bits, and returns the set.
    #[must_use]
    pub(crate) fn with_shorts(mut self, tag: Tag, numbers: &[u16]) -> Self {
        self.insert(tag, Value::Bytes(numbers.iter().flat_map(|n| n.to_le_bytes()).collect()));
        self
    }

    /// Sets numbers of 32 bits, and returns the set.
    #[must_use]
    pub(crate) fn with_longs(mut self, tag: Tag, numbers: &[u32]) -> Self {
        self.insert(tag, Value::Bytes(numbers.iter().flat_map(|n| n.to_le_bytes()).collect()));
        self
    }

    /// Sets an attribute whose value is another's tag, and returns the set.
    #[must_use]
    pub(crate) fn with_pointer(self, tag: Tag, to: Tag) -> Self {
        self.with_shorts(tag, &[(to.id >> 16) as u16, to.id as u16])
    }

    /// Sets decimal numbers, and returns the set.
    #[must_use]
    pub(crate) fn with_decimals(self, tag: Tag, numbers: &[f64]) -> Self {
        let text: Vec<_> = numbers.iter().map(|&number| decimal(number)).collect();
        self.with(tag, &text.join("\\"))
    }

    /// Sets a sequence, and returns the set.
    #[must_use]
    pub(crate) fn with_items(mut self, tag: Tag, items: Vec<DataSet>) -> Self {
        self.insert(tag, Value::Items(items));
        self
    }

    /// Adds the encoded attributes.
    ///
    /// # Panics
    /// If a value has 4 GiB.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        for &(id, ref value) in &self.0 {
            let vr = tags::find(id).map_or(*b"UN", |tag| tag.vr);
            out.extend([(id >> 16) as u16, id as u16].map(u16::to_le_bytes).concat());
            out.extend(vr);
            let is_long = LONG.contains(&vr);
            if is_long {
                out.extend([0, 0]);
            }
            let length_at = out.len();
            out.extend(if is_long { &[0; 4][..] } else { &[0; 2] });
            match value {
                // Files with lengths of 32 bits have longer ones than others can.
                Value::Bytes(bytes) if !is_long => out.extend(&bytes[..bytes.len().min(65_534)]),
                Value::Bytes(bytes) => out.extend(bytes),
                Value::Items(items) => items.iter().for_each(|item| {
                    out.extend([(ITEM >> 16) as u16, ITEM as u16, 0, 0].map(u16::to_le_bytes).concat());
                    let start = out.len();
                    item.write(out);
                    let length = u32::try_from(out.len() - start).expect("an item has less than 4 GiB");
                    out[start - 4..start].copy_from_slice(&length.to_le_bytes());
                }),
            }
            let start = length_at + if is_long { 4 } else { 2 };
            if (out.len() - start) % 2 == 1 {
                out.push(0);
            }
            let length = out.len() - start;
            if is_long {
                let length = u32::try_from(length).expect("a value has less than 4 GiB");
                out[length_at..start].copy_from_slice(&length.to_le_bytes());
            } else {
                let length = u16::try_from(length).expect("a short value has less than 64 KiB");
                out[length_at..start].copy_from_slice(&length.to_le_bytes());
            }
        }
    }
}

/// Number with as many digits as a decimal string may have.
fn decimal(number: f64) -> String {
    /// Most characters of a decimal string.
    const MAX_CHARS: usize = 16;
    let fixed = (0..=14).rev().map(|digits| format!("{number:.digits$}")).find(|text| text.len() <= MAX_CHARS);
    let text = fixed.unwrap_or_else(|| format!("{number:.8e}"));
    if text.contains('.') && !text.contains('e') {
        let text = text.trim_end_matches('0').trim_end_matches('.');
        return if text == "-0" { "0".to_owned() } else { text.to_owned() };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_have_at_most_sixteen_characters() {
        let cases = [
            (0.0, "0"),
            (-0.0, "0"),
            (2.5, "2.5"),
            (-1e-17, "0"),
            (100.0, "100"),
            (-123.456_789_012_346, "-123.45678901235"),
        ];
        for (number, expected) in cases {
            assert_eq!(decimal(number), expected);
        }
        assert_eq!(decimal(f64::from(1f32 / 3.0)), "0.33333334326744");
        assert_eq!(decimal(-1.234_567_891e200).len(), 15);
    }

    #[test]
    fn texts_are_trimmed_and_numbers_counted() {
        let set = DataSet::default().with(tags::PIXEL_SPACING, "0.5\\ 1.25").with(tags::SOP_CLASS, "1.2.3");
        assert_eq!(set.decimals(tags::PIXEL_SPACING), Some([0.5, 1.25]));
        assert_eq!(set.decimals::<3>(tags::PIXEL_SPACING), None);
        assert_eq!(set.decimals::<1>(tags::PIXEL_SPACING), None);
        assert_eq!(set.text(tags::SOP_CLASS).as_deref(), Some("1.2.3"));
        assert_eq!(DataSet::default().with(tags::SOP_CLASS, " 1.\n2\0").text(tags::SOP_CLASS).as_deref(), Some("1.?2"));
        let nan = DataSet::default().with(tags::SLOPE, "nan");
        assert_eq!(nan.decimals::<1>(tags::SLOPE), None);
    }
}
