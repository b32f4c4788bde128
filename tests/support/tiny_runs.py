"""Runs that take a second, in this process or as ranks in processes of their own.

Processes come from a fork server that has loaded the libraries once; each may end as it likes.
"""

from __future__ import annotations

import importlib
import multiprocessing
import multiprocessing.context
import multiprocessing.forkserver
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from moments import watch_as_asked

import distsynth.training.checkpointing
import distsynth.training.precision
import distsynth.training.run
from distsynth.config import RunConfig, field_names, with_overrides
from distsynth.runs.checkpoint import load_checkpoint
from distsynth.runs.folder import LAST, METRICS_FILE
from distsynth.runs.rows import read_rows
from distsynth.runs.tracking import LocalTracker
from distsynth.training.loop import train
from distsynth.training.precision import Choice
from distsynth.training.run import TrainingRun

SECONDS = 120
"""A process that takes longer hangs."""

PLAIN: dict[str, Any] = {
    "data.patch_size": (16, 16),
    "data.neighbours": 0,
    "data.alignment": 1,
    "data.contrasts": 1,
    "generator.channels": (4,),
    "generator.kernels": (3,),
    "generator.norm": "none",
    "optim.lr_generator": 1e-2,
    "train.epochs": 2,
    "train.batch_size": 24,
    "train.log_every": 2,
    "train.device": "cpu",
    "train.precision": "no",
    "stitch.stride": 8,
    "tracking.mode": "disabled",
    "tracking.samples": 0,
}
FAMILY = {"generator": "conv", "discriminator": "none"}
"""Families of the networks of PLAIN."""
ADVERSARIAL: dict[str, Any] = {
    "discriminator.family": "conv",
    "discriminator.channels": (4, 4),
    "discriminator.kernels": (3,),
    "discriminator.norm": "none",
    "loss.lambda_bce": 0.1,
    "loss.lambda_gradient": 0.5,
    "optim.lr_discriminator": 1e-3,
}
BATCH_NORM: dict[str, Any] = {"generator.norm": "batch", "discriminator.norm": "batch"}


def tiny_config(shards: Path, *more: dict[str, Any]) -> RunConfig:
    """A run of two epochs of five steps on the 120 training patches of `shard_folder`.

    Of PLAIN and the others it takes the fields that the families have.
    """
    overrides = PLAIN | {"data.shards": str(shards)}
    for part in more:
        overrides |= part
    families = {name: overrides.get(f"{name}.family", FAMILY[name]) for name in FAMILY}
    known = field_names(families)
    return with_overrides(RunConfig(), {n: v for n, v in overrides.items() if n in known})


def broken_off(config: RunConfig, run_dir: Path, at: int) -> None:
    """Train until an error comes in the place of a step."""
    inner = TrainingRun._step

    def breaking(self: TrainingRun, batch: Any, step: int) -> Any:
        if step == at:
            raise RuntimeError("stopped here")
        return inner(self, batch, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingRun, "_step", breaking)
        with pytest.raises(RuntimeError, match="stopped here"):
            train(config, run_dir)


