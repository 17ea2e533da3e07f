//! Calls from Python into the crate: without the interpreter's lock, stopped by Ctrl-C, errors and panics as exceptions.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use msd_data::{Error, Memory, Result};
use pyo3::exceptions::{PyFileNotFoundError, PyMemoryError, PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pythonize::{depythonize, pythonize};
use rayon::ThreadPoolBuilder;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Process that imported the module.
static IMPORTED_BY: OnceLock<u32> = OnceLock::new();

pub(crate) fn remember_process() {
    IMPORTED_BY.get_or_init(process::id);
}

/// Exception for an error of the crate, with its message.
pub(crate) fn exception(error: &Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::Io { path, cause } => match cause.raw_os_error() {
            // With a number Python chooses the class, such as FileNotFoundError, and forms the message.
            Some(code) => {
                let text = io::Error::from_raw_os_error(code).to_string();
                let text = text.split(" (os error").next().unwrap_or_default().to_owned();
                PyOSError::new_err((code, text, path.clone()))
            }
            None => PyOSError::new_err(message),
        },
        Error::NotADataset { .. } | Error::MissingFile { .. } => PyFileNotFoundError::new_err(message),
        Error::Memory { .. } => PyMemoryError::new_err(message),
        Error::WorkerPanic { .. } => PyRuntimeError::new_err(message),
        _ => PyValueError::new_err(message),
    }
}

/// Does work of at most seconds without the interpreter's lock.
pub(crate) fn released<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    py.detach(|| caught(work)).map_err(|error| exception(&error))
}

/// Does work on many cases in a thread of its own. This one waits for signals: an exception of a handler, such as
/// `KeyboardInterrupt`, ends the work before its next case.
pub(crate) fn interruptible<T: Send>(
    py: Python<'_>,
    memory: Memory,
    work: impl FnOnce(Memory) -> Result<T> + Send,
) -> PyResult<T> {
    // One flag per thread that calls, for as long as the process lives.
    thread_local! {
        static STOP: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
    }
    let stop = STOP.with(|stop| *stop);
    stop.store(false, Ordering::Relaxed);
    let (sender, mut receiver) = mpsc::channel();
    thread::scope(|scope| {
        let send = move || {
            // The receiver waits until the work is done.
            let _ = sender.send(caught(|| work(memory.stopped_by(stop))));
        };
        thread::Builder::new().spawn_scoped(scope, send)?;
        let mut raised = None;
        loop {
            let receiver = &mut receiver;
            match py.detach(move || receiver.recv_timeout(Duration::from_millis(50))) {
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    if let Err(exception) = py.check_signals() {
                        stop.store(true, Ordering::Relaxed);
                        raised = Some(exception);
                    }
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    break Err(PyRuntimeError::new_err("a thread ended early"));
                }
                Ok(result) => break raised.map_or(result.map_err(|error| exception(&error)), Err),
            }
        }
    })
}

/// Result of work, or its panic as an error. Threads of rayon do not survive a fork: a forked process works in one thread.
fn caught<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let is_forked = IMPORTED_BY.get().is_some_and(|id| *id != process::id());
    let pooled = || match is_forked.then(|| ThreadPoolBuilder::new().num_threads(1).build()) {
        Some(Ok(pool)) => pool.install(work),
        Some(Err(error)) => Err(Error::Invalid(format!("no thread could be started: {error}"))),
        None => work(),
    };
    catch_unwind(AssertUnwindSafe(pooled))
        .unwrap_or_else(|panic| Err(Error::WorkerPanic { message: panic_message(panic.as_ref()) }))
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

/// Limit of `gigabytes`, by default the memory that Linux calls available; none on other systems.
pub(crate) fn memory(gigabytes: Option<f64>) -> PyResult<Memory> {
    if let Some(gigabytes) = gigabytes {
        if gigabytes > 0.0 {
            return Ok(Memory::bytes((gigabytes * 1e9) as u64));
        }
        return Err(PyValueError::new_err(format!("memory_gb is {gigabytes}; expected a positive number")));
    }
    let table = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = table.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB"));
    let kib: Option<u64> = available.and_then(|kib| kib.parse().ok());
    Ok(kib.map_or_else(Memory::unlimited, |kib| Memory::bytes(kib << 10)))
}

/// Python's form of a value: dictionaries, tuples for arrays of fixed length, floats that may be NaN or infinite.
pub(crate) fn to_python<'py>(py: Python<'py>, value: &impl Serialize) -> PyResult<Bound<'py, PyAny>> {
    Ok(pythonize(py, value)?)
}

/// Value of a dictionary that is called `name` in errors.
pub(crate) fn from_python<T: DeserializeOwned>(name: &str, value: &Bound<'_, PyAny>) -> PyResult<T> {
    depythonize(value).map_err(|error| PyValueError::new_err(format!("{name}: {}", one_line(&error.to_string()))))
}

/// Plan of a dictionary, checked as one read from a file.
pub(crate) fn plan_of(value: &Bound<'_, PyAny>) -> PyResult<msd_data::Plan> {
    let plan: msd_data::Plan = from_python("plan", value)?;
    plan.check().map_err(|problem| PyValueError::new_err(format!("plan: {problem}")))?;
    Ok(plan)
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
