//! `cargo xtask gpu-bundle`: one folder with all that a machine with a GPU, and without Rust, needs to check and time `adw`.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use flate2::{Compression, write::GzEncoder};

use crate::{cuda_build, cuda_check::find_nvcc, output::say, workspace::workspace};

/// Scripts that go along.
const SCRIPTS: [&str; 3] = ["gpu.py", "torch_step.py", "adwunet_torch.py"];

#[derive(Args, Clone, Debug)]
pub(crate) struct GpuBundleArgs {
    /// The folder to make
    #[arg(long, value_name = "DIR", default_value = "target/gpu-bundle")]
    output: PathBuf,
}

/// `cargo xtask gpu-bundle`
pub(crate) fn gpu_bundle(args: &GpuBundleArgs) -> Result<ExitCode> {
    let build = cuda_build::build(&find_nvcc()?)?;
    let tests = build.test_program("adw-e2e", "cuda_device")?;
    // Aside and renamed: a folder that is there is whole.
    let aside = args.output.with_extension(format!("{}.tmp", std::process::id()));
    let _ = fs::remove_dir_all(&aside);
    fs::create_dir_all(&aside).with_context(|| aside.display().to_string())?;
    let filled = build.absent_cudnn(&aside.join("without-cudnn")).and_then(|()| fill(&aside, &build.program(), &tests));
    if let Err(error) = filled {
        let _ = fs::remove_dir_all(&aside);
        return Err(error);
    }
    let _ = fs::remove_dir_all(&args.output);
    fs::rename(&aside, &args.output).with_context(|| args.output.display().to_string())?;
    say(&format!("{}. On the machine with the GPU: python3 gpu.py", args.output.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn fill(folder: &Path, program: &Path, tests: &Path) -> Result<()> {
    for (file, name) in [(program, "adw"), (tests, "cuda_device")] {
        let stripped = folder.join(name);
        let status = Command::new("strip").arg("-o").arg(&stripped).arg(file).status().context("cannot start strip")?;
        if !status.success() {
            bail!("strip failed on {}", file.display());
        }
        pack(&stripped)?;
    }
    for script in SCRIPTS {
        let from = workspace().join("benchmarks").join(script);
        fs::copy(&from, folder.join(script)).with_context(|| from.display().to_string())?;
    }
    Ok(())
}

/// Replaces a file by `FILE.gz`.
fn pack(file: &Path) -> Result<()> {
    let mut name = file.as_os_str().to_owned();
    name.push(".gz");
    let out = File::create(&name).with_context(|| file.display().to_string())?;
    let mut encoder = GzEncoder::new(out, Compression::best());
    io::copy(&mut File::open(file)?, &mut encoder)
        .and_then(|_| encoder.finish())
        .with_context(|| file.display().to_string())?;
    fs::remove_file(file).with_context(|| file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_packed_file_replaces_its_original() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("adw");
        fs::write(&file, "a program").expect("a file");
        pack(&file).expect("packed");
        assert!(!file.exists());
        let mut text = String::new();
        let packed = File::open(dir.path().join("adw.gz")).expect("the packed file");
        flate2::read::GzDecoder::new(packed).read_to_string(&mut text).expect("whole");
        assert_eq!(text, "a program");
    }
}
