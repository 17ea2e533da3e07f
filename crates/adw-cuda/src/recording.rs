//! Runtimes that measure work: [`Recording`] around another runtime, [`Dry`] without one.

use std::sync::{Mutex, PoisonError};

use crate::launch::{Address, Launch, Params, Result, Runtime};
use crate::work::{Machine, Recorder};

/// Runtime that records the work of launches on another one.
pub struct Recording<R> {
    runtime: R,
    recorder: Mutex<Recorder>,
}

impl<R: Runtime> Recording<R> {
    /// A runtime that launches on `runtime`; floors are those of `machine`.
    pub fn new(runtime: R, machine: Machine) -> Self {
        Self { runtime, recorder: Mutex::new(Recorder::new(machine)) }
    }

    /// Runtime that launches.
    pub fn runtime(&self) -> &R {
        &self.runtime
    }

    /// Records since the last call.
    pub fn take(&self) -> Recorder {
        let mut recorder = self.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        let empty = Recorder::new(recorder.machine);
        std::mem::replace(&mut *recorder, empty)
    }
}

impl<R: Runtime> Runtime for Recording<R> {
    type Buffer = R::Buffer;

    fn alloc(&self, bytes: usize) -> Result<R::Buffer> {
        self.runtime.alloc(bytes)
    }

    unsafe fn launch<P: Params>(&self, launch: &Launch<P>) -> Result<()> {
        // SAFETY: the caller guarantees the addresses.
        unsafe { self.runtime.launch(launch)? };
        let mut recorder = self.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        recorder.record(launch.kernel, &launch.work);
        Ok(())
    }
}

/// Runtime without memory that runs nothing. Within a [`Recording`] it gives the work of ops of any size without a device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dry;

impl Runtime for Dry {
    type Buffer = Address;

    fn alloc(&self, _: usize) -> Result<Address> {
        Ok(Address::NONE)
    }

    unsafe fn launch<P: Params>(&self, _: &Launch<P>) -> Result<()> {
        Ok(())
    }
}
