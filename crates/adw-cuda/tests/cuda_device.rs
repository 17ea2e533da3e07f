//! candle's CUDA device: on a GPU, or on the emulated driver (`cargo xtask cuda-check --emulate`), whose promises to the
//! tests of other crates are tested here, too.
#![cfg(feature = "cuda")]

use std::process::{Command, Output};

use adw_cuda::device::{CudaRuntime, DeviceInfo, info, open};
use adw_cuda::{Buffer, Error, Runtime};
use candle_core::{CudaDevice, D, DType, Device, Result, Tensor};

/// Environment variables that the emulated driver reads, once per process.
const DEVICES: &str = "ADW_EMULATED_CUDA_DEVICES";
const MEMORY: &str = "ADW_EMULATED_CUDA_MEMORY";
const FAIL_AT: &str = "ADW_EMULATED_CUDA_FAIL_AT";
const SKIP: &str = "ADW_EMULATED_CUDA_SKIP";
const LOG: &str = "ADW_EMULATED_CUDA_LOG";

fn device() -> Device {
    open(0).expect("these tests need a CUDA device, or the emulated driver on LD_LIBRARY_PATH")
}

fn cuda(device: &Device) -> &CudaDevice {
    let Device::Cuda(cuda) = device else {
        panic!("{device:?} is no CUDA device");
    };
    cuda
}

fn is_emulated() -> bool {
    info(cuda(&device())).is_ok_and(|d| d.name == "the host, emulated")
}

/// Runs `part` of a test in a process of its own that finds these variables set; none on a GPU.
fn in_child(test: &str, part: &str, variables: &[(&str, &str)]) -> Option<Output> {
    if !is_emulated() {
        eprintln!("SKIPPED {test}: the device is not emulated");
        return None;
    }
    let mut child = Command::new(std::env::current_exe().expect("a path of this program"));
    child.args(["--exact", test, "--nocapture"]).env("ADW_TEST_PART", part).envs(variables.iter().copied());
    Some(child.output().expect("this program starts again"))
}

fn part() -> Option<String> {
    std::env::var("ADW_TEST_PART").ok()
}

/// Runs `body` in a process of its own that finds these variables set, and expects it to succeed; returns what it wrote to
/// its standard error, in the process that began the test.
#[track_caller]
fn run_in_child(test: &str, variables: &[(&str, &str)], body: impl FnOnce()) -> Option<String> {
    if part().is_some() {
        body();
        return None;
    }
    let output = in_child(test, "whole", variables)?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}{text}", String::from_utf8_lossy(&output.stdout));
    Some(text)
}

fn numbers(n: usize) -> Vec<f32> {
    // Not all of them are bf16 numbers.
    (0..n).map(|i| (i as f32 - n as f32 / 3.) / 7.).collect()
}

#[test]
fn cuda_device_opens_and_says_what_it_is() {
    let device = device();
    let DeviceInfo { name, free_bytes, total_bytes } = info(cuda(&device)).unwrap();
    assert!(!name.is_empty() && free_bytes <= total_bytes && total_bytes > 0, "{name}");
}

#[test]
fn cuda_tensors_go_there_and_back() -> Result<()> {
    let device = device();
    let host = Tensor::from_vec(numbers(120), (2, 3, 4, 5), &Device::Cpu)?;
    for dtype in [DType::F32, DType::BF16, DType::F64, DType::U8, DType::U32] {
        let host = host.abs()?.to_dtype(dtype)?;
        let there = host.to_device(&device)?;
        let back = there.to_device(&Device::Cpu)?;
        assert_eq!(back.dtype(), dtype);
        let f64s = |t: &Tensor| t.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>();
        assert_eq!(f64s(&back)?, f64s(&host)?, "{dtype:?}");
        let copy = there.copy()?;
        drop(there);
        assert_eq!(f64s(&copy.to_device(&Device::Cpu)?)?, f64s(&host)?);
        let zeros = Tensor::zeros((3, 7), dtype, &device)?.to_device(&Device::Cpu)?;
        assert_eq!(f64s(&zeros)?, [0.; 21]);
        let ones = Tensor::ones((3, 7), dtype, &device)?.to_device(&Device::Cpu)?;
        assert_eq!(f64s(&ones)?, [1.; 21]);
    }
    Ok(())
}

