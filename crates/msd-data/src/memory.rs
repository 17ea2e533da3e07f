//! Work on many cases within a limit of memory.

use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

use crate::dataset::Case;
use crate::error::{Error, Result};
use crate::nifti::read_geometry;
use crate::plan::Plan;
use crate::preprocess::resampled_shape;

/// How much memory work on cases may take at once.
///
/// ```
/// use msd_data::Memory;
/// let squares = Memory::bytes(8).each(&[1u64, 2, 3], |n| Ok(*n), |n| Ok(n * n))?;
/// assert_eq!(squares, [1, 4, 9]);
/// assert!(Memory::bytes(2).each(&[1u64, 2, 3], |n| Ok(*n), |n| Ok(n * n)).is_err());
/// # Ok::<(), msd_data::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    limit: u64,
}

impl Memory {
    /// No limit: as many cases at once as there are threads.
    pub fn unlimited() -> Self {
        Self { limit: u64::MAX }
    }

    /// At most so many bytes, as far as they can be told beforehand.
    pub fn bytes(limit: u64) -> Self {
        Self { limit }
    }

    /// The limit in bytes; `u64::MAX` is none.
    pub fn limit(self) -> u64 {
        self.limit
    }

    /// What is left once so many bytes are in use.
    #[must_use]
    pub fn less(self, bytes: u64) -> Self {
        Self::bytes(self.limit.saturating_sub(bytes))
    }

    /// Whether so many bytes fit.
    pub fn holds(self, bytes: u64) -> bool {
        bytes <= self.limit
    }

    /// `work` on each item, at once as many as there are threads and as their `need`s in bytes allow; results in the
    /// order of the items.
    ///
    /// # Errors
    /// The first error in the order of the items, of `need` or `work`; [`Error::Invalid`] if one item needs more than
    /// all there is. No further item is begun after an error.
    pub fn each<I: Sync, T: Send>(
        self,
        items: &[I],
        need: impl Fn(&I) -> Result<u64> + Sync,
        work: impl Fn(&I) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let state = Mutex::new(State {
            next: 0,
            free: self.limit,
            failed: false,
            results: items.iter().map(|_| None).collect(),
        });
        let changed = Condvar::new();
        let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
        let worker = || {
            let mut guard = lock();
            while guard.next < items.len() && !guard.failed {
                let i = guard.next;
                guard.next += 1;
                drop(guard);
                let needed = need(&items[i]).and_then(|bytes| self.check(bytes));
                guard = lock();
                let bytes = match needed {
                    Ok(bytes) => bytes,
                    Err(e) => {
                        guard.failed = true;
                        guard.results[i] = Some(Err(e));
                        changed.notify_all();
                        return;
                    }
                };
                while guard.free < bytes {
                    guard = changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
                }
                guard.free -= bytes;
                drop(guard);
                let result = work(&items[i]);
                guard = lock();
                guard.free += bytes;
                guard.failed |= result.is_err();
                guard.results[i] = Some(result);
                changed.notify_all();
            }
        };
        // Threads of their own: one of rayon's that waits here could hold up the work it waits for.
        thread::scope(|scope| {
            for _ in 0..rayon::current_num_threads().min(items.len()) {
                scope.spawn(worker);
            }
        });
        let results = state.into_inner().unwrap_or_else(PoisonError::into_inner).results;
        results.into_iter().flatten().collect()
    }

    fn check(self, bytes: u64) -> Result<u64> {
        if bytes <= self.limit {
            return Ok(bytes);
        }
        let gb = |bytes: u64| bytes as f64 / 1e9;
        Err(Error::Invalid(format!(
            "one case needs about {:.2} GB to be prepared, but {:.2} GB may be used: raise --memory or plan for larger \
             voxels",
            gb(bytes),
            gb(self.limit)
        )))
    }
}

struct State<T> {
    next: usize,
    free: u64,
    failed: bool,
    results: Vec<Option<Result<T>>>,
}

/// Bytes that a case takes, by the header of its image; upper bounds, since what is cropped away is not known beforehand.
pub(crate) struct CaseBytes {
    /// Once prepared: f32 voxels of each channel and i16 labels.
    pub(crate) prepared: u64,
    /// While it is read and prepared: twice the larger of the volumes before and after (`examples/large_case.rs`
    /// measures 1.7 to 2.1 times its image, labels included).
    pub(crate) preparing: u64,
}

impl CaseBytes {
    pub(crate) fn of(case: &Case, plan: &Plan) -> Result<Self> {
        let (geometry, _) = read_geometry(&case.image[0])?;
        let forward = plan.transpose_forward;
        let shape = forward.map(|a| geometry.shape[a]);
        let spacing_mm = forward.map(|a| geometry.spacing_mm[a]);
        let bytes = |shape: [usize; 3]| {
            let per_voxel = 4 * plan.modalities.len() as u64 + 2;
            per_voxel * shape.iter().map(|&n| n as u64).product::<u64>()
        };
        let prepared = bytes(resampled_shape(shape, spacing_mm, plan.spacing_mm));
        Ok(Self { prepared, preparing: 2 * prepared.max(bytes(shape)) })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_limit_holds_order_is_kept_and_the_first_error_ends_it() {
        let (now, most) = (AtomicU64::new(0), AtomicU64::new(0));
        let items: Vec<u64> = (0..40).map(|i| 1 + i * 7 % 9).collect();
        let work = |n: &u64| {
            most.fetch_max(now.fetch_add(*n, SeqCst) + n, SeqCst);
            thread::sleep(Duration::from_micros(300));
            now.fetch_sub(*n, SeqCst);
            Ok(*n)
        };
        assert_eq!(Memory::bytes(10).each(&items, |n| Ok(*n), work).unwrap(), items);
        assert!(most.load(SeqCst) <= 10, "{most:?}");

        let begun = AtomicU64::new(0);
        let fail_at_3 = |n: &u64| {
            begun.fetch_add(1, SeqCst);
            if *n == 3 { Err(Error::Invalid("three".to_owned())) } else { Ok(()) }
        };
        let many: Vec<u64> = (0..1000).collect();
        let error = Memory::bytes(1).each(&many, |_| Ok(1), fail_at_3).unwrap_err();
        assert_eq!(error.to_string(), "three");
        assert!(begun.load(SeqCst) < 1000);
        let error = Memory::bytes(5).each(&[4u64, 6], |n| Ok(*n), |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("raise --memory"), "{error}");
    }
}
