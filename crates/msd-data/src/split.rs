//! Splits of cases into training and validation.

use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::random::{Purpose, rng};

/// Number of folds of the cross-validation.
pub const NUM_FOLDS: usize = 5;

/// The cases of one fold, each list sorted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fold {
    /// Cases to train on.
    pub train: Vec<String>,
    /// Cases to validate on.
    #[serde(alias = "val")]
    pub validation: Vec<String>,
}

/// nnU-Net's five folds: the same cases for the same ids, whatever order they come in.
///
/// The ids are sorted, shuffled as NumPy's `RandomState(12345).shuffle` does (this is scikit-learn's
/// `KFold(5, shuffle=True, random_state=12345)`), and every fold validates on the next fifth.
///
/// ```
/// let ids: Vec<String> = (0..20).map(|i| format!("case_{i:02}")).collect();
/// let folds = msd_data::five_folds(&ids)?;
/// assert_eq!(folds[0].validation, ["case_03", "case_08", "case_13", "case_16"]);
/// # Ok::<(), msd_data::Error>(())
/// ```
///
/// # Errors
/// [`Error::TooFewCases`] below five cases; [`Error::Invalid`] if an id occurs twice.
pub fn five_folds(ids: &[String]) -> Result<Vec<Fold>> {
    let mut ids = ids.to_vec();
    ids.sort();
    if let Some([id, _]) = ids.array_windows().find(|[a, b]| a == b) {
        return Err(Error::Invalid(format!("case {id} occurs twice; case ids must be unique")));
    }
    let n = ids.len();
    if n < NUM_FOLDS {
        return Err(Error::TooFewCases { found: n });
    }
    let mut order: Vec<usize> = (0..n).collect();
    let mut generator = Mt19937::new(12345);
    for i in (1..n).rev() {
        order.swap(i, generator.up_to(i as u32) as usize);
    }
    let mut rest = &order[..];
    let fold = |f| {
        let (held_out, tail) = rest.split_at(n / NUM_FOLDS + usize::from(f < n % NUM_FOLDS));
        rest = tail;
        let (validation, train) = (0..n).partition::<Vec<_>, _>(|i| held_out.contains(i));
        let named = |indices: Vec<usize>| indices.into_iter().map(|i| ids[i].clone()).collect();
        Fold { train: named(train), validation: named(validation) }
    };
    Ok((0..NUM_FOLDS).map(fold).collect())
}

/// Splits training cases at random into the halves A (for the weights) and B (for the architecture) of a bilevel
/// search. Disjoint, each sorted, A larger by one if the number is odd; depends on `seed` and the set of ids only.
pub fn halves(train: &[String], seed: u64) -> (Vec<String>, Vec<String>) {
    let mut a = train.to_vec();
    a.sort();
    let mut rng = rng(seed, Purpose::Halves, 0, 0, 0);
    for i in (1..a.len()).rev() {
        a.swap(i, rng.random_range(0..=i));
    }
    let mut b = a.split_off(train.len().div_ceil(2));
    a.sort();
    b.sort();
    (a, b)
}

/// Mersenne twister as NumPy's legacy `RandomState` seeds and reads it. Only the folds use it, to agree with nnU-Net; all
/// else draws from counter-based generators.
struct Mt19937 {
    state: [u32; 624],
    next: usize,
}

impl Mt19937 {
    fn new(seed: u32) -> Self {
        let mut state = [seed; 624];
        for i in 1..624 {
            let last = state[i - 1];
            state[i] = (last ^ (last >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, next: 624 }
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == 624 {
            for i in 0..624 {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % 624] & 0x7fff_ffff);
                let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + 397) % 624] ^ (y >> 1) ^ twist;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Draws uniformly from 0..=max: masks to the bit length of `max` and rejects values above.
    fn up_to(&mut self, max: u32) -> u32 {
        let mask = u32::MAX >> max.leading_zeros();
        loop {
            let value = self.next_u32() & mask;
            if value <= max {
                return value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("case_{i:03}")).collect()
    }

    #[test]
    fn the_twister_is_the_reference_one() {
        // First outputs of the C reference implementation for init_genrand(5489).
        let mut generator = Mt19937::new(5489);
        assert_eq!([generator.next_u32(), generator.next_u32()], [3_499_211_612, 581_869_302]);
    }

    #[test]
    fn folds_are_those_of_nnunet() {
        let val = |n: usize, f: usize| -> Vec<usize> {
            five_folds(&ids(n)).unwrap()[f].validation.iter().map(|id| id[5..].parse().unwrap()).collect()
        };
        let expected = [[3, 8, 13, 16], [0, 10, 12, 15], [6, 7, 11, 17], [9, 14, 18, 19], [1, 2, 4, 5]];
        for (f, expected) in expected.iter().enumerate() {
            assert_eq!(val(20, f), expected);
        }
        assert_eq!(val(260, 0)[..8], [9, 10, 16, 18, 20, 30, 33, 40]);
    }

    proptest! {
        #[test]
        fn every_case_is_validated_once_and_trained_on_in_the_other_folds(n in 5usize..60) {
            let folds = five_folds(&ids(n)).unwrap();
            let mut validated: Vec<_> = folds.iter().flat_map(|fold| fold.validation.clone()).collect();
            validated.sort();
            prop_assert_eq!(validated, ids(n));
            for fold in folds {
                prop_assert!(fold.validation.len() == n / 5 || fold.validation.len() == n / 5 + 1);
                let mut all = [fold.train, fold.validation].concat();
                all.sort();
                prop_assert_eq!(all, ids(n));
            }
        }
    }

    #[test]
    fn too_few_or_repeated_cases_are_refused() {
        assert!(five_folds(&ids(4)).unwrap_err().to_string().starts_with("4 training cases"));
        assert!(five_folds(&[ids(6), ids(1)].concat()).unwrap_err().to_string().contains("case_000 occurs twice"));
    }

    #[test]
    fn halves_are_disjoint_complete_and_seeded() {
        for n in [0, 1, 2, 7, 160] {
            let (a, b) = halves(&ids(n), 1);
            assert_eq!((a.len(), b.len()), (n.div_ceil(2), n / 2));
            let mut all = [a.clone(), b].concat();
            all.sort();
            assert_eq!(all, ids(n));
            let mut reversed = ids(n);
            reversed.reverse();
            assert_eq!(halves(&reversed, 1).0, a, "the order of the input does not matter");
        }
        assert_ne!(halves(&ids(160), 1), halves(&ids(160), 2));
    }
}
