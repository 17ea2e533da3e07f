//! The work that is disturbed, such as a tiny search, training, prediction, export and download, with its undisturbed results.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    folders::{contents, copy_folder, no_leftovers, without_folders},
    program::{self, Ending},
    scenario::Scenario,
    server::{Conduct, start},
    study,
};
use crate::workspace::workspace;

/// Smallest network and schedule that pass through every kind of step: warm-up, both halves, validation, checkpoints.
const TINY: &[&str] = &[
    "--set=network.max_width=6",
    "--set=network.max_depth=2",
    "--set=search.epochs=3",
    "--set=search.warmup_epochs=1",
    "--set=search.iterations_per_epoch=2",
    "--set=search.checkpoint_every_iterations=1",
    "--set=retrain.epochs=2",
    "--set=retrain.iterations_per_epoch=2",
    "--set=retrain.checkpoint_every_iterations=1",
];

/// File that describes the archive of the dataset.
const MANIFEST: &str = "manifest.toml";

/// File that the library of faults counts in.
const COUNT: &str = "count";

/// Folder of the dataset, whose name is part of the results.
pub(super) const DATASET: &str = "Task00_Phantom";

/// Extent of a scenario without faults.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    /// Number of file operations.
    pub(super) operations: u64,
    pub(super) duration: Duration,
}

/// Folders of the undisturbed results, and their extents.
pub(super) struct Fixture {
    adw: PathBuf,
    faults: PathBuf,
    root: PathBuf,
    /// Limit of memory, in GB, that keeps the prepared cases in files.
    small_memory: String,
    /// Address of the server that datasets are downloaded from.
    server: String,
    extents: Vec<(Scenario, Extent)>,
}

impl Fixture {
    /// Builds the library of faults, and does the work undisturbed.
    ///
    /// # Errors
    /// No C compiler; a program that does not work.
    pub(super) fn new(adw: PathBuf) -> Result<Self> {
        let root = workspace().join("target/torture").join(std::process::id().to_string());
        fs::create_dir_all(&root).with_context(|| root.display().to_string())?;
        let (faults, small_memory, server) = (root.join("faults.so"), String::new(), String::new());
        let mut fixture = Self { adw, faults, root, small_memory, server, extents: Vec::new() };
        fixture.compile_faults()?;
        let phantom = ["phantom", "--shape", "16", "20", "16", "--test", "2", "--cases", "5", "--output"];
        let mut command = fixture.adw();
        command.args(phantom).arg(fixture.data());
        succeed(&program::run(command)?, "phantom")?;
        fixture.serve()?;
        for scenario in Scenario::ALL.into_iter().chain([Scenario::Rank]) {
            succeed(&fixture.measure(scenario, &fixture.undisturbed())?, scenario.name())?;
        }
        fixture.find_small_memory()?;
        Ok(fixture)
    }

    fn compile_faults(&self) -> Result<()> {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/torture/faults.c");
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let status = Command::new(compiler)
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
            .args([&self.faults, Path::new(source)])
            .arg("-ldl")
            .status()
            .context("cannot start the C compiler `cc`")?;
        if !status.success() {
            bail!("{source} does not compile");
        }
        Ok(())
    }

    /// Has the dataset served as an archive, and describes that for `adw download`.
    fn serve(&mut self) -> Result<()> {
        let archive = self.archive();
        let output = |command: &mut Command| -> Result<String> {
            let output =
                command.output().with_context(|| format!("cannot start {}", command.get_program().display()))?;
            Ok(String::from_utf8(output.stdout)?)
        };
        output(Command::new("tar").arg("-C").arg(&self.root).arg("-cf").arg(&archive).arg(DATASET))?;
        let sum = output(Command::new("md5sum").arg(&archive))?;
        let md5 = sum.split_whitespace().next().context("md5sum prints nothing")?;
        let bytes = fs::read(&archive)?;
        let size = bytes.len();
        self.server = start(bytes)?;
        let url = format!("{}/{DATASET}.tar", self.mirror(Conduct::Sound, 0));
        let manifest = format!("folder = {DATASET:?}\nurl = {url:?}\nmd5 = {md5:?}\napproximate_bytes = {size}\n");
        Ok(fs::write(self.manifest(), manifest)?)
    }

    /// Archive of the dataset.
    pub(super) fn archive(&self) -> PathBuf {
        self.root.join("archive.tar")
    }

    fn manifest(&self) -> PathBuf {
        self.root.join(MANIFEST)
    }

    /// Describes the archive as a file, without a server.
    pub(super) fn write_file_manifest(&self, folder: &Path) -> Result<()> {
        let url = format!("{}/{DATASET}.tar", self.mirror(Conduct::Sound, 0));
        let text = fs::read_to_string(self.manifest())?;
        let file = format!("file://{}", self.archive().display());
        Ok(fs::write(folder.join(MANIFEST), text.replace(&url, &file))?)
    }

