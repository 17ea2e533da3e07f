//! Series of DICOM as images, and their label maps as DICOM segmentations.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read},
    path::{Path, PathBuf},
};

use adw_dicom::{Description, Error, SegmentCodes, Series, encode, is_dicom, is_own};
use anyhow::{Context, Result};
use msd_data::{Geometry, Plan, Volume};
use ndarray::{ArrayView3, Axis};

use crate::{
    args::DicomArgs,
    failure::{BadInput, bad_input, program},
    report::progress::note,
    run_folder,
};

/// Error of a series, with the option that is its remedy.
#[allow(clippy::needless_pass_by_value, reason = "an argument of map_err")]
fn refused(error: Error) -> BadInput {
    let choice = if matches!(error, Error::SeveralSeries { .. }) { ": --series UID names one by its end" } else { "" };
    BadInput::new(format!("{error}{choice}"))
}

/// A series, and codes for the labels of the models.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DicomCase {
    series: Series,
    codes: Vec<(String, SegmentCodes)>,
}

impl DicomCase {
    /// Folder of the series, or its only file.
    pub(crate) fn path(&self) -> &Path {
        self.series.path()
    }

    /// Files of the images, in the order of the planes.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        self.series.files()
    }

    pub(crate) fn geometry(&self) -> Geometry {
        let mut geometry = Geometry::from_affine(self.series.shape(), self.series.affine());
        // As in the header of a NIfTI file, so that the same volume is resampled in the same way.
        geometry.spacing_mm = geometry.spacing_mm.map(|mm| f64::from(mm as f32));
        geometry
    }

    /// Reads the voxels, in Hounsfield units for CT.
    ///
    /// # Errors
    /// A file that cannot be read or decoded.
    pub(crate) fn volume(&self) -> Result<Volume<f32>> {
        Ok(Volume { data: self.series.voxels().map_err(refused)?.insert_axis(Axis(0)), geometry: self.geometry() })
    }

    /// Checks that a segmentation can be written to `path`.
    ///
    /// # Errors
    /// Those of [`run_folder::check_output`]; a file of another program.
    pub(crate) fn check_output(&self, path: &Path) -> Result<()> {
        run_folder::check_output(path)?;
        let start = || {
            let mut start = Vec::new();
            File::open(path)?.take(1 << 10).read_to_end(&mut start)?;
            io::Result::Ok(start)
        };
        match start() {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            start if start.as_ref().is_ok_and(|start| is_own(start)) => Ok(()),
            _ => bad_input!(
                "{}: exists and is not of `{} predict`, which would write the segmentation of {} there; choose another --output, \
                 or remove it",
                path.display(),
                program(),
                self.path().display()
            ),
        }
    }

    /// Writes labels on the grid of the series as a segmentation, unless the file is there with the same bytes. `origin` is a
    /// digest of models, settings and images.
    ///
    /// # Errors
    /// A full or read-only disk.
    pub(crate) fn write(&self, path: &Path, labels: &ArrayView3<u16>, plan: &Plan, origin: &str) -> Result<()> {
        let segment = |label: &msd_data::Label| {
            let codes = self.codes.iter().find(|(name, _)| *name == label.name).map(|(_, codes)| codes.clone());
            codes.unwrap_or_else(|| SegmentCodes::of(&plan.dataset_name, &label.name))
        };
        let description = Description {
            segments: plan.labels.iter().skip(1).map(|label| (label.name.as_str(), segment(label))).collect(),
            algorithm: &format!("adw predict: {}", plan.dataset_name),
            version: env!("CARGO_PKG_VERSION"),
            origin,
        };
        let bytes = encode(&self.series, labels, &description)?;
        if fs::metadata(path).is_ok_and(|found| found.len() == bytes.len() as u64) && fs::read(path)? == bytes {
            return Ok(());
        }
        adw_files::write_bytes(path, &bytes).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Reads the headers of the series at `input`: a file, a folder of one series, or a folder in which folders hold one each, but for
/// the folder `output`, which has segmentations. Returns them by name; none if there is no DICOM file.
///
/// # Errors
/// A series that is no volume, several that are not told apart, models of several channels.
pub(crate) fn cases(input: &Path, output: &Path, plan: &Plan, args: &DicomArgs) -> Result<Vec<(String, DicomCase)>> {
    let mut folders = Vec::new();
    add_series(input, output, 0, &mut folders)?;
    folders.sort();
    if let (Some(first), num_channels @ 2..) = (folders.first(), plan.modalities.len()) {
        bad_input!(
            "{}: a DICOM series has one channel, but the models take {num_channels} ({}); convert the series to NIfTI, a file \
             per channel",
            first.display(),
            plan.modalities.join(", ")
        );
    }
    let codes = match &args.segments {
        Some(file) => codes(file, plan)?,
        None => Vec::new(),
    };
    let case = |folder: PathBuf| {
        let series = Series::open(&folder, args.series.as_deref()).map_err(refused)?;
        if let [first, others @ ..] = series.skipped() {
            let and_more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
            note(&format!("{}{and_more}: no DICOM image; left out", first.display()));
        }
        Ok((name(input, &folder)?, DicomCase { series, codes: codes.clone() }))
    };
    let cases: Vec<(String, DicomCase)> = folders.into_iter().map(case).collect::<Result<_>>()?;
    for (i, (name, case)) in cases.iter().enumerate() {
        if let Some((_, other)) = cases[..i].iter().find(|(other, _)| other == name) {
            bad_input!("{} and {} would have the same label map", other.path().display(), case.path().display());
        }
    }
    Ok(cases)
}

/// Adds `path` if it is DICOM, else the folders in it that are, some levels deep as on the media of hospitals.
fn add_series(path: &Path, output: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    /// Levels of patient, study and series, and some more. Links may lead in circles.
    const MAX_DEPTH: usize = 6;
    if is_dicom(path).map_err(refused)? {
        found.push(path.to_owned());
    } else if path.is_dir() && depth < MAX_DEPTH {
        for entry in fs::read_dir(path).with_context(|| path.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() && !run_folder::is_same(&path, output) {
                add_series(&path, output, depth + 1, found)?;
            }
        }
    }
    Ok(())
}

/// Codes of a file for labels of the models.
fn codes(file: &Path, plan: &Plan) -> Result<Vec<(String, SegmentCodes)>> {
    let codes = SegmentCodes::load(file).map_err(refused)?;
    let labels: Vec<_> = plan.labels.iter().skip(1).map(|label| label.name.as_str()).collect();
    if let Some((unknown, _)) = codes.iter().find(|(name, _)| !labels.contains(&name.as_str())) {
        bad_input!("{}: {unknown:?} is no label of the models; they have {}", file.display(), labels.join(", "));
    }
    Ok(codes)
}

/// Name of a case: that of its folder or file without its ending, or of the folders below `input` down to it, joined.
fn name(input: &Path, path: &Path) -> Result<String> {
    let below = path.strip_prefix(input).ok().and_then(Path::to_str).filter(|below| below.contains('/'));
    if let Some(below) = below {
        return Ok(below.replace('/', "_"));
    }
    let absolute = fs::canonicalize(path).with_context(|| path.display().to_string())?;
    let name = absolute.file_name().and_then(|name| name.to_str()).filter(|name| !name.starts_with('.'));
    let Some(name) = name else {
        bad_input!("{}: the name must be UTF-8 and not begin with a dot", path.display());
    };
    Ok(if absolute.is_dir() { name.to_owned() } else { name.strip_suffix(".dcm").unwrap_or(name).to_owned() })
}
