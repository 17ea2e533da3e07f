//! Contents of folders: read, compared, copied.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// Content of a file, or of every file below a folder by its path.
pub(super) fn contents(path: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut stack = vec![PathBuf::new()];
    while let Some(relative) = stack.pop() {
        let full = if relative.as_os_str().is_empty() { path.to_owned() } else { path.join(&relative) };
        if full.is_dir() {
            for entry in fs::read_dir(&full)? {
                stack.push(relative.join(entry?.file_name()));
            }
        } else {
            let bytes = fs::read(&full).with_context(|| full.display().to_string())?;
            files.insert(relative, bytes);
        }
    }
    Ok(files)
}

/// Content of JSON files without the names of folders; metrics name label maps and references.
pub(super) fn without_folders(
    mut files: BTreeMap<PathBuf, Vec<u8>>,
    folders: [&Path; 2],
) -> BTreeMap<PathBuf, Vec<u8>> {
    for bytes in files.values_mut().filter(|bytes| bytes.first() == Some(&b'{')) {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let text = folders.iter().fold(text, |text, folder| text.replace(&*folder.to_string_lossy(), ""));
        *bytes = text.into_bytes();
    }
    files
}

/// Copies a folder but for what is called `left_out` directly in it.
pub(super) fn copy_folder(from: &Path, to: &Path, left_out: &str) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name();
        if name == left_out {
            continue;
        }
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &to.join(name), "")?;
        } else {
            fs::copy(entry.path(), to.join(name))?;
        }
    }
    Ok(())
}

/// Checks that no temporary file or folder is left.
pub(super) fn no_leftovers(folder: &Path) -> Result<()> {
    match contents(folder)?.keys().find(|path| path.to_string_lossy().contains(".adw-tmp")) {
        Some(path) => bail!("{} is left over", path.display()),
        None => Ok(()),
    }
}
