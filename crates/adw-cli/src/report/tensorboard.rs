//! Event files of TensorBoard: scalars, histograms and images of a search or training.
//!
//! A file is a sequence of records: the length of the data (u64, little endian), its masked CRC-32C, the data, their masked
//! CRC-32C. The data are messages of TensorFlow's `event.proto` and `summary.proto`, of which the few fields that are needed are
//! encoded here.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process,
    time::{SystemTime, UNIX_EPOCH},
};

use adw_search::{RetrainRow, SearchRow};
use adw_supernet::{SupernetConfig, width_options};
use msd_data::Label;

use super::{architecture::block_name, png::Picture, progress::note};

/// Events of a process, in a file of its own below the folder of the search or training.
pub(crate) struct EventFile {
    path: PathBuf,
    /// None before the first event and after a failure.
    file: Option<File>,
    failed: bool,
}

/// Value of a summary.
enum Value {
    Scalar(f64),
    /// Numbers and their weights, the numbers ascending.
    Histogram(Vec<(f64, f64)>),
    Image(Picture),
}

impl EventFile {
    /// Events in `folder/tensorboard`, which is created with the first of them.
    pub(crate) fn new(folder: &Path) -> Self {
        // Files are read in the order of their names.
        let name = format!("events.out.tfevents.{:010}.{}.adw", seconds() as u64, process::id());
        Self { path: folder.join("tensorboard").join(name), file: None, failed: false }
    }

    /// Adds the figures of a search's epoch.
    pub(crate) fn search(&mut self, row: &SearchRow, space: &SupernetConfig) {
        let scalars = [
            ("loss/weights", row.loss),
            ("loss/architecture A", row.arch_loss_a),
            ("loss/architecture B", row.arch_loss_b),
            ("gradient norm/weights", row.grad_norm),
            ("gradient norm/architecture", row.arch_grad_norm),
            ("dice/mixture", row.mean_dice),
            ("dice/most probable network", row.argmax_dice),
            ("cost/expected", Some(row.expected_cost)),
            ("cost/most probable network", Some(row.cost as f64)),
            ("entropy/widths", row.width_entropy),
            ("entropy/depths", row.depth_entropy),
            ("schedule/learning rate", Some(row.lr)),
            ("schedule/tau", Some(row.tau)),
        ];
        let mut values = existing(scalars);
        for (block, p) in row.probabilities.iter().enumerate() {
            let name = block_name(block, space.poolings());
            if let Some(p) = &p.depth {
                let depths = p.iter().enumerate().map(|(i, p)| ((i + 1) as f64, *p)).collect();
                values.push((format!("beta/{name} depth"), Value::Histogram(depths)));
            }
            let options = width_options(space.block_max_width(block)).map(|width| width as f64);
            for (layer, p) in p.width.iter().enumerate().filter_map(|(layer, p)| Some((layer, p.as_ref()?))) {
                let widths = options.iter().copied().zip(p.iter().copied()).collect();
                values.push((format!("alpha/{name} conv {}", layer + 1), Value::Histogram(widths)));
            }
        }
        self.add(row.epoch, &values);
    }

    /// Adds the figures of a training's epoch.
    pub(crate) fn training(&mut self, row: &RetrainRow, labels: &[Label]) {
        let scalars = [
            ("loss/training", row.loss),
            ("gradient norm/weights", row.grad_norm),
            ("dice/mean", row.mean_dice),
            ("schedule/learning rate", Some(row.lr)),
        ];
        let mut values = existing(scalars);
        let of_labels = labels.iter().skip(1).zip(&row.dice);
        values.extend(
            of_labels.filter_map(|(label, dice)| Some((format!("dice/{}", label.name), Value::Scalar((*dice)?)))),
        );
        self.add(row.epoch, &values);
    }

    /// Adds pictures at the end of a training.
    pub(crate) fn images(&mut self, epoch: usize, images: Vec<Picture>) {
        let values: Vec<_> = images.into_iter().map(|image| (image.name.clone(), Value::Image(image))).collect();
        self.add(epoch, &values);
    }

    /// Adds a record. A failure ends the events with a warning, not the work.
    fn add(&mut self, epoch: usize, values: &[(String, Value)]) {
        if self.failed || values.is_empty() {
            return;
        }
        if let Err(error) = self.write(epoch, values) {
            note(&format!("warning: {}: {error}; no more events are written for TensorBoard", self.path.display()));
            (self.failed, self.file) = (true, None);
        }
    }

