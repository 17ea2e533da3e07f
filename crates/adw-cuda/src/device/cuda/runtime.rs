//! [`Runtime`] of a CUDA device of candle.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use candle_core::cuda_backend::{CudaDType, DeviceId};
use candle_core::{CudaDevice, CudaStorage, DType, Storage, Tensor};
use cudarc::driver::{
    CudaFunction, CudaModule, CudaSlice, DevicePtr, DeviceRepr, DriverError, LaunchConfig, PushKernelArg, sys,
};
use cudarc::nvrtc::Ptx;

use super::cudnn::{Cudnn, CudnnPass};
use crate::device::convolution::{ConvPass, Convolution, ConvolutionBackend};
use crate::launch::{Address, Buffer, Error, Launch, Module, Params, Result, Runtime};
use crate::work::{Recorder, Work};

/// Dynamic shared memory that every kernel may use without a permission of its own.
const FREE_SHARED: u32 = 48 * 1024;

/// Driver's text for an error.
pub(super) fn driver_message(error: DriverError) -> String {
    let message = error.error_string().map(|s| s.to_string_lossy().into_owned());
    message.unwrap_or_else(|_| format!("{:?}", error.0))
}

/// CUDA device with the kernels that were loaded on it. All work is queued on the device's one stream.
pub struct CudaRuntime {
    device: CudaDevice,
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
    /// By names of module and kernel.
    functions: Mutex<HashMap<[&'static str; 2], Function>>,
    recorder: Mutex<Option<Recorder>>,
    /// `None` unless [`ConvolutionBackend::Cudnn`] was chosen.
    cudnn: Mutex<Option<Cudnn>>,
}

#[derive(Clone)]
struct Function {
    function: CudaFunction,
    /// Dynamic shared memory the kernel may use.
    shared: u32,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CudaRuntime {
    /// Runtime of a device; one per device.
    ///
    /// # Errors
    /// Only in builds without CUDA.
    pub fn of(device: &CudaDevice) -> Result<Arc<Self>> {
        static ALL: LazyLock<Mutex<HashMap<DeviceId, Arc<CudaRuntime>>>> = LazyLock::new(Mutex::default);
        let new = || {
            Arc::new(Self {
                device: device.clone(),
                modules: Mutex::default(),
                functions: Mutex::default(),
                recorder: Mutex::default(),
                cudnn: Mutex::default(),
            })
        };
        Ok(locked(&ALL).entry(device.id()).or_insert_with(new).clone())
    }

    /// Sets the implementation of convolutions from now on.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if cuDNN is chosen in a build without it, or cannot be started.
    pub fn set_convolutions(&self, backend: ConvolutionBackend) -> Result<()> {
        *locked(&self.cudnn) = match backend {
            ConvolutionBackend::Own => None,
            ConvolutionBackend::Cudnn => Some(Cudnn::new(&self.device.cuda_stream())?),
        };
        Ok(())
    }

    /// cuDNN's algorithm for a pass, by the rule of [`ConvolutionBackend::Cudnn`]; `None` if kernels of the workspace are to
    /// run it.
    ///
    /// # Errors
    /// [`Error::Launch`] if cuDNN fails.
    pub fn cudnn_pass(&self, pass: ConvPass, convolution: &Convolution) -> Result<Option<CudnnPass>> {
        match &mut *locked(&self.cudnn) {
            None => Ok(None),
            Some(cudnn) => cudnn.pass(pass, convolution),
        }
    }

    /// Queues a pass by cuDNN. Operands `x`, `w` and `y`, channels last: `[B, D, H, W, Cin]`, `[Cout, kD, kH, kW, Cin]` and
    /// `[B, D', H', W', Cout]`, or their gradients.
    ///
    /// # Safety
    /// The addresses are valid for these shapes until the pass has run.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] for the algorithm's workspace; [`Error::Launch`].
    pub unsafe fn run_cudnn(&self, pass: &CudnnPass, operands: [Address; 3]) -> Result<()> {
        let fail = |cause| Error::Launch { kernel: pass.kernel(), cause };
        let workspace = match pass.workspace_bytes() {
            0 => None,
            bytes => Some(self.alloc(bytes)?),
        };
        let workspace = workspace.as_ref().map_or(Address::NONE, Buffer::address);
        let mut cudnn = locked(&self.cudnn);
        let cudnn = cudnn.as_mut().ok_or_else(|| fail("cuDNN was switched off".into()))?;
        // SAFETY: the workspace is as large as the algorithm needs; the caller guarantees the operands.
        unsafe { cudnn.run(pass, operands, workspace)? };
        self.count(pass.kernel(), &pass.work());
        Ok(())
    }

    /// Replaces the recorder of the work of all launches; returns the one in use until now.
    pub fn record(&self, recorder: Option<Recorder>) -> Option<Recorder> {
        std::mem::replace(&mut *locked(&self.recorder), recorder)
    }

    /// Records a launch, if there is a recorder.
    fn count(&self, kernel: &'static str, work: &Work) {
        if let Some(recorder) = &mut *locked(&self.recorder) {
            recorder.record(kernel, work);
        }
    }

    /// Address of a tensor's first element if the tensor is contiguous on this device and holds f32, bf16 or u8. Valid for
    /// launches that are made while the tensor lives.
    pub fn address(&self, tensor: &Tensor) -> Option<Address> {
        fn first<T: CudaDType>(storage: &CudaStorage, start: usize) -> Option<Address> {
            let slice = storage.as_cuda_slice::<T>().ok()?;
            // Dropping the guard records nothing: there is one stream, and no events.
            let (begin, _guard) = slice.device_ptr(slice.stream());
            Some(Address(begin).offset(start * size_of::<T>()))
        }
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            return None;
        };
        if storage.device.id() != self.device.id() {
            return None;
        }
        let (start, _) = layout.contiguous_offsets()?;
        match tensor.dtype() {
            DType::F32 => first::<f32>(storage, start),
            DType::BF16 => first::<half::bf16>(storage, start),
            DType::U8 => first::<u8>(storage, start),
            _ => None,
        }
    }

