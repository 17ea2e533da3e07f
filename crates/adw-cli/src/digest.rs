//! MD5 of files: against damage and confusion, not against an adversary.

use std::io::{self, ErrorKind, Read};

use md5::{Digest, Md5};

/// Adds the rest of `file` to a digest and returns its number of bytes.
///
/// # Errors
/// The system's error.
pub(crate) fn add(digest: &mut Md5, file: &mut impl Read) -> io::Result<u64> {
    let mut buffer = vec![0; 1 << 18];
    let mut length = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(length),
            Ok(count) => {
                digest.update(&buffer[..count]);
                length += count as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The 32 lower-case hexadecimal digits of a digest.
pub(crate) fn hexadecimal(digest: Md5) -> String {
    digest.finalize().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