    fn write(&mut self, epoch: usize, values: &[(String, Value)]) -> io::Result<()> {
        let step = epoch as u64 + 1;
        let mut records = Vec::new();
        if self.file.is_none() {
            fs::create_dir_all(self.path.parent().expect("a file lies in a folder"))?;
            self.file = Some(File::options().create(true).append(true).open(&self.path)?);
            records = record(&event(0, |message| message.bytes(3, b"brain.Event:2")));
            // Events of an earlier process from this step on are made again: they are left out.
            records.extend(record(&event(step, |message| message.bytes(7, &Message::new(|log| log.varint(1, 1)).0))));
        }
        let summary =
            Message::new(|summary| values.iter().for_each(|(tag, value)| summary.bytes(1, &encode(tag, value).0)));
        records.extend(record(&event(step, |message| message.bytes(5, &summary.0))));
        // In one piece, so that a kill leaves at most one torn record, at the end.
        self.file.as_mut().expect("it was just opened").write_all(&records)
    }
}

fn existing<const N: usize>(scalars: [(&str, Option<f64>); N]) -> Vec<(String, Value)> {
    scalars.into_iter().filter_map(|(tag, value)| Some((tag.to_owned(), Value::Scalar(value?)))).collect()
}

fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |passed| passed.as_secs_f64())
}

/// Message `Event` of this moment.
fn event(step: u64, fill: impl FnOnce(&mut Message)) -> Message {
    Message::new(|message| {
        message.double(1, seconds());
        message.varint(2, step);
        fill(message);
    })
}

/// Message `Summary.Value`.
fn encode(tag: &str, value: &Value) -> Message {
    Message::new(|message| {
        message.bytes(1, tag.as_bytes());
        match value {
            Value::Scalar(value) => message.float(2, *value as f32),
            Value::Image(Picture { size: [height, width], png, .. }) => message.bytes(
                4,
                &Message::new(|image| {
                    image.varint(1, *height as u64);
                    image.varint(2, *width as u64);
                    image.varint(3, 3); // RGB
                    image.bytes(4, png);
                })
                .0,
            ),
            Value::Histogram(weighted) => message.bytes(5, &histogram(weighted).0),
        }
    })
}

/// Message `HistogramProto` with a bucket that ends at each number.
fn histogram(weighted: &[(f64, f64)]) -> Message {
    let sum = |f: fn(f64) -> f64| weighted.iter().map(|&(number, weight)| f(number) * weight).sum::<f64>();
    Message::new(|message| {
        message.double(1, weighted.first().map_or(0.0, |(number, _)| *number));
        message.double(2, weighted.last().map_or(0.0, |(number, _)| *number));
        message.double(3, sum(|_| 1.0));
        message.double(4, sum(|number| number));
        message.double(5, sum(|number| number * number));
        let packed = |values: &mut dyn Iterator<Item = f64>| values.flat_map(f64::to_le_bytes).collect::<Vec<u8>>();
        message.bytes(6, &packed(&mut weighted.iter().map(|(number, _)| *number)));
        message.bytes(7, &packed(&mut weighted.iter().map(|(_, weight)| *weight)));
    })
}

/// Message of Protocol Buffers, encoded.
struct Message(Vec<u8>);

impl Message {
    fn new(fill: impl FnOnce(&mut Self)) -> Self {
        let mut message = Self(Vec::new());
        fill(&mut message);
        message
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.raw_varint(field << 3);
        self.raw_varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.raw_varint(field << 3 | 1);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.raw_varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.raw_varint(field << 3 | 2);
        self.raw_varint(bytes.len() as u64);
        self.0.extend(bytes);
    }
}

/// Record of a message.
fn record(message: &Message) -> Vec<u8> {
    let length = (message.0.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), &message.0, &masked_crc(&message.0)].concat()
}

/// CRC-32C, rotated and shifted as `TFRecord` files have it.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// CRC of Castagnoli's polynomial (RFC 3720), bit by bit: records are small.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_rfc_3720() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn messages_are_encoded_as_protocol_buffers() {
        let message = Message::new(|message| {
            message.varint(1, 300);
            message.bytes(2, b"ab");
            message.double(3, 1.0);
        });
        assert_eq!(message.0, *b"\x08\xac\x02\x12\x02ab\x19\0\0\0\0\0\0\xf0\x3f");
        assert_eq!(record(&message).len(), 12 + message.0.len() + 4);
    }

    #[test]
    fn a_file_that_cannot_be_written_ends_the_events_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tensorboard"), "a file in the folder's place").unwrap();
        let mut events = EventFile::new(dir.path());
        events.images(0, vec![Picture { name: "a".into(), size: [1, 1], png: vec![] }]);
        assert!(events.failed);
        events.images(1, vec![Picture { name: "a".into(), size: [1, 1], png: vec![] }]);
    }
}
