"""The command that makes a model ready to hand on."""

# No "from __future__ import annotations" here: the arguments of a command are a dataclass within
# its function, whose annotations must be real types for the parser.

from collections.abc import Sequence
from dataclasses import dataclass

from tyro.conf import Positional

from distsynth.cli.arguments import Out, parse


def export(args: Sequence[str]) -> None:
    """write a model as a folder to hand on: weights, ONNX, model card"""

    @dataclass(frozen=True)
    class Export:
        """Write a checkpoint's generator as a folder to hand on, with a model card.

        distsynth predict and evaluate take the folder in place of the checkpoint. No path, host,
        user or specimen is named in it.
        """

        checkpoint: Positional[str]
        """A checkpoint, or a run's folder for its best one; a path or a URL."""
        out: Out
        """Folder for model.safetensors, config.json, distsynth.json, model.onnx, README.md and
        SHA256SUMS."""
        evaluation: str | None = None
        """Folder that distsynth evaluate wrote: the card gets its metrics."""
        row: str | None = None
        """Name of the model in that evaluation, where it is not that of the run's folder."""
        onnx: bool = True
        """Write model.onnx too, checked against PyTorch."""
        overwrite: bool = False

    given = parse("export", Export, args)
    from distsynth.export.export import write_export

    print(
        write_export(
            given.checkpoint, given.out, given.evaluation, given.row, given.onnx, given.overwrite
        )
    )
