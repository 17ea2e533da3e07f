//! Files appear whole or not at all: written beside their final name, flushed to the disk, then renamed.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// Writes `path` through `write`. Whatever stood there stays until the new content is complete on the disk; after an
/// error or a kill nothing half-written carries the name.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be written to.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&mut fs::File>) -> std::io::Result<()>,
) -> Result<()> {
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".writing-");
    #[cfg(unix)]
    {
        // The default of 0600 would hide results from colleagues; the umask still applies.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let write_all = || -> std::io::Result<()> {
        let mut file = builder.tempfile_in(folder)?;
        let mut writer = BufWriter::new(file.as_file_mut());
        write(&mut writer)?;
        writer.flush()?;
        drop(writer);
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    write_all().map_err(Error::io(path))
}