/// Ops of candle's own kernels that networks use, against the host.
#[test]
fn cuda_views_casts_and_arithmetic_are_the_hosts() -> Result<()> {
    type Op = fn(&Tensor, &Tensor) -> Result<Tensor>;
    let ops: [(&str, Op); 21] = [
        ("contiguous", |x, _| x.permute((2, 0, 1))?.contiguous()),
        ("narrow", |x, _| x.narrow(1, 1, 2)?.contiguous()),
        ("cat", |x, y| Tensor::cat(&[x, y], 1)),
        ("to bf16", |x, _| x.t()?.to_dtype(DType::BF16)?.to_dtype(DType::F32)),
        ("to u8", |x, _| x.abs()?.to_dtype(DType::U8)?.to_dtype(DType::F32)),
        ("to u32", |x, _| x.abs()?.to_dtype(DType::U32)?.to_dtype(DType::F32)),
        ("add", |x, y| x + y),
        ("sub", |x, y| x - y),
        ("mul", |x, y| x * y),
        ("div", |x, y| x / (y.abs()? + 1.)?),
        ("broadcast", |x, y| x.broadcast_mul(&y.narrow(0, 1, 1)?)),
        ("affine", |x, _| x.affine(0.5, -3.)),
        ("maximum", |x, y| x.maximum(y)),
        ("neg", |x, _| x.neg()),
        ("sqr", |x, _| x.sqr()),
        ("sqrt", |x, _| x.abs()?.sqrt()),
        ("relu", |x, _| x.relu()),
        ("gt", |x, y| x.gt(y)?.to_dtype(DType::F32)),
        ("where", |x, y| x.gt(y)?.where_cond(x, &(y * 2.)?)),
        ("max", |x, _| x.max_keepdim(D::Minus1)),
        ("argmax", |x, _| x.argmax(0)?.to_dtype(DType::F32)),
    ];
    let device = device();
    let x = Tensor::from_vec(numbers(2 * 5 * 6), (2, 5, 6), &Device::Cpu)?;
    let y = Tensor::from_vec(numbers(6 * 5 * 2), (6, 5, 2), &Device::Cpu)?.permute((2, 1, 0))?;
    let (x_there, y_there) = (x.to_device(&device)?, y.to_device(&device)?);
    let vector = |t: &Tensor| t.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>();
    for (name, op) in ops {
        let expected = op(&x, &y)?;
        let got = op(&x_there, &y_there)?;
        assert_eq!(got.dims(), expected.dims(), "{name}");
        for (got, expected) in vector(&got)?.into_iter().zip(vector(&expected)?) {
            assert!((got - expected).abs() <= 1e-6 * expected.abs(), "{name}: {got}, not {expected}");
        }
    }
    let [sum, expected] = [&x_there, &x].map(|t| t.sum_all().and_then(|s| s.to_scalar::<f32>()));
    let (sum, expected) = (sum?, expected?);
    assert!((sum - expected).abs() < 1e-4, "{sum}, not {expected}");
    Ok(())
}

#[test]
fn cuda_out_of_memory_is_an_error_and_the_device_goes_on() {
    let device = device();
    let runtime = CudaRuntime::of(cuda(&device)).unwrap();
    let total = info(cuda(&device)).unwrap().total_bytes;
    match runtime.alloc(total + 1).err() {
        Some(Error::OutOfMemory { bytes, total: all, .. }) => {
            assert_eq!((bytes, all), (total + 1, total));
        }
        other => panic!("{other:?}"),
    }
    assert!(Tensor::zeros(total / 4 + 1, DType::F32, &device).is_err());
    let small = Tensor::ones(100, DType::F32, &device).unwrap();
    assert_eq!(small.sum_all().unwrap().to_scalar::<f32>().unwrap(), 100.);
}

#[test]
fn cuda_device_that_is_not_there_is_an_error() {
    let error = open(99).unwrap_err().to_string();
    assert!(error.contains("CUDA device 99: invalid device ordinal"), "{error}");
}

#[test]
fn cuda_machine_without_devices() {
    run_in_child("cuda_machine_without_devices", &[(DEVICES, "0")], || {
        let error = open(0).unwrap_err().to_string();
        assert!(error.contains("no CUDA-capable device"), "{error}");
    });
}

