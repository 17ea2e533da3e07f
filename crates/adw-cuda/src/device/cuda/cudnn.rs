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
use std::mem::{MaybeUninit, transmute};
use std::sync::Arc;

use cudarc::cudnn::result::{self, CudnnError};
use cudarc::cudnn::sys::{
    self, cudnnConvolutionBwdDataAlgo_t, cudnnConvolutionBwdFilterAlgo_t, cudnnConvolutionFwdAlgo_t,
};
use cudarc::driver::CudaStream;

use crate::device::convolution::{ConvPass, Convolution};
use crate::launch::{Address, Error, Result};
use crate::work::Work;

/// Most workspace of an algorithm, in bytes.
const MAX_WORKSPACE: usize = 512 << 20;

type CudnnResult<T> = std::result::Result<T, CudnnError>;

/// Pass of a convolution with the algorithm of cuDNN that computes it.
#[derive(Clone, Copy, Debug)]
pub struct CudnnPass {
    pass: ConvPass,
    convolution: Convolution,
    algorithm: Algorithm,
}

/// Algorithm for a pass.
#[derive(Clone, Copy, Debug)]
struct Algorithm {
    /// Number in cuDNN's enumeration for the pass.
    number: u32,
    /// Bytes of memory besides the operands.
    workspace: usize,
}

impl CudnnPass {
    /// Name of the pass in records of launches and in errors.
    pub(super) fn kernel(&self) -> &'static str {
        match self.pass {
            ConvPass::Forward => "cudnn_forward",
            ConvPass::GradInput => "cudnn_grad_input",
            ConvPass::GradWeight => "cudnn_grad_weight",
        }
    }

    pub(super) fn workspace_bytes(&self) -> usize {
        self.algorithm.workspace
    }

    pub(super) fn work(&self) -> Work {
        self.convolution.work()
    }
}

/// cuDNN on one stream.
pub(super) struct Cudnn {
    handle: sys::cudnnHandle_t,
    descriptors: HashMap<Convolution, Descriptors>,
    /// Algorithm per pass and shape; `None` where cuDNN has no suitable one.
    algorithms: HashMap<(ConvPass, Convolution), Option<Algorithm>>,
}

// SAFETY: a handle may be used from any thread, by one at a time; `&mut self` and `Drop` guarantee the latter.
unsafe impl Send for Cudnn {}

impl Drop for Cudnn {
    fn drop(&mut self) {
        self.descriptors.clear();
        // SAFETY: the handle was created, and nothing uses it any more. A failure leaves nothing to do.
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
        // SAFETY: each was created. A failure leaves nothing to do.
        unsafe {
            let _ = result::destroy_tensor_descriptor(self.x);
            let _ = result::destroy_filter_descriptor(self.w);
            let _ = result::destroy_tensor_descriptor(self.y);
            let _ = result::destroy_convolution_descriptor(self.convolution);
        }
    }
}

/// Sizes and strides in cuDNN's 32 bits. Larger ones are reported as not supported.
fn ints<const N: usize>(sizes: [usize; N]) -> CudnnResult<[c_int; N]> {
    let mut out = [0; N];
    for (to, from) in out.iter_mut().zip(sizes) {
        *to = c_int::try_from(from).map_err(|_| CudnnError(sys::cudnnStatus_t::CUDNN_STATUS_NOT_SUPPORTED))?;
    }
    Ok(out)
}

