//! Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: *Parallel random numbers: as easy as
//! 1, 2, 3*, SC 2011).
//!
//! A number is a function of its purpose and place in the run, not of the numbers drawn before it. So the order of threads, a
//! resumed run and the device change nothing.

/// Purpose of a stream of numbers. The value is part of the generator's counter: never reuse or renumber one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// Initial weights.
    Initialisation = 1,
    /// Gumbel noise of the width choice.
    WidthNoise = 2,
    /// Gumbel noise of the depth choice.
    DepthNoise = 3,
    /// Any purpose of users of this crate.
    Other = 255,
}

/// Key of one stream of random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Seed of the whole run.
    pub seed: u64,
    /// Purpose of the numbers.
    pub purpose: Purpose,
    /// Training epoch.
    pub epoch: u32,
    /// Iteration within the epoch (and, where there are several, the pass).
    pub iteration: u32,
    /// Block, layer or parameter; below 2^24.
    pub index: u32,
}

impl Stream {
    /// Number of indices that streams of one purpose have.
    pub const INDICES: u32 = 1 << 24;

    /// Four words at `position` of this stream.
    ///
    /// # Panics
    /// If the index is not below [`Stream::INDICES`].
    pub fn words(&self, position: u32) -> [u32; 4] {
        assert!(self.index < Self::INDICES, "the purpose lies above the index");
        let counter = [position, self.index | (self.purpose as u32) << 24, self.iteration, self.epoch];
        philox4x32_10(counter, [self.seed as u32, (self.seed >> 32) as u32])
    }

    /// Numbers in the open interval (0, 1): `(word + 1/2) / 2^32`.
    ///
    /// # Panics
    /// While drawing, if the index is not below [`Stream::INDICES`].
    pub fn uniform(self) -> impl Iterator<Item = f64> {
        (0u32..).flat_map(move |p| self.words(p)).map(|w| (f64::from(w) + 0.5) / 4_294_967_296.0)
    }

    /// Standard Gumbel numbers: `-ln(-ln u)`.
    ///
    /// # Panics
    /// While drawing, if the index is not below [`Stream::INDICES`].
    pub fn gumbel(self) -> impl Iterator<Item = f64> {
        self.uniform().map(|u| -(-u.ln()).ln())
    }

    /// Standard normal numbers (Box and Muller).
    ///
    /// # Panics
    /// While drawing, if the index is not below [`Stream::INDICES`].
    pub fn normal(self) -> impl Iterator<Item = f64> {
        let mut uniform = self.uniform();
        std::iter::from_fn(move || {
            let (u, v) = (uniform.next()?, uniform.next()?);
            let (r, phi) = ((-2.0 * u.ln()).sqrt(), std::f64::consts::TAU * v);
            Some([r * phi.cos(), r * phi.sin()])
        })
        .flatten()
    }
}

/// Ten rounds of Philox on a counter of four words with a key of two.
pub fn philox4x32_10(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that the authors publish with Random123 (file `kat_vectors`).
    #[test]
    fn known_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32_10(counter, key), expected);
        }
    }

    fn stream() -> Stream {
        Stream { seed: 7, purpose: Purpose::Other, epoch: 1, iteration: 2, index: 3 }
    }

    #[test]
    fn every_part_of_the_key_matters() {
        let base = stream();
        let variants = [
            Stream { seed: 8, ..base },
            Stream { seed: 7 + (1 << 32), ..base },
            Stream { purpose: Purpose::WidthNoise, ..base },
            Stream { epoch: 0, ..base },
            Stream { iteration: 0, ..base },
            Stream { index: 0, ..base },
        ];
        for v in variants {
            assert_ne!(v.words(0), base.words(0), "{v:?}");
        }
        assert_ne!(base.words(1), base.words(0));
    }

    /// Sample moments within five standard errors of the distributions'.
    #[test]
    fn distributions() {
        const N: usize = 200_000;
        let moments = |x: &mut dyn Iterator<Item = f64>| {
            let x: Vec<f64> = x.take(N).collect();
            let mean = x.iter().sum::<f64>() / N as f64;
            (mean, x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / N as f64)
        };
        let euler = 0.577_215_664_901_532_9;
        let gumbel_variance = std::f64::consts::PI.powi(2) / 6.0;
        let se = |variance: f64| 5.0 * (variance / N as f64).sqrt();
        for ((mean, variance), (m, v)) in [
            (moments(&mut stream().uniform()), (0.5, 1.0 / 12.0)),
            (moments(&mut stream().gumbel()), (euler, gumbel_variance)),
            (moments(&mut stream().normal()), (0.0, 1.0)),
        ] {
            assert!((mean - m).abs() < se(v), "mean {mean}, expected {m}");
            assert!((variance / v - 1.0).abs() < 0.03, "variance {variance}, expected {v}");
        }
    }
}
