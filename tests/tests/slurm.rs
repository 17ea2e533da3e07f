//! A sweep on a real Slurm of three nodes on this machine: a node is lost, and a task meets its time limit.
//!
//! Started by `cargo xtask test --slurm` where Slurm and MUNGE are installed: on Debian
//! `apt-get install slurmctld slurmd slurm-client munge`. All daemons run as the user who runs the test, and end with it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod cli_support;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use cli_support::{Adw, adw, contents, phantom, tiny_settings};

const NUM_NODES: u16 = 3;

/// Processes of a cluster whose nodes are all this machine. They end when it is dropped.
struct Cluster {
    folder: PathBuf,
    daemons: Vec<(String, Child)>,
}

impl Cluster {
    fn start(folder: PathBuf) -> Self {
        for part in ["state", "munge"] {
            fs::create_dir_all(folder.join(part)).unwrap();
        }
        let mut cluster = Self { folder, daemons: Vec::new() };
        let key = cluster.folder.join("munge/key");
        fs::write(&key, [7; 64]).unwrap();
        let readable_by_owner = std::os::unix::fs::PermissionsExt::from_mode(0o400);
        fs::set_permissions(&key, readable_by_owner).unwrap();
        cluster.configure();
        cluster.daemon(
            "munged",
            "munged --foreground --force --key-file=munge/key --socket=munge/socket --pid-file=munge/pid \
                        --log-file=munge/log --seed-file=munge/seed",
        );
        wait("MUNGE", Duration::from_secs(10), || cluster.folder.join("munge/socket").exists().then_some(()));
        cluster.daemon("slurmctld", "slurmctld -D");
        for node in 1..=NUM_NODES {
            cluster.daemon(&format!("n{node}"), &format!("slurmd -D -N n{node}"));
        }
        wait("nodes", Duration::from_secs(40), || {
            let states = cluster.ask(&["sinfo", "-h", "-N", "-o", "%T"]);
            (states.matches("idle").count() == usize::from(NUM_NODES)).then_some(())
        });
        cluster
    }

    fn configure(&self) {
        let dir = self.folder.display();
        let user = output(Command::new("id").arg("-un"));
        // Several clusters on one machine: the process's id makes ports differ.
        let port = 20_000 + std::process::id() % 10_000 * 4;
        let (first, last) = (port + 1, port + u32::from(NUM_NODES));
        let settings = [
            "ClusterName=test".to_owned(),
            "SlurmctldHost=localhost(127.0.0.1)".to_owned(),
            format!("SlurmctldPort={port}"),
            format!("SlurmUser={user}"),
            format!("SlurmdUser={user}"),
            "AuthType=auth/munge".to_owned(),
            "CredType=cred/munge".to_owned(),
            // A requeued task starts after the life of a credential, which is two minutes by default.
            format!("AuthInfo=socket={dir}/munge/socket,cred_expire=5"),
            format!("StateSaveLocation={dir}/state"),
            format!("SlurmdSpoolDir={dir}/spool-%n"),
            format!("SlurmctldPidFile={dir}/slurmctld.pid"),
            format!("SlurmdPidFile={dir}/%n.pid"),
            // No control groups: tests may run in a container.
            "ProctrackType=proctrack/linuxproc".to_owned(),
            "TaskPlugin=task/none".to_owned(),
            "JobAcctGatherType=jobacct_gather/none".to_owned(),
            "MpiDefault=none".to_owned(),
            "SelectType=select/cons_tres".to_owned(),
            "SelectTypeParameters=CR_Core_Memory".to_owned(),
            "SlurmdTimeout=10".to_owned(),
            "SchedulerParameters=sched_interval=1,sched_min_interval=100000,bf_interval=1".to_owned(),
            // Nodes are as large as is written here, not as this machine.
            "SlurmdParameters=config_overrides".to_owned(),
            format!(
                "NodeName=n[1-{NUM_NODES}] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=1 RealMemory=64000"
            ),
            "PartitionName=all Nodes=ALL Default=YES State=UP\n".to_owned(),
        ];
        fs::write(self.file(), settings.join("\n")).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.folder.join("slurm.conf")
    }