    /// Address of the archive's folder on the server, which conducts itself like that for the `n`th client.
    pub(super) fn mirror(&self, conduct: Conduct, n: usize) -> String {
        format!("{}/{}/{n}", self.server, conduct.name())
    }

    /// Raises the limit until a search fits, and checks that its cases do not.
    fn find_small_memory(&mut self) -> Result<()> {
        let mut gb = 0.002;
        while gb < 0.2 {
            self.small_memory = format!("{gb:.5}");
            let folder = self.root.join("small-memory");
            let fits = self.measure(Scenario::SearchOnDisk, &folder)?.success();
            let on_disk = folder.join("run/prepared").is_dir();
            fs::remove_dir_all(&folder).ok();
            if fits {
                if on_disk {
                    return Ok(());
                }
                bail!("no limit of memory keeps prepared cases in files");
            }
            gb *= 1.01;
        }
        bail!("a tiny search does not fit into 0.2 GB");
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.root).with_context(|| self.root.display().to_string())
    }

    /// Folder of the results without faults.
    pub(super) fn undisturbed(&self) -> PathBuf {
        self.root.join("undisturbed")
    }

    pub(super) fn data(&self) -> PathBuf {
        self.root.join(DATASET)
    }

    /// A program without arguments, away from the user's files.
    pub(super) fn adw(&self) -> Command {
        let mut command = Command::new(&self.adw);
        command.env_remove("ADW_DATA").env_remove("ADW_RUNS").env("XDG_CACHE_HOME", &self.root);
        command
    }

    /// Command line of a scenario whose results lie in `folder`, and which reads the undisturbed dataset and model.
    pub(super) fn command(&self, scenario: Scenario, folder: &Path, resume: bool) -> Command {
        self.command_with(scenario, folder, &self.data(), &self.model(), resume)
    }

    /// Command line of a scenario that reads dataset and model in `folder`, too.
    pub(super) fn command_on(&self, scenario: Scenario, folder: &Path, resume: bool) -> Command {
        self.command_with(scenario, folder, &folder.join(DATASET), &folder.join("model.safetensors"), resume)
    }

    fn command_with(&self, scenario: Scenario, folder: &Path, data: &Path, model: &Path, resume: bool) -> Command {
        let mut command = self.adw();
        let run = folder.join("run");
        match scenario {
            Scenario::Search => command.args(["search", "--run"]).arg(&run).arg("--data").arg(data).args(TINY),
            Scenario::SearchOnDisk => {
                command.args(["search", "--memory", &self.small_memory, "--run"]).arg(&run);
                command.arg("--data").arg(data).args(TINY)
            }
            Scenario::Retrain => command.args(["retrain", "--run"]).arg(&run).arg("--data").arg(data),
            Scenario::Crossval => {
                // Goes on with the training of fold 0, which started from its search's weights.
                command.args(["crossval", "--search", "once", "--run"]).arg(&run).arg("--data").arg(data).args(TINY);
                command.arg("--set=retrain.warm_start=true")
            }
            Scenario::Predict => {
                command.arg("predict").arg("--model").arg(model).arg("--input").arg(data.join("imagesTs"));
                command.arg("--output").arg(folder.join("predicted")).arg("--probabilities")
            }
            Scenario::Submit => {
                command.arg("submit").arg("--model").arg(model).arg("--data").arg(data);
                command.arg("--output").arg(folder.join("submitted"))
            }
            Scenario::Export => {
                let exported = folder.join("exported");
                command.arg("export").arg("--model").arg(model).arg("--onnx").arg(exported.join("network.onnx"));
                command.arg("--safetensors").arg(exported.join("network.safetensors"));
                // A bundle is a new folder, so one that exists is whole.
                let bundle = exported.join("bundle");
                if bundle.exists() { &mut command } else { command.arg("--monai").arg(bundle) }
            }
            Scenario::Download => {
                // One of the folder's own is damaged.
                let own = Some(folder.join(MANIFEST)).filter(|own| own.exists());
                command.arg("download").arg("--manifest").arg(own.unwrap_or_else(|| self.manifest()));
                command.arg("--data").arg(folder.join("downloaded"))
            }
            Scenario::Sweep => command.args(["sweep", "run"]).arg(folder.join(study::FILE)).args(["--workers", "2"]),
            Scenario::Rank => {
                command.args(["rank", "--random", "2", "--cost", "5.9M", "--run"]).arg(&run);
                command = program::through_shell(&command, &format!("exec \"$@\" > '{}/ranked'", folder.display()));
                &mut command
            }
            Scenario::Report => command.arg("report").arg(&run),
        };
        if resume && scenario.resumes() {
            command.arg("--resume");
        }
        if scenario != Scenario::Download {
            command.args(["--threads", "1"]);
        }
        command
    }

    /// Model of the undisturbed training.
    pub(super) fn model(&self) -> PathBuf {
        self.undisturbed().join("run/retrain/fold_0/model.safetensors")
    }

    /// A new folder with what must exist before the scenario starts.
    pub(super) fn prepare(&self, scenario: Scenario, name: &str) -> Result<PathBuf> {
        let folder = self.root.join(name);
        fs::create_dir_all(&folder)?;
        match scenario {
            Scenario::Retrain => copy_folder(&self.undisturbed().join("run"), &folder.join("run"), "retrain")?,
            Scenario::Rank | Scenario::Report => copy_folder(&self.undisturbed().join("run"), &folder.join("run"), "")?,
            Scenario::Sweep => study::write(&folder, &self.data(), TINY)?,
            _ => {}
        }
        Ok(folder)
    }

    /// Calls the program again until the scenario is done, resuming what was begun, and compares the results.
    pub(super) fn finish(&self, scenario: Scenario, folder: &Path) -> Result<()> {
        let resume = scenario.started(folder);
        let ending = program::run(self.command(scenario, folder, resume))?;
        if !ending.success() {
            bail!("does not go on (resume: {resume}): {}", ending.summary());
        }
        self.compare(scenario, folder)?;
        if scenario == Scenario::Sweep {
            study::check_tasks(folder)?;
        }
        no_leftovers(folder)
    }

    /// Checks that the scenario's results are those without faults, to the last bit.
    pub(super) fn compare(&self, scenario: Scenario, folder: &Path) -> Result<()> {
        for path in scenario.results() {
            let undisturbed = self.undisturbed();
            let expected = without_folders(contents(&undisturbed.join(path))?, [&undisturbed, &self.root]);
            let found = without_folders(contents(&folder.join(path))?, [folder, &self.root]);
            if expected.is_empty() {
                bail!("{path}: the undisturbed run has no such result");
            }
            if let Some((name, _)) = expected.iter().find(|(name, bytes)| found.get(*name) != Some(*bytes)) {
                bail!("{path}/{} differs from the undisturbed result", name.display());
            }
            if let Some(name) = found.keys().find(|name| !expected.contains_key(*name)) {
                bail!("{path}/{} is no file of the undisturbed result", name.display());
            }
        }
        Ok(())
    }

    /// Runs a scenario with a fault in the environment variable of the library of faults.
    pub(super) fn run_with_fault(&self, scenario: Scenario, folder: &Path, fault: &str) -> Result<Ending> {
        let mut command = self.command(scenario, folder, false);
        self.set_fault(&mut command, fault);
        Self::run_counted(command, folder)
    }

    /// Runs a command whose file operations are counted over all its processes.
    pub(super) fn run_counted(mut command: Command, folder: &Path) -> Result<Ending> {
        let count = folder.join(COUNT);
        set_count(&mut command, &count)?;
        let ending = program::run(command);
        fs::remove_file(count)?;
        ending
    }

    /// Has the library of faults loaded into the program, with that fault.
    pub(super) fn set_fault(&self, command: &mut Command, fault: &str) {
        command.env("LD_PRELOAD", &self.faults).env("ADW_FAULT", fault);
    }

    /// Runs a scenario without faults in `folder`, and keeps its extent if it succeeds.
    fn measure(&mut self, scenario: Scenario, folder: &Path) -> Result<Ending> {
        fs::create_dir_all(folder)?;
        if scenario == Scenario::Sweep {
            study::write(folder, &self.data(), TINY)?;
        }
        let count = self.root.join(COUNT);
        let mut command = self.command(scenario, folder, false);
        command.env("LD_PRELOAD", &self.faults);
        set_count(&mut command, &count)?;
        let clock = Instant::now();
        let ending = program::run(command)?;
        let duration = clock.elapsed();
        if ending.success() {
            let bytes = fs::read(&count).context("no count of operations")?;
            let operations = u64::from_ne_bytes(bytes.try_into().ok().context("no count of operations")?);
            self.extents.push((scenario, Extent { operations, duration }));
        }
        Ok(ending)
    }

    /// Extent of a scenario without faults.
    pub(super) fn extent(&self, scenario: Scenario) -> Extent {
        let found = self.extents.iter().find(|(measured, _)| *measured == scenario);
        found.expect("every scenario is measured in `new`").1
    }
}

/// Has the library of faults count in a new file, over all processes of the command.
fn set_count(command: &mut Command, count: &Path) -> Result<()> {
    fs::write(count, 0_u64.to_ne_bytes()).with_context(|| count.display().to_string())?;
    command.env("ADW_FAULT_COUNT", count);
    Ok(())
}

fn succeed(ending: &Ending, name: &str) -> Result<()> {
    if !ending.success() {
        bail!("{name} fails undisturbed: {}", ending.summary());
    }
    Ok(())
}
