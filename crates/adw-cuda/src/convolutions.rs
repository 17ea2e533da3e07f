//! Convolutions on a device: by cuDNN or by kernels of the workspace, whichever is faster for a layer's shape.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use candle_core::cuda_backend::cudarc::driver::sys::CUevent_flags;

use crate::choice::{Table, Times, cache_folder};
use crate::cudnn::{self, Algorithm, Convolution, Cudnn, Pass};
use crate::device::{CudaRuntime, driver_says};
use crate::{Address, Buffer, Error, Result, Runtime};

/// How convolutions are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Convolutions {
    /// The way that is fastest for a layer's shape: measured when the shape is met for the first time on a kind of device,
    /// then taken from a file in [`cache_folder`].
    #[default]
    Measured,
    /// By kernels of the workspace.
    Own,
    /// By cuDNN, with the first of the algorithms that works, in the order of what it expects of them; by kernels of the
    /// workspace where none does.
    Cudnn,
}

/// A pass of a layer: all that its time depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Job {
    /// Which pass.
    pub pass: Pass,
    /// Of what.
    pub convolution: Convolution,
    /// How the operands lie.
    pub operands: Operands,
}

/// How a pass finds its operands, and what it leaves beside its result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Operands {
    /// Channels of the maps that lie side by side; 0 if there is only one.
    pub channels: [usize; 2],
    /// Whether each is normalised while it is read.
    pub normalised: [bool; 2],
    /// Whether the gradient of the output is.
    pub gradient_normalised: bool,
    /// Whether moments of the result are taken.
    pub moments: bool,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let o = &self.operands;
        write!(f, "{:?} of {}", self.pass, self.convolution)?;
        for (channels, normalised) in o.channels.into_iter().zip(o.normalised) {
            if channels > 0 {
                let how = if normalised { " normalised" } else { "" };
                write!(f, ", {channels}{how}")?;
            }
        }
        if o.gradient_normalised {
            f.write_str(", gradient normalised")?;
        }
        if o.moments {
            f.write_str(", moments")?;
        }
        Ok(())
    }
}

/// An algorithm of cuDNN, or none: kernels of the workspace.
type Way = Option<Algorithm>;

fn name(way: Way) -> String {
    way.map_or("own".into(), |a| format!("cudnn {}", a.number))
}

/// Algorithms of cuDNN that are tried.
const TRIED: usize = 3;
/// Runs between two readings of the clock; how many readings.
const REPEATS: usize = 5;
const ROUNDS: usize = 3;
/// Memory whose filling keeps the device busy; more than its second-level cache.
const FILLER_BYTES: usize = 64 << 20;

/// Of a runtime: cuDNN, and what was chosen.
#[derive(Default)]
pub(crate) struct State {
    how: Convolutions,
    tell: Option<fn(&str)>,
    /// Whether it was told that the table grows, and that it cannot be written: once each is enough.
    told: [bool; 2],
    /// None before its first use, and if it cannot be used.
    cudnn: Option<Cudnn>,
    cudnn_was_tried: bool,
    table: Option<Table>,
    chosen: HashMap<Job, Way>,
    /// Seconds that the device takes longer than the host to fill memory; 0 if it does not.
    filler_lead: Option<f64>,
}

/// What a runtime has of this.
pub(crate) type Shared = Mutex<State>;

/// A pass by cuDNN.
pub struct Call<'a> {
    rt: &'a CudaRuntime,
    pass: Pass,
    convolution: &'a Convolution,
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
        let cudnn = state.cudnn(self.rt);
        let cudnn = cudnn.ok_or_else(|| fail("there is no cuDNN".into()))?;
        // SAFETY: the workspace is as large as the algorithm wants; the caller vouches for the operands.
        unsafe { cudnn.run(self.pass, self.convolution, self.algorithm, operands, space) }
            .map_err(|e| fail(cudnn::says(e)))?;
        drop(state);
        self.rt.count(kernel, &self.convolution.work());
        Ok(())
    }
}

impl State {
    fn tell(&self, what: &str) {
        if let Some(tell) = self.tell {
            tell(what);
        }
    }

    fn cudnn(&mut self, rt: &CudaRuntime) -> Option<&mut Cudnn> {
        if !std::mem::replace(&mut self.cudnn_was_tried, true) {
            match Cudnn::new(&rt.device().cuda_stream()) {
                Ok(cudnn) => self.cudnn = Some(cudnn),
                Err(error) => {
                    let error = cudnn::says(error);
                    self.tell(&format!("warning: cuDNN cannot be used, convolutions go without it: {error}"));
                }
            }
        }
        self.cudnn.as_mut()
    }

