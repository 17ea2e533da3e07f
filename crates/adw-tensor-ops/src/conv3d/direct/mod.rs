//! The sum of a convolution as its definition states it. Supports every job.

pub(super) mod correlation;
mod panel;
pub(super) mod weight_gradient;
