#!/usr/bin/env bash
# Everything that wants a GPU, in about ten minutes, without any data: the tests that need no
# cluster, steps in both precisions and compiled, several networks packed into one, the paper's
# table as timed, reading, the loop, prediction. Each part has its own limit, and one that fails or
# runs out leaves the others.
#
#   benchmarks/gpu.sh [OUT]
set -uo pipefail
out=${1:-gpu-results}
cd "$(dirname "$0")/.."
mkdir -p "$out"
failed=0

part() { # name, most seconds, command ...
  local name=$1 most=$2
  shift 2
  echo "+ $*" | tee "$out/$name.txt" >&2
  if ! timeout "$most" "$@" >>"$out/$name.txt" 2>&1; then
    echo "$name failed or ran out of its $most s: see $out/$name.txt" >&2
    failed=1
  fi
}

{ date -u; nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader \
    || echo "no GPU"; } >"$out/machine.txt" 2>&1
part steps       120 python -m benchmarks.gpu
part training     90 python -m benchmarks.training --quick --precision bf16 --presets small unet-7
part packing      60 python -m benchmarks.packing --presets dcgan-1 unet-7 --counts 1 8 --times 5
part table        90 python -m benchmarks.whole_table
part prediction   60 python -m benchmarks.prediction --quick
part reading      60 python -m benchmarks.reading --quick
part tests       120 env OMP_NUM_THREADS=1 pytest -q -n 8 -m "not slow and not long" tests/training \
  tests/inference tests/losses tests/models
exit "$failed"
