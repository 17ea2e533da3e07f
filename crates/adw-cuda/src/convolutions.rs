//! Convolutions on a device: by cuDNN or by kernels of the workspace, whichever is faster for a layer's shape.

use std::cell::OnceCell;
use std::path::Path;
use std::sync::Mutex;

use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags;

use crate::choice::{Table, Times, cache_folder};
use crate::cudnn::{self, Algorithm, Convolution, Cudnn, Pass};
use crate::device::{CudaRuntime, driver_says};
use crate::{Address, Buffer, Error, Module, Result, Runtime};

/// How convolutions are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Convolutions {
    /// The way that is fastest for a layer's shape: measured when the shape is met for the first time on a kind of device,
    /// then taken from a file in [`cache_folder`].
    #[default]
    Measured,
    /// By kernels of the workspace.
    Own,
    /// By cuDNN, with the algorithm that it expects to be fastest, wherever it can.
    Cudnn,
}

/// Algorithms of cuDNN that are tried.
const TRIED: usize = 3;
/// Runs between two readings of the clock; how many readings.
const REPEATS: usize = 5;
const ROUNDS: usize = 3;
const OWN: &str = "own";

/// Of a runtime: cuDNN, and the times that were measured.
#[derive(Default)]
pub(crate) struct State {
    how: Convolutions,
    warn: Option<fn(&str)>,
    /// Since its first use; none if it cannot be used.
    cudnn: OnceCell<Option<Cudnn>>,
    table: Option<Table>,
}

/// A pass by cuDNN.
pub struct Call<'a> {
    rt: &'a CudaRuntime,
    pass: Pass,
    convolution: Convolution,
    algorithm: Algorithm,
}

impl Call<'_> {
    /// Queues the pass for `x`, `w` and `y`, as [`cudnn`] lays them out.
    ///
    /// # Safety
    /// The addresses are those of maps and weights of the convolution's shapes, good until the pass has run.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] for the algorithm's workspace; [`Error::Launch`].
    pub unsafe fn run(&self, operands: [Address; 3]) -> Result<()> {
        let kernel = match self.pass {
            Pass::Forward => "cudnn_forward",
            Pass::GradInput => "cudnn_grad_input",
            Pass::GradWeight => "cudnn_grad_weight",
        };
        let fail = |cause: String| Error::Launch { kernel, cause };
        let workspace = match self.algorithm.workspace {
            0 => None,
            bytes => Some(self.rt.alloc(bytes)?),
        };
        let space = workspace.as_ref().map_or(Address::NONE, Buffer::address);
        let mut state = self.rt.convolutions();
        let cudnn = state
            .cudnn(self.rt)
            .ok_or_else(|| fail("cuDNN is gone".into()))?;
        // SAFETY: the workspace is as large as the algorithm wants; the caller vouches for the operands.
        unsafe {
            cudnn.run(
                self.pass,
                &self.convolution,
                self.algorithm,
                operands,
                space,
            )
        }
        .map_err(|e| fail(e.to_string()))?;
        drop(state);
        self.rt.count(kernel, &self.convolution.work());
        Ok(())
    }
}

impl State {
    fn cudnn(&mut self, rt: &CudaRuntime) -> Option<&mut Cudnn> {
        self.cudnn.get_or_init(|| {
            let opened = Cudnn::new(&rt.device().cuda_stream());
            if let (Err(error), Some(warn)) = (&opened, self.warn) {
                warn(&format!(
                    "cuDNN cannot be used, convolutions go without it: {error}"
                ));
            }
            opened.ok()
        });
        self.cudnn.get_mut()?.as_mut()
    }

    fn algorithms(&mut self, rt: &CudaRuntime, pass: Pass, c: &Convolution) -> Vec<Algorithm> {
        // What it cannot do, and whether it says so by an error or an empty list, does not matter.
        let found = self
            .cudnn(rt)
            .and_then(|cudnn| cudnn.algorithms(pass, c).ok());
        found.unwrap_or_default()
    }

