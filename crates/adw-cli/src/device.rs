//! The device and the threads a command runs on.

use adw_supernet::Precision;
use anyhow::{Context, Result};
use candle_core::Device;

use crate::{args::Process, failure::bad_input};

/// Sets the number of threads and picks the device.
///
/// # Errors
/// A device this build does not have, or an unknown name.
pub(crate) fn set_up(process: &Process) -> Result<Device> {
    let device = device(&process.device)?;
    adw_tensor_ops::allocation::keep_freed_memory();
    if let Some(threads) = process.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads.into())
            .build_global()
            .context("cannot set the number of threads")?;
    }
    Ok(device)
}

/// What `--bf16` asks for.
///
/// # Errors
/// This processor cannot.
pub(crate) fn precision(bf16: bool) -> Result<Precision> {
    if !bf16 {
        return Ok(Precision::Full);
    }
    if !Precision::Bf16.is_available() {
        bad_input!(
            "--bf16: this processor has no matrix unit for bf16 (Intel AMX, under Linux); leave it out"
        );
    }
    Ok(Precision::Bf16)
}

fn device(name: &str) -> Result<Device> {
    match name {
        "auto" | "cpu" => Ok(Device::Cpu),
        _ if name == "cuda" || name.starts_with("cuda:") => {
            bad_input!("--device {name}: this build has no CUDA; use cpu")
        }
        _ => bad_input!("--device {name}: expected auto or cpu"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_cpu_is_there_and_cuda_is_told_apart_from_nonsense() {
        assert!(device("auto").is_ok() && device("cpu").is_ok());
        assert!(
            device("cuda:0")
                .unwrap_err()
                .to_string()
                .contains("no CUDA")
        );
        assert!(
            device("gpu")
                .unwrap_err()
                .to_string()
                .contains("expected auto or cpu")
        );
    }
}
