#!/usr/bin/env bash
# Lambda 1 to 3 and both learning rates searched from unet-7 on real scans: makes the sweep of
# benchmarks/results/*-sweeps.md again.
#
#     benchmarks/real_sweep.sh DATA OUT
#
# DATA holds t1w_3t/ (targets only) with a cohort.csv. Sized for two hours of two CPU cores: a third
# of the paper's patches, 6 of its 30 epochs. Lambda 4 needs VGG16 weights: add the space
# loss-weights-perceptual where there are some.
set -euo pipefail
data=$1 out=$2
mkdir -p "$out"

distsynth simulate "$data/t1w_3t" -o "$out/t1w"
distsynth shard "$out/t1w/cohort.csv" -o "$out/shards" --val-slices 6 --patches-per-specimen 100
distsynth sweep unet-7 --name lambdas-asha --storage "$out/sweeps" --data.shards "$out/shards" \
    --space loss-weights learning-rates --trials 40 --search optuna --scheduler asha \
    --train.epochs 6 --presets-first --final retrained --top 2 --cohort "$out/t1w/cohort.csv"
