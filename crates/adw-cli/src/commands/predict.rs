//! `adw predict`: label maps of new images.

use std::{
    fs,
    path::{Path, PathBuf},
};

use adw_search::infer::SlidingWindow;
use anyhow::{Context, Result};
use msd_data::{Geometry, Plan, PreparedCase, Volume, preprocess, read_image, write_labels};
use serde_json::json;

use crate::{
    args::PredictArgs,
    device,
    failure::bad_input,
    model,
    report::progress::{Progress, emit, say},
    run_folder::check_writable,
    segment::Segmenter,
};

pub(crate) fn run(args: &PredictArgs) -> Result<()> {
    let device = device::set_up(&args.process)?;
    if !(args.step > 0.0 && args.step <= 1.0) {
        bad_input!(
            "--step {}: expected a fraction of the patch above 0, at most 1",
            args.step
        );
    }
    let models = model::load(&args.model, &device)?;
    let images = images(&args.input)?;
    if images
        .iter()
        .any(|image| is_same(parent_of(image), &args.output))
    {
        bad_input!(
            "--output {}: would overwrite the images; choose another folder",
            args.output.display()
        );
    }
    check_writable(&args.output)?;
    // All are looked at before the first is written: a bad one at the end of a long list is found at once.
    for image in &images {
        load(image, &models.plan)?;
    }

    fs::create_dir_all(&args.output)
        .with_context(|| format!("cannot create {}", args.output.display()))?;
    let window = SlidingWindow {
        step: args.step,
        mirror: if args.mirror {
            models.mirror_axes
        } else {
            [false; 3]
        },
        ..SlidingWindow::new(models.plan.patch_size)
    };
    let segmenter = Segmenter {
        models: &models.networks,
        window,
        device,
    };
    let progress = Progress::new("predict", 0, images.len() as u64, args.process.json);
    for (done, path) in images.iter().enumerate() {
        let (case, geometry) = prepare(path, &models.plan)?;
        let name = format!("{}.nii.gz", case_name(path));
        let labels = segmenter.segment(&case, &mut |window, windows| {
            progress.step(done as u64, || {
                format!("{name}: window {window} of {windows}")
            });
        })?;
        let target = args.output.join(&name);
        write_labels(&target, &labels.view(), &geometry)?;
        progress.step(done as u64 + 1, || name.clone());
        if args.process.json {
            emit("predicted", &json!({ "image": path, "labels": target }));
        }
    }
    drop(progress);
    if !args.process.json {
        say(&format!(
            "{} label maps in {}\n",
            images.len(),
            args.output.display()
        ));
    }
    Ok(())
}

/// The image, or the folder's images in the order of their names.
fn images(input: &Path) -> Result<Vec<PathBuf>> {
    if !input.is_dir() {
        if !input.is_file() {
            bad_input!("--input {}: no such file or folder", input.display());
        }
        return Ok(vec![input.to_owned()]);
    }
    let mut images = Vec::new();
    for entry in fs::read_dir(input).with_context(|| format!("cannot read {}", input.display()))? {
        let path = entry
            .with_context(|| format!("cannot read {}", input.display()))?
            .path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with('.') && case_name(&path) != name {
            images.push(path);
        }
    }
    images.sort();
    if images.is_empty() {
        bad_input!("--input {}: no .nii or .nii.gz there", input.display());
    }
    if let Some(pair) = images
        .windows(2)
        .find(|pair| case_name(&pair[0]) == case_name(&pair[1]))
    {
        bad_input!(
            "--input {}: {} and {} would have the same label map",
            input.display(),
            pair[0].display(),
            pair[1].display()
        );
    }
    Ok(images)
}

/// The file name without `.nii` or `.nii.gz`.
fn case_name(path: &Path) -> String {
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let stem = name
        .strip_suffix(".nii.gz")
        .or_else(|| name.strip_suffix(".nii"));
    stem.map_or(name.clone(), str::to_owned)
}

/// Reads an image and checks that a model of this plan can use it.
fn load(path: &Path, plan: &Plan) -> Result<Volume<f32>> {
    let image = read_image(path)?;
    let (channels, expected) = (image.data.shape()[0], plan.modalities.len());
    if channels != expected {
        bad_input!(
            "{}: {channels} channels, but the model takes {expected} ({})",
            path.display(),
            plan.modalities.join(", ")
        );
    }
    Ok(image)
}

fn prepare(path: &Path, plan: &Plan) -> Result<(PreparedCase, Geometry)> {
    let image = load(path, plan)?;
    let case = preprocess(&image, None, plan).with_context(|| path.display().to_string())?;
    Ok((case, image.geometry))
}

fn parent_of(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Whether both name one existing folder.
fn is_same(a: &Path, b: &Path) -> bool {
    matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_gives_its_images_by_name_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a folder");
        for name in ["b.nii", "a.nii.gz", "._a.nii.gz", "notes.txt"] {
            fs::write(dir.path().join(name), "").expect("a file");
        }
        let found = images(dir.path()).expect("two images");
        assert_eq!(
            found,
            [dir.path().join("a.nii.gz"), dir.path().join("b.nii")]
        );
        fs::write(dir.path().join("a.nii"), "").expect("a file");
        assert!(
            images(dir.path())
                .unwrap_err()
                .to_string()
                .contains("same label map")
        );
    }
}