    /// candle's device.
    pub fn device(&self) -> &CudaDevice {
        &self.device
    }

    fn module(&self, module: Module) -> std::result::Result<Arc<CudaModule>, String> {
        let mut modules = locked(&self.modules);
        if let Some(loaded) = modules.get(module.name) {
            return Ok(loaded.clone());
        }
        let binary = module.binary.ok_or("this build has no CUDA kernels")?;
        let stream = self.device.cuda_stream();
        let loaded = stream
            .context()
            .load_module(Ptx::from_binary(binary.to_vec()))
            .map_err(|e| format!("module {} cannot be loaded: {}", module.name, driver_message(e)))?;
        modules.insert(module.name, loaded.clone());
        Ok(loaded)
    }

    fn function(&self, module: Module, kernel: &'static str, shared: u32) -> std::result::Result<CudaFunction, String> {
        let mut functions = locked(&self.functions);
        let key = [module.name, kernel];
        let found = if let Some(found) = functions.get_mut(&key) {
            found
        } else {
            let function = self.module(module)?.load_function(kernel).map_err(driver_message)?;
            functions.entry(key).or_insert(Function { function, shared: FREE_SHARED })
        };
        if shared > found.shared {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            found
                .function
                .set_attribute(attribute, shared as i32)
                .map_err(|e| format!("{shared} bytes of shared memory: {}", driver_message(e)))?;
            found.shared = shared;
        }
        Ok(found.function.clone())
    }

