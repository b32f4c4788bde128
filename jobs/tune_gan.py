"""Search on a Ray cluster; the same as `distsynth sweep`, on the cluster that is there already.

This machine:    python jobs/tune_gan.py unet-7 --local --name lambdas --space loss-weights ...
From the head:   python jobs/tune_gan.py unet-7 --name lambdas --storage /shared/sweeps ...
As a Ray job:    ray job submit --working-dir . -- python jobs/tune_gan.py unet-7 --name lambdas \\
                     --storage s3://bucket/sweeps --data.shards s3://bucket/shards ...
By the launcher: ray submit jobs/cluster/aws.yaml jobs/tune_gan.py -- unet-7 --name lambdas ...

With --resume the same line starts the sweep or continues it. Shards and sweeps must be reachable
from every node under the same names. The cluster is RAY_ADDRESS's, or the one that this machine
belongs to.
"""

from __future__ import annotations

import os
import sys

from distsynth.cli.main import main

if __name__ == "__main__":
    given = [word for word in sys.argv[1:] if word != "--"]
    chosen = ("--address", "--local", "--status", "--help", "-h")
    if not any(word.startswith(chosen) for word in given):
        given = [*given, "--address", os.environ.get("RAY_ADDRESS", "auto")]
    sys.exit(main(["sweep", *given]))
