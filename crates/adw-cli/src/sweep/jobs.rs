//! Job files of batch systems.

use std::{
    collections::BTreeSet,
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use msd_data::Fingerprint;

use super::{
    estimate::{self, Resources},
    plan::{Sweep, Task},
};
use crate::{
    args::{BatchSystemArgs, ProcessArgs, Stage, SweepSubmitArgs},
    dataset_folder, device,
    failure::{BadInput, bad_input},
    report::{plain::quoted, progress::say},
    run,
    run_config::RunConfig,
};

/// Array job of the tasks of a dataset's stage.
struct Job<'a> {
    /// Name of sweep and dataset.
    of_dataset: String,
    dataset: &'a str,
    stage: Stage,
    num_tasks: usize,
    /// True if a task needs another one of the stage.
    waits: bool,
    resources: Resources,
    args: &'a SweepSubmitArgs,
    /// Folder of logs and job files.
    folder: PathBuf,
    /// Command lines for a POSIX shell: this program with the sweep's file.
    work: String,
}

/// Prints or submits the job files of a sweep.
///
/// # Errors
/// A dataset that is missing while resources are to be estimated; the batch system refuses a job.
pub(crate) fn submit(args: &SweepSubmitArgs) -> Result<()> {
    let sweep = Sweep::open_or_create(&args.sweep)?;
    let here = env::current_dir().context("there is no current folder")?;
    let program = env::current_exe().context("cannot find this program's own file")?;
    let file = here.join(&args.sweep);
    let stem = file.file_stem().map_or_else(|| "sweep".into(), |stem| stem.to_string_lossy().replace(' ', "_"));
    // Estimates count threads that load cases: those of a task, not of this machine.
    device::set_threads(&ProcessArgs { threads: Some(args.cores), json: false })?;
    let mut jobs = Vec::new();
    for (index, dataset) in sweep.datasets.iter().enumerate() {
        for stage in Stage::ALL {
            let of_stage: Vec<&Task> =
                sweep.tasks.iter().filter(|task| (task.dataset, task.stage) == (index, stage)).collect();
            if of_stage.iter().all(|task| sweep.is_done(task)) {
                continue;
            }
            jobs.push(Job {
                of_dataset: format!("{stem}-{}", dataset.name),
                dataset: &dataset.name,
                stage,
                num_tasks: of_stage.len(),
                waits: of_stage.iter().any(|task| task.after.iter().any(|&needed| sweep.tasks[needed].stage == stage)),
                resources: resources(&sweep, &of_stage, args)?,
                args,
                folder: here.join(&sweep.folder).join("jobs"),
                work: format!("{} sweep work {}", quoted(&program), quoted(&file)),
            });
        }
    }
    if jobs.is_empty() {
        bad_input!("{}: every task is done", args.sweep.display());
    }
    let BatchSystemArgs { slurm, lsf, pbs, .. } = args.system;
    if !(slurm || lsf || pbs) {
        let text = kubernetes(&sweep, &stem, &jobs, &here);
        return hand_in(args, &jobs[0].folder.join("sweep.yaml"), &text, &["kubectl", "apply", "-f"]).map(drop);
    }
    if let Some(path) = [&here, &jobs[0].folder].into_iter().find(|path| quoted(path) != path.display().to_string()) {
        bad_input!(
            "{}: batch systems read such a path in a directive differently; use one without blanks and quotation marks",
            path.display()
        );
    }
    let mut previous = None;
    for (index, job) in jobs.iter().enumerate() {
        if index > 0 && jobs[index - 1].dataset != job.dataset {
            previous = None;
        }
        let (text, command): (String, Vec<String>) = if slurm {
            (job.slurm(&here), slurm_command(previous.as_deref()))
        } else if lsf {
            (job.lsf(&here, previous.is_some().then(|| &jobs[index - 1])), vec!["bsub".into()])
        } else {
            (job.pbs(&here), pbs_command(previous.as_deref()))
        };
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let file = job.folder.join(format!("{}.sh", job.file_stem()));
        previous = hand_in(args, &file, &text, &command)?.or(Some(format!("JOB_{}", job.file_stem())));
    }
    Ok(())
}

