//! Text that claims to be a `dataset.json`, of either layout: a dataset whose labels count from 0, or an error of one
//! line.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use msd_data::Dataset;

fuzz_target!(|text: &str| {
    match Dataset::from_json(Path::new("/nowhere"), text) {
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        Ok(dataset) => {
            assert!(!dataset.modalities.is_empty() && dataset.labels.len() >= 2);
            for (value, label) in dataset.labels.iter().enumerate() {
                assert_eq!(value, usize::from(label.value));
            }
            assert!(dataset.training.windows(2).all(|pair| pair[0].id < pair[1].id));
            assert!(dataset.training.iter().all(|case| !case.image.is_empty()));
        }
    }
});
