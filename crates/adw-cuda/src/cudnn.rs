//! Convolutions of channels-last maps by cuDNN.
//!
//! ```text
//! x  [B, D, H, W, Cin]              input, or its gradient
//! w  [Cout, kD, kH, kW, Cin]        weights, or their gradient
//! y  [B, D', H', W', Cout]          output, or its gradient
//! ```
//!
//! All three are f32, multiplied and summed in f32 (no TF32), or all bf16, multiplied on tensor cores and summed in f32.
//! Only algorithms that give the same bits every time are used. <https://docs.nvidia.com/deeplearning/cudnn/backend/latest/api/cudnn-cnn-library.html>

use std::collections::HashMap;
use std::ffi::{CStr, c_int, c_void};
use std::fmt;
use std::mem::{MaybeUninit, transmute};
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::cudnn::result::{self, CudnnError};
use candle_core::cuda_backend::cudarc::cudnn::sys;
use candle_core::cuda_backend::cudarc::driver::CudaStream;

use crate::Address;
use crate::work::Work;

/// Memory that an algorithm may ask for beside its operands.
const MOST_WORKSPACE: usize = 512 << 20;

type Result<T> = std::result::Result<T, CudnnError>;

/// One of the passes of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// `y` from `x` and `w`.
    Forward,
    /// `x` from `y` and `w`.
    GradInput,
    /// `w` from `x` and `y`.
    GradWeight,
}

/// Shapes of a convolution; sizes are D, H, W.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the fields are what their names say")]
pub struct Convolution {
    /// Element type: bf16, else f32.
    pub bf16: bool,
    pub batch: usize,
    pub channels_in: usize,
    pub channels_out: usize,
    pub input: [usize; 3],
    pub output: [usize; 3],
    pub kernel: [usize; 3],
    pub stride: [usize; 3],
    pub padding: [usize; 3],
}

impl Convolution {
    /// What a pass has to move and to compute.
    pub fn work(&self) -> Work {
        let product = |v: [usize; 3]| v.iter().product::<usize>();
        let outputs = self.batch * product(self.output);
        let weights = self.channels_out * product(self.kernel) * self.channels_in;
        let elements = self.batch * product(self.input) * self.channels_in + weights + outputs * self.channels_out;
        Work::new(elements * if self.bf16 { 2 } else { 4 }, 2 * weights * outputs).on_tensor_cores(self.bf16)
    }
}

impl fmt::Display for Convolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = |[d, h, w]: [usize; 3]| format!("{d}x{h}x{w}");
        write!(
            f,
            "{} {} of {} in {}, {} in {}, kernel {}, stride {}, padding {}",
            self.batch,
            if self.bf16 { "bf16" } else { "f32" },
            by(self.input),
            self.channels_in,
            by(self.output),
            self.channels_out,
            by(self.kernel),
            by(self.stride),
            by(self.padding)
        )
    }
}

/// One of cuDNN's ways for a pass of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Algorithm {
    /// In cuDNN's enumeration for the pass.
    pub number: u32,
    /// Bytes of memory it needs beside the operands.
    pub workspace: usize,
}

/// cuDNN on one stream.
pub(crate) struct Cudnn {
    handle: sys::cudnnHandle_t,
    descriptors: HashMap<Convolution, Descriptors>,
}

// SAFETY: a handle may be used from any thread, by one at a time; `&mut self` and `Drop` see to the latter.
unsafe impl Send for Cudnn {}