#[test]
fn cuda_memory_of_this_size() {
    run_in_child("cuda_memory_of_this_size", &[(MEMORY, "1000"), (DEVICES, "2")], || {
        let device = device();
        let runtime = CudaRuntime::of(cuda(&device)).unwrap();
        let held = runtime.alloc(600).unwrap();
        let found = info(cuda(&device)).unwrap();
        assert_eq!((found.free_bytes, found.total_bytes), (400, 1000));
        assert!(runtime.alloc(600).is_err());
        drop(held);
        runtime.alloc(600).unwrap();
        assert!(open(1).is_ok());
    });
}

#[test]
fn cuda_device_that_is_lost() {
    run_in_child("cuda_device_that_is_lost", &[(FAIL_AT, "2")], || {
        let device = device();
        let x = Tensor::new(&[1f32, 2.], &device).unwrap();
        let y = (&x + &x).unwrap();
        assert!((&x * &y).is_err(), "the second launch");
        assert!(y.to_vec1::<f32>().is_err(), "a copy after it");
        assert!(CudaRuntime::of(cuda(&device)).unwrap().alloc(4).is_err());
    });
}

#[test]
fn cuda_launches_that_are_only_counted() {
    let folder = std::env::temp_dir().join(format!("adw-cuda-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let log = folder.join("log");
    let variables = [(SKIP, "1"), (MEMORY, "100000000000"), (LOG, log.to_str().unwrap())];
    let ran = run_in_child("cuda_launches_that_are_only_counted", &variables, || {
        // More than a host has.
        let x = Tensor::zeros(10_000_000_000, DType::F32, &device()).unwrap();
        let sum = (&x + &x).unwrap().sum_all().unwrap();
        assert_eq!(sum.to_scalar::<f32>().unwrap(), 0.);
    });
    if ran.is_some() {
        let text = std::fs::read_to_string(&log).unwrap();
        let lines: Vec<_> = text.lines().collect();
        let [sum, reduced] = lines[..] else {
            panic!("two launches, but:\n{text}");
        };
        assert!(sum.starts_with("{\"kernel\":\"badd_f32\",\"grid\":["));
        assert!(sum.ends_with("\"memory\":80000000000}"), "{sum}");
        assert!(reduced.contains("fast_sum_f32"), "{reduced}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// Writes where no kernel may, as one that is wrong would; an emulated device's addresses are the host's.
#[test]
fn cuda_memory_is_guarded() {
    if let Some(part) = part() {
        let device = device();
        let runtime = CudaRuntime::of(cuda(&device)).unwrap();
        let buffer = runtime.alloc(100).unwrap();
        let begin = buffer.address().0 as *mut u8;
        // SAFETY: within the guards, and within memory that lies idle.
        unsafe {
            match part.as_str() {
                "after" => begin.add(100).write(1),
                "before" => begin.sub(1).write(1),
                _ => {
                    drop(buffer);
                    begin.write(1);
                    // Enough for idle memory to be reused.
                    for _ in 0..3 {
                        drop(runtime.alloc(200 << 20).unwrap());
                    }
                    return;
                }
            }
        }
        let ones = Tensor::ones(5, DType::F32, &device).unwrap();
        let _ = &ones + &ones;
        return;
    }
    let expected = [
        ("after", "wrote beside an allocation of 100 bytes; seen after const_set_f32"),
        ("before", "wrote beside an allocation of 100 bytes; seen after const_set_f32"),
        ("freed", "wrote to memory of 100 bytes that was freed"),
    ];
    for (part, words) in expected {
        if let Some(output) = in_child("cuda_memory_is_guarded", part, &[]) {
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && text.contains(words), "{part}: {text}");
        }
    }
}

#[test]
fn cuda_kernel_that_is_not_emulated_says_so() {
    let text = run_in_child("cuda_kernel_that_is_not_emulated_says_so", &[], || {
        let x = Tensor::new(&[1f32, 2.], &device()).unwrap();
        assert!(x.erf().is_err());
        assert_eq!(x.to_vec1::<f32>().unwrap(), [1., 2.]);
    });
    if let Some(text) = text {
        assert!(text.contains("candle's kernel uerf_f32 is not emulated"), "{text}");
    }
}
