"""Train on every process that a launcher starts; the same as `distsynth train`.

One process:   python jobs/train_gan.py unet-7 -o runs/unet-7
Four GPUs:     accelerate launch --num_processes 4 jobs/train_gan.py unet-7 -o runs/unet-7
Two machines:  accelerate launch --num_machines 2 --machine_rank 0 --main_process_ip HOST \\
                   --num_processes 8 jobs/train_gan.py unet-7 -o /shared/runs/unet-7
"""

from __future__ import annotations

import sys

from distsynth.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
