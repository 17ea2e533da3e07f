//! Manifests of the ten archives of the Medical Segmentation Decathlon, embedded in the program.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// Address, checksum, licence and citation of one archive.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// Short name, as in `adw search heart`.
    pub(crate) task: String,
    /// Folder inside the archive, such as `Task02_Heart`.
    pub(crate) folder: String,
    pub(crate) modality: String,
    pub(crate) target: String,
    pub(crate) url: String,
    /// MD5 of the archive, 32 hexadecimal digits. It guards against damage, not against an adversary.
    pub(crate) md5: String,
    /// Size of the archive to within a few per cent: a bound, not an identity.
    pub(crate) approximate_bytes: u64,
    pub(crate) licence: String,
    pub(crate) citation: String,
}

const SOURCES: [&str; 10] = [
    include_str!("../../data-manifests/Task01_BrainTumour.toml"),
    include_str!("../../data-manifests/Task02_Heart.toml"),
    include_str!("../../data-manifests/Task03_Liver.toml"),
    include_str!("../../data-manifests/Task04_Hippocampus.toml"),
    include_str!("../../data-manifests/Task05_Prostate.toml"),
    include_str!("../../data-manifests/Task06_Lung.toml"),
    include_str!("../../data-manifests/Task07_Pancreas.toml"),
    include_str!("../../data-manifests/Task08_HepaticVessel.toml"),
    include_str!("../../data-manifests/Task09_Spleen.toml"),
    include_str!("../../data-manifests/Task10_Colon.toml"),
];

impl Manifest {
    /// All ten manifests, in the decathlon's order.
    pub(crate) fn all() -> Result<Vec<Self>> {
        SOURCES.iter().map(|text| toml::from_str(text).context("data-manifests")).collect()
    }

    /// The manifest called `name`: `heart`, `Heart`, `Task02_Heart` or `task02`.
    pub(crate) fn find(name: &str) -> Result<Option<Self>> {
        let name = name.to_ascii_lowercase().replace(['-', '_', ' '], "");
        Ok(Self::all()?.into_iter().find(|manifest| {
            let folder = manifest.folder.to_ascii_lowercase().replace('_', "");
            name == manifest.task || name == folder || name == folder[..6]
        }))
    }

    /// Address of the archive: `mirror/TaskNN_Name.tar`, or the mirror itself if it names an archive.
    pub(crate) fn url_from(&self, mirror: Option<&str>) -> String {
        match mirror {
            None => self.url.clone(),
            Some(mirror) if Path::new(mirror).extension().is_some_and(|it| it == "tar") => mirror.to_owned(),
            Some(mirror) => format!("{}/{}.tar", mirror.trim_end_matches('/'), self.folder),
        }
    }

    /// Upper bound of the bytes that are downloaded, and of those that are unpacked: the images in an archive are
    /// compressed already, so both are about `approximate_bytes`.
    pub(crate) fn max_bytes(&self) -> u64 {
        self.approximate_bytes + self.approximate_bytes / 2 + (1 << 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ten_manifests_are_complete_and_found_by_any_of_their_names() {
        let all = Manifest::all().unwrap();
        assert_eq!(all.len(), 10);
        for (index, manifest) in all.iter().enumerate() {
            assert!(manifest.folder.starts_with(&format!("Task{:02}_", index + 1)));
            assert_eq!(manifest.md5.len(), 32);
            assert!(manifest.md5.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()));
            assert!(manifest.url.ends_with(&format!("/{}.tar", manifest.folder)));
            assert!(manifest.licence.starts_with("CC-BY-SA") && !manifest.citation.is_empty());
            for name in [&manifest.task, &manifest.folder, &manifest.folder[..6].to_uppercase()] {
                assert_eq!(Manifest::find(name).unwrap().unwrap().md5, manifest.md5);
            }
        }
        assert!(Manifest::find("phantom").unwrap().is_none());
    }

    #[test]
    fn a_mirror_is_a_folder_of_archives_or_one_archive() {
        let heart = Manifest::find("heart").unwrap().unwrap();
        assert_eq!(heart.url_from(Some("http://m/msd/")), "http://m/msd/Task02_Heart.tar");
        assert_eq!(heart.url_from(Some("file:///a/b.tar")), "file:///a/b.tar");
        assert_eq!(heart.url_from(None), heart.url);
    }
}
