//! Errors of this crate. Every message is one line that names the file and the value, and says what would be right.

use std::io;
use std::path::{Path, PathBuf};

/// Result of a fallible operation of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Error of this crate. The message contains its causes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write.
    #[error("{path}: {cause}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Error of the operating system.
        cause: io::Error,
    },
    /// A JSON file does not parse.
    #[error("{path}: not the JSON expected: {cause}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Position and expectation of the parser.
        cause: serde_json::Error,
    },
    /// The folder holds no dataset.
    #[error(
        "{path}: no dataset.json here; a dataset in Medical Segmentation Decathlon or nnU-Net v2 layout has one, beside imagesTr and labelsTr"
    )]
    NotADataset {
        /// The folder.
        path: PathBuf,
    },
    /// `dataset.json` parses but says something impossible.
    #[error("{path}: {problem}")]
    DatasetJson {
        /// The file.
        path: PathBuf,
        /// The faulty entry and a remedy.
        problem: String,
    },
    /// Files of the cases are not there or are no files.
    #[error("{origin} {}, which {fault}{}; {remedy}", .path.display(), and_more(*.others))]
    MissingFile {
        /// Origin of the path, as in "DIR/dataset.json lists".
        origin: String,
        /// The first such file.
        path: PathBuf,
        /// Its fault, as in "does not exist".
        fault: String,
        /// Number of further such files.
        others: usize,
        /// A remedy.
        remedy: &'static str,
    },
    /// A NIfTI file cannot be read.
    #[error("{path}: {problem}")]
    Nifti {
        /// The file.
        path: PathBuf,
        /// The fault.
        problem: NiftiProblem,
    },
    /// Voxels are NaN, infinite or above the range of f32.
    #[error(
        "{path}: {count} of {total} voxels are NaN, infinite or beyond 3.4e38, the limit of single precision; every voxel must be a number within it"
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Number of such voxels.
        count: usize,
        /// Number of voxels in the file.
        total: usize,
    },
    /// Two volumes that are used together differ in shape.
    #[error("{}: shape {shape:?} (z, y, x) differs from that of {}, {reference_shape:?}; they must be equal", .file.display(), .reference.display())]
    ShapeMismatch {
        /// File of the volume that gives the grid: an image, or a reference segmentation.
        reference: PathBuf,
        /// File of the other volume.
        file: PathBuf,
        /// Voxels of the reference, z, y, x.
        reference_shape: [usize; 3],
        /// Voxels of the other volume, z, y, x.
        shape: [usize; 3],
    },
    /// Two volumes that are used together differ in voxel size.
    #[error("{}: voxel size {:?} mm (z, y, x) differs from that of {}, {:?}; they must be equal", .file.display(), rounded(*.mm), .reference.display(), rounded(*.reference_mm))]
    SpacingMismatch {
        /// File of the volume that gives the grid.
        reference: PathBuf,
        /// File of the other volume.
        file: PathBuf,
        /// Voxel size of the reference, millimetres.
        reference_mm: [f64; 3],
        /// Voxel size of the other volume, millimetres.
        mm: [f64; 3],
    },
    /// Two volumes that are used together lie at different places in the scanner.
    #[error("{}: lies up to {} mm away from {} in the scanner; they must lie at the same place: correct the header that is wrong, or have positions ignored (ignore_positions)", .file.display(), length(*.mm), .reference.display())]
    PositionMismatch {
        /// File of the volume that gives the grid.
        reference: PathBuf,
        /// File of the other volume.
        file: PathBuf,
        /// Largest distance between equal corners, millimetres.
        mm: f64,
    },
    /// An image has more or fewer channels than the dataset has modalities.
    #[error("{path}: {found} channels, where {expected} are expected")]
    ChannelCount {
        /// The image file.
        path: PathBuf,
        /// Channels in the file.
        found: usize,
        /// Number of modalities, or 1 where each channel has a file.
        expected: usize,
    },
    /// A label map holds a value that `dataset.json` does not name.
    #[error("{path}: {voxels} voxels have label {value}, which dataset.json does not name (it names {known})")]
    UnknownLabel {
        /// The label file.
        path: PathBuf,
        /// The value.
        value: u16,
        /// Number of voxels that have it.
        voxels: usize,
        /// The values that are named, as text.
        known: String,
    },
    /// Cross-validation needs more cases.
    #[error("{found} training cases, but five-fold cross-validation needs at least 5: add labelled cases")]
    TooFewCases {
        /// Number of cases given.
        found: usize,
    },
    /// The dataset has no labelled voxel.
    #[error("{dataset}: no voxel of any label map is foreground, so there is nothing to learn")]
    NoForeground {
        /// Name of the dataset.
        dataset: String,
    },
    /// An item of work alone exceeds the memory that may be used.
    #[error("{what}: needs about {} of memory, but {} may be used: allow more", size(*.needed), size(*.limit))]
    Memory {
        /// File of the case and the sizes that decide.
        what: String,
        /// Estimate in bytes.
        needed: u64,
        /// Limit in bytes.
        limit: u64,
    },
    /// An archive is damaged, or an entry of it does not belong into a dataset.
    #[error("archive entry {entry:?} {problem}")]
    Archive {
        /// Name of the entry.
        entry: String,
        /// Fault of the entry.
        problem: String,
    },
    /// Arrays that should fit each other do not.
    #[error("{what}: shape {found:?}, expected {expected:?}")]
    Shape {
        /// Name of the array.
        what: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// The shape that fits.
        expected: Vec<usize>,
    },
    /// A request is impossible.
    #[error("{0}")]
    Invalid(String),
    /// A file has a name that cannot name a case.
    #[error("{}: {problem}", .path.display())]
    FileName {
        /// The file.
        path: PathBuf,
        /// The fault and a remedy.
        problem: String,
    },
    /// A file of predictions or references has no partner, or is no label map.
    #[error("{folder}: {problem}")]
    Evaluation {
        /// The folder of predictions or references.
        folder: String,
        /// The files and the expectation.
        problem: String,
    },
    /// Work was stopped before it was done ([`crate::Memory::stopped_by`]).
    #[error("interrupted before the work was done")]
    Interrupted,
    /// A loader's worker panicked.
    #[error("a data-loading thread panicked: {message}")]
    WorkerPanic {
        /// The panic's message.
        message: String,
    },
}

