//! `adw submit`: label maps of a dataset's test images, in a folder as the decathlon wants it.

use anyhow::Result;

use super::predict::{Image, predict};
use crate::{args::SubmitArgs, dataset_folder, failure::bad_input};

/// The decathlon takes an archive of folders called like the datasets, each with label maps called like the test images.
pub(crate) fn run(args: &SubmitArgs) -> Result<()> {
    predict(&args.model, &args.process, |models| {
        let dataset = dataset_folder::open(&args.data)?;
        let (plan, data) = (&models.plan, dataset.root.display());
        if plan.labels != dataset.labels || plan.modalities != dataset.modalities {
            bad_input!(
                "{}: was trained for {}, {data} has other labels or modalities",
                args.model.model[0].display(),
                plan.dataset_name
            );
        }
        if dataset.test.is_empty() {
            bad_input!("{data}: has no test image; `adw predict` segments any folder of images");
        }
        let images = dataset.test.into_iter().map(|case| Image { name: case.id, files: case.image });
        Ok((images.collect(), args.output.join(&dataset.name)))
    })
}
