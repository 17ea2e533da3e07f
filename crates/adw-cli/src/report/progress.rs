//! Progress of long work: a bar on a terminal, JSON lines for programs, plain lines in a log file.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::Value;

/// Progress of one piece of work.
pub(crate) struct Progress {
    bar: ProgressBar,
    kind: Kind,
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
            (false, true) => Kind::Bar,
            (false, false) => Kind::Lines,
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
        Self { bar, kind }
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
                let eta = self.bar.eta().as_secs();
                eprintln!("{} {}, {}:{:02} left", self.bar.prefix(), line(), eta / 60, eta % 60);
            }
        }
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

/// Prints a line on stderr.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints text on stdout. Errors are ignored: a closed pipe must not end a training.
pub(crate) fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