/// Most resources of the tasks of a dataset's stage: those of the command line, or estimates from headers.
fn resources(sweep: &Sweep, tasks: &[&Task], args: &SweepSubmitArgs) -> Result<Resources> {
    let mut most = Resources::default();
    if args.memory.is_none() || args.hours.is_none() {
        let index = tasks[0].dataset;
        let folder = &sweep.datasets[index].folder;
        if !dataset_folder::is_dataset(folder) {
            bad_input!(
                "{} is missing: get it with `adw download`, or give --memory and --hours, which are estimated from it otherwise",
                folder.display()
            );
        }
        let dataset = dataset_folder::open(folder)?;
        let path = sweep.fingerprint(index);
        let fingerprint =
            if path.is_file() { Fingerprint::load(&path, &dataset)? } else { Fingerprint::of_headers(&dataset)? };
        // A fold or a seed makes no difference.
        let mut arms = BTreeSet::new();
        for task in tasks {
            let of_task = match task.cell {
                Some(cell) if !arms.insert(cell.arm) => continue,
                Some(cell) => estimate::network(sweep, (&dataset, &fingerprint), (task.stage, cell), args.cores)?,
                None => {
                    let config = RunConfig::from_args(&sweep.config.settings(&sweep.config.arms[0], 1))?;
                    estimate::preparing(&dataset, &run::plan(&fingerprint, &dataset, &config)?, args.cores)?
                }
            };
            most = most.max(of_task);
        }
    }
    if let Some(gb) = args.memory {
        most.memory_bytes = u64::from(gb) * 1_000_000_000;
    }
    if let Some(hours) = args.hours {
        most.seconds = f64::from(hours) * 3600.0;
    }
    Ok(most)
}

/// Prints a job file, or writes it and gives it to `command`, whose first word of output that begins with a digit is the job's id.
fn hand_in(args: &SweepSubmitArgs, file: &Path, text: &str, command: &[&str]) -> Result<Option<String>> {
    if args.dry_run {
        say(&format!("# {} {}\n{text}\n", command.join(" "), file.display()));
        return Ok(None);
    }
    adw_files::create_folders(file.parent().unwrap_or(Path::new(".")))?;
    adw_files::write_bytes(file, text.as_bytes()).with_context(|| format!("cannot write {}", file.display()))?;
    let mut process = Command::new(command[0]);
    process.args(&command[1..]).stdout(Stdio::piped());
    // LSF reads its options from standard input only.
    if command[0] == "bsub" {
        process.stdin(fs::File::open(file)?)
    } else {
        process.arg(file).stdin(Stdio::null())
    };
    let output = process.output().with_context(|| format!("cannot start {}", command[0]))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    say(&printed);
    if !output.status.success() {
        bad_input!("{} refuses {}", command.join(" "), file.display());
    }
    let is_id = |word: &&str| word.trim_matches(['<', '>']).starts_with(|c: char| c.is_ascii_digit());
    let id = printed.split([' ', '\n', ';']).find(is_id).map(|word| word.trim_matches(['<', '>']).to_owned());
    let missing = || BadInput::new(format!("{} printed no id of a job: {printed}", command[0]));
    if command[0] == "kubectl" { Ok(id) } else { Ok(Some(id.ok_or_else(missing)?)) }
}

