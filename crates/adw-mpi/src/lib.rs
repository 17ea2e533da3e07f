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
    /// Locked during calls, since the library is used by one thread at a time; true once MPI has ended.
    has_ended: Mutex<bool>,
}

impl World {
    /// Starts MPI; none if it was started before, does not let threads take turns, or this crate was built without it.
    ///
    /// MPI waits in [`Self::finish`] of each process for all others.
    pub fn start() -> Option<Self> {
        let (rank, size) = calls::start()?;
        Some(Self { rank, size, has_ended: Mutex::new(false) })
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
    /// and a message of another length than `receive`, end all processes; lengths with different numbers of whole GiB wait
    /// forever.
    ///
    /// # Panics
    /// If a rank is not below [`Self::size`], or after [`Self::finish`].
    pub fn exchange(
        &self,
        send: Option<(usize, &[u8])>,
        receive: Option<(usize, &mut [u8])>,
        mut waiting: impl FnMut(),
    ) {
        let has_ended = self.has_ended.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(!*has_ended, "MPI has ended");
        for rank in [send.as_ref().map(|s| s.0), receive.as_ref().map(|r| r.0)].into_iter().flatten() {
            assert!(rank < self.size, "rank {rank} of {}", self.size);
        }
        // Nothing is a message, too: the other side may expect something else.
        let mut sent = send.map(|(to, bytes)| (to, bytes.chunks(MAX_MESSAGE).chain(bytes.is_empty().then_some(bytes))));
        let mut received = receive.map(|(from, bytes)| {
            let nothing = bytes.is_empty().then_some(&mut [][..]);
            (from, bytes.chunks_mut(MAX_MESSAGE).chain(nothing))
        });
        loop {
            let send = sent.as_mut().and_then(|(to, chunks)| Some((*to, chunks.next()?)));
            let receive = received.as_mut().and_then(|(from, chunks)| Some((*from, chunks.next()?)));
            if send.is_none() && receive.is_none() {
                return;
            }
            calls::transfer(send, receive, &mut waiting);
        }
    }

    /// Ends MPI; does nothing if it has ended.
    pub fn finish(&self) {
        let mut has_ended = self.has_ended.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut has_ended, true) {
            calls::finish();
        }
    }
}