    /// Starts a daemon that ends with this test, however that ends.
    fn daemon(&mut self, name: &str, command: &str) {
        let log = fs::File::create(self.folder.join(format!("{name}.log"))).unwrap();
        let mut process = Command::new("setpriv");
        process.args(["--pdeathsig", "KILL"]).args(command.split_whitespace()).current_dir(&self.folder);
        process.env("SLURM_CONF", self.file()).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.daemons.push((name.to_owned(), process.spawn().unwrap()));
    }

    /// Output of a command of Slurm.
    fn ask(&self, command: &[&str]) -> String {
        output(Command::new(command[0]).args(&command[1..]).env("SLURM_CONF", self.file()))
    }

    /// Ids of this cluster's processes that have all of `parts` in their environment or command line.
    fn processes(&self, parts: &[&str]) -> Vec<String> {
        let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let configuration = format!("SLURM_CONF={}", self.file().display());
        pids.filter(|pid| pid.parse::<u32>().is_ok())
            .filter(|pid| {
                let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                let text = [read("environ"), read("cmdline")].concat();
                let words: Vec<_> = text.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
                let has = |part: &str| words.iter().any(|word| word == part);
                has(&configuration) && parts.iter().all(|part| has(part))
            })
            .collect()
    }

    /// Loses a node as by a power failure: kills its daemon first, so that nothing reports the end of the rest.
    fn lose(&mut self, node: &str) {
        let (_, daemon) = self.daemons.iter_mut().find(|(name, _)| name == node).unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        let on_node = self.processes(&[&format!("SLURMD_NODENAME={node}")]);
        let parents = on_node.iter().filter_map(|pid| status(pid, "PPid:")).filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("slurmstepd"))
        });
        let steps: Vec<String> = parents.collect();
        for pid in steps.iter().chain(&on_node) {
            signal("KILL", pid);
        }
    }

    /// Waits until the searches of the first dataset's two folds have each written a checkpoint, and stops their processes there:
    /// they take as long as the test wants. Returns their ids.
    fn stop_in_the_middle(&self, sweep: &Path) -> [String; 2] {
        let search =
            |fold: usize| sweep.with_extension("").join(format!("runs/phantom/found/seed_1/search/fold_{fold}"));
        let stop = |fold: usize| {
            let mut pids = self.processes(&["work", "phantom", "search", &format!("SLURM_ARRAY_TASK_ID={}", fold + 1)]);
            // Not the shell, and not srun.
            pids.retain(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|program| program == adw()));
            let [pid] = pids.as_slice() else { panic!("fold {fold}: one process of {pids:?}") };
            signal("STOP", pid);
            assert!(!search(fold).join("architecture.json").exists(), "fold {fold} was too fast");
            pid.clone()
        };
        let mut stopped = [None, None];
        wait("checkpoints", Duration::from_mins(1), || {
            for (fold, pid) in stopped.iter_mut().enumerate() {
                if pid.is_none() && search(fold).join("checkpoint/latest.safetensors").exists() {
                    *pid = Some(stop(fold));
                }
            }
            stopped.clone().into_iter().collect::<Option<Vec<_>>>()?.try_into().ok()
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "{}\n{}", self.ask(&["squeue", "-r"]), self.ask(&["sinfo", "-N"]));
        }
        // Job steps are no children of this process; those that are started meanwhile are found the second time.
        for _ in 0..2 {
            for pid in self.processes(&[]) {
                signal("KILL", &pid);
            }
            for (_, daemon) in &mut self.daemons {
                let _ = daemon.kill();
                let _ = daemon.wait();
            }
        }
    }
}

fn output(command: &mut Command) -> String {
    String::from_utf8(command.output().unwrap().stdout).unwrap().trim().to_owned()
}

fn signal(name: &str, pid: &str) {
    let _ = Command::new("kill").args(["-s", name, pid]).stderr(Stdio::null()).status();
}

/// First word behind a key in the status of a process.
fn status(pid: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)).map(|rest| rest.trim().to_owned())
}

fn wait<T>(name: &str, limit: Duration, mut found: impl FnMut() -> Option<T>) -> T {
    let clock = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(clock.elapsed() < limit, "{name}: nothing after {limit:?}");
        sleep(Duration::from_millis(20));
    }
}

