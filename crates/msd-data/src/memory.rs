//! Work on many cases within a limit of memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

use crate::error::{Error, Result};

/// Limit on the memory that work on cases takes at once.
///
/// ```
/// use msd_data::Memory;
/// let squares = |memory: Memory| memory.each(&[1u64, 2, 3], |n| n.to_string(), |n| Ok(*n), |n| Ok(n * n));
/// assert_eq!(squares(Memory::bytes(8))?, [1, 4, 9]);
/// assert!(squares(Memory::bytes(2)).unwrap_err().to_string().starts_with("3: needs about"));
/// # Ok::<(), msd_data::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    limit: u64,
    /// Ends the work once it is true.
    stop: Option<&'static AtomicBool>,
}

impl PartialEq for Memory {
    fn eq(&self, other: &Self) -> bool {
        self.limit == other.limit
    }
}

impl Eq for Memory {}

impl Memory {
    /// Unlimited memory: as many cases at once as there are threads.
    pub fn unlimited() -> Self {
        Self::bytes(u64::MAX)
    }

    /// At most `limit` bytes, by estimates made before the work.
    pub fn bytes(limit: u64) -> Self {
        Self { limit, stop: None }
    }

    /// The same limit for work that [`Self::each`] ends with [`Error::Interrupted`] before its next item once `stop` is true.
    #[must_use]
    pub fn stopped_by(self, stop: &'static AtomicBool) -> Self {
        Self { stop: Some(stop), ..self }
    }

    /// The limit in bytes; `u64::MAX` is none.
    pub fn limit(self) -> u64 {
        self.limit
    }

    /// The limit reduced by `bytes` that are in use.
    #[must_use]
    pub fn less(self, bytes: u64) -> Self {
        Self { limit: self.limit.saturating_sub(bytes), ..self }
    }

    /// Returns true if `bytes` do not exceed the limit.
    pub fn holds(self, bytes: u64) -> bool {
        bytes <= self.limit
    }

    /// Calls `work` on each item, in as many threads as there are processors and as the items' `need`s in bytes allow.
    /// Results are in the order of the items; `name` is the item's name in errors.
    ///
    /// # Errors
    /// The first error in the order of the items, of `need` or `work`; [`Error::Memory`] if an item alone exceeds the limit;
    /// [`Error::Interrupted`]. No further item is begun after an error.
    pub fn each<I: Sync, T: Send>(
        self,
        items: &[I],
        name: impl Fn(&I) -> String + Sync,
        need: impl Fn(&I) -> Result<u64> + Sync,
        work: impl Fn(&I) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let queue = Mutex::new(WorkQueue {
            next: 0,
            free: self.limit,
            failed: false,
            results: items.iter().map(|_| None).collect(),
        });
        let changed = Condvar::new();
        let lock = || queue.lock().unwrap_or_else(PoisonError::into_inner);
        let worker = || {
            let mut guard = lock();
            while guard.next < items.len() && !guard.failed {
                let i = guard.next;
                guard.next += 1;
                drop(guard);
                let needed = match self.stop {
                    Some(stop) if stop.load(Ordering::Relaxed) => Err(Error::Interrupted),
                    _ => need(&items[i]).and_then(|bytes| self.check(bytes, || name(&items[i]))),
                };
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
                while guard.free < bytes && !guard.failed {
                    guard = changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
                }
                if guard.failed {
                    return;
                }
                guard.free -= bytes;
                drop(guard);
                let share = Share { queue: &queue, changed: &changed, bytes };
                let result = work(&items[i]);
                guard = lock();
                guard.failed |= result.is_err();
                guard.results[i] = Some(result);
                drop(guard);
                drop(share);
                guard = lock();
            }
        };
        // Threads of their own: one of rayon's that waits here could hold up the work it waits for. A single one waits for
        // nobody; it is the caller's, so that what `work` does in parallel stays in the caller's pool.
        let threads = rayon::current_num_threads().min(items.len());
        thread::scope(|scope| {
            let threads = 0..if threads > 1 { threads } else { 0 };
            let started = threads.filter(|_| thread::Builder::new().spawn_scoped(scope, worker).is_ok()).count();
            // The system starts no more threads.
            if started == 0 {
                worker();
            }
        });
        let results = queue.into_inner().unwrap_or_else(PoisonError::into_inner).results;
        results.into_iter().flatten().collect()
    }

    /// Returns `needed` bytes if they do not exceed the limit.
    ///
    /// # Errors
    /// [`Error::Memory`] with the name of the work.
    pub fn check(self, needed: u64, name: impl FnOnce() -> String) -> Result<u64> {
        if self.holds(needed) { Ok(needed) } else { Err(Error::Memory { what: name(), needed, limit: self.limit }) }
    }
}

/// Memory of an item in progress. Given back when its work is done; if the work panics, no further item is begun.
struct Share<'a, T> {
    queue: &'a Mutex<WorkQueue<T>>,
    changed: &'a Condvar,
    bytes: u64,
}

impl<T> Drop for Share<'_, T> {
    fn drop(&mut self) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.free += self.bytes;
        queue.failed |= thread::panicking();
        self.changed.notify_all();
    }
}

/// Items in progress.
struct WorkQueue<T> {
    next: usize,
    free: u64,
    failed: bool,
    results: Vec<Option<Result<T>>>,
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use std::time::Duration;

    use super::*;

    static STOP: AtomicBool = AtomicBool::new(false);

    #[test]
    fn a_panic_ends_it() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let run =
            || Memory::bytes(1).each(&[1, 2, 3], u8::to_string, |_| Ok(1), |_| -> Result<()> { panic!("at work") });
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.install(run))).is_err());
    }

    #[test]
    fn a_single_thread_is_the_callers() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let worker = |_: &u8| Ok((rayon::current_thread_index(), thread::current().id()));
        let (found, caller) = pool
            .install(|| (Memory::unlimited().each(&[1, 2], u8::to_string, |_| Ok(1), worker), thread::current().id()));
        assert_eq!(found.unwrap(), [(Some(0), caller); 2]);
    }

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
        assert_eq!(Memory::bytes(10).each(&items, u64::to_string, |n| Ok(*n), work).unwrap(), items);
        assert!(most.load(SeqCst) <= 10, "{most:?}");

        let begun = AtomicU64::new(0);
        let fail_at_3 = |n: &u64| {
            begun.fetch_add(1, SeqCst);
            if *n == 3 { Err(Error::Invalid("three".to_owned())) } else { Ok(()) }
        };
        let many: Vec<u64> = (0..1000).collect();
        let error = Memory::bytes(1).each(&many, u64::to_string, |_| Ok(1), fail_at_3).unwrap_err();
        assert_eq!(error.to_string(), "three");
        assert!(begun.load(SeqCst) < 1000);
        let stop_at_3 = |n: &u64| {
            STOP.fetch_or(*n == 3, Ordering::Relaxed);
            Ok(*n)
        };
        let error = Memory::bytes(9).stopped_by(&STOP).less(1).each(&many, u64::to_string, |_| Ok(1), stop_at_3);
        assert!(matches!(error, Err(Error::Interrupted)), "{error:?}");
        let error = Memory::bytes(5).each(&[4u64, 6], u64::to_string, |n| Ok(*n), |_| Ok(())).unwrap_err();
        assert!(error.to_string().starts_with("6: needs about"), "{error}");
    }
}
