//! `adw predict`: segment images.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use adw_files::NewFile;
use adw_inference::SlidingWindow;
use adw_supernet::Unet;
use anyhow::{Context, Result};
use candle_core::Device;
use msd_data::{
    CaseProperties, Error, Geometry, NiftiProblem, Plan, Positions, Postprocessing, PreparedCase, check::implausible,
    nifti::write_commented_labels, preprocess, read_labels,
};
use ndarray::{Array4, Axis};
use serde_json::json;

use crate::{
    args::{Convolutions, ModelArgs, PredictArgs},
    dataset_folder::is_dataset,
    device,
    ensemble::Ensemble,
    failure::{bad_input, program},
    image::{Image, images},
    interrupt, memory,
    model::{self, Models},
    npz::{self, NpzWriter},
    provenance::{self, Provenance},
    report::progress::{Progress, emit, note, say},
    run_folder::{check_output, check_writable, is_same, parent},
    segment::Segmenter,
};

/// Name of the array of probabilities.
const PROBABILITIES: &str = "probabilities";

pub(crate) fn run(args: &PredictArgs) -> Result<()> {
    predict(&args.model, |models| Ok((images(args, &models.plan)?, args.output.clone())))
}

/// Segments images into one label map each. `inputs` returns the images for the models, and the folder of the label maps.
///
/// # Errors
/// An image that cannot be read or does not fit the models, before the first is segmented; a full or read-only disk.
pub(crate) fn predict(args: &ModelArgs, inputs: impl FnOnce(&Models) -> Result<(Vec<Image>, PathBuf)>) -> Result<()> {
    let device = device::set_up(&args.device, &args.process)?;
    let precision = device::precision(args.bf16);
    let ensemble = Ensemble::find(&args.model)?;
    let models = model::load(&ensemble.models, precision, &device)?;
    let (images, output) = inputs(&models)?;
    let window = models.window(args.step, args.mirror)?;
    let postprocessing = models.postprocessing(&ensemble, args.postprocessing.as_deref())?;
    check_folder(&images, &output)?;
    let positions = Positions::ignored_if(args.ignore_positions);
    let provenance = provenance(args, &ensemble.models, &window, &postprocessing, &device)?;
    let limit = memory::limit(args.memory);
    let architectures: Vec<_> = models.networks.iter().map(Unet::architecture).collect();
    // Every image is read before the first is segmented: a bad one at the end of a long list is found at once.
    for image in &images {
        check_target(&image.target(&output), args.resume)?;
        if args.probabilities {
            let target = image.probabilities(&output);
            check_output(&target)?;
            check_origin(&target, |path| npz::is_own(path, PROBABILITIES))?;
        }
        if let Some(dicom) = &image.dicom {
            dicom.check_output(&image.segmentation(&output))?;
        }
        let grid = (image.path(), &image.geometry()?);
        memory::check_segmentation(limit, grid, &models.plan, &architectures, &device, args.probabilities)?;
        let volume = image.load(models.plan.modalities.len(), positions)?;
        let file = image.path().display();
        match (models.plan.orientation, volume.geometry.orientation()) {
            (Some(orientation), None) => note(&format!(
                "{file}: its header gives no orientation; taken as stored in {orientation}, like the training cases"
            )),
            (None, Some(stored)) if image.dicom.is_some() => note(&format!(
                "warning: {file}: the model has no orientation, so the planes are taken as stored, in {stored}; if its training images \
                 were stored otherwise, left and right may be exchanged: look at a label map first"
            )),
            _ => {}
        }
        for line in implausible(image.path(), &volume, &models.plan) {
            note(&format!("warning: {line}"));
        }
    }

    adw_files::create_folders(&output).with_context(|| format!("cannot create {}", output.display()))?;
    interrupt::resumes(None);
    let segmenter = Segmenter { models: &models.networks, window };
    let progress = Progress::new("predict", 0, images.len() as u64, args.process.json);
    for (done, image) in images.iter().enumerate() {
        let target = image.target(&output);
        let name = &image.name;
        let comment = provenance.comment(&image.files)?;
        let has_probabilities =
            || !args.probabilities || npz::is_whole(&image.probabilities(&output), PROBABILITIES, &comment);
        let kept = args.resume && target.exists() && has_probabilities() && {
            let difference = provenance::difference(&target, &comment);
            difference.inspect(|difference| note(&format!("{difference}; made anew"))).is_none()
        };
        let labels = if kept {
            image.dicom.is_some().then(|| read_labels(&target)).transpose()?.map(|map| map.data)
        } else {
            let (case, geometry) = prepare(image, &models.plan, positions)?;
            let in_image = || image.path().display().to_string();
            let mut step = |window: usize, windows: usize| {
                progress.step(done as u64, || format!("{name}: window {window} of {windows}"));
            };
            let mut labels = if args.probabilities {
                let PreparedCase { image: voxels, properties, .. } = case;
                let logits = segmenter.logits(voxels, &mut step).with_context(in_image)?;
                let labels = properties.restore_logits(&logits.view())?;
                let path = image.probabilities(&output);
                write_probabilities(&path, &logits, &properties, labels.dim().into(), &comment)?;
                labels
            } else {
                segmenter.segment(case, &mut step).with_context(in_image)?
            };
            postprocessing.apply(&mut labels);
            write_commented_labels(&target, &labels.view(), &geometry, Some(&comment))?;
            Some(labels)
        };
        if let (Some(dicom), Some(labels)) = (&image.dicom, labels) {
            dicom.write(&image.segmentation(&output), &labels.view(), &models.plan, &comment)?;
        }
        progress.step(done as u64 + 1, || name.clone());
        if args.process.json {
            let files = match image.files.as_slice() {
                files @ [_, _, ..] if image.dicom.is_none() => json!(files),
                _ => json!(image.path()),
            };
            let mut predicted = json!({ "image": files, "labels": target });
            if image.dicom.is_some() {
                predicted["segmentation"] = json!(image.segmentation(&output));
            }
            emit("predicted", &predicted);
        }
    }
    drop(progress);
    if !args.process.json {
        say(&format!("{} label maps in {}\n", images.len(), output.display()));
    }
    Ok(())
}

