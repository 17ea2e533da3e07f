//! Manifests of archives: the ten of the Medical Segmentation Decathlon, embedded in the program, and those of users.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::failure::{bad_input, toml_problem};

/// Address, checksum, licence and citation of one archive.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// Short name, as in `adw search heart`; that of the folder if absent.
    #[serde(default)]
    pub(crate) task: String,
    /// Folder inside the archive, such as `Task02_Heart`.
    pub(crate) folder: String,
    #[serde(default)]
    pub(crate) modality: String,
    #[serde(default)]
    pub(crate) target: String,
    pub(crate) url: String,
    /// MD5 of the archive, 32 hexadecimal digits. It guards against damage, not against an adversary.
    pub(crate) md5: String,
    /// Size of the archive to within a few per cent: a bound, not an identity.
    pub(crate) approximate_bytes: u64,
    #[serde(default)]
    pub(crate) licence: String,
    #[serde(default)]
    pub(crate) citation: String,
}

/// Largest size that a manifest may state, 100 TB.
const MAX_BYTES: u64 = 100_000_000_000_000;

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

    /// Reads a user's manifest.
    ///
    /// # Errors
    /// Not such a file; a folder that is no plain name, an MD5 of another form, an address of another kind, a size that no
    /// archive has.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = adw_files::read_text(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut manifest: Self = match toml::from_str(&text) {
            Ok(manifest) => manifest,
            Err(error) => bad_input!("{}: {}", path.display(), toml_problem(&error, &text)),
        };
        manifest.check().with_context(|| path.display().to_string())?;
        manifest.md5.make_ascii_lowercase();
        if manifest.task.is_empty() {
            manifest.task.clone_from(&manifest.folder);
        }
        Ok(manifest)
    }

    fn check(&self) -> Result<()> {
        let is_plain = |c: char| c.is_alphanumeric() || "-_+".contains(c);
        // Temporary names are longer.
        if self.folder.is_empty() || self.folder.len() > 200 || !self.folder.chars().all(is_plain) {
            bad_input!("folder = {:?}: expected at most 200 letters, digits, - and _", self.folder);
        }
        if self.md5.len() != 32 || !self.md5.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            bad_input!("md5 = {:?}: expected 32 hexadecimal digits", self.md5);
        }
        if !["https://", "http://", "file://"].iter().any(|scheme| self.url.starts_with(scheme)) {
            bad_input!("url = {:?}: expected an address that begins with https://, http:// or file://", self.url);
        }
        if !(1..=MAX_BYTES).contains(&self.approximate_bytes) {
            bad_input!("approximate_bytes = {}: expected 1 to {MAX_BYTES}", self.approximate_bytes);
        }
        Ok(())
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
    fn a_users_manifest_needs_four_fields_and_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kidneys.toml");
        let load = |key: &str, value: &str| {
            let sound = [
                ("folder", "\"Kidneys\""),
                ("url", "\"http://lab/kidneys.tar\""),
                ("md5", "\"9D24dba78a72977dbd1d2e110310f31b\""),
                ("approximate_bytes", "1000"),
            ];
            let lines = sound.into_iter().filter(|(sound, _)| *sound != key).chain([(key, value)]);
            let lines = lines.filter(|(_, value)| !value.is_empty()).map(|(key, value)| format!("{key} = {value}\n"));
            std::fs::write(&path, lines.collect::<String>()).unwrap();
            Manifest::load(&path)
        };
        let manifest = load("modality", "\"CT\"").unwrap();
        assert_eq!((manifest.task.as_str(), manifest.md5.as_str()), ("Kidneys", "9d24dba78a72977dbd1d2e110310f31b"));
        for (key, value) in [
            ("folder", "\"../Kidneys\""),
            ("folder", "\"\""),
            ("folder", ""),
            ("url", "\"/data/kidneys.tar\""),
            ("md5", "\"9d24\""),
            ("approximate_bytes", "0"),
            ("approximate_bytes", "9223372036854775807"),
            ("sha256", "\"0\""),
        ] {
            let error = load(key, value).unwrap_err();
            let line = crate::failure::one_line(&error);
            assert!(line.contains(key) && line.contains("kidneys.toml"), "{line}");
            assert_eq!(crate::failure::exit_code(&error), 2);
        }
        let error = load("approximate_bytes", "-1").unwrap_err().to_string();
        assert!(error.contains("kidneys.toml: line 4: invalid value"), "{error}");
    }

    #[test]
    fn a_mirror_is_a_folder_of_archives_or_one_archive() {
        let heart = Manifest::find("heart").unwrap().unwrap();
        assert_eq!(heart.url_from(Some("http://m/msd/")), "http://m/msd/Task02_Heart.tar");
        assert_eq!(heart.url_from(Some("file:///a/b.tar")), "file:///a/b.tar");
        assert_eq!(heart.url_from(None), heart.url);
    }
}
