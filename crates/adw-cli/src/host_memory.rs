//! Memory of the host and the limits of this process, as Linux reports them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use crate::{batch_job, failure::bad_input};

/// Rest of a limit on the memory of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    /// Bytes that can be allocated before it is met.
    pub(crate) left: u64,
    /// File, variable or command that sets it.
    pub(crate) origin: String,
}

/// Bytes that can be allocated without swapping: Linux's own estimate, or [`left_of_limits`] if that is less; none on other
/// systems.
pub(crate) fn available_bytes() -> Option<u64> {
    let available = bytes_in(&text_of("/proc/meminfo")?, "MemAvailable:")?;
    Some(left_of_limits().map_or(available, |left| left.min(available)))
}

/// Bytes that this process can allocate before it meets a limit that is set for it; none without any.
pub(crate) fn left_of_limits() -> Option<u64> {
    least_limit().map(|limit| limit.left)
}

/// Limit that this process meets first: of its control groups and of their parents, of its address space (`ulimit -v`), of its data
/// (`ulimit -d`), and of its Slurm job. None without any.
pub(crate) fn least_limit() -> Option<Limit> {
    let groups = text_of("/proc/self/mountinfo").zip(text_of("/proc/self/cgroup"));
    let groups = groups.map(|(mounts, groups)| control_groups(&mounts, &groups)).unwrap_or_default();
    let in_groups = groups.iter().filter_map(|folder| {
        Some(Limit { left: left_in_control_group(folder)?, origin: format!("the control group {}", folder.display()) })
    });
    let status = text_of("/proc/self/status").unwrap_or_default();
    let of_process = limit_of_process(&status);
    let of_job = batch_job::memory_bytes().map(|(bytes, variable)| Limit {
        left: bytes.saturating_sub(bytes_in(&status, "VmRSS:").unwrap_or(0)),
        origin: variable.to_owned(),
    });
    in_groups.chain(of_process).chain(of_job).min_by_key(|limit| limit.left)
}

/// Room that a process needs beyond its program to start threads and to say what goes wrong.
const LEAST_ROOM: u64 = 32 << 20;

/// Checks that this process has room for more than its program. Without, an allocation of some bytes may fail, which ends a
/// process without a message of its own.
///
/// # Errors
/// Limits of address space or data that leave too little.
pub(crate) fn check_room() -> Result<()> {
    match limit_of_process(&text_of("/proc/self/status").unwrap_or_default()) {
        Some(Limit { left, origin }) if left < LEAST_ROOM => bad_input!(
            "`{origin}` leaves {:.1} MB for this program, which needs {} MB to start: raise it",
            left as f64 / 1e6,
            LEAST_ROOM / 1_000_000
        ),
        _ => Ok(()),
    }
}

/// Peak of the memory of this process; none on other systems than Linux.
pub(crate) fn peak_bytes() -> Option<u64> {
    bytes_in(&text_of("/proc/self/status")?, "VmHWM:")
}

