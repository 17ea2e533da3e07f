//! Origin of label maps: a digest of the models, the settings and the image, kept in the comment of the compressed file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use md5::{Digest, Md5};
use msd_data::{nifti::read_comment, read_labels};

use crate::digest;

/// Beginning of every comment.
const PREFIX: &str = "adw predict ";

/// Digest of all that label maps of one call depend on beside their images.
pub(crate) struct Provenance(Md5);

impl Provenance {
    /// Digests model files and a text that names the other settings.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn new(models: &[PathBuf], settings: &str) -> Result<Self> {
        let mut digest = Md5::new();
        digest.update(env!("CARGO_PKG_VERSION"));
        digest.update(settings);
        add_files(&mut digest, models)?;
        Ok(Self(digest))
    }

    /// Comment of the label map of the image in `files`.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn comment(&self, files: &[PathBuf]) -> Result<String> {
        let mut digest = self.0.clone();
        add_files(&mut digest, files)?;
        Ok(format!("{PREFIX}{}", digest::hexadecimal(digest)))
    }
}

fn add_files(digest: &mut Md5, files: &[PathBuf]) -> Result<()> {
    for path in files {
        let mut file = adw_files::open_regular(path).with_context(|| path.display().to_string())?;
        let length = digest::add(digest, &mut file).with_context(|| path.display().to_string())?;
        digest.update(length.to_le_bytes());
    }
    Ok(())
}

/// Returns true if the label map `path` has such a comment.
pub(crate) fn is_own(path: &Path) -> bool {
    read_comment(path).is_ok_and(|comment| comment.is_some_and(|comment| comment.starts_with(PREFIX)))
}

/// Reason why the label map `path`, which exists, is not the one that `comment` describes; none if it is, and whole.
pub(crate) fn difference(path: &Path, comment: &str) -> Option<String> {
    match read_comment(path) {
        Ok(Some(found)) if found == comment => read_labels(path).err().map(|error| error.to_string()),
        Ok(_) => Some(format!("{}: is of another model, other settings or another image", path.display())),
        Err(error) => Some(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use msd_data::{Geometry, nifti::write_commented_labels};
    use ndarray::Array3;

    use super::*;

    #[test]
    fn a_map_is_kept_only_whole_and_for_the_same_models_settings_and_image() {
        let dir = tempfile::tempdir().unwrap();
        let [model, other, image, map] =
            ["model", "other", "image.nii", "map.nii.gz"].map(|name| dir.path().join(name));
        fs::write(&model, "weights").unwrap();
        fs::write(&other, "weighty").unwrap();
        fs::write(&image, "voxels").unwrap();
        let comment = |model: &Path, settings: &str| {
            let provenance = Provenance::new(&[model.to_owned()], settings).unwrap();
            provenance.comment(std::slice::from_ref(&image)).unwrap()
        };
        let written = comment(&model, "step 0.5");
        let labels = Array3::from_shape_fn([4, 5, 6], |(z, y, x)| (z * y * x) as u16 % 7);
        let geometry = Geometry::new([4, 5, 6], [1.0; 3]);
        write_commented_labels(&map, &labels.view(), &geometry, Some(&written)).unwrap();
        assert_eq!(difference(&map, &written), None);
        assert_eq!(read_labels(&map).unwrap().data, labels);
        for changed in [comment(&other, "step 0.5"), comment(&model, "step 0.25")] {
            assert!(difference(&map, &changed).unwrap().contains("another model"));
        }
        fs::write(&image, "voxel").unwrap();
        assert!(difference(&map, &comment(&model, "step 0.5")).unwrap().contains("another image"));
        let bytes = fs::read(&map).unwrap();
        fs::write(&map, &bytes[..bytes.len() - 9]).unwrap();
        assert!(difference(&map, &written).unwrap().contains("damaged"));
        fs::write(&map, "").unwrap();
        assert!(difference(&map, &written).is_some());
    }
}
