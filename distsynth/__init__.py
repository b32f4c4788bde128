"""From shards of patches to an evaluated model, and the front door to all of it.

`import distsynth as ds` is quick, and its names load what they need when they are first used:

    specimens = ds.make_phantoms("cohort", specimens=5)
    ds.shard(specimens, "shards")
    run = ds.train(ds.load_config("small", {"data.shards": "shards"}), "run")
    synthetic = ds.load_predictor(run.best).predict("scan.nii.gz")
    print(ds.evaluate(run.best, specimens).frame())

examples/quickstart.py shows the whole path. Messages and progress go through the loggers
`distsynth` and `sharding`: `logging.getLogger("distsynth").setLevel(logging.WARNING)` silences one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distsynth.api import (
        evaluate,
        load_config,
        make_phantoms,
        prepare,
        run_sweep,
        shard,
        simulate,
        write_report,
    )
    from distsynth.config import RunConfig, with_overrides
    from distsynth.errors import ConfigError
    from distsynth.evaluation.evaluate import Evaluation
    from distsynth.export.export import write_export
    from distsynth.inference.averaging import average_checkpoints
    from distsynth.inference.comparison import Comparison
    from distsynth.inference.predictor import Predictor, load_predictor
    from distsynth.prediction.run import predict
    from distsynth.sweep.plan import SweepConfig
    from distsynth.sweep.run import SweepResult
    from distsynth.training.loop import train
    from distsynth.training.report import EpochReport, TrainResult
    from sharding.io.errors import DataError
    from sharding.registration.config import PrepareConfig
    from sharding.shards.config import ShardConfig
    from sharding.shards.shard_set import ShardSet
    from sharding.simulation.simulate import SimulationConfig
    from sharding.volumes.cohort import Specimen, read_cohort, write_cohort
    from sharding.volumes.volume import Volume, read_volume, write_volume

__all__ = [
    "Comparison",
    "ConfigError",
    "DataError",
    "EpochReport",
    "Evaluation",
    "Predictor",
    "PrepareConfig",
    "RunConfig",
    "ShardConfig",
    "ShardSet",
    "SimulationConfig",
    "Specimen",
    "SweepConfig",
    "SweepResult",
    "TrainResult",
    "Volume",
    "average_checkpoints",
    "evaluate",
    "load_config",
    "load_predictor",
    "make_phantoms",
    "predict",
    "prepare",
    "read_cohort",
    "read_volume",
    "run_sweep",
    "shard",
    "simulate",
    "train",
    "with_overrides",
    "write_cohort",
    "write_export",
    "write_report",
    "write_volume",
]

_MODULES = {
    "distsynth.api": (
        "evaluate",
        "load_config",
        "make_phantoms",
        "prepare",
        "run_sweep",
        "shard",
        "simulate",
        "write_report",
    ),
    "distsynth.config": ("RunConfig", "with_overrides"),
    "distsynth.errors": ("ConfigError",),
    "distsynth.evaluation.evaluate": ("Evaluation",),
    "distsynth.export.export": ("write_export",),
    "distsynth.inference.averaging": ("average_checkpoints",),
    "distsynth.inference.comparison": ("Comparison",),
    "distsynth.inference.predictor": ("Predictor", "load_predictor"),
    "distsynth.prediction.run": ("predict",),
    "distsynth.sweep.plan": ("SweepConfig",),
    "distsynth.sweep.run": ("SweepResult",),
    "distsynth.training.loop": ("train",),
    "distsynth.training.report": ("EpochReport", "TrainResult"),
    "sharding.io.errors": ("DataError",),
    "sharding.registration.config": ("PrepareConfig",),
    "sharding.shards.config": ("ShardConfig",),
    "sharding.shards.shard_set": ("ShardSet",),
    "sharding.simulation.simulate": ("SimulationConfig",),
    "sharding.volumes.cohort": ("Specimen", "read_cohort", "write_cohort"),
    "sharding.volumes.volume": ("Volume", "read_volume", "write_volume"),
}
"""Where each name is defined: the imports above, for the interpreter."""
_PLACES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
