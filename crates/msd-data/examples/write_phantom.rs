//! Writes a synthetic dataset: `cargo run --release -p msd-data --example write_phantom -- DIR [NUM_LABELS]`.

use std::path::PathBuf;
use std::time::Instant;

use msd_data::{PhantomOptions, write_phantom};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().map_or_else(|| PathBuf::from("phantom"), PathBuf::from);
    let num_labels = args.next().map_or(Ok(2), |n| n.parse())?;
    let options = PhantomOptions { num_labels, ..PhantomOptions::default() };
    let start = Instant::now();
    write_phantom(&dir, &options)?;
    let (cases, seconds) = (options.num_cases + options.num_test, start.elapsed().as_secs_f64());
    println!("{cases} cases in {} after {seconds:.2} s", dir.display());
    Ok(())
}
