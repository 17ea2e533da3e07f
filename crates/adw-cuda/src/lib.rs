//! CUDA kernels as values: what is launched, with how many blocks, on which arguments; and what launches them.
#![doc = include_str!("../README.md")]

#[cfg(any(test, feature = "cudnn"))]
pub mod choice;
#[cfg(feature = "cudnn")]
pub mod convolutions;
#[cfg(feature = "cudnn")]
pub mod cudnn;
#[cfg(feature = "cuda")]
pub mod device;
#[cfg(feature = "emulated")]
pub mod emulated;
pub mod work;

use work::Work;

/// A kernel source: CUDA C++ that a file beside its op holds.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// Names the compiled module; unique in the workspace.
    pub name: &'static str,
    /// The text of the `.cu` file.
    pub source: &'static str,
    /// What nvcc made of it, in a build with CUDA.
    pub binary: Option<&'static [u8]>,
}

/// The [`Module`] of a file `NAME.cu` beside the calling one. The calling package has a feature `cuda` and, for it, a
/// build script that calls `adw_cuda_build::kernels`.
#[macro_export]
macro_rules! module {
    ($name:literal) => {
        $crate::Module {
            name: $name,
            source: include_str!(concat!($name, ".cu")),
            #[cfg(feature = "cuda")]
            binary: Some(include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".fatbin"))),
            #[cfg(not(feature = "cuda"))]
            binary: None,
        }
    };
}

/// Plain memory that a kernel takes as its one argument, or that lies in a device's buffers.
///
/// # Safety
/// `#[repr(C)]`, without padding bytes that are not initialised, and laid out as the struct of the kernel's source.
pub unsafe trait Params: Copy {}

// SAFETY: numbers.
unsafe impl Params for u8 {}
// SAFETY: numbers.
unsafe impl Params for i16 {}
// SAFETY: numbers.
unsafe impl Params for u32 {}
// SAFETY: numbers.
unsafe impl Params for f32 {}
// SAFETY: numbers.
unsafe impl Params for f64 {}

/// An address in a device's memory; 0 for an argument that is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Address(pub u64);

impl Address {
    /// An argument that the kernel must not read.
    pub const NONE: Self = Self(0);

    /// The address `bytes` further on.
    #[must_use]
    pub fn offset(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// One launch of one kernel.
#[derive(Clone, Debug)]
pub struct Launch<P> {
    /// Where the kernel is defined.
    pub module: Module,
    /// Its `extern "C"` name.
    pub kernel: &'static str,
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
    /// What it cannot do without; for measuring only.
    pub work: Work,
    /// The kernel's argument.
    pub params: P,
}

/// What can go wrong on a device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device, or the compiler that stands in for one, is not there.
    #[error("{0}")]
    Unavailable(String),
    /// Memory could not be had.
    #[error(
        "the device has no {bytes} bytes left ({free} of {total} are free): take a smaller batch or patch, or bf16 precision"
    )]
    OutOfMemory {
        /// What was asked for.
        bytes: usize,
        /// What the device has left.
        free: usize,
        /// All it has.
        total: usize,
    },
    /// The device does not answer any more.
    #[error("the CUDA device cannot go on: {0}. A run goes on from its last checkpoint when it is started again")]
    Lost(String),
    /// A copy between the host and the device failed.
    #[error("copying to or from the CUDA device: {0}. A run goes on from its last checkpoint when it is started again")]
    Copy(String),
    /// A launch failed.
    #[error("CUDA kernel {kernel}, or one launched before it: {cause}")]
    Launch {
        /// The kernel's name.
        kernel: &'static str,
        /// In the driver's words.
        cause: String,
    },
}

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Something that kernels run on. All launches are in order, as on one stream.
pub trait Runtime {
    /// Memory that is given back when the value is dropped, after the launches that were made before.
    type Buffer: Buffer;

    /// Memory with unspecified contents, aligned to 256 bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn alloc(&self, bytes: usize) -> Result<Self::Buffer>;

    /// Launches a kernel.
    ///
    /// # Safety
    /// The addresses in the argument are valid, for as much as the kernel reads and writes through them, until it has run.
    ///
    /// # Errors
    /// [`Error::Launch`].
    unsafe fn launch<P: Params>(&self, launch: &Launch<P>) -> Result<()>;
}

/// Memory of a [`Runtime`].
pub trait Buffer {
    /// Where it begins.
    fn address(&self) -> Address;
}

/// Memory that somebody else keeps.
impl Buffer for Address {
    fn address(&self) -> Address {
        *self
    }
}

/// `ceil(n / d)` as a number of blocks.
///
/// # Panics
/// If it does not fit 32 bits: callers have bounded the sizes.
pub fn blocks(n: usize, d: usize) -> u32 {
    u32::try_from(n.div_ceil(d)).expect("sizes are bounded before a launch")
}

/// The argument's bytes.
#[cfg(feature = "emulated")]
fn bytes_of<P: Params>(params: &P) -> &[u8] {
    // SAFETY: `Params` promises plain initialised memory.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(params).cast(), size_of::<P>()) }
}
