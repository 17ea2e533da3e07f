//! `adw submit`: segment a dataset's test images for the decathlon's server.

use anyhow::Result;

use super::predict::predict;
use crate::{args::SubmitArgs, failure::bad_input, image::Image, task::open_dataset};

/// Segments the test images. The decathlon's server takes an archive with a folder per dataset, of the dataset's name, whose
/// label maps have the names of the test images.
pub(crate) fn run(args: &SubmitArgs) -> Result<()> {
    predict(&args.model, |models| {
        let dataset = open_dataset(&args.dataset)?;
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
        let images = dataset.test.into_iter().map(|case| Image::new(case.id, case.image));
        Ok((images.collect(), args.output.join(&dataset.name)))
    })
}
