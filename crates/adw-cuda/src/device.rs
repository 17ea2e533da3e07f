//! candle's CUDA device as what kernels run on.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, DevicePtr, DeviceRepr, DriverError, LaunchConfig, PushKernelArg,
    sys,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaDType, DeviceId};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Layout, Shape, Storage, Tensor};

use crate::work::{Recorder, Work};
use crate::{Address, Buffer, Error, Launch, Module, Params, Result, Runtime};

/// Dynamic shared memory that a kernel may use without asking.
const FREE_SHARED: u32 = 48 * 1024;

/// A CUDA device and the kernels that were loaded on it. All work is on the device's one stream.
pub struct CudaRuntime {
    device: CudaDevice,
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
    functions: Mutex<HashMap<&'static str, Function>>,
    recorder: Mutex<Option<Recorder>>,
    #[cfg(feature = "cudnn")]
    convolutions: crate::convolutions::Shared,
}

#[derive(Clone)]
struct Function {
    function: CudaFunction,
    /// Dynamic shared memory it has been allowed.
    shared: u32,
}

/// Opens device `ordinal` with a stream of its own; the next call gives the same device.
///
/// candle's own constructor takes the stream of the calling thread, which would be another one in every thread; and it
/// records two events per tensor for the sake of programs with several streams. Here is one stream, so that memory can
/// be given back and reused in the order of the calls, without events. The pool keeps what tensors free.
///
/// # Errors
/// [`Error::Unavailable`] if there is no such device, or one older than compute capability 8.0. (Without a driver a
/// program with CUDA does not even start.)
pub fn open(ordinal: usize) -> Result<Device> {
    static OPEN: LazyLock<Mutex<HashMap<usize, CudaDevice>>> = LazyLock::new(Mutex::default);
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = open.get(&ordinal) {
        return Ok(Device::Cuda(device.clone()));
    }
    let unavailable = |cause: String| Error::Unavailable(format!("CUDA device {ordinal}: {cause}"));
    // candle's error would bring its backtrace along. Held until candle has the context, too: to let it go is to tear it down.
    let _context = CudaContext::new(ordinal).map_err(|e| unavailable(driver_says(e)))?;
    let device = CudaDevice::new_with_stream(ordinal).map_err(|e| unavailable(e.to_string()))?;
    // SAFETY: there is one stream per device, as said above, for all who open it here.
    unsafe { device.disable_event_tracking() };
    let stream = device.cuda_stream();
    let context = stream.context();
    let (major, minor) = context.compute_capability().map_err(|e| unavailable(driver_says(e)))?;
    if major < 8 {
        let name = context.name().unwrap_or_default();
        return Err(unavailable(format!(
            "{name} has compute capability {major}.{minor}, but 8.0 (Ampere) or later is needed"
        )));
    }
    if context.has_async_alloc() {
        // What a training step frees it asks for again: nothing goes back to the driver between steps.
        let mut keep = u64::MAX;
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        if let Some(pool) = pool(&device) {
            // SAFETY: the attribute is a number of this type. Without it the pool is slower, not wrong.
            let _ = unsafe { sys::cuMemPoolSetAttribute(pool, threshold, (&raw mut keep).cast()) };
        }
    }
    open.insert(ordinal, device.clone());
    Ok(Device::Cuda(device))
}

/// An error in the driver's words.
pub(crate) fn driver_says(error: DriverError) -> String {
    let words = error.error_string().map(|s| s.to_string_lossy().into_owned());
    words.unwrap_or_else(|_| format!("{:?}", error.0))
}

/// The name of a device, and the bytes of its memory: free, total.
///
/// # Errors
/// If the driver does not say.
pub fn describe(device: &CudaDevice) -> Result<(String, usize, usize)> {
    let stream = device.cuda_stream();
    let context = stream.context();
    let say = |e: DriverError| Error::Unavailable(driver_says(e));
    let (free, total) = context.mem_get_info().map_err(say)?;
    Ok((context.name().map_err(say)?, free, total))
}

/// The most memory that tensors have held at once, since the last [`forget_peak`]; none if the driver does not count.
pub fn peak_bytes(device: &CudaDevice) -> Option<u64> {
    let mut bytes = 0u64;
    let high = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    // SAFETY: the attribute is a number of this type.
    let got = unsafe { sys::cuMemPoolGetAttribute(pool(device)?, high, (&raw mut bytes).cast()) };
    got.result().ok()?;
    Some(bytes)
}

