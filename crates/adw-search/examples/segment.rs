//! Segments an image with a model of `adw retrain`, from array to array:
//! `cargo run --release -p adw-search --example segment -- model.safetensors image.nii.gz`

use std::{env, error::Error, path::Path};

use adw_inference::{BoxError, SlidingWindow};
use adw_search::ModelFile;
use adw_supernet::Unet;
use candle_core::{DType, Device, Tensor};
use msd_data::{Geometry, Plan, Volume, preprocess, read_image};
use ndarray::{Array3, Array4, Array5, Axis};

/// Labels `[z, y, x]` of the image `data`, `[channel, z, y, x]`.
fn segment(data: Array4<f32>, geometry: Geometry, network: &Unet, plan: &Plan) -> Result<Array3<u16>, Box<dyn Error>> {
    let case = preprocess(Volume { data, geometry }, None, plan)?;
    let (c, d, h, w) = case.image.dim();
    let x = Tensor::from_iter(case.image.iter().copied(), &Device::Cpu)?.reshape((1, c, d, h, w))?;
    let mut predict = |x: &Tensor| -> Result<Tensor, BoxError> { Ok(network.predict(x)?) };
    let logits = SlidingWindow::new(plan.patch_size).logits(&x, &mut [&mut predict], &mut |_, _| {})?;
    let logits = Array5::from_shape_vec(logits.dims5()?, logits.flatten_all()?.to_vec1()?)?;
    Ok(case.properties.restore_logits(&logits.index_axis(Axis(0), 0))?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [model, image] = arguments.as_slice() else { return Err("expected MODEL IMAGE".into()) };
    let file = ModelFile::load(Path::new(model), &Device::Cpu)?;
    let network = file.network(DType::F32, &Device::Cpu)?;
    let plan: Plan = serde_json::from_str(&file.info["plan"])?;

    // `Geometry::new([z, y, x], [1.0; 3])` stands for a header: the size of the array, and of its voxels in millimetres.
    let Volume { data, geometry } = read_image(image)?;
    let labels = segment(data, geometry, &network, &plan)?;
    for label in &plan.labels {
        let voxels = labels.iter().filter(|&&value| value == label.value).count();
        println!("{}: {voxels} voxels", label.name);
    }
    Ok(())
}