fn command(action: &str, sweep: &Path) -> Adw {
    Adw::new(["sweep".to_owned(), action.to_owned(), sweep.display().to_string()])
}

/// Sweep of two datasets and two folds.
fn sweep(dir: &Path, name: &str) -> PathBuf {
    let datasets = ["Task00_Phantom", "Task98_Other"].map(|name| dir.join(name).display().to_string());
    let settings = [tiny_settings(), vec!["search.epochs=60", "retrain.warm_start=false"]].concat();
    let path = dir.join(format!("{name}.toml"));
    let text = format!(
        "datasets = {datasets:?}\nfolds = [0, 1]\nset = {settings:?}\n[[arms]]\nname = \"found\"\n[[arms]]\nname = \"plain\"\n\
         uniform_width = 4\n"
    );
    fs::write(&path, text).unwrap();
    path
}

/// Files of a sweep whose bits are promised.
fn results(sweep: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let wanted = |path: &Path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        ["architecture.json", "model.safetensors"].contains(&name) || name.ends_with(".nii.gz")
    };
    contents(&sweep.with_extension("").join("runs")).into_iter().filter(|(path, _)| wanted(path)).collect()
}

/// Number of lines with `word` in the states of all tasks, by the tasks' names.
fn events(sweep: &Path, word: &str) -> Vec<(String, usize)> {
    let states = contents(&sweep.with_extension("").join("tasks")).into_iter();
    let states = states.filter(|(path, _)| path.extension().is_some_and(|ending| ending == "jsonl"));
    let of_task = |(path, text): (PathBuf, Vec<u8>)| {
        let count = String::from_utf8(text).unwrap().matches(&format!("\"{word}\"")).count();
        (path.file_stem().unwrap().to_str().unwrap().to_owned(), count)
    };
    states.map(of_task).collect()
}

/// Slurm takes the job files of the decathlon's ten tasks, five folds and two seeds each. Datasets are small ones of their names.
fn accepts_a_study_of_all_tasks(cluster: &Cluster, dir: &Path) {
    const NAMES: [&str; 10] = [
        "Task01_BrainTumour",
        "Task02_Heart",
        "Task03_Liver",
        "Task04_Hippocampus",
        "Task05_Prostate",
        "Task06_Lung",
        "Task07_Pancreas",
        "Task08_HepaticVessel",
        "Task09_Spleen",
        "Task10_Colon",
    ];
    let datasets = NAMES.map(|name| dir.join("all").join(name));
    for (index, folder) in datasets.iter().enumerate() {
        let edge = (16 + 8 * index).to_string();
        Adw::new(["phantom", "--cases=2", "--test=0", "--shape", &edge, &edge, &edge])
            .path("--output", folder)
            .succeed();
    }
    let sweep = dir.join("ten.toml");
    let text = format!(
        "datasets = {datasets:?}\nseeds = [1, 2]\n[[arms]]\nname = \"found\"\n[[arms]]\nname = \"nnunet\"\nplain = \"nnunet\"\n"
    );
    fs::write(&sweep, text).unwrap();
    let printed = command("submit", &sweep).args(["--slurm", "--dry-run", "--cores", "1"]).succeed().stdout;
    let files: Vec<&str> = printed.split("#!/bin/sh\n").skip(1).collect();
    assert_eq!(files.len(), 3 * NAMES.len());
    let mut requests = std::collections::BTreeSet::new();
    for (index, body) in files.into_iter().enumerate() {
        let file = dir.join("job.sh");
        fs::write(&file, format!("#!/bin/sh\n{body}")).unwrap();
        let sbatch =
            Command::new("sbatch").arg("--test-only").arg(&file).env("SLURM_CONF", cluster.file()).output().unwrap();
        assert!(sbatch.status.success(), "{}\n{body}", String::from_utf8_lossy(&sbatch.stderr));
        let num_tasks = [1, 10, 20][index % 3];
        assert!(body.contains(&format!("--array=1-{num_tasks}%")), "{body}");
        requests.extend(body.lines().filter(|line| line.starts_with("#SBATCH --mem=")).map(str::to_owned));
    }
    assert!(requests.len() > 2, "memory is asked for by the size of images: {requests:?}");
}

