//! Kinds of files, sound examples of each, and the functions of the libraries that read them.

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use adw_search::ModelFile;
use adw_supernet::{Architecture, Unet};
use candle_core::{DType, Device};
use flate2::{Compression, write::GzEncoder};
use msd_data::dataset::load_image;
use msd_data::nifti::{image_from_bytes, labels_from_bytes};
use msd_data::{
    Augmentation, BatchKey, CaseBytes, Dataset, Memory, PatchSampler, PhantomOptions, Plan, PlanOptions, Positions,
    Postprocessing, Purpose, StoredCase, archive, check_dataset, fingerprint, preprocess, write_phantom,
};
use serde_json::Value;

use super::mutate::{self, Random};
use super::training::{network, train};

/// Answer to an input: accepted, or refused with a message.
pub(crate) type Answer = Result<(), String>;

/// A kind of file: how an input is made, and how it is read.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) make: fn(&Examples, &mut Random) -> Vec<u8>,
    pub(crate) read: fn(&Examples, &[u8]) -> Answer,
}

pub(crate) const KINDS: [Kind; 12] = [
    Kind { name: "nii", make: nifti, read: read_nifti },
    Kind { name: "nii.gz", make: compressed_nifti, read: read_nifti },
    Kind { name: "dataset.json", make: dataset, read: read_dataset },
    Kind { name: "plan.json", make: |e, r| mutate::json(&e.plan, r), read: read_plan },
    Kind { name: "architecture.json", make: |e, r| mutate::json(&e.architecture, r), read: read_architecture },
    Kind { name: "postprocessing.json", make: |e, r| mutate::json(&e.postprocessing, r), read: read_postprocessing },
    Kind { name: "model.safetensors", make: |e, r| safetensors(&e.model, r), read: read_model },
    Kind { name: "checkpoint", make: |e, r| safetensors(&e.checkpoint, r), read: read_checkpoint },
    Kind { name: "prepared case", make: prepared_case, read: read_prepared_case },
    Kind { name: "tar", make: tar_archive, read: read_archive },
    Kind { name: "config.toml", make: toml, read: super::command_line::read_config },
    Kind { name: "DICOM", make: super::dicom::make, read: super::dicom::read },
];

/// Memory that a case may take while it is prepared: more is refused, as a command does.
pub(crate) const CASE_MEMORY: u64 = 64 << 20;

/// Sound files to mutate, in a folder of their own.
pub(crate) struct Examples {
    pub(crate) folder: PathBuf,
    /// A dataset that is not mutated.
    pub(crate) data: PathBuf,
    datasets: Vec<Value>,
    plan: Value,
    architecture: Value,
    postprocessing: Value,
    niftis: Vec<Vec<u8>>,
    model: Vec<u8>,
    checkpoint: Vec<u8>,
    case: Vec<u8>,
    tar: Vec<u8>,
    presets: Vec<String>,
}

impl Examples {
    pub(crate) fn new(folder: &Path) -> anyhow::Result<Self> {
        let data = folder.join("Task00_Phantom");
        let options = PhantomOptions { num_cases: 5, num_test: 1, shape: [8, 10, 12], ..PhantomOptions::default() };
        write_phantom(&data, &options)?;
        write_phantom(&folder.join("Task01_Mutated"), &options)?;
        let dataset = Dataset::open(&data)?;
        let plan = msd_data::plan(&fingerprint(&dataset, Memory::unlimited())?, &dataset, &PlanOptions::default())?;
        let (image, labels) = dataset.load_case(&dataset.training[0])?;
        let case = folder.join("example.case");
        StoredCase::write(&case, &preprocess(image, Some(labels), &plan)?, "key")?;

        let run = folder.join("run");
        train(&run, false)?;
        let network = network()?;
        let weights = network.parameters().iter().map(|p| (p.name.clone(), p.var.as_tensor().clone()));
        let info = [("plan".to_owned(), serde_json::to_string(&plan)?)].into();
        let model = ModelFile { architecture: network.architecture().clone(), weights: weights.collect(), info };
        model.save(&folder.join("example.safetensors"))?;

        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
        let read_all = |folder: &str| -> anyhow::Result<Vec<Vec<u8>>> {
            let mut paths: Vec<_> =
                fs::read_dir(crates.join(folder))?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
            paths.sort();
            Ok(paths.iter().map(fs::read).collect::<std::io::Result<_>>()?)
        };
        let mut descriptions = read_all("msd-data/fuzz/seeds/dataset_json")?;
        // Half of the descriptions are that of the phantom, the only one whose files exist.
        descriptions.resize(2 * descriptions.len(), fs::read(data.join("dataset.json"))?);
        let datasets = descriptions.iter().map(|text| serde_json::from_slice(text)).collect::<Result<_, _>>()?;
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_dir_all("T", &data)?;
        Ok(Self {
            datasets,
            plan: serde_json::to_value(&plan)?,
            architecture: serde_json::from_str(&network.architecture().to_text())?,
            postprocessing: serde_json::json!({ "keep_largest": ["foreground", { "label": 1 }] }),
            niftis: read_all("msd-data/fuzz/seeds/nifti")?,
            model: fs::read(folder.join("example.safetensors"))?,
            checkpoint: fs::read(run.join("checkpoint/latest.safetensors"))?,
            case: fs::read(case)?,
            tar: tar.into_inner()?,
            presets: read_all("adw-cli/configs")?.into_iter().map(String::from_utf8).collect::<Result<_, _>>()?,
            folder: folder.to_owned(),
            data,
        })
    }

