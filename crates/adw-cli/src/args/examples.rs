//! Examples at the end of the commands' help.

pub(super) const DOWNLOAD: &str = "\
Examples:
  adw download hippocampus              28 MB, into data/Task04_Hippocampus
  adw download heart spleen --data /data";

pub(super) const PHANTOM: &str = "\
Examples:
  adw phantom                           20 cases in data/Task00_Phantom
  adw phantom --output /tmp/two --cases 40 --shape 32 48 32 --modalities 2";

pub(super) const CHECK: &str = "\
Examples:
  adw check hippocampus
  adw check /data/Mine --json           one JSON object per problem";

pub(super) const PLAN: &str = "\
Examples:
  adw plan hippocampus
  adw plan /data/Mine --set data.gpu_memory_gb=24 --output plan.json";

pub(super) const RUN: &str = "\
Examples:
  adw run hippocampus
  adw run /data/Mine --run runs/mine --preset standard
  adw run --run runs/mine --resume      after an interruption";

pub(super) const SEARCH: &str = "\
Examples:
  adw search hippocampus --dry-run      plan, memory, disk and time; nothing is written
  adw search /data/Mine --run runs/mine
  adw search --run runs/mine --resume   after an interruption
  adw search hippocampus --set 'search.cost={unit=\"macs\",weight=1.0,budget={fraction=0.25}}'

Next: adw retrain";

pub(super) const RETRAIN: &str = "\
Examples:
  adw retrain hippocampus               what the newest search found
  adw retrain --run runs/mine --fold all
  adw retrain --run runs/mine --plain nnunet --name nnunet    a baseline in the same run

Next: adw predict --model runs/mine";

pub(super) const RANK: &str = "\
Examples:
  adw rank --run runs/mine --random 24 --cost 1G
  adw rank --run runs/mine --architecture a.json --architecture b.json";

pub(super) const CROSSVAL: &str = "\
Examples:
  adw crossval hippocampus --run runs/h          killed at any time: give it again
  adw crossval hippocampus --run runs/h --plain nnunet --name nnunet

Next: adw predict --model runs/h";

pub(super) const SWEEP: &str = "\
Examples:
  adw sweep run study.toml --workers 2
  adw sweep submit study.toml --slurm --dry-run
  adw sweep summary study.toml";

pub(super) const SWEEP_PLAN: &str = "\
Examples:
  adw sweep plan study.toml             how much there is to do";

pub(super) const SWEEP_RUN: &str = "\
Examples:
  adw sweep run study.toml --workers 2   killed at any time: give it again";

pub(super) const SWEEP_STATUS: &str = "\
Examples:
  adw sweep status study.toml";

pub(super) const SWEEP_SUMMARY: &str = "\
Examples:
  adw sweep summary study.toml          also while it runs";

pub(super) const SWEEP_WORK: &str = "\
Examples:
  adw sweep work study.toml --wait      the task of this array job
  adw sweep work study.toml --stage search --dataset hippocampus";

pub(super) const SWEEP_SUBMIT: &str = "\
Examples:
  adw sweep submit study.toml --slurm --dry-run
  adw sweep submit study.toml --slurm --at-a-time 8 --cores 4";

pub(super) const PREDICT: &str = "\
Examples:
  adw predict --model runs/mine --input /data/new --output labels
  adw predict --model model.safetensors --input scan.nii.gz --output labels
  adw predict --model runs/mine --input ct-series/ --output labels   DICOM in, DICOM SEG out
  adw predict --model runs/mine --input /data/new --output labels --resume    keep what is there";

pub(super) const SUBMIT: &str = "\
Examples:
  adw submit hippocampus --model runs/h --output submission";

pub(super) const POSTPROCESS: &str = "\
Examples:
  adw postprocess --predictions validation --references labelsTr --output steps.json

Next: adw predict --postprocessing steps.json";

pub(super) const EVALUATE: &str = "\
Examples:
  adw evaluate --predictions labels --references /data/Mine/labelsTr
  adw evaluate --predictions labels --references labelsTr --output metrics.json";

pub(super) const EXPORT: &str = "\
Examples:
  adw export --model runs/mine/retrain/fold_0/model.safetensors --onnx mine.onnx
  adw export --model runs/mine/retrain/fold_0/model.safetensors --monai bundle";

pub(super) const REPORT: &str = "\
Examples:
  adw report runs/mine                  writes runs/mine/report.html
  adw report runs/mine --output /tmp/mine.html";

pub(super) const IMPORT: &str = "\
Examples:
  adw import --nnunet fold_0.safetensors --output model.safetensors

Next: adw predict --model model.safetensors";

pub(super) const WATCH: &str = "\
Examples:
  adw watch runs/mine                   until the run is finished
  adw watch runs/mine --once --json";

pub(super) const DOCTOR: &str = "\
Examples:
  adw doctor";

pub(super) const COMPLETIONS: &str = "\
Examples:
  adw completions bash > ~/.local/share/bash-completion/completions/adw";

pub(super) const MAN: &str = "\
Examples:
  adw man --output ~/.local/share/man/man1";

pub(super) const BENCH: &str = "\
Examples:
  adw bench step --batch 1
  adw bench step --uniform-width 16     a training step of a plain U-Net
  adw bench step --patch 64 128 128 --max-width 24 --passes inference";
