//! Partial sums of a weight gradient. Blocks of outputs are split into a number of groups that depends on the shape alone,
//! each with its own partial sum, so that the bits do not depend on the number of threads.

use crate::raw_output::{SharedOut, filled};
use crate::simd::Element;
use rayon::prelude::*;

/// Layout of a partial sum, `[tap][row_pitch][column_pitch]`: rows are channels of one map, columns those of the other.
#[derive(Clone, Copy)]
pub(super) struct PartialSums {
    pub(super) taps: usize,
    pub(super) rows: usize,
    pub(super) row_pitch: usize,
    pub(super) columns: usize,
    pub(super) column_pitch: usize,
    /// True if rows are output channels, false if columns are.
    pub(super) rows_are_outputs: bool,
}

impl PartialSums {
    /// Elements of one partial sum.
    pub(super) fn len(&self) -> usize {
        self.taps * self.row_pitch * self.column_pitch
    }

    /// Adds partial sums in their order and returns the gradient `[co][ci][tap]`.
    pub(super) fn join<T: Element>(&self, partials: &[T]) -> Vec<T> {
        let Self { taps, rows, columns, .. } = *self;
        // SAFETY: (row, column, tap) runs over all elements of the gradient, once each.
        unsafe {
            filled(rows * columns * taps, |out: SharedOut<T>| {
                let buffers = || (vec![T::ZERO; columns], vec![T::ZERO; columns * taps]);
                (0..rows).into_par_iter().for_each_init(buffers, |(of_tap, by_column), row| {
                    for tap in 0..taps {
                        let at = (tap * self.row_pitch + row) * self.column_pitch;
                        of_tap.fill(T::ZERO);
                        for partial in partials.chunks_exact(self.len()) {
                            for (sum, &x) in of_tap.iter_mut().zip(&partial[at..][..columns]) {
                                *sum += x;
                            }
                        }
                        for (element, &sum) in by_column[tap..].iter_mut().step_by(taps).zip(of_tap.iter()) {
                            *element = sum;
                        }
                    }
                    for (column, taps_of) in by_column.chunks_exact(taps).enumerate() {
                        let pair = if self.rows_are_outputs { row * columns + column } else { column * rows + row };
                        out.write(pair * taps, taps_of);
                    }
                });
            })
        }
    }
}
