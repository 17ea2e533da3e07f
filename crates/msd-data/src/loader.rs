//! Batches prepared ahead by threads, in the order of their keys.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::error::{Error, Result};
use crate::sampler::{BatchKey, PatchSampler, SampledBatch};

/// Iterator over the batches of a sequence of keys. A batch does not depend on the thread that prepares it or on the time;
/// at most `queue` batches wait to be fetched. The first error or panic of a worker is returned in its batch's
/// place and ends the sequence. Dropping the loader stops its threads.
///
/// ```no_run
/// # fn sampler() -> msd_data::PatchSampler { unimplemented!() }
/// use msd_data::{BatchKey, Loader, Purpose};
/// use std::sync::Arc;
/// let keys = (0..250).map(|iteration| BatchKey { seed: 1, purpose: Purpose::Weights, epoch: 0, iteration });
/// for batch in Loader::new(Arc::new(sampler()), keys, 2, 4) {
///     let batch = batch?;
///     println!("{:?}", batch.x_shape);
/// }
/// # Ok::<(), msd_data::Error>(())
/// ```
pub struct Loader<T = SampledBatch> {
    shared: Arc<Shared<T>>,
    threads: Vec<JoinHandle<()>>,
    /// Index of the batch to return next.
    next: usize,
}

struct Shared<T> {
    queue: Mutex<LoaderQueue<T>>,
    changed: Condvar,
    make: Box<dyn Fn(BatchKey) -> Result<T> + Send + Sync>,
    /// Batches that may wait to be fetched.
    capacity: usize,
}

/// Batches under way.
struct LoaderQueue<T> {
    keys: Box<dyn Iterator<Item = BatchKey> + Send>,
    /// Index that the next key gets.
    started: usize,
    /// Number of batches that were fetched.
    fetched: usize,
    /// Set when no further batch will be started.
    ended: bool,
    ready: BTreeMap<usize, Result<T>>,
}

impl Loader<SampledBatch> {
    /// Starts `num_threads` threads that prepare the batches of `keys`. With 0 threads each batch is prepared in
    /// [`Iterator::next`].
    pub fn new(
        sampler: Arc<PatchSampler>,
        keys: impl IntoIterator<Item = BatchKey, IntoIter: Send + 'static>,
        num_threads: usize,
        queue: usize,
    ) -> Self {
        Self::with_maker(move |key| sampler.batch(key), keys, num_threads, queue)
    }
}

impl<T: Send + 'static> Loader<T> {
    /// Starts a loader of any batches, each made from its key by `make`; the other arguments are those of [`Loader::new`].
    pub fn with_maker(
        make: impl Fn(BatchKey) -> Result<T> + Send + Sync + 'static,
        keys: impl IntoIterator<Item = BatchKey, IntoIter: Send + 'static>,
        num_threads: usize,
        queue: usize,
    ) -> Self {
        let keys = Box::new(keys.into_iter());
        let batches = LoaderQueue { keys, started: 0, fetched: 0, ended: false, ready: BTreeMap::new() };
        let shared = Arc::new(Shared {
            queue: Mutex::new(batches),
            changed: Condvar::new(),
            make: Box::new(make),
            capacity: queue.max(1),
        });
        // Threads that the system refuses to start are left out; without any, the caller makes the items itself.
        let work = |_| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().spawn(move || while shared.work(true) {}).ok()
        };
        let threads = (0..num_threads).filter_map(work).collect();
        Self { shared, threads, next: 0 }
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, LoaderQueue<T>> {
        // Batches are made outside the lock and their panics are caught, so a poisoned lock has whole content.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prepares one batch and returns true, or false if none is left. Waits for room in the queue if `bounded`.
    fn work(&self, bounded: bool) -> bool {
        let mut queue = self.lock();
        while bounded && !queue.ended && queue.started >= queue.fetched + self.capacity {
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        // The iterator over keys is foreign code and may panic as well.
        let next_key = AssertUnwindSafe(|| if queue.ended { None } else { queue.keys.next() });
        let key = match catch_unwind(next_key) {
            Ok(None) => {
                queue.ended = true;
                self.changed.notify_all();
                return false;
            }
            Ok(Some(key)) => Ok(key),
            Err(panic) => Err(panic),
        };
        let index = queue.started;
        queue.started += 1;
        drop(queue);
        let made = key.and_then(|key| catch_unwind(AssertUnwindSafe(|| (self.make)(key))));
        let result = made.unwrap_or_else(|panic| Err(Error::WorkerPanic { message: message(panic.as_ref()) }));
        let mut queue = self.lock();
        queue.ended |= result.is_err();
        // A batch that was being made when the sequence ended with an error is dropped.
        if index < queue.started {
            queue.ready.insert(index, result);
        }
        self.changed.notify_all();
        true
    }
}

/// Text of a panic.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

impl<T> Iterator for Loader<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        if self.threads.is_empty() {
            self.shared.work(false);
        }
        let mut queue = self.shared.lock();
        loop {
            if let Some(result) = queue.ready.remove(&self.next) {
                self.next += 1;
                queue.fetched = self.next;
                if result.is_err() {
                    // Later batches may exist, but the sequence is over.
                    queue.ended = true;
                    queue.started = self.next;
                    queue.ready.clear();
                }
                self.shared.changed.notify_all();
                return Some(result);
            }
            if queue.ended && self.next >= queue.started {
                return None;
            }
            queue = self.shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<T> Drop for Loader<T> {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A worker's panic was caught and reported where its batch was due.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
