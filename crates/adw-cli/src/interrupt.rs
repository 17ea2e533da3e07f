//! Signals that end the program: a training saves its state at its next step, all other work ends at once.

#[cfg(unix)]
use std::{fs, io, io::IsTerminal, sync::mpsc, thread, time::Duration};
use std::{
    ops::ControlFlow,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI32, Ordering::SeqCst},
    },
};

use adw_search::Stop;

use crate::failure::program;
#[cfg(unix)]
use crate::report::progress::note;

/// Number of the first signal that arrived, else 0.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
/// True while work runs that asks [`stop`] at each step.
static STOPS_ITSELF: AtomicBool = AtomicBool::new(false);
/// Command that continues the work; none if it begins anew.
static CONTINUATION: Mutex<Option<String>> = Mutex::new(None);

/// Catches SIGHUP, SIGINT, SIGTERM and SIGUSR1 from now on, and SIGXFSZ, without which a write beyond `ulimit -f` fails
/// instead of ending the process. Does nothing on systems without signals.
pub(crate) fn catch_signals() {
    #[cfg(unix)]
    {
        use signal_hook::{
            consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXFSZ},
            iterator::Signals,
        };
        let mut caught = vec![SIGINT, SIGTERM, SIGUSR1, SIGXFSZ];
        if !is_ignored(SIGHUP) {
            caught.push(SIGHUP);
        }
        // Without free file descriptors or threads, the work itself will fail with a message.
        let Ok(mut signals) = Signals::new(caught) else { return };
        let receive_all = move || signals.forever().filter(|&signal| signal != SIGXFSZ).for_each(receive);
        let _ = thread::Builder::new().name("signals".to_owned()).spawn(receive_all);
    }
}

/// Returns true if the parent process had the signal ignored, as `nohup` does with SIGHUP, or if the system does not say.
/// (Shells also ignore SIGINT for what a script starts in the background, but a SIGINT sent to that is meant.)
#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_none_or(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(unix)]
fn receive(signal: i32) {
    let is_first = SIGNAL.compare_exchange(0, signal, SeqCst, SeqCst).is_ok();
    if !STOPS_ITSELF.load(SeqCst) || (!is_first && signal == signal_hook::consts::SIGINT) {
        end(signal);
    }
    if is_first && io::stderr().is_terminal() {
        // The terminal has printed ^C.
        note("");
        note("saving a checkpoint after this step; Ctrl-C ends at once");
    }
}

/// Removes temporary files, prints the command that continues the work, and ends the process with 128 + `signal`.
#[cfg(unix)]
fn end(signal: i32) -> ! {
    let _removed = adw_files::remove_own();
    let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
    let command = CONTINUATION.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let line = match command {
        Some(command) => format!("interrupted by {name}; to continue: {command}"),
        None => format!("interrupted by {name}; to go on, give the same command again"),
    };
    // Nobody may be reading a full pipe.
    let (written, wait) = mpsc::channel();
    thread::spawn(move || {
        note(&line);
        written.send(())
    });
    let _ = wait.recv_timeout(Duration::from_secs(1));
    signal_hook::low_level::exit(128 + signal)
}

/// Ends the process as a signal wants that has arrived while work ran that stops itself.
pub(crate) fn end_if_interrupted() {
    #[cfg(unix)]
    match SIGNAL.load(SeqCst) {
        0 => {}
        signal => end(signal),
    }
}

/// Runs a training whose callback returns [`stop`]: until it returns, signals do not end the process.
pub(crate) fn stopping_itself<T>(training: impl FnOnce() -> T) -> T {
    STOPS_ITSELF.store(true, SeqCst);
    let result = training();
    STOPS_ITSELF.store(false, SeqCst);
    result
}

/// Stops a training once a signal has arrived.
pub(crate) fn stop() -> ControlFlow<Stop> {
    if SIGNAL.load(SeqCst) == 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(Stop::AfterSaving) }
}

/// Remembers that this process's command line with `--resume` continues its work from now on, if need be with the run and,
/// where it is not the run's, the fold.
pub(crate) fn resumes(run: Option<(&Path, Option<usize>)>) {
    let arguments = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned());
    let command = continuation(&program(), arguments.collect(), run);
    *CONTINUATION.lock().unwrap_or_else(PoisonError::into_inner) = Some(command);
}

fn continuation(program: &str, mut arguments: Vec<String>, run: Option<(&Path, Option<usize>)>) -> String {
    let (root, fold) = run.map_or((None, None), |(root, fold)| (Some(root.display().to_string()), fold));
    let fold = fold.map(|fold| fold.to_string());
    for (option, value) in [("--run", root), ("--fold", fold), ("--resume", Some(String::new()))] {
        let is_option = |argument: &String| argument.split('=').next() == Some(option);
        if let Some(value) = value
            && !arguments.iter().any(is_option)
        {
            arguments.extend([option.to_owned(), value].into_iter().filter(|text| !text.is_empty()));
        }
    }
    arguments.iter().fold(program.to_owned(), |command, argument| command + " " + &quoted(argument))
}

/// Argument as a POSIX shell reads it.
fn quoted(argument: &str) -> String {
    let is_plain = |c: char| c.is_alphanumeric() || "-_=+./,:@%".contains(c);
    if !argument.is_empty() && argument.chars().all(is_plain) {
        return argument.to_owned();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_that_continues_names_run_and_fold_once() {
        let command = |line: &[&str], run| continuation("adw", line.iter().map(ToString::to_string).collect(), run);
        let run = Some((Path::new("runs/a b"), Some(2)));
        assert_eq!(
            command(&["search", "heart", "--set", "search.cost={unit=\"macs\"}"], run),
            r#"adw search heart --set 'search.cost={unit="macs"}' --run 'runs/a b' --fold 2 --resume"#
        );
        let whole = ["search", "--run=r", "--resume", "--fold", "3"];
        assert_eq!(command(&whole, run), format!("adw {}", whole.join(" ")));
        assert_eq!(command(&["predict", "--input", "it's"], None), r"adw predict --input 'it'\''s' --resume");
    }
}
