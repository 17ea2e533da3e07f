//! Images that are segmented: NIfTI files and DICOM series, found in folders.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use adw_dicom::is_dicom;
use anyhow::{Context as _, Result};
use msd_data::{
    Geometry, Plan, Positions, Volume,
    dataset::{case_id, channel_of, load_image, nifti_files},
    nifti::read_geometry,
};

use crate::{
    args::PredictArgs,
    dicom::{self, DicomCase},
    failure::bad_input,
    report::progress::note,
    run_folder::is_same,
};

/// Image that is segmented into one label map.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Image {
    /// Name of the label map without its ending.
    pub(crate) name: String,
    /// One file with all channels, one file per channel, or the files of a series.
    pub(crate) files: Vec<PathBuf>,
    /// The series, if it is one of DICOM.
    pub(crate) dicom: Option<DicomCase>,
}

impl Image {
    /// Image in a NIfTI file with all channels, or one per channel.
    pub(crate) fn new(name: String, files: Vec<PathBuf>) -> Self {
        Self { name, files, dicom: None }
    }

    /// File or folder by which messages name the image.
    pub(crate) fn path(&self) -> &Path {
        self.dicom.as_ref().map_or(&self.files[0], DicomCase::path)
    }

    pub(crate) fn geometry(&self) -> Result<Geometry> {
        self.dicom.as_ref().map_or_else(|| Ok(read_geometry(&self.files[0])?.0), |dicom| Ok(dicom.geometry()))
    }

    pub(crate) fn load(&self, num_channels: usize, positions: Positions) -> Result<Volume<f32>> {
        match &self.dicom {
            Some(dicom) => dicom.volume(),
            None => Ok(load_image(&self.files, num_channels, positions)?),
        }
    }

    /// File of the DICOM segmentation in the folder `output`.
    pub(crate) fn segmentation(&self, output: &Path) -> PathBuf {
        output.join(format!("{}.seg.dcm", self.name))
    }

    /// File of the label map in the folder `output`.
    pub(crate) fn target(&self, output: &Path) -> PathBuf {
        output.join(format!("{}.nii.gz", self.name))
    }

    /// File of the probabilities in the folder `output`.
    pub(crate) fn probabilities(&self, output: &Path) -> PathBuf {
        output.join(format!("{}.npz", self.name))
    }
}

/// Images that the arguments name: those of NIfTI files, else series of DICOM. Series beside NIfTI files are left out with a
/// warning.
pub(crate) fn images(args: &PredictArgs, plan: &Plan) -> Result<Vec<Image>> {
    let input = &args.input;
    let has_nifti = input.is_dir() && !nifti_files(input)?.is_empty();
    if !has_nifti && input.exists() {
        let series = dicom::cases(input, &args.output, plan, &args.dicom)?;
        if !series.is_empty() {
            let image = |(name, dicom): (String, DicomCase)| Image { name, files: dicom.files(), dicom: Some(dicom) };
            if is_same(input, &args.output) {
                bad_input!("--output {}: is the folder of the series; choose another", args.output.display());
            }
            return Ok(series.into_iter().map(image).collect());
        }
    }
    let beside = if has_nifti { dicom_in(input)? } else { None };
    if args.dicom.series.is_some() || args.dicom.segments.is_some() {
        let problem = match beside {
            Some(_) => "NIfTI files lie beside the DICOM: move them to another folder, or name that of the series",
            None => "no DICOM there, to which --series and --segments belong",
        };
        bad_input!("--input {}: {problem}", input.display());
    }
    if let Some(place) = beside {
        note(&format!(
            "warning: {}: its DICOM is left out, as {} has NIfTI files, which are predicted alone: keep them in different folders",
            place.display(),
            input.display()
        ));
    }
    nifti_images(input, plan.modalities.len())
}

/// Folder with DICOM files: `folder`, or the first in it.
fn dicom_in(folder: &Path) -> Result<Option<PathBuf>> {
    let mut folders = vec![folder.to_owned()];
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.sort();
    Ok(folders.into_iter().find(|folder| is_dicom(folder).unwrap_or(false)))
}

