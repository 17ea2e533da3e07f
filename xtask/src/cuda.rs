//! Which build of `adw` a launch takes: with CUDA where both toolkit and driver are there, else without.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use adw_cuda_build::find_nvcc;
use anyhow::{Context, Result};

use crate::{failure::UsageError, output::note, workspace::workspace};

/// Files that a CUDA build needs to be linked and started.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Cuda {
    /// The toolkit's folder.
    home: PathBuf,
    /// Folder of the toolkit's libraries.
    libraries: PathBuf,
    /// Path of cuDNN's library, if it is there.
    cudnn: Option<PathBuf>,
}

/// The libraries of the toolkit that candle links, beside the driver's.
const LIBRARIES: [&str; 5] = ["libcublas.so", "libcublasLt.so", "libcudart.so", "libcurand.so", "libnvrtc.so"];

/// cuDNN's, which is not part of a toolkit; the release whose interface the program knows.
const CUDNN: &str = "libcudnn.so.9";

/// Finds the files of a CUDA build; the error says what is missing, as the end of a sentence. cuDNN is looked for in
/// the toolkit, too.
fn look(driver: Option<&Path>, nvcc: Option<&Path>, cudnn_folders: &[PathBuf]) -> Result<Cuda, String> {
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
    let folders = ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"];
    let lacks = |folder: &PathBuf| {
        let missing = LIBRARIES.into_iter().filter(|name| !folder.join(name).exists());
        missing.collect::<Vec<_>>()
    };
    let folders = folders.map(|folder| home.join(folder));
    let libraries = folders.into_iter().min_by_key(|folder| lacks(folder).len());
    let libraries = libraries.unwrap_or_default();
    let missing = lacks(&libraries);
    if !missing.is_empty() {
        return Err(format!("the CUDA toolkit in {} lacks {}", home.display(), missing.join(", ")));
    }
    let cudnn = cudnn_folders.iter().chain([&libraries]);
    let cudnn = cudnn.map(|f| f.join(CUDNN)).find(|file| file.exists());
    Ok(Cuda { home, libraries, cudnn })
}

/// Folders in which the dynamic linker looks for libraries.
fn library_folders() -> Vec<PathBuf> {
    let asked = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let usual = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/usr/lib/wsl/lib",
        "/usr/local/nvidia/lib64",
        "/usr/local/cudnn/lib",
        "/run/opengl-driver/lib",
    ];
    let asked: Vec<_> = env::split_paths(&asked).collect();
    asked.into_iter().chain(usual.map(PathBuf::from)).collect()
}

/// With CUDA or without, for what `--device` says; tells the person which, and why.
///
/// # Errors
/// A CUDA device is asked for, and something that its build needs is missing.
pub(crate) fn choose(device: Option<&str>) -> Result<Option<Cuda>> {
    decide(device, || {
        let folders = library_folders();
        let drivers = folders.iter().map(|folder| folder.join("libcuda.so.1"));
        let driver = drivers.into_iter().find(|file| file.exists());
        look(driver.as_deref(), find_nvcc().as_deref(), &folders)
    })
}

fn decide(device: Option<&str>, look: impl FnOnce() -> Result<Cuda, String>) -> Result<Option<Cuda>> {
    let device = device.unwrap_or("auto");
    if device == "cpu" {
        return Ok(None);
    }
    match look() {
        Ok(cuda) => {
            note(&format!("note: {}", cuda.describe()));
            Ok(Some(cuda))
        }
        Err(why) if device.starts_with("cuda") => Err(UsageError(format!("--device {device}: {why}")).into()),
        Err(why) => {
            note(&format!("note: a build without CUDA, for {why}"));
            Ok(None)
        }
    }
}