def losses(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run without what depends on the clock."""
    rows = read_rows(run_dir / METRICS_FILE)
    return [
        {name: value for name, value in row.items() if not name.startswith("throughput")}
        for row in rows
    ]


def tensors(run_dir: Path, file: Path = LAST) -> dict[str, Any]:
    """Every number of networks and optimizers in a run's checkpoint, by its path."""
    learners = load_checkpoint(run_dir / file).learners
    return dict(_leaves(learners, ""))


def _leaves(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        if isinstance(value, dict | list | tuple):
            yield from _leaves(value, f"{name}/{key}")
        else:
            yield f"{name}/{key}", value


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Whether all numbers are equal to the bit."""
    assert left.keys() == right.keys()
    return all(
        torch.equal(value, right[name]) if torch.is_tensor(value) else value == right[name]
        for name, value in left.items()
    )


def start_ranks(
    target: Callable[..., Any], *args: Any, ranks: int, log: Path
) -> list[multiprocessing.process.BaseProcess]:
    """Start a function in one process a rank; what they write lies in `log`-RANK."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        environment = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        if ranks > 1:
            environment |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "LOCAL_WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        own_log = log.with_name(f"{log.name}-{rank}")
        processes.append(start(target, *args, environment=environment, log=own_log))
    return processes


def launch(target: Callable[..., Any], *args: Any, ranks: int = 1, log: Path) -> list[int]:
    """Run a function of this module in one process a rank.

    Returns:
        Their exit codes; what they wrote lies in `log`-RANK.

    Raises:
        TimeoutError: If one hangs; all are killed.
    """
    processes = start_ranks(target, *args, ranks=ranks, log=log)
    deadline = time.monotonic() + SECONDS
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()
        process.join()
    if hanging:
        raise TimeoutError(f"{len(hanging)} of {ranks} processes hang, see {log}")
    return [process.exitcode or 0 for process in processes]


def start_fork_server() -> multiprocessing.context.ForkServerContext:
    """Start the server that forks processes, if there is none, with all libraries loaded.

    Whoever starts it first decides what it loads, and a loader of the program would load less: a
    session of tests starts it before any test does. It is itself a fork where there is a server of
    `warm_workers.py`, and has what that one has loaded.
    """
    context = multiprocessing.get_context("forkserver")
    # The last two are loaded by the first optimizer step, which would take a second a process.
    libraries = ["distsynth.training.loop", "torch.distributed.tensor", "torch._dynamo"]
    context.set_forkserver_preload(libraries)
    multiprocessing.forkserver.ensure_running()
    return context


def start(
    target: Callable[..., Any], *args: Any, environment: dict[str, str], log: Path
) -> multiprocessing.process.BaseProcess:
    """Start one process, with the environment of now and more; its output goes to `log`.

    W&B's service is none of its business: it would share that of this process.
    """
    context = start_fork_server()
    name = target.__module__, target.__qualname__
    own = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    process = context.Process(target=_child, args=(name, args, own | environment, log))
    process.start()
    return process


def _child(name: tuple[str, str], args: Any, environment: dict[str, str], log: Path) -> None:
    # The server that forked this process has the environment of when it was started, and Ray reads
    # it when it is imported: the target's module comes after.
    os.environ.clear()
    os.environ.update(environment)
    watch_as_asked()
    module, function = name
    target = getattr(importlib.import_module(module), function)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    torch.set_num_threads(1)
    try:
        target(*args)
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def run(config: RunConfig, run_dir: Path, resume: bool = False) -> None:
    """Train, as many ranks as were launched."""
    from accelerate import PartialState

    train(config, run_dir, resume=resume)
    assert PartialState().num_processes == int(os.environ.get("WORLD_SIZE", 1))


def run_killed(config: RunConfig, run_dir: Path, what: str, count: int) -> None:
    """Train until SIGKILL at a chosen moment.

    Args:
        config: The run.
        run_dir: Its folder.
        what: "step", "row" or "saved" for before a step, after a row or a checkpoint is written;
            "saving" for when half of a checkpoint is.
        count: Which of these, from 1.
    """
    seen = 0

    def hit() -> bool:
        nonlocal seen
        seen += 1
        return seen == count

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def before(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            if hit():
                kill()
            return function(*args)

        return wrapped

    def after(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            result = function(*args)
            if hit():
                kill()
            return result

        return wrapped

    def half(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(state: Any, path: Path) -> None:
            function(state, path)
            if hit():
                os.truncate(path, path.stat().st_size // 2)
                kill()

        return wrapped

    if what == "step":
        distsynth.training.run.TrainingRun._step = before(distsynth.training.run.TrainingRun._step)  # type: ignore[method-assign]
    elif what == "row":
        LocalTracker.log = after(LocalTracker.log)  # type: ignore[method-assign]
    elif what == "saved":
        distsynth.training.checkpointing.save_checkpoint = after(
            distsynth.training.checkpointing.save_checkpoint
        )
    else:
        torch.save = half(torch.save)
    train(config, run_dir)


def run_failing(config: RunConfig, run_dir: Path, rank: int, step: int) -> None:
    """Train, but one rank raises at a step."""
    inner = distsynth.training.run.TrainingRun._step

    def failing(self: Any, batch: Any, number: int) -> Any:
        if number == step and self.accelerator.process_index == rank:
            raise RuntimeError("this rank breaks")
        return inner(self, batch, number)

    distsynth.training.run.TrainingRun._step = failing  # type: ignore[method-assign]
    train(config, run_dir)


def run_choosing(config: RunConfig, run_dir: Path) -> None:
    """Train, where only the first rank would find that bf16 gains."""

    def choose(*_: Any) -> Choice:
        first = os.environ["RANK"] == "0"
        return Choice("bf16" if first else "no", "as this rank finds")

    distsynth.training.precision.choose_precision = choose
    run(config, run_dir)
    taken = AcceleratorState().mixed_precision
    (run_dir / f"precision-{os.environ['RANK']}").write_text(taken, encoding="utf-8")


def run_and_keep(config: RunConfig, run_dir: Path) -> None:
    """Train, and keep what each rank has in the end."""
    kept: dict[str, Any] = {}
    close = distsynth.training.run.TrainingRun.close_epoch

    def spy(self: Any, epoch: int) -> Any:
        report = close(self, epoch)
        kept.update({name: learner.state_dict() for name, learner in self.state.learners.items()})
        return report

    distsynth.training.run.TrainingRun.close_epoch = spy  # type: ignore[method-assign]
    run(config, run_dir)
    torch.save(kept, run_dir / f"rank-{os.environ['RANK']}.pt")


def batch_norm_of_a_share(ranks: int, out: Path) -> None:
    """A rank's share of a batch of 8 through a BatchNorm layer, forwards and backwards, twice.

    What the rank has in the end is saved as `out`-RANK; gradients of weights are those that DDP
    makes of all ranks'.
    """
    from accelerate import PartialState

    from distsynth.training.batch_norm import over_all_ranks

    PartialState(cpu=True)
    rank = int(os.environ.get("RANK", "0"))
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(8, 3, 6, 5, generator=generator) * 40 + 1000
    weights = torch.randn(images.shape, generator=generator)
    layer: torch.nn.Module = torch.nn.BatchNorm2d(3)
    if ranks > 1:
        layer = over_all_ranks(layer, torch.device("cpu"))
    share = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
    own = images[share].requires_grad_()
    for _ in range(2):
        output = layer(own)
    # The mean over ranks of a loss that is a mean over a rank's share.
    (output * weights[share]).square().mean().backward()
    assert own.grad is not None
    saved = {"output": output.detach(), "input gradient": own.grad / ranks}
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        if ranks > 1:
            torch.distributed.all_reduce(parameter.grad)
        saved[name] = parameter.grad / ranks
    torch.save(saved | dict(layer.named_buffers()), f"{out}-{rank}")
