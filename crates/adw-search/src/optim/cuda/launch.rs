//! Launches of `optim.cu`: optimisers and the gradient norm over all parameters at once.

use super::super::config::{AdamConfig, SgdConfig};
use adw_cuda::work::Work;
use adw_cuda::{Address, Buffer, Launch, Module, Result, Runtime, params};

/// Source of the kernels.
pub(super) const MODULE: Module = adw_cuda::module!("optim");

const THREADS: u32 = 256;
/// Elements of a block: 64 per thread.
pub(super) const CHUNK: usize = 16 * 1024;

params! {
    /// Addresses of one parameter, all f32 on the device.
    pub(super) struct SlotEntry {
        /// Updated in place.
        pub(super) weight: Address,
        /// Gradient of the weight.
        pub(super) grad: Address,
        /// Velocity (SGD) or mean of gradients (Adam); zeros at first.
        pub(super) first: Address,
        /// Mean of squared gradients (Adam).
        pub(super) second: Address,
        /// Number of elements.
        pub(super) len: u64,
    }
}

params! {
    /// Chunk of a parameter.
    pub(super) struct Chunk {
        slot: u32,
        first: u32,
    }
}

/// Chunks of all slots, in order.
pub(super) fn chunks(slots: &[SlotEntry]) -> Vec<Chunk> {
    let of_slot = |(slot, s): (usize, &SlotEntry)| {
        (0..(s.len as usize).div_ceil(CHUNK)).map(move |first| Chunk { slot: slot as u32, first: first as u32 })
    };
    slots.iter().enumerate().flat_map(of_slot).collect()
}

/// Slots and their [`chunks`] in the device's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    /// Address of the slots.
    pub(super) slots: Address,
    /// Address of the chunks.
    pub(super) chunks: Address,
    /// Number of chunks.
    pub(super) num_chunks: usize,
    /// Number of elements of all slots together.
    pub(super) elements: usize,
}

params! {
    struct ListParams {
        slots: Address,
        chunks: Address,
        chunk: u32,
        num_chunks: u32,
    }
}

impl From<&List> for ListParams {
    fn from(l: &List) -> Self {
        Self { slots: l.slots, chunks: l.chunks, chunk: CHUNK as u32, num_chunks: l.num_chunks as u32 }
    }
}

params! {
    struct SgdParams {
        list: ListParams,
        scale: Address,
        lr: f32,
        momentum: f32,
        decay: f32,
        _unused: u32,
    }
}

params! {
    struct AdamParams {
        list: ListParams,
        scale: Address,
        step_size: f32,
        root_correction: f32,
        beta1: f32,
        beta2: f32,
        one_minus_beta1: f32,
        one_minus_beta2: f32,
        eps: f32,
        _unused: u32,
    }
}

params! {
    struct NormParams {
        list: ListParams,
        partial: Address,
        norm: Address,
        scale: Address,
        max_norm: f64,
    }
}

fn launch<P>(kernel: &'static str, blocks: usize, shared: u32, work: Work, params: P) -> Launch<P> {
    Launch { module: MODULE, kernel, grid: [blocks as u32, 1, 1], threads: THREADS, shared, work, params }
}

/// Launches the step of [`Sgd`](super::super::Sgd). `scale` is the address of one f32, or [`Address::NONE`] for 1.
///
/// # Safety
/// The addresses in the list are valid.
///
/// # Errors
/// If the launch fails.
pub(super) unsafe fn sgd<R: Runtime>(rt: &R, list: &List, config: &SgdConfig, lr: f64, scale: Address) -> Result<()> {
    let params = SgdParams {
        list: list.into(),
        scale,
        lr: lr as f32,
        momentum: config.momentum as f32,
        decay: config.weight_decay as f32,
        _unused: 0,
    };
    // Reads weight, gradient and velocity, writes weight and velocity.
    let work = Work::new(5 * 4 * list.elements, 9 * list.elements);
    // SAFETY: the caller guarantees the addresses.
    unsafe { rt.launch(&launch("optim_sgd", list.num_chunks, 0, work, params)) }
}

/// Launches the step of [`Adam`](super::super::Adam); `steps` counts updates of these parameters, this one included.
///
/// # Safety
/// The addresses in the list are valid.
///
/// # Errors
/// If the launch fails.
pub(super) unsafe fn adam<R: Runtime>(
    rt: &R,
    list: &List,
    config: &AdamConfig,
    steps: i32,
    lr: f64,
    scale: Address,
) -> Result<()> {
    let params = AdamParams {
        list: list.into(),
        scale,
        step_size: (lr / (1.0 - config.beta1.powi(steps))) as f32,
        root_correction: (1.0 - config.beta2.powi(steps)).sqrt() as f32,
        beta1: config.beta1 as f32,
        beta2: config.beta2 as f32,
        one_minus_beta1: (1.0 - config.beta1) as f32,
        one_minus_beta2: (1.0 - config.beta2) as f32,
        eps: config.eps as f32,
        _unused: 0,
    };
    // Reads weight, gradient and both means, writes all but the gradient.
    let work = Work::new(7 * 4 * list.elements, 14 * list.elements);
    // SAFETY: the caller guarantees the addresses.
    unsafe { rt.launch(&launch("optim_adam", list.num_chunks, 0, work, params)) }
}

params! {
    struct EmaParams {
        list: ListParams,
        decay: f32,
        one_minus_decay: f32,
    }
}

/// Launches the update of [`Ema`](super::super::Ema): `first` of every slot is the average.
///
/// # Safety
/// The addresses in the list are valid.
///
/// # Errors
/// If the launch fails.
pub(super) unsafe fn ema<R: Runtime>(rt: &R, list: &List, decay: f64) -> Result<()> {
    let params = EmaParams { list: list.into(), decay: decay as f32, one_minus_decay: (1.0 - decay) as f32 };
    // Reads weight and average, writes the average.
    let work = Work::new(3 * 4 * list.elements, 3 * list.elements);
    // SAFETY: the caller guarantees the addresses.
    unsafe { rt.launch(&launch("optim_ema", list.num_chunks, 0, work, params)) }
}

/// Norm of all gradients together, and the factor that clips it.
pub(super) struct GradientNorm<B> {
    /// One f64.
    pub(super) norm: B,
    /// One f32: [`clip_scale`](crate::optim::clip_scale).
    pub(super) scale: B,
}

/// Launches the norm and the factor, which stay on the device.
///
/// # Safety
/// The addresses in the list are valid.
///
/// # Errors
/// If a launch fails or the device has no memory left.
pub(super) unsafe fn gradient_norm<R: Runtime>(rt: &R, list: &List, max_norm: f64) -> Result<GradientNorm<R::Buffer>> {
    let partial_bytes = list.num_chunks * 8;
    let partial = rt.alloc(partial_bytes)?;
    let out = GradientNorm { norm: rt.alloc(8)?, scale: rt.alloc(4)? };
    let params = NormParams {
        list: list.into(),
        partial: partial.address(),
        norm: out.norm.address(),
        scale: out.scale.address(),
        max_norm,
    };
    // SAFETY: the caller guarantees the addresses.
    unsafe {
        rt.launch(&launch(
            "optim_norm_partial",
            list.num_chunks,
            THREADS * 8,
            Work::new(list.elements * 4 + partial_bytes, 2 * list.elements),
            params,
        ))?;
        rt.launch(&launch("optim_norm_finish", 1, THREADS * 8, Work::new(partial_bytes, list.num_chunks), params))?;
    }
    Ok(out)
}
