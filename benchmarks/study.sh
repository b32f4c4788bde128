#!/usr/bin/env bash
# The study: what of the paper's conclusions holds on real scans, with enough people, seeds and
# steps to be believed. Every part is resumable: run it again and it goes on where it was.
#
#   benchmarks/study.sh DATA OUT [PART ...]     about six hours of two cores in all
#
# Parts, in order: cohort, rows, adversarial, dimensions, lambdas, varied, lambdas_varied. SEEDS (1)
# is how often each network is trained; raise it and run a part again for more seeds.
set -euo pipefail
data=$(realpath "$1") out=$(realpath -m "$2")
shift 2
parts=${*:-cohort rows adversarial dimensions lambdas varied lambdas_varied}
seeds=${SEEDS:-1}
# SLOW= leaves the rows that cost twenty times as much for another time.
slow=${SLOW-fcn-1 dcgan-2 dcgan-3 dcgan-4 dcgan-2-alone}
run() { echo "+ $*" >&2; "$@"; }
again() { [ -e "$1/reproduction.json" ] && echo --resume || true; }

# 24 x 300 patches in batches of 32 are 225 steps an epoch: 7 epochs are 1,575 steps, and the rows
# that cost twenty times as much take 450 (marked in the tables).
budget=(--budget.epochs 0.01 --budget.least-epochs 7 --budget.slow-epochs 2
        --budget.trees 40 --budget.tree-rows 60000 --precision "${PRECISION:-bf16}")
rows=($slow fcn-2 dcsrn-l1 dcsrn-l2
      dcgan-1 unet-5 unet-6 unet-7 unet-8 pix2pix-9 pix2pix-10
      rfsr unet-7-alone small small-alone
      unet-5-no-gradient unet-5-absolute unet-5-margin
      unet-6-no-gradient unet-6-absolute unet-6-margin)

cohort() {
  run python -m benchmarks.study_split "$data/t1w_3t/cohort.csv" "$out/targets.csv"
  run distsynth simulate "$out/targets.csv" -o "$out/plain" --overwrite
  # One contrast for everybody is easily learnt: here exponent, blur and bias differ by person.
  run distsynth simulate "$out/targets.csv" -o "$out/varied" --overwrite \
    --gamma-spread 0.5 --blur-spread 0.3 --bias 0.15
}

rows() {
  run distsynth reproduce "$out/plain/cohort.csv" -o "$out/rows" $(again "$out/rows") \
    --rows "${rows[@]}" "${budget[@]}" --seeds "$seeds"
}

# Which adversarial loss, and which number of dimensions, at equal processor time.
equal_time() {
  run python -m benchmarks.study_equal_time "$1" "$out/plain/cohort.csv" "$out/$1" \
    --seconds 300 --seeds "$seeds" --precision "${PRECISION:-bf16}"
}
adversarial() { equal_time adversarial; }
dimensions() { equal_time dimensions; }

# Lambda 1 to 4 by a search, against Table 1's by hand: unet-5, -7 and -8 among the rows.
search() { # rows, cohort and name of a search
  local how=(unet-7 --data.shards "$out/$1/shards" --space loss-weights-perceptual
             --trials 14 --search optuna --scheduler asha --asha-grace 2 --presets-first
             --train.epochs 7 --train.precision "${PRECISION:-bf16}"
             --final taken --top 1 --cohort "$out/$2/cohort.csv")
  [ -e "$out/sweeps/$3" ] && how=(--resume "$3") || how+=(--name "$3")
  run distsynth sweep "${how[@]}" --storage "$out/sweeps"
}
lambdas() { search rows plain lambdas; }
lambdas_varied() { search varied-rows varied lambdas-varied; }

varied() {
  run distsynth reproduce "$out/varied/cohort.csv" -o "$out/varied-rows" \
    $(again "$out/varied-rows") "${budget[@]}" --seeds "$seeds" \
    --rows dcsrn-l1 unet-5 unet-7 unet-7-alone small small-alone rfsr
}

for part in $parts; do "$part"; done
