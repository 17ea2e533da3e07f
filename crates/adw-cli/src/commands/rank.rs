//! `adw rank`: score architectures with the shared weights of a search.

use std::path::Path;

use adw_search::{BatchRequest, BatchSource, Part, pseudo_dice};
use adw_supernet::Architecture;
use anyhow::Result;
use serde_json::json;

use crate::{
    architecture_choice::{architecture_in, check_fit, random, search_space, searched_supernet},
    args::{ConfigArgs, RankArgs, ScratchArgs},
    cases::Cases,
    device,
    failure::{bad_input, program},
    fold::Fold,
    memory,
    report::{
        number::number,
        plain::quoted,
        progress::{emit, say},
        table::Table,
    },
    run::{Run, RunRequest},
    run_folder::check_run,
    source::{PatchSource, Sampling},
};

pub(crate) fn run(args: &RankArgs) -> Result<()> {
    let device = device::set_up(&args.device, &args.process)?;
    let config = ConfigArgs { preset: None, set: vec![], seed: None };
    check_run(&args.run)?;
    let limit = memory::limit(args.memory);
    let fold = args.fold.map(Fold::Number);
    let request = RunRequest { root: &args.run, data: None, config: &config, fold, fingerprint: None, memory: limit };
    let mut run = Run::open(&request, &device, |_| false)?;
    let fold = run.search_fold();
    let directory = run.folder()?.search(fold);
    let found = architecture_in(&directory);
    if !found.is_file() {
        bad_input!(
            "{} has no finished search of fold {fold}: `{} search --run {} --fold {fold}`",
            args.run.display(),
            program(),
            quoted(&args.run)
        );
    }
    let architectures = architectures(args, &run, &found)?;
    let settings = run.config.settings.clone();
    let batch_size = settings.search.batch_size.unwrap_or(run.plan.batch_size);
    let need = memory::Need::new(
        &search_space(&run.plan, &run.config.settings.network).largest()?,
        &run.plan,
        batch_size,
        settings.search.precision,
        &device,
    );
    let left = memory::check(need, run.plan.patch_size, batch_size, args.memory, &device)?;
    let half = run.splits.fold(run.fold)?.train_b;
    let mut cases = Cases::new(&mut run, &half, left, &ScratchArgs::default())?;
    let parts = vec![(Part::TrainBPlain, cases.prepare(&run, &half)?)];
    let sampling =
        Sampling { plan: &run.plan, batch_size, augmentation: settings.data.augmentation, seed: settings.seed };
    let mut source = PatchSource::new(parts, sampling, &device)?;
    let request = |iteration| BatchRequest { part: Part::TrainBPlain, epoch: 0, iteration };
    source.announce(Box::new((0..args.batches.get()).map(request))).map_err(anyhow::Error::from_boxed)?;
    let batches = (0..args.batches.get()).map(|i| source.batch(request(i)).map_err(anyhow::Error::from_boxed));
    let batches = batches.collect::<Result<Vec<_>>>()?;

    let net = searched_supernet(&run, &directory, &device)?;
    let mut scored = Vec::with_capacity(architectures.len());
    for architecture in &architectures {
        scored.push((architecture, pseudo_dice(&net, architecture, &batches)?));
    }
    scored.sort_by(|a, b| b.1.unwrap_or(-1.0).total_cmp(&a.1.unwrap_or(-1.0)));
    let mut table = Table::of_text(["architecture", "multiply-adds", "Dice on half B"]);
    for (architecture, dice) in scored {
        let macs = architecture.cost(run.plan.patch_size).macs;
        if args.process.json {
            let Architecture { blocks, provenance, .. } = architecture;
            emit("score", &json!({ "blocks": blocks, "macs_per_patch": macs, "dice": dice, "provenance": provenance }));
        } else {
            let dice = dice.map_or("-".to_owned(), |dice| format!("{dice:.4}"));
            table.row([architecture.to_string().as_str(), &number(macs as f64), &dice]);
        }
    }
    if !args.process.json {
        say(&table.render());
    }
    Ok(())
}

/// Architectures of the command line; the found one if it names none.
fn architectures(args: &RankArgs, run: &Run, found: &Path) -> Result<Vec<Architecture>> {
    let mut all = Vec::new();
    for path in &args.architecture {
        let architecture = Architecture::load(path)?;
        check_fit(&architecture, run, path)?;
        all.push(architecture);
    }
    if let (Some(count), Some(macs)) = (args.random, args.cost) {
        for seed in 1..=count {
            let (mut architecture, key, origin) = random(run, seed, macs)?;
            architecture.provenance.insert(key.into(), origin);
            all.push(architecture);
        }
    }
    if all.is_empty() {
        all.push(Architecture::load(found)?);
    }
    Ok(all)
}
