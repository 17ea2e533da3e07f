//! Weights in the order in which the kernels of `conv3d.cu` read them.

use super::shape::MODULE;
use crate::precision::Precision;
use adw_cuda::work::Work;
use adw_cuda::{Address, Buffer, Launch, Result, Runtime, blocks, params};
use std::ops::Range;

params! {
    struct PackParams {
        weight: Address,
        out: Address,
        dims: [u32; 3],
        num: [u32; 3],
        strides: [u32; 3],
        base: u32,
    }
}

/// Order of elements of an array of `dims`: element `[i, j, k]` is element `base + strides . [i, j, k]` of the source, or 0
/// where an index is not below `num`.
pub(super) struct Order {
    pub(super) dims: [usize; 3],
    pub(super) num: [usize; 3],
    pub(super) strides: [usize; 3],
    pub(super) base: usize,
}

/// Copies weights, or gradients of weights, in another order and perhaps another element type (not bf16 to bf16).
///
/// # Safety
/// Both addresses are valid for the elements of `order`.
pub(super) unsafe fn pack<R: Runtime>(
    rt: &R,
    from: (Address, Precision),
    to: (Address, Precision),
    order: &Order,
) -> Result<()> {
    let len: usize = order.dims.iter().product();
    let read: usize = order.num.iter().product();
    let int = |v: [usize; 3]| v.map(|v| v as u32);
    // SAFETY: the caller guarantees the addresses.
    unsafe {
        rt.launch(&Launch {
            module: MODULE,
            kernel: match (from.1, to.1) {
                (Precision::Full, Precision::Full) => "conv_pack_f32",
                (Precision::Full, Precision::Bf16) => "conv_pack_bf16",
                (Precision::Bf16, _) => "conv_unpack_bf16",
            },
            grid: [blocks(len, 256), 1, 1],
            threads: 256,
            shared: 0,
            work: Work::new(read * from.1.element_bytes() + len * to.1.element_bytes(), 0),
            params: PackParams {
                weight: from.0,
                out: to.0,
                dims: int(order.dims),
                num: int(order.num),
                strides: int(order.strides),
                base: order.base as u32,
            },
        })
    }
}

/// Weights `[taps, rows, columns]` in the order the product reads them.
pub(super) struct Packed<B> {
    pub(super) data: B,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Output channels of a block.
    pub(super) tile: usize,
}

/// Weights of a convolution, `[Cout, Cin, kD, kH, kW]` f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weights {
    /// Address of the weights.
    pub(crate) data: Address,
    /// Number of output channels.
    pub(crate) co: usize,
    /// Number of input channels.
    pub(crate) ci: usize,
}

/// Output channels of a block: the widest tile that wastes least.
fn column_tile(columns: usize) -> usize {
    [96, 48, 16].into_iter().min_by_key(|&n| columns.next_multiple_of(n) + 256 / n).expect("there are tiles")
}

/// Input channels (or output channels, in the input gradient) of one slice of the products.
pub(super) fn slice(precision: Precision) -> usize {
    64 / precision.element_bytes()
}

impl Weights {
    /// Weights `[taps, rows, columns]`. For the forward pass rows are input channels and columns output channels; for the
    /// input gradient rows are output channels and columns the input channels `wanted`.
    ///
    /// # Safety
    /// The weights' address is valid.
    pub(super) unsafe fn pack<R: Runtime>(
        &self,
        rt: &R,
        taps: usize,
        wanted: Option<&Range<usize>>,
        precision: Precision,
    ) -> Result<Packed<R::Buffer>> {
        let (num_rows, num_columns) = match wanted {
            None => (self.ci, self.co),
            Some(range) => (self.co, range.len()),
        };
        let tile = column_tile(num_columns);
        let (rows, columns) = (num_rows.next_multiple_of(slice(precision)), num_columns.next_multiple_of(tile));
        let data = rt.alloc(taps * rows * columns * precision.element_bytes())?;
        let (row_stride, column_stride) = match wanted {
            None => (taps, self.ci * taps),
            Some(_) => (self.ci * taps, taps),
        };
        let order = Order {
            dims: [taps, rows, columns],
            num: [taps, num_rows, num_columns],
            strides: [1, row_stride, column_stride],
            base: wanted.map_or(0, |r| r.start * taps),
        };
        // SAFETY: `data` has room for the result; the caller guarantees the weights' address.
        unsafe {
            let (from, to) = (self.data, data.address());
            pack(rt, (from, Precision::Full), (to, precision), &order)?;
        }
        Ok(Packed { data, rows, columns, tile })
    }
}
