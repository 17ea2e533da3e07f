//! Partition of a job into tasks. It depends on shapes alone, never on the number of threads, so that sums are taken in
//! the same order everywhere.

use std::ops::Range;

/// Splits `0..n` into parts of at most `max` whose lengths differ by at most one.
pub(super) fn balanced(n: usize, max: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let parts = n.div_ceil(max);
    (0..parts).map(move |i| n * i / parts..n * (i + 1) / parts)
}

/// A block of output rows of one sample.
#[derive(Clone, Debug)]
pub(super) struct RowBlock {
    pub(super) batch_idx: usize,
    pub(super) d: Range<usize>,
    pub(super) h: Range<usize>,
}

impl RowBlock {
    /// `(d, h)` of every row, in order.
    pub(super) fn rows(&self) -> impl Iterator<Item = (usize, usize)> + Clone + use<> {
        let h = self.h.clone();
        self.d.clone().flat_map(move |d| h.clone().map(move |h| (d, h)))
    }
}

/// The rows `d` x `h` of every sample, in blocks of at most `block_d` x `block_h`.
pub(super) fn row_blocks(batch: usize, [d, h]: [usize; 2], [block_d, block_h]: [usize; 2]) -> Vec<RowBlock> {
    let mut blocks = Vec::new();
    for batch_idx in 0..batch {
        for d in balanced(d, block_d) {
            for h in balanced(h, block_h) {
                blocks.push(RowBlock { batch_idx, d: d.clone(), h });
            }
        }
    }
    blocks
}

/// Rows of a block along D and H: as many of a plane as `fits` accepts, then as many whole planes.
pub(super) fn largest_row_block([d, h]: [usize; 2], fits: impl Fn([usize; 2]) -> bool) -> [usize; 2] {
    let largest = |n: usize, fits: &dyn Fn(usize) -> bool| {
        let largest = (1..n).take_while(|&i| fits(i + 1)).last().map_or(1, |i| i + 1);
        // As many blocks as the largest size needs, of sizes that differ by at most one.
        n.div_ceil(n.div_ceil(largest))
    };
    let block_h = largest(h, &|block_h| fits([1, block_h]));
    let block_d = largest(d, &|block_d| block_h == h && fits([block_d, block_h]));
    [block_d, block_h]
}

/// Rows of a block along D and H: the cheapest block of at most `d` x `h` rows among those that `is_allowed` accepts, one
/// row if it accepts none.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only the matrix unit uses it"))]
pub(super) fn cheapest_row_block(
    [d, h]: [usize; 2],
    is_allowed: impl Fn([usize; 2]) -> bool,
    cost: impl Fn([usize; 2]) -> usize,
) -> [usize; 2] {
    let blocks = (1..=d).flat_map(|nd| (1..=h).map(move |nh| [nd, nh]));
    blocks.filter(|&block| is_allowed(block)).min_by_key(|&block| cost(block)).unwrap_or([1, 1])
}
