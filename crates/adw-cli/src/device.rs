//! Device and threads that a command runs on.

use std::{error::Error as _, thread};

use adw_cuda::device::{ConvolutionBackend, CudaRuntime, has_cuda, has_cudnn, info, open};
use adw_supernet::Precision;
use adw_tensor_ops::InstructionSet;
use anyhow::{Context, Result};
use candle_core::Device;

use crate::{
    args::{Convolutions, DeviceArgs, ProcessArgs},
    batch_job,
    failure::bad_input,
    host_memory,
    report::progress::note,
};

/// Sets the number of threads and opens the device, for a command that runs networks.
///
/// # Errors
/// A device this build or machine does not have, or an unknown name.
pub(crate) fn set_up(args: &DeviceArgs, process: &ProcessArgs) -> Result<Device> {
    let device = match request(&args.device)? {
        DeviceRequest::Cpu => Device::Cpu,
        DeviceRequest::Auto => automatic(),
        DeviceRequest::Cuda(ordinal) => cuda(ordinal)?,
    };
    set_convolutions(args.convolutions, &device)?;
    set_threads(process)?;
    Ok(device)
}

/// Sets the implementation of convolutions.
///
/// # Errors
/// cuDNN in a build without it, or where it cannot be started.
fn set_convolutions(choice: Convolutions, device: &Device) -> Result<()> {
    if choice == Convolutions::Cudnn && !has_cudnn() {
        bad_input!(
            "--convolutions cudnn: this program was built without cuDNN; leave it out, or build it with --features cudnn"
        );
    }
    if let Device::Cuda(device) = device {
        let backend = match choice {
            Convolutions::Own => ConvolutionBackend::Own,
            Convolutions::Cudnn => ConvolutionBackend::Cudnn,
        };
        if let Err(error) = CudaRuntime::of(device)?.set_convolutions(backend) {
            bad_input!("--convolutions cudnn: {error}");
        }
    }
    Ok(())
}

/// Sets the number of threads of this process. Commands that run no network need no other set-up.
///
/// # Errors
/// The system starts no more threads.
pub(crate) fn set_threads(process: &ProcessArgs) -> Result<()> {
    let of_job = || batch_job::cores().map(|_| cores());
    // With 0, rayon decides.
    let threads = process.threads.map(usize::from).or_else(of_job).unwrap_or(0);
    match rayon::ThreadPoolBuilder::new().num_threads(threads).build_global() {
        Err(error) if error.source().is_some() => Err(error).context(
            "cannot start a thread per core; allow more threads (`ulimit -u`), or fewer of them with --threads",
        ),
        // Also where a command that this one is a part of has set it.
        _ => Ok(()),
    }
}

/// Cores that this process may use: those of the machine, of its affinity and its control groups, and of its Slurm job.
pub(crate) fn cores() -> usize {
    let available = thread::available_parallelism().map_or(1, usize::from);
    batch_job::cores().map_or(available, |cores| cores.min(available))
}

/// Precision of convolutions with or without `--bf16`.
pub(crate) fn precision(bf16: bool) -> Precision {
    if bf16 { Precision::Bf16 } else { Precision::Full }
}

/// Device that `--device` names.
#[derive(Debug, PartialEq, Eq)]
enum DeviceRequest {
    Auto,
    Cpu,
    Cuda(usize),
}

fn request(name: &str) -> Result<DeviceRequest> {
    let ordinal = match name {
        "auto" => return Ok(DeviceRequest::Auto),
        "cpu" => return Ok(DeviceRequest::Cpu),
        "cuda" => Some(0),
        _ => name.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
    };
    let Some(ordinal) = ordinal else {
        bad_input!("--device {name}: expected auto, cpu or cuda:N");
    };
    if !has_cuda() {
        bad_input!("--device {name}: this program was built without CUDA; take cpu, or build it with --features cuda");
    }
    Ok(DeviceRequest::Cuda(ordinal))
}

/// First CUDA device, or the host; a build with CUDA prints which, and why.
fn automatic() -> Device {
    if !has_cuda() {
        return Device::Cpu;
    }
    match open(0) {
        Ok(device) => {
            note(&format!("device: {}, the first there is", describe(&device)));
            device
        }
        Err(error) => {
            note(&format!("device: cpu, since no GPU can be used ({error})"));
            Device::Cpu
        }
    }
}

fn cuda(ordinal: usize) -> Result<Device> {
    match open(ordinal) {
        Ok(device) => {
            note(&format!("device: {}", describe(&device)));
            Ok(device)
        }
        Err(error) => bad_input!("--device cuda:{ordinal}: {error}"),
    }
}

/// Name and memory of a device, for a person.
pub(crate) fn describe(device: &Device) -> String {
    match device {
        Device::Cuda(cuda) if let Ok(info) = info(cuda) => {
            let gb = |bytes: usize| bytes as f64 / 1e9;
            let free = format!("{:.1} of {:.1} GB free", gb(info.free_bytes), gb(info.total_bytes));
            format!("{}, {} ({free})", name(device), info.name)
        }
        _ => name(device),
    }
}

/// Name of a device as `--device` takes it.
pub(crate) fn name(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        _ => "cpu".to_owned(),
    }
}

/// Model of the host's processor, the number of threads of this process and the widest vectors, such as
/// `Intel Xeon, 2 threads, V4`.
pub(crate) fn processor() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    format!("{model}, {} threads, {:?}", rayon::current_num_threads(), InstructionSet::detect())
}

/// Model of a CUDA device, and [`processor`].
pub(crate) fn machine(device: &Device) -> String {
    match device {
        Device::Cuda(cuda) if let Ok(info) = info(cuda) => format!("{} with {}", info.name, processor()),
        _ => processor(),
    }
}

/// Free memory of a CUDA device; `None` for the host.
pub(crate) fn free_bytes(device: &Device) -> Option<u64> {
    match device {
        Device::Cuda(cuda) => info(cuda).ok().map(|info| info.free_bytes as u64),
        _ => None,
    }
}

/// Restarts the measurement of a CUDA device's peak memory.
pub(crate) fn reset_peak_memory(device: &Device) {
    if let Device::Cuda(cuda) = device {
        adw_cuda::device::reset_peak_memory(cuda);
    }
}

/// Peak memory in bytes: of a CUDA device, or of this process on the host.
pub(crate) fn peak_memory(device: &Device) -> Option<u64> {
    match device {
        Device::Cuda(cuda) => adw_cuda::device::peak_bytes(cuda),
        _ => host_memory::peak_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices() {
        assert_eq!(request("auto").unwrap(), DeviceRequest::Auto);
        assert_eq!(request("cpu").unwrap(), DeviceRequest::Cpu);
        for nonsense in ["gpu", "cuda:", "cuda:-1", "cuda:x"] {
            let message = request(nonsense).unwrap_err().to_string();
            assert!(message.contains("expected auto, cpu or cuda:N"), "{message}");
        }
        if has_cuda() {
            assert_eq!(request("cuda").unwrap(), DeviceRequest::Cuda(0));
            assert_eq!(request("cuda:3").unwrap(), DeviceRequest::Cuda(3));
        } else {
            let message = request("cuda:0").unwrap_err().to_string();
            assert!(message.contains("built without CUDA"), "{message}");
        }
    }
}
