//! Runtime that measures launches without a device.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::launch::{Address, Launch, Params, Result, Runtime};
use crate::work::{Machine, Recorder};

/// Runtime without memory that runs nothing and records the work of launches: that of ops of any size, without a device.
pub struct DryRun {
    /// Records of all launches, and the most bytes of dynamic shared memory of a block.
    seen: Mutex<(Recorder, u32)>,
}

impl DryRun {
    /// A runtime without records; floors are those of `machine`.
    pub fn new(machine: Machine) -> Self {
        Self { seen: Mutex::new((Recorder::new(machine), 0)) }
    }

    fn seen(&self) -> MutexGuard<'_, (Recorder, u32)> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records of all launches.
    pub fn recorder(&self) -> Recorder {
        self.seen().0.clone()
    }

    /// Most bytes of dynamic shared memory that a block of a launch has.
    pub fn most_shared(&self) -> u32 {
        self.seen().1
    }
}

impl Runtime for DryRun {
    type Buffer = Address;

    fn alloc(&self, _: usize) -> Result<Address> {
        Ok(Address::NONE)
    }

    unsafe fn launch<P: Params>(&self, launch: &Launch<P>) -> Result<()> {
        let (recorder, most_shared) = &mut *self.seen();
        recorder.record(launch.kernel, &launch.work);
        *most_shared = launch.shared.max(*most_shared);
        Ok(())
    }
}