    fn table(&mut self, rt: &CudaRuntime, own: Module) -> &mut Table {
        self.table.get_or_insert_with(|| {
            let device = crate::device::describe(rt.device()).map_or("unknown".into(), |d| d.0);
            let cudnn = format!("cuDNN {}", cudnn::version());
            let own = format!("kernels {}", fingerprint(own));
            Table::open(cache_folder().as_deref(), &device, &[&cudnn, &own])
        })
    }
}

fn fingerprint(module: Module) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (module.source, module.binary).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn name(way: Option<Algorithm>) -> String {
    way.map_or(OWN.into(), |a| format!("cudnn {}", a.number))
}

impl CudaRuntime {
    /// Sets how convolutions are done from now on, and whom to tell what stands in the way.
    pub fn set_convolutions(&self, how: Convolutions, warn: fn(&str)) {
        let mut state = self.convolutions();
        (state.how, state.warn) = (how, Some(warn));
    }

    /// Does a pass of a convolution by cuDNN's call or, without one, by kernels of the module `own`. `operands` says how
    /// the operands lie as far as that matters for the time. `run` may be called several times, to measure.
    ///
    /// # Errors
    /// Those of `run`; but a way that fails while it is measured is only not taken, unless it is the workspace's own.
    pub fn convolve<T>(
        &self,
        pass: Pass,
        convolution: &Convolution,
        operands: &str,
        own: Module,
        mut run: impl FnMut(Option<&Call<'_>>) -> Result<T>,
    ) -> Result<T> {
        let mut by = |way: Option<Algorithm>| {
            let call = way.map(|algorithm| Call {
                rt: self,
                pass,
                convolution: *convolution,
                algorithm,
            });
            run(call.as_ref())
        };
        let mut state = self.convolutions();
        if state.how == Convolutions::Own {
            drop(state);
            return by(None);
        }
        let lost = |e| Error::Lost(driver_says(e));
        let stream = self.device().cuda_stream();
        stream.context().bind_to_thread().map_err(lost)?;
        let algorithms = state.algorithms(self, pass, convolution);
        if state.how == Convolutions::Cudnn || algorithms.is_empty() {
            drop(state);
            return by(algorithms.first().copied());
        }
        let ways = || {
            let tried = algorithms.iter().take(TRIED).map(|&a| Some(a));
            std::iter::once(None).chain(tried)
        };
        let work = format!("{pass:?} of {convolution}, {operands}");
        let known = state.table(self, own).fastest(&work).map(str::to_owned);
        drop(state);
        if let Some(way) = known.and_then(|known| ways().find(|&w| name(w) == known)) {
            return by(way);
        }
        let mut times = Times::new();
        for way in ways() {
            match self.time(|| by(way)) {
                Ok(seconds) => drop(times.insert(name(way), seconds * 1e6)),
                Err(error) if way.is_none() => return Err(error),
                Err(_) => {}
            }
        }
        let mut state = self.convolutions();
        let table = state.table(self, own);
        if let Err(error) = table.insert(&work, times) {
            let file = table.file().unwrap_or(Path::new("")).display();
            let what = format!(
                "{file} cannot be written ({error}): convolutions are measured again next time"
            );
            // Once is enough.
            if let Some(warn) = state.warn.take() {
                warn(&what);
            }
        }
        let fastest = state.table(self, own).fastest(&work).map(str::to_owned);
        drop(state);
        by(ways().find(|&w| Some(name(w)) == fastest).flatten())
    }

    /// The least of several means, once memory has been had and kernels loaded. Nothing is recorded meanwhile.
    fn time<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<f64> {
        let recorder = self.record(None);
        let mut measure = || {
            work()?;
            let mut least = f64::INFINITY;
            for _ in 0..ROUNDS {
                let stream = self.device().cuda_stream();
                let now = || stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
                let say = |e| Error::Lost(driver_says(e));
                let begin = now().map_err(say)?;
                for _ in 0..REPEATS {
                    work()?;
                }
                let end = now().map_err(say)?;
                let milliseconds = begin.elapsed_ms(&end).map_err(say)?;
                least = least.min(f64::from(milliseconds) * 1e-3 / REPEATS as f64);
            }
            Ok(least)
        };
        let measured = measure();
        self.record(recorder);
        measured
    }
}

/// What a runtime has of this.
pub(crate) type Shared = Mutex<State>;
