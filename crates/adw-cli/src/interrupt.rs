//! Signals that end the program: a training saves its state at its next step, all other work ends at once.

#[cfg(unix)]
use std::{
    fs,
    io::{IsTerminal, Read},
    sync::mpsc,
    thread,
    time::Duration,
};
use std::{
    io::{self, Write},
    ops::ControlFlow,
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI32, Ordering::SeqCst},
    },
};

use adw_search::Stop;

#[cfg(unix)]
use crate::report::progress::note;
use crate::{failure::program, report::plain::shell_word};

/// Number of the first signal that arrived, else 0.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
/// True while work runs that calls [`stop`] at each step, or that waits for children.
static STOPS_ITSELF: AtomicBool = AtomicBool::new(false);
/// True once the process is about to end on its own.
static ENDS: AtomicBool = AtomicBool::new(false);
/// True if the same command continues the work.
static REPEATS: AtomicBool = AtomicBool::new(false);
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
        // The keyboard's signals go to parent and child; the parent passes on what is meant for the child.
        let passed_over = if is_child() { vec![SIGXFSZ, SIGINT, SIGHUP] } else { vec![SIGXFSZ] };
        let receive_all = move || signals.forever().filter(|signal| !passed_over.contains(signal)).for_each(receive);
        let _ = thread::Builder::new().name("signals".to_owned()).spawn(receive_all);
        if is_child() {
            let _ = thread::Builder::new().name("parent".to_owned()).spawn(follow_parent);
        }
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

/// Variable of the environment that makes a process a child: see [`start_child`].
const CHILD: &str = "ADW_SIGNALS_ON_STDIN";

/// Returns true if this process was started by [`start_child`].
pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Pipes to the children of this process that run.
static CHILDREN: Mutex<Vec<(u32, ChildStdin)>> = Mutex::new(Vec::new());

fn children() -> MutexGuard<'static, Vec<(u32, ChildStdin)>> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts this program again, with other arguments. The child gets the numbers of signals on its standard input, and ends when
/// that is closed: with this process, however that ends.
///
/// # Errors
/// The system starts no more processes.
pub(crate) fn start_child(command: &mut Command) -> io::Result<Child> {
    let mut child = command.env(CHILD, "1").stdin(Stdio::piped()).spawn()?;
    if let Some(pipe) = child.stdin.take() {
        let mut all = children();
        all.push((child.id(), pipe));
        // A signal that has arrived meanwhile.
        pass_on(SIGNAL.load(SeqCst), all.last_mut());
    }
    Ok(child)
}

/// Waits for a child's end.
///
/// # Errors
/// The system's error.
pub(crate) fn wait_for_child(mut child: Child) -> io::Result<ExitStatus> {
    let status = child.wait();
    children().retain(|(id, _)| *id != child.id());
    status
}

fn pass_on<'a>(signal: i32, children: impl IntoIterator<Item = &'a mut (u32, ChildStdin)>) {
    if let (1.., Ok(byte)) = (signal, u8::try_from(signal)) {
        // One that has ended takes no signal.
        children.into_iter().for_each(|(_, pipe)| drop(pipe.write_all(&[byte])));
    }
}

/// Receives the signals that the parent passes on, and ends with the parent.
#[cfg(unix)]
fn follow_parent() {
    for byte in io::stdin().lock().bytes() {
        let Ok(signal) = byte else { break };
        receive(signal.into());
    }
    end(signal_hook::consts::SIGTERM, || ());
}

/// Number of the first signal that has arrived, else none.
pub(crate) fn signal() -> Option<i32> {
    Some(SIGNAL.load(SeqCst)).filter(|signal| *signal != 0)
}

#[cfg(unix)]
fn receive(signal: i32) {
    if ENDS.load(SeqCst) {
        return;
    }
    let is_first = SIGNAL.compare_exchange(0, signal, SeqCst, SeqCst).is_ok();
    pass_on(signal, children().iter_mut());
    if !STOPS_ITSELF.load(SeqCst) || (!is_first && signal == signal_hook::consts::SIGINT) {
        end(signal, || ());
    }
    if is_first && !is_child() && io::stderr().is_terminal() {
        // The terminal has printed ^C.
        note("");
        note("saving a checkpoint after this step; Ctrl-C ends at once");
    }
}

