#!/usr/bin/env bash
# Makes report.png and viewer.png of the README, from a run on a phantom: some minutes on two cores; needs adw and chromium.
set -euo pipefail
docs=$(realpath "$(dirname "$0")")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

adw phantom --output Task00_Phantom
adw search --data Task00_Phantom --run phantom --set network.max_width=12 --set search.arch_lr=0.05 \
    --set search.epochs=30 --set search.iterations_per_epoch=4 --set search.warmup_epochs=8
short=(--set retrain.epochs=12 --set retrain.iterations_per_epoch=25)
adw retrain --run phantom "${short[@]}" --set retrain.warm_start=false
adw retrain --run phantom "${short[@]}" --uniform-width 6 --name plain

# The slice viewer alone: the cases of the first training.
alone='header, section:not(#training-0), #training-0 > :not(.case) { display: none }'
sed "s|</head>|<style>$alone</style></head>|" phantom/report.html >viewer.html

shoot() {
    chromium --headless=new --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir="$folder/profile" \
        --virtual-time-budget=8000 --window-size="$3" --screenshot="$docs/$2" "file://$folder/$1"
}
shoot phantom/report.html report.png 1120,950
shoot viewer.html viewer.png 1000,590