    /// The workspace's own, then cuDNN's in its order.
    fn ways(&mut self, rt: &CudaRuntime, job: &Job) -> Vec<Way> {
        let listed = self.cudnn(rt).map(|cudnn| cudnn.algorithms(job.pass, &job.convolution));
        let algorithms = match listed {
            Some(Ok(algorithms)) => algorithms,
            Some(Err(error)) if self.how == Convolutions::Cudnn => {
                let error = cudnn::says(error);
                self.tell(&format!("warning: cuDNN does not do {job}: {error}"));
                Vec::new()
            }
            _ => Vec::new(),
        };
        let tried = algorithms.into_iter().take(TRIED).map(Some);
        std::iter::once(None).chain(tried).collect()
    }

    fn table(&mut self, rt: &CudaRuntime, sources: &[&str]) -> &mut Table {
        self.table.get_or_insert_with(|| {
            let device = crate::device::describe(rt.device()).map_or("unknown".into(), |d| d.0);
            let cudnn = format!("cuDNN {}", cudnn::version());
            let mut hasher = DefaultHasher::new();
            let own = [include_str!("convolutions.rs"), include_str!("cudnn.rs")];
            (sources, own).hash(&mut hasher);
            let sources = format!("sources {:016x}", hasher.finish());
            Table::open(cache_folder().as_deref(), &device, &[&cudnn, &sources])
        })
    }
}

/// Of the ways there are today, the one with the least time.
fn fastest(times: &Times, ways: &[Way]) -> Way {
    let time = |way: &Way| times.get(&name(*way)).copied().unwrap_or(f64::INFINITY);
    let best = ways.iter().min_by(|a, b| time(a).total_cmp(&time(b)));
    best.copied().flatten()
}

/// Whether another way may work where one ended so.
fn is_of_the_way(error: &Error) -> bool {
    matches!(error, Error::Launch { .. } | Error::OutOfMemory { .. })
}

impl CudaRuntime {
    /// Sets how convolutions are done from now on, and whom to tell what stands in the way.
    pub fn set_convolutions(&self, how: Convolutions, tell: fn(&str)) {
        let mut state = self.convolutions();
        (state.how, state.tell) = (how, Some(tell));
        state.chosen.clear();
    }

