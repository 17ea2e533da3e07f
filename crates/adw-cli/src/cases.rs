//! Prepared cases, kept in memory and shared between the parts of a training.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::Result;
use msd_data::{PreparedCase, prepare_training_cases};

use crate::run::Run;

/// The cases prepared so far, by id.
#[derive(Default)]
pub(crate) struct Cases(BTreeMap<String, Arc<PreparedCase>>);

impl Cases {
    /// The cases called `ids`, in their order, each read and prepared at most once.
    ///
    /// # Errors
    /// A case that cannot be read or does not fit the dataset; the first in the order of `ids`.
    pub(crate) fn prepare(&mut self, run: &Run, ids: &[String]) -> Result<Vec<Arc<PreparedCase>>> {
        let missing: Vec<String> = ids
            .iter()
            .filter(|id| !self.0.contains_key(*id))
            .cloned()
            .collect();
        let prepared = prepare_training_cases(&run.dataset, &missing, &run.plan)?;
        self.0
            .extend(missing.into_iter().zip(prepared.into_iter().map(Arc::new)));
        Ok(ids.iter().map(|id| Arc::clone(&self.0[id])).collect())
    }
}
