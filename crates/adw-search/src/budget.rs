//! Cost term of the search.

use adw_supernet::{CostUnit, Supernet};
use candle_core::Tensor;

use crate::Result;

/// Penalty of an architecture that costs more than a budget B. With C the cost of the present argmax architecture and E
/// the expected cost under softmax(alpha / tau), softmax(beta / tau):
/// ```text
/// penalty = weight * max(0, C / B - 1),    gradient = weight / B * dE / d(alpha, beta)  while C > B, else 0
/// ```
/// The value comes from the argmax, the gradient from its relaxation (straight-through): in short searches the softmax
/// stays nearly uniform, so that E says little about the network that will be derived; C is that network's cost. The
/// penalty alone does not guarantee the budget: the last steps may carry C a little over B. The network that
/// [`crate::search`] returns is the most probable one that does not cost more, if any likely one does not.
#[derive(Debug, Clone, PartialEq)]
pub struct CostPenalty {
    /// Unit of the costs.
    pub unit: CostUnit,
    /// Factor of the penalty.
    pub weight: f64,
    /// Budget B, in the unit, for one patch.
    pub budget: f64,
    /// Patch size that costs are counted for, D, H, W.
    pub patch: [usize; 3],
}

impl CostPenalty {
    /// Penalty, and its gradient with respect to every parameter.
    ///
    /// # Errors
    /// If a tensor cannot be read from its device.
    pub fn value_and_gradients(&self, net: &Supernet, tau: f64) -> Result<(f64, Vec<Option<Tensor>>)> {
        let cost = net.architecture()?.cost(self.patch).get(self.unit) as f64;
        let excess = cost / self.budget - 1.0;
        if excess <= 0.0 {
            return Ok((0.0, vec![None; net.parameters().len()]));
        }
        let (_, gradients) = net.expected_cost(self.patch, self.unit, &net.no_noise(tau))?;
        let scale = self.weight / self.budget;
        let scaled = gradients.into_iter().map(|g| g.map(|g| g * scale).transpose());
        Ok((self.weight * excess, scaled.collect::<Result<_, _>>()?))
    }
}
