//! DICOM in a program that was built without it: recognised and refused.

use std::{
    convert::Infallible,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::Result;
use msd_data::{Geometry, Plan, Volume};
use ndarray::ArrayView3;

use crate::{args::DicomArgs, failure::bad_input};

/// A series, of which there is none.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DicomCase(Infallible);

impl DicomCase {
    pub(crate) fn path(&self) -> &Path {
        match self.0 {}
    }

    pub(crate) fn files(&self) -> Vec<PathBuf> {
        match self.0 {}
    }

    pub(crate) fn geometry(&self) -> Geometry {
        match self.0 {}
    }

    pub(crate) fn volume(&self) -> Result<Volume<f32>> {
        match self.0 {}
    }

    pub(crate) fn check_output(&self, _path: &Path, _resume: bool) -> Result<()> {
        match self.0 {}
    }

    pub(crate) fn write(&self, _path: &Path, _labels: &ArrayView3<u16>, _plan: &Plan, _origin: &str) -> Result<()> {
        match self.0 {}
    }
}

/// Refuses a DICOM file and a folder of such files, itself or one level below; none otherwise.
///
/// # Errors
/// The file, and how a program is built that reads it.
pub(crate) fn cases(input: &Path, _plan: &Plan, _args: &DicomArgs) -> Result<Vec<(String, DicomCase)>> {
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let below = entries(input).flat_map(|path| if path.is_dir() { entries(&path).collect() } else { vec![path] });
    match [input.to_owned()].into_iter().chain(below).find(|file| is_dicom(file)) {
        Some(file) => bad_input!(
            "{}: is DICOM, which this program was built without; `cargo install --path crates/adw-cli --features dicom` in the \
             repository builds one that reads it",
            file.display()
        ),
        None => Ok(Vec::new()),
    }
}

fn is_dicom(file: &Path) -> bool {
    let mut start = [0; 132];
    adw_files::open_regular(file).is_ok_and(|mut file| file.read_exact(&mut start).is_ok()) && &start[128..] == b"DICM"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_dicom_are_recognised_by_their_content() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("IM0001");
        fs::write(&file, [&[0; 128][..], b"DICM"].concat()).unwrap();
        assert!(is_dicom(&file) && !is_dicom(dir.path()));
        fs::write(&file, [0; 132]).unwrap();
        assert!(!is_dicom(&file));
    }
}
