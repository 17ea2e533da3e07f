//! Lossless JPEG of one component (ITU-T T.81, annex H, with Huffman coding), as archives of hospitals keep it.

/// Result of decoding, with the fault as text.
type Result<T> = std::result::Result<T, String>;

/// Decodes an image of `rows` and `columns` into numbers of at most 16 bits.
///
/// # Errors
/// Another size or process, or data that end early or contradict themselves.
pub(crate) fn decode(bytes: &[u8], rows: usize, columns: usize) -> Result<Vec<u16>> {
    let mut segments = Segments { rest: bytes };
    let mut tables = [const { None }; 4];
    let (mut precision, mut restart) = (None, 0);
    loop {
        let (marker, segment) = segments.next()?;
        let at = |i: usize| segment.get(i).copied().ok_or("a JPEG segment ends early");
        let pair = |i: usize| Ok::<_, String>(usize::from(u16::from_be_bytes([at(i)?, at(i + 1)?])));
        match marker {
            // Start of a lossless frame.
            0xc3 => {
                let (found, components) = ((pair(1)?, pair(3)?), at(5)?);
                if found != (rows, columns) || components != 1 {
                    return Err(format!("JPEG of {}x{} pixels and {components} components", found.0, found.1));
                }
                precision = Some(at(0)?).filter(|bits| (2..=16).contains(bits));
            }
            0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) => return Err("JPEG that is not lossless".to_owned()),
            0xc4 => add_tables(segment, &mut tables)?,
            0xdd => restart = pair(0)?,
            // Start of the scan.
            0xda => {
                let precision = precision.ok_or("JPEG without a lossless frame")?;
                let (table, predictor, shift) = (at(2)? >> 4, at(3)?, at(5)? & 0xf);
                let table =
                    tables.get(usize::from(table)).and_then(Option::as_ref).ok_or("JPEG without its code table")?;
                if at(0)? != 1 || !(1..=7).contains(&predictor) || shift >= precision {
                    return Err(format!("JPEG scan with predictor {predictor}"));
                }
                let scan = Scan { table, predictor, first: 1 << (precision - shift - 1), restart };
                let mut pixels = scan.decode(segments.rest, rows, columns)?;
                for pixel in &mut pixels {
                    *pixel <<= shift;
                }
                return Ok(pixels);
            }
            0xd9 => return Err("JPEG without a scan".to_owned()),
            _ => {}
        }
    }
}

/// Segments with a marker before the scan.
struct Segments<'a> {
    rest: &'a [u8],
}

impl<'a> Segments<'a> {
    fn next(&mut self) -> Result<(u8, &'a [u8])> {
        let end = || "JPEG without a scan".to_owned();
        loop {
            let (&[first, marker], rest) = self.rest.split_first_chunk().ok_or_else(end)?;
            if first != 0xff {
                return Err("bytes between the segments of a JPEG".to_owned());
            }
            match marker {
                // Fill bytes; markers without a segment.
                0xff => self.rest = &self.rest[1..],
                0x01 | 0xd0..=0xd8 => self.rest = rest,
                0xd9 => return Ok((marker, &[])),
                _ => {
                    let (length, _) = rest.split_first_chunk().ok_or_else(end)?;
                    let length = usize::from(u16::from_be_bytes(*length));
                    let segment = rest.get(2..length).ok_or_else(end)?;
                    self.rest = &rest[length..];
                    return Ok((marker, segment));
                }
            }
        }
    }
}

/// Huffman code of the number of a difference's bits.
struct Table {
    /// Length and value for each 16 bits that begin with a code; length 0 for those that begin with none.
    codes: Vec<(u8, u8)>,
}

