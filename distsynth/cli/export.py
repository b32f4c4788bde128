"""The commands that make another model out of checkpoints, and package one for others."""

# No "from __future__ import annotations" here: the arguments of a command are a dataclass within
# its function, whose annotations must be real types for the parser.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from distsynth.cli.arguments import Checkpoint, Out, parse


def average(args: Sequence[str]) -> None:
    """average the weights of several checkpoints into one"""

    @dataclass(frozen=True)
    class Average:
        """Average the weights of checkpoints of one architecture, trained on the same shards.

            distsynth average runs/one/checkpoints/epoch-00009.pt runs/one -o averaged

        BatchNorm's statistics are averaged too. distsynth predict, evaluate and export accept the
        folder in place of a run's, and train.start_from does. Its checkpoint says what it was made
        of.
        """

        checkpoints: Positional[Annotated[tuple[str, ...], arg(metavar="CHECKPOINT...")]]
        """Checkpoints, run folders (their best checkpoint) or exports, as paths or URLs. What else
        a checkpoint holds, such as how patches are stitched, is the first one's."""
        out: Out
        """Folder for checkpoints/best.pt."""
        overwrite: bool = False
        """Replace an average in the folder."""

    given = parse("average", Average, args)
    from distsynth.inference.averaging import average_checkpoints

    print(average_checkpoints(given.checkpoints, given.out, overwrite=given.overwrite))


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
