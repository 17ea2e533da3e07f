//! How the C library hands memory out: a pass over a 3D network allocates and frees maps of tens of megabytes one after
//! the other.

/// Has the process keep the memory of freed maps for the next ones.
///
/// By default, glibc asks the system for every large block and gives it back when it is freed, so that each map costs
/// thousands of page faults and as many pages to be zeroed: measured at a twentieth of a search iteration's time. A program
/// calls this once, before it makes its first large tensor; a library should leave the choice to its program. Elsewhere
/// than on Linux with glibc this does nothing.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt takes two numbers and may be called at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}
