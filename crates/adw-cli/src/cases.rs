//! Prepared cases, shared between the parts of a training: in memory if they fit, else in files of the run.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::Result;
use msd_data::{Memory, TrainingCase, prepare_training_cases, store_training_cases, training_cases_bytes};

use crate::{args::ScratchArgs, report::progress::note, run::Run, source::NamedCases};

/// Cases prepared so far, by id.
pub(crate) struct Cases {
    prepared: BTreeMap<String, TrainingCase>,
    /// Memory for the work of preparing.
    memory: Memory,
    /// Folder of the cases; none if they fit into memory.
    folder: Option<PathBuf>,
}

/// Raises the limit of open files, of which every stored case is one, as far as the system allows.
fn allow_open_files() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        // If it fails, opening too many files is the error.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    }
}

impl Cases {
    /// Chooses where the cases called `ids` are kept: in memory if `left` is enough, else in a folder on the scratch disk,
    /// or without one in `prepared/` of the run's folder, which is created if the run is new. A later training finds them there.
    ///
    /// # Errors
    /// An image whose header cannot be read; a case that cannot be prepared within `left`; a disk that cannot be written to.
    pub(crate) fn new(run: &mut Run, ids: &[String], left: Memory, scratch: &ScratchArgs) -> Result<Self> {
        let need = training_cases_bytes(&run.dataset, ids, &run.plan)?;
        left.check(need.preparing_largest, || need.largest.clone())?;
        let fits = left.holds(need.prepared.saturating_add(need.preparing_largest));
        let folder = if fits {
            None
        } else {
            let folder = match &scratch.scratch {
                Some(scratch) => scratch.join(format!("adw-cases-{}", run.preparation_digest())),
                None => run.folder()?.prepared(),
            };
            note(&format!(
                "{} prepared cases take {:.1} GB: kept in {}",
                ids.len(),
                need.prepared as f64 / 1e9,
                folder.display()
            ));
            allow_open_files();
            Some(folder)
        };
        Ok(Self {
            prepared: BTreeMap::new(),
            // While the last case is prepared, all others are in memory already.
            memory: if fits { left.less(need.prepared) } else { left },
            folder,
        })
    }

    /// Prepares the cases called `ids`, each at most once, and returns them in that order.
    ///
    /// # Errors
    /// A case that cannot be read or does not fit the dataset; the first in the order of `ids`.
    pub(crate) fn prepare(&mut self, run: &Run, ids: &[String]) -> Result<NamedCases> {
        let missing: Vec<String> = ids.iter().filter(|id| !self.prepared.contains_key(*id)).cloned().collect();
        let (dataset, plan, memory) = (&run.dataset, &run.plan, self.memory);
        let prepared: Vec<TrainingCase> = match &self.folder {
            None => {
                prepare_training_cases(dataset, &missing, plan, memory)?.into_iter().map(TrainingCase::from).collect()
            }
            Some(folder) => store_training_cases(dataset, &missing, plan, folder, memory)?
                .into_iter()
                .map(TrainingCase::from)
                .collect(),
        };
        self.prepared.extend(missing.into_iter().zip(prepared));
        Ok(ids.iter().map(|id| (id.clone(), self.prepared[id].clone())).collect())
    }
}
