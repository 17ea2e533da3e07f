//! Most probable architecture of a given cost.

use std::cmp::{Ordering, Reverse};
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
    departures: Vec<f64>,
}

/// Ranks of the chosen options, and what they depart from the most probable ones in sum.
struct Candidate {
    departure: f64,
    ranks: Vec<u8>,
    /// Choice that was changed last; those before it stay.
    last: usize,
}

impl Candidate {
    fn key(&self) -> (f64, &[u8]) {
        (self.departure, &self.ranks)
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        let ((a, ranks_a), (b, ranks_b)) = (self.key(), other.key());
        a.total_cmp(&b).then_with(|| ranks_a.cmp(ranks_b))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

impl Supernet {
    /// Most probable architecture whose cost for one `patch` (D, H, W) lies in `costs`: the one with the smallest sum of
    /// `ln(p_max / p)` over its depths and the widths of the layers that it has. [`Self::architecture`] has the sum 0.
    /// None if there is no such architecture among the 20,000 most probable ones.
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
        // Every combination is made once: from the one in which the option of its last changed choice is one rank better.
        let mut heap =
            BinaryHeap::from([Reverse(Candidate { departure: 0.0, ranks: vec![0; choices.len()], last: 0 })]);
        for _ in 0..NUM_TRIED {
            let Some(Reverse(candidate)) = heap.pop() else { break };
            let architecture = self.with_ranks(&choices, &candidate.ranks)?;
            if costs.contains(&architecture.cost_in(patch, unit)) {
                return Ok(Some(architecture));
            }
            for (i, choice) in choices.iter().enumerate().skip(candidate.last) {
                let rank = usize::from(candidate.ranks[i]);
                let exists = choice.layer.is_none_or(|layer| layer < architecture.blocks[choice.block].len());
                if exists && rank + 1 < choice.options.len() {
                    let mut ranks = candidate.ranks.clone();
                    ranks[i] += 1;
                    let departure = candidate.departure + choice.departures[rank + 1] - choice.departures[rank];
                    heap.push(Reverse(Candidate { departure, ranks, last: i }));
                }
            }
        }
        Ok(None)
    }

    /// Choices of all blocks; depths come first, so that the widths of layers that a network does not have are never changed.
    fn ranked_choices(&self) -> Result<Vec<Choice>> {
        let ranked = |block, layer, p: &[f64]| {
            let mut options: Vec<usize> = (0..p.len()).collect();
            options.sort_by(|&a, &b| p[b].total_cmp(&p[a]).then(a.cmp(&b)));
            let departures = options.iter().map(|&k| (p[options[0]] / p[k].max(f64::MIN_POSITIVE)).ln()).collect();
            Choice { block, layer, options, departures }
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
        let config = self.config();
        let widest = |block| vec![config.block_max_width(block); config.num_layers()];
        let mut blocks: Vec<Vec<usize>> = (0..config.num_blocks()).map(widest).collect();
        for (choice, &rank) in choices.iter().zip(ranks) {
            let option = choice.options[usize::from(rank)];
            match choice.layer {
                None => blocks[choice.block].truncate(option + 1),
                Some(layer) => {
                    if let Some(width) = blocks[choice.block].get_mut(layer) {
                        *width = crate::width_options(config.block_max_width(choice.block))[option];
                    }
                }
            }
        }
        config.network(blocks)
    }
}
