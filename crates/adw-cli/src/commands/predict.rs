//! `adw predict`: segment images.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    path::{Path, PathBuf},
};

use adw_files::NewFile;
use adw_search::infer::SlidingWindow;
use adw_supernet::Unet;
use anyhow::{Context, Result};
use candle_core::Device;
use msd_data::{
    Geometry, Plan, Positions, Postprocessing, PreparedCase,
    check::implausible,
    dataset::{case_id, channel_of, load_image, nifti_files},
    nifti::{read_geometry, write_commented_labels},
    preprocess,
};
use ndarray::{Array4, Axis};
use serde_json::json;

use crate::{
    args::{Convolutions, ModelArgs, PredictArgs},
    dataset_folder::is_dataset,
    device,
    ensemble::Ensemble,
    failure::{bad_input, program},
    interrupt, memory,
    model::{self, Models},
    npz::{self, NpzWriter},
    provenance::{self, Provenance},
    report::progress::{Progress, emit, note, say},
    run_config,
    run_folder::{check_output, check_writable, is_same, parent},
    segment::Segmenter,
};

/// Name of the array of probabilities.
const PROBABILITIES: &str = "probabilities";

pub(crate) fn run(args: &PredictArgs) -> Result<()> {
    predict(&args.model, |models| {
        let images = images(&args.input, models.plan.modalities.len())?;
        Ok((images, args.output.clone()))
    })
}

/// Image that is segmented into one label map.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Image {
    /// Name of the label map without its ending.
    pub(crate) name: String,
    /// One file with all channels, or one file per channel.
    pub(crate) files: Vec<PathBuf>,
}

impl Image {
    /// File of the label map in the folder `output`.
    fn target(&self, output: &Path) -> PathBuf {
        output.join(format!("{}.nii.gz", self.name))
    }

    /// File of the probabilities in the folder `output`.
    fn probabilities(&self, output: &Path) -> PathBuf {
        output.join(format!("{}.npz", self.name))
    }
}