impl Descriptors {
    fn new(c: &Convolution) -> CudnnResult<Self> {
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

/// cuDNN's text for an error, and the text of its last error, which says more.
fn message(error: CudnnError) -> String {
    let mut last = [0u8; 512];
    // SAFETY: cuDNN returns static text, and fills a buffer of this size with text that ends in a zero.
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

/// Entry of cuDNN's lists of algorithms, whose three types have one layout. Numbers instead of enumerations, since a later
/// release may add values.
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
    /// cuDNN on a stream, which must be its device's only one.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if cuDNN cannot be started.
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        let unavailable = |e| Error::Unavailable(format!("cuDNN cannot be used: {}", message(e)));
        stream.context().bind_to_thread().map_err(|e| Error::Lost(e.to_string()))?;
        let handle = result::create_handle().map_err(unavailable)?;
        let new = Self { handle, descriptors: HashMap::new(), algorithms: HashMap::new() };
        // SAFETY: the stream is its device's only one, which is never closed.
        unsafe { result::set_stream(new.handle, stream.cu_stream().cast()) }.map_err(unavailable)?;
        Ok(new)
    }

    /// First algorithm in the list of cuDNN's heuristics that is deterministic and has a small enough workspace; `None` if
    /// there is none or cuDNN does not support the shapes.
    ///
    /// # Errors
    /// [`Error::Launch`] if cuDNN fails otherwise.
    pub(super) fn pass(&mut self, pass: ConvPass, convolution: &Convolution) -> Result<Option<CudnnPass>> {
        let with = |algorithm| CudnnPass { pass, convolution: *convolution, algorithm };
        // Listing algorithms takes longer than most passes.
        if let Some(known) = self.algorithms.get(&(pass, *convolution)) {
            return Ok(known.map(with));
        }
        let found = match self.first_deterministic(pass, convolution) {
            Ok(found) => found,
            Err(CudnnError(sys::cudnnStatus_t::CUDNN_STATUS_NOT_SUPPORTED)) => None,
            Err(error) => {
                return Err(Error::Launch { kernel: "cudnn_heuristics", cause: message(error) });
            }
        };
        self.algorithms.insert((pass, *convolution), found);
        Ok(found.map(with))
    }

    fn first_deterministic(&mut self, pass: ConvPass, c: &Convolution) -> CudnnResult<Option<Algorithm>> {
        let (listed, count) = self.listed(pass, c)?;
        for entry in &listed {
            let is_usable = entry.status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS as u32
                && entry.determinism == sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC as u32
                && entry.algorithm < count;
            // The list has each algorithm for several math types; the workspace is that of the one that is set.
            if is_usable
                && let Ok(workspace) = self.workspace(pass, c, entry.algorithm)
                && workspace <= MAX_WORKSPACE
            {
                return Ok(Some(Algorithm { number: entry.algorithm, workspace }));
            }
        }
        Ok(None)
    }

    fn descriptors(&mut self, c: &Convolution) -> CudnnResult<&Descriptors> {
        if !self.descriptors.contains_key(c) {
            self.descriptors.insert(*c, Descriptors::new(c)?);
        }
        Ok(&self.descriptors[c])
    }

    /// cuDNN's list, fastest first by its heuristics, and the number of algorithms in its enumeration.
    fn listed(&mut self, pass: ConvPass, c: &Convolution) -> CudnnResult<(Vec<Listed>, u32)> {
        // Every algorithm, with several math types each.
        const MAX: usize = 32;
        let h = self.handle;
        let d = self.descriptors(c)?;
        let mut listed = [MaybeUninit::<Listed>::uninit(); MAX];
        let (max, mut filled) = (MAX as c_int, 0);
        let (list, num) = (listed.as_mut_ptr().cast(), &raw mut filled);
        let conv = d.convolution;
        // SAFETY: the descriptors are those of one convolution; the list has room for `MAX` entries of the one layout.
        let count = unsafe {
            match pass {
                ConvPass::Forward => {
                    result::get_convolution_forward_algorithm(h, d.x, d.w, conv, d.y, max, num, list)?;
                    cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_COUNT as u32
                }
                ConvPass::GradInput => {
                    let list = list.cast();
                    result::get_convolution_backward_data_algorithm(h, d.w, d.y, conv, d.x, max, num, list)?;
                    cudnnConvolutionBwdDataAlgo_t::CUDNN_CONVOLUTION_BWD_DATA_ALGO_COUNT as u32
                }
                ConvPass::GradWeight => {
                    let list = list.cast();
                    result::get_convolution_backward_filter_algorithm(h, d.x, d.y, conv, d.w, max, num, list)?;
                    cudnnConvolutionBwdFilterAlgo_t::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_COUNT as u32
                }
            }
        };
        let filled = usize::try_from(filled).unwrap_or(0).min(MAX);
        // SAFETY: cuDNN has filled the first `filled` entries.
        let listed = listed[..filled].iter().map(|l| unsafe { l.assume_init() });
        Ok((listed.collect(), count))
    }

    /// Workspace of an algorithm in bytes, with the math type that is set; `number` is one of those listed.
    fn workspace(&mut self, pass: ConvPass, c: &Convolution, number: u32) -> CudnnResult<usize> {
        let h = self.handle;
        let d = self.descriptors(c)?;
        let conv = d.convolution;
        // SAFETY: the descriptors are those of one convolution. The number is below the count of its enumeration, which
        // has no gaps.
        unsafe {
            match pass {
                ConvPass::Forward => {
                    let algorithm = transmute::<u32, cudnnConvolutionFwdAlgo_t>(number);
                    result::get_convolution_forward_workspace_size(h, d.x, d.w, conv, d.y, algorithm)
                }
                ConvPass::GradInput => {
                    let algorithm = transmute::<u32, cudnnConvolutionBwdDataAlgo_t>(number);
                    result::get_convolution_backward_data_workspace_size(h, d.w, d.y, conv, d.x, algorithm)
                }
                ConvPass::GradWeight => {
                    let algorithm = transmute::<u32, cudnnConvolutionBwdFilterAlgo_t>(number);
                    result::get_convolution_backward_filter_workspace_size(h, d.x, d.y, conv, d.w, algorithm)
                }
            }
        }
    }

    /// Queues a pass.
    ///
    /// # Safety
    /// The addresses `[x, w, y]` are valid for the convolution's shapes, and `workspace` for the pass's
    /// [`CudnnPass::workspace_bytes`], until the pass has run.
    ///
    /// # Errors
    /// [`Error::Launch`].
    pub(super) unsafe fn run(&mut self, run: &CudnnPass, operands: [Address; 3], workspace: Address) -> Result<()> {
        // SAFETY: the caller's guarantees are those of the function called.
        let done = unsafe { self.queue(run, operands, workspace) };
        done.map_err(|e| Error::Launch { kernel: run.kernel(), cause: message(e) })
    }

    /// # Safety
    /// As [`Self::run`].
    unsafe fn queue(&mut self, run: &CudnnPass, operands: [Address; 3], workspace: Address) -> CudnnResult<()> {
        let h = self.handle;
        let d = self.descriptors(&run.convolution)?;
        let conv = d.convolution;
        let (one, zero) = (1.0f32, 0.0f32);
        let (alpha, beta) = ((&raw const one).cast(), (&raw const zero).cast());
        let pointer = |address: Address| address.0 as *mut c_void;
        let ([x, w, y], space) = (operands.map(pointer), pointer(workspace));
        let Algorithm { number, workspace: bytes } = run.algorithm;
        // SAFETY: the descriptors are those of the convolution, and the caller guarantees the addresses. The number is below
        // the count of its enumeration (see `first_deterministic`), which has no gaps.
        unsafe {
            match run.pass {
                ConvPass::Forward => {
                    let algorithm = transmute::<u32, cudnnConvolutionFwdAlgo_t>(number);
                    result::convolution_forward(h, alpha, d.x, x, d.w, w, conv, algorithm, space, bytes, beta, d.y, y)
                }
                ConvPass::GradInput => {
                    let algorithm = transmute::<u32, cudnnConvolutionBwdDataAlgo_t>(number);
                    result::convolution_backward_data(
                        h, alpha, d.w, w, d.y, y, conv, algorithm, space, bytes, beta, d.x, x,
                    )
                }
                ConvPass::GradWeight => {
                    let algorithm = transmute::<u32, cudnnConvolutionBwdFilterAlgo_t>(number);
                    result::convolution_backward_filter(
                        h, alpha, d.x, x, d.y, y, conv, algorithm, space, bytes, beta, d.w, w,
                    )
                }
            }
        }
    }
}