/// Writes the probabilities of all classes on the image's own grid, whose size is `grid`.
fn write_probabilities(
    path: &Path,
    logits: &Array4<f32>,
    properties: &CaseProperties,
    grid: [usize; 3],
    comment: &str,
) -> Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    let mut file = NewFile::create(path).with_context(cannot)?;
    let [z, y, x] = grid;
    let shape = [logits.len_of(Axis(0)), z, y, x];
    let mut writer = NpzWriter::new(&mut file, PROBABILITIES, shape).with_context(cannot)?;
    properties.restore_probabilities(&logits.view(), |class| -> Result<()> {
        writer.write(class.as_slice().expect("the grid is in standard layout")).with_context(cannot)
    })?;
    writer.finish(comment).with_context(cannot)?;
    file.commit().with_context(cannot)
}

/// Checks that `output` can be the folder of these images' label maps.
///
/// # Errors
/// The folder of an image, the name of a file, a place that cannot be written to.
fn check_folder(images: &[Image], output: &Path) -> Result<()> {
    if images.iter().any(|image| is_same(&parent(&image.files[0]), output)) {
        bad_input!("--output {}: would overwrite the images; choose another folder", output.display());
    }
    if output.extension().is_some_and(|extension| extension == "gz" || extension == "nii") && !output.is_dir() {
        let name = images.first().map_or("CASE", |image| &image.name);
        bad_input!(
            "--output {}: expected a folder; label maps are named like their images, {name}.nii.gz",
            output.display()
        );
    }
    check_writable(output)
}

/// Checks that a label map can be written to `target`.
///
/// # Errors
/// A name that is too long for a file system, or that belongs to a folder, a link, a device, a pipe or a socket, or to a file of
/// another program: perhaps a reference, or a map that a person has corrected. With `resume` one whose content is torn is replaced,
/// but not where it is part of a dataset.
fn check_target(target: &Path, resume: bool) -> Result<()> {
    /// Longest name of a file on the file systems in use, in bytes.
    const MAX_NAME_BYTES: usize = 255;
    let name_bytes = target.file_name().map_or(0, OsStr::len);
    if name_bytes > MAX_NAME_BYTES {
        bad_input!(
            "{}: the name has {name_bytes} bytes; rename the image to one of at most {MAX_NAME_BYTES}",
            target.display()
        );
    }
    check_output(target)?;
    let is_torn = |path: &Path| {
        matches!(
            read_labels(path),
            Err(Error::Nifti { problem: NiftiProblem::Truncated { .. } | NiftiProblem::Damaged { .. }, .. })
        )
    };
    let may_replace = |path: &Path| resume && !is_dataset(&parent(path).join("..")) && is_torn(path);
    check_origin(target, |path| provenance::is_own(path) || may_replace(path))
}

/// Refuses a file that exists unless `may_replace` returns true for it.
fn check_origin(target: &Path, may_replace: impl Fn(&Path) -> bool) -> Result<()> {
    if target.exists() && !may_replace(target) {
        bad_input!(
            "{}: exists and is not of `{} predict`; choose another --output, or remove it",
            target.display(),
            program()
        );
    }
    Ok(())
}

/// Digest of what the label maps depend on beside the images.
fn provenance(
    args: &ModelArgs,
    models: &[PathBuf],
    window: &SlidingWindow,
    postprocessing: &Postprocessing,
    device: &Device,
) -> Result<Provenance> {
    let settings = json!({
        "step": window.step,
        "mirror": window.mirror,
        "windows_per_forward": window.windows_per_forward,
        "bf16": args.bf16,
        "ignore_positions": args.ignore_positions,
        "postprocessing": postprocessing,
        "cuda": device.is_cuda().then_some(args.device.convolutions == Convolutions::Cudnn),
    });
    Provenance::new(models, &settings.to_string())
}

fn prepare(image: &Image, plan: &Plan, positions: Positions) -> Result<(PreparedCase, Geometry)> {
    let volume = image.load(plan.modalities.len(), positions)?;
    let geometry = volume.geometry.clone();
    let case = preprocess(volume, None, plan).with_context(|| image.path().display().to_string())?;
    Ok((case, geometry))
}
