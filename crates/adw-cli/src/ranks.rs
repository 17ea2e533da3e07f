//! Processes that a launcher such as `mpirun` has started together, for one search or training.
//!
//! Rank 0 does all that a process alone does. The others, its followers, print nothing and write nothing: they wait for the run that
//! rank 0 opens, train with it, and end with it.

use std::{
    env, mem,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use adw_mpi::World;
use adw_search::{BoxError, Error, Ranks};
use anyhow::Result;

use crate::{
    args::{Command, ConfigArgs},
    failure::{self, RankFailed, bad_input},
    interrupt,
    report::progress::{mute, note},
};

/// Meaning of a message: part of an exchange, or the end of the sender, with its exit code and its error.
const DATA: u8 = 0;
const END: u8 = 1;

/// Time after which a rank that waits for another leaves the processor to other work.
const PATIENCE: Duration = Duration::from_millis(20);

/// This process and those it was started with.
#[derive(Debug)]
struct Group {
    world: World,
    num_bytes: AtomicU64,
}

static GROUP: OnceLock<Arc<Group>> = OnceLock::new();

impl Group {
    /// Sends a message to one rank and receives one of another.
    fn swap(&self, to: usize, from: usize, kind: u8, bytes: &[u8]) -> (u8, Vec<u8>) {
        self.num_bytes.fetch_add(bytes.len() as u64, Relaxed);
        let mut header = [0; 9];
        let own = [&[kind], &(bytes.len() as u64).to_le_bytes()[..]].concat();
        let started = Instant::now();
        self.world.exchange(Some((to, &own)), Some((from, &mut header)), || {
            if started.elapsed() < PATIENCE { thread::yield_now() } else { thread::sleep(Duration::from_millis(1)) }
        });
        let [kind, length @ ..] = header;
        let mut received = vec![0; u64::from_le_bytes(length) as usize];
        // Both are here, and nothing moves without calls.
        self.world.exchange(Some((to, bytes)), Some((from, &mut received)), thread::yield_now);
        (kind, received)
    }

    /// Sends a part to each rank and returns those of all, in their order.
    ///
    /// # Errors
    /// A rank has ended.
    fn swap_all(&self, kind: u8, mut parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, RankFailed> {
        let (rank, size) = (self.rank(), self.size());
        let mut received = vec![vec![]; size];
        received[rank] = mem::take(&mut parts[rank]);
        let mut end: Option<RankFailed> = None;
        // In each turn every rank sends one message and receives one.
        for turn in 1..size {
            let (to, from) = ((rank + turn) % size, (rank + size - turn) % size);
            let (kind, bytes) = self.swap(to, from, kind, &mem::take(&mut parts[to]));
            if kind == END {
                let (code, message) = bytes.split_first().unwrap_or((&1, &[]));
                let failed =
                    RankFailed { rank: from, code: *code, message: String::from_utf8_lossy(message).into_owned() };
                // A failure rather than the end of one whose work is done.
                end = end.filter(|end| end.code > 0).or(Some(failed));
            }
            received[from] = bytes;
        }
        end.map_or(Ok(received), Err)
    }
}

impl Ranks for Group {
    fn rank(&self) -> usize {
        self.world.rank()
    }

    fn size(&self) -> usize {
        self.world.size()
    }

    fn all_to_all(&self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, BoxError> {
        Ok(self.swap_all(DATA, parts)?)
    }
}

/// Number in a variable of the environment.
fn number(name: &str) -> Option<usize> {
    env::var(name).ok()?.parse().ok()
}

/// Number of processes that the launcher has started; none without one.
fn num_launched() -> Option<usize> {
    if interrupt::is_child() {
        return None;
    }
    let of_slurm = || env::var_os("PMIX_RANK").and_then(|_| number("SLURM_STEP_NUM_TASKS"));
    // `srun` sets its variables for a single process, too.
    let several = number("PMI_SIZE").or_else(of_slurm).filter(|size| *size > 1);
    number("OMPI_COMM_WORLD_SIZE").or(several)
}

/// Joins the processes that a launcher has started with this one, for a command that they share.
///
/// # Errors
/// A command that they cannot share, or a program or launcher without MPI.
pub(crate) fn start(command: &Command) -> Result<()> {
    let Some(size) = num_launched().filter(|size| *size > 1) else { return Ok(()) };
    // Until MPI says which rank this is.
    let rank = ["OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"].iter().find_map(|name| number(name));
    let shares = matches!(command, Command::Search(_) | Command::Retrain(_) | Command::Run(_) | Command::Crossval(_));
    mute(shares && rank.is_some_and(|rank| rank > 0));
    match command {
        Command::Search(_) | Command::Retrain(_) => {}
        Command::Run(_) | Command::Crossval(_) => {
            bad_input!("{size} processes cannot share this command: start `search` and `retrain` with mpirun instead")
        }
        _ => return Ok(()),
    }
    let Some(world) = World::start() else {
        bad_input!(
            "{size} processes were started, but this program was built without MPI: build it with --features mpi"
        );
    };
    if world.size() != size {
        bad_input!(
            "the launcher has started {size} processes, MPI connects {}: take the mpirun of the MPI that this program was built with",
            world.size()
        );
    }
    mute(world.rank() > 0);
    let _ = GROUP.set(Arc::new(Group { world, num_bytes: AtomicU64::new(0) }));
    Ok(())
}

/// The ranks that share batches; none for a process alone.
pub(crate) fn shared() -> Option<Arc<dyn Ranks>> {
    Some(Arc::clone(GROUP.get()?) as Arc<dyn Ranks>)
}

/// Returns true on all ranks but 0.
pub(crate) fn is_follower() -> bool {
    GROUP.get().is_some_and(|group| group.rank() > 0)
}

/// Changes the arguments of a command that ranks share: under a launcher, passes sample by sample for the settings of `section`,
/// which any number of ranks can share; on a follower, the run that rank 0 opens, for which it waits.
///
/// # Errors
/// A rank has failed, or rank 0 has ended without a run.
pub(crate) fn join(section: &str, config: &mut ConfigArgs, run: &mut Option<PathBuf>, resume: &mut bool) -> Result<()> {
    if num_launched().is_some() {
        // First: a value of the command line is that of the user.
        config.set.insert(0, format!("{section}.per_sample=true"));
    }
    if let Some(group) = GROUP.get().filter(|group| group.rank() > 0) {
        let root = group.swap_all(DATA, vec![vec![]; group.size()])?.swap_remove(0);
        (*run, *resume) = (Some(PathBuf::from(String::from_utf8(root)?)), true);
    }
    Ok(())
}

/// Remedy for a setting `key` of the command line that differs from that of the work that goes on.
pub(crate) fn remedy(key: &str) -> &'static str {
    if key.ends_with(".per_sample") { "start it with or without mpirun, as before" } else { "leave that out" }
}

/// Makes the run in `root`, whose files are complete, that of the followers.
///
/// # Errors
/// A rank has failed.
pub(crate) fn lead(root: &Path) -> Result<()> {
    let Some(group) = GROUP.get() else { return Ok(()) };
    let root = std::path::absolute(root)?;
    group.swap_all(DATA, vec![root.into_os_string().into_encoded_bytes(); group.size()])?;
    Ok(())
}

/// Refuses more ranks than patches in a batch.
///
/// # Errors
/// Names both.
pub(crate) fn check(batch_size: usize) -> Result<()> {
    let size = GROUP.get().map_or(1, |group| group.size());
    if size > batch_size {
        return Err(Error::TooManyRanks { ranks: size, batch_size }.into());
    }
    Ok(())
}

/// Ends the work of all ranks with the result of this one, and returns the result of all: the first failure.
pub(crate) fn close(result: Result<()>) -> Result<()> {
    let Some(group) = GROUP.get() else { return result };
    if let Some(end) = result.as_ref().err().and_then(failure::rank_failed) {
        // This rank has seen the end of another in an exchange, as that one has seen its part.
        return if end.code == 0 { Ok(()) } else { result };
    }
    let own = match &result {
        Ok(()) => vec![0],
        Err(error) => {
            let code = interrupt::signal().map_or(failure::exit_code(error), |signal| 128 + signal as u8);
            [&[code], failure::one_line(error).as_bytes()].concat()
        }
    };
    match (result, group.swap_all(END, vec![own; group.size()])) {
        (Ok(()), Err(end)) if end.code > 0 => Err(end.into()),
        (Err(error), Err(end)) if end.code > 128 => {
            // The signal has arrived there alone, and all have stopped at the same step.
            interrupt::adopt(i32::from(end.code) - 128);
            Err(error)
        }
        (Ok(()), _) => {
            let (size, bytes) = (group.size(), group.num_bytes.load(Relaxed));
            note(&format!("{size} ranks; this one has sent {:.1} MB", bytes as f64 / 1e6));
            Ok(())
        }
        (error, _) => error,
    }
}

/// Ends the communication, as the last thing that a rank does.
pub(crate) fn finish() {
    if let Some(group) = GROUP.get() {
        // The launcher ends the others as soon as one has ended with an error.
        interrupt::ignore_signals();
        group.world.finish();
    }
}