/// Begins to count the most memory anew.
pub fn forget_peak(device: &CudaDevice) {
    let mut zero = 0u64;
    let high = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    if let Some(pool) = pool(device) {
        // SAFETY: the attribute is a number of this type. If it cannot be set, the count goes on.
        let _ = unsafe { sys::cuMemPoolSetAttribute(pool, high, (&raw mut zero).cast()) };
    }
}

/// Where a device's tensors come from.
fn pool(device: &CudaDevice) -> Option<sys::CUmemoryPool> {
    let stream = device.cuda_stream();
    let mut pool = std::ptr::null_mut();
    // SAFETY: the address is that of a variable of this type.
    unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, stream.context().cu_device()) }.result().ok()?;
    Some(pool)
}

impl CudaRuntime {
    /// The runtime of a device; one per device.
    pub fn of(device: &CudaDevice) -> Arc<Self> {
        static ALL: LazyLock<Mutex<HashMap<DeviceId, Arc<CudaRuntime>>>> = LazyLock::new(Mutex::default);
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            Arc::new(Self {
                device: device.clone(),
                modules: Mutex::default(),
                functions: Mutex::default(),
                recorder: Mutex::default(),
                #[cfg(feature = "cudnn")]
                convolutions: Mutex::default(),
            })
        };
        all.entry(device.id()).or_insert_with(new).clone()
    }

    /// The runtime of a tensor's device, if that is a CUDA device.
    pub fn of_tensor(tensor: &Tensor) -> Option<Arc<Self>> {
        match tensor.device() {
            Device::Cuda(device) => Some(Self::of(device)),
            _ => None,
        }
    }

    /// Records the work of all launches from now on; gives what was recorded until now, if something was.
    pub fn record(&self, recorder: Option<Recorder>) -> Option<Recorder> {
        let mut current = self.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, recorder)
    }

    /// Records a launch, if launches are recorded.
    pub(crate) fn count(&self, kernel: &'static str, work: &Work) {
        let mut recorder = self.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(recorder) = &mut *recorder {
            recorder.record(kernel, work);
        }
    }

    /// How convolutions are done, and what that takes.
    #[cfg(feature = "cudnn")]
    pub(crate) fn convolutions(&self) -> std::sync::MutexGuard<'_, crate::convolutions::State> {
        self.convolutions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a tensor's elements begin, if it lies contiguous on this device and holds f32, bf16 or u8. The address is good
    /// for launches that are made while the tensor lives.
    pub fn address(&self, tensor: &Tensor) -> Option<Address> {
        let (storage, layout) = tensor.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) if storage.device.id() == self.device.id() => storage_address(storage, layout),
            _ => None,
        }
    }

    /// Its device.
    pub fn device(&self) -> &CudaDevice {
        &self.device
    }

    fn module(&self, module: Module) -> std::result::Result<Arc<CudaModule>, String> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = modules.get(module.name) {
            return Ok(loaded.clone());
        }
        let binary = module.binary.ok_or("this build has no CUDA kernels")?;
        let stream = self.device.cuda_stream();
        let loaded = stream
            .context()
            .load_module(Ptx::from_binary(binary.to_vec()))
            .map_err(|e| format!("module {} cannot be loaded: {}", module.name, driver_says(e)))?;
        modules.insert(module.name, loaded.clone());
        Ok(loaded)
    }

    fn function(&self, module: Module, kernel: &'static str, shared: u32) -> std::result::Result<CudaFunction, String> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let found = if let Some(found) = functions.get_mut(kernel) {
            found
        } else {
            let function = self.module(module)?.load_function(kernel).map_err(driver_says)?;
            functions.entry(kernel).or_insert(Function { function, shared: FREE_SHARED })
        };
        if shared > found.shared {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            found
                .function
                .set_attribute(attribute, shared as i32)
                .map_err(|e| format!("{shared} bytes of shared memory: {}", driver_says(e)))?;
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
        // SAFETY: `Params` promises plain memory.
        let raw = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), bytes) };
        let stream = self.device.cuda_stream();
        let copied = stream.memcpy_htod(raw, &mut buffer.0);
        copied.map_err(|e| Error::Copy(driver_says(e)))?;
        Ok(buffer)
    }

    /// Fills a buffer with zeros.
    #[cfg(feature = "cudnn")]
    pub(crate) fn clear(&self, buffer: &mut DeviceBuffer) -> Result<()> {
        let cleared = self.device.cuda_stream().memset_zeros(&mut buffer.0);
        cleared.map_err(|e| Error::Lost(driver_says(e)))
    }

    /// Copies plain numbers from the device, once all that was launched before has run.
    ///
    /// # Errors
    /// [`Error::Copy`], or whatever made an earlier launch fail.
    pub fn download<T: Params + Default>(&self, from: &DeviceBuffer) -> Result<Vec<T>> {
        let mut values = vec![T::default(); from.0.len() / size_of::<T>()];
        let bytes = size_of_val(values.as_slice());
        // SAFETY: `Params` promises plain memory.
        let raw = unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast::<u8>(), bytes) };
        let stream = self.device.cuda_stream();
        let view = from.0.slice(..bytes);
        let copied = stream.memcpy_dtoh(&view, raw).and_then(|()| stream.synchronize());
        copied.map_err(|e| Error::Copy(driver_says(e)))?;
        Ok(values)
    }

    /// The buffer's first `len` elements as a storage that owns its memory.
    ///
    /// # Panics
    /// If the buffer is shorter.
    pub fn storage<T: CudaDType>(&self, buffer: DeviceBuffer, len: usize) -> CudaStorage {
        assert!(buffer.0.len() >= len * size_of::<T>(), "a buffer of other elements");
        let stream = self.device.cuda_stream();
        // SAFETY: the memory is that of the buffer, which gives it up, and is long enough.
        let slice: CudaSlice<T> = unsafe { stream.upgrade_device_ptr(buffer.0.leak(), len) };
        CudaStorage::wrap_cuda_slice(slice, self.device.clone())
    }

    /// As [`Self::storage`], a tensor of this shape.
    ///
    /// # Panics
    /// As [`Self::storage`].
    pub fn tensor<T: CudaDType>(&self, buffer: DeviceBuffer, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        let storage = self.storage::<T>(buffer, shape.elem_count());
        Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
    }

    /// A storage with unspecified contents, and its address. f32, bf16 and u8 only.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn empty_storage(&self, dtype: DType, len: usize) -> Result<(CudaStorage, Address)> {
        let buffer = self.alloc(len * dtype.size_in_bytes())?;
        let address = buffer.address();
        let storage = match dtype {
            DType::F32 => self.storage::<f32>(buffer, len),
            DType::BF16 => self.storage::<half::bf16>(buffer, len),
            DType::U8 => self.storage::<u8>(buffer, len),
            _ => {
                let what = format!("tensors of {dtype:?}, expected f32, bf16 or u8 on a CUDA device");
                return Err(Error::Unavailable(what));
            }
        };
        Ok((storage, address))
    }

    /// A tensor with unspecified contents, and its address. f32, bf16 and u8 only.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn empty(&self, dtype: DType, shape: impl Into<Shape>) -> Result<(Tensor, Address)> {
        let shape = shape.into();
        let (storage, address) = self.empty_storage(dtype, shape.elem_count())?;
        let storage = Storage::Cuda(storage);
        let tensor = Tensor::from_storage(storage, shape, BackpropOp::none(), false);
        Ok((tensor, address))
    }
}

