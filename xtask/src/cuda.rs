//! Which build of `adw` a launch takes: with CUDA where both toolkit and driver are there, else without.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use adw_cuda_build::find_nvcc;
use anyhow::{Context, Result};

use crate::{UsageError, dataset::workspace};

/// What a CUDA build needs to be linked and started.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Cuda {
    /// The toolkit's folder.
    home: PathBuf,
    /// Where the program finds the toolkit's libraries.
    libraries: PathBuf,
}

/// The libraries of the toolkit that candle links, beside the driver's.
const LIBRARIES: [&str; 2] = ["libcublas.so", "libcurand.so"];

/// Why there is no CUDA build; each is a sentence's end.
fn look(driver: Option<&Path>, nvcc: Option<&Path>) -> Result<Cuda, String> {
    if driver.is_none() {
        return Err("there is no NVIDIA driver (libcuda.so.1) here".into());
    }
    let Some(nvcc) = nvcc else {
        return Err(
            "there is an NVIDIA driver, but no CUDA toolkit (nvcc): install one, or set CUDA_HOME to its folder".into(),
        );
    };
    // Through links such as /usr/local/cuda, or /usr/bin/nvcc.
    let nvcc = nvcc.canonicalize().unwrap_or(nvcc.to_owned());
    let home = nvcc.ancestors().nth(2).unwrap_or(Path::new("/")).to_owned();
    let folders = [
        "lib64",
        "lib",
        "targets/x86_64-linux/lib",
        "targets/sbsa-linux/lib",
    ];
    let holds = |folder: &PathBuf| LIBRARIES.iter().all(|name| folder.join(name).exists());
    match folders.into_iter().map(|f| home.join(f)).find(holds) {
        Some(libraries) => Ok(Cuda { home, libraries }),
        None => Err(format!(
            "the CUDA toolkit in {} lacks {}",
            home.display(),
            LIBRARIES.join(" and ")
        )),
    }
}

/// The driver's library, where the dynamic linker finds it.
fn find_driver() -> Option<PathBuf> {
    let asked = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let usual = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/usr/lib/wsl/lib",
        "/usr/local/nvidia/lib64",
        "/run/opengl-driver/lib",
    ];
    env::split_paths(&asked)
        .chain(usual.map(PathBuf::from))
        .map(|folder| folder.join("libcuda.so.1"))
        .find(|file| file.exists())
}

/// With CUDA or without, for what `--device` says; tells the person which, and why.
///
/// # Errors
/// A CUDA device is asked for, and something that its build needs is missing.
pub(crate) fn choose(device: Option<&str>) -> Result<Option<Cuda>> {
    decide(device, || {
        look(find_driver().as_deref(), find_nvcc().as_deref())
    })
}

fn decide(
    device: Option<&str>,
    look: impl FnOnce() -> Result<Cuda, String>,
) -> Result<Option<Cuda>> {
    let device = device.unwrap_or("auto");
    if device == "cpu" {
        return Ok(None);
    }
    match look() {
        Ok(cuda) => {
            eprintln!(
                "note: a build with CUDA, for there are a driver and a toolkit ({})",
                cuda.home.display()
            );
            Ok(Some(cuda))
        }
        Err(why) if device.starts_with("cuda") => {
            Err(UsageError(format!("--device {device}: {why}")).into())
        }
        Err(why) => {
            eprintln!("note: a build without CUDA, for {why}");
            Ok(None)
        }
    }
}

impl Cuda {
    /// Has cargo build with CUDA, in a target folder of its own: candle's kernels take minutes, and a build without them
    /// would throw them away.
    ///
    /// # Errors
    /// If the toolkit's path cannot be in a search path.
    pub(crate) fn build(&self, cargo: &mut Command) -> Result<()> {
        cargo
            .args(["--features", "cuda"])
            .arg("--target-dir")
            .arg(target_folder())
            .env("CUDA_HOME", &self.home)
            .env("CUDA_PATH", &self.home)
            .env("NVCC", self.home.join("bin/nvcc"));
        // cudarc asks the nvcc of the search path for its version.
        cargo.env("PATH", before(&[&self.home.join("bin")], "PATH")?);
        if env::var_os("CUDA_COMPUTE_CAP").is_none()
            && let Some(capability) = compute_capability()
        {
            cargo.env("CUDA_COMPUTE_CAP", capability);
        }
        Ok(())
    }

    /// Has the program find the toolkit's libraries.
    ///
    /// # Errors
    /// If its path cannot be in a search path.
    pub(crate) fn run(&self, program: &mut Command) -> Result<()> {
        let variable = "LD_LIBRARY_PATH";
        program.env(variable, before(&[&self.libraries], variable)?);
        Ok(())
    }
}

/// A search path that begins with these folders and goes on as it is.
pub(crate) fn before(first: &[&Path], variable: &str) -> Result<OsString> {
    let rest = env::var_os(variable).unwrap_or_default();
    let rest = env::split_paths(&rest).filter(|p| !p.as_os_str().is_empty());
    env::join_paths(first.iter().map(|p| p.to_path_buf()).chain(rest))
        .with_context(|| format!("{variable} cannot take {}", first[0].display()))
}

/// Where builds with CUDA are kept.
pub(crate) fn target_folder() -> PathBuf {
    workspace().join("target/cuda")
}

/// The lowest of all devices, as `90`.
fn compute_capability() -> Option<String> {
    let output = Command::new("nvidia-smi")
        .args(["--query-gpu=compute_cap", "--format=csv,noheader"])
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let all = text.lines().map(|line| line.trim().replace('.', ""));
    let lowest = all.filter_map(|c| c.parse::<u32>().ok()).min()?;
    Some(lowest.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_build_with_cuda_takes_a_driver_a_compiler_and_the_libraries() {
        let dir = tempfile::tempdir().expect("a folder");
        let (home, driver) = (dir.path().join("cuda"), dir.path().join("libcuda.so.1"));
        let nvcc = home.join("bin/nvcc");
        for file in [&nvcc, &driver] {
            fs::create_dir_all(file.parent().expect("a parent")).expect("a folder");
            fs::write(file, "").expect("a file");
        }
        let why = |driver: Option<&Path>, nvcc: Option<&Path>| {
            look(driver, nvcc).expect_err("something is missing")
        };
        assert!(why(None, Some(&nvcc)).contains("no NVIDIA driver"));
        assert!(why(Some(&driver), None).contains("set CUDA_HOME"));
        assert!(why(Some(&driver), Some(&nvcc)).contains("lacks libcublas.so and libcurand.so"));
        fs::create_dir(home.join("lib64")).expect("a folder");
        for name in LIBRARIES {
            fs::write(home.join("lib64").join(name), "").expect("a file");
        }
        let found = look(Some(&driver), Some(&nvcc)).expect("all is there");
        assert_eq!(found.libraries.file_name(), Some("lib64".as_ref()));
    }

    #[test]
    fn what_is_asked_for_is_built_or_refused() {
        let missing = || Err("there is none".to_owned());
        assert!(
            decide(Some("cpu"), || unreachable!())
                .expect("no need to look")
                .is_none()
        );
        assert!(decide(None, missing).expect("the CPU will do").is_none());
        let refused = decide(Some("cuda:1"), missing).expect_err("it was asked for");
        assert_eq!(refused.to_string(), "--device cuda:1: there is none");
    }
}
