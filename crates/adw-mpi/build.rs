//! Compiles `src/mpi.c` and links the MPI library, with the feature `mpi`.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=src/mpi.c");
    println!("cargo::rerun-if-env-changed=MPICC");
    if env::var_os("CARGO_FEATURE_MPI").is_none() {
        return;
    }
    let mpicc = env::var("MPICC").unwrap_or_else(|_| "mpicc".to_owned());
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let (object, library) = (folder.join("mpi.o"), folder.join("libadw_mpi.a"));
    output(Command::new(&mpicc).args(["-O2", "-fPIC", "-Wall", "-Wextra", "-c", "src/mpi.c", "-o"]).arg(&object));
    output(Command::new("ar").arg("crs").arg(&library).arg(&object));
    println!("cargo::rustc-link-search=native={}", folder.display());
    println!("cargo::rustc-link-lib=static=adw_mpi");
    for word in output(Command::new(&mpicc).arg("-show")).split_whitespace() {
        if let Some(path) = word.strip_prefix("-L") {
            println!("cargo::rustc-link-search=native={path}");
        } else if let Some(name) = word.strip_prefix("-l") {
            println!("cargo::rustc-link-lib={name}");
        }
    }
}

/// Standard output of a command.
fn output(command: &mut Command) -> String {
    let program = command.get_program().display().to_string();
    match command.output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        Ok(output) => panic!("{program}: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => panic!(
            "{program}: {error}; the feature `mpi` needs an MPI library and its compiler wrapper, on Debian \
             `apt-get install libopenmpi-dev openmpi-bin`, or its path in MPICC"
        ),
    }
}