impl Job<'_> {
    fn name(&self) -> String {
        format!("{}-{}", self.of_dataset, self.stage.name())
    }

    /// Name of files of this job, such as logs, without an ending.
    fn file_stem(&self) -> String {
        format!("{}.{}", self.stage.name(), self.dataset)
    }

    /// Megabytes, rounded up to a multiple of 500.
    fn memory_mb(&self) -> u64 {
        self.resources.memory_bytes.div_ceil(1_000_000).next_multiple_of(500)
    }

    /// Minutes, from half an hour to a day: what takes longer goes on after a requeue.
    fn minutes(&self) -> u64 {
        let asked = if self.args.hours.is_some() {
            self.resources.seconds
        } else {
            self.resources.seconds.clamp(1800.0, 86400.0)
        };
        (asked / 60.0).ceil() as u64
    }

    /// Estimates, as a comment.
    fn comment(&self) -> String {
        let Resources { memory_bytes, seconds } = self.resources;
        format!(
            "# {}: {} tasks, each about {:.1} GB and at most {:.1} h on {} slow cores\n",
            self.file_stem(),
            self.num_tasks,
            memory_bytes as f64 / 1e9,
            seconds / 3600.0,
            self.args.cores
        )
    }

    fn command(&self) -> String {
        let Self { work, dataset, .. } = self;
        let wait = if self.waits { " --wait" } else { "" };
        let scratch = scratch_option(self.args);
        format!("{work} --dataset {dataset} --stage {} --threads {}{wait}{scratch}", self.stage.name(), self.args.cores)
    }

    /// Lines of a job file: head, directives of the command line, body.
    fn file(&self, head: &str, body: &str) -> String {
        let directives = self.args.directive.iter().fold(String::new(), |text, line| text + line + "\n");
        format!("#!/bin/sh\n{head}{directives}{}{body}", self.comment())
    }

    /// The job step gets SIGUSR1 two minutes before the limit, and SIGTERM before a preemption.
    fn slurm(&self, here: &Path) -> String {
        let log = self.folder.join(format!("{}-%a.log", self.file_stem()));
        let head = format!(
            "#SBATCH --job-name={}\n#SBATCH --array=1-{}%{}\n#SBATCH --ntasks=1\n#SBATCH --cpus-per-task={}\n\
             #SBATCH --mem={}M\n#SBATCH --time={}\n#SBATCH --signal=USR1@120\n#SBATCH --requeue\n\
             #SBATCH --open-mode=append\n#SBATCH --output={}\n#SBATCH --chdir={}\n",
            self.name(),
            self.num_tasks,
            self.args.at_a_time,
            self.args.cores,
            self.memory_mb(),
            self.minutes(),
            log.display(),
            here.display()
        );
        let body = format!(
            "srun --cpus-per-task={} {}\ncode=$?\n# Ended by SIGUSR1 or SIGTERM: a checkpoint is written.\n\
             case $code in\n138|143) scontrol requeue \"${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID\" ;;\nesac\nexit $code\n",
            self.args.cores,
            self.command()
        );
        self.file(&head, &body)
    }

    fn lsf(&self, here: &Path, previous: Option<&Self>) -> String {
        let log = self.folder.join(format!("{}-%I.log", self.file_stem()));
        let mut head = format!(
            "#BSUB -J {}[1-{}]%{}\n#BSUB -n {}\n#BSUB -R span[hosts=1]\n#BSUB -M {}MB\n#BSUB -R rusage[mem={}MB]\n\
             #BSUB -W {}\n#BSUB -wt 2\n#BSUB -wa USR1\n#BSUB -r\n#BSUB -Q \"138 143\"\n#BSUB -o {}\n#BSUB -cwd {}\n",
            self.name(),
            self.num_tasks,
            self.args.at_a_time,
            self.args.cores,
            self.memory_mb(),
            self.memory_mb(),
            self.minutes(),
            log.display(),
            here.display()
        );
        if let Some(previous) = previous {
            let _ = writeln!(head, "#BSUB -w ended({})", previous.name());
        }
        self.file(&head, &format!("exec {}\n", self.command()))
    }

    /// PBS kills at the limit: `timeout` sends SIGUSR1 two minutes earlier.
    fn pbs(&self, here: &Path) -> String {
        let minutes = self.minutes();
        // PBS refuses arrays of one task.
        let (array, index) = match self.num_tasks {
            1 => (String::new(), "export PBS_ARRAY_INDEX=1\n"),
            n => (format!("#PBS -J 1-{n}%{}\n", self.args.at_a_time), ""),
        };
        let head = format!(
            "#PBS -N {}\n{array}#PBS -l select=1:ncpus={}:mem={}mb\n#PBS -l walltime={:02}:{:02}:00\n#PBS -r y\n\
             #PBS -j oe\n#PBS -o {}\n",
            self.name(),
            self.args.cores,
            self.memory_mb(),
            minutes / 60,
            minutes % 60,
            self.folder.display()
        );
        let body = format!(
            "cd '{}' || exit 2\n{index}timeout --preserve-status -s USR1 {}m {}\ncode=$?\ncase $code in\n\
             138|143) qrerun \"$PBS_JOBID\" ;;\nesac\nexit $code\n",
            here.display(),
            minutes.saturating_sub(2).max(1),
            self.command()
        );
        self.file(&head, &body)
    }
}