/// [`CudaRuntime::address`] of a storage, as candle's custom ops get it.
pub fn storage_address(storage: &CudaStorage, layout: &Layout) -> Option<Address> {
    use candle_core::backend::BackendStorage;
    fn of<T: CudaDType>(storage: &CudaStorage, start: usize) -> Option<Address> {
        let slice = storage.as_cuda_slice::<T>().ok()?;
        // Nothing is recorded when the guard is dropped: there is one stream, and no events.
        let (begin, _guard) = slice.device_ptr(slice.stream());
        Some(Address(begin).offset(start * size_of::<T>()))
    }
    let (start, _) = layout.contiguous_offsets()?;
    match storage.dtype() {
        DType::F32 => of::<f32>(storage, start),
        DType::BF16 => of::<half::bf16>(storage, start),
        DType::U8 => of::<u8>(storage, start),
        _ => None,
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
// SAFETY: `Params` promises plain memory, laid out as the kernel's struct.
unsafe impl<P: Params> DeviceRepr for Argument<P> {}

impl Runtime for CudaRuntime {
    type Buffer = DeviceBuffer;

    fn alloc(&self, bytes: usize) -> Result<DeviceBuffer> {
        // An allocation of nothing has no address.
        let stream = self.device.cuda_stream();
        // SAFETY: contents are unspecified by contract.
        match unsafe { stream.alloc::<u8>(bytes.max(1)) } {
            Ok(slice) => Ok(DeviceBuffer(slice)),
            Err(e) if e.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) = stream.context().mem_get_info().unwrap_or_default();
                Err(Error::OutOfMemory { bytes, free, total })
            }
            Err(e) => Err(Error::Lost(driver_says(e))),
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
        // SAFETY: as the caller vouches.
        unsafe { builder.launch(config) }.map_err(|e| fail(driver_says(e)))?;
        self.count(launch.kernel, &launch.work);
        Ok(())
    }
}
