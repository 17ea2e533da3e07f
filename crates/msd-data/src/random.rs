//! Random numbers without shared state.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Use of random numbers. Different purposes never share numbers; the values are part of a seed's meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum Purpose {
    /// Splitting training cases into A and B.
    Halves = 1,
    /// Batches that train weights.
    Weights = 2,
    /// Batches that train the architecture.
    Architecture = 3,
    /// Batches to validate on.
    Validation = 4,
    /// Foreground voxels of a case that are kept.
    Locations = 5,
    /// Phantoms.
    Phantom = 6,
}

/// Returns the generator for one (seed, purpose, epoch, iteration, index): a `ChaCha8` stream whose 256-bit key is these
/// numbers side by side, so distinct arguments give independent streams and no draw depends on another's.
pub(crate) fn rng(seed: u64, purpose: Purpose, epoch: u64, iteration: u64, index: u32) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..24].copy_from_slice(&iteration.to_le_bytes());
    key[24..28].copy_from_slice(&(purpose as u32).to_le_bytes());
    key[28..].copy_from_slice(&index.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}
