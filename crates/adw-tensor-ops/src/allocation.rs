//! Memory allocation of the C library. A pass over a 3D network allocates and frees maps of tens of megabytes one after
//! the other.

/// Configures the C library to keep the memory of freed maps for the next ones, of all threads.
///
/// By default, glibc requests every large block from the system and returns it when it is freed, so that each map costs
/// thousands of page faults and as many pages to be zeroed: measured at a twentieth of a search iteration's time. Programs
/// call this once, before they start threads and make their first large tensor; a library should leave the choice to its
/// program. It has no effect on systems other than Linux with glibc.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt takes two numbers and may be called at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        // Never, however much is free.
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
        // Threads with memory of their own would each keep the maps that they freed, and passes run in any of a pool's threads.
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