/// Removes temporary files, prints the command that continues the work, calls `last`, and ends the process with 128 + `signal`.
#[cfg(unix)]
fn end(signal: i32, last: impl FnOnce()) -> ! {
    let _removed = adw_files::remove_own();
    let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
    let command = CONTINUATION.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let line = match command {
        Some(command) => format!("interrupted by {name}; to continue: {command}"),
        None => format!("interrupted by {name}; to go on, give the same command again"),
    };
    if is_child() {
        signal_hook::low_level::exit(128 + signal);
    }
    // Nobody may be reading a full pipe.
    let (written, wait) = mpsc::channel();
    // Without a thread to wait for, the message is left out.
    let _ = thread::Builder::new().spawn(move || {
        note(&line);
        written.send(())
    });
    let _ = wait.recv_timeout(Duration::from_secs(1));
    last();
    signal_hook::low_level::exit(128 + signal)
}

/// Ends the process as a signal wants that has arrived while work ran that stops itself.
pub(crate) fn end_if_interrupted() {
    end_if_interrupted_after(|| ());
}

/// Ends the process as [`end_if_interrupted`] does, with a call of `last` when all is printed.
pub(crate) fn end_if_interrupted_after(last: impl FnOnce()) {
    #[cfg(unix)]
    match SIGNAL.load(SeqCst) {
        0 => {}
        signal => end(signal, last),
    }
}

/// Ignores signals from now on, because the process is about to end.
pub(crate) fn ignore_signals() {
    ENDS.store(true, SeqCst);
}

/// Takes over a signal that has arrived at another rank of this search or training.
pub(crate) fn adopt(signal: i32) {
    let _ = SIGNAL.compare_exchange(0, signal, SeqCst, SeqCst);
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
pub(crate) fn resumes(run: Option<(&Path, Option<String>)>) {
    if REPEATS.load(SeqCst) {
        return;
    }
    let arguments = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned());
    let command = continuation(&program(), arguments.collect(), run);
    *CONTINUATION.lock().unwrap_or_else(PoisonError::into_inner) = Some(command);
}

/// Remembers that this process's command line continues its work as it is.
pub(crate) fn is_repeated() {
    REPEATS.store(true, SeqCst);
}

fn continuation(program: &str, mut arguments: Vec<String>, run: Option<(&Path, Option<String>)>) -> String {
    let (root, fold) = run.map_or((None, None), |(root, fold)| (Some(root.display().to_string()), fold));
    for (option, value) in [("--run", root), ("--fold", fold), ("--resume", Some(String::new()))] {
        let is_option = |argument: &String| argument.split('=').next() == Some(option);
        if let Some(value) = value
            && !arguments.iter().any(is_option)
        {
            arguments.extend([option.to_owned(), value].into_iter().filter(|text| !text.is_empty()));
        }
    }
    arguments.iter().fold(program.to_owned(), |command, argument| command + " " + &shell_word(argument))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_that_continues_names_run_and_fold_once() {
        let command = |line: &[&str], run: Option<(&Path, Option<String>)>| {
            continuation("adw", line.iter().map(ToString::to_string).collect(), run)
        };
        let run = Some((Path::new("runs/a b"), Some("2".to_owned())));
        assert_eq!(
            command(&["search", "heart", "--set", "search.cost={unit=\"macs\"}"], run.clone()),
            r#"adw search heart --set 'search.cost={unit="macs"}' --run 'runs/a b' --fold 2 --resume"#
        );
        let whole = ["search", "--run=r", "--resume", "--fold", "3"];
        assert_eq!(command(&whole, run), format!("adw {}", whole.join(" ")));
        assert_eq!(command(&["predict", "--input", "it's"], None), r"adw predict --input 'it'\''s' --resume");
    }
}
