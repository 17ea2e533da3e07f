//! Limits of the Slurm job that this process belongs to. Clusters without control groups only watch over them.

use std::env;

/// Cores of this process's task, `SLURM_CPUS_PER_TASK`; none outside a job that requests them.
pub(crate) fn cores() -> Option<usize> {
    cores_of(&variable)
}

/// Bytes of memory of the job on this node, with the variable that gives them; none outside a job that requests memory.
pub(crate) fn memory_bytes() -> Option<(u64, &'static str)> {
    memory_bytes_of(&variable)
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok()
}

fn cores_of(variable: &dyn Fn(&str) -> Option<String>) -> Option<usize> {
    variable("SLURM_CPUS_PER_TASK")?.parse().ok().filter(|cores| *cores > 0)
}

/// Per node, or per core times the job's cores on this node. `--mem=0`, all memory of the node, is no limit.
fn memory_bytes_of(variable: &dyn Fn(&str) -> Option<String>) -> Option<(u64, &'static str)> {
    let bytes_in = |name: &str| bytes(&variable(name)?).filter(|bytes| *bytes > 0);
    let per_node = bytes_in("SLURM_MEM_PER_NODE").map(|bytes| (bytes, "SLURM_MEM_PER_NODE"));
    per_node.or_else(|| {
        let on_node = variable("SLURM_CPUS_ON_NODE").and_then(|text| text.parse::<u64>().ok());
        let cores = on_node.or(cores_of(variable).map(|cores| cores as u64)).unwrap_or(1);
        Some((bytes_in("SLURM_MEM_PER_CPU")?.saturating_mul(cores), "SLURM_MEM_PER_CPU"))
    })
}

/// Bytes of an amount as `sbatch --mem` takes it: mebibytes without a unit.
fn bytes(text: &str) -> Option<u64> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let power = match &text[number.len()..] {
        "K" => 1,
        "" | "M" => 2,
        "G" => 3,
        "T" => 4,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << (10 * power))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_that_the_job_was_given() {
        const MIB: u64 = 1 << 20;
        let with = |variables: &'static [(&str, &str)]| {
            move |name: &str| variables.iter().find(|(other, _)| *other == name).map(|(_, text)| (*text).to_owned())
        };
        let memory = |variables| memory_bytes_of(&with(variables));
        assert_eq!((memory(&[]), cores_of(&with(&[]))), (None, None));
        assert_eq!(memory(&[("SLURM_MEM_PER_NODE", "2000")]), Some((2000 * MIB, "SLURM_MEM_PER_NODE")));
        assert_eq!(memory(&[("SLURM_MEM_PER_NODE", "3G")]), Some((3072 * MIB, "SLURM_MEM_PER_NODE")));
        assert_eq!(memory(&[("SLURM_MEM_PER_NODE", "0")]), None);
        assert_eq!(memory(&[("SLURM_MEM_PER_NODE", "much")]), None);
        assert_eq!(memory(&[("SLURM_MEM_PER_CPU", "500")]), Some((500 * MIB, "SLURM_MEM_PER_CPU")));
        let four = &[("SLURM_MEM_PER_CPU", "500"), ("SLURM_CPUS_PER_TASK", "2"), ("SLURM_CPUS_ON_NODE", "4")];
        assert_eq!(memory(four), Some((2000 * MIB, "SLURM_MEM_PER_CPU")));
        assert_eq!(cores_of(&with(four)), Some(2));
        assert_eq!(memory(&[("SLURM_MEM_PER_CPU", "500"), ("SLURM_CPUS_PER_TASK", "2")]).unwrap().0, 1000 * MIB);
    }
}