    /// Copies plain numbers to the device.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or [`Error::Copy`].
    pub fn upload<T: Params>(&self, values: &[T]) -> Result<DeviceBuffer> {
        let bytes = size_of_val(values);
        let mut buffer = self.alloc(bytes)?;
        // SAFETY: `Params` guarantees plain initialised memory, and the slice has `bytes` bytes.
        let raw = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), bytes) };
        let stream = self.device.cuda_stream();
        let copied = stream.memcpy_htod(raw, &mut buffer.0);
        copied.map_err(|e| Error::Copy(driver_message(e)))?;
        Ok(buffer)
    }

    /// Copies plain numbers from the device, once everything that was launched before has run.
    ///
    /// # Errors
    /// [`Error::Copy`], also if an earlier launch failed.
    pub fn download<T: Params + Default>(&self, from: &DeviceBuffer) -> Result<Vec<T>> {
        let mut values = vec![T::default(); from.0.len() / size_of::<T>()];
        let bytes = size_of_val(values.as_slice());
        // SAFETY: `Params` guarantees that any bytes of a kernel's result are a value, and the vector has `bytes` bytes.
        let raw = unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), bytes) };
        let stream = self.device.cuda_stream();
        let view = from.0.slice(..bytes);
        let copied = stream.memcpy_dtoh(&view, raw).and_then(|()| stream.synchronize());
        copied.map_err(|e| Error::Copy(driver_message(e)))?;
        Ok(values)
    }

    /// Storage of candle that takes over a buffer and sees it as `len` elements of f32, bf16 or u8.
    ///
    /// # Errors
    /// [`Error::Unavailable`] for other element types.
    ///
    /// # Panics
    /// If the buffer is shorter.
    pub fn storage(&self, buffer: DeviceBuffer, dtype: DType, len: usize) -> Result<CudaStorage> {
        match dtype {
            DType::F32 => Ok(self.storage_of::<f32>(buffer, len)),
            DType::BF16 => Ok(self.storage_of::<half::bf16>(buffer, len)),
            DType::U8 => Ok(self.storage_of::<u8>(buffer, len)),
            _ => {
                let what = format!("tensors of {dtype:?}, expected f32, bf16 or u8 on a CUDA device");
                Err(Error::Unavailable(what))
            }
        }
    }

    fn storage_of<T: CudaDType>(&self, buffer: DeviceBuffer, len: usize) -> CudaStorage {
        assert!(buffer.0.len() >= len * size_of::<T>(), "a buffer of {} bytes for {len} elements", buffer.0.len());
        let stream = self.device.cuda_stream();
        // SAFETY: the buffer gives its memory up, and is long enough by the assertion.
        let slice: CudaSlice<T> = unsafe { stream.upgrade_device_ptr(buffer.0.leak(), len) };
        CudaStorage::wrap_cuda_slice(slice, self.device.clone())
    }
}

/// Memory on a device.
pub struct DeviceBuffer(CudaSlice<u8>);

impl Buffer for DeviceBuffer {
    fn address(&self) -> Address {
        let (begin, _guard) = self.0.device_ptr(self.0.stream());
        Address(begin)
    }
}

/// A kernel's one argument.
#[repr(transparent)]
struct Argument<P>(P);
// SAFETY: `Params` guarantees plain memory, laid out as the kernel's struct.
unsafe impl<P: Params> DeviceRepr for Argument<P> {}

impl Runtime for CudaRuntime {
    type Buffer = DeviceBuffer;

    fn alloc(&self, bytes: usize) -> Result<DeviceBuffer> {
        // An allocation of nothing has no address.
        let stream = self.device.cuda_stream();
        // SAFETY: `Runtime::alloc` leaves the contents unspecified.
        match unsafe { stream.alloc::<u8>(bytes.max(1)) } {
            Ok(slice) => Ok(DeviceBuffer(slice)),
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) = stream.context().mem_get_info().unwrap_or_default();
                Err(Error::OutOfMemory { bytes, free, total })
            }
            Err(e) => Err(Error::Lost(driver_message(e))),
        }
    }

    unsafe fn launch<P: Params>(&self, launch: &Launch<P>) -> Result<()> {
        let fail = |cause: String| Error::Launch { kernel: launch.kernel, cause };
        let function = self.function(launch.module, launch.kernel, launch.shared).map_err(fail)?;
        let argument = Argument(launch.params);
        let stream = self.device.cuda_stream();
        let mut builder = stream.launch_builder(&function);
        builder.arg(&argument);
        let [x, y, z] = launch.grid;
        let config =
            LaunchConfig { grid_dim: (x, y, z), block_dim: (launch.threads, 1, 1), shared_mem_bytes: launch.shared };
        // SAFETY: the caller guarantees the addresses in the argument.
        unsafe { builder.launch(config) }.map_err(|e| fail(driver_message(e)))?;
        self.count(launch.kernel, &launch.work);
        Ok(())
    }
}