    /// Writes an input to a file of its own and returns its path.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.join(name);
        fs::write(&path, bytes).expect("the temporary folder takes files");
        path
    }
}

fn answer<T, E: std::fmt::Display>(result: Result<T, E>) -> Answer {
    result.map(drop).map_err(|error| error.to_string())
}

fn nifti(examples: &Examples, random: &mut Random) -> Vec<u8> {
    /// Sizes, type, offset and scaling, voxel sizes, units, codes and matrices of the header.
    const FIELDS: [usize; 22] =
        [0, 40, 42, 44, 46, 48, 50, 70, 72, 76, 80, 84, 88, 108, 112, 116, 123, 252, 254, 256, 280, 344];
    let mut bytes = random.pick(&examples.niftis).clone();
    for _ in 0..random.below(4) {
        mutate::number(&mut bytes, *random.pick(&FIELDS), random);
    }
    if random.one_in(2) {
        mutate::bytes(&mut bytes, random);
    }
    bytes
}

fn compressed_nifti(examples: &Examples, random: &mut Random) -> Vec<u8> {
    let mut inner = nifti(examples, random);
    if random.one_in(8) {
        // A bomb: megabytes of zeros behind the voxels.
        inner.resize(inner.len() + (8 << 20), 0);
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&inner).expect("memory takes bytes");
    let mut bytes = encoder.finish().expect("memory takes bytes");
    match random.below(4) {
        0 => mutate::bytes(&mut bytes, random),
        1 => bytes.extend(bytes.clone()),
        _ => {}
    }
    bytes
}

/// Reads an image and labels from memory and compares them with what the standard's fields say, and prepares the image.
fn read_nifti(examples: &Examples, bytes: &[u8]) -> Answer {
    let image = image_from_bytes(bytes, "fuzz.nii");
    let labels = labels_from_bytes(bytes, "fuzz.nii");
    if let (Ok(labels), Ok(image)) = (&labels, &image) {
        for (label, voxel) in labels.data.iter().zip(&image.data) {
            let tolerance = 1e-4 + 1e-7 * f32::from(*label);
            assert!((f32::from(*label) - voxel).abs() <= tolerance, "label {label}, voxel {voxel}");
        }
    }
    let Ok(image) = image else {
        assert!(labels.is_err(), "labels are an image too");
        return answer(image);
    };
    if !bytes.starts_with(&[0x1f, 0x8b]) {
        super::standard::compare(bytes, &image);
    }
    let path = examples.write("fuzz.nii", bytes);
    let plan: Plan = serde_json::from_value(examples.plan.clone()).expect("the example is a plan");
    prepare(&[path], &plan)
}

/// Prepares an image as `adw predict` does: by its header first, within a limit of memory.
fn prepare(files: &[PathBuf], plan: &Plan) -> Answer {
    let prepare = || -> msd_data::Result<()> {
        let bytes = CaseBytes::of(files, plan)?;
        Memory::bytes(CASE_MEMORY).check(bytes.preparing, || "the image".to_owned())?;
        let image = load_image(files, plan.modalities.len(), Positions::Checked)?;
        let case = preprocess(image, None, plan)?;
        let (_, d, h, w) = case.image.dim();
        case.properties.restore_logits(&ndarray::Array4::zeros((2, d, h, w)).view())?;
        Ok(())
    };
    answer(prepare())
}

fn dataset(examples: &Examples, random: &mut Random) -> Vec<u8> {
    let description = random.pick(&examples.datasets);
    mutate::json(description, random)
}

