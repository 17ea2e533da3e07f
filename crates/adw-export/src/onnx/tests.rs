use std::collections::BTreeSet;

use adw_supernet::{Architecture, FixedSizes};
use candle_core::{DType, Device};

use super::*;

fn network(channels: usize, width: usize) -> Unet {
    let strides = vec![[1, 2, 2], [2; 3]];
    let kernels = vec![[1, 3, 3], [3; 3], [3; 3]];
    let a = Architecture::uniform(channels, 3, strides, kernels, FixedSizes::with_width(width)).unwrap();
    Unet::new(&a, 1, DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn a_file_is_a_graph_in_order_with_every_parameter() {
    let metadata = BTreeMap::from([("key".to_owned(), "value".to_owned())]);
    let networks = [network(2, 4), network(2, 6)];
    let bytes = encode(&networks, &metadata).unwrap();
    let model = ModelProto::decode(bytes.as_slice()).unwrap();
    assert_eq!((model.ir_version, model.opset_import[0].version), (8, 18));
    assert_eq!(model.metadata_props[0], StringStringEntryProto { key: "key".into(), value: "value".into() });

    let graph = model.graph.unwrap();
    let mut known: BTreeSet<&str> = graph.initializer.iter().map(|constant| constant.name.as_str()).collect();
    let num_parameters = networks.iter().flat_map(used_parameters).count();
    assert_eq!(known.len(), num_parameters, "names are unique");
    known.insert(INPUT);
    for node in &graph.node {
        assert!(node.input.iter().all(|input| known.contains(input.as_str())), "{node:?}");
        assert!(known.insert(&node.output[0]), "{node:?}");
    }
    assert!(known.contains(OUTPUT) && graph.node.last().unwrap().op_type == "Mean");
    for (constant, parameter) in graph.initializer.iter().zip(networks.iter().flat_map(used_parameters)) {
        assert!(constant.name.ends_with(&parameter.name));
        let values = parameter.var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let values: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        assert_eq!(constant.raw_data, values, "{}", constant.name);
    }
}

#[test]
fn networks_that_cannot_be_averaged_are_refused() {
    assert!(matches!(encode(&[], &BTreeMap::new()), Err(Error::NoNetwork)));
    let error = encode(&[network(1, 4), network(2, 4)], &BTreeMap::new()).unwrap_err().to_string();
    assert!(error.contains("[2, 3]") && error.contains("[1, 3]"), "{error}");
}