impl Drop for Cudnn {
    fn drop(&mut self) {
        self.descriptors.clear();
        // SAFETY: it was created, and nothing uses it any more. There is nothing to do about a failure.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

struct Descriptors {
    x: sys::cudnnTensorDescriptor_t,
    w: sys::cudnnFilterDescriptor_t,
    y: sys::cudnnTensorDescriptor_t,
    convolution: sys::cudnnConvolutionDescriptor_t,
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: each was created. There is nothing to do about a failure.
        unsafe {
            let _ = result::destroy_tensor_descriptor(self.x);
            let _ = result::destroy_filter_descriptor(self.w);
            let _ = result::destroy_tensor_descriptor(self.y);
            let _ = result::destroy_convolution_descriptor(self.convolution);
        }
    }
}

/// Sizes and strides as cuDNN has them: in 32 bits. A sample with more elements is one that it does not support.
fn ints<const N: usize>(sizes: [usize; N]) -> Result<[c_int; N]> {
    let mut out = [0; N];
    for (to, from) in out.iter_mut().zip(sizes) {
        *to = c_int::try_from(from).map_err(|_| CudnnError(sys::cudnnStatus_t::CUDNN_STATUS_NOT_SUPPORTED))?;
    }
    Ok(out)
}

impl Descriptors {
    fn new(c: &Convolution) -> Result<Self> {
        let new = Self {
            x: result::create_tensor_descriptor()?,
            w: result::create_filter_descriptor()?,
            y: result::create_tensor_descriptor()?,
            convolution: result::create_convolution_descriptor()?,
        };
        let (element, math) = if c.bf16 {
            (sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16, sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH)
        } else {
            (sys::cudnnDataType_t::CUDNN_DATA_FLOAT, sys::cudnnMathType_t::CUDNN_FMA_MATH)
        };
        let tensor = |descriptor, channels: usize, [d, h, w]: [usize; 3]| {
            // Descriptors name channels first, whatever the order in memory.
            let dims = ints([c.batch, channels, d, h, w])?;
            let [row, plane] = [w * channels, h * w * channels];
            let strides = ints([d * plane, 1, plane, row, channels])?;
            // SAFETY: the arrays have five elements.
            unsafe { result::set_tensornd_descriptor(descriptor, element, 5, dims.as_ptr(), strides.as_ptr()) }
        };
        tensor(new.x, c.channels_in, c.input)?;
        tensor(new.y, c.channels_out, c.output)?;
        let [kd, kh, kw] = c.kernel;
        let filter = ints([c.channels_out, c.channels_in, kd, kh, kw])?;
        let (padding, stride) = (ints(c.padding)?, ints(c.stride)?);
        // SAFETY: the arrays have five and three elements.
        unsafe {
            let layout = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
            result::set_filternd_descriptor(new.w, element, layout, 5, filter.as_ptr())?;
            result::set_convolutionnd_descriptor(
                new.convolution,
                3,
                padding.as_ptr(),
                stride.as_ptr(),
                [1, 1, 1].as_ptr(),
                sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
                sys::cudnnDataType_t::CUDNN_DATA_FLOAT,
            )?;
            result::set_convolution_math_type(new.convolution, math)?;
        }
        Ok(new)
    }
}

/// cuDNN's number of its release, as 91900 for 9.19.0.
pub(crate) fn version() -> usize {
    result::get_version()
}

/// An error in cuDNN's words, of which the last say more.
pub(crate) fn says(error: CudnnError) -> String {
    let mut last = [0u8; 512];
    // SAFETY: cuDNN gives text that stays, and fills a buffer of this size with text that ends.
    let name = unsafe {
        sys::cudnnGetLastErrorString(last.as_mut_ptr().cast(), last.len());
        CStr::from_ptr(sys::cudnnGetErrorString(error.0))
    };
    let last = CStr::from_bytes_until_nul(&last).unwrap_or_default();
    let [name, last] = [name, last].map(CStr::to_string_lossy);
    match last.trim() {
        "" => name.into_owned(),
        last => format!("{name} ({last})"),
    }
}

/// An entry of cuDNN's lists of algorithms, which have one layout; numbers instead of enumerations, to which a later
/// release may add.
#[derive(Clone, Copy)]
#[repr(C)]
struct Listed {
    algorithm: u32,
    status: u32,
    milliseconds: f32,
    memory: usize,
    determinism: u32,
    math: u32,
    reserved: [c_int; 3],
}
const _: () = assert!(
    size_of::<Listed>() == size_of::<sys::cudnnConvolutionFwdAlgoPerf_t>()
        && size_of::<Listed>() == size_of::<sys::cudnnConvolutionBwdDataAlgoPerf_t>()
        && size_of::<Listed>() == size_of::<sys::cudnnConvolutionBwdFilterAlgoPerf_t>()
);

impl Cudnn {
    pub(crate) fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        let new = Self { handle: result::create_handle()?, descriptors: HashMap::new() };
        // SAFETY: the stream is its device's only one, which is never closed.
        unsafe { result::set_stream(new.handle, stream.cu_stream().cast())? };
        Ok(new)
    }

    fn descriptors(&mut self, c: &Convolution) -> Result<&Descriptors> {
        if !self.descriptors.contains_key(c) {
            self.descriptors.insert(*c, Descriptors::new(c)?);
        }
        Ok(&self.descriptors[c])
    }

    /// The algorithms for a pass, the one that cuDNN expects to be fastest first. To ask for them takes longer than most
    /// passes.
    pub(crate) fn algorithms(&mut self, pass: Pass, c: &Convolution) -> Result<Vec<Algorithm>> {
        let (listed, count) = self.listed(pass, c)?;
        let mut usable = Vec::<Algorithm>::new();
        for one in &listed {
            // One is listed for several ways of multiplying, not all with the workspace of the one that is set.
            let works = one.status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS as u32
                && one.determinism == sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC as u32
                && one.algorithm < count
                && usable.iter().all(|a| a.number != one.algorithm);
            if !works {
                continue;
            }
            let number = one.algorithm;
            if let Ok(workspace) = self.workspace(pass, c, number)
                && workspace <= MOST_WORKSPACE
            {
                usable.push(Algorithm { number, workspace });
            }
        }
        Ok(usable)
    }

