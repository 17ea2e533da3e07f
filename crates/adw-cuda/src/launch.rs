//! Launches of kernels as values, and the [`Runtime`] that executes them.

use crate::work::Work;

/// Source of kernels: CUDA C++ in a file beside their op.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// Name of the compiled module; unique in the workspace.
    pub name: &'static str,
    /// Text of the `.cu` file.
    pub source: &'static str,
    /// Machine code that nvcc made of the source, in a build with CUDA.
    pub binary: Option<&'static [u8]>,
}

/// Plain data that a kernel takes as its one argument, or that lies in a device's buffers. Structs come from
/// [`params!`](crate::params).
///
/// # Safety
/// `#[repr(C)]`, without padding bytes, which would not be initialised, and of fields for which every bit pattern is a value.
pub unsafe trait Params: Copy {}

macro_rules! numbers {
    ($($number:ty)*) => {
        $(
            // SAFETY: a number without padding.
            unsafe impl Params for $number {}
        )*
    };
}

numbers!(u8 i16 i32 u32 u64 f32 f64 Address);

// SAFETY: elements without padding, one behind the other.
unsafe impl<T: Params, const N: usize> Params for [T; N] {}

/// Defines a struct of [`Params`], laid out as the struct of the same fields in a kernel's source. A struct with padding does
/// not compile.
#[macro_export]
macro_rules! params {
    (
        $(#[$attribute:meta])*
        $visibility:vis struct $name:ident {
            $($(#[$field_attribute:meta])* $field_visibility:vis $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug)]
        #[repr(C)]
        $visibility struct $name {
            $($(#[$field_attribute])* $field_visibility $field: $type,)*
        }

        const _: () = {
            const fn bytes<T: $crate::Params>() -> usize {
                size_of::<T>()
            }
            assert!(size_of::<$name>() == 0 $(+ bytes::<$type>())*, "a struct of parameters with padding");
        };

        // SAFETY: the fields are plain data, and between and behind them is no padding, as was asserted.
        unsafe impl $crate::Params for $name {}
    };
}

/// Address in a device's memory; 0 for an argument that is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Address(pub u64);

impl Address {
    /// Argument that the kernel must not read.
    pub const NONE: Self = Self(0);

    /// Address `bytes` further on.
    #[must_use]
    pub fn offset(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// Launch of one kernel.
#[derive(Clone, Debug)]
pub struct Launch<P> {
    /// Module that defines the kernel.
    pub module: Module,
    /// `extern "C"` name of the kernel.
    pub kernel: &'static str,
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
    /// Work that no implementation of the launch avoids; for measurements only.
    pub work: Work,
    /// Argument of the kernel.
    pub params: P,
}

/// Errors of a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such device, no compiler that stands in for one, or no such element type on it.
    #[error("{0}")]
    Unavailable(String),
    /// The device has too little memory.
    #[error("the device has no {bytes} bytes left ({free} of {total} are free)")]
    OutOfMemory {
        /// Bytes of the allocation.
        bytes: usize,
        /// Bytes that are not in use.
        free: usize,
        /// Bytes of the device in all.
        total: usize,
    },
    /// The device has failed.
    #[error("the CUDA device cannot go on: {0}. A run goes on from its last checkpoint when it is started again")]
    Lost(String),
    /// A copy between the host and the device failed.
    #[error("copying to or from the CUDA device: {0}. A run goes on from its last checkpoint when it is started again")]
    Copy(String),
    /// A launch failed.
    #[error("CUDA kernel {kernel}, or one launched before it: {cause}")]
    Launch {
        /// Name of the kernel.
        kernel: &'static str,
        /// Text of the driver.
        cause: String,
    },
}

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Memory and launches of kernels. Launches run in order, as on one stream.
pub trait Runtime {
    /// Memory that is freed when the value is dropped, after the launches that were made before.
    type Buffer: Buffer;

    /// Allocates memory with unspecified contents, aligned to 256 bytes.
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
    /// Address of the first byte.
    fn address(&self) -> Address;
}

impl<R: Runtime> Runtime for &R {
    type Buffer = R::Buffer;

    fn alloc(&self, bytes: usize) -> Result<R::Buffer> {
        (**self).alloc(bytes)
    }

    unsafe fn launch<P: Params>(&self, launch: &Launch<P>) -> Result<()> {
        // SAFETY: the caller guarantees the addresses.
        unsafe { (**self).launch(launch) }
    }
}

/// Memory that lives elsewhere.
impl Buffer for Address {
    fn address(&self) -> Address {
        *self
    }
}

/// Number of blocks `ceil(n / d)`.
///
/// # Panics
/// If the number does not fit 32 bits: callers have bounded the sizes.
pub fn blocks(n: usize, d: usize) -> u32 {
    u32::try_from(n.div_ceil(d)).expect("sizes are bounded before a launch")
}
