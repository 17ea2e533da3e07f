use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::random::Purpose;

fn keys(n: u64) -> impl Iterator<Item = BatchKey> + Send + 'static {
    (0..n).map(|iteration| BatchKey { seed: 0, purpose: Purpose::Weights, epoch: 0, iteration })
}

#[test]
fn order_and_content_do_not_depend_on_threads() {
    // Later batches take less time, so threads finish out of order.
    let make = |key: BatchKey| {
        std::thread::sleep(Duration::from_micros(50 * (20 - key.iteration.min(20))));
        Ok(key.iteration * 3)
    };
    for (threads, queue) in [(0, 1), (1, 1), (2, 3), (5, 2), (4, 100)] {
        let loaded: Vec<u64> = Loader::with_maker(make, keys(40), threads, queue).map(Result::unwrap).collect();
        assert_eq!(loaded, (0..40).map(|i| i * 3).collect::<Vec<_>>(), "{threads} threads, queue {queue}");
    }
}

#[test]
fn the_queue_is_bounded() {
    let made = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&made);
    let make = move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        Ok(())
    };
    let mut loader = Loader::with_maker(make, keys(1000), 3, 4);
    for fetched in 1..4 {
        loader.next().unwrap().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert!(made.load(Ordering::SeqCst) <= fetched + 4);
    }
    drop(loader); // and does not hang
    assert!(made.load(Ordering::SeqCst) < 20);
}

#[test]
fn errors_and_panics_arrive_in_their_place_and_end_the_sequence() {
    for threads in [0, 1, 4] {
        let fail = |key: BatchKey| match key.iteration {
            5 => Err(Error::Invalid("five".to_owned())),
            i => Ok(i),
        };
        let mut loader = Loader::with_maker(fail, keys(100), threads, 8);
        for i in 0..5 {
            assert_eq!(loader.next().unwrap().unwrap(), i);
        }
        assert_eq!(loader.next().unwrap().unwrap_err().to_string(), "five");
        assert!(loader.next().is_none() && loader.next().is_none());

        let panic = |key: BatchKey| {
            if key.iteration == 2 { panic!("two is odd") } else { Ok(()) }
        };
        let results: Vec<_> = Loader::with_maker(panic, keys(100), threads, 8).collect();
        assert_eq!(results.len(), 3);
        assert_eq!(results[2].as_ref().unwrap_err().to_string(), "a data-loading thread panicked: two is odd");

        let broken = keys(10).inspect(|key| assert!(key.iteration < 3, "no such key"));
        let results: Vec<_> = Loader::with_maker(Ok, broken, threads, 8).collect();
        assert!(results.len() == 4 && results[3].is_err(), "a panic of the keys' iterator");
    }
}
