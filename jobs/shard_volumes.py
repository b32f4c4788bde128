"""Cut a cohort into shards on a Ray cluster; the same as `distsynth shard --address ADDRESS`.

This machine:      python jobs/shard_volumes.py cohort.csv -o shards
From the head:     python jobs/shard_volumes.py /shared/cohort.csv -o /shared/shards --address auto
As a Ray job:      ray job submit --working-dir . -- python jobs/shard_volumes.py \\
                       /shared/cohort.csv -o s3://bucket/shards --address auto

Scans and output must be reachable from every node under the same names. RAY_ADDRESS serves where
--address is not given.
"""

from __future__ import annotations

import os
import sys

from distsynth.cli.main import main

if __name__ == "__main__":
    given = sys.argv[1:]
    address = os.environ.get("RAY_ADDRESS")
    if address and not any(word.startswith("--address") for word in given):
        given = [*given, "--address", address]
    sys.exit(main(["shard", *given]))
