//! Most probable architecture of a given cost.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::RangeInclusive;

use crate::architecture::Architecture;
use crate::cost::CostUnit;
use crate::error::Result;
use crate::supernet::Supernet;

/// Number of architectures that are tried, in the order of their probability, before a search for one of a cost is given up.
const NUM_TRIED: usize = 20_000;

/// One choice of a supernet: its options from the most to the least probable.
struct Choice {
    block: usize,
    /// Layer whose width is chosen; none for the depth.
    layer: Option<usize>,
    options: Vec<usize>,
    /// Per option: `ln(p_max / p)`.
    penalties: Vec<f64>,
}

impl Supernet {
    /// Most probable architecture whose cost for one `patch` (D, H, W) lies in `costs`: the one with the smallest sum of
    /// `ln(p_max / p)` over its depths and the widths of the layers that it has. [`Self::architecture`] has the sum 0. If there
    /// is no such architecture among the 20,000 most probable ones, the most probable one of these that does not cost more; none
    /// if there is not even one of those.
    ///
    /// # Errors
    /// If a tensor cannot be read from its device.
    pub fn architecture_within(
        &self,
        patch: [usize; 3],
        unit: CostUnit,
        costs: RangeInclusive<u64>,
    ) -> Result<Option<Architecture>> {
        let choices = self.ranked_choices()?;
        let mut cheaper = None;
        // Best first. An entry: bits of the summed penalty, which are ordered as the penalties are, since none is negative; ranks
        // of the chosen options; the choice that was changed last. Only that one and later ones are changed, so that every
        // combination is made once.
        let mut heap = BinaryHeap::from([Reverse((0f64.to_bits(), vec![0u8; choices.len()], 0))]);
        for _ in 0..NUM_TRIED {
            let Some(Reverse((penalty, ranks, last))) = heap.pop() else { break };
            let architecture = self.with_ranks(&choices, &ranks)?;
            let cost = architecture.cost_in(patch, unit);
            if costs.contains(&cost) {
                return Ok(Some(architecture));
            }
            for (i, choice) in choices.iter().enumerate().skip(last) {
                let rank = usize::from(ranks[i]);
                let exists = choice.layer.is_none_or(|layer| layer < architecture.blocks[choice.block].len());
                if exists && rank + 1 < choice.options.len() {
                    let mut ranks = ranks.clone();
                    ranks[i] += 1;
                    let step = choice.penalties[rank + 1] - choice.penalties[rank];
                    heap.push(Reverse(((f64::from_bits(penalty) + step).to_bits(), ranks, i)));
                }
            }
            if cheaper.is_none() && cost <= *costs.end() {
                cheaper = Some(architecture);
            }
        }
        Ok(cheaper)
    }

    /// Choices of all blocks; depths come first, so that the widths of layers that a network does not have are never changed.
    fn ranked_choices(&self) -> Result<Vec<Choice>> {
        let ranked = |block, layer, p: &[f64]| {
            let mut options: Vec<usize> = (0..p.len()).collect();
            options.sort_by(|&a, &b| p[b].total_cmp(&p[a]).then(a.cmp(&b)));
            let penalties = options.iter().map(|&k| (p[options[0]] / p[k].max(f64::MIN_POSITIVE)).ln()).collect();
            Choice { block, layer, options, penalties }
        };
        let probabilities = self.probabilities()?;
        let blocks = || probabilities.iter().enumerate();
        let depths = blocks().filter_map(|(block, p)| Some(ranked(block, None, p.depth.as_ref()?)));
        let widths = blocks().flat_map(|(block, p)| {
            let layers = p.width.iter().enumerate();
            layers.filter_map(move |(layer, p)| Some(ranked(block, Some(layer), p.as_ref()?)))
        });
        Ok(depths.chain(widths).collect())
    }

    fn with_ranks(&self, choices: &[Choice], ranks: &[u8]) -> Result<Architecture> {
        self.config().chosen(|block, layer| {
            let index = choices.iter().position(|choice| (choice.block, choice.layer) == (block, layer))?;
            Some(choices[index].options[usize::from(ranks[index])])
        })
    }
}
