#!/usr/bin/env bash
# The presets beside the baselines on real scans: makes benchmarks/results/*-real-scans.md again.
#
#     benchmarks/real_scans.sh DATA OUT
#
# DATA holds t1w_3t/ (targets only) and pairs_t2w_t1w/ (two acquisitions a person), each with a
# cohort.csv. bf16 is for processors that have it (AVX512-BF16, AMX) and for GPUs.
set -euo pipefail
data=$1 out=$2
precision=${PRECISION:-bf16}
mkdir -p "$out"

shards() { # COHORT NAME
    distsynth shard "$1" -o "$out/$2_shards" --val-slices 12
}
run() { # PRESET NAME SHARDS OPTIONS...
    distsynth train "$1" -o "$out/runs/$2" --data.shards "$out/$3_shards" \
        --train.precision "$precision" "${@:4}"
}

# Simulated source: gamma 1.4, blur 0.85 voxel, downsampled by 2, Rician noise 0.03, no bias field.
distsynth simulate "$data/t1w_3t" -o "$out/t1w"
shards "$out/t1w/cohort.csv" t1w
run small small t1w --train.epochs 12 --train.validate-every 4
run unet-7 unet-7 t1w --train.epochs 8 --train.validate-every 4
run dcgan-2 dcgan-2 t1w --train.epochs 1
distsynth evaluate "$out/runs/small" --cohort "$out/t1w/cohort.csv" -o "$out/eval_small"
distsynth evaluate "$out/runs/unet-7" "$out/runs/dcgan-2" --cohort "$out/t1w/cohort.csv" \
    -o "$out/eval_paper"

# A random linear bias field of 20 % an axis on top.
distsynth simulate "$data/t1w_3t" -o "$out/t1w_bias" --bias 0.2
shards "$out/t1w_bias/cohort.csv" t1w_bias
run small small-bias t1w_bias --train.epochs 4 --train.validate-every 4
distsynth evaluate "$out/runs/small-bias" --cohort "$out/t1w_bias/cohort.csv" -o "$out/eval_bias"

# Two real acquisitions: T2-weighted slices of 5 mm to T1-weighted volumes.
shards "$data/pairs_t2w_t1w/cohort.csv" pairs
run small pairs pairs --train.epochs 12 --train.validate-every 4
distsynth evaluate "$out/runs/pairs" --cohort "$data/pairs_t2w_t1w/cohort.csv" -o "$out/eval_pairs"
