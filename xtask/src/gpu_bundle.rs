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

use crate::{cuda_build, cuda_check::find_nvcc, launch::build_adw, output::say, workspace::workspace};

/// Most bytes of the folder, which is carried to another machine.
const LIMIT: u64 = 40 << 20;

/// Scripts that go along.
const SCRIPTS: [&str; 3] = ["gpu.py", "torch_step.py", "adwunet_torch.py"];

#[derive(Args, Clone, Debug)]
pub(crate) struct GpuBundleArgs {
    /// The folder to make
    #[arg(long, value_name = "DIR", default_value = "target/gpu-bundle")]
    output: PathBuf,
    /// Dataset to train on [default: a phantom]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Labelled cases that go along
    #[arg(long, default_value_t = 24)]
    cases: usize,
}

/// `cargo xtask gpu-bundle`
pub(crate) fn gpu_bundle(args: &GpuBundleArgs) -> Result<ExitCode> {
    let dataset = dataset_folder(args)?;
    let build = cuda_build::build(&find_nvcc()?)?;
    let tests = build.test_program("adw-e2e", "cuda_device")?;
    // Aside and renamed: a folder that is there is whole.
    let aside = args.output.with_extension(format!("{}.tmp", std::process::id()));
    let _ = fs::remove_dir_all(&aside);
    fs::create_dir_all(&aside).with_context(|| aside.display().to_string())?;
    let made = build
        .absent_cudnn(&aside.join("without-cudnn"))
        .and_then(|()| fill(&aside, &build.program(), &tests, &dataset, args.cases));
    let bytes = match made {
        Ok(bytes) => bytes,
        Err(error) => {
            let _ = fs::remove_dir_all(&aside);
            return Err(error);
        }
    };
    if bytes > LIMIT {
        let _ = fs::remove_dir_all(&aside);
        bail!("the bundle would have {:.0} MiB, and {:.0} are allowed: lower --cases", mib(bytes), mib(LIMIT));
    }
    let _ = fs::remove_dir_all(&args.output);
    fs::rename(&aside, &args.output).with_context(|| args.output.display().to_string())?;
    say(&format!("{} ({:.0} MiB). On the machine with the GPU: python3 gpu.py", args.output.display(), mib(bytes)))?;
    Ok(ExitCode::SUCCESS)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

fn fill(folder: &Path, program: &Path, tests: &Path, dataset: &Path, cases: usize) -> Result<u64> {
    for (file, name) in [(program, "adw"), (tests, "cuda_device")] {
        let stripped = folder.join(name);
        let status = Command::new("strip").arg("-o").arg(&stripped).arg(file).status().context("cannot start strip")?;
        if !status.success() {
            bail!("strip failed on {}", file.display());
        }
        pack(&stripped)?;
    }
    for script in SCRIPTS {
        copy(&workspace().join("benchmarks").join(script), &folder.join(script))?;
    }
    copy_dataset(dataset, folder, cases)?;
    size(folder)
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

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| from.display().to_string())?;
    Ok(())
}

/// The dataset with its first labelled cases and no test images.
fn copy_dataset(dataset: &Path, folder: &Path, cases: usize) -> Result<()> {
    let description = dataset.join("dataset.json");
    let text = fs::read_to_string(&description).with_context(|| description.display().to_string())?;
    let mut json: serde_json::Value = serde_json::from_str(&text).with_context(|| description.display().to_string())?;
    let name = dataset.file_name().context("a dataset's folder has a name")?;
    let copied = folder.join(name);
    let training = json["training"]
        .as_array_mut()
        .with_context(|| format!("{} has no list \"training\"", description.display()))?;
    training.truncate(cases);
    let mut count = 0;
    for case in training.iter() {
        for key in ["image", "label"] {
            let file =
                case[key].as_str().with_context(|| format!("{}: a case without \"{key}\"", description.display()))?;
            let to = copied.join(file);
            fs::create_dir_all(to.parent().expect("below the copy"))?;
            copy(&dataset.join(file), &to)?;
        }
        count += 1;
    }
    json["numTraining"] = count.into();
    json["numTest"] = 0.into();
    json["test"] = serde_json::json!([]);
    let text = serde_json::to_string_pretty(&json)?;
    fs::write(copied.join("dataset.json"), text).with_context(|| copied.display().to_string())
}

fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}

/// Folder of the dataset; a phantom is generated in the target folder unless `--data` names one.
fn dataset_folder(args: &GpuBundleArgs) -> Result<PathBuf> {
    if let Some(data) = &args.data {
        return Ok(data.clone());
    }
    let folder = workspace().join("target/Task00_Phantom");
    if !folder.join("dataset.json").is_file() {
        let status = Command::new(build_adw()?).args(["phantom", "--output"]).arg(&folder).status();
        if !status.context("cannot start adw")?.success() {
            bail!("adw cannot write the phantom dataset");
        }
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cases_of_a_dataset_are_a_dataset() {
        let dir = tempfile::tempdir().expect("a folder");
        let dataset = dir.path().join("Task00_Some");
        let mut training = Vec::new();
        for i in 0..5 {
            for folder in ["imagesTr", "labelsTr"] {
                fs::create_dir_all(dataset.join(folder)).expect("a folder");
                fs::write(dataset.join(format!("{folder}/c_{i}.nii.gz")), "x").expect("a file");
            }
            training.push(serde_json::json!({
                "image": format!("./imagesTr/c_{i}.nii.gz"), "label": format!("./labelsTr/c_{i}.nii.gz")
            }));
        }
        let json =
            serde_json::json!({"numTraining": 5, "numTest": 1, "training": training, "test": ["./imagesTs/t.nii.gz"]});
        fs::write(dataset.join("dataset.json"), json.to_string()).expect("a file");
        let bundle = dir.path().join("bundle");
        fs::create_dir(&bundle).expect("a folder");
        copy_dataset(&dataset, &bundle, 2).expect("a copy");
        let text = fs::read(bundle.join("Task00_Some/dataset.json")).expect("a file");
        let copied: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(copied["numTraining"], 2);
        assert_eq!(copied["test"], serde_json::json!([]));
        let files = fs::read_dir(bundle.join("Task00_Some/imagesTr")).expect("a folder").count();
        assert_eq!(files, 2);
        pack(&bundle.join("Task00_Some/dataset.json")).expect("packed");
        assert!(bundle.join("Task00_Some/dataset.json.gz").is_file());
    }
}
