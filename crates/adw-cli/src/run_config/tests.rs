use std::fs;

use super::*;

fn args(preset: Option<&str>, set: &[&str]) -> ConfigArgs {
    let seed = (!set.iter().any(|set| set.starts_with("seed="))).then_some(7);
    ConfigArgs { preset: preset.map(str::to_owned), set: set.iter().map(ToString::to_string).collect(), seed }
}

fn message(set: &str) -> String {
    RunConfig::from_args(&args(None, &[set])).unwrap_err().to_string()
}

#[test]
fn presets_are_complete_and_survive_config_toml() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    let facts =
        RunFacts { version: "1".into(), device: "cpu".into(), processor: "x".into(), data: "d".into(), fold: 3 };
    for (name, _) in PRESETS {
        let config = RunConfig::from_args(&args(Some(name), &[])).unwrap();
        assert_eq!((config.settings.search.seed, config.settings.retrain.seed), (7, 7));
        let Settings { search, retrain, predict, .. } = &config.settings;
        assert_eq!(
            [search.precision, retrain.precision, predict.precision],
            [Precision::Full; 3],
            "{name}: bf16 is for whoever asks for it"
        );
        fs::write(&path, render(&facts, &config).unwrap()).unwrap();
        let (read_facts, read) = load(&path).unwrap();
        assert_eq!(read_facts, facts);
        assert_eq!(config.difference(&read, |_| true), None, "{name}");
        assert_eq!(read.settings.search, config.settings.search);
    }
}

#[test]
fn the_paper_preset_is_the_published_schedule() {
    let paper = RunConfig::from_args(&args(Some("paper"), &[])).unwrap().settings;
    let search = SearchConfig { seed: 7, ..SearchConfig::paper() };
    let every = paper.search.checkpoint_every_iterations;
    assert_eq!(paper.search, SearchConfig { checkpoint_every_iterations: every, ..search });
    let every = paper.retrain.checkpoint_every_iterations;
    let retrain = RetrainConfig { seed: 7, ..RetrainConfig::paper() };
    assert_eq!(paper.retrain, RetrainConfig { checkpoint_every_iterations: every, ..retrain });
    assert_eq!((paper.network.max_width, paper.network.max_depth), (48, 3));
    assert_eq!((paper.network.mask, paper.network.gate_up), (GatePosition::PreNorm, false));
    assert_eq!((paper.network.fixed, paper.search.batch_size), (FixedSizes::default(), None));
}

#[test]
fn optional_values_can_be_given_and_taken() {
    let set = ["data.patch_size=[8, 16, 8]", "search.cost={unit=\"macs\", weight=1.0, budget={fraction=0.4}}"];
    let settings = RunConfig::from_args(&args(None, &set)).unwrap().settings;
    assert_eq!(settings.data.patch_size, Some([8, 16, 8]));
    assert!(settings.search.cost.is_some());
    let settings = RunConfig::from_args(&args(None, &["retrain.ema=none"])).unwrap().settings;
    assert!(settings.retrain.ema.is_none() && settings.data.patch_size.is_none());
}

#[test]
fn a_precision_is_read_everywhere() {
    let set = ["search.precision=bf16", "retrain.precision=bf16", "predict.precision=bf16"];
    let settings = RunConfig::from_args(&args(None, &set)).unwrap().settings;
    let asked = [settings.search.precision, settings.retrain.precision, settings.predict.precision];
    assert_eq!(asked, [Precision::Bf16; 3]);
    assert!(message("search.precision=half").contains("expected `full` or `bf16`"));
}

#[test]
fn values_without_sense_are_named_with_their_section() {
    assert_eq!(message("search.epochs=0"), "search.epochs = 0: expected at least 1");
    assert!(message("network.mask=behind").contains("behind"));
    assert!(message("predict.step=0").contains("predict.step = 0"));
    assert!(message("data.patch_size=[1, 2]").contains("patch_size"));
}

#[test]
fn keys_that_a_table_lacks_have_their_defaults_and_can_be_set() {
    let mut table = preset("quick").unwrap();
    let search = table["search"].as_table_mut().unwrap();
    for key in ["cost", "precision"] {
        search.remove(key).unwrap();
    }
    let config = RunConfig::from_table(table).unwrap();
    assert_eq!(config.table["search"]["cost"].as_str(), Some("none"));
    assert_eq!(config.table["search"]["precision"].as_str(), Some("full"));
    assert!(config.table["search"].get("seed").is_none());
    let changed = config.changed_by(&args(None, &["search.precision=bf16"])).unwrap();
    assert_eq!(changed.settings.search.precision, Precision::Bf16);
}