/// Option for the folder of prepared cases, which the shell of the job expands.
fn scratch_option(args: &SweepSubmitArgs) -> String {
    args.scratch.as_ref().map_or(String::new(), |scratch| format!(" --scratch \"{scratch}\""))
}

fn slurm_command(previous: Option<&str>) -> Vec<String> {
    let mut command = vec!["sbatch".to_owned(), "--parsable".to_owned()];
    // A task whose own predecessor has failed ends at once.
    command.extend(previous.map(|id| format!("--dependency=afterany:{id}")));
    command
}

fn pbs_command(previous: Option<&str>) -> Vec<String> {
    let mut command = vec!["qsub".to_owned()];
    if let Some(id) = previous {
        command.extend(["-W".to_owned(), format!("depend=afterany:{id}")]);
    }
    command
}

/// Indexed job over all tasks: those that need another wait for it, and indices start in order.
fn kubernetes(sweep: &Sweep, stem: &str, jobs: &[Job<'_>], here: &Path) -> String {
    let first = &jobs[0];
    let memory = jobs.iter().map(Job::memory_mb).max().unwrap_or_default();
    let args = first.args;
    let yaml = |text: &str| serde_json::Value::from(text).to_string();
    let name: String = stem.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let command = format!("exec {} --wait --threads {}{}", first.work, args.cores, scratch_option(args));
    let here = here.display().to_string();
    let comments: String = jobs.iter().map(Job::comment).collect();
    format!(
        "{comments}apiVersion: batch/v1\nkind: Job\nmetadata:\n  name: {name}\nspec:\n  completionMode: Indexed\n  completions: {}\n  \
         parallelism: {}\n  backoffLimitPerIndex: 3\n  podFailurePolicy:\n    rules:\n    - action: Ignore   # SIGUSR1, SIGTERM: \
         a checkpoint is written\n      onExitCodes: {{ containerName: adw, operator: In, values: [138, 143] }}\n    - action: \
         Ignore\n      onPodConditions: [{{ type: DisruptionTarget }}]\n  template:\n    spec:\n      restartPolicy: Never\n      \
         terminationGracePeriodSeconds: 120\n      containers:\n      - name: adw\n        image: {}\n        command: [\"sh\", \
         \"-c\", {}]\n        workingDir: {}\n        resources:\n          requests: &r {{ cpu: {}, memory: {memory}M }}\n          \
         limits: *r\n        volumeMounts: [{{ name: work, mountPath: {} }}]\n      volumes:\n      - name: work\n        \
         persistentVolumeClaim: {{ claimName: {} }}\n",
        sweep.tasks.len(),
        args.at_a_time,
        yaml(&args.image),
        yaml(&command),
        yaml(&here),
        args.cores,
        yaml(&here),
        yaml(&args.claim),
    )
}
