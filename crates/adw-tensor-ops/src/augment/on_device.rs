//! A batch in the host's memory in, the transformed one on a CUDA device out.

use super::Transforms;
use super::cuda::{self, Batch, Plane};
use crate::error::{Error, Result};
use adw_cuda::Buffer;
use adw_cuda::device::CudaRuntime;
use candle_core::{CudaDevice, DType, Tensor};

/// The transformed images `[B, C, D, H, W]`, f32, and their labels `[B, D, H, W]`, u8 (0 where they are below 0).
/// `shape`: `[B, C, D, H, W]`; `transforms`: those of every channel of every sample, `[B, C]`.
///
/// # Errors
/// If the numbers do not fit the shape, or the device fails.
pub fn apply(
    device: &CudaDevice,
    x: &[f32],
    labels: &[i16],
    shape: [usize; 5],
    transforms: &[Transforms],
) -> Result<(Tensor, Tensor)> {
    let [batch, channels, d, h, w] = shape;
    let voxels = d * h * w;
    let sizes = [x.len(), labels.len(), transforms.len()];
    let expected = [batch * channels * voxels, batch * voxels, batch * channels];
    if sizes != expected {
        let what = format!("images, labels and transforms of {sizes:?} elements, expected {expected:?} for {shape:?}");
        return Err(Error::Argument { op: "augment", what });
    }
    let rt = &*CudaRuntime::of(device);
    let size = [d, h, w];
    let planes: Vec<_> = transforms.iter().map(|t| Plane::new(t, size)).collect();
    let (raw, raw_labels, table) = (rt.upload(x)?, rt.upload(labels)?, rt.upload(&planes)?);
    let (out, out_address) = rt.empty(DType::F32, (batch, channels, d, h, w))?;
    let (target, target_address) = rt.empty(DType::U8, (batch, d, h, w))?;
    let places = Batch {
        x: raw.address(),
        labels: raw_labels.address(),
        out: out_address,
        target: target_address,
        batch,
        channels,
        size,
    };
    // SAFETY: the buffers have the sizes that were checked above.
    unsafe { cuda::apply(rt, &places, &planes, table.address())? };
    Ok((out, target))
}