/// Segments images into one label map each. `inputs` returns the images for the models, and the folder of the label maps.
///
/// # Errors
/// An image that cannot be read or does not fit the models, before the first is segmented; a full or read-only disk.
pub(crate) fn predict(args: &ModelArgs, inputs: impl FnOnce(&Models) -> Result<(Vec<Image>, PathBuf)>) -> Result<()> {
    let device = device::set_up(&args.device, &args.process)?;
    let precision = device::precision(args.bf16, &device)?;
    let ensemble = Ensemble::find(&args.model)?;
    let models = model::load(&ensemble.models, precision, &device)?;
    let (images, output) = inputs(&models)?;
    let window = models.window(args.step, args.mirror)?;
    let steps = args.postprocessing.as_deref().or(ensemble.postprocessing.as_deref());
    let postprocessing = steps.filter(|steps| *steps != Path::new("none")).map(Postprocessing::load);
    let postprocessing = postprocessing.transpose()?.unwrap_or_default();
    if images.iter().any(|image| is_same(&parent(&image.files[0]), &output)) {
        bad_input!("--output {}: would overwrite the images; choose another folder", output.display());
    }
    check_writable(&output)?;
    let positions = run_config::positions(args.ignore_positions);
    let provenance = provenance(args, &ensemble.models, &window, &postprocessing, &device)?;
    let limit = memory::limit(args.memory);
    let architectures: Vec<_> = models.networks.iter().map(Unet::architecture).collect();
    // Every image is read before the first is segmented: a bad one at the end of a long list is found at once.
    for image in &images {
        check_target(&image.target(&output), args.resume)?;
        if args.probabilities {
            check_output(&image.probabilities(&output))?;
        }
        memory::check_segmentation(limit, &image.files, &models.plan, &architectures, &device, args.probabilities)?;
        let volume = load_image(&image.files, models.plan.modalities.len(), positions)?;
        if let (Some(orientation), None) = (models.plan.orientation, volume.geometry.orientation()) {
            let file = image.files[0].display();
            note(&format!(
                "{file}: its header gives no orientation; taken as stored in {orientation}, like the training cases"
            ));
        }
        for line in implausible(&image.files[0], &volume, &models.plan) {
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
        if !kept {
            let (case, geometry) = prepare(image, &models.plan, positions)?;
            let logits = segmenter.logits(&case, &mut |window, windows| {
                progress.step(done as u64, || format!("{name}: window {window} of {windows}"));
            })?;
            let mut labels = case.properties.restore_logits(&logits.view())?;
            if args.probabilities {
                write_probabilities(&image.probabilities(&output), &logits, &case, labels.dim().into(), &comment)?;
            }
            drop(logits);
            postprocessing.apply(&mut labels);
            write_commented_labels(&target, &labels.view(), &geometry, Some(&comment))?;
        }
        progress.step(done as u64 + 1, || name.clone());
        if args.process.json {
            let files = match image.files.as_slice() {
                [file] => json!(file),
                files => json!(files),
            };
            emit("predicted", &json!({ "image": files, "labels": target }));
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
    case: &PreparedCase,
    grid: [usize; 3],
    comment: &str,
) -> Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    let mut file = NewFile::create(path).with_context(cannot)?;
    let [z, y, x] = grid;
    let shape = [logits.len_of(Axis(0)), z, y, x];
    let mut writer = NpzWriter::new(&mut file, PROBABILITIES, shape).with_context(cannot)?;
    case.properties.restore_probabilities(&logits.view(), |class| -> Result<()> {
        writer.write(class.as_slice().expect("the grid is in standard layout")).with_context(cannot)
    })?;
    writer.finish(comment).with_context(cannot)?;
    file.commit().with_context(cannot)
}

/// Image `input`, or the images in that folder in the order of their names. Where every name ends in the number of a channel and
/// each case has all channels of the model, its files are one image, as nnU-Net keeps them.
fn images(input: &Path, num_channels: usize) -> Result<Vec<Image>> {
    let one = |path: PathBuf| Image { name: case_id(&path).unwrap_or_default(), files: vec![path] };
    if !input.is_dir() {
        if !input.is_file() {
            bad_input!("--input {}: no such file or folder", input.display());
        }
        let image = one(input.to_owned());
        if image.name.is_empty() {
            bad_input!("--input {}: the name must be UTF-8 and not begin with a dot", input.display());
        }
        return Ok(vec![image]);
    }
    let files = nifti_files(input)?;
    if files.is_empty() {
        bad_input!("--input {}: no .nii or .nii.gz there", input.display());
    }
    if let Some((case, channels)) = incomplete_case(&files, num_channels)
        && read_geometry(&files[0]).is_ok_and(|(_, in_file)| in_file == 1)
    {
        bad_input!(
            "--input {}: case {case} has files of the channels {channels:?}, but the models take the channels 0 to {}",
            input.display(),
            num_channels - 1
        );
    }
    if let Some(image) = channels_of_one(&files, num_channels) {
        note(&format!(
            "warning: --input {}: the models take one channel, so {} and the channels beside it are images of their own",
            input.display(),
            image.files[0].display()
        ));
    }
    let images = by_channel(&files, num_channels).unwrap_or_else(|| files.into_iter().map(one).collect());
    let mut by_name: Vec<&Image> = images.iter().collect();
    by_name.sort_by_key(|image| &image.name);
    if let Some(pair) = by_name.windows(2).find(|pair| pair[0].name == pair[1].name) {
        bad_input!(
            "--input {}: {} and {} would have the same label map",
            input.display(),
            pair[0].files[0].display(),
            pair[1].files[0].display()
        );
    }
    Ok(images)
}

/// Finds a case without a file for each channel, and the channels it has; none unless every file is named after a channel.
fn incomplete_case(files: &[PathBuf], num_channels: usize) -> Option<(String, Vec<usize>)> {
    if num_channels == 1 {
        return None;
    }
    let mut cases = BTreeMap::<String, Vec<usize>>::new();
    for file in files {
        let id = case_id(file)?;
        let (case, channel) = channel_of(&id)?;
        cases.entry(case.to_owned()).or_default().push(channel);
    }
    cases.into_iter().find(|(_, channels)| !channels.iter().copied().eq(0..num_channels))
}

/// Groups sorted files into images of one file per channel; none if the names or the number of files do not fit that.
fn by_channel(files: &[PathBuf], num_channels: usize) -> Option<Vec<Image>> {
    let mut cases = BTreeMap::<String, Vec<PathBuf>>::new();
    for file in files {
        let id = case_id(file)?;
        let (case, channel) = channel_of(&id)?;
        let channels = cases.entry(case.to_owned()).or_default();
        if channel != channels.len() {
            return None;
        }
        channels.push(file.clone());
    }
    let whole = cases.values().all(|files| files.len() == num_channels);
    let image = |(name, files)| Image { name, files };
    whole.then(|| cases.into_iter().map(image).collect())
}

/// First case, if the models take one channel and the names give every case the same, larger number of channels.
fn channels_of_one(files: &[PathBuf], num_channels: usize) -> Option<Image> {
    let case = |file: &PathBuf| channel_of(&case_id(file)?).map(|(case, _)| case.to_owned());
    let first = case(files.first()?)?;
    let count = files.iter().filter(|file| case(file).as_ref() == Some(&first)).count();
    let images = (num_channels == 1 && count > 1).then(|| by_channel(files, count))??;
    images.into_iter().next()
}

/// Checks that a label map can be written to `target`.
///
/// # Errors
/// A name that is too long for a file system, or that belongs to a folder, a link, a device, a pipe or a socket, or to a file of
/// another program: perhaps a reference. With `resume` such a file is replaced, but not where it is part of a dataset.
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
    let is_replaced = resume && !is_dataset(&parent(target).join(".."));
    if !is_replaced && target.exists() && !provenance::is_own(target) {
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
    let volume = load_image(&image.files, plan.modalities.len(), positions)?;
    let geometry = volume.geometry.clone();
    let case = preprocess(volume, None, plan).with_context(|| image.files[0].display().to_string())?;
    Ok((case, geometry))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_folder_gives_its_images_by_name_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |name: &str| fs::write(dir.path().join(name), "").expect("a file");
        ["b.nii", "a.nii.gz", "._a.nii.gz", "notes.txt"].into_iter().for_each(write);
        let found = images(dir.path(), 1).expect("two images");
        let image = |name: &str, files: &[&str]| Image {
            name: name.to_owned(),
            files: files.iter().map(|file| dir.path().join(file)).collect(),
        };
        assert_eq!(found, [image("a", &["a.nii.gz"]), image("b", &["b.nii"])]);
        write("a.nii");
        let error = images(dir.path(), 1).unwrap_err().to_string();
        assert!(error.contains("same label map"), "{error}");
    }

    #[test]
    fn files_of_channels_are_one_image_if_the_model_has_those_channels() {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |name: &str| fs::write(dir.path().join(name), "").expect("a file");
        ["b_0000.nii", "b_0001.nii", "a_0001.nii", "a_0000.nii"].into_iter().for_each(write);
        let names = |channels| {
            let found = images(dir.path(), channels).expect("images");
            let name = |image: &Image| (image.name.clone(), image.files.len());
            found.iter().map(name).collect::<Vec<_>>()
        };
        assert_eq!(names(2), [("a".to_owned(), 2), ("b".to_owned(), 2)]);
        assert_eq!(names(1).len(), 4, "four images of one channel");
        fs::remove_file(dir.path().join("b_0000.nii")).expect("removed");
        assert_eq!(names(2).len(), 3, "no pairs");
    }
}