fn read_dataset(examples: &Examples, bytes: &[u8]) -> Answer {
    let folder = examples.folder.join("Task01_Mutated");
    fs::write(folder.join("dataset.json"), bytes).map_err(|error| error.to_string())?;
    for problem in check_dataset(&folder, Positions::Checked, Memory::bytes(CASE_MEMORY)) {
        assert!(!problem.message.contains('\n'), "{problem}");
    }
    let dataset = Dataset::open(&folder).map_err(|error| error.to_string())?;
    assert!(!dataset.modalities.is_empty() && dataset.labels.len() >= 2);
    assert!(dataset.labels.iter().enumerate().all(|(value, label)| value == usize::from(label.value)));
    assert!(dataset.training.windows(2).all(|pair| pair[0].id < pair[1].id), "ids are unique and sorted");
    let ids = dataset.training.iter().map(|case| &case.id).chain(dataset.test.iter().map(|case| &case.id));
    for name in ids.chain([&dataset.name]) {
        let is_one = Path::new(name).components().count() == 1 && Path::new(name).file_name().is_some();
        assert!(is_one && !name.contains(['/', '\\']) && !name.contains(char::is_control), "{name:?}");
    }
    answer(fingerprint(&dataset, Memory::bytes(CASE_MEMORY)))
}

fn read_plan(examples: &Examples, bytes: &[u8]) -> Answer {
    let plan = Plan::load(&examples.write("plan.json", bytes)).map_err(|error| error.to_string())?;
    let image = examples.data.join("imagesTs/phantom_005.nii.gz");
    prepare(&[image], &plan)
}

fn read_architecture(examples: &Examples, bytes: &[u8]) -> Answer {
    let path = examples.write("architecture.json", bytes);
    let architecture = Architecture::load(&path).map_err(|error| error.to_string())?;
    let cost = architecture.cost([32; 3]);
    if cost.parameters > 1 << 22 {
        return Err("too large for a test".to_owned());
    }
    answer(Unet::new(&architecture, 1, DType::F32, &Device::Cpu))
}

fn read_postprocessing(examples: &Examples, bytes: &[u8]) -> Answer {
    let steps = Postprocessing::load(&examples.write("steps.json", bytes)).map_err(|error| error.to_string())?;
    steps.apply(&mut ndarray::Array3::from_shape_fn([4, 5, 6], |(z, y, x)| ((z * y + x) % 3) as u16));
    Ok(())
}

/// Mutates the header of a safetensors file as JSON, its length, or any byte, and mostly gives it the checksum that fits.
fn safetensors(file: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = file.to_vec();
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    match random.below(4) {
        0 => mutate::bytes(&mut bytes, random),
        1 => mutate::number(&mut bytes, random.below(2) * 4, random),
        _ => {
            let header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("the example is sound");
            let header = mutate_header(header, random);
            bytes.splice(8..8 + length, header.iter().copied()).for_each(drop);
            bytes[..8].copy_from_slice(&(header.len() as u64).to_le_bytes());
        }
    }
    // The CRC-32 of the file in which its own digits are zeros.
    let entry = b"\"checksum\":\"";
    if !random.one_in(4)
        && let Some(at) = bytes.windows(entry.len()).position(|window| window == entry)
        && let Some(digits) = bytes.get_mut(at + entry.len()..at + entry.len() + 8)
    {
        digits.fill(b'0');
        let checksum = format!("{:08x}", crc32fast::hash(&bytes));
        bytes[at + entry.len()..][..8].copy_from_slice(checksum.as_bytes());
    }
    bytes
}

/// Mutates the header of a safetensors file, or a JSON document in its metadata.
fn mutate_header(mut header: Value, random: &mut Random) -> Vec<u8> {
    let metadata = header["__metadata__"].as_object_mut().expect("our files have metadata");
    let key = metadata.keys().nth(random.below(metadata.len())).cloned().unwrap_or_default();
    let inner = metadata[&key].as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
    match inner.filter(|_| random.one_in(2)) {
        Some(inner) => {
            metadata[&key] = String::from_utf8_lossy(&mutate::json(&inner, random)).into();
            header.to_string().into_bytes()
        }
        None => mutate::json(&header, random),
    }
}

fn read_model(examples: &Examples, bytes: &[u8]) -> Answer {
    let model = ModelFile::load(&examples.write("model.safetensors", bytes), &Device::Cpu);
    let model = model.map_err(|error| error.to_string())?;
    answer(model.network(DType::F32, &Device::Cpu))
}

/// Resumes a finished training from the mutated checkpoint.
fn read_checkpoint(examples: &Examples, bytes: &[u8]) -> Answer {
    let folder = examples.folder.join("resumed");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(folder.join("checkpoint")).map_err(|error| error.to_string())?;
    fs::copy(examples.folder.join("run/history.jsonl"), folder.join("history.jsonl")).map_err(|e| e.to_string())?;
    fs::write(folder.join("checkpoint/latest.safetensors"), bytes).map_err(|error| error.to_string())?;
    answer(train(&folder, true))
}

