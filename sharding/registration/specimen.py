"""One specimen from its raw files to a prepared pair, step by step, and how good the pair is.

    SPECIMEN/correct/source.nii.gz target.nii.gz    N4 bias correction
    SPECIMEN/scale/source.nii.gz target.nii.gz      clipped by percentiles, scaled to [0, 1000]
    SPECIMEN/rigid/affine.tfm                       rigid registration
    SPECIMEN/affine/affine.tfm                      affine registration
    SPECIMEN/deform/affine.tfm warp.nii.gz          deformable registration after the affine one
    SPECIMEN/resample/source.nii.gz mask.nii.gz     the source on the target's grid; measured where
    SPECIMEN/quality.json picture.png               of the pair before and after
    SPECIMEN/bias.png                               of the bias correction

Several contrasts have files such as source_t2.nii.gz beside source.nii.gz, which is the first one.
The others are registered rigidly to it when they are resampled, and follow its registration.
Quality is measured on the first, and how well the others fit it.

Each step's folder holds its record, step.json. The source is interpolated once, by all transforms
together. Nothing here depends on the clock or on other specimens: the same files, configuration
and tools give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from sharding.io.atomic import atomic_write, remove_leftovers
from sharding.io.locks import exclusive
from sharding.io.records import json_text
from sharding.io.steps import begin_step
from sharding.registration.bias_pictures import bias_pictures
from sharding.registration.config import REGISTRATION_STEPS, PrepareConfig
from sharding.registration.quality import (
    RegistrationOutcome,
    SpecimenQuality,
    jacobian_range,
    noise_estimate,
    pair_quality,
)
from sharding.registration.quality_pictures import pair_pictures
from sharding.registration.specimen_steps import SpecimenSteps
from sharding.registration.step_cache import finished, read_record, run_step
from sharding.registration.step_work import SpecimenPreparation, place_on_target
from sharding.volumes.cohort import Specimen
from sharding.volumes.contrasts import SOURCE
from sharding.volumes.pair import source_of
from sharding.volumes.transform import Transform
from sharding.volumes.volume import read_volume

LOCK = ".prepare.lock"
QUALITY = "quality.json"
PICTURE = "picture.png"
BIAS_PICTURE = "bias.png"
MEASURE = "measure"
"""The last step in progress messages: the pair is measured and its picture drawn."""


@dataclass(frozen=True)
class PreparedSpecimen:
    """A prepared specimen.

    Attributes:
        quality: Its line of the table.
        specimen: Its prepared files.
        steps: Name of each step -> its key.
    """

    quality: SpecimenQuality
    specimen: Specimen
    steps: dict[str, str]


def prepare_specimen(specimen: Specimen, out: Path, config: PrepareConfig) -> PreparedSpecimen:
    """Do the steps of one specimen that are not finished yet.

    Args:
        specimen: Its raw files.
        out: The cohort's folder; the specimen's is made within.
        config: What to do.

    Raises:
        DataError: If the specimen cannot be prepared.
        OSError: If the disk is full.
    """
    source_of(specimen)
    folder = out / specimen.name
    folder.mkdir(exist_ok=True)
    # Waits for a process that outlived a killed run and still works on this specimen.
    with exclusive(folder / LOCK, wait=True):
        remove_leftovers(folder)
        plan = SpecimenSteps(specimen, config)
        work = SpecimenPreparation(plan, folder)
        quality = _read_quality(plan, folder)
        if quality is None:
            work.check_raw()
            for count, step in enumerate(plan.steps, start=1):
                do = _announced(specimen.name, step.name, work.function(step.name))
                run_step(folder, step, config.steps[:count], do)
            begin_step(specimen.name, MEASURE)
            quality = _measure_quality(work)
        steps = {step.name: step.key for step in plan.steps}
        return PreparedSpecimen(quality, work.prepared, steps)


def _announced(
    specimen: str, step: str, work: Callable[[Path], Mapping[str, Any]]
) -> Callable[[Path], Mapping[str, Any]]:
    """The work of a step, which first tells that it begins."""

    def announced(into: Path) -> Mapping[str, Any]:
        begin_step(specimen, step)
        return work(into)

    return announced


def _measure_quality(work: SpecimenPreparation) -> SpecimenQuality:
    """Measure the pair, draw its picture, and write both."""
    config = work.config
    source, target = work.pair()
    source = work.scaled(source, "source")
    foreground = work.foreground(target)
    target = work.scaled(target, "target")
    before, seen_before = place_on_target(source, target, Transform.identity())
    after, seen_after, changes = before, seen_before, (1.0, 1.0)
    if config.registers:
        transform = work.transform()
        after, seen_after = place_on_target(source, target, transform)
        changes = jacobian_range(transform, foreground, target.affine)
    # Where the headers leave nothing in common, the prepared pair is measured all the same.
    seen = seen_before & seen_after
    seen = seen if (foreground & seen).any() else seen_after
    quality = SpecimenQuality(
        name=work.specimen.name,
        before=pair_quality(before, target.data, foreground & seen & seen_before, seen),
        after=pair_quality(after, target.data, foreground & seen, seen),
        jacobian_min=changes[0],
        jacobian_max=changes[1],
        coverage=float((foreground & seen_after).sum() / foreground.sum()),
        foreground=float(foreground.mean()),
        noise_source=noise_estimate(source.data),
        noise_target=noise_estimate(target.data),
        **_registration_record(work),
    )
    upright = [target.with_data(data).reoriented("RAS") for data in (before, after, target.data)]
    picture = pair_pictures(
        upright[0].data,
        upright[1].data if config.registers else None,
        upright[2].data,
        upright[2].spacing_mm,
    )
    atomic_write(work.folder / PICTURE, picture)
    _draw_correction(work)
    plan = work.plan
    record = {"key": plan.key, "raw_sha256": plan.raw_sha256, "quality": asdict(quality)}
    # Written last: it marks the specimen as finished.
    atomic_write(work.folder / QUALITY, json_text(record))
    return quality


def _draw_correction(work: SpecimenPreparation) -> None:
    """Draw what the bias correction did, if it was one of the steps."""
    if "correct" not in work.config.steps:
        (work.folder / BIAS_PICTURE).unlink(missing_ok=True)
        return
    specimen, orientation = work.specimen, work.config.preprocess.orientation
    raw = {**work.plan.sources, "target": specimen.target}
    volumes = {
        role: (
            read_volume(path, orientation=orientation),
            read_volume(work.folder / "correct" / f"{role}.nii.gz", orientation=orientation),
        )
        for role, path in raw.items()
    }
    atomic_write(work.folder / BIAS_PICTURE, bias_pictures(volumes))


def _registration_record(work: SpecimenPreparation) -> dict[str, Any]:
    """Which registration steps were kept, and how well the mirrored source fits."""
    records = {
        step: read_record(work.folder / step)
        for step in REGISTRATION_STEPS
        if step in work.config.steps
    }
    measured = {step: record.measured for step, record in records.items() if record}
    first = measured.get(work.plan.first_registration or "")
    gain = first["information_mirrored"] / max(first["information"], 1e-9) - 1 if first else 0.0
    return {
        "registration": tuple(
            RegistrationOutcome(
                step, found["kept"], found["information_before"], found["information_after"]
            )
            for step, found in {**_contrasts_record(work), **measured}.items()
        ),
        "kept": tuple(step for step, found in measured.items() if found["kept"]),
        "left_out": tuple(step for step, found in measured.items() if not found["kept"]),
        "mirrored_gain": float(gain),
    }


def _contrasts_record(work: SpecimenPreparation) -> dict[str, Any]:
    """What registering each further contrast to the first one did, such as `t2 to t1`, if any."""
    record = read_record(work.folder / "resample") if work.config.registers else None
    found = record.measured.get("contrasts", {}) if record else {}
    first = work.specimen.contrast
    return {f"{role.removeprefix(SOURCE)} to {first}": done for role, done in found.items()}


def _read_quality(plan: SpecimenSteps, folder: Path) -> SpecimenQuality | None:
    """The measures, if they and every step are finished and intact."""
    try:
        record = json.loads((folder / QUALITY).read_bytes())
        quality = TypeAdapter(SpecimenQuality).validate_python(record["quality"])
    except (FileNotFoundError, KeyError, RecursionError, TypeError, ValueError):
        return None
    if record.get("key") != plan.key or not (folder / PICTURE).is_file():
        return None
    done = all(finished(folder, step) for step in plan.steps)
    return quality if done else None