#[test]
#[ignore = "needs Slurm, see `cargo xtask test --slurm`"]
fn a_lost_node_and_a_time_limit_change_no_bit() {
    let is_installed = |name: &str| Command::new(name).arg("-V").output().is_ok();
    if let Some(missing) = ["munged", "slurmctld", "slurmd", "sbatch"].into_iter().find(|name| !is_installed(name)) {
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: {missing} is not installed: apt-get install slurmctld slurmd slurm-client munge"
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    phantom(dir.path(), 5);
    let other = dir.path().join("Task98_Other");
    Adw::new(["phantom", "--shape", "16", "20", "16", "--cases", "5", "--seed", "2"])
        .path("--output", &other)
        .succeed();

    let mut cluster = Cluster::start(dir.path().join("slurm"));
    accepts_a_study_of_all_tasks(&cluster, dir.path());
    let on_slurm = sweep(dir.path(), "study");
    let submit = command("submit", &on_slurm).args([
        "--slurm",
        "--cores",
        "1",
        "--memory",
        "1",
        "--hours",
        "1",
        "--at-a-time",
        "3",
    ]);
    submit.env("SLURM_CONF", cluster.file().display()).succeed();

    let [lost, slow] = cluster.stop_in_the_middle(&on_slurm);
    let environment = fs::read_to_string(format!("/proc/{lost}/environ")).unwrap();
    let node = environment.split('\0').find_map(|variable| variable.strip_prefix("SLURMD_NODENAME=")).unwrap();
    cluster.lose(node);
    let search = cluster.ask(&["squeue", "-h", "-n", "study-phantom-search", "-o", "%F"]);
    let search = search.lines().next().unwrap();
    let limit = |minutes: u32| {
        let limit = format!("TimeLimit={minutes}");
        cluster.ask(&["scontrol", "update", &format!("JobId={search}_2"), &limit]);
    };
    limit(1);
    // Slurm checks limits every half minute. Its signal waits until the stopped process goes on, which this Slurm sees to itself.
    wait("the signal before the limit", Duration::from_mins(1), || {
        let pending = status(&slow, "ShdPnd:").map_or(0, |mask| u64::from_str_radix(&mask, 16).unwrap());
        if pending & 1 << (10 - 1) != 0 {
            signal("CONT", &slow);
        }
        (!Path::new("/proc").join(&slow).exists()).then_some(())
    });
    // The next attempt has time enough.
    limit(60);
    let reference = sweep(dir.path(), "reference");
    command("run", &reference).succeed();
    wait("the end of all jobs", Duration::from_secs(100), || {
        sleep(Duration::from_millis(500));
        cluster.ask(&["squeue", "-h"]).is_empty().then_some(())
    });
    assert_eq!(cluster.ask(&["sinfo", "-h", "-N", "-n", node, "-o", "%T"]).trim_end_matches('*'), "down");

    let finished = events(&on_slurm, "finished");
    assert_eq!(finished.len(), 2 + 4 + 8, "{finished:?}");
    assert!(finished.iter().all(|(_, count)| *count == 1), "{finished:?}");
    let started = events(&on_slurm, "started");
    for (name, count) in &started {
        let is_broken =
            ["search.phantom.found.seed_1.fold_0", "search.phantom.found.seed_1.fold_1"].contains(&name.as_str());
        assert_eq!(*count, 1 + usize::from(is_broken), "{started:?}");
    }
    let log =
        |index: usize| fs::read_to_string(dir.path().join(format!("study/jobs/search.phantom-{index}.log"))).unwrap();
    assert!(log(2).contains("interrupted by SIGUSR1"), "{}", log(2));
    let (ours, expected) = (results(&on_slurm), results(&reference));
    let count =
        |files: &[(PathBuf, Vec<u8>)], ending: &str| files.iter().filter(|(path, _)| path.ends_with(ending)).count();
    assert_eq!((count(&expected, "architecture.json"), count(&expected, "model.safetensors")), (12, 8));
    assert_eq!(ours.len(), expected.len());
    for (a, b) in ours.iter().zip(&expected) {
        assert!(a == b, "{} differs", a.0.display());
    }
}
