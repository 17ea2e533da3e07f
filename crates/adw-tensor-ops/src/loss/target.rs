//! Targets of the loss: checks, conversion to bytes, and resizing.

use super::kernels::OP;
use crate::error::{Error, Result};
use crate::map::map_dims;
use candle_core::{DType, Tensor};

/// Checks that the target has one label per voxel of the finest logits, `[B, D, H, W]`.
///
/// # Errors
/// If the target has another shape.
pub fn check_target(target: &Tensor, expected: [usize; 4]) -> Result<()> {
    if target.dims() == expected {
        return Ok(());
    }
    let (got, expected) = (target.shape().clone(), format!("{expected:?}, as the image"));
    Err(Error::Shape { op: OP, what: "target", got, expected })
}

/// Checks logits `[B, D, H, W, K]` and a target of their size. Returns batch, size and classes.
pub(super) fn check(logits: &Tensor, target: &Tensor) -> Result<(usize, [usize; 3], usize)> {
    let (batch, size, classes) = map_dims(OP, "logits", logits)?;
    check_classes(classes)?;
    check_target(target, [batch, size[0], size[1], size[2]])?;
    Ok((batch, size, classes))
}

/// Checks logits `[B, D, H, W, K]` of a scale that is no finer than the target.
pub(super) fn check_scale(logits: &Tensor, target: &Tensor) -> Result<()> {
    let (batch, size, classes) = map_dims(OP, "logits", logits)?;
    check_classes(classes)?;
    match *target.dims() {
        [b, d, h, w] if b == batch && [d, h, w].iter().zip(size).all(|(&n, size)| size <= n) => Ok(()),
        _ => {
            let (got, [d, h, w]) = (target.shape().clone(), size);
            Err(Error::Shape { op: OP, what: "target", got, expected: format!("at least [{batch}, {d}, {h}, {w}]") })
        }
    }
}

/// Checks the number of classes.
pub(super) fn check_classes(classes: usize) -> Result<()> {
    if (2..=255).contains(&classes) {
        return Ok(());
    }
    Err(Error::Argument { op: OP, what: format!("{classes} classes, expected 2 to 255 (background included)") })
}

/// Target as bytes. A label that a byte cannot hold must not wrap around to one that is a class.
///
/// # Errors
/// If the target does not hold integers, or holds a label that has no class.
pub(super) fn labels(target: &Tensor, classes: usize) -> Result<Tensor> {
    if !target.dtype().is_int() {
        let what = format!("the target holds {:?}, expected integers", target.dtype());
        return Err(Error::Argument { op: OP, what });
    }
    if target.dtype() != DType::U8 {
        let values = target.to_dtype(DType::I64)?.flatten_all()?.to_vec1::<i64>()?;
        if let Some(label) = values.into_iter().find(|v| !(0..classes as i64).contains(v)) {
            return Err(unknown_label(label, classes));
        }
    }
    Ok(target.to_dtype(DType::U8)?.contiguous()?)
}

/// Error of a label that has no class.
pub(super) fn unknown_label(label: i64, classes: usize) -> Error {
    let last = classes - 1;
    let what = format!("the target holds label {label}, but the logits have {classes} classes (0 to {last})");
    Error::Argument { op: OP, what }
}

/// Nearest-neighbour resampling of a target `[B, D, H, W]` to a grid of `size`: per axis the voxel at the cell's centre,
/// `floor((i + 1/2) size_in / size_out)`, as PyTorch's `nearest-exact` and nnU-Net's targets of deep supervision.
///
/// # Errors
/// If the target is not of that shape.
pub fn resize_target(target: &Tensor, size: [usize; 3]) -> Result<Tensor> {
    let (_, d, h, w) = target.dims4()?;
    let mut t = target.contiguous()?;
    for (axis, (from, to)) in [d, h, w].into_iter().zip(size).enumerate() {
        if from != to {
            let index: Vec<u32> = (0..to).map(|i| ((2 * i + 1) * from / (2 * to)) as u32).collect();
            t = t.index_select(&Tensor::from_vec(index, to, t.device())?, axis + 1)?;
        }
    }
    Ok(t.contiguous()?)
}