/// Mutates the header of a prepared case and gives it the checksum that fits, or mutates any byte.
fn prepared_case(examples: &Examples, random: &mut Random) -> Vec<u8> {
    let mut bytes = examples.case.clone();
    if random.one_in(4) {
        mutate::bytes(&mut bytes, random);
        return bytes;
    }
    // Ends in: header, its length (u64), its CRC-32 (u32), eight bytes of magic.
    let tail = bytes.split_off(bytes.len() - 20);
    let length = u64::from_le_bytes(tail[..8].try_into().expect("eight bytes")) as usize;
    let header: Value = serde_json::from_slice(&bytes.split_off(bytes.len() - length)).expect("the example is sound");
    let header = mutate::json(&header, random);
    bytes.extend(&header);
    bytes.extend((header.len() as u64).to_le_bytes());
    bytes.extend(crc32fast::hash(&header).to_le_bytes());
    bytes.extend(&tail[12..]);
    bytes
}

fn read_prepared_case(examples: &Examples, bytes: &[u8]) -> Answer {
    let read = || -> msd_data::Result<()> {
        let case = StoredCase::open(&examples.write("mutated.case", bytes), "key")?;
        let masked = vec![false; case.channels()];
        if case.shape().iter().product::<usize>() * case.channels() < 1 << 22 {
            case.read(&case.shape().map(|n| 0..n))?;
        }
        let sampler = PatchSampler::new(vec![case], [8; 3], 2, Augmentation::none(), &masked)?;
        sampler.batch(BatchKey { seed: 1, purpose: Purpose::Weights, epoch: 0, iteration: 0 })?;
        Ok(())
    };
    answer(read())
}

/// Mutates fields of a header and gives it the checksum that fits, or mutates any byte.
fn tar_archive(examples: &Examples, random: &mut Random) -> Vec<u8> {
    let mut bytes = examples.tar.clone();
    for _ in 0..random.below(3) {
        let headers: Vec<usize> =
            (0..bytes.len() / 512).map(|i| 512 * i).filter(|&at| bytes[at..].get(257..262) == Some(b"ustar")).collect();
        if headers.is_empty() {
            break;
        }
        let header = *random.pick(&headers);
        let word = mutate::word(random);
        // Name, size, type, name of a link.
        let (offset, field): (usize, Vec<u8>) = match random.below(4) {
            0 => (0, word.bytes().chain([0]).take(100).collect()),
            1 => (124, format!("{:011o}", random.next() >> (20 + random.below(40))).bytes().take(11).collect()),
            2 => (156, vec![*random.pick(b"01234567LKxgSVD\0")]),
            _ => (157, word.bytes().chain([0]).take(100).collect()),
        };
        bytes[header + offset..header + offset + field.len()].copy_from_slice(&field);
        bytes[header + 148..header + 156].fill(b' ');
        let sum: u32 = bytes[header..header + 512].iter().map(|&byte| u32::from(byte)).sum();
        bytes[header + 148..header + 155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }
    if random.one_in(3) {
        mutate::bytes(&mut bytes, random);
    }
    bytes
}

fn read_archive(examples: &Examples, bytes: &[u8]) -> Answer {
    let parent = examples.folder.join("unpacked");
    let into = parent.join("into");
    let _ = fs::remove_dir_all(&parent);
    fs::create_dir_all(&into).map_err(|error| error.to_string())?;
    let unpacked = archive::unpack(Cursor::new(bytes), &into, "T", 1 << 20);
    let outside: Vec<_> = fs::read_dir(&parent).expect("it was made").collect();
    assert_eq!(outside.len(), 1, "written outside the folder: {outside:?}");
    answer(unpacked)
}

/// Mutates the values of a preset, or its text.
fn toml(examples: &Examples, random: &mut Random) -> Vec<u8> {
    let mut lines: Vec<String> = random.pick(&examples.presets).lines().map(str::to_owned).collect();
    for _ in 0..=random.below(3) {
        let at = random.below(lines.len());
        let value: Value = match random.below(3) {
            0 => random.next().into(),
            1 => mutate::word(random).into(),
            _ => serde_json::from_slice(&mutate::json(&serde_json::json!([1, 0.5, "x", { "a": 1 }]), random))
                .unwrap_or(Value::Null),
        };
        match lines[at].split_once('=') {
            Some((key, _)) => lines[at] = format!("{key} = {value}"),
            None => lines.insert(at, format!("{} = {value}", Value::from(mutate::word(random)))),
        }
    }
    let mut text = lines.join("\n").into_bytes();
    match random.below(12) {
        0 => mutate::bytes(&mut text, random),
        1 => text.extend(format!("\nx = {}", "[".repeat(50_000)).bytes()),
        2 => text.extend(format!("\n[{}x]\n", "a.".repeat(20_000)).bytes()),
        _ => {}
    }
    text
}
