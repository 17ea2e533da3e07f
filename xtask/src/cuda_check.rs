//! `cargo xtask cuda-check`: every kernel compiled and assembled, without a GPU; on demand the whole program built, and
//! run on an emulated driver (`cuda_build.rs`).

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    cuda_build,
    output::{note, say},
    workspace::{kernel_sources, workspace},
};

/// Architectures that kernels are compiled for: A100 and H100.
const ARCHITECTURES: [&str; 2] = ["sm_80", "sm_90"];

/// Compiler and headers of CUDA 13.0, as wheels; all that compiling takes.
const WHEELS: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cuda-runtime==13.0.96",
];

/// Kernels that may use local memory: (name, bytes of stack, reason).
const ALLOWED: [(&str, u32, &str); 0] = [];

/// Resources of one kernel, as the assembler reports them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Usage {
    kernel: String,
    registers: u32,
    /// Static; dynamic shared memory is a matter of the launch.
    shared: u32,
    stack: u32,
    spills: u32,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct CudaCheckArgs {
    /// Build `adw` with CUDA, too, into target/cuda, and lint that code (from scratch a quarter of an hour)
    #[arg(long)]
    build: bool,
    /// Build it, and run the tests of CUDA code on a driver that emulates a GPU on the host
    #[arg(long)]
    emulate: bool,
    /// Passed to the tests
    #[arg(last = true, requires = "emulate")]
    rest: Vec<String>,
}

/// `cargo xtask cuda-check`
pub(crate) fn cuda_check(args: &CudaCheckArgs) -> Result<ExitCode> {
    let nvcc = find_nvcc()?;
    check_kernels(&nvcc)?;
    if args.build || args.emulate {
        let build = cuda_build::build(&nvcc)?;
        cuda_build::lint(&build)?;
        if args.emulate {
            cuda_build::emulate(&build, &args.rest)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn check_kernels(nvcc: &Path) -> Result<()> {
    let sources = kernel_sources(&workspace().join("crates"))?;
    if sources.is_empty() {
        bail!("no .cu file in {}", workspace().join("crates").display());
    }
    let mut offenders = Vec::new();
    say("| kernel | for | registers | static shared (B) | stack (B) | spills (B) |\n|---|---|--:|--:|--:|--:|")?;
    for source in &sources {
        for architecture in ARCHITECTURES {
            for usage in assemble(nvcc, source, architecture)? {
                let Usage { kernel, registers, shared, stack, spills } = &usage;
                say(&format!("| {kernel} | {architecture} | {registers} | {shared} | {stack} | {spills} |"))?;
                let allowed = ALLOWED.iter().find(|a| a.0 == kernel).map_or(0, |a| a.1);
                if *spills > 0 || *stack > allowed {
                    offenders.push(format!("{kernel} for {architecture}: {stack} bytes of stack, {spills} spilled"));
                }
            }
        }
    }
    if !offenders.is_empty() {
        bail!("kernels that use local memory and are not on the list of exceptions:\n  {}", offenders.join("\n  "));
    }
    Ok(())
}

/// The toolkit's compiler: that of the machine, else one in the target folder, fetched once.
pub(crate) fn find_nvcc() -> Result<PathBuf> {
    if let Some(nvcc) = adw_cuda_build::find_nvcc() {
        return Ok(nvcc);
    }
    let folder = workspace().join("target/cuda-toolkit");
    let nvcc = folder.join("nvidia/cu13/bin/nvcc");
    if nvcc.is_file() {
        return Ok(nvcc);
    }
    note(&format!("no CUDA toolkit here: fetching one into {} (104 MB of Python wheels)", folder.display()));
    // Aside and renamed: an interrupted installation leaves no half of a toolkit.
    let aside = workspace().join(format!("target/cuda-toolkit.{}", std::process::id()));
    let status = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--only-binary=:all:"])
        .args(["--disable-pip-version-check", "--target"])
        .arg(&aside)
        .args(WHEELS)
        .status()
        .context("cannot start python3, whose pip fetches the toolkit; set CUDA_HOME to one that is there")?;
    if !status.success() {
        let _ = fs::remove_dir_all(&aside);
        bail!("pip cannot install the CUDA toolkit; set CUDA_HOME to one that is there");
    }
    let _ = fs::remove_dir_all(&folder);
    fs::rename(&aside, &folder).with_context(|| format!("cannot rename {}", aside.display()))?;
    Ok(nvcc)
}

fn assemble(nvcc: &Path, source: &Path, architecture: &str) -> Result<Vec<Usage>> {
    let output = Command::new(nvcc)
        .args(["-std=c++17", "-O3", "-cubin", "-Xptxas", "-v"])
        .arg(format!("-arch={architecture}"))
        .arg("-I")
        .arg(workspace().join("crates/adw-cuda-build/include"))
        .arg(source)
        .arg("-o")
        .arg(if cfg!(windows) { "NUL" } else { "/dev/null" })
        .output()
        .with_context(|| format!("cannot start {}", nvcc.display()))?;
    let log = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{} does not compile for {architecture}:\n{log}", source.display());
    }
    let usages = parse(&log);
    if usages.is_empty() {
        bail!("{} has no kernel, or the assembler's messages have changed:\n{log}", source.display());
    }
    Ok(usages)
}

/// Reads `ptxas -v`.
fn parse(log: &str) -> Vec<Usage> {
    // The number in front of a phrase.
    let before = |line: &str, phrase: &str| -> u32 {
        let number = line.find(phrase).and_then(|at| line[..at].split_whitespace().last());
        number.and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    let mut usages: Vec<Usage> = Vec::new();
    for line in log.lines() {
        if line.contains("Compiling entry function") {
            let kernel = line.split('\'').nth(1).unwrap_or_default().to_owned();
            usages.push(Usage { kernel, ..Usage::default() });
        } else if let Some(usage) = usages.last_mut() {
            if line.contains("stack frame") {
                usage.stack = before(line, " bytes stack frame");
                usage.spills = before(line, " bytes spill stores") + before(line, " bytes spill loads");
            } else if line.contains("registers") {
                usage.registers = before(line, " registers");
                usage.shared = before(line, " bytes smem");
            }
        }
    }
    usages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_assemblers_messages() {
        let log = "ptxas info    : 8 bytes gmem\n\
                   ptxas info    : Compiling entry function 'norm_moments_f32' for 'sm_90'\n\
                   ptxas info    : Function properties for norm_moments_f32\n    \
                   16 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
                   ptxas info    : Used 40 registers, used 1 barriers, 128 bytes smem, 384 bytes cmem[0]\n";
        let expected = Usage { kernel: "norm_moments_f32".into(), registers: 40, shared: 128, stack: 16, spills: 16 };
        assert_eq!(parse(log), [expected]);
    }
}
