//! Distinction of regular files from links, devices, pipes and sockets.

use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io;
use std::path::Path;

/// Opens a file for reading.
///
/// # Errors
/// The system's error; `InvalidInput` for a folder, device, pipe or socket, without waiting for a pipe's other end.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = without_waiting(OpenOptions::new().read(true)).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() { Ok(file) } else { Err(not_regular(kind)) }
}

/// Checks that `path` is absent or a regular file.
///
/// # Errors
/// `InvalidInput` for anything else, symbolic links included; the system's error.
pub(crate) fn check_replaceable(path: &Path) -> io::Result<()> {
    match existing(path)? {
        Some(found) if !found.is_file() => Err(not_regular(found.file_type())),
        _ => Ok(()),
    }
}

/// Metadata of what carries the name itself: links are not followed.
pub(crate) fn existing(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Options under which `open` returns at once, also for a pipe without a partner.
pub(crate) fn without_waiting(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(options, rustix::fs::OFlags::NONBLOCK.bits() as i32);
    options
}

pub(crate) fn not_regular(kind: FileType) -> io::Error {
    let message = format!("is {}, not a regular file", kind_name(kind));
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

fn kind_name(kind: FileType) -> &'static str {
    if kind.is_dir() {
        return "a folder";
    }
    if kind.is_symlink() {
        return "a symbolic link";
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "a named pipe";
        }
        if kind.is_socket() {
            return "a socket";
        }
        if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
    }
    "a special file"
}
