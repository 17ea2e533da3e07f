use adw_inference::SlidingWindow;
use candle_core::Tensor;
use safetensors::tensor::TensorView;

use super::*;
use crate::{BoxError, parameters};

fn architecture() -> Architecture {
    let json = serde_json::json!({
        "format": "adw-architecture/1", "in_channels": 1, "num_classes": 3, "strides": [[2, 2, 2]],
        "kernels": [[3, 3, 3], [3, 3, 3]], "blocks": [[2, 3], [4], [3]], "provenance": {}
    });
    serde_json::from_value(json).unwrap()
}

fn model() -> ModelFile {
    let net = Unet::new(&architecture(), 9, DType::F32, &Device::Cpu).unwrap();
    ModelFile {
        architecture: architecture(),
        weights: parameters::values(net.parameters()).unwrap(),
        info: [("labels".to_string(), "[\"background\", \"anterior\"]".to_string())].into(),
    }
}

#[test]
fn a_loaded_model_predicts_the_same_bits_and_files_are_equal() {
    let dir = tempfile::tempdir().unwrap();
    let (path, second) = (dir.path().join("model.safetensors"), dir.path().join("second.safetensors"));
    model().save(&path).unwrap();
    let loaded = ModelFile::load(&path, &Device::Cpu).unwrap();
    loaded.save(&second).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&second).unwrap());
    assert_eq!(loaded.architecture, architecture());
    assert_eq!(loaded.info, model().info);
    let image = Tensor::arange(0f32, 9. * 8. * 11., &Device::Cpu).unwrap().sin().unwrap();
    let image = image.reshape((1, 1, 9, 8, 11)).unwrap();
    let logits = |model: &ModelFile| {
        let net = model.network(DType::F32, &Device::Cpu).unwrap();
        let mut predict = |x: &Tensor| -> Result<Tensor, BoxError> { Ok(net.predict(x)?) };
        let window = SlidingWindow::new([8, 8, 8]);
        let logits = window.logits(&image, &mut [&mut predict], &mut |_, _| {}).unwrap();
        assert_eq!(logits.dims(), [1, 3, 9, 8, 11]);
        logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(logits(&model()), logits(&loaded));
}

#[test]
fn what_is_not_a_model_file_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other.safetensors");
    let refused = |expected: &str| {
        let message = ModelFile::load(&path, &Device::Cpu).unwrap_err().to_string();
        assert!(message.contains("other.safetensors") && message.contains(expected), "{message}");
        assert!(!message.contains('\n'), "{message}");
    };
    refused("No such file");
    std::fs::write(&path, "<html>404</html>").unwrap();
    refused("not a model file of this program");
    let other = FileKind { format: "adw-model/1", ..KIND };
    tensor_file::create(&path, other, &model().weights, &Metadata::new()).unwrap().commit().unwrap();
    refused("format adw-model/1, expected adw-model/2");
    let bytes = safetensors::serialize(std::iter::empty::<(&str, TensorView<'_>)>(), None).unwrap();
    std::fs::write(&path, bytes).unwrap();
    refused("format absent, expected adw-model/2");
    let with = |architecture: &str| {
        let metadata = [("architecture".to_owned(), architecture.to_owned())].into();
        tensor_file::create(&path, KIND, &model().weights, &metadata).unwrap().commit().unwrap();
    };
    with("{}");
    refused("architecture: missing field");
    let mut wider = architecture();
    wider.blocks[1] = vec![5];
    with(&serde_json::to_string(&wider).unwrap());
    let mut huge = architecture();
    huge.blocks.iter_mut().flatten().for_each(|width| *width = 60_000);
    with(&serde_json::to_string(&huge).unwrap());
    refused("parameters, but it holds");
    let mut short = architecture();
    short.blocks.pop();
    with(&serde_json::to_string(&short).unwrap());
    refused("blocks for");
    with(&serde_json::to_string(&wider).unwrap());
    refused("block.1.conv.0.weight: expected [5, 3, 3, 3, 3], got [4, 3, 3, 3, 3]");
}

#[test]
fn a_model_that_does_not_fit_itself_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let mut missing = model();
    missing.weights.remove("head.0.weight");
    assert!(missing.save(&path).unwrap_err().to_string().contains("head.0.weight: expected"));
    let mut extra = model();
    extra.weights.insert("what".into(), Tensor::new(0f32, &Device::Cpu).unwrap());
    assert!(extra.save(&path).unwrap_err().to_string().contains("what"));
    let mut reserved = model();
    reserved.info.insert("format".into(), "mine".into());
    assert!(reserved.save(&path).unwrap_err().to_string().contains("reserved"));
    assert!(!path.exists());
}
