//! Search in a report: what was found, how sure each choice is, how the choices moved.

use adw_search::{Phase, SearchRow};
use adw_supernet::{Architecture, CostUnit, SupernetConfig, width_options};

use super::{
    chart::{LineChart, Series, heat_map},
    page::{Section, count, escape, number, optional, table},
};
use crate::{
    architecture_choice::search_space,
    report::{
        architecture::block_name,
        drawing,
        run_data::{RunData, SearchData},
    },
};

/// Choice of a width or depth that the found network uses.
pub(super) struct Choice {
    /// Name of the block and layer.
    pub(super) name: String,
    options: Vec<String>,
    chosen: usize,
    /// Probabilities of the options in each epoch.
    columns: Vec<Vec<f64>>,
    /// First epoch, from 1, since which the chosen option has been the most probable one; none if that is the last alone.
    settled: Option<usize>,
}

impl Choice {
    /// Choice with these probabilities; none if an epoch lacks them.
    fn new(name: String, options: Vec<String>, chosen: usize, columns: Vec<Vec<f64>>, warmup: usize) -> Option<Self> {
        if columns.is_empty() || columns.iter().any(|p| p.len() != options.len()) || chosen >= options.len() {
            return None;
        }
        let is_chosen = |p: &[f64]| p.iter().enumerate().all(|(i, v)| i == chosen || *v <= p[chosen]);
        let since = columns.iter().rposition(|p| !is_chosen(p)).map_or(0, |i| i + 1).max(warmup);
        let settled = (since + 1 < columns.len()).then_some(since + 1);
        Some(Self { name, options, chosen, columns, settled })
    }

    fn last(&self) -> &[f64] {
        self.columns.last().expect("a choice has a column per epoch")
    }

    /// Most probable other option.
    fn runner_up(&self) -> Option<usize> {
        let p = self.last();
        (0..p.len()).filter(|&i| i != self.chosen).max_by(|&i, &j| p[i].total_cmp(&p[j]))
    }

    /// Probability of the chosen option less that of the next best.
    pub(super) fn margin(&self) -> f64 {
        let p = self.last();
        p[self.chosen] - self.runner_up().map_or(0.0, |i| p[i])
    }

    /// Words for the margin, which need no colour.
    fn verdict(&self) -> &'static str {
        match self.margin() {
            m if m >= 0.5 => "sure",
            m if m >= 0.1 => "leaning",
            m if m >= 0.0 => "open",
            _ => "budget",
        }
    }

    pub(super) fn is_sure(&self) -> bool {
        self.margin() >= 0.5
    }

    /// Chosen option, its probability, the next best, its probability, for a person.
    pub(super) fn contest(&self) -> String {
        let (p, chosen) = (self.last(), self.chosen);
        let next = self.runner_up().map_or(String::new(), |i| format!(" against {} ({:.2})", self.options[i], p[i]));
        format!("{}: {} ({:.2}){next}", self.name, self.options[chosen], p[chosen])
    }

    fn row(&self) -> Vec<String> {
        let (p, next) = (self.last(), self.runner_up());
        let bar = |p: f64| format!("<span class=\"bar\" style=\"--p:{p:.3}\" aria-hidden=\"true\"></span> {p:.2}");
        vec![
            escape(&self.name),
            self.options[self.chosen].clone(),
            format!("<b class=\"{0}\">{0}</b>", self.verdict()),
            bar(p[self.chosen]),
            next.map_or("–".to_owned(), |i| format!("{} ({:.2})", self.options[i], p[i])),
            format!("{:.2}", self.margin()),
            self.settled.map_or("not yet".to_owned(), |epoch| format!("epoch {epoch}")),
        ]
    }

    fn picture(&self, warmup: usize) -> String {
        let columns: Vec<&[f64]> = self.columns.iter().map(Vec::as_slice).collect();
        let note = self.settled.map_or("not settled".to_owned(), |epoch| format!("settled at epoch {epoch}"));
        heat_map(&self.name, &note, &self.options, self.chosen, &columns, warmup)
    }
}

