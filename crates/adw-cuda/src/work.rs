//! Work of launches that no implementation avoids: bytes moved, operations, and the least time they take.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The work of one launch that no implementation of it avoids.
///
/// ```text
/// bytes      = sum over inputs  of (elements that the launch needs) * (bytes of an element)
///            + sum over outputs of (elements that it writes)        * (bytes of an element)
/// operations = floating-point operations on them; a multiplication with an addition is two
/// floor      = max(bytes / bandwidth, operations / peak)    seconds
/// ```
///
/// Every element counts once per launch, however often tiles or taps make a kernel read it: maps, weights, statistics, and
/// the partial sums that one launch leaves for the next. Parameters of the launch, tables of addresses and single numbers
/// do not count. The operations of a convolution are its useful products, `2 taps Ci Co outputs` per sample (outputs at an
/// edge have all taps), without padding to tiles and without what normalises maps on the way in; elsewhere an elementary
/// function counts as one operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes between memory and the chip.
    pub bytes: u64,
    /// Floating-point operations.
    pub operations: u64,
    /// True if the operations are products on tensor cores.
    pub tensor_cores: bool,
}

impl Work {
    /// Work outside tensor cores.
    pub fn new(bytes: usize, operations: usize) -> Self {
        Self { bytes: bytes as u64, operations: operations as u64, tensor_cores: false }
    }

    /// The same work with its products on tensor cores if `tensor_cores` is true.
    #[must_use]
    pub fn on_tensor_cores(self, tensor_cores: bool) -> Self {
        Self { tensor_cores, ..self }
    }

    /// Least time of the work in seconds: `max(bytes / bandwidth, operations / peak)`.
    ///
    /// ```
    /// use adw_cuda::work::{Machine, Work};
    /// let copy = Work::new(6_000_000_000, 0);
    /// assert_eq!(copy.floor(&Machine::H100), 2e-3);
    /// let products = Work::new(1000, 1_600_000_000).on_tensor_cores(true);
    /// assert_eq!(products.floor(&Machine::H100), 2e-6);
    /// ```
    pub fn floor(&self, machine: &Machine) -> f64 {
        let peak = if self.tensor_cores { machine.tensor_cores } else { machine.f32 };
        (self.bytes as f64 / machine.bandwidth).max(self.operations as f64 / peak)
    }
}

/// Rates that a device reaches with long copies and large products; less than its data sheet says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// Bytes per second between memory and the chip.
    pub bandwidth: f64,
    /// Operations per second of bf16 products on tensor cores.
    pub tensor_cores: f64,
    /// Operations per second in f32 outside them.
    pub f32: f64,
}

impl Machine {
    /// An H100 SXM (HBM3): copies reach 3.0 TB/s (data sheet: 3.35), bf16 products 800 TFLOP/s (989), f32 60 TFLOP/s (67).
    pub const H100: Self = Self { bandwidth: 3.0e12, tensor_cores: 800e12, f32: 60e12 };
}

/// The work of all launches of one kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Record {
    /// Number of launches.
    pub launches: u64,
    /// Sum of [`Work::bytes`].
    pub bytes: u64,
    /// Sum of [`Work::operations`].
    pub operations: u64,
    /// Sum of [`Work::floor`]: each launch has its own bound.
    pub floor_seconds: f64,
}

impl Record {
    fn add(&mut self, other: &Self) {
        self.launches += other.launches;
        self.bytes += other.bytes;
        self.operations += other.operations;
        self.floor_seconds += other.floor_seconds;
    }
}

/// Sums the work of launches, kernel by kernel.
#[derive(Clone, Debug)]
pub struct Recorder {
    pub(crate) machine: Machine,
    records: BTreeMap<&'static str, Record>,
}

impl Recorder {
    /// A recorder without records; floors are those of `machine`.
    pub fn new(machine: Machine) -> Self {
        Self { machine, records: BTreeMap::new() }
    }

    /// Counts one launch of `kernel`.
    pub fn record(&mut self, kernel: &'static str, work: &Work) {
        self.records.entry(kernel).or_default().add(&Record {
            launches: 1,
            bytes: work.bytes,
            operations: work.operations,
            floor_seconds: work.floor(&self.machine),
        });
    }

    /// Records by the kernels' names.
    pub fn records(&self) -> &BTreeMap<&'static str, Record> {
        &self.records
    }

    /// Sum over all kernels.
    pub fn total(&self) -> Record {
        self.records.values().fold(Record::default(), |mut total, r| {
            total.add(r);
            total
        })
    }

    /// Markdown table with a row per kernel, the largest floor first, and the total in the last row.
    ///
    /// ```
    /// use adw_cuda::work::{Machine, Recorder, Work};
    /// let mut recorder = Recorder::new(Machine::H100);
    /// recorder.record("copy", &Work::new(3_000_000_000, 0));
    /// assert!(recorder.to_markdown().contains("| copy | 1 | 3.000 | 0.000 | 1000.0 |"));
    /// ```
    pub fn to_markdown(&self) -> String {
        let mut rows: Vec<_> = self.records.iter().collect();
        rows.sort_by(|a, b| b.1.floor_seconds.total_cmp(&a.1.floor_seconds));
        let total = self.total();
        let mut table = String::from("| kernel | launches | GB | GFLOP | floor (µs) |\n|---|--:|--:|--:|--:|\n");
        for (kernel, r) in rows.into_iter().chain([(&"all", &total)]) {
            let _ = writeln!(
                table,
                "| {kernel} | {} | {:.3} | {:.3} | {:.1} |",
                r.launches,
                r.bytes as f64 * 1e-9,
                r.operations as f64 * 1e-9,
                r.floor_seconds * 1e6,
            );
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_the_larger_of_two_times() {
        let machine = Machine { bandwidth: 10.0, tensor_cores: 100.0, f32: 1.0 };
        let work = Work::new(50, 200);
        assert_eq!(work.floor(&machine), 200.0);
        assert_eq!(work.on_tensor_cores(true).floor(&machine), 5.0);
    }

    #[test]
    fn floors_add_up_launch_by_launch_and_the_largest_comes_first() {
        let machine = Machine { bandwidth: 1e6, tensor_cores: 1e6, f32: 1e6 };
        let mut recorder = Recorder::new(machine);
        recorder.record("a", &Work::new(3, 1));
        recorder.record("b", &Work::new(1, 1));
        recorder.record("a", &Work::new(1, 4));
        let a = recorder.records()["a"];
        assert_eq!((a.launches, a.bytes, a.operations), (2, 4, 5));
        assert!((a.floor_seconds - 7e-6).abs() < 1e-12, "3 and 4, not 5");
        assert!((recorder.total().floor_seconds - 8e-6).abs() < 1e-12);
        let table = recorder.to_markdown();
        let names: Vec<_> = table.lines().skip(2).filter_map(|line| line.split_whitespace().nth(1)).collect();
        assert_eq!(names, ["a", "b", "all"]);
    }
}
