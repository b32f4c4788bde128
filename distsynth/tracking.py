"""What a run tells while it trains: rows of numbers and pictures, to a local file and to W&B.

`metrics.jsonl` is complete by itself. W&B gets the same rows, under explicit steps; it stays
offline, in the run's folder, until the user says online. Nothing that names a path, host, user or
program goes into what W&B would upload.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from distsynth.config import RunConfig, to_dict
from sharding.atomic import atomic_path, atomic_write

Volume = NDArray[np.floating[Any]]
METRICS_FILE = "metrics.jsonl"
RUN_ID_FILE = "run_id"
PATH_FIELDS = (("data", "shards"), ("loss", "vgg_weights"))
"""Fields of the configuration that hold a path; W&B does not get them."""


class Tracker(Protocol):
    """Where rows and pictures go."""

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Record numbers of a step."""
        ...

    def picture(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """Record an RGB picture, shape (height, width, 3)."""
        ...

    def finish(self, failed: bool = False) -> None:
        """Close the record."""
        ...


class LocalTracker:
    """metrics.jsonl and pictures in the run's folder.

    Args:
        run_dir: The run's folder.
        step: Where a resumed run goes on: rows of later steps, written by the interrupted
            process after its last checkpoint, are dropped and will be written again.
    """

    def __init__(self, run_dir: Path, step: int) -> None:
        self._run_dir = run_dir
        path = run_dir / METRICS_FILE
        kept = [row for row in read_rows(path) if row["step"] <= step] if step else []
        atomic_write(path, "".join(map(_line, kept)))
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Append a line, at once; JSON has no NaN, so a number that is not finite is null."""
        self._file.write(_line({"step": step, **row}))
        self._file.flush()

    def picture(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """Write samples/NAME-STEP.png."""
        path = self._run_dir / "samples" / f"{name}-{step:07d}.png"
        with atomic_path(path, ".png") as partial:
            Image.fromarray(image).save(partial)

    def finish(self, failed: bool = False) -> None:  # noqa: ARG002
        """Close the file."""
        self._file.close()


class WandbTracker:
    """A W&B run that keeps its id over interruptions."""

    def __init__(self, run_dir: Path, config: RunConfig, data_sha256: str, resumed: bool) -> None:
        import wandb

        self._wandb = wandb
        tracking = config.tracking
        self._run = wandb.init(
            project=tracking.project,
            entity=tracking.entity,
            group=tracking.group,
            name=run_dir.resolve().name,
            id=run_id(run_dir),
            resume="allow" if resumed else None,
            dir=run_dir,
            mode="online" if tracking.mode == "online" else "offline",
            config={**public_config(config), "data_sha256": data_sha256},
            settings=wandb.Settings(
                console="off",
                silent=True,
                save_code=False,
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                host="",
                program="",
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
                # The default of 15 s loses what a killed process logged last.
                x_transaction_log_flush_interval=0.5,
            ),
        )

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Log under an explicit step: a resumed run does not begin at 0 again."""
        self._run.log(dict(row), step=step)

    def picture(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """Log an image under the same step."""
        self._run.log({name: self._wandb.Image(Image.fromarray(image))}, step=step)

    def finish(self, failed: bool = False) -> None:
        """Flush and close."""
        self._run.finish(exit_code=int(failed))


class Trackers:
    """Several trackers as one; none at all on ranks other than the first."""

    def __init__(self, *trackers: Tracker) -> None:
        self._trackers = trackers

    def log(self, step: int, row: Mapping[str, float]) -> None:
        """Pass on to all."""
        for tracker in self._trackers:
            tracker.log(step, row)

    def picture(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """Pass on to all."""
        for tracker in self._trackers:
            tracker.picture(step, name, image)

    def finish(self, failed: bool = False) -> None:
        """Pass on to all."""
        for tracker in self._trackers:
            tracker.finish(failed)


def start_trackers(
    run_dir: Path, config: RunConfig, data_sha256: str, step: int, resumed: bool
) -> Trackers:
    """The local record, and W&B unless disabled."""
    local = LocalTracker(run_dir, step)
    if config.tracking.mode == "disabled":
        return Trackers(local)
    return Trackers(local, WandbTracker(run_dir, config, data_sha256, resumed))


def run_id(run_dir: Path) -> str:
    """The run's id, made once and kept in its folder."""
    path = run_dir / RUN_ID_FILE
    if not path.is_file():
        atomic_write(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8").strip()


def public_config(config: RunConfig) -> dict[str, Any]:
    """The configuration without the fields that hold paths of this machine."""
    values = to_dict(config)
    for section, name in PATH_FIELDS:
        del values[section][name]
    return values


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl, null as NaN; a last line torn by a kill is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        rows.append({name: math.nan if value is None else value for name, value in row.items()})
    return rows


def _line(row: Mapping[str, float]) -> str:
    """A row of a metrics.jsonl."""
    finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
    return json.dumps(finite) + "\n"


def patch_grid(source: Volume, synthetic: Volume, target: Volume) -> NDArray[np.uint8]:
    """A picture of patches: source, synthetic, target, and synthetic - source in colour.

    Args:
        source: Standardised, shape (n, h, w); blocks show their middle slice, (n, d, h, w).
        synthetic: Same shape.
        target: Same shape; sets the grey window.

    Returns:
        RGB, one row a patch, each voxel 3 pixels wide. Blue is positive, red negative, as in the
        paper's figures.
    """
    if source.ndim == 4:
        middle = source.shape[1] // 2
        source, synthetic, target = (part[:, middle] for part in (source, synthetic, target))
    low, high = np.percentile(target, (0.5, 99.5))
    span = max(float(high - low), 1e-6)
    grey = [colormaps["gray"]((part - low) / span) for part in (source, synthetic, target)]
    signed = colormaps["RdBu"](0.5 + (synthetic - source) / (2 * span))
    columns = np.concatenate([*grey, signed], axis=2)
    picture = np.concatenate(list(columns), axis=0)[..., :3]
    return np.rint(picture * 255).astype(np.uint8).repeat(3, axis=0).repeat(3, axis=1)
