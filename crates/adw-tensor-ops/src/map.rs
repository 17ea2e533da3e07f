//! Layout of maps: channels last in memory, `[B, D, H, W, C]`, with views `[B, C, D, H, W]` at the public border.

use crate::error::{Error, Result};
use crate::geometry::num_elements;
use candle_core::Tensor;

/// Batch, spatial size and channels of a channels-last map, none of them 0.
pub(crate) fn map_dims(op: &'static str, what: &'static str, map: &Tensor) -> Result<(usize, [usize; 3], usize)> {
    match *map.dims() {
        [b, d, h, w, c] => {
            num_elements(op, what, map.dims())?;
            Ok((b, [d, h, w], c))
        }
        _ => Err(Error::Shape { op, what, got: map.shape().clone(), expected: "[B, D, H, W, C]".into() }),
    }
}

/// Converts `[B, C, D, H, W]` to contiguous `[B, D, H, W, C]`; a tensor that lies so already is not copied.
pub(crate) fn channels_last(op: &'static str, x: &Tensor) -> Result<Tensor> {
    if x.rank() != 5 {
        return Err(Error::Shape { op, what: "x", got: x.shape().clone(), expected: "[B, C, D, H, W]".into() });
    }
    num_elements(op, "x", x.dims())?;
    let map = x.permute((0, 2, 3, 4, 1))?;
    // `contiguous` keeps a view that begins inside another tensor; kernels of a device refuse one that is not aligned to 16 bytes.
    let begins_at = map.layout().start_offset() * map.dtype().size_in_bytes();
    let is_aligned = !map.device().is_cuda() || begins_at.is_multiple_of(16);
    Ok(if is_aligned { map.contiguous()? } else { map.force_contiguous()? })
}

/// View of `[B, D, H, W, C]` as `[B, C, D, H, W]`.
pub(crate) fn channels_first(y: &Tensor) -> Result<Tensor> {
    Ok(y.permute((0, 4, 1, 2, 3))?)
}

/// Checks that a tensor is a vector of `len` elements.
pub(crate) fn check_vector(op: &'static str, what: &'static str, vector: &Tensor, len: usize) -> Result<()> {
    if vector.dims() == [len] {
        return Ok(());
    }
    Err(Error::Shape { op, what, got: vector.shape().clone(), expected: format!("[{len}]") })
}
