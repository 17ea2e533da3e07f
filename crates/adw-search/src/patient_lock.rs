use std::fs::{File, TryLockError};
use std::time::{Duration, Instant};

/// How long a lock is waited for: a killed process lets go of its locks only when the system has cleaned up after it,
/// and whoever resumes at once would meet its own predecessor.
const PATIENCE: Duration = Duration::from_secs(5);

/// Locks `file` for this process alone, waiting a few seconds for a holder that is about to be gone.
///
/// # Errors
/// `WouldBlock` if another process holds it all that time, or the error of a file system without locks.
pub fn lock_patiently(file: &File) -> Result<(), TryLockError> {
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if start.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(50));
            }
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_a_holder_that_goes_away() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let holder = File::open(file.path()).unwrap();
        holder.lock().unwrap();
        let gone = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            drop(holder);
        });
        let start = Instant::now();
        lock_patiently(&File::open(file.path()).unwrap()).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(200));
        gone.join().unwrap();
    }
}
