"""Steps on a GPU: eager and compiled, float32 and bf16, one preset of each family.

    python -m benchmarks.gpu [--presets NAME ...] [--times N]

A step is the one of training (`distsynth/training/steps.py`), on one batch of random patches that
lies on the device. The ceiling is a product of large square matrices in bf16. `idle` is the share
of a step in which no kernel runs, from a profile: what the launches of small kernels cost. Where
there is no GPU the same runs on the processor, to show that it works; its numbers mean nothing.
"""

from __future__ import annotations

import argparse

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.whole_table import Step, ceiling, seconds_each, step_flops
from distsynth.config import with_overrides
from distsynth.presets import BLOCKS, PRESETS, preset
from distsynth.training.compile import compile_networks
from distsynth.training.steps import make_accelerator

FAMILIES = ("small", "unet-7", "dcgan-1", "dcgan-2", "dcsrn-l1", "fcn-2", "pix2pix-9", "best-gpu")
WAYS = (("no", False), ("bf16", False), ("bf16", True))
"""Precision, and whether the networks are compiled."""
PROFILED = 5


def main(options: argparse.Namespace) -> None:
    """Print the table."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    peak = ceiling(device, torch.bfloat16)
    name = torch.cuda.get_device_name(device) if gpu else "CPU"
    print(
        f"{name}, torch {torch.__version__}; a matrix product in bf16: {peak / 1e12:.1f} TFLOP/s\n"
    )
    print(
        "| preset | precision | compiled | ms a step | patches/s | of eager float32 | "
        "of the ceiling | idle |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for title in options.presets:
        plain = 0.0
        for precision, compiled in WAYS:
            accelerator = make_accelerator(precision, cpu=not gpu)
            size = BLOCKS[title].patch_size if title in BLOCKS else (64, 64)
            config = with_overrides(
                preset(title),
                {"train.device": "auto", "data.patch_size": size, "data.neighbours": 0},
            )
            batch = config.train.batch_size if gpu else 2
            flops = step_flops(config, accelerator) * batch / config.train.batch_size
            step = Step(config, batch, accelerator)
            if compiled:
                compile_networks([one.raw for one in step.learners.values()], device)
            seconds = seconds_each(step, options.times, device)
            plain = plain or seconds
            shown = [
                f"{title} | {precision} | {'yes' if compiled else 'no'} | {seconds * 1e3:.1f}",
                f"{batch / seconds:,.0f} | {plain / seconds:.2f} | {flops / seconds / peak:.0%}",
                f"{idle(step, device):.0%}" if gpu else "-",
            ]
            print(f"| {' | '.join(shown)} |", flush=True)


def idle(step: Step, device: torch.device) -> float:
    """Share of steps in which the device has nothing to do."""
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(PROFILED):
            step()
        end.record()
        torch.cuda.synchronize(device)
    busy = sum(event.self_device_time_total for event in seen.key_averages()) / 1e3
    return max(0.0, 1 - busy / begin.elapsed_time(end))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(FAMILIES))
    parser.add_argument("--times", type=int, default=20, help="Steps; their median counts.")
    main(parser.parse_args())
