//! Errors of this crate. Every message is one line that names the file or folder and the value, and says what would be right.

use std::io;
use std::path::{Path, PathBuf};

use crate::tags::Tag;

/// Result of a fallible operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Error of this crate. The message contains its causes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read.
    #[error("{}: {cause}", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Error of the operating system.
        cause: io::Error,
    },
    /// A folder without a DICOM file, or a file that is none.
    #[error("{}: no DICOM file (of those with DICM at byte 128)", .path.display())]
    NotDicom {
        /// The file or folder.
        path: PathBuf,
    },
    /// The file ends before its data do, or contradicts itself.
    #[error("{}: truncated or damaged: {problem}; copy the file again from its source", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The place and the fault.
        problem: String,
    },
    /// An attribute is absent or has a value that cannot be used.
    #[error("{}: {attribute} {problem}", .path.display())]
    Attribute {
        /// The file.
        path: PathBuf,
        /// Tag and name, as in `(0028,0010) Rows`.
        attribute: String,
        /// The fault, its value, and what would be right.
        problem: String,
    },
    /// Pixels in a transfer syntax that is not decoded.
    #[error("{}: transfer syntax {uid} ({name}) is not supported; store the series uncompressed, for example with gdcmconv --raw", .path.display())]
    TransferSyntax {
        /// The file.
        path: PathBuf,
        /// Unique identifier of the syntax.
        uid: String,
        /// Its name.
        name: &'static str,
    },
    /// Files of several series, none of which was chosen.
    #[error("{}: {count} series: {list}; name one of them, or move it into a folder of its own", .folder.display())]
    SeveralSeries {
        /// The folder.
        folder: PathBuf,
        /// Number of series.
        count: usize,
        /// End of the identifier, modality, description and number of files of each.
        list: String,
    },
    /// The images do not make one volume.
    #[error("{}: {problem}", .path.display())]
    NotAVolume {
        /// The file with which the fault shows, or the folder.
        path: PathBuf,
        /// The fault with its values, and a remedy.
        problem: String,
    },
    /// A table of codes for segments cannot be used.
    #[error("{}: {problem}", .path.display())]
    Codes {
        /// The file.
        path: PathBuf,
        /// The fault.
        problem: String,
    },
    /// A label map does not fit the series or the segments.
    #[error("label map: {problem}")]
    Labels {
        /// The values found and expected.
        problem: String,
    },
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |cause| Self::Io { path: path.to_path_buf(), cause }
    }

    pub(crate) fn damaged(path: &Path, problem: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_path_buf(), problem: problem.into() }
    }

    pub(crate) fn attribute(path: &Path, tag: Tag, problem: impl Into<String>) -> Self {
        Self::Attribute { path: path.to_path_buf(), attribute: tag.to_string(), problem: problem.into() }
    }

    pub(crate) fn not_a_volume(path: &Path, problem: impl Into<String>) -> Self {
        Self::NotAVolume { path: path.to_path_buf(), problem: problem.into() }
    }
}
