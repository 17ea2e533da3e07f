//! Kinds of work that are disturbed.

use std::path::Path;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scenario {
    Search,
    /// A search whose prepared cases are kept in files.
    SearchOnDisk,
    Retrain,
    /// A search, trainings and scores of five folds, each in a process of its own.
    Crossval,
    /// A sweep of two arms by two workers, whose tasks are processes of their own.
    Sweep,
    Predict,
    Submit,
    Export,
    Download,
    /// Scores of random architectures with the weights of the finished search. Not interrupted, only given damaged files.
    Rank,
    /// The report of the finished run, likewise.
    Report,
}

impl Scenario {
    /// All scenarios with data in memory.
    pub(super) const ALL: [Self; 8] = [
        Self::Search,
        Self::Retrain,
        Self::Crossval,
        Self::Sweep,
        Self::Predict,
        Self::Submit,
        Self::Export,
        Self::Download,
    ];

    /// Part of a number of faults: a cross-validation and a sweep take as long as many other scenarios.
    pub(super) fn share(self, count: usize) -> usize {
        match self {
            Self::Crossval => count.div_ceil(4).min(100),
            Self::Sweep => count.div_ceil(6).min(100),
            _ => count,
        }
    }

    /// Returns true if the scenario's work is done by several processes.
    pub(super) fn has_children(self) -> bool {
        matches!(self, Self::Crossval | Self::Sweep)
    }

    /// Returns true if the scenario's command has the option `--resume`; the others are just repeated.
    pub(super) fn resumes(self) -> bool {
        !matches!(self, Self::Export | Self::Download | Self::Sweep | Self::Rank | Self::Report)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Search => "search",
            Self::SearchOnDisk => "search-on-disk",
            Self::Retrain => "retrain",
            Self::Crossval => "crossval",
            Self::Predict => "predict",
            Self::Submit => "submit",
            Self::Export => "export",
            Self::Download => "download",
            Self::Sweep => "sweep",
            Self::Rank => "rank",
            Self::Report => "report",
        }
    }

    /// Files and folders whose bits are promised.
    pub(super) fn results(self) -> &'static [&'static str] {
        match self {
            Self::Search | Self::SearchOnDisk => {
                &["run/search/fold_0/architecture.json", "run/search/fold_0/architecture.svg", "run/plan.json"]
            }
            Self::Retrain => &[
                "run/retrain/fold_0/model.safetensors",
                "run/retrain/fold_0/metrics.json",
                "run/retrain/fold_0/validation",
            ],
            Self::Crossval => &[
                "run/retrain/metrics.json",
                "run/retrain/postprocessing.json",
                "run/retrain/fold_0/model.safetensors",
                "run/retrain/fold_0/validation",
                "run/retrain/fold_4/model.safetensors",
                "run/retrain/fold_4/metrics.json",
                "run/retrain/fold_4/validation",
            ],
            Self::Predict => &["predicted"],
            Self::Submit => &["submitted"],
            Self::Export => &["exported"],
            Self::Download => &["downloaded"],
            Self::Sweep => &[
                "study/runs/phantom/found/seed_1/search/fold_0/architecture.json",
                "study/runs/phantom/found/seed_1/retrain/fold_0/model.safetensors",
                "study/runs/phantom/found/seed_1/retrain/fold_0/validation",
                "study/runs/phantom/plain/seed_1/retrain/fold_0/model.safetensors",
                "study/runs/phantom/plain/seed_1/retrain/fold_0/validation",
            ],
            Self::Rank => &["ranked"],
            Self::Report => &[],
        }
    }

    /// Returns true if there is something to resume, which a user sees by the folder.
    pub(super) fn started(self, folder: &Path) -> bool {
        match self {
            Self::Search | Self::SearchOnDisk => folder.join("run/search/fold_0").exists(),
            Self::Retrain => folder.join("run/retrain/fold_0").exists(),
            _ => true,
        }
    }
}
