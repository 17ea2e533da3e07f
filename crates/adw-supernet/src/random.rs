//! Random architectures of a cost: the baseline that a search has to beat.

use crate::architecture::Architecture;
use crate::error::{Error, Result};
use crate::space::{NUM_WIDTHS, SupernetConfig};
use adw_tensor_ops::philox::{Purpose, Stream};

/// Draws until a search for an architecture of a cost is given up.
const NUM_DRAWS: u32 = 20_000;

/// Largest relative difference between the cost of an architecture and the requested one.
const TOLERANCE: f64 = 0.02;

impl SupernetConfig {
    /// Architecture drawn at random from the space, a function of `seed`, whose multiply-adds for one `patch` (D, H, W) are
    /// within 2 % of `macs`. Depths and widths are drawn uniformly and independently until a draw costs that.
    ///
    /// # Errors
    /// If the configuration is not valid, or no draw costs that much; the message has the range of the draws' costs.
    pub fn random(&self, seed: u64, patch: [usize; 3], macs: f64) -> Result<Architecture> {
        self.check()?;
        let (mut least, mut most) = (u64::MAX, 0);
        for draw in 0..NUM_DRAWS {
            let architecture = self.draw(seed, draw)?;
            let cost = architecture.cost(patch).macs;
            if (cost as f64 / macs - 1.0).abs() <= TOLERANCE {
                return Ok(architecture);
            }
            (least, most) = (least.min(cost), most.max(cost));
        }
        let giga = |macs: f64| macs / 1e9;
        Err(Error::Config(format!(
            "no random architecture of {:.4} G multiply-adds: {NUM_DRAWS} draws from the search space cost {:.4} to {:.4} G",
            giga(macs),
            giga(least as f64),
            giga(most as f64)
        )))
    }

    fn draw(&self, seed: u64, draw: u32) -> Result<Architecture> {
        let mut uniform = Stream { seed, purpose: Purpose::Other, epoch: 0, iteration: 0, index: draw }.uniform();
        let mut draw = |n: usize| (uniform.next().expect("a stream does not end") * n as f64) as usize;
        self.chosen(|_, layer| match layer {
            None => self.space.searches_depth().then(|| draw(self.num_layers())),
            Some(_) => self.space.searches_width().then(|| draw(NUM_WIDTHS)),
        })
    }
}
