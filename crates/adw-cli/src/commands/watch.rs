//! `adw watch`: progress of a run in a terminal, also of one that another machine works on.

use std::{collections::BTreeMap, thread, time::Duration};

use adw_search::{RetrainRow, SearchRow};
use anyhow::Result;
use serde_json::{Value, json};

use crate::{
    args::WatchArgs,
    report::{
        progress::{emit, say},
        run_data::RunData,
        training::EpochNumbers,
    },
    run_folder::RunFolder,
};

/// Time between two looks at the run's files. They are small, and may lie on a shared disk.
const PAUSE: Duration = Duration::from_secs(2);

/// Epochs shown of what was there before.
const FIRST_SHOWN: usize = 10;

pub(crate) fn run(args: &WatchArgs) -> Result<()> {
    let mut shown = BTreeMap::new();
    let mut was_done = false;
    loop {
        let stages = stages(&RunData::load(&args.run)?);
        for stage in &stages {
            let first = stage.epochs.len().saturating_sub(FIRST_SHOWN);
            let from = shown.insert(stage.name.clone(), stage.epochs.len()).unwrap_or(first);
            for epoch in stage.epochs.iter().skip(from) {
                if args.json {
                    emit("epoch", &json!({ "stage": stage.name, "row": epoch.row }));
                } else {
                    say(&format!("{}  {}\n", stage.name, epoch.line));
                }
            }
            if from < stage.epochs.len() && !args.json {
                say(&format!("{}  Dice {}{}\n", stage.name, spark(&stage.dice), stage.state()));
            }
        }
        let is_finished = !stages.is_empty() && stages.iter().all(|stage| stage.is_finished);
        let is_done = is_finished && !RunFolder::is_in_use(&args.run);
        // Twice: between its stages, `adw run` holds no fold for a moment.
        if args.once || (is_done && was_done) {
            return Ok(());
        }
        was_done = is_done;
        thread::sleep(PAUSE);
    }
}

/// Search or training of a run.
struct Stage {
    name: String,
    epochs: Vec<Epoch>,
    dice: Vec<f64>,
    num_epochs: usize,
    /// Mean time of the latest epochs.
    epoch_s: f64,
    is_finished: bool,
}

/// Epoch that has ended.
struct Epoch {
    line: String,
    row: Value,
}

impl Stage {
    fn state(&self) -> String {
        if self.is_finished {
            return "  finished".to_owned();
        }
        let left = self.epoch_s * self.num_epochs.saturating_sub(self.epochs.len()) as f64;
        format!("  about {:.0} min left while a process works on it", left / 60.0)
    }
}

fn stages(run: &RunData) -> Vec<Stage> {
    let settings = &run.config.settings;
    let searches = run.searches.iter().map(|search| {
        let num_epochs = settings.search.epochs;
        let epoch = |row: &SearchRow| Epoch { line: EpochNumbers::from(row).line(num_epochs), row: json!(row) };
        Stage {
            name: format!("search fold {}", search.fold),
            epochs: search.rows.iter().map(epoch).collect(),
            dice: search.rows.iter().filter_map(|row| row.mean_dice).collect(),
            num_epochs,
            epoch_s: latest_mean(search.rows.iter().map(|row| row.wall_s)),
            is_finished: search.architecture.is_some(),
        }
    });
    let trainings = run.trainings.iter().map(|training| {
        let num_epochs = training.num_epochs;
        let epoch = |row: &RetrainRow| Epoch { line: EpochNumbers::from(row).line(num_epochs), row: json!(row) };
        Stage {
            name: format!(
                "retrain {}fold {}",
                training.name.as_ref().map_or(String::new(), |name| format!("{name} ")),
                training.fold
            ),
            epochs: training.rows.iter().map(epoch).collect(),
            dice: training.rows.iter().filter_map(|row| row.mean_dice).collect(),
            num_epochs,
            epoch_s: latest_mean(training.rows.iter().map(|row| row.wall_s)),
            is_finished: training.is_finished(),
        }
    });
    searches.chain(trainings).collect()
}

fn latest_mean(seconds: impl DoubleEndedIterator<Item = f64>) -> f64 {
    let latest: Vec<f64> = seconds.rev().take(5).collect();
    latest.iter().sum::<f64>() / latest.len().max(1) as f64
}

/// Curve of numbers from 0 to 1 as a line of blocks, thinned to 40.
fn spark(values: &[f64]) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let shown = values.len().min(40);
    let value = |i: usize| values[if shown == 1 { 0 } else { i * (values.len() - 1) / (shown - 1) }];
    (0..shown).map(|i| BLOCKS[((value(i) * 8.0) as usize).min(7)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_drawn_from_zero_to_one() {
        assert_eq!(spark(&[]), "");
        assert_eq!(spark(&[0.0, 0.5, 1.0]), "▁▅█");
        assert_eq!(spark(&[0.5; 1000]).chars().count(), 40);
    }
}
