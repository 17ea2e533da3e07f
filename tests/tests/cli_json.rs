//! Objects that `--json` prints: exactly the fields and types that docs/json.md lists.
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

mod cli_support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use cli_support::{Adw, TINY, phantom, tiny_settings};
use safetensors::SafeTensors;
use serde_json::{Map, Value};

/// Field of an object.
#[derive(Debug)]
struct Field {
    /// Its name; of several, exactly one is there.
    names: Vec<String>,
    kind: String,
    /// Value of a field `event`.
    event: Option<String>,
}

/// The page, read.
struct Page {
    /// Names of the objects of each command.
    commands: BTreeMap<String, Vec<String>>,
    objects: BTreeMap<String, Vec<Field>>,
}

impl Page {
    fn load() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/json.md");
        let text = fs::read_to_string(path).unwrap();
        let (mut commands, mut objects) = (BTreeMap::new(), BTreeMap::<String, Vec<Field>>::new());
        let mut object = String::new();
        for line in text.lines() {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            if let Some(heading) = line.strip_prefix("### ") {
                heading.clone_into(&mut object);
            } else if let Some(command) = cells[0].strip_prefix("`adw ").and_then(|cell| cell.strip_suffix('`'))
                && cells.len() == 2
            {
                let names = cells[1].split('[').skip(1).map(|rest| rest.split(']').next().unwrap().to_owned());
                commands.insert(command.to_owned(), names.collect());
            } else if cells.len() == 4 && cells[0].starts_with('`') {
                let names = cells[0].split(", ").map(|name| name.trim_matches('`').to_owned()).collect();
                let event = (cells[0] == "`event`").then(|| cells[3].trim_matches('`').to_owned());
                objects.entry(object.clone()).or_default().push(Field { names, kind: cells[1].to_owned(), event });
            }
        }
        Self { commands, objects }
    }

    /// Compares an object with its table.
    fn check(&self, value: &Value, name: &str) -> Result<(), String> {
        let fields = self.objects.get(name).ok_or_else(|| format!("{name} has no table"))?;
        let object = value.as_object().ok_or_else(|| format!("{name}: no object: {value}"))?;
        let mut known = BTreeSet::new();
        for Field { names, kind, event } in fields {
            let found: Vec<_> = names.iter().filter_map(|name| object.get_key_value(name)).collect();
            let (kind, is_optional) = kind.strip_prefix("optional ").map_or((&**kind, false), |kind| (kind, true));
            if is_optional && found.is_empty() {
                continue;
            }
            let [(key, value)] = found[..] else { return Err(format!("{name}: {names:?}: {} are there", found.len())) };
            known.insert(key);
            if event.as_ref().is_some_and(|event| value != event) {
                return Err(format!("{name}: event {value}"));
            }
            self.check_kind(value, kind).map_err(|error| format!("{name}.{key}: {error}"))?;
        }
        match object.keys().find(|key| !known.contains(key)) {
            Some(key) => Err(format!("{name}: {key} is not documented")),
            None => Ok(()),
        }
    }

    fn check_kind(&self, value: &Value, kind: &str) -> Result<(), String> {
        let all =
            |values: Vec<&Value>, kind: &str| values.into_iter().try_for_each(|value| self.check_kind(value, kind));
        let is_right = match kind {
            "any" => true,
            "text" => value.is_string(),
            "integer" => value.is_u64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            _ => {
                return if let Some(of) = kind.strip_prefix("list of ") {
                    all(value.as_array().ok_or("no list")?.iter().collect(), of)
                } else if let Some(of) = kind.strip_prefix("map of ") {
                    all(value.as_object().ok_or("no object")?.values().collect(), of)
                } else if let Some(of) = kind.strip_suffix(" or null") {
                    if value.is_null() { Ok(()) } else { self.check_kind(value, of) }
                } else {
                    self.check(value, kind)
                };
            }
        };
        if is_right { Ok(()) } else { Err(format!("{value} is no {kind}")) }
    }

    /// Runs the command and compares each line of its output with the objects that the page gives it; `absent` are those of
    /// other options of the command.
    #[track_caller]
    fn compare(&self, command: &str, adw: Adw, absent: &[&str]) {
        let objects = &self.commands[command];
        let outcome = Adw::new(command.split(' ')).args(adw.arguments()).arg("--json").run();
        let mut seen = BTreeSet::new();
        for line in outcome.stdout.lines() {
            let value: Value = serde_json::from_str(line).unwrap();
            let checks: Vec<_> = objects.iter().map(|name| (name, self.check(&value, name))).collect();
            let Some((name, _)) = checks.iter().find(|(_, check)| check.is_ok()) else {
                panic!("adw {command}: {line}: {checks:#?}");
            };
            seen.insert(name.as_str());
        }
        let expected = objects.iter().map(String::as_str).filter(|name| !absent.contains(name)).collect();
        assert_eq!(seen, expected, "adw {command}: {outcome:?}");
    }
}

/// Writes a network of nnU-Net as `examples/nnunet_to_safetensors.py` does.
fn nnunet_network(path: &Path) {
    let golden = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/nnunet/plain.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&golden).unwrap();
    let (_, head) = SafeTensors::read_metadata(&golden).unwrap();
    // An input and its output lie beside the weights.
    let weights = tensors.tensors().into_iter().filter(|(name, _)| name != "x" && name != "logits");
    safetensors::serialize_to_file(weights, head.metadata().clone(), path).unwrap();
}

