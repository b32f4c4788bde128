#!/usr/bin/env bash
# The whole path on phantom specimens: what a real study does, on a small scale, without any data.
set -euo pipefail
out=${1:-demo-output}

rm -rf "$out"
echo "1/5  Eight phantom specimens with simulated low-field sources" >&2
distsynth phantom "$out/cohort" --specimens 8 >/dev/null

echo "2/5  Shards: random training patches, dense validation and test patches" >&2
distsynth shard "$out/cohort/cohort.csv" -o "$out/shards" --val-slices 12 >/dev/null

echo "3/5  A small GAN" >&2
distsynth train small -o "$out/small" --data.shards "$out/shards" --train.epochs 4 >/dev/null

echo "4/5  One volume through the best checkpoint" >&2
distsynth predict "$out/small/checkpoints/best.pt" "$out/cohort/phantom-00_source.nii.gz" \
    -o "$out/phantom-00_synthetic.nii.gz" >/dev/null

echo "5/5  Evaluated on whole stitched test volumes, beside the baselines" >&2
distsynth evaluate "$out/small" --cohort "$out/cohort/cohort.csv" -o "$out/evaluation" >/dev/null
sed '/^Patch seams/,$d' "$out/evaluation/table.txt"

cat <<END

table      $out/evaluation/table.txt
pictures   $out/evaluation/pictures/
report     $out/evaluation/report.html
volume     $out/phantom-00_synthetic.nii.gz
model      $out/small/checkpoints/best.pt
losses     $out/small/metrics.jsonl   (and, offline, $out/small/wandb/)
END
