//! `cargo xtask cuda-check --build` and `--emulate`: the program with CUDA, built and run on a machine without a GPU.
//!
//! Everything goes to `target/cuda`. The libraries in `target/cuda/emulated` are what the program is linked with, under the
//! names and with the functions of NVIDIA's; beside the emulated kernels they are also what it can run on. On a machine
//! with a GPU the same program finds the real ones.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    cuda::{before, link, target_folder},
    cuda_stubs::stub_source,
    launch::built_program,
    output::{note, say},
    workspace::{cargo, kernel_sources, workspace},
};

/// Packages with tests of CUDA code, in files `tests/cuda_*.rs`, which `--emulate` runs. Each has a feature `cudnn`. The
/// program is among them for its dependencies' features, which are so those of its own build.
const TESTED: [&str; 3] = ["adw-cli", "adw-cuda", "adw-e2e"];

/// Flags that compile kernels for the host. Fibers jump between stacks, which glibc's checked longjmp takes for a mistake;
/// a product and a sum in one rounding would depend on the host's processor.
const KERNEL_FLAGS: [&str; 10] = [
    "-x",
    "c++",
    "-std=c++17",
    "-O2",
    "-pthread",
    "-U_FORTIFY_SOURCE",
    "-ffp-contract=off",
    "-Wno-unknown-pragmas",
    "-DADW_EMULATED",
    "-DADW_EMULATED_PARALLEL",
];

/// One of the libraries that a program with CUDA is linked with.
struct Library {
    name: &'static str,
    /// The number in its file name.
    version: u32,
    /// cudarc's module with its functions.
    module: &'static str,
    /// Result of a function that is not emulated: "not supported" in the library's own numbers.
    failure: u32,
}

/// The environment of a build.
pub(crate) struct Build {
    variables: Vec<(&'static str, OsString)>,
    /// Folder of the libraries to link with and of the kernels for the host.
    emulated: PathBuf,
    /// Search path of a program for them.
    library_path: OsString,
}

/// Builds `adw` with CUDA.
///
/// # Errors
/// If a compiler is missing, or the program does not compile or link.
pub(crate) fn build(nvcc: &Path) -> Result<Build> {
    if !cfg!(target_os = "linux") {
        bail!("libraries to link with are made on Linux only: build with --features cuda and a toolkit of your own");
    }
    let build = Build::new(nvcc)?;
    run(build.cargo("build").args(["--package", "adw-cli", "--features", "adw-cli/cudnn"]))?;
    say(&format!("built {}", target_folder().join("release/adw").display()))?;
    Ok(build)
}

/// Lints CUDA code, which no other build compiles.
///
/// # Errors
/// If there is something to complain of.
pub(crate) fn lint(build: &Build) -> Result<()> {
    let there = cargo().args(["clippy", "--version"]).output();
    if !there.is_ok_and(|o| o.status.success()) {
        note("warning: clippy is missing; CUDA code is not linted");
        return Ok(());
    }
    let mut clippy = build.cargo("clippy");
    clippy.args(tested()).args(["--all-targets", "--", "-D", "warnings"]);
    run(&mut clippy)
}

/// Runs the tests of CUDA code, and the program's start, on the emulated driver.
///
/// # Errors
/// If a kernel does not compile for the host, or a test fails.
pub(crate) fn emulate(build: &Build, test_arguments: &[String]) -> Result<()> {
    build.compile_kernels()?;
    let program = target_folder().join("release/adw");
    run(Command::new(&program).arg("--version").env("LD_LIBRARY_PATH", &build.library_path))?;
    // Once more with cuDNN's convolutions.
    for (tests, convolutions) in [("cuda_*", "own"), ("cuda_device", "cudnn")] {
        let mut cargo = build.cargo("test");
        cargo
            .args(tested())
            .args(["--test", tests, "--"])
            .args(test_arguments)
            .env("ADW_TEST_CONVOLUTIONS", convolutions)
            .env("LD_LIBRARY_PATH", &build.library_path);
        run(&mut cargo)?;
    }
    say(&format!(
        "to run the program on the host: LD_LIBRARY_PATH={} {}",
        build.emulated.display(),
        program.display()
    ))?;
    Ok(())
}

/// The tested packages as arguments of cargo.
fn tested() -> Vec<String> {
    let packages = TESTED.iter().map(|p| format!("--package={p}"));
    let features: Vec<_> = TESTED.iter().map(|p| format!("{p}/cudnn")).collect();
    packages.chain([format!("--features={}", features.join(","))]).collect()
}

impl Build {
    fn new(nvcc: &Path) -> Result<Self> {
        // Through links such as /usr/local/cuda, or /usr/bin/nvcc.
        let nvcc = &nvcc.canonicalize().unwrap_or_else(|_| nvcc.to_path_buf());
        let home = nvcc.ancestors().nth(2).context("nvcc lies in no toolkit")?;
        let (major, minor) = version(nvcc)?;
        let emulated = target_folder().join("emulated");
        fs::create_dir_all(&emulated).with_context(|| emulated.display().to_string())?;

        // cudarc looks at all four; one that is set otherwise must not win.
        let homes = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"];
        let mut variables: Vec<_> = homes.into_iter().map(|name| (name, home.as_os_str().to_owned())).collect();
        variables.extend([
            ("NVCC", nvcc.as_os_str().to_owned()),
            ("PATH", before(&[&home.join("bin")], "PATH")?),
            ("LIBRARY_PATH", before(&[&emulated], "LIBRARY_PATH")?),
            ("CUDARC_CUDA_VERSION", format!("{}", major * 1000 + minor * 10).into()),
        ]);
        // candle-kernels would read the first from a GPU; the second's default is half of the cores.
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        for (name, value) in [("CUDA_COMPUTE_CAP", "90".to_owned()), ("CUDAFORGE_THREADS", threads.to_string())] {
            if env::var_os(name).is_none() {
                variables.push((name, value.into()));
            }
        }
        // A program that was linked with libraries of the toolkit, which come first for the linker, needs those that are
        // not emulated.
        let library_path = before(&[&emulated, &home.join("lib64"), &home.join("lib")], "LD_LIBRARY_PATH")?;
        let build = Self { variables, emulated, library_path };
        build.compile_libraries(major)?;
        build.find_cudart(home)?;
        Ok(build)
    }

