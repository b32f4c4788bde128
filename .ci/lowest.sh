#!/usr/bin/env bash
# Install the lowest versions that pyproject.toml admits, and run the demo in miniature, a tiny sweep
# and an export with them. Everything lies in .venv-lowest.
#
# torch is an exception: it is that of the environment in which this is called, for its lowest
# version with what it brings takes gigabytes. LOWEST_TORCH=1 installs it too.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$PWD/.venv-lowest
python=$venv/bin/python

rm -rf "$venv"
python3 -m venv "$venv"
"$python" -m pip install --quiet uv
export UV_CACHE_DIR=$venv/cache UV_LINK_MODE=hardlink

overrides=()
if [ -z "${LOWEST_TORCH:-}" ]; then
    # By links: torch's own packages, and what tells installers that they are there.
    python3 - "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" <<'END'
import sys
from importlib.metadata import distribution
from pathlib import Path

torch = distribution("torch")
there = Path(torch.locate_file(""))
names = {file.parts[0] for file in torch.files or () if file.parts[0] not in ("..", "__pycache__")}
for name in names:
    Path(sys.argv[1], name).symlink_to(there / name)
END
    # uv does not take what is there for an answer: it must not look for torch at all.
    echo 'torch; python_version < "3"' >"$venv/overrides.txt"
    overrides=(--override "$venv/overrides.txt")
fi
"$venv/bin/uv" pip install --quiet --python "$python" --resolution lowest-direct \
    "${overrides[@]}" --editable ".[cluster,onnx,s3,zarr]"
rm -rf "$UV_CACHE_DIR"
# What a linked torch needs.
"$python" -m pip install --quiet torch
"$venv/bin/uv" pip list --quiet --python "$python"

study=$venv/study
export OMP_NUM_THREADS=1
"$python" tests/support/small_study.py "$study" \
    phantom prepare shard train predict evaluate report export sweep >"$venv/study.log" ||
    { cat "$venv/study.log" >&2; exit 1; }
test -s "$study/evaluation/results.json"
test -s "$study/export/model.onnx"
test -s "$study/sweeps/tiny/leaderboard.csv"
# Written and read as OME-Zarr.
"$venv/bin/distsynth" predict "$study/run" "$study/cohort/phantom-00_source.nii.gz" -o "$study/out.ome.zarr"
"$venv/bin/distsynth" predict "$study/run" "$study/out.ome.zarr" -o "$study/again.nii.gz" --force
