//! Distinction of regular files from links, devices, pipes and sockets.

use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

/// Most bytes that [`read_small`] reads.
const MAX_SMALL_BYTES: u64 = 1 << 26;

/// Opens a file for reading.
///
/// # Errors
/// The system's error; `InvalidInput` for a folder, device, pipe or socket, without waiting for a pipe's other end.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = with_flags(OpenOptions::new().read(true), false).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() { Ok(file) } else { Err(not_regular(kind)) }
}

/// Reads a file of settings or descriptions, which are small: at most 64 MiB.
///
/// # Errors
/// Those of [`open_regular`]; `FileTooLarge`.
pub fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.take(MAX_SMALL_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_SMALL_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "has more than 64 MiB, too many for a file of its kind",
        ));
    }
    Ok(bytes)
}

/// Reads a file as [`read_small`] does, as text.
///
/// # Errors
/// Those of [`read_small`]; `InvalidData` for what is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    let invalid = |_| io::Error::new(io::ErrorKind::InvalidData, "is not encoded as UTF-8");
    String::from_utf8(read_small(path)?).map_err(invalid)
}

/// Opens a file that this program alone writes, for reading, writing and locking in place; creates it if absent.
///
/// # Errors
/// `InvalidInput` for a link, folder, device, pipe or socket; the system's error.
pub fn open_own(path: &Path) -> io::Result<File> {
    check_replaceable(path)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    // Whatever takes the name from here on is opened without following it, and looked at again.
    let file = with_flags(&mut options, true).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() { Ok(file) } else { Err(not_regular(kind)) }
}

/// Checks that `path` is absent or a regular file.
///
/// # Errors
/// `InvalidInput` for anything else, symbolic links included; the system's error.
pub fn check_replaceable(path: &Path) -> io::Result<()> {
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

/// Options under which `open` returns at once, also for a pipe without a partner, and with `no_link` fails for a link.
fn with_flags(options: &mut OpenOptions, no_link: bool) -> &mut OpenOptions {
    #[cfg(unix)]
    {
        use rustix::fs::OFlags;
        let flags = if no_link { OFlags::NONBLOCK | OFlags::NOFOLLOW } else { OFlags::NONBLOCK };
        std::os::unix::fs::OpenOptionsExt::custom_flags(options, flags.bits() as i32);
    }
    #[cfg(not(unix))]
    let _ = no_link;
    options
}

fn not_regular(kind: FileType) -> io::Error {
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