fn text_of(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// Amount that the line of `key` gives in one of Linux's tables.
fn bytes_in(table: &str, key: &str) -> Option<u64> {
    let amount = table.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = amount.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

/// Limit that this process has and meets first, given its `/proc/self/status`.
fn limit_of_process(status: &str) -> Option<Limit> {
    left_of_process(&text_of("/proc/self/limits")?, status)
}

/// Least rest of the limits in `/proc/self/limits`, given the use in `/proc/self/status`.
fn left_of_process(limits: &str, status: &str) -> Option<Limit> {
    let left = |limit: &str, used: &str, command: &str| {
        let limit = limits.lines().find_map(|line| line.strip_prefix(limit))?;
        let limit: u64 = limit.split_whitespace().next()?.parse().ok()?; // or `unlimited`
        Some(Limit { left: limit.saturating_sub(bytes_in(status, used)?), origin: command.to_owned() })
    };
    let all = [left("Max address space", "VmSize:", "ulimit -v"), left("Max data size", "VmData:", "ulimit -d")];
    all.into_iter().flatten().min_by_key(|limit| limit.left)
}

/// Folders of the control groups that bound the memory of a process, its own and their parents, from the texts of
/// `/proc/self/mountinfo` and `/proc/self/cgroup`.
fn control_groups(mounts: &str, groups: &str) -> Vec<PathBuf> {
    // 4:memory:/group in version 1, 0::/group in version 2.
    let group = |version_2: bool| {
        groups.lines().find_map(|line| {
            let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
            let found = if version_2 { controllers.is_empty() } else { controllers.split(',').any(|c| c == "memory") };
            found.then_some(Path::new(group))
        })
    };
    let folders = mounts.lines().filter_map(|line| {
        // 35 31 0:32 ROOT MOUNT_POINT OPTIONS ... - TYPE SOURCE OPTIONS
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, mount_point) = (Path::new(fields.next()?), Path::new(fields.next()?));
        let mut fields = file_system.split(' ');
        let version_2 = match (fields.next()?, fields.nth(1)?) {
            ("cgroup2", _) => true,
            ("cgroup", options) if options.split(',').any(|option| option == "memory") => false,
            _ => return None,
        };
        // A container may see its group as the root of the mount without knowing it by that name.
        let below = group(version_2)?.strip_prefix(root).unwrap_or(Path::new(""));
        // Without the slash that an empty path would leave at the end.
        let own: PathBuf = mount_point.join(below).components().collect();
        let within = own.ancestors().take_while(|folder| folder.starts_with(mount_point));
        Some(within.map(Path::to_path_buf).collect::<Vec<_>>())
    });
    folders.flatten().collect()
}

/// Rest of the limit of the control group in `folder`, of either version; none without a limit. The page cache counts as used
/// there, but the kernel gives it up when a process needs memory.
fn left_in_control_group(folder: &Path) -> Option<u64> {
    let number = |name: &str| text_of(folder.join(name))?.trim().parse::<u64>().ok();
    let (limit, used, prefix) = match [number("memory.max"), number("memory.high")].into_iter().flatten().min() {
        Some(limit) => (limit, number("memory.current")?, ""),
        // Keys without this prefix leave out the groups below.
        None => (number("memory.limit_in_bytes")?, number("memory.usage_in_bytes")?, "total_"),
    };
    let stat = text_of(folder.join("memory.stat")).unwrap_or_default();
    let cache: u64 = stat
        .lines()
        .filter_map(|line| {
            let (key, bytes) = line.strip_prefix(prefix)?.split_once(' ')?;
            matches!(key, "inactive_file" | "active_file").then(|| bytes.parse::<u64>().ok())?
        })
        .sum();
    Some(limit.saturating_sub(used.saturating_sub(cache)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_group_of_either_version_leaves_its_limit_less_what_is_no_cache() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(left_in_control_group(dir.path()), None);
        write("memory.limit_in_bytes", "1000\n");
        write("memory.usage_in_bytes", "700\n");
        write("memory.stat", "inactive_file 1\ntotal_inactive_file 200\ntotal_active_file 50\n");
        assert_eq!(left_in_control_group(dir.path()), Some(550));

        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("memory.max", "2000\n");
        write("memory.current", "1900\n");
        assert_eq!(left_in_control_group(dir.path()), Some(100));
        write("memory.stat", "anon 7\ninactive_file 1000\nactive_file 500\n");
        assert_eq!(left_in_control_group(dir.path()), Some(1600));
        write("memory.high", "1500\n");
        assert_eq!(left_in_control_group(dir.path()), Some(1100), "the lower of both");
        write("memory.max", "max\n");
        write("memory.high", "max\n");
        assert_eq!(left_in_control_group(dir.path()), None);
    }

    #[test]
    fn groups_are_those_of_the_process_and_their_parents() {
        let paths = |mounts: &str, groups: &str| -> Vec<String> {
            control_groups(mounts, groups).iter().map(|folder| folder.display().to_string()).collect()
        };
        let version_1 = "34 31 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                         35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n";
        let jobs = ["/sys/fs/cgroup/memory/slurm/job_7", "/sys/fs/cgroup/memory/slurm", "/sys/fs/cgroup/memory"];
        assert_eq!(paths(version_1, "9:name=systemd:/\n4:cpu,memory:/slurm/job_7\n0::/\n"), jobs);
        let version_2 = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let user = ["/sys/fs/cgroup/user.slice/a.scope", "/sys/fs/cgroup/user.slice", "/sys/fs/cgroup"];
        assert_eq!(paths(version_2, "0::/user.slice/a.scope\n"), user);
        // Containers: the group is the root of the mount, whether the process sees its name or not.
        let container = "35 31 0:32 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        assert_eq!(paths(container, "4:memory:/docker/ab\n"), ["/sys/fs/cgroup/memory"]);
        assert_eq!(paths(container, "4:memory:/\n"), ["/sys/fs/cgroup/memory"]);
        assert!(paths("", "0::/\n").is_empty());
    }

    #[test]
    fn limits_of_the_process_leave_what_it_does_not_use() {
        let status = "VmSize:\t  300 kB\nVmData:\t  100 kB\n";
        let limits = |space: &str, data: &str| {
            format!(
                "Limit  Soft Limit  Hard Limit  Units\nMax data size  {data}  unlimited  bytes\nMax address space  {space}  unlimited  bytes\n"
            )
        };
        let least = |space, data| left_of_process(&limits(space, data), status).map(|limit| (limit.left, limit.origin));
        assert_eq!(least("unlimited", "unlimited"), None);
        assert_eq!(least("409600", "unlimited"), Some((102_400, "ulimit -v".to_owned())));
        assert_eq!(least("409600", "103424"), Some((1024, "ulimit -d".to_owned())));
        assert_eq!(least("4096", "unlimited"), Some((0, "ulimit -v".to_owned())));
    }
}