    /// The program that was built.
    #[expect(clippy::unused_self, reason = "there is one once there is a build")]
    pub(crate) fn program(&self) -> PathBuf {
        target_folder().join("release/adw")
    }

    /// Builds a test of a package and returns the program's path.
    pub(crate) fn test_program(&self, package: &str, test: &str) -> Result<PathBuf> {
        let mut cargo = self.cargo("test");
        cargo.args(tested()).args(["--test", test, "--no-run"]);
        built_program(&mut cargo, package, test, &format!("{test} does not build"))
    }

    /// A cuDNN all of whose functions fail, with which a program starts where there is none.
    pub(crate) fn absent_cudnn(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let flags = ["-shared", "-Wl,-soname,libcudnn.so.9"].map(OsStr::new);
        let stubs = self.emulated.join("cudnn-stubs.o");
        compile(flags, &stubs, &folder.join("libcudnn.so.9"), &[])
    }

    fn cargo(&self, command: &str) -> Command {
        let mut cargo = cargo();
        cargo
            .current_dir(workspace())
            .args([command, "--release"])
            // Not an argument: tests start a cargo of their own.
            .env("CARGO_TARGET_DIR", target_folder())
            .envs(self.variables.iter().map(|(k, v)| (k, v)));
        cargo
    }

    /// The libraries to link with: the emulated driver and, as far as a device needs them to be opened, cuBLAS and cuRAND;
    /// every other function that cudarc knows says its name and fails.
    fn compile_libraries(&self, major: u32) -> Result<()> {
        let library = |name, version, module, failure| Library { name, version, module, failure };
        let libraries = [
            library("cuda", 1, "driver", 801),
            library("nvrtc", major, "nvrtc", 11),
            library("curand", 10, "curand", 201),
            library("cublas", major, "cublas", 15),
            library("cublasLt", major, "cublaslt", 15),
            library("cudnn", 9, "cudnn", 3000),
        ];
        let bindings = cudarc()?.join("src");
        let own = workspace().join("crates/adw-cuda/emulated-driver");
        for Library { name, version, module, failure } in libraries {
            let file = format!("lib{name}.so.{version}");
            let path = self.emulated.join(&file);
            let bindings = bindings.join(module).join("sys/mod.rs");
            // Libraries with a source of their own are in C++.
            let own_source = match name {
                "cuda" => Some(own.join("driver.cpp")),
                "cudnn" => Some(own.join("cudnn.cpp")),
                _ => None,
            };
            let is_cpp = own_source.is_some();
            let source = own_source.unwrap_or_else(|| own.join("libraries.c"));
            let inputs = [bindings.clone(), source.clone(), own.join("candle.h")];
            if is_older(&path, &inputs) {
                let text = fs::read_to_string(&bindings).with_context(|| bindings.display().to_string())?;
                let stubs = self.emulated.join(format!("{name}-stubs.c"));
                fs::write(&stubs, stub_source(&text, failure)).with_context(|| stubs.display().to_string())?;
                // Separate languages: a stub knows no arguments, which C++ would make part of its name.
                let object = stubs.with_extension("o");
                let c = ["-x", "c", "-O1", "-fPIC", "-w"];
                compile(c.map(OsStr::new), &stubs, &object, &["-c".as_ref()])?;
                let define = format!("-DADW_LIBRARY_{name}");
                let soname = format!("-Wl,-soname,{file}");
                let language: &[&str] =
                    if is_cpp { &["-std=c++17", "-Wall", "-Wextra"] } else { &["-x", "c", "-Wall", "-Wextra"] };
                let flags = language.iter().copied().chain(["-O2", "-fPIC", "-shared", &define]);
                let driver = self.emulated.join("libcuda.so.1");
                let mut after = vec![OsStr::new("-x"), OsStr::new("none"), object.as_ref()];
                // It asks the driver which memory there is.
                after.extend((name == "cudnn").then_some(driver.as_os_str()));
                after.extend(["-ldl", soname.as_str()].map(OsStr::new));
                compile(flags.map(OsStr::new), &source, &path, &after)?;
            }
            link(file.as_ref(), &self.emulated.join(format!("lib{name}.so")))?;
        }
        Ok(())
    }

