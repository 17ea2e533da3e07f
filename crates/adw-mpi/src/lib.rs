#![doc = include_str!("../README.md")]

use std::sync::{Mutex, PoisonError};

#[cfg(feature = "mpi")]
mod calls;
#[cfg(not(feature = "mpi"))]
#[path = "no_calls.rs"]
mod calls;

/// Bytes of the largest message: MPI counts them with 31 bits.
const MAX_MESSAGE: usize = 1 << 30;

/// All processes that were started together.
#[derive(Debug)]
pub struct World {
    rank: usize,
    size: usize,
    /// Locked during calls: the library is used by one thread at a time.
    calls: Mutex<()>,
}

impl World {
    /// Starts MPI; none if it was started before or this crate was built without it.
    ///
    /// MPI waits in [`Self::finish`] of each process for all others.
    pub fn start() -> Option<Self> {
        let (rank, size) = calls::start()?;
        Some(Self { rank, size, calls: Mutex::new(()) })
    }

    /// Number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Sends bytes to a rank and receives as many as `receive` has from a rank, at the same time, where each is given. Calls
    /// `waiting` again and again until both are done; it must not panic, which would end the process, or call this. Errors of MPI,
    /// and a message of another length than `receive`, end all processes.
    ///
    /// # Panics
    /// If a rank is not below [`Self::size`].
    pub fn exchange(
        &self,
        send: Option<(usize, &[u8])>,
        receive: Option<(usize, &mut [u8])>,
        mut waiting: impl FnMut(),
    ) {
        let _one_at_a_time = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        for rank in [send.as_ref().map(|s| s.0), receive.as_ref().map(|r| r.0)].into_iter().flatten() {
            assert!(rank < self.size, "rank {rank} of {}", self.size);
        }
        let mut sent = send.map(|(to, bytes)| (to, bytes.chunks(MAX_MESSAGE)));
        let mut received = receive.map(|(from, bytes)| (from, bytes.chunks_mut(MAX_MESSAGE)));
        loop {
            let send = sent.as_mut().and_then(|(to, chunks)| Some((*to, chunks.next()?)));
            let receive = received.as_mut().and_then(|(from, chunks)| Some((*from, chunks.next()?)));
            if send.is_none() && receive.is_none() {
                return;
            }
            calls::transfer(send, receive, &mut waiting);
        }
    }

    /// Ends MPI.
    pub fn finish(&self) {
        let _one_at_a_time = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls::finish();
    }
}
