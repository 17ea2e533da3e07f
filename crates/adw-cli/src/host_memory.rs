//! Memory of the host, as Linux reports it.

use std::{fs, path::Path};

/// Bytes that can be allocated without swapping: Linux's own estimate, or the rest of the control group if that is less;
/// none on other systems.
pub(crate) fn available_bytes() -> Option<u64> {
    let available = bytes_in(Path::new("/proc/meminfo"), "MemAvailable:")?;
    let in_group = left_in_control_group(Path::new("/sys/fs/cgroup"));
    Some(in_group.map_or(available, |group| group.min(available)))
}

/// Peak of the memory of this process; none on other systems than Linux.
pub(crate) fn peak_bytes() -> Option<u64> {
    bytes_in(Path::new("/proc/self/status"), "VmHWM:")
}

/// Amount that the line of `key` gives in one of Linux's tables.
fn bytes_in(table: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(table).ok()?;
    let amount = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = amount.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

/// Rest of the control group's limit, of either version of control groups; none without a limit. The page cache counts as
/// used there, but the kernel gives it up when a process needs memory.
fn left_in_control_group(root: &Path) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(root.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let (max, used, stat, prefix) = match number("memory.max") {
        Some(max) => (max, number("memory.current")?, read("memory.stat"), ""),
        None => (
            number("memory/memory.limit_in_bytes")?,
            number("memory/memory.usage_in_bytes")?,
            read("memory/memory.stat"),
            // Keys without this prefix leave out the groups below.
            "total_",
        ),
    };
    let stat = stat.unwrap_or_default();
    let cache: u64 = stat
        .lines()
        .filter_map(|line| {
            let (key, bytes) = line.strip_prefix(prefix)?.split_once(' ')?;
            matches!(key, "inactive_file" | "active_file").then(|| bytes.parse::<u64>().ok())?
        })
        .sum();
    Some(max.saturating_sub(used.saturating_sub(cache)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_group_of_either_version_leaves_its_limit_less_what_is_no_cache() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(left_in_control_group(dir.path()), None);
        fs::create_dir(dir.path().join("memory")).unwrap();
        write("memory/memory.limit_in_bytes", "1000\n");
        write("memory/memory.usage_in_bytes", "700\n");
        let stat = "inactive_file 1\ntotal_inactive_file 200\ntotal_active_file 50\n";
        write("memory/memory.stat", stat);
        assert_eq!(left_in_control_group(dir.path()), Some(550));
        write("memory.max", "2000\n");
        write("memory.current", "1900\n");
        assert_eq!(left_in_control_group(dir.path()), Some(100));
        write("memory.stat", "anon 7\ninactive_file 1000\nactive_file 500\n");
        assert_eq!(left_in_control_group(dir.path()), Some(1600));
        write("memory.max", "max\n");
        assert_eq!(left_in_control_group(dir.path()), Some(550), "version 1 applies");
    }
}
