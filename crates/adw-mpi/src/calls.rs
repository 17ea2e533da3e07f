//! Calls of `mpi.c`.

use std::ffi::{c_int, c_void};

unsafe extern "C" {
    fn adw_mpi_start(rank: *mut c_int, size: *mut c_int) -> c_int;
    fn adw_mpi_begin(
        to: c_int,
        sent: *const c_void,
        num_sent: c_int,
        from: c_int,
        received: *mut c_void,
        num_received: c_int,
    );
    fn adw_mpi_is_done() -> c_int;
    fn adw_mpi_finish();
}

/// Starts MPI; rank and size.
pub(crate) fn start() -> Option<(usize, usize)> {
    let (mut rank, mut size) = (0, 0);
    // SAFETY: both are written during the call alone.
    let status = unsafe { adw_mpi_start(&raw mut rank, &raw mut size) };
    (status == 0).then_some((rank as usize, size as usize))
}

/// Sends and receives one message of less than 2^31 bytes each, where it is given.
pub(crate) fn transfer(send: Option<(usize, &[u8])>, receive: Option<(usize, &mut [u8])>, waiting: &mut dyn FnMut()) {
    /// Ends the process if `waiting` unwinds, while MPI still has the addresses.
    struct Unfinished;
    impl Drop for Unfinished {
        fn drop(&mut self) {
            std::process::abort();
        }
    }
    let (to, sent) = send.map_or((-1, &[][..]), |(to, bytes)| (to as c_int, bytes));
    let (from, received) = receive.map_or((-1, &mut [][..]), |(from, bytes)| (from as c_int, bytes));
    // SAFETY: the slices have these lengths, and are borrowed until the transfer is done, before which this function does not
    // return. The caller's lock allows one transfer at a time.
    unsafe {
        adw_mpi_begin(
            to,
            sent.as_ptr().cast(),
            sent.len() as c_int,
            from,
            received.as_mut_ptr().cast(),
            received.len() as c_int,
        );
    }
    let unfinished = Unfinished;
    // SAFETY: a `World` calls this, which exists while MPI is started and keeps track of its end.
    while unsafe { adw_mpi_is_done() } == 0 {
        waiting();
    }
    std::mem::forget(unfinished);
}

/// Ends MPI.
pub(crate) fn finish() {
    // SAFETY: no transfer is under way and MPI has not ended: the calling `World` holds its lock.
    unsafe { adw_mpi_finish() }
}
