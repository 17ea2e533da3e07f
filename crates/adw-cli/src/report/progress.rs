//! Progress of long work: a bar on a terminal, JSON lines for programs, plain lines in a log file.

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::Value;

use super::plain::plain;

/// Progress of one piece of work.
pub(crate) struct Progress {
    bar: ProgressBar,
    kind: Kind,
    started: Instant,
    /// Steps that were done before this process.
    done_before: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bar,
    Json,
    Lines,
}

impl Progress {
    /// Starts to report work of `total` steps, of which `done` were done before this process.
    pub(crate) fn new(name: &str, done: u64, total: u64, json: bool) -> Self {
        let kind = match (json, io::stderr().is_terminal()) {
            (true, _) => Kind::Json,
            (false, true) if !MUTE.load(Relaxed) => Kind::Bar,
            (false, _) => Kind::Lines,
        };
        let target = match kind {
            Kind::Bar => ProgressDrawTarget::stderr(),
            Kind::Json | Kind::Lines => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(total), target).with_style(
            ProgressStyle::with_template(
                "{prefix:.bold} [{bar:24}] {percent} % {elapsed} passed, {eta} left\n{wide_msg}",
            )
            .expect("the template is a constant")
            .progress_chars("=> "),
        );
        bar.set_prefix(name.to_owned());
        bar.set_position(done);
        // Steps of an earlier process do not count for the speed.
        bar.reset_eta();
        if kind == Kind::Bar {
            bar.enable_steady_tick(Duration::from_millis(500));
        }
        Self { bar, kind, started: Instant::now(), done_before: done }
    }

    /// Reports that `done` steps are done; `message` gives the latest numbers.
    pub(crate) fn step(&self, done: u64, message: impl FnOnce() -> String) {
        self.bar.set_position(done);
        if self.kind == Kind::Bar {
            self.bar.set_message(message());
        }
    }

    /// Reports a milestone: `event` to programs, `line` to people.
    pub(crate) fn milestone(&self, name: &str, event: &impl Serialize, line: impl FnOnce() -> String) {
        match self.kind {
            Kind::Bar => self.bar.set_message(line()),
            Kind::Json => emit(name, event),
            Kind::Lines => {
                let left = self.seconds_left();
                note(&format!("{} {}, {}:{:02} left", self.bar.prefix(), line(), left / 60, left % 60));
            }
        }
    }

    /// Time left at the mean speed of this process, which a moment of other work does not upset.
    fn seconds_left(&self) -> u64 {
        let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
        let speed = (done - self.done_before.min(done)) as f64 / self.started.elapsed().as_secs_f64();
        if speed > 0.0 { (total.saturating_sub(done) as f64 / speed) as u64 } else { 0 }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Prints a JSON line on stdout: the fields of `event` after `"event": name`.
pub(crate) fn emit(name: &str, event: &impl Serialize) {
    let mut object = serde_json::Map::from_iter([("event".to_owned(), Value::from(name))]);
    match serde_json::to_value(event) {
        Ok(Value::Object(fields)) => object.extend(fields),
        Ok(value) => drop(object.insert("value".to_owned(), value)),
        Err(error) => drop(object.insert("error".to_owned(), error.to_string().into())),
    }
    say(&format!("{}\n", Value::Object(object)));
}

/// True if this process prints nothing.
static MUTE: AtomicBool = AtomicBool::new(false);

/// Sets whether this process prints nothing from now on.
pub(crate) fn mute(mute: bool) {
    MUTE.store(mute, Relaxed);
}

/// Prints a line on stderr, if that can be written to: messages never end the work.
pub(crate) fn note(text: &str) {
    if !MUTE.load(Relaxed) {
        let _ = writeln!(io::stderr(), "{}", plain(text));
    }
}

/// First error of a write to stdout.
static OUTPUT_ERROR: OnceLock<io::Error> = OnceLock::new();

/// Prints text on stdout. After an error the work goes on and nothing more is printed; [`output_error`] returns the error.
pub(crate) fn say(text: &str) {
    print_by(|| io::stdout().write_all(text.as_bytes()));
}

/// Prints on stdout by `write`, as [`say`] does.
pub(crate) fn print_by(write: impl FnOnce() -> io::Result<()>) {
    if OUTPUT_ERROR.get().is_none()
        && !MUTE.load(Relaxed)
        && let Err(error) = write().and_then(|()| io::stdout().flush())
    {
        // An error that another thread has met first is as good.
        let _ = OUTPUT_ERROR.set(error);
    }
}

/// Error that cut the output on stdout; none for a reader that has closed its pipe, because it wanted no more.
pub(crate) fn output_error() -> Option<&'static io::Error> {
    OUTPUT_ERROR.get().filter(|error| error.kind() != io::ErrorKind::BrokenPipe)
}