    /// What cuDNN lists, and how many algorithms its enumeration has.
    fn listed(&mut self, pass: Pass, c: &Convolution) -> Result<(Vec<Listed>, u32)> {
        // As many as there are, for several ways of multiplying each.
        const MOST: usize = 32;
        let handle = self.handle;
        let d = self.descriptors(c)?;
        let mut listed = [MaybeUninit::<Listed>::uninit(); MOST];
        let (most, mut filled) = (MOST as c_int, 0);
        let (list, num) = (listed.as_mut_ptr(), &raw mut filled);
        // SAFETY: the descriptors are those of one convolution; the list has room for `MOST` entries.
        let count = unsafe {
            match pass {
                Pass::Forward => {
                    let list = list.cast();
                    result::get_convolution_forward_algorithm(handle, d.x, d.w, d.convolution, d.y, most, num, list)?;
                    sys::cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_COUNT as u32
                }
                Pass::GradInput => {
                    let list = list.cast();
                    result::get_convolution_backward_data_algorithm(
                        handle,
                        d.w,
                        d.y,
                        d.convolution,
                        d.x,
                        most,
                        num,
                        list,
                    )?;
                    sys::cudnnConvolutionBwdDataAlgo_t::CUDNN_CONVOLUTION_BWD_DATA_ALGO_COUNT as u32
                }
                Pass::GradWeight => {
                    let list = list.cast();
                    result::get_convolution_backward_filter_algorithm(
                        handle,
                        d.x,
                        d.y,
                        d.convolution,
                        d.w,
                        most,
                        num,
                        list,
                    )?;
                    sys::cudnnConvolutionBwdFilterAlgo_t::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_COUNT as u32
                }
            }
        };
        let filled = usize::try_from(filled).unwrap_or(0).min(MOST);
        // SAFETY: cuDNN has filled them.
        let listed = listed[..filled].iter().map(|l| unsafe { l.assume_init() });
        Ok((listed.collect(), count))
    }

    /// Bytes that an algorithm needs, with the way of multiplying that is set; `number` is one of those listed.
    fn workspace(&mut self, pass: Pass, c: &Convolution, number: u32) -> Result<usize> {
        let handle = self.handle;
        let d = self.descriptors(c)?;
        // SAFETY: the descriptors are those of one convolution. The number is below the count of its enumeration, which
        // has no gaps.
        unsafe {
            match pass {
                Pass::Forward => result::get_convolution_forward_workspace_size(
                    handle,
                    d.x,
                    d.w,
                    d.convolution,
                    d.y,
                    transmute::<u32, sys::cudnnConvolutionFwdAlgo_t>(number),
                ),
                Pass::GradInput => result::get_convolution_backward_data_workspace_size(
                    handle,
                    d.w,
                    d.y,
                    d.convolution,
                    d.x,
                    transmute::<u32, sys::cudnnConvolutionBwdDataAlgo_t>(number),
                ),
                Pass::GradWeight => result::get_convolution_backward_filter_workspace_size(
                    handle,
                    d.x,
                    d.y,
                    d.convolution,
                    d.w,
                    transmute::<u32, sys::cudnnConvolutionBwdFilterAlgo_t>(number),
                ),
            }
        }
    }

    /// Queues a pass.
    ///
    /// # Safety
    /// The addresses are those of maps and weights of the convolution's shapes, and of the algorithm's workspace.
    pub(crate) unsafe fn run(
        &mut self,
        pass: Pass,
        c: &Convolution,
        algorithm: Algorithm,
        [x, w, y]: [Address; 3],
        workspace: Address,
    ) -> Result<()> {
        let handle = self.handle;
        let d = self.descriptors(c)?;
        let pointer = |address: Address| address.0 as *mut c_void;
        let (one, zero) = (1.0f32, 0.0f32);
        let (alpha, beta) = ((&raw const one).cast(), (&raw const zero).cast());
        let (x, w, y, space) = (pointer(x), pointer(w), pointer(y), pointer(workspace));
        let (number, bytes) = (algorithm.number, algorithm.workspace);
        // SAFETY: the descriptors are those of the convolution; the caller vouches for the addresses. Numbers are below the
        // count of their enumeration, as `algorithms` has seen to, and that has no gaps.
        unsafe {
            match pass {
                Pass::Forward => {
                    let algo = transmute::<u32, sys::cudnnConvolutionFwdAlgo_t>(number);
                    result::convolution_forward(
                        handle,
                        alpha,
                        d.x,
                        x,
                        d.w,
                        w,
                        d.convolution,
                        algo,
                        space,
                        bytes,
                        beta,
                        d.y,
                        y,
                    )
                }
                Pass::GradInput => {
                    let algo = transmute::<u32, sys::cudnnConvolutionBwdDataAlgo_t>(number);
                    result::convolution_backward_data(
                        handle,
                        alpha,
                        d.w,
                        w,
                        d.y,
                        y,
                        d.convolution,
                        algo,
                        space,
                        bytes,
                        beta,
                        d.x,
                        x,
                    )
                }
                Pass::GradWeight => {
                    let algo = transmute::<u32, sys::cudnnConvolutionBwdFilterAlgo_t>(number);
                    result::convolution_backward_filter(
                        handle,
                        alpha,
                        d.x,
                        x,
                        d.y,
                        y,
                        d.convolution,
                        algo,
                        space,
                        bytes,
                        beta,
                        d.w,
                        w,
                    )
                }
            }
        }
    }
}
