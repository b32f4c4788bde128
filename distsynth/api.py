"""The stages as functions for scripts and notebooks; `import distsynth` offers them.

They are what the commands of the same names do. A cohort is given as a path (cohort.csv, a folder
with one, a BIDS folder for which `read_cohort` needs patterns) or as the list of its specimens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from distsynth.config import RunConfig, from_json, with_overrides
from distsynth.errors import ConfigError, check_workers
from distsynth.presets import preset
from sharding.io.errors import DataError, file_errors
from sharding.registration.config import PrepareConfig
from sharding.shards.config import ShardConfig
from sharding.shards.shard_set import ShardSet
from sharding.simulation.simulate import SimulationConfig
from sharding.volumes.cohort import Specimen, Split, read_cohort

if TYPE_CHECKING:
    from distsynth.evaluation.evaluate import Evaluation, OnSpecimen
    from distsynth.inference.predictor import Predictor
    from distsynth.reporting.run_page import Extras
    from distsynth.reporting.specimen_pictures import SpecimenPictures
    from distsynth.sweep.plan import SweepConfig
    from distsynth.sweep.run import SweepResult
    from sharding.io.storage import Folder
    from sharding.registration.prepare import PreparedCohort

Cohort = str | Path | Sequence[Specimen]
ENSEMBLE = "ensemble"
"""Row of the mean of all evaluated models."""
LEAST_SIDE = 8
"""Voxels along the shortest side of a phantom."""


def make_phantoms(
    out: str | Path,
    specimens: int = 8,
    shape: tuple[int, int, int] = (96, 96, 80),
    *,
    simulation: SimulationConfig | None = None,
    overwrite: bool = False,
) -> list[Specimen]:
    """Write a cohort of phantom specimens with simulated low-field sources.

    Args:
        out: Folder for the NIfTI files and cohort.csv.
        specimens: How many.
        shape: Voxels along each axis of a target; voxels are 0.2 mm wide.
        simulation: How sources are simulated; its seed also makes the phantoms.
        overwrite: Replace files of an earlier call.

    Returns:
        The specimens.

    Raises:
        ConfigError: If there is nothing to make.
        DataError: If a file exists and may not be replaced.
    """
    from sharding.simulation.phantom import write_phantom_cohort

    if specimens < 1:
        raise ConfigError(f"specimens must be >= 1, got {specimens}")
    if min(shape) < LEAST_SIDE:
        raise ConfigError(f"shape must be >= {LEAST_SIDE} along each axis, got {shape}")
    config = simulation or SimulationConfig()
    path = write_phantom_cohort(
        Path(out), specimens, shape, config.seed, config, overwrite=overwrite
    )
    return read_cohort(path)


def simulate(
    cohort: Cohort,
    out: str | Path,
    config: SimulationConfig | None = None,
    *,
    overwrite: bool = False,
) -> list[Specimen]:
    """Simulate a low-field source for every target of a cohort.

    Returns:
        The specimens with their new sources.

    Raises:
        DataError: If a target is bad, or a file exists and may not be replaced.
    """
    from sharding.simulation.simulate import simulate_cohort

    config = config or SimulationConfig()
    return read_cohort(simulate_cohort(_specimens(cohort), Path(out), config, overwrite))


def prepare(
    cohort: Cohort,
    out: str | Path,
    config: PrepareConfig | None = None,
    *,
    workers: int = 1,
    address: str | None = None,
) -> PreparedCohort:
    """Correct the bias of raw scans and register each source to its target.

    Args:
        cohort: With sources.
        out: Folder for the prepared volumes, transforms, cohort.csv and quality.html.
        config: The steps.
        workers: Number of processes; 0 starts one for each core. A script that starts some must
            have the guard `if __name__ == "__main__":`.
        address: A Ray cluster to run on.

    Returns:
        The prepared specimens, what stands out, and the failures, which do not stop the rest.

    Raises:
        DataError: If `out` holds something else or the disk is full.
    """
    from sharding.registration.prepare import prepare_cohort

    check_workers(workers)
    return prepare_cohort(
        _specimens(cohort), Path(out), config or PrepareConfig(), workers, address
    )


def shard(
    cohort: Cohort,
    out: str | Path,
    config: ShardConfig | None = None,
    *,
    workers: int = 1,
    overwrite: bool = False,
    update: bool = False,
    skip_failed: bool = False,
    address: str | None = None,
) -> ShardSet:
    """Cut a cohort into shards of patches.

    Args:
        cohort: With sources.
        out: Folder of the set: a path or a URL.
        config: What to cut.
        workers: Number of processes; 0 starts one for each core. A script that starts some must
            have the guard `if __name__ == "__main__":`.
        overwrite: Replace a finished set.
        update: Update a finished set to this cohort.
        skip_failed: Finish the set without specimens that fail.
        address: A Ray cluster to run on.

    Returns:
        The finished set.

    Raises:
        DataError: If a specimen fails or `out` holds something else.
    """
    from sharding.shards.write import write_shards

    check_workers(workers)
    write_shards(
        _specimens(cohort),
        out,
        config or ShardConfig(),
        workers=workers,
        overwrite=overwrite,
        update=update,
        skip_failed=skip_failed,
        address=address,
    )
    return ShardSet(out)


def load_config(start: str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """A configuration to train: a preset or a .json file, with some of its fields replaced.

    Args:
        start: The name of a preset, or the path of a .json file.
        overrides: Dotted field to value, such as `{"train.epochs": 2}`.

    Raises:
        DataError: If the file does not exist.
        ConfigError: If there is no such preset or field, or a value breaks a rule.
    """
    if not str(start).endswith(".json"):
        config = preset(str(start))
    elif Path(start).is_file():
        with file_errors(start):
            config = from_json(Path(start).read_bytes(), start)
    else:
        raise DataError(start, "the configuration does not exist", "Check the path")
    return with_overrides(config, overrides or {})


def evaluate(
    checkpoints: str | Path | Sequence[str | Path] | Mapping[str, Predictor],
    cohort: Cohort,
    out: str | Path | None = None,
    *,
    split: Split = "test",
    stitching: Mapping[str, Any] | None = None,
    folds: bool = False,
    with_ensemble: bool = False,
    save_volumes: bool = False,
    conventions: bool = False,
    device: Literal["auto", "cpu"] = "auto",
    precision: Literal["auto", "no", "bf16"] = "auto",
    overwrite: bool = False,
    on_specimen: OnSpecimen | None = None,
) -> Evaluation:
    """Compare models with the baselines on stitched volumes.

    Args:
        checkpoints: Checkpoints, folders of runs (their best checkpoint) or exports, as paths or
            URLs, which are named after the folder of the run or export; or name to predictor.
        cohort: The one that the shards were cut from.
        out: Folder for results.csv, results.json, table.txt, pictures and report.html; None
            writes nothing. Arrays of large volumes lie in files without a name beside it, without
            it in memory.
        split: Which specimens to evaluate, by the split of the shards.
        stitching: Fields of StitchConfig that differ from the checkpoints' configuration.
        save_volumes: Write the synthetic volumes to `out` as well.
        folds: The models are those of a cross-validation, one a fold: each is evaluated on the
            specimens that validated it, and all together are one row, `folds`.
        with_ensemble: Add a row, `ensemble`, for the mean of what all models predict.
        conventions: Compute PSNR and SSIM under every convention too; `out` gets conventions.csv,
            .md and .html.
        device: auto takes a GPU if there is one.
        precision: In which the models predict; auto takes bf16 for those that were trained in it,
            where the device multiplies natively in it.
        overwrite: Replace an evaluation in `out`.
        on_specimen: Called with each pair and, by model, what it predicts, standardised; not with
            `folds`.

    Returns:
        All numbers; `frame()` gives them as a pandas frame.

    Raises:
        ConfigError: If models do not belong together or no specimen is in the split.
        DataError: If a file is bad, or a test specimen was seen in training.
    """
    from distsynth.evaluation.evaluate import evaluate as run_evaluation
    from distsynth.evaluation.folds import NAME as FOLDS
    from distsynth.evaluation.folds import evaluate_folds
    from distsynth.inference.ensemble import ensemble
    from distsynth.inference.predictor import load_predictor, run_dir_of
    from distsynth.metrics.results import RESULTS_FILE
    from distsynth.reporting.evaluation_files import write_evaluation
    from sharding.io.atomic import atomic_folder
    from sharding.volumes.slabs import MOST_IN_MEMORY, Scratch, in_memory

    specimens = _specimens(cohort)
    predictors: dict[str, Predictor] = {}
    run_dirs: dict[str, Path] = {}
    if isinstance(checkpoints, str | Path):
        checkpoints = [checkpoints]
    if isinstance(checkpoints, Mapping):
        predictors |= checkpoints
    else:
        for path in checkpoints:
            run_dir = run_dir_of(path)
            if run_dir.name in predictors:
                raise ConfigError(f"two checkpoints are named {run_dir.name}: rename a run folder")
            predictors[run_dir.name] = load_predictor(path, device, precision)
            run_dirs[run_dir.name] = run_dir
    if not predictors:
        raise ConfigError("name at least one checkpoint or run folder")
    if with_ensemble:
        if ENSEMBLE in predictors:
            raise ConfigError(f"a checkpoint is named {ENSEMBLE}: rename its run folder")
        predictors[ENSEMBLE] = ensemble(list(predictors.values()))
    changes = stitching or {}
    predictors = {name: found.stitched(**changes) for name, found in predictors.items()}

    empty = in_memory if out is None else Scratch(Path(out).resolve().parent, MOST_IN_MEMORY)

    def measured(volumes: Path | None) -> Evaluation:
        if folds:
            models = list(predictors.values())
            return evaluate_folds(models, specimens, volumes, conventions, empty)
        return run_evaluation(
            predictors,
            specimens,
            split,
            volumes,
            conventions=conventions,
            empty=empty,
            on_specimen=on_specimen,
        )

    if out is None:
        if save_volumes:
            raise ConfigError("save_volumes needs a folder to write to: give out")
        return measured(None)
    with atomic_folder(Path(out), RESULTS_FILE, overwrite) as folder:
        volumes = folder / "volumes" if save_volumes else None
        evaluation = measured(volumes)
        if folds:
            # The page tells how the first one stitches; all are of one configuration.
            predictors = {FOLDS: next(iter(predictors.values()))}
        write_evaluation(folder, evaluation, predictors, run_dirs)
    return evaluation


def run_sweep(
    name: str,
    config: RunConfig,
    space: Mapping[str, Any] | Sequence[str],
    sweep: SweepConfig | None = None,
    *,
    storage: str | Path = "sweeps",
    resume: bool = False,
    retry_failed: bool = False,
    address: str | None = None,
) -> SweepResult:
    """Search over configurations with Ray Tune, on this machine or on a cluster.

    The best trials are neither exported nor evaluated on the test split: `distsynth sweep` does
    that at the end of a search, or use `evaluate` and `write_export` on their folders.

    Args:
        name: The name of the sweep's folder below `storage`.
        config: What every trial starts from.
        space: Dotted field to a domain of Ray Tune, or names of spaces and YAML files.
        sweep: How to search.
        storage: Folder of all sweeps: a path or a URL.
        resume: Continue if there is a sweep of this name.
        retry_failed: When resuming, try failed trials again.
        address: A Ray cluster; None starts one on this machine for the duration.

    Returns:
        The trials; `frame()` ranks them.

    Raises:
        ConfigError: If the space or the plan cannot be run, or differs from the sweep resumed.
        DataError: If there is a sweep of this name already.
    """
    from distsynth.sweep.folder import SweepFolder
    from distsynth.sweep.plan import SweepConfig
    from distsynth.sweep.run import centre_of, make_plan, resume_sweep, start_sweep
    from sharding.io.storage import Folder
    from tune_spaces.named import named_space

    if not name or "/" in name or name.startswith("."):
        raise ConfigError(f"the name of a sweep must be that of a folder, got {name!r}")
    if not isinstance(space, Mapping):
        try:
            names = (space,) if isinstance(space, str) else tuple(space)
            space = named_space(names, centre_of(config, sweep or SweepConfig()))
        except ValueError as error:
            raise ConfigError(str(error)) from error
    folder = SweepFolder(Folder(storage) / name)
    plan = make_plan(name, config, space, sweep or SweepConfig())
    if resume and folder.exists():
        return resume_sweep(folder, plan, address, retry_failed)
    return start_sweep(folder, plan, address)


def write_report(
    folder: str | Path,
    out: str | Path = "report.html",
    cohort: Cohort | None = None,
    *,
    split: Literal["val", "test"] = "test",
    most: int = 6,
    evaluation: str | Path | None = None,
    device: Literal["auto", "cpu"] = "auto",
    overwrite: bool = False,
    shown: SpecimenPictures | None = None,
) -> Path:
    """Write one self-contained HTML page about a run, a sweep or a reproduction.

    Args:
        folder: The folder of the run, sweep or reproduction: a path or a URL.
        out: The HTML file.
        cohort: The one that the shards were cut from; adds slices of its specimens.
        split: Split whose slices are shown.
        most: Largest number of specimens with slices.
        evaluation: Folder of an evaluation, if it is not within the run's.
        device: auto takes a GPU if there is one.
        overwrite: Replace the file.
        shown: What is shown of a run's specimens, if it was kept during its evaluation.

    Returns:
        The path of the page.

    Raises:
        DataError: If there is none of these in the folder, or the file exists.
        ConfigError: If `most` is below 1.
    """
    from distsynth.reporting.run_page import Extras, run_page
    from distsynth.runs.folder import CONFIG_FILE
    from sharding.io.atomic import atomic_write, refuse_existing
    from sharding.io.storage import Folder
    from sharding.volumes.slabs import MOST_IN_MEMORY, Scratch

    out = Path(out)
    refuse_existing([out], overwrite)
    if most < 1:
        raise ConfigError(f"--most must be >= 1, got {most}")
    specimens = None if cohort is None else _specimens(cohort)
    scratch = Scratch(out.resolve().parent, MOST_IN_MEMORY)
    extras = Extras(specimens, split, most, evaluation and str(evaluation), device, scratch, shown)
    place = Folder(folder)
    page = run_page(place, extras) if place.exists(CONFIG_FILE) else _page_of_runs(place, extras)
    with file_errors(out):
        atomic_write(out, page)
    return out


def _page_of_runs(folder: Folder, extras: Extras) -> str:
    """The page of a sweep or a reproduction.

    Raises:
        DataError: If there is neither in the folder.
    """
    # These load Ray and scikit-learn, which the page of a run does without.
    from distsynth.reproduction.page import reproduction_page
    from distsynth.reproduction.task import TASK_FILE
    from distsynth.sweep.folder import SweepFolder
    from distsynth.sweep.page import sweep_page

    sweep = SweepFolder(folder.url)
    if folder.exists(TASK_FILE):
        return reproduction_page(sweep, extras)
    if sweep.exists():
        return sweep_page(sweep, extras)
    rule = "there is no run, sweep or reproduction in this folder"
    raise DataError(folder.url, rule, "Give the folder of one")


def _specimens(cohort: Cohort) -> list[Specimen]:
    return read_cohort(cohort) if isinstance(cohort, str | Path) else list(cohort)
