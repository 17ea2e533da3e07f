//! A started `adw`, and how it ended.

use std::{
    io::Read,
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// Longest life of a program in the torture: what takes longer hangs.
const PATIENCE: Duration = Duration::from_mins(2);

/// Interval between two looks at a running program.
const POLL: Duration = Duration::from_millis(5);

/// Exit code or signal, and what was printed on stderr.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) code: Option<i32>,
    pub(super) signal: Option<i32>,
    pub(super) stderr: String,
}

impl Ending {
    pub(super) fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// Checks that the program ended with `code` by itself, said so in one `error:` line and did not panic.
    pub(super) fn expect_error(&self, code: i32) -> Result<()> {
        let errors = self.stderr.lines().filter(|line| line.starts_with("error: ")).count();
        if self.code == Some(code) && errors == 1 && !self.stderr.contains("error: internal:") {
            return Ok(());
        }
        bail!("expected exit code {code} and one error line: {}", self.summary());
    }

    /// Ending and the last line of stderr.
    pub(super) fn summary(&self) -> String {
        let last = self.stderr.lines().next_back().unwrap_or("nothing on stderr");
        match (self.code, self.signal) {
            (Some(code), _) => format!("exit code {code}, {last:?}"),
            (None, signal) => format!("signal {}, {last:?}", signal.unwrap_or(0)),
        }
    }
}

/// A program that runs, and the thread that reads its stderr.
pub(super) struct Running {
    child: Child,
    stderr: JoinHandle<Vec<u8>>,
}

impl Running {
    /// Starts a command; its stdout and stderr go to where they are given, else nowhere and into the ending.
    pub(super) fn start(mut command: Command, stdout: Option<Stdio>, stderr: Option<Stdio>) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(stdout.unwrap_or_else(Stdio::null));
        let mut child = command.stderr(stderr.unwrap_or_else(Stdio::piped)).spawn().context("cannot start adw")?;
        let pipe = child.stderr.take();
        let read = move || {
            let mut bytes = Vec::new();
            // After an error, the ending shows the part of stderr that was read before it.
            let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
            bytes
        };
        Ok(Self { child, stderr: thread::spawn(read) })
    }

    /// Process identifier.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns true until the program has ended.
    pub(super) fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends SIGKILL; a program that has ended already takes no harm.
    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// Sends a signal such as `TERM`; a program that has ended already takes no harm.
    pub(super) fn signal(&self, name: &str) -> Result<()> {
        let _ = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).output()?;
        Ok(())
    }

    /// Waits for the end; a program that takes longer than [`PATIENCE`] is killed, and that is an error.
    pub(super) fn wait(mut self) -> Result<Ending> {
        let clock = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if clock.elapsed() > PATIENCE {
                self.kill();
                self.child.wait()?;
                bail!("hangs: no end within {} s", PATIENCE.as_secs());
            }
            thread::sleep(POLL);
        };
        let stderr = self.stderr.join().unwrap_or_default();
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        Ok(Ending { code: status.code(), signal: status.signal(), stderr })
    }
}

/// Runs a command to its end.
pub(super) fn run(command: Command) -> Result<Ending> {
    Running::start(command, None, None)?.wait()
}

/// The same command, started by a shell that executes `script`, in which `"$@"` is the command line.
pub(super) fn through_shell(command: &Command, script: &str) -> Command {
    wrapped(command, Command::new("sh"), script)
}

/// The same command in a shell in a namespace of its own, which may mount file systems there.
pub(super) fn through_namespace(command: &Command, script: &str) -> Command {
    let mut unshare = Command::new("unshare");
    unshare.args(["--map-root-user", "--mount", "sh"]);
    wrapped(command, unshare, script)
}

fn wrapped(command: &Command, mut shell: Command, script: &str) -> Command {
    shell.args(["-c", script, "sh"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}
