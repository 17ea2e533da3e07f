//! `adw plan`: show the plan of a dataset.

use anyhow::Result;
use msd_data::{Plan, fingerprint};

use crate::{
    args::PlanArgs,
    device, memory,
    report::{progress::say, table::Table},
    run,
    run_config::RunConfig,
    run_folder::check_text_output,
    task::open_dataset,
};

pub(crate) fn run(args: &PlanArgs) -> Result<()> {
    device::set_threads(&args.process)?;
    let config = RunConfig::from_args(&args.config)?;
    if let Some(output) = &args.output {
        check_text_output(output, b'{')?;
    }
    let mut dataset = open_dataset(&args.dataset)?;
    dataset.positions = config.settings.data.positions();
    let plan = run::plan(&fingerprint(&dataset, memory::limit(args.memory))?, &dataset, &config)?;
    if let Some(output) = &args.output {
        plan.save(output)?;
    }
    if args.process.json {
        say(&format!("{}\n", serde_json::to_string(&plan)?));
    } else {
        say(&render(&plan, dataset.training.len(), dataset.test.len()));
    }
    Ok(())
}

fn render(plan: &Plan, num_training: usize, num_test: usize) -> String {
    let names = |names: &mut dyn Iterator<Item = &str>| names.collect::<Vec<_>>().join(", ");
    let mut table = Table::of_text([plan.dataset_name.as_str(), ""]);
    table.row(["cases", &format!("{num_training} with labels, {num_test} without")]);
    table.row(["modalities", &names(&mut plan.modalities.iter().map(String::as_str))]);
    table.row(["labels", &names(&mut plan.labels.iter().map(|label| label.name.as_str()))]);
    table.row([
        "axes",
        &format!("{} of the images", plan.transpose_forward.map(|axis| ["z", "y", "x"][axis]).join(", ")),
    ]);
    table.row(["voxels", &format!("{} mm", times(&plan.spacing_mm.map(rounded)))]);
    table.row(["median case", &times(&plan.median_shape)]);
    table.row(["patch", &times(&plan.patch_size)]);
    table.row(["batch", &plan.batch_size.to_string()]);
    table.row(["strides", &plan.strides.iter().map(times).collect::<Vec<_>>().join("  ")]);
    table.row(["kernels", &plan.kernels.iter().map(times).collect::<Vec<_>>().join("  ")]);
    let normalization = plan.normalization.iter().map(|how| format!("{how:?}")).collect::<Vec<_>>();
    table.row(["normalisation", &normalization.join(", ")]);
    table.render()
}

/// Three decimals, without trailing zeros: 3.5999999 mm, as headers in f32 have it, is 3.6 mm.
fn rounded(mm: f64) -> String {
    format!("{mm:.3}").trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn times<T: ToString>(triple: &[T; 3]) -> String {
    triple.iter().map(ToString::to_string).collect::<Vec<_>>().join("x")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_rounded_to_micrometres() {
        let lengths = [3.599_999_904_632_568_4, 0.625, 1.0, 100.0].map(rounded);
        assert_eq!(lengths, ["3.6", "0.625", "1", "100"]);
    }
}
