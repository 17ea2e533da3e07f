//! `adw submit`: label maps of a dataset's test images, in a folder as the decathlon wants it.

use anyhow::Result;

use super::predict::{Image, predict};
use crate::{args::SubmitArgs, dataset_folder, device, failure::bad_input, model};

/// The decathlon takes an archive of folders called like the datasets, each with label maps called like the test images.
pub(crate) fn run(args: &SubmitArgs) -> Result<()> {
    let device = device::set_up(&args.process)?;
    let models = model::load(
        &args.model.model,
        device::precision(args.model.bf16)?,
        &device,
    )?;
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
    let images: Vec<_> = dataset
        .test
        .iter()
        .map(|case| Image {
            name: case.id.clone(),
            files: case.image.clone(),
        })
        .collect();
    let output = args.output.join(&dataset.name);
    predict(
        &images,
        &output,
        &models,
        &args.model,
        &device,
        &args.process,
    )
}
