#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names and texts of the files that every kernel source includes.
pub const HEADERS: [(&str, &str); 2] =
    [("device.cuh", include_str!("../include/device.cuh")), ("emulate.h", include_str!("../include/emulate.h"))];

/// Machine code for A100 and H100, and code that the driver compiles for what comes later.
const TARGETS: [&str; 3] =
    ["arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90", "arch=compute_90,code=compute_90"];

/// Path of nvcc, the first of: `NVCC`, `bin/nvcc` below `CUDA_HOME` or `CUDA_PATH`, the search path, `/usr/local/cuda`.
pub fn find_nvcc() -> Option<PathBuf> {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let path = env::var_os("PATH").unwrap_or_default();
    let candidates = env::var_os("NVCC").map(PathBuf::from).into_iter();
    candidates
        .chain(homes.map(|home| Path::new(&home).join("bin/nvcc")))
        .chain(env::split_paths(&path).map(|folder| folder.join("nvcc")))
        .chain([PathBuf::from("/usr/local/cuda/bin/nvcc")])
        .find(|nvcc| nvcc.is_file())
}

/// Compiles every source to `OUT_DIR/NAME.fatbin`, where `adw_cuda::module!` finds it, if the package has the feature
/// `cuda`. Called by build scripts.
///
/// # Panics
/// If there is no nvcc, or a source does not compile: the build's error message.
pub fn kernels(sources: &[&str]) {
    for source in sources {
        println!("cargo::rerun-if-changed={source}");
    }
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let nvcc = find_nvcc().expect(
        "the feature `cuda` needs the CUDA toolkit, version 13, and there is no nvcc: set CUDA_HOME to its folder",
    );
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for (name, text) in HEADERS {
        std::fs::write(out.join(name), text).expect("the build folder can be written to");
    }
    let jobs: Vec<_> = sources.iter().map(|source| (source, compile(&nvcc, Path::new(source), &out))).collect();
    for (source, child) in jobs {
        let output = child.wait_with_output().expect("nvcc was started");
        assert!(output.status.success(), "{source} does not compile:\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn compile(nvcc: &Path, source: &Path, out: &Path) -> std::process::Child {
    let name = source.file_stem().expect("a file").to_string_lossy().into_owned();
    let mut command = Command::new(nvcc);
    command.args(["-std=c++17", "-O3", "-fatbin"]);
    for target in TARGETS {
        command.args(["-gencode", target]);
    }
    command
        .arg("-I")
        .arg(out)
        .arg(source)
        .arg("-o")
        .arg(out.join(format!("{name}.fatbin")))
        .stderr(std::process::Stdio::piped());
    command.spawn().unwrap_or_else(|e| panic!("cannot start {}: {e}", nvcc.display()))
}