#[test]
fn json_has_exactly_the_documented_fields() {
    let page = Page::load();
    let dir = tempfile::tempdir().unwrap();
    let (data, run) = (phantom(dir.path(), 5), dir.path().join("run"));
    let path = |name: &str| dir.path().join(name);
    let no = || Adw::new::<&str>([]);
    let on = |option: &str, path: &Path| no().path(option, path);
    let size = ["--shape", "16", "20", "16", "--cases", "5"];

    page.compare("phantom", on("--output", &path("other")).args(size), &[]);
    page.compare("plan", on("--data", &data), &[]);
    let search = || on("--data", &data).path("--run", &run).args(TINY);
    page.compare("search", search().arg("--dry-run"), &["started", "search epoch", "found"]);
    page.compare("search", search(), &["forecast"]);
    page.compare("retrain", on("--run", &run).arg("--dry-run"), &["started", "training epoch", "metrics"]);
    page.compare("retrain", on("--run", &run), &["forecast"]);
    let fast = ["--set=search.epochs=2", "--set=retrain.epochs=1"];
    page.compare("run", on("--data", &data).path("--run", &path("run2")).args(TINY).args(fast), &[]);
    let crossval = on("--data", &data).path("--run", &path("crossval")).args(TINY).args(fast);
    page.compare("crossval", crossval.args(["--search", "once"]), &[]);
    page.compare("rank", on("--run", &run).args(["--batches", "1"]), &[]);
    page.compare("report", no().arg(run.display()), &[]);
    page.compare("watch", no().arg(run.display()).arg("--once"), &[]);

    let fold = run.join("retrain/fold_0");
    let model = || on("--model", &fold.join("model.safetensors"));
    page.compare("predict", model().path("--input", &data.join("imagesTs")).path("--output", &path("labels")), &[]);
    page.compare("submit", model().path("--data", &data).path("--output", &path("submission")), &[]);
    let scored = || on("--predictions", &fold.join("validation")).path("--references", &data.join("labelsTr"));
    page.compare("evaluate", scored(), &[]);
    page.compare("postprocess", scored().path("--output", &path("steps.json")), &[]);
    let export = model().path("--onnx", &path("m.onnx")).path("--safetensors", &path("m.safetensors"));
    page.compare("export", export.path("--monai", &path("monai")), &[]);
    nnunet_network(&path("nnunet.safetensors"));
    page.compare("import", on("--nnunet", &path("nnunet.safetensors")).path("--output", &path("imported")), &[]);
    page.compare("doctor", no(), &[]);
    let step = ["--patch", "8", "8", "8", "--poolings", "1", "--max-width", "6", "--repeats", "1", "--warmup", "0"];
    page.compare("bench step", no().args(step), &[]);

    let settings = tiny_settings();
    let arms = "[[arms]]\nname = \"narrow\"\nuniform_width = 2\n[[arms]]\nname = \"wide\"\nuniform_width = 4\n";
    let sweep = format!("datasets = [{data:?}]\nfolds = [0]\nseeds = [1]\nset = {settings:?}\n{arms}");
    fs::write(path("study.toml"), sweep).unwrap();
    let sweep = || no().arg(path("study.toml").display());
    page.compare("sweep plan", sweep(), &[]);
    Adw::new(["sweep", "run"]).arg(path("study.toml").display()).succeed();
    page.compare("sweep status", sweep(), &[]);
    page.compare("sweep summary", sweep(), &[]);

    // A dataset that is there already, and one with a fault.
    let tasks = path("tasks");
    fs::create_dir(&tasks).unwrap();
    fs::rename(path("other"), tasks.join("Task04_Hippocampus")).unwrap();
    page.compare("download", no().arg("hippocampus").path("--data", &tasks), &[]);
    fs::remove_file(data.join("labelsTr/phantom_000.nii.gz")).unwrap();
    page.compare("check", on("--data", &data), &[]);
}

#[test]
fn a_field_too_many_or_too_few_or_of_another_type_is_found() {
    let page = Page::load();
    let sound = serde_json::json!({ "event": "predicted", "image": "a", "labels": "b" });
    page.check(&sound, "predicted").unwrap();
    let changed = |change: &dyn Fn(&mut Map<String, Value>)| {
        let mut value = sound.clone();
        change(value.as_object_mut().unwrap());
        page.check(&value, "predicted").unwrap_err()
    };
    assert!(changed(&|object| drop(object.insert("more".into(), 1.into()))).contains("more is not documented"));
    assert!(changed(&|object| drop(object.remove("labels"))).contains("labels"));
    assert!(changed(&|object| drop(object.insert("labels".into(), 1.into()))).contains("1 is no text"));
    assert!(changed(&|object| drop(object.insert("event".into(), "imported".into()))).contains("event"));
}

#[test]
fn every_command_with_json_is_documented() {
    let page = Page::load();
    let help = |arguments: &[&str]| Adw::new(arguments.iter().copied()).arg("--help").succeed().stdout;
    // Commands below `arguments`, as its help lists them.
    let below = |arguments: &[&str]| {
        let help = help(arguments);
        let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap().to_owned();
        let names = list.lines().filter(|line| !line.starts_with("   ")).map(|line| line.split_whitespace().next());
        names.flatten().filter(|name| *name != "help").map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    let mut with_json = BTreeSet::new();
    for command in below(&[]) {
        if !help(&[&command]).contains("Commands:\n") {
            with_json.extend(help(&[&command]).contains("--json").then_some(command));
            continue;
        }
        for part in below(&[&command]) {
            with_json.extend(help(&[&command, &part]).contains("--json").then_some(format!("{command} {part}")));
        }
    }
    // It prints what the task's search or training prints.
    with_json.remove("sweep work");
    let documented: BTreeSet<_> = page.commands.keys().cloned().collect();
    assert_eq!(with_json, documented);
}