/// Files of earlier versions lack keys of every section, and mean what those versions did.
#[test]
fn keys_of_all_sections_have_defaults() {
    let mut table = preset("quick").unwrap();
    let network = table["network"].as_table_mut().unwrap();
    network.remove("gate_up").unwrap();
    network.remove("fixed").unwrap();
    let data = table["data"].as_table_mut().unwrap();
    data["augmentation"].as_table_mut().unwrap().remove("mirror_axes").unwrap();
    let config = RunConfig::from_table(table).unwrap();
    let Settings { data, network, .. } = &config.settings;
    assert_eq!((network.gate_up, network.fixed), (false, FixedSizes::default()));
    assert_eq!(data.augmentation.mirror_axes, msd_data::MirrorAxes::default());
    let set = ["network.gate_up=true", "network.fixed.width=8", "data.augmentation.mirror_axes=[0, \"left-right\"]"];
    let changed = config.changed_by(&args(None, &set)).unwrap();
    assert_eq!((changed.settings.network.gate_up, changed.settings.network.fixed.width), (true, 8));
    let (key, was, is) = config.difference(&changed, |key| key.starts_with("data.")).unwrap();
    assert_eq!((key.as_str(), was.to_string().as_str()), ("data.augmentation.mirror_axes", "[0, 1, 2]"));
    assert_eq!(is.to_string(), "[0, \"left-right\"]");
}

#[test]
fn keys_without_a_value_and_seeds_are_called_by_the_name_they_were_given() {
    assert_eq!(message("seed=-1"), "seed = -1: expected a whole number of at least 0");
    for key in ["seed", "search.clip", "data.augmentation", "search"] {
        let expected = format!("{key} = \"none\": expected a value; this key cannot be absent");
        assert_eq!(message(&format!("{key}=none")), expected);
    }
    let both = ConfigArgs { seed: Some(2), ..args(None, &["seed=3"]) };
    let refusal = RunConfig::from_args(&both).unwrap_err().to_string();
    assert_eq!(refusal, "--seed 2 and --set seed=3: leave one of them out");
}

#[test]
fn the_batch_size_may_be_the_plans() {
    let of = |set: &str| RunConfig::from_args(&args(None, &[set])).unwrap().settings.search.batch_size;
    assert_eq!((of("search.batch_size=plan"), of("search.batch_size=3")), (None, Some(3)));
    assert_eq!(message("search.batch_size=0"), "search.batch_size = 0: expected at least 1");
    assert!(message("data.augmentation.mirror_axes=[\"sideways\"]").contains("expected 0, 1, 2"));
}

#[test]
fn a_file_changes_a_preset() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine.toml");
    fs::write(&path, "base = \"paper\"\n[search]\nepochs = 3\nwarmup_epochs = 1\n").unwrap();
    let config = RunConfig::from_args(&args(path.to_str(), &[])).unwrap();
    assert_eq!((config.settings.search.epochs, config.settings.network.max_width), (3, 48));
    let paper = RunConfig::from_args(&args(Some("paper"), &[])).unwrap();
    let (key, ours, theirs) = config.difference(&paper, |_| true).unwrap();
    assert_eq!((key.as_str(), ours, theirs), ("search.epochs", Value::Integer(3), Value::Integer(250)));
    assert_eq!(config.difference(&paper, |key| key.starts_with("retrain.")), None);

    // The configuration of a run is a preset; a section of that name with other keys is none of a run.
    let facts =
        RunFacts { version: "1".into(), device: "cpu".into(), processor: "x".into(), data: "d".into(), fold: 3 };
    fs::write(&path, render(&facts, &config).unwrap()).unwrap();
    assert_eq!(RunConfig::from_args(&args(path.to_str(), &[])).unwrap().settings.search, config.settings.search);
    fs::write(&path, "base = \"quick\"\n[run]\nsede = 3\n").unwrap();
    let message = RunConfig::from_args(&args(path.to_str(), &[])).unwrap_err().to_string();
    assert!(
        message.contains("mine.toml: [run]: unknown field `sede`") && message.contains("leave it out"),
        "{message}"
    );
}
