//! The device and the threads a command runs on.

use adw_supernet::Precision;
use anyhow::{Context, Result};
use candle_core::Device;

#[cfg(feature = "cuda")]
use crate::report::progress::note;
use crate::{
    args::{Convolutions, Process},
    failure::bad_input,
    memory,
};

/// Sets the number of threads and opens the device, for a command that runs networks.
///
/// # Errors
/// A device this build or machine does not have, or an unknown name.
pub(crate) fn set_up(process: &Process) -> Result<Device> {
    let device = match wish(&process.device)? {
        Wish::Cpu => Device::Cpu,
        Wish::Auto => automatic(),
        Wish::Cuda(ordinal) => cuda(ordinal)?,
    };
    set_convolutions(process.convolutions, &device)?;
    set_threads(process)?;
    Ok(device)
}

/// [`set_up`] for a command that works on the host alone.
///
/// # Errors
/// An unknown name of a device.
pub(crate) fn set_up_host(process: &Process) -> Result<()> {
    wish(&process.device)?;
    set_threads(process)
}

/// By whom convolutions are done from now on.
///
/// # Errors
/// cuDNN is asked for in a build without it.
#[cfg(feature = "cudnn")]
#[expect(clippy::unnecessary_wraps, reason = "the twin of the one without cuDNN")]
fn set_convolutions(how: Convolutions, device: &Device) -> Result<()> {
    use adw_cuda::{convolutions, device::CudaRuntime};
    if let Device::Cuda(device) = device {
        let how = match how {
            Convolutions::Measured => convolutions::Convolutions::Measured,
            Convolutions::Own => convolutions::Convolutions::Own,
            Convolutions::Cudnn => convolutions::Convolutions::Cudnn,
        };
        CudaRuntime::of(device).set_convolutions(how, note);
    }
    Ok(())
}

#[cfg(not(feature = "cudnn"))]
fn set_convolutions(how: Convolutions, _: &Device) -> Result<()> {
    if how == Convolutions::Cudnn {
        bad_input!(
            "--convolutions cudnn: this program was built without cuDNN; leave it out, or build it with --features cudnn"
        );
    }
    Ok(())
}

fn set_threads(process: &Process) -> Result<()> {
    adw_tensor_ops::allocation::keep_freed_memory();
    if let Some(threads) = process.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads.into())
            .build_global()
            .context("cannot set the number of threads")?;
    }
    Ok(())
}

/// What `--bf16` asks for.
///
/// # Errors
/// This device cannot.
pub(crate) fn precision(bf16: bool, device: &Device) -> Result<Precision> {
    if !bf16 {
        return Ok(Precision::Full);
    }
    if !Precision::Bf16.is_available_on(device) {
        bad_input!("--bf16: this processor has no matrix unit for bf16 (Intel AMX, under Linux); leave it out");
    }
    Ok(Precision::Bf16)
}

/// What `--device` asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    Auto,
    Cpu,
    Cuda(usize),
}

fn wish(name: &str) -> Result<Wish> {
    let ordinal = match name {
        "auto" => return Ok(Wish::Auto),
        "cpu" => return Ok(Wish::Cpu),
        "cuda" => Some(0),
        _ => name.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
    };
    let Some(ordinal) = ordinal else {
        bad_input!("--device {name}: expected auto, cpu or cuda:N");
    };
    if cfg!(not(feature = "cuda")) {
        bad_input!("--device {name}: this program was built without CUDA; take cpu, or build it with --features cuda");
    }
    Ok(Wish::Cuda(ordinal))
}

/// In a build with CUDA, says what was taken and why.
fn automatic() -> Device {
    #[cfg(feature = "cuda")]
    match adw_cuda::device::open(0) {
        Ok(device) => {
            note(&format!("device: {}, the first there is", describe(&device)));
            return device;
        }
        Err(error) => note(&format!("device: cpu, for there is no other ({error})")),
    }
    Device::Cpu
}

#[cfg(feature = "cuda")]
fn cuda(ordinal: usize) -> Result<Device> {
    match adw_cuda::device::open(ordinal) {
        Ok(device) => {
            note(&format!("device: {}", describe(&device)));
            Ok(device)
        }
        Err(error) => bad_input!("--device cuda:{ordinal}: {error}"),
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: usize) -> Result<Device> {
    unreachable!("refused when the wish was read")
}

#[cfg(feature = "cuda")]
fn describe(device: &Device) -> String {
    let Device::Cuda(cuda) = device else {
        return name(device);
    };
    match adw_cuda::device::describe(cuda) {
        Ok((model, free, total)) => {
            let gb = |bytes: usize| bytes as f64 / 1e9;
            let free = format!("{:.1} of {:.1} GB free", gb(free), gb(total));
            format!("{}, {model} ({free})", name(device))
        }
        Err(_) => name(device),
    }
}

/// As `--device` has it.
pub(crate) fn name(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        _ => "cpu".to_owned(),
    }
}

/// What a CUDA device has left; none for the host.
pub(crate) fn free_bytes(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = device {
        return adw_cuda::device::describe(cuda).ok().map(|d| d.1 as u64);
    }
    let _ = device;
    None
}

/// Begins to count the most memory of a CUDA device anew.
pub(crate) fn forget_peak(device: &Device) {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = device {
        adw_cuda::device::forget_peak(cuda);
    }
    let _ = device;
}

/// The most memory that was held so far: of a CUDA device its own, of the host this process's.
pub(crate) fn peak_bytes(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = device {
        return adw_cuda::device::peak_bytes(cuda);
    }
    let _ = device;
    memory::peak_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        assert_eq!(wish("auto").unwrap(), Wish::Auto);
        assert_eq!(wish("cpu").unwrap(), Wish::Cpu);
        for nonsense in ["gpu", "cuda:", "cuda:-1", "cuda:x"] {
            let message = wish(nonsense).unwrap_err().to_string();
            assert!(message.contains("expected auto, cpu or cuda:N"), "{message}");
        }
        if cfg!(feature = "cuda") {
            assert_eq!(wish("cuda").unwrap(), Wish::Cuda(0));
            assert_eq!(wish("cuda:3").unwrap(), Wish::Cuda(3));
        } else {
            let message = wish("cuda:0").unwrap_err().to_string();
            assert!(message.contains("built without CUDA"), "{message}");
        }
    }
}
