//! The sum of a convolution as its definition states it. Supports every job.

pub(super) mod correlation;
pub(super) mod weight_gradient;
