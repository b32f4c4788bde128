"""The command that packages a model for others."""

# No "from __future__ import annotations" here: the arguments of a command are a dataclass within
# its function, whose annotations must be real types for the parser.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from distsynth.cli.arguments import Checkpoint, Out, parse


def export(args: Sequence[str]) -> None:
    """package a model to share it: weights, ONNX, model card"""

    @dataclass(frozen=True)
    class Export:
        """Package the generator of a checkpoint in a folder to share, with a model card.

            distsynth export runs/small -o export --evaluation evaluation

        distsynth predict and evaluate accept the folder in place of the checkpoint. It names no
        path, host, user or specimen.
        """

        checkpoint: Positional[Checkpoint]
        """A checkpoint, or the folder of a run for its best one; a path or a URL."""
        out: Out
        """Folder for model.safetensors, config.json, distsynth.json, model.onnx, README.md and
        SHA256SUMS."""
        evaluation: Annotated[str | None, arg(metavar="FOLDER")] = None
        """Folder that distsynth evaluate wrote, whose metrics the card shows."""
        row: Annotated[str | None, arg(metavar="NAME")] = None
        """Name of the model in that evaluation, if it differs from that of the run's folder."""
        onnx: bool = True
        """Write model.onnx as well, checked against PyTorch."""
        overwrite: bool = False
        """Replace an export in the folder."""

    given = parse("export", Export, args)
    from distsynth.export.export import write_export

    print(
        write_export(
            given.checkpoint,
            given.out,
            evaluation=given.evaluation,
            row=given.row,
            onnx=given.onnx,
            overwrite=given.overwrite,
        )
    )