fn add_tables(mut segment: &[u8], tables: &mut [Option<Table>; 4]) -> Result<()> {
    while let Some((&[place, ref counts @ ..], rest)) = segment.split_first_chunk::<17>() {
        let count = counts.iter().map(|&count| usize::from(count)).sum();
        let (mut values, rest) = rest.split_at_checked(count).ok_or("a JPEG code table ends early")?;
        segment = rest;
        let mut codes = vec![(0, 0); 1 << 16];
        let mut start = 0;
        for (length, &count) in (1..=16).zip(counts) {
            let width = 1usize << (16 - length);
            let (of_length, rest) = values.split_at(usize::from(count));
            values = rest;
            for &value in of_length {
                let slots = codes.get_mut(start..start + width).ok_or("a JPEG code table has too many codes")?;
                slots.fill((length, value));
                start += width;
            }
        }
        if let Some(slot) = tables.get_mut(usize::from(place)) {
            *slot = Some(Table { codes });
        }
    }
    Ok(())
}

/// The only scan: its code, its prediction of pixels, and the number of pixels after which both start anew, 0 for never.
struct Scan<'a> {
    table: &'a Table,
    predictor: u8,
    /// Prediction of the first pixel.
    first: i32,
    restart: usize,
}

impl Scan<'_> {
    fn decode(&self, bytes: &[u8], rows: usize, columns: usize) -> Result<Vec<u16>> {
        let mut bits = Bits { rest: bytes, buffer: 0, count: 0 };
        let mut pixels: Vec<u16> = Vec::with_capacity(rows * columns);
        // First pixel since the last start, which is that of a row in files that are made by the standard.
        let mut start = 0;
        for i in 0..rows * columns {
            if self.restart > 0 && i > 0 && i % self.restart == 0 {
                bits.restart()?;
                start = i;
            }
            let pixel = |back: usize| i32::from(pixels[i - back]);
            let prediction = match (i - start, i % columns) {
                (0, _) => self.first,
                (since, column) if since < columns && column > 0 => pixel(1),
                (_, 0) => pixel(columns),
                _ => {
                    let (a, b, c) = (pixel(1), pixel(columns), pixel(columns + 1));
                    match self.predictor {
                        1 => a,
                        2 => b,
                        3 => c,
                        4 => a + b - c,
                        5 => a + ((b - c) >> 1),
                        6 => b + ((a - c) >> 1),
                        _ => (a + b) >> 1,
                    }
                }
            };
            pixels.push((prediction + bits.difference(self.table)?) as u16);
        }
        Ok(pixels)
    }
}

/// Bits of a scan, the highest of a byte first.
struct Bits<'a> {
    rest: &'a [u8],
    buffer: u64,
    count: u32,
}