    /// candle-kernels asks the linker for libcudart. The wheels of a fetched toolkit have the static library only.
    fn find_cudart(&self, home: &Path) -> Result<()> {
        let folders = [home.join("lib64"), home.join("lib")];
        if folders.iter().any(|f| f.join("libcudart.so").exists()) {
            return Ok(());
        }
        let library = folders.iter().map(|f| f.join("libcudart_static.a")).find(|f| f.exists());
        // If there is neither, it may be where the linker looks anyway.
        library.map_or(Ok(()), |l| link(&l, &self.emulated.join("libcudart.a")))
    }

    /// The kernels of the workspace for the host, each source in a library of its own.
    fn compile_kernels(&self) -> Result<()> {
        let include = workspace().join("crates/adw-cuda-build/include");
        let headers = ["device.cuh", "emulate.h"].map(|h| include.join(h));
        let mut jobs = Vec::new();
        let mut libraries = Vec::new();
        for source in kernel_sources(&workspace().join("crates"))? {
            let name = source.file_stem().unwrap_or_default().to_string_lossy();
            let library = self.emulated.join(format!("kernels-{name}.so"));
            let inputs = [&headers[..], std::slice::from_ref(&source)].concat();
            libraries.push(library.clone());
            if is_older(&library, &inputs) {
                jobs.push((source, library));
            }
        }
        // The driver loads all it finds: not those of sources that are gone.
        for entry in fs::read_dir(&self.emulated)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("kernels-") && !libraries.contains(&path) {
                fs::remove_file(&path).with_context(|| path.display().to_string())?;
            }
        }
        std::thread::scope(|scope| {
            let compile_one = |(source, library): &(PathBuf, PathBuf)| {
                let flags = KERNEL_FLAGS.map(OsStr::new);
                let more: [&OsStr; 4] = ["-fPIC".as_ref(), "-shared".as_ref(), "-I".as_ref(), include.as_ref()];
                compile(flags.into_iter().chain(more), source, library, &[])
            };
            let running: Vec<_> = jobs.iter().map(|job| scope.spawn(move || compile_one(job))).collect();
            running.into_iter().try_for_each(|job| job.join().expect("a compiler's thread does not panic"))
        })
    }
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !status.success() {
        bail!("{} failed: {status}", command.get_program().display());
    }
    Ok(())
}

/// 13, 0 of "Cuda compilation tools, release 13.0, V13.0.88".
fn version(nvcc: &Path) -> Result<(u32, u32)> {
    let output =
        Command::new(nvcc).arg("--version").output().with_context(|| format!("cannot start {}", nvcc.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_version(&text).with_context(|| format!("{} has no version: {text}", nvcc.display()))
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (_, after) = text.split_once("release ")?;
    let (major, after) = after.split_once('.')?;
    let minor: String = after.chars().take_while(char::is_ascii_digit).collect();
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Folder of cudarc's sources.
fn cudarc() -> Result<PathBuf> {
    let output = cargo()
        .current_dir(workspace())
        .args(["metadata", "--format-version", "1", "--features", "adw-cli/cuda"])
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo metadata:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array();
    let cudarc = packages.into_iter().flatten().find(|p| p["name"] == "cudarc");
    let manifest = cudarc.and_then(|p| p["manifest_path"].as_str()).context("candle no longer depends on cudarc")?;
    let folder = Path::new(manifest).parent().context("a manifest's folder")?;
    Ok(folder.to_path_buf())
}

fn compile<'a>(
    flags: impl IntoIterator<Item = &'a OsStr>,
    source: &Path,
    output: &Path,
    after: &[&OsStr],
) -> Result<()> {
    let compiler = env::var_os("CXX").unwrap_or_else(|| "c++".into());
    // Aside and renamed: an interrupted build leaves nothing that looks finished.
    let aside = output.with_extension(format!("{}.tmp", std::process::id()));
    let result = Command::new(&compiler)
        .args(flags)
        .arg(source)
        .args(after)
        .arg("-o")
        .arg(&aside)
        .output()
        .with_context(|| format!("cannot start {}", compiler.display()))?;
    if !result.status.success() {
        bail!("{} does not compile for the host:\n{}", source.display(), String::from_utf8_lossy(&result.stderr));
    }
    fs::rename(&aside, output).with_context(|| output.display().to_string())
}

/// Returns true if `output` is missing or older than one of the files that it is made of.
fn is_older(output: &Path, inputs: &[PathBuf]) -> bool {
    let time = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    let made = time(output);
    made.is_none() || inputs.iter().any(|input| time(input) > made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compilers_version() {
        let text = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 12.8, V12.8.93\n";
        assert_eq!(parse_version(text), Some((12, 8)));
        assert_eq!(parse_version("nvcc"), None);
    }
}