impl Cuda {
    fn describe(&self) -> String {
        let home = self.home.display();
        match &self.cudnn {
            Some(cudnn) => format!(
                "a build with CUDA and cuDNN, for there are a driver, a toolkit ({home}) and {}",
                cudnn.display()
            ),
            None => format!(
                "a build with CUDA but without cuDNN, for there are a driver and a toolkit ({home}), but no {CUDNN}: \
                 install it, or set LD_LIBRARY_PATH to its folder, for `--convolutions cudnn`"
            ),
        }
    }

    /// Has cargo build with CUDA, in a target folder of its own: candle's kernels take minutes, and a build without them
    /// would throw them away.
    ///
    /// # Errors
    /// If the toolkit's path cannot be in a search path.
    pub(crate) fn build(&self, cargo: &mut Command) -> Result<()> {
        let feature = if let Some(cudnn) = &self.cudnn {
            // Wheels have the library by its full name only, which the linker does not look for.
            let folder = target_folder().join("link");
            fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
            let cudnn = cudnn.canonicalize().unwrap_or_else(|_| cudnn.clone());
            link(&cudnn, &folder.join("libcudnn.so"))?;
            cargo.env("LIBRARY_PATH", before(&[&folder], "LIBRARY_PATH")?);
            "cudnn"
        } else {
            "cuda"
        };
        cargo
            .args(["--features", feature])
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
        let cudnn = self.cudnn.as_ref().and_then(|file| file.parent());
        let folders: Vec<_> = [self.libraries.as_path()].into_iter().chain(cudnn).collect();
        program.env(variable, before(&folders, variable)?);
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

/// Makes `link` a symbolic link to `to`, whatever it was.
///
/// # Errors
/// If there are none here, or the folder cannot be written.
pub(crate) fn link(to: &Path, link: &Path) -> Result<()> {
    let _ = fs::remove_file(link);
    #[cfg(unix)]
    std::os::unix::fs::symlink(to, link).with_context(|| link.display().to_string())?;
    #[cfg(not(unix))]
    anyhow::bail!("no symbolic link from {} to {}", link.display(), to.display());
    #[cfg(unix)]
    Ok(())
}

/// Target folder of builds with CUDA.
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
        let why =
            |driver: Option<&Path>, nvcc: Option<&Path>| look(driver, nvcc, &[]).expect_err("something is missing");
        assert!(why(None, Some(&nvcc)).contains("no NVIDIA driver"));
        assert!(why(Some(&driver), None).contains("set CUDA_HOME"));
        assert!(why(Some(&driver), Some(&nvcc)).contains("lacks libcublas.so, libcublasLt.so"));
        fs::create_dir(home.join("lib64")).expect("a folder");
        for name in LIBRARIES {
            let last = why(Some(&driver), Some(&nvcc));
            assert!(last.contains(name), "{last}");
            fs::write(home.join("lib64").join(name), "").expect("a file");
        }
        let found = |folders: &[PathBuf]| look(Some(&driver), Some(&nvcc), folders).expect("all is there");
        let cuda = found(&[]);
        assert_eq!(cuda.libraries.file_name(), Some("lib64".as_ref()));
        assert_eq!(cuda.cudnn, None);
        assert!(cuda.describe().contains("without cuDNN"));
        let wheel = dir.path().join("nvidia/cudnn/lib");
        fs::create_dir_all(&wheel).expect("a folder");
        fs::write(wheel.join(CUDNN), "").expect("a file");
        let cuda = found(&[dir.path().to_owned(), wheel.clone()]);
        assert_eq!(cuda.cudnn, Some(wheel.join(CUDNN)));
        assert!(cuda.describe().contains("CUDA and cuDNN"));
    }

    #[test]
    fn what_is_asked_for_is_built_or_refused() {
        let missing = || Err("there is none".to_owned());
        assert!(decide(Some("cpu"), || unreachable!()).expect("no need to look").is_none());
        assert!(decide(None, missing).expect("the CPU will do").is_none());
        let refused = decide(Some("cuda:1"), missing).expect_err("it was asked for");
        assert_eq!(refused.to_string(), "--device cuda:1: there is none");
    }
}