impl Bits<'_> {
    /// Fills the buffer to at least 32 bits, with zeros after the end.
    fn fill(&mut self) {
        while self.count < 32 {
            let byte = match *self.rest {
                // A byte of ones is followed by zeros, which are left out; else it begins a marker.
                [0xff, 0, ..] => {
                    self.rest = &self.rest[2..];
                    0xff
                }
                [0xff, ..] | [] => break,
                [byte, ..] => {
                    self.rest = &self.rest[1..];
                    byte
                }
            };
            self.buffer = self.buffer << 8 | u64::from(byte);
            self.count += 8;
        }
    }

    fn take(&mut self, count: u32) -> Result<u32> {
        if count > self.count {
            return Err("the scan of a JPEG ends early".to_owned());
        }
        self.count -= count;
        Ok((self.buffer >> self.count) as u32 & ((1u32 << count) - 1))
    }

    fn difference(&mut self, table: &Table) -> Result<i32> {
        self.fill();
        let ahead = if self.count >= 16 { self.buffer >> (self.count - 16) } else { self.buffer << (16 - self.count) };
        let (length, bits) = table.codes[ahead as usize & 0xffff];
        if length == 0 || bits > 16 {
            return Err("a JPEG code is not in its table".to_owned());
        }
        self.take(u32::from(length))?;
        match bits {
            0 => Ok(0),
            16 => Ok(1 << 15),
            bits => {
                let value = self.take(u32::from(bits))? as i32;
                Ok(if value < 1 << (bits - 1) { value - (1 << bits) + 1 } else { value })
            }
        }
    }

    /// Passes over the marker of a new start.
    fn restart(&mut self) -> Result<()> {
        (self.buffer, self.count) = (0, 0);
        match *self.rest {
            [0xff, 0xd0..=0xd7, ref rest @ ..] => {
                self.rest = rest;
                Ok(())
            }
            _ => Err("a JPEG lacks the marker of a restart".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encoder of the same process, whose table gives every number of bits a code of five bits.
    fn encode(pixels: &[u16], columns: usize, predictor: u8, restart: usize) -> Vec<u8> {
        let rows = pixels.len() / columns;
        let mut out = vec![0xff, 0xd8, 0xff, 0xe0, 0, 3, 7];
        out.extend([0xff, 0xc3, 0, 11, 16, 0, rows as u8, 0, columns as u8, 1, 1, 0x11, 0]);
        out.extend([0xff, 0xc4, 0, 36, 0, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        out.extend(0..17);
        if restart > 0 {
            out.extend([0xff, 0xdd, 0, 4, 0, restart as u8]);
        }
        out.extend([0xff, 0xda, 0, 8, 1, 1, 0, predictor, 0, 0]);
        let mut bits = String::new();
        let flush = |bits: &mut String, out: &mut Vec<u8>| {
            while !bits.len().is_multiple_of(8) {
                bits.push('1');
            }
            for byte in bits.as_bytes().chunks(8) {
                let byte = u8::from_str_radix(str::from_utf8(byte).unwrap(), 2).unwrap();
                out.push(byte);
                if byte == 0xff {
                    out.push(0);
                }
            }
            bits.clear();
        };
        for i in 0..pixels.len() {
            if restart > 0 && i > 0 && i % restart == 0 {
                flush(&mut bits, &mut out);
                out.extend([0xff, 0xd0 + (i / restart - 1) as u8 % 8]);
            }
            let since = if restart > 0 { i % restart } else { i };
            let pixel = |back: usize| i32::from(pixels[i - back]);
            let prediction = if since == 0 {
                1 << 15
            } else if since < columns {
                pixel(1)
            } else if i % columns == 0 {
                pixel(columns)
            } else {
                let (a, b, c) = (pixel(1), pixel(columns), pixel(columns + 1));
                [a, b, c, a + b - c, a + ((b - c) >> 1), b + ((a - c) >> 1), (a + b) >> 1][usize::from(predictor) - 1]
            };
            let difference = (i32::from(pixels[i]) - prediction) as i16;
            let magnitude = i32::from(difference).unsigned_abs();
            let count = 32 - magnitude.leading_zeros();
            bits.extend(format!("{count:05b}").chars());
            let value = if difference < 0 { i32::from(difference) - 1 } else { i32::from(difference) };
            if (1..16).contains(&count) {
                bits += &format!("{:016b}", value as u16)[16 - count as usize..];
            }
        }
        flush(&mut bits, &mut out);
        out.extend([0xff, 0xd9]);
        out
    }

    #[test]
    fn every_predictor_and_restarts_give_the_pixels_back() {
        let pixels: Vec<u16> =
            (0..60u32).map(|i| (i * i * 977 % 65_521) as u16 & if i % 7 == 0 { 0xffff } else { 0x3ff }).collect();
        for predictor in 1..=7 {
            for restart in [0, 10, 20] {
                let encoded = encode(&pixels, 10, predictor, restart);
                assert_eq!(decode(&encoded, 6, 10).unwrap(), pixels, "predictor {predictor}, restart {restart}");
            }
        }
    }

    #[test]
    fn damaged_data_are_errors() {
        let encoded = encode(&[7; 60], 10, 1, 20);
        for length in 0..encoded.len() - 2 {
            decode(&encoded[..length], 6, 10).unwrap_err();
        }
        for at in 0..encoded.len() {
            for value in [0, 0x7f, 0xff] {
                let mut damaged = encoded.clone();
                damaged[at] = value;
                // No panic; some bytes matter to nobody.
                let _ = decode(&damaged, 6, 10);
            }
        }
        assert!(decode(&encoded, 10, 6).unwrap_err().contains("6x10 pixels"));
    }
}
