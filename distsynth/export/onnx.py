"""A generator as an ONNX model, checked with ONNX Runtime against PyTorch before it is used."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from distsynth.errors import ConfigError
from distsynth.models import Generator
from sharding.io.errors import DataError

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-4
"""Largest difference from PyTorch: of the largest output where that exceeds 1, else absolute."""
SOURCE, SYNTHETIC = "source", "synthetic"
"""Names of the model's input and output."""


@dataclass(frozen=True)
class OnnxModel:
    """A model that agrees with PyTorch.

    Attributes:
        content: The file.
        opset: Version of ONNX's operators.
        shapes: Shapes of the input, as the model names them; a name stands for any number.
        checked: Shapes of the random inputs on which both were compared.
        difference: Largest difference from PyTorch, in standardised units.
        largest: Largest absolute output of PyTorch on these inputs, in the same units.
    """

    content: bytes
    opset: int
    shapes: tuple[str, ...]
    checked: tuple[tuple[int, ...], ...]
    difference: float
    largest: float


def require_onnx() -> None:
    """Raise ConfigError, which names the remedy, unless the optional packages are installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"model.onnx must be written with {', '.join(missing)}, which this Python lacks: "
            'run pip install "distsynth[onnx]", or give --no-onnx'
        )


def onnx_model(generator: Generator, patch_size: Sequence[int], channels: int) -> OnnxModel:
    """Write a generator as ONNX, for any batch and for any sides that the network takes.

    Args:
        generator: In eval mode, on the CPU, float32.
        patch_size: Sides of its patches in voxels, two or three.
        channels: Channels of a source.

    Raises:
        DataError: If it cannot be written, or differs from PyTorch by more than TOLERANCE.
    """
    proto = _translated(generator, patch_size, channels)
    content = proto.SerializeToString(deterministic=True)
    checked = check_shapes(patch_size, channels, generator.multiple)
    difference, largest = compare(content, generator, checked)
    (given,) = proto.graph.input
    shapes = tuple(
        part.dim_param or str(part.dim_value) for part in given.type.tensor_type.shape.dim
    )
    return OnnxModel(content, proto.opset_import[0].version, shapes, checked, difference, largest)


def check_shapes(
    patch_size: Sequence[int], channels: int, multiple: int
) -> tuple[tuple[int, ...], ...]:
    """The patch, alone and three at a time, and patches that are longer along one axis each."""
    longer = [
        tuple(side + (axis + 1) * multiple * (axis == at) for at, side in enumerate(patch_size))
        for axis in range(len(patch_size))
    ]
    patch = tuple(patch_size)
    return tuple(
        (batch, channels, *sides)
        for batch, sides in ((1, patch), (3, patch), *((1, sides) for sides in longer))
    )


def compare(
    content: bytes, generator: Generator, shapes: Sequence[tuple[int, ...]]
) -> tuple[float, float]:
    """Run an ONNX model beside the generator on random normal input of each shape.

    Returns:
        The largest difference and the largest absolute output of the generator.

    Raises:
        DataError: If they differ by more than TOLERANCE, or in shape.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    differences, sizes = [0.0], [0.0]
    for shape in shapes:
        source = random.standard_normal(shape, np.float32)
        with torch.inference_mode():
            expected = generator(torch.from_numpy(source)).numpy()
        found = np.asarray(session.run([SYNTHETIC], {SOURCE: source})[0])
        if found.shape != expected.shape:
            raise _refusal(f"gives {found.shape} for {shape}, PyTorch gives {expected.shape}")
        difference, largest = (float(np.abs(part).max()) for part in (found - expected, expected))
        # Turned around, NaN would pass.
        if not difference <= TOLERANCE * max(1.0, largest):
            raise _refusal(
                f"must agree with PyTorch within {TOLERANCE:g} of the largest output, "
                f"{largest:.3g}; on random input of shape {shape} it differs by {difference:.3g}"
            )
        differences.append(difference)
        sizes.append(largest)
    return max(differences), max(sizes)


def _translated(generator: Generator, patch_size: Sequence[int], channels: int) -> Any:
    """The generator as an onnx.ModelProto without traces of where it was made."""
    import onnx
    from torch.export import Dim

    multiple = generator.multiple
    # An example side of 1 or of one multiple would be taken for a constant.
    example = torch.zeros(2, channels, *(2 * side for side in patch_size))
    sizes: dict[int, Any] = {0: Dim("batch")}
    for axis in range(len(patch_size)):
        side = Dim(f"side_{axis}")
        sizes[2 + axis] = multiple * side if multiple > 1 else side
    try:
        with _quiet():
            program = torch.onnx.export(
                generator,
                (example,),
                input_names=[SOURCE],
                output_names=[SYNTHETIC],
                dynamic_shapes=(sizes,),
                dynamo=True,
                verbose=False,
            )
    except RuntimeError as error:
        raise _refusal(f"cannot be written: {str(error).splitlines()[0]}") from error
    assert program is not None
    proto = program.model_proto
    # Torch notes the files and lines of this machine that each node comes from.
    graph = proto.graph
    values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    functions = (*proto.functions, *(node for part in proto.functions for node in part.node))
    for part in (proto, graph, *graph.node, *values, *functions):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.checker.check_model(proto, full_check=True)
    return proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself: a deprecation, and that torchvision is absent."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            message = r"`isinstance\(treespec, LeafSpec\)` is deprecated"
            warnings.filterwarnings("ignore", message, FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _refusal(rule: str) -> DataError:
    return DataError("model.onnx", rule, "Give --no-onnx to export without it")