/// Checks that an image has a name for its label map.
///
/// # Errors
/// A file whose name begins with a dot, is not UTF-8, or is the number of a channel alone.
fn check_name(image: &Image) -> Result<()> {
    if image.name.is_empty() {
        bad_input!(
            "{}: no name is left for the label map: rename the file to one in UTF-8 that does not begin with a dot and is \
             more than the number of a channel",
            image.path().display()
        );
    }
    Ok(())
}

/// Remedy for a file of [another format](is_other_format).
fn convert(path: &Path) -> String {
    let (from, to) = (path.display(), path.with_extension("nii.gz"));
    format!(
        "MetaImage and NRRD are not read; convert to NIfTI, in Python: SimpleITK.WriteImage(SimpleITK.ReadImage(\"{from}\"), \
         \"{}\")",
        to.display()
    )
}

/// Returns true if the name is that of a file of `MetaImage` or NRRD.
fn is_other_format(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default().to_lowercase();
    ["mha", "mhd", "nrrd", "nhdr"].contains(&extension.as_str())
}

/// Image `input`, or the images in that folder in the order of their names. Where every name ends in the number of a channel and
/// each case has all channels of the model, its files are one image, as nnU-Net keeps them.
fn nifti_images(input: &Path, num_channels: usize) -> Result<Vec<Image>> {
    let one = |path: PathBuf| Image::new(case_id(&path).unwrap_or_default(), vec![path]);
    if !input.is_dir() {
        if !input.is_file() {
            match adw_files::open_regular(input) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    bad_input!("--input {}: {error}; expected an image or a folder of images", input.display())
                }
                _ => bad_input!("--input {}: no such file or folder", input.display()),
            }
        }
        if is_other_format(input) {
            bad_input!("--input {}: {}", input.display(), convert(input));
        }
        let by_name = by_channel(&[input.to_owned()], num_channels).and_then(|images| images.into_iter().next());
        let image = by_name.unwrap_or_else(|| one(input.to_owned()));
        check_name(&image)?;
        return Ok(vec![image]);
    }
    let files = nifti_files(input)?;
    let entries = fs::read_dir(input).with_context(|| format!("cannot read {}", input.display()))?;
    let other = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| is_other_format(path)).min();
    match other {
        Some(path) if files.is_empty() => bad_input!("{}: {}", path.display(), convert(&path)),
        Some(path) => {
            note(&format!("warning: {}: left out, as are others like it: {}", path.display(), convert(&path)));
        }
        None if files.is_empty() => bad_input!("--input {}: no .nii, .nii.gz or DICOM there", input.display()),
        None => {}
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
    let has_channel = |file: &&PathBuf| case_id(file).is_some_and(|id| channel_of(&id).is_some());
    if let (Some(with), Some(without)) = (files.iter().find(has_channel), files.iter().find(|file| !has_channel(file)))
    {
        note(&format!(
            "warning: --input {}: {} is named after a channel, {} is not, so every file is an image of its own, and label maps \
             have their whole names",
            input.display(),
            with.display(),
            without.display()
        ));
    }
    let images = by_channel(&files, num_channels).unwrap_or_else(|| files.into_iter().map(one).collect());
    images.iter().try_for_each(check_name)?;
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

/// Groups sorted files into images of one file per channel; none if the names, the number of files or the channels in the first
/// file do not fit that.
fn by_channel(files: &[PathBuf], num_channels: usize) -> Option<Vec<Image>> {
    if read_geometry(files.first()?).is_ok_and(|(_, in_file)| in_file > 1) {
        return None;
    }
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
    let image = |(name, files)| Image::new(name, files);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_gives_its_images_by_name_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |name: &str| fs::write(dir.path().join(name), "").expect("a file");
        ["b.nii", "a.nii.gz", "._a.nii.gz", "notes.txt"].into_iter().for_each(write);
        let found = nifti_images(dir.path(), 1).expect("two images");
        let image = |name: &str, files: &[&str]| {
            Image::new(name.to_owned(), files.iter().map(|file| dir.path().join(file)).collect())
        };
        assert_eq!(found, [image("a", &["a.nii.gz"]), image("b", &["b.nii"])]);
        write("a.nii");
        let refusal = |input: &Path| nifti_images(input, 1).unwrap_err().to_string();
        assert!(refusal(dir.path()).contains("same label map"));
        fs::remove_file(dir.path().join("a.nii")).expect("removed");
        write("_0000.nii");
        let unnamed = dir.path().join("_0000.nii");
        assert!(refusal(&unnamed).contains("_0000.nii: no name is left for the label map"));
        for other in ["a.nii.gz", "b.nii"] {
            fs::remove_file(dir.path().join(other)).expect("removed");
        }
        assert!(refusal(dir.path()).contains("_0000.nii: no name is left for the label map"));
    }

    #[test]
    fn dicom_is_seen_beside_images_and_in_the_folders_there() {
        let dir = tempfile::tempdir().expect("a folder");
        let series = dir.path().join("s1");
        fs::create_dir_all(&series).expect("a folder");
        fs::write(dir.path().join("a.nii"), "").expect("a file");
        assert_eq!(dicom_in(dir.path()).expect("read"), None);
        for folder in [series.as_path(), dir.path()] {
            fs::write(folder.join("IM0"), [&[0; 128][..], b"DICM"].concat()).expect("a file");
            assert_eq!(dicom_in(dir.path()).expect("read").as_deref(), Some(folder));
        }
    }

    #[test]
    fn files_of_other_formats_are_named_with_a_way_to_convert_them() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("a.MHA");
        fs::write(&file, "").expect("a file");
        for input in [dir.path(), &file] {
            let error = nifti_images(input, 1).unwrap_err().to_string();
            assert!(error.contains("a.MHA: MetaImage and NRRD are not read; convert"), "{error}");
        }
        fs::write(dir.path().join("b.nii"), "").expect("a file");
        assert_eq!(nifti_images(dir.path(), 1).expect("an image").len(), 1);
    }

    #[test]
    fn files_of_channels_are_one_image_if_the_model_has_those_channels() {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |name: &str| fs::write(dir.path().join(name), "").expect("a file");
        ["b_0000.nii", "b_0001.nii", "a_0001.nii", "a_0000.nii"].into_iter().for_each(write);
        let names = |channels| {
            let found = nifti_images(dir.path(), channels).expect("images");
            let name = |image: &Image| (image.name.clone(), image.files.len());
            found.iter().map(name).collect::<Vec<_>>()
        };
        assert_eq!(names(2), [("a".to_owned(), 2), ("b".to_owned(), 2)]);
        assert_eq!(names(1).len(), 4, "four images of one channel");
        fs::remove_file(dir.path().join("b_0000.nii")).expect("removed");
        assert_eq!(names(2).len(), 3, "no pairs");
    }

    #[test]
    fn an_image_has_one_name_whether_it_is_given_alone_or_in_its_folder() {
        let dir = tempfile::tempdir().expect("a folder");
        let grid = msd_data::Geometry::new([3; 3], [1.0; 3]);
        let write = |name: &str, channels| {
            let image = ndarray::Array4::zeros([channels, 3, 3, 3]);
            msd_data::write_image(dir.path().join(name), &image.view(), &grid).expect("written");
        };
        write("a_0000.nii", 1);
        for input in [dir.path(), &dir.path().join("a_0000.nii")] {
            assert_eq!(nifti_images(input, 1).expect("an image")[0].name, "a");
        }
        // Files that hold all channels are images of their own, whatever their names.
        for name in ["a_0000.nii", "a_0001.nii"] {
            write(name, 2);
        }
        let names: Vec<_> = nifti_images(dir.path(), 2).expect("images").into_iter().map(|image| image.name).collect();
        assert_eq!(names, ["a_0000", "a_0001"]);
    }
}