/// Choices that the network of the latest epoch consists of, in the order of its blocks: the depth of each, then the widths
/// of the layers that it has. Empty in runs of earlier versions.
pub(super) fn choices(rows: &[SearchRow], space: &SupernetConfig) -> Vec<Choice> {
    let Some(last) = rows.last().filter(|_| rows.iter().all(|row| row.probabilities.len() == space.num_blocks()))
    else {
        return Vec::new();
    };
    let warmup = warmup_epochs(rows);
    let mut choices = Vec::new();
    for (block, widths) in last.blocks.iter().enumerate() {
        let name = block_name(block, space.poolings());
        let depths = rows.iter().filter_map(|row| row.probabilities[block].depth.clone()).collect();
        let options = (1..=space.max_depth).map(|depth| depth.to_string()).collect();
        choices.extend(Choice::new(format!("{name} depth"), options, widths.len() - 1, depths, warmup));
        let options = width_options(space.block_max_width(block));
        for (layer, width) in widths.iter().enumerate() {
            let columns = rows.iter().filter_map(|row| row.probabilities[block].width.get(layer)?.clone()).collect();
            let chosen = options.iter().position(|option| option == width).unwrap_or(options.len());
            let name = format!("{name} conv {}", layer + 1);
            choices.extend(Choice::new(name, options.map(|width| width.to_string()).into(), chosen, columns, warmup));
        }
    }
    choices
}

fn warmup_epochs(rows: &[SearchRow]) -> usize {
    rows.iter().filter(|row| row.phase == Phase::Warmup).count()
}

/// Section about a search.
pub(super) fn section(run: &RunData, search: &SearchData) -> Section {
    let settings = &run.config.settings;
    let space = search_space(&run.plan, &settings.network);
    let patch = run.plan.patch_size;
    let rows = &search.rows;
    let choices = choices(rows, &space);
    let mut body = String::new();
    let largest = space.largest().ok();
    let latest = search.architecture.clone().or_else(|| {
        // A running search shows the network that it would find now.
        let blocks = rows.last()?.blocks.clone();
        Some(Architecture { blocks, ..largest.clone()? })
    });
    if let Some(architecture) = latest.filter(|_| rows.last().is_some_and(|row| row.phase == Phase::Search)) {
        let cost = architecture.cost(patch);
        let share = largest.as_ref().map(|largest| cost.macs as f64 / largest.cost(patch).macs as f64);
        body += &format!(
            "<figure class=\"wide\" tabindex=\"0\">{}<figcaption>Network {} for patches of {}. A filled rectangle is a convolution, the number its \
             channels; outlines are what the search could have taken: at most {} convolutions per block, each as wide as the \
             outline. {} multiply-adds per patch{}, {} parameters.</figcaption></figure>\n",
            drawing::svg(&architecture, largest.as_ref(), patch).replacen(
                "<svg ",
                &format!(
                    "<svg role=\"img\" aria-label=\"U-Net with blocks {}\" ",
                    adw_supernet::widths_line(&architecture.blocks)
                ),
                1
            ),
            if search.architecture.is_some() { "found" } else { "found so far" },
            super::page::times(&patch),
            space.num_layers(),
            number(cost.macs as f64),
            share.map_or(String::new(), |share| format!(" ({:.0} % of the largest network)", 100.0 * share)),
            number(cost.parameters as f64),
        );
    } else {
        body += "<p>The search is in its warm-up: weights are trained, nothing is chosen yet.</p>\n";
    }
    if choices.is_empty() {
        body += "<p>The history of this run has no probabilities: it was made by an earlier version.</p>\n";
    } else if warmup_epochs(rows) < rows.len() {
        let sure = choices.iter().filter(|choice| choice.is_sure()).count();
        body += &format!(
            "<p>{sure} of {} are sure: the chosen option is at least 0.5 more probable than the next. Below a margin of 0.1 \
             a choice is open, and another seed may well choose otherwise.</p>\n",
            count(choices.len(), "choice")
        );
        let header = ["choice", "chosen", "state", "probability", "next best", "margin", "settled"];
        body += &table("Choices of the found network", &header, choices.iter().map(Choice::row));
    }
    body += "<div class=\"charts\">\n";
    body += &curves(run, rows, largest.as_ref());
    body += "</div>\n";
    if !choices.is_empty() {
        body += "<h3>How the choices moved</h3>\n<p>An epoch per column, an option per row: the darker, the more probable \
                 (softmax of beta for depths, of alpha for widths). The vertical line ends the warm-up; numbers at the right \
                 are the probabilities at the end. Layers that the found network does not have are left out.</p>\n<div class=\"heats\">\n";
        body += &choices.iter().map(|choice| choice.picture(warmup_epochs(rows))).collect::<String>();
        body += "</div>\n";
    }
    Section { id: format!("search-{}", search.fold), title: format!("Search, fold {}", search.fold), body }
}

