//! Compressed files, read to the checksum at their end.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

/// Content of a gzip file: of all its members, with zeros after the last ignored as `gzip` does. A read at the end of a member
/// fails if the content does not match the member's checksum, or if something else than a member follows.
pub(super) struct GzipReader<R> {
    /// None behind the last member.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> GzipReader<R> {
    pub(super) fn new(file: R) -> Self {
        Self { member: Some(GzDecoder::new(file)) }
    }
}

impl<R: BufRead> Read for GzipReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while let Some(mut member) = self.member.take() {
            let outcome = member.read(out);
            if !matches!(outcome, Ok(0)) || out.is_empty() {
                self.member = Some(member);
                return outcome;
            }
            let mut rest = member.into_inner();
            if skip_zeros(&mut rest)? {
                if rest.fill_buf()?[0] != 0x1f {
                    return Err(io::Error::other("something else follows the compressed data"));
                }
                self.member = Some(GzDecoder::new(rest));
            }
        }
        Ok(0)
    }
}

/// Returns true at the first byte that is not 0, or false at the end.
fn skip_zeros(file: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let bytes = file.fill_buf()?;
        if bytes.is_empty() {
            return Ok(false);
        }
        let zeros = bytes.iter().position(|&b| b != 0);
        let skipped = zeros.unwrap_or(bytes.len());
        file.consume(skipped);
        if zeros.is_some() {
            return Ok(true);
        }
    }
}
