//! CUDA kernels as values: what is launched, with how many blocks, on which arguments; and what launches them.
#![doc = include_str!("../README.md")]

#[cfg(feature = "emulated")]
pub mod emulated;

/// A kernel source: CUDA C++ that a file beside its op holds.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// Names the compiled module; unique in the workspace.
    pub name: &'static str,
    /// The text of the `.cu` file.
    pub source: &'static str,
}

/// The file that every kernel source includes, by its name there.
pub const HEADERS: [(&str, &str); 2] = [
    ("device.cuh", include_str!("../include/device.cuh")),
    ("emulate.h", include_str!("../include/emulate.h")),
];

/// Plain memory that a kernel takes as its one argument.
///
/// # Safety
/// `#[repr(C)]`, without padding bytes that are not initialised, and laid out as the struct of the kernel's source.
pub unsafe trait Params: Copy {}

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
    #[error("the device has no {bytes} bytes left: {cause}")]
    OutOfMemory {
        /// What was asked for.
        bytes: usize,
        /// In the driver's words.
        cause: String,
    },
    /// A launch failed.
    #[error("kernel {kernel}: {cause}")]
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
