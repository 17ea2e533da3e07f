//! Running the `adw` binary from tests.
#![allow(dead_code, clippy::unwrap_used, clippy::needless_pass_by_value, missing_docs, unreachable_pub)]

pub mod python;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

/// The `adw` binary, built once per test process.
pub fn adw() -> &'static Path {
    static ADW: OnceLock<PathBuf> = OnceLock::new();
    ADW.get_or_init(|| build("adw-cli", "adw"))
}

/// An empty folder of the build for what all tests of a file share: a temporary one in a static would never be removed.
pub fn shared_dir(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir).unwrap();
    }
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// Builds a binary of the workspace in the profile and with the features of the tests.
pub fn build(package: &str, binary: &str) -> PathBuf {
    let features = match package {
        "adw-cli" if cfg!(feature = "cudnn") => "cudnn",
        "adw-cli" if cfg!(feature = "cuda") => "cuda",
        _ => "",
    };
    build_with(package, binary, features)
}

/// Builds a binary of the workspace in the profile of the tests, in the place of one with other features.
pub fn build_with(package: &str, binary: &str, features: &str) -> PathBuf {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Build scripts such as ring's run again when variables differ that cargo has set for the package of this test.
    let of_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_package)) {
        cargo.env_remove(name);
    }
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo.args(["build", "--package", package, "--bin", binary, "--features", features]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let output = cargo.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{binary} does not build");
    let messages = String::from_utf8(output.stdout).unwrap();
    let executable = messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let wanted = message["target"]["name"] == binary;
        Some(PathBuf::from(wanted.then(|| message["executable"].as_str())??))
    });
    executable.expect("cargo names the binary it built")
}

/// Result of a run of `adw`.
#[derive(Debug)]
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    #[track_caller]
    pub fn assert_success(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// Exit code 2 and a last line on stderr that starts with `error: ` and holds each of `parts`, after lines about progress.
    #[track_caller]
    pub fn assert_bad_input_last(mut self, parts: &[&str]) {
        self.stderr = self.stderr.lines().next_back().unwrap_or_default().to_owned();
        self.assert_bad_input(parts);
    }

    /// Exit code 2 and one line on stderr that starts with `error: ` and holds each of `parts`.
    #[track_caller]
    pub fn assert_bad_input(&self, parts: &[&str]) {
        assert_eq!(self.code, Some(2), "{self:?}");
        assert_eq!(self.stderr.lines().count(), 1, "one line: {self:?}");
        assert!(self.stderr.starts_with("error: "), "{self:?}");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in {:?}", self.stderr);
        }
    }
}

/// Command line of `adw`.
#[derive(Clone, Debug, Default)]
pub struct Adw {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    folder: Option<PathBuf>,
    shell: Option<String>,
}

impl Adw {
    pub fn new<S: ToString>(arguments: impl IntoIterator<Item = S>) -> Self {
        Self::default().args(arguments)
    }

    /// Run with this environment variable.
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.push((name.to_owned(), value.to_string()));
        self
    }

    /// Run in this folder.
    pub fn in_folder(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    /// Run by bash after these commands, such as `ulimit` or redirections by `exec`, in the same process.
    pub fn after(mut self, commands: &str) -> Self {
        self.shell = Some(commands.to_owned());
        self
    }

    pub fn arg(mut self, argument: impl ToString) -> Self {
        self.arguments.push(argument.to_string());
        self
    }

    pub fn path(self, option: &str, path: &Path) -> Self {
        self.arg(option).arg(path.display())
    }

    pub fn args<S: ToString>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.to_string()));
        self
    }

    pub fn arguments(&self) -> &[String] {
        &self.arguments
    }

    /// The command as one of the standard library, to be started with streams of its own.
    pub fn command(&self) -> Command {
        let mut command = Command::new(if self.shell.is_some() { Path::new("bash") } else { adw() });
        if let Some(shell) = &self.shell {
            command.args(["-c", &format!("{shell}\nexec \"$0\" \"$@\"")]).arg(adw());
        }
        // Not the caches of who runs the tests.
        command.args(&self.arguments).env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
        // Not the datasets of who runs the tests either.
        command.env_remove("ADW_DATA").env_remove("ADW_RUNS").envs(self.environment.iter().cloned());
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        command
    }

    pub fn run(&self) -> Outcome {
        let output = self.command().output().unwrap();
        Outcome {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    pub fn succeed(&self) -> Outcome {
        self.run().assert_success()
    }

    /// Starts it, kills it with SIGKILL after `life` and returns whether it was still alive.
    pub fn kill_after(&self, life: Duration) -> bool {
        let mut child: Child = self.command().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(life);
        let alive = child.try_wait().unwrap().is_none();
        let _ = child.kill();
        child.wait().unwrap();
        alive
    }
}

/// A small phantom dataset below `dir`.
pub fn phantom(dir: &Path, cases: usize) -> PathBuf {
    let folder = dir.join("Task00_Phantom");
    Adw::new(["phantom", "--shape", "16", "20", "16", "--test", "2"])
        .args(["--cases".into(), cases.to_string()])
        .path("--output", &folder)
        .succeed();
    folder
}

/// A configuration that finishes in seconds: the quick preset's shape with a net and a schedule a hundredth of its size.
pub const TINY: &[&str] = &[
    "--set=network.max_width=6",
    "--set=network.max_depth=2",
    "--set=search.epochs=4",
    "--set=search.warmup_epochs=1",
    "--set=search.iterations_per_epoch=2",
    "--set=search.checkpoint_every_iterations=1",
    "--set=retrain.epochs=3",
    "--set=retrain.iterations_per_epoch=3",
    "--set=retrain.checkpoint_every_iterations=1",
];

/// Settings of [`TINY`] as a sweep's file has them.
pub fn tiny_settings() -> Vec<&'static str> {
    TINY.iter().map(|option| option.trim_start_matches("--set=")).collect()
}

/// Copies a folder with all that is in it.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Every file below `dir` with its content, except what carries times.
pub fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push((path.strip_prefix(dir).unwrap().to_owned(), fs::read(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

/// The names in `dir`, hidden ones included.
pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
