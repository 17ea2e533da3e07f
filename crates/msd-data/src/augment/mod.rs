//! Data augmentation: nnU-Net's list, each transform a pure function of parameters drawn beforehand.
//!
//! Ranges are nnU-Net's (batchgeneratorsv2 as of nnU-Net 2.8); [`Augmentation`] holds the probabilities. The order is
//! rotation and scaling, noise, blur, brightness, contrast, low resolution, inverted gamma, gamma, mirroring.

mod drawn;
mod filter;
mod intensity;
mod mirror_axes;
mod patch;
mod probabilities;
mod spatial;
mod vector_math;

pub(crate) use drawn::DrawnTransforms;
pub(crate) use filter::blur;
pub(crate) use intensity::add_noise;
pub use mirror_axes::MirrorAxes;
pub(crate) use patch::Patch;
pub use probabilities::Augmentation;
pub(crate) use spatial::{SpatialTransform, enlarged_patch};

#[cfg(test)]
mod tests;
