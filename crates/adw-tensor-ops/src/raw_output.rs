//! Output buffers that several threads fill without zeroing them first.

/// A pointer that several threads write through, each to elements of its own.
#[derive(Clone, Copy)]
pub(crate) struct SharedOut<T>(*mut T);

// SAFETY: the pointer is dereferenced in unsafe code only, which keeps the threads' elements disjoint.
unsafe impl<T: Send> Send for SharedOut<T> {}
// SAFETY: the pointer is dereferenced in unsafe code only, which keeps the threads' elements disjoint.
unsafe impl<T: Send> Sync for SharedOut<T> {}

impl<T> SharedOut<T> {
    pub(crate) fn ptr(self) -> *mut T {
        self.0
    }

    /// Copies `elements` to the positions from `at` on.
    ///
    /// # Safety
    /// Those positions lie inside the buffer, and no other thread accesses them.
    #[inline(always)]
    pub(crate) unsafe fn write(self, at: usize, elements: &[T])
    where
        T: Copy,
    {
        // SAFETY: the caller guarantees that the positions are valid; a slice cannot overlap memory that is being filled.
        unsafe { self.0.add(at).copy_from_nonoverlapping(elements.as_ptr(), elements.len()) }
    }

    /// The same memory seen as elements of another type.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn cast<U>(self) -> SharedOut<U> {
        SharedOut(self.0.cast())
    }
}

/// Makes a vector of `n` elements that `fill` writes through the pointer, without zeroing it first.
///
/// # Safety
/// `fill` writes every one of the `n` elements before it returns.
pub(crate) unsafe fn filled<T>(n: usize, fill: impl FnOnce(SharedOut<T>)) -> Vec<T> {
    let mut v = Vec::with_capacity(n);
    fill(SharedOut(v.as_mut_ptr()));
    // SAFETY: the capacity is there, and the caller guarantees that all elements have been written.
    unsafe { v.set_len(n) };
    v
}