/// Fault of a NIfTI file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NiftiProblem {
    /// The name has neither ending.
    #[error("the name must end in .nii or .nii.gz")]
    Extension,
    /// Not a NIfTI-1 single file.
    #[error("not a NIfTI-1 file: {found}")]
    Magic {
        /// Kind of the file, and a remedy.
        found: &'static str,
    },
    /// The compressed data do not match their checksum, or something else follows them.
    #[error("damaged ({cause}); copy the file again from its source")]
    Damaged {
        /// Error of the decompressor.
        cause: String,
    },
    /// The file ends early, or its compressed stream is damaged.
    #[error("truncated or damaged: {found} of {expected} bytes could be read{}", .cause.as_ref().map(|c| format!(" ({c})")).unwrap_or_default())]
    Truncated {
        /// Bytes that header and voxels need, uncompressed.
        expected: u64,
        /// Bytes that were there.
        found: u64,
        /// Error of the decompressor.
        cause: Option<String>,
    },
    /// The header claims more voxels than the file can hold.
    #[error("the header claims {claimed}, but a file of {file_bytes} bytes cannot hold that")]
    TooLarge {
        /// The claim, as text.
        claimed: String,
        /// The size of the file.
        file_bytes: u64,
    },
    /// An unsupported number of dimensions.
    #[error("dimensions {dim:?} (x, y, z, ...); expected {expected}")]
    Dimensions {
        /// The dimensions in the header.
        dim: Vec<i16>,
        /// Dimensions that would be right.
        expected: &'static str,
    },
    /// A voxel type without a single real value.
    #[error(
        "voxel type {code} (complex, colour, binary, 128-bit or unknown) is not supported; convert to an integer or float type"
    )]
    VoxelType {
        /// The NIfTI-1 datatype code.
        code: i16,
    },
    /// Voxel sizes that are no lengths.
    #[error("voxel size {mm:?} (z, y, x); each must be a positive number")]
    Spacing {
        /// The sizes in the header.
        mm: [f64; 3],
    },
    /// A label map with a value that is no label.
    #[error("{count} voxels are no label values (e.g. {example}); labels are whole numbers from 0 to 65535")]
    NotALabel {
        /// Number of such voxels.
        count: usize,
        /// Value of one of them.
        example: f64,
    },
    /// Another fault of the header.
    #[error("unusable header: {0}")]
    Header(String),
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |cause| Self::Io { path: path.to_path_buf(), cause }
    }

    pub(crate) fn nifti(path: &Path, problem: NiftiProblem) -> Self {
        Self::Nifti { path: path.to_path_buf(), problem }
    }
}

/// A number of bytes in a unit that leaves it readable.
fn size(bytes: u64) -> String {
    let (value, unit) = match bytes as f64 {
        bytes if bytes < 1e6 => (bytes / 1e3, "kB"),
        bytes if bytes < 1e9 => (bytes / 1e6, "MB"),
        bytes => (bytes / 1e9, "GB"),
    };
    format!("{value:.2} {unit}")
}

fn and_more(others: usize) -> String {
    if others == 0 { String::new() } else { format!(" (and {others} more cannot be used)") }
}

/// A length for messages, in millimetres.
pub(crate) fn length(mm: f64) -> String {
    if mm < 0.1 { format!("{mm:.4}") } else { format!("{mm:.1}") }
}

/// Rounds to five digits for messages: headers are in single precision, whose 0.8 reads 0.800000012.
pub(crate) fn rounded(values: [f64; 3]) -> [f64; 3] {
    values.map(|v| format!("{v:.4e}").parse().unwrap_or(v))
}
