//! Stand-ins for builds without cuDNN: it cannot be started, so no value of the types below exists.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use crate::device::convolution::{ConvPass, Convolution};
use crate::launch::{Address, Error, Result};
use crate::work::Work;

enum Never {}

pub(super) struct Cudnn(Never);

/// Pass of a convolution with the algorithm of cuDNN that computes it.
pub struct CudnnPass(Never);

impl Cudnn {
    pub(super) fn new(_: &Arc<CudaStream>) -> Result<Self> {
        Err(Error::Unavailable("this program was built without cuDNN".into()))
    }

    pub(super) fn pass(&mut self, _: ConvPass, _: &Convolution) -> Result<Option<CudnnPass>> {
        match self.0 {}
    }

    pub(super) unsafe fn run(&mut self, _: &CudnnPass, _: [Address; 3], _: Address) -> Result<()> {
        match self.0 {}
    }
}

impl CudnnPass {
    pub(super) fn kernel(&self) -> &'static str {
        match self.0 {}
    }

    pub(super) fn workspace_bytes(&self) -> usize {
        match self.0 {}
    }

    pub(super) fn work(&self) -> Work {
        match self.0 {}
    }
}
