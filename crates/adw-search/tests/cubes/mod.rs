//! A synthetic segmentation problem: find noisy bright boxes of two kinds.

use std::collections::BTreeSet;
use std::path::Path;

use adw_search::{Batch, BatchRequest, BatchSource, BoxError, Part};
use adw_supernet::{FixedSizes, GatePosition, SearchSpace, SupernetConfig};
use adw_tensor_ops::philox::{Purpose, Stream};
use candle_core::{Device, Tensor};

pub(crate) const PATCH: [usize; 3] = [8, 8, 8];

/// One pooling, widths up to 6, depth up to 2, three classes.
pub(crate) fn supernet_config() -> SupernetConfig {
    SupernetConfig {
        in_channels: 1,
        num_classes: 3,
        strides: vec![[2; 3]],
        kernels: vec![[3; 3]; 2],
        max_width: 6,
        max_depth: 2,
        cap_stage: 3,
        mask: GatePosition::PostNorm,
        gate_up: true,
        space: SearchSpace::Joint,
        fixed: FixedSizes::default(),
    }
}

pub(crate) struct Cubes {
    batch_size: usize,
    /// Parts requested so far.
    pub(crate) requested: BTreeSet<Part>,
}

impl Cubes {
    pub(crate) fn new(batch_size: usize) -> Self {
        Self { batch_size, requested: BTreeSet::new() }
    }
}

impl BatchSource for Cubes {
    fn batch(&mut self, request: BatchRequest) -> Result<Batch, BoxError> {
        self.requested.insert(request.part);
        let part = match request.part {
            Part::TrainA => 1,
            Part::TrainB => 2,
            Part::TrainBPlain => 3,
            Part::Train => 4,
            Part::Validation => 5,
        };
        let [d, h, w] = PATCH;
        let voxels = d * h * w;
        let (mut x, mut target) = (vec![], vec![]);
        for sample in 0..self.batch_size {
            let stream = Stream {
                seed: part,
                purpose: Purpose::Other,
                epoch: request.epoch as u32,
                iteration: request.iteration as u32,
                index: sample as u32,
            };
            let mut corner = stream.uniform().map(|u| (u * 4.0) as usize);
            let corners: Vec<[usize; 3]> =
                (0..2).map(|_| std::array::from_fn(|_| corner.next().expect("the stream is endless"))).collect();
            let label = |i: usize| {
                let at = [i / (h * w), i / w % h, i % w];
                let inside = |c: &[usize; 3]| (0..3).all(|a| (c[a]..c[a] + 4).contains(&at[a]));
                corners.iter().rposition(inside).map_or(0, |k| k as u8 + 1)
            };
            let labels: Vec<u8> = (0..voxels).map(label).collect();
            let noise = stream.normal().skip(100);
            let brightness = |(l, n): (&u8, f64)| 2.0 * f32::from(*l) - 1.0 + 0.3 * n as f32;
            x.extend(labels.iter().zip(noise).map(brightness));
            target.extend(labels);
        }
        let n = self.batch_size;
        Ok(Batch {
            x: Tensor::from_vec(x, (n, 1, d, h, w), &Device::Cpu)?,
            target: Tensor::from_vec(target, (n, d, h, w), &Device::Cpu)?,
        })
    }
}

/// Rows of the history of the run in `directory`, without their wall times.
pub(crate) fn history(directory: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(directory.join("history.jsonl")).unwrap();
    let row = |line: &str| {
        let mut row: serde_json::Value = serde_json::from_str(line).unwrap();
        row["wall_s"].take();
        row
    };
    text.lines().map(row).collect()
}