    /// Does a pass of a convolution by cuDNN's call or, without one, by kernels, whose `sources` (times in the table hold for
    /// them only) are given. `run` may be called several times, to measure.
    ///
    /// # Errors
    /// Those of `run`, by kernels; where cuDNN's way fails they take over for good.
    pub fn convolve<T>(
        &self,
        job: &Job,
        sources: &[&str],
        mut run: impl FnMut(Option<&Call<'_>>) -> Result<T>,
    ) -> Result<T> {
        let mut by = |way: Way| {
            let call = way.map(|algorithm| Call { rt: self, pass: job.pass, convolution: &job.convolution, algorithm });
            run(call.as_ref())
        };
        let state = self.convolutions();
        let known = match state.how {
            Convolutions::Own => Some(None),
            _ => state.chosen.get(job).copied(),
        };
        let how = state.how;
        drop(state);
        let preferred = match (known, how) {
            (Some(None), _) => return by(None),
            (Some(way), _) => vec![way, None],
            (None, Convolutions::Measured) => vec![self.measured(job, sources, &mut by)?, None],
            (None, _) => {
                self.bind()?;
                let mut ways = self.convolutions().ways(self, job);
                ways.rotate_left(1);
                ways
            }
        };
        let (mut taken, mut outcome) = (preferred[0], by(preferred[0]));
        for &way in &preferred[1..] {
            let Err(error) = &outcome else { break };
            if taken.is_none() || !is_of_the_way(error) {
                break;
            }
            let (from, to) = (name(taken), name(way));
            let what = format!("warning: {job} by {from}: {error}; from now on by {to}");
            self.convolutions().tell(&what);
            (taken, outcome) = (way, by(way));
        }
        if known != Some(taken) {
            self.convolutions().chosen.insert(*job, taken);
        }
        outcome
    }

    /// The fastest way by the table, which gets times for the job if it has none.
    fn measured<T>(&self, job: &Job, sources: &[&str], by: &mut impl FnMut(Way) -> Result<T>) -> Result<Way> {
        self.bind()?;
        let work = job.to_string();
        let mut state = self.convolutions();
        let ways = state.ways(self, job);
        if ways.len() == 1 {
            return Ok(None);
        }
        if let Some(times) = state.table(self, sources).times(&work) {
            return Ok(fastest(times, &ways));
        }
        if !std::mem::replace(&mut state.told[0], true) {
            let file = state.table(self, sources).file();
            let file = file.map_or(String::new(), |f| format!(", into {}", f.display()));
            state.tell(&format!("note: timing convolutions on this device{file}"));
        }
        drop(state);
        // Nothing is recorded meanwhile.
        let recorder = self.record(None);
        let measured = self.measure(&ways, by);
        self.record(recorder);
        let (times, whole) = measured?;
        let mut state = self.convolutions();
        let table = state.table(self, sources);
        if !whole {
            table.remember(&work, times);
        } else if let Err(error) = table.insert(&work, times) {
            let file = table.file().unwrap_or(Path::new("")).display();
            let what = format!(
                "warning: {file} cannot be written ({error}): convolutions are measured again next time, and may be done otherwise then"
            );
            if !std::mem::replace(&mut state.told[1], true) {
                state.tell(&what);
            }
        }
        let times = state.table(self, sources).times(&work);
        Ok(times.and_then(|times| fastest(times, &ways)))
    }

    /// The least times of several, in turns, once memory has been had and kernels loaded; and whether all ways had the memory
    /// that they need. A way that fails has none.
    fn measure<T>(&self, ways: &[Way], by: &mut impl FnMut(Way) -> Result<T>) -> Result<(Times, bool)> {
        let (mut times, mut whole) = (Times::new(), true);
        let mut alive = ways.to_vec();
        for round in 0..=ROUNDS {
            for way in alive.clone() {
                let mut run = || by(way).map(drop);
                let measured = if round == 0 { run().map(|()| None) } else { self.time(&mut run).map(Some) };
                match measured {
                    Ok(None) => {}
                    Ok(Some((seconds, sure))) => {
                        whole &= sure;
                        let least = times.entry(name(way)).or_insert(f64::INFINITY);
                        *least = least.min(seconds * 1e6);
                    }
                    Err(error) if way.is_some() && is_of_the_way(&error) => {
                        // What is refused at once always will be; what fails later, or for want of memory, may work yet.
                        whole &= round == 0 && matches!(error, Error::Launch { .. });
                        alive.retain(|&other| other != way);
                        times.remove(&name(way));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok((times, whole))
    }

    /// Seconds that the device takes for one run, even where the host takes longer to queue it; and whether there was the
    /// memory to tell.
    fn time(&self, work: &mut impl FnMut() -> Result<()>) -> Result<(f64, bool)> {
        let reading = self.reading(REPEATS, work)?;
        if reading.host < 0.8 * reading.device {
            return Ok((reading.device, true));
        }
        // As in a training, the device has something to do until all is queued.
        let Some(lead) = self.filler_lead()? else {
            return Ok((reading.device, false));
        };
        if lead == 0.0 {
            return Ok((reading.device, true));
        }
        let Ok(mut filler) = self.alloc(FILLER_BYTES) else {
            return Ok((reading.device, false));
        };
        let fills = (1.5 * reading.host * REPEATS as f64 / lead).ceil() as usize;
        for _ in 0..fills.min(1000) {
            self.clear(&mut filler)?;
        }
        drop(filler);
        Ok((self.reading(REPEATS, work)?.device, true))
    }

    fn reading(&self, repeats: usize, work: &mut impl FnMut() -> Result<()>) -> Result<Reading> {
        let stream = self.device().cuda_stream();
        let say = |e| Error::Lost(driver_says(e));
        let now = || {
            let flags = Some(CUevent_flags::CU_EVENT_DEFAULT);
            stream.record_event(flags).map_err(say)
        };
        let (begin, start) = (now()?, Instant::now());
        for _ in 0..repeats {
            work()?;
        }
        let (host, end) = (start.elapsed().as_secs_f64(), now()?);
        let device = f64::from(begin.elapsed_ms(&end).map_err(say)?) * 1e-3;
        let each = 1.0 / repeats as f64;
        Ok(Reading { device: device * each, host: host * each })
    }

    /// Seconds that the device takes longer than the host to fill memory; none if there is no memory.
    fn filler_lead(&self) -> Result<Option<f64>> {
        if let Some(known) = self.convolutions().filler_lead {
            return Ok(Some(known));
        }
        let Ok(mut memory) = self.alloc(FILLER_BYTES) else {
            return Ok(None);
        };
        let mut clear = || self.clear(&mut memory);
        self.reading(1, &mut clear)?;
        let Reading { device, host } = self.reading(20, &mut clear)?;
        let lead = if host < 0.8 * device { device - host } else { 0.0 };
        self.convolutions().filler_lead = Some(lead);
        Ok(Some(lead))
    }

    /// Makes the device's context that of this thread, as cuDNN expects.
    fn bind(&self) -> Result<()> {
        let stream = self.device().cuda_stream();
        let bound = stream.context().bind_to_thread();
        bound.map_err(|e| Error::Lost(driver_says(e)))
    }
}

/// Seconds of one run: of the device, and of the host to queue it.
struct Reading {
    device: f64,
    host: f64,
}