/// Losses, Dice, cost and temperature over epochs.
fn curves(run: &RunData, rows: &[SearchRow], largest: Option<&Architecture>) -> String {
    let warmup = warmup_epochs(rows);
    let series = |name: &str, value: fn(&SearchRow) -> Option<f64>| Series::over_epochs(name, rows.iter().map(value));
    let chart = |title, y, series, levels| LineChart { title, y, series, levels, warmup }.render();
    let losses = vec![
        series("weights", |row| row.loss),
        series("architecture, half A", |row| row.arch_loss_a),
        series("architecture, half B", |row| row.arch_loss_b),
    ];
    let dice = vec![
        series("mixture of all networks", |row| row.mean_dice),
        series("most probable network", |row| row.argmax_dice),
    ];
    let entropies = vec![series("widths", |row| row.width_entropy), series("depths", |row| row.depth_entropy)];
    let cost = vec![
        series("expected", |row| Some(row.expected_cost)),
        series("most probable network", |row| (row.phase == Phase::Search).then_some(row.cost as f64)),
    ];
    let unit = rows.last().map_or(CostUnit::Macs, |row| row.cost_unit);
    let mut levels = Vec::new();
    if let Some(largest) = largest.map(|largest| largest.cost(run.plan.patch_size).get(unit)) {
        if let Some(cost) = &run.config.settings.search.cost {
            levels.push(("budget".to_owned(), cost.budget.of(largest)));
        }
        levels.push(("largest network".to_owned(), largest as f64));
    }
    let unit = match unit {
        CostUnit::Macs => "multiply-adds per patch",
        CostUnit::Parameters => "parameters",
        CostUnit::ActivationBytes => "bytes of feature maps",
    };
    [
        chart("Loss", "mean of each epoch", losses, vec![]),
        chart("Dice on half B", "patches, without augmentation", dice, vec![]),
        chart("Cost", unit, cost, levels),
        chart("Entropy of the choices", "1 uniform, 0 decided", entropies, vec![]),
        chart("Temperature tau", "", vec![series("tau", |row| Some(row.tau))], vec![]),
    ]
    .concat()
}

/// Last Dice of the mixture and of the most probable network, for a person.
pub(super) fn last_dice(rows: &[SearchRow]) -> String {
    let last = |value: fn(&SearchRow) -> Option<f64>| optional(rows.iter().rev().find_map(value));
    format!(
        "{} of the mixture, {} of the most probable network",
        last(|row| row.mean_dice),
        last(|row| row.argmax_dice)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_settles_when_its_option_leads_for_good() {
        let options = || vec!["8".to_owned(), "12".to_owned()];
        let columns = vec![vec![0.5, 0.5], vec![0.4, 0.6], vec![0.6, 0.4], vec![0.3, 0.7], vec![0.2, 0.8]];
        let choice = Choice::new("conv".into(), options(), 1, columns.clone(), 1).unwrap();
        assert_eq!((choice.settled, choice.verdict(), choice.runner_up()), (Some(4), "sure", Some(0)));
        assert!((choice.margin() - 0.6).abs() < 1e-12);
        assert_eq!(choice.contest(), "conv: 12 (0.80) against 8 (0.20)");
        let open = Choice::new("conv".into(), options(), 0, columns[..3].to_vec(), 1).unwrap();
        assert_eq!((open.settled, open.verdict()), (None, "leaning"));
        assert!(Choice::new("conv".into(), options(), 0, vec![vec![1.0]], 0).is_none());
    }
}
