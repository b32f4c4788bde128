#!/usr/bin/env bash
# From phantom specimens to a verdict: what a real study does, on a small scale, without any data.
set -euo pipefail
out=${1:-demo-output}

rm -rf "$out"
echo "1/3  Eighteen phantom specimens with simulated low-field sources" >&2
distsynth phantom "$out/cohort" --specimens 18 --shape 48 48 40 >/dev/null

echo "2/3  Plan, cut, train for two minutes, evaluate on specimens that no training saw, report" >&2
distsynth run "$out/cohort/cohort.csv" -o "$out/study" --minutes 2 | tee "$out/said.txt" >&2

echo "3/3  One volume through the model" >&2
distsynth predict "$out/study/model" "$out/cohort/phantom-00_source.nii.gz" \
    -o "$out/phantom-00_synthetic.nii.gz" >/dev/null
sed '/^Patch seams/,$d' "$out/study/evaluation/table.txt"

cat <<END

plan       $out/study/plan.json   (with its reasons)
report     $out/study/report.html
table      $out/study/evaluation/table.txt
pictures   $out/study/evaluation/pictures/
volume     $out/phantom-00_synthetic.nii.gz
model      $out/study/model/checkpoints/best.pt
losses     $out/study/model/metrics.jsonl   (and, offline, $out/study/model/wandb/)

$(tail -n 1 "$out/said.txt")
END
