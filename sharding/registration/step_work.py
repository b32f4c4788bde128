"""What each step of preparing a specimen does, and where its files lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharding.io.errors import DataError
from sharding.registration.alignment import compare, information, mirror
from sharding.registration.bias_correction import correct_bias, tissue_within
from sharding.registration.config import REGISTRATION_STEPS, STEPS, StepName
from sharding.registration.quality import jacobian_range
from sharding.registration.register import register_affine, register_deformable, register_rigid
from sharding.registration.specimen_steps import SPLINE_ORDER, SpecimenSteps
from sharding.volumes.cohort import Specimen
from sharding.volumes.contrasts import SOURCE, Contrast
from sharding.volumes.header import codes_of
from sharding.volumes.intensities import SCALED_MAX, check_varies, fit_intensities
from sharding.volumes.masks import otsu_foreground, read_mask, specimen_foreground
from sharding.volumes.pair import check_not_finer
from sharding.volumes.resample import field_of_view, resample
from sharding.volumes.transform import Transform
from sharding.volumes.volume import Volume, read_pair, read_volume, write_volume

Role = str
"""`source`, `target`, and such as `source_t2` for each contrast after the first one."""


class SpecimenPreparation:
    """One specimen under way: where the steps' files lie, and what each step does.

    Args:
        plan: What is to be done.
        folder: The specimen's.
    """

    def __init__(self, plan: SpecimenSteps, folder: Path) -> None:
        self.plan = plan
        self.specimen = plan.specimen
        self.config = plan.config
        self.folder = folder

    # Where files lie

    def volume(self, role: Role, before: str = "rigid") -> Path:
        """The latest source or target on its own grid that was written before a step."""
        earlier = STEPS[: STEPS.index(before)]
        for step in ("scale", "correct"):
            if step in self.config.steps and step in earlier:
                return self.folder / step / f"{role}.nii.gz"
        return self.specimen.target if role == "target" else self.plan.sources[role]

    def registration(self, before: str = "resample") -> Path | None:
        """The folder of the registration as it was before a step; None without any."""
        earlier = STEPS[: STEPS.index(before)]
        done = [step for step in REGISTRATION_STEPS if step in self.config.steps]
        found = [self.folder / step for step in done if step in earlier]
        return found[-1] if found else None

    def transform(self, before: str = "resample") -> Transform:
        """The registration as it was before a step; the identity without any."""
        folder = self.registration(before)
        return Transform.load(folder) if folder else Transform.identity()

    @property
    def prepared(self) -> Specimen:
        """The prepared files."""
        natives = {role: self.volume(role) for role in self.plan.sources}
        done = replace(self.specimen, source=natives["source"], target=self.volume("target"))
        names = {f"{SOURCE}{each.name}": each.name for each in self.specimen.further}
        if "resample" not in self.config.steps:
            further = (Contrast(name, natives[role]) for role, name in names.items())
            return replace(done, further=tuple(further))
        folder = self.folder / "resample"
        return replace(
            done,
            source=folder / "source.nii.gz",
            mask=folder / "mask.nii.gz",
            native_source=natives["source"],
            transform=self.registration(),
            further=tuple(
                Contrast(name, folder / f"{role}.nii.gz", natives[role])
                for role, name in names.items()
            ),
        )

    # What each step does

    def function(self, name: str) -> Callable[[Path], Mapping[str, Any]]:
        """The work of a step: writes its files into a folder and returns what it measured."""
        return {
            "correct": self._correct,
            "scale": self._scale,
            "rigid": self._rigid,
            "affine": self._affine,
            "deform": self._deform,
            "resample": self._resample,
        }[name]

    def check_raw(self) -> None:
        """Refuse what no step could repair.

        Raises:
            DataError: If a file is bad, the source is finer than the target, the mask does not
                fit, or the fields of view lie apart.
        """
        config = self.config.preprocess
        for number, where in enumerate(self.plan.sources.values()):
            source, target = read_pair(where, self.specimen.target, config.orientation)
            check_not_finer(where, source, target, config)
            if self.specimen.mask and not number:
                read_mask(self.specimen.mask, target, config.orientation)
            if not field_of_view(source, target.shape, target.affine).any():
                raise DataError(
                    where,
                    f"source and target must overlap: no voxel of {self.specimen.target.name} lies "
                    "in the source's field of view",
                    "Check the affines, or that the files belong together",
                )

    def _correct(self, into: Path) -> dict[str, Any]:
        files = {**self.plan.sources, "target": self.specimen.target}
        orientation = self.config.preprocess.orientation
        masks: dict[Role, NDArray[np.bool_] | None] = {}
        if self.specimen.mask:
            for role, file in self.plan.sources.items():
                source, target = read_pair(file, files["target"], orientation)
                mask = masks["target"] = read_mask(self.specimen.mask, target, orientation)
                near = carried_by_headers(mask, target, source)
                masks[role] = tissue_within(source, self.config.correct, near, file)
        measured: dict[str, Any] = {"source_in_mask": masks.get("source") is not None}
        for role, file in files.items():
            # As in their files: the axes of a pair may have been matched by its arrays.
            volume = read_volume(file, orientation=orientation)
            corrected, bias = correct_bias(volume, self.config.correct, masks.get(role), file)
            write_volume(into / f"{role}.nii.gz", corrected)
            measured[role] = {"bias_min": float(bias.min()), "bias_max": float(bias.max())}
        return measured

    def _scale(self, into: Path) -> dict[str, Any]:
        measured = {}
        for role in (*self.plan.sources, "target"):
            path = self.volume(role, "scale")
            volume = read_volume(path, orientation=self.config.preprocess.orientation)
            fitted = fit_intensities(path, volume, self.config.preprocess)
            scaled = volume.with_data(fitted.scale(volume.data) * np.float32(SCALED_MAX))
            write_volume(into / f"{role}.nii.gz", scaled)
            measured[role] = {"low": fitted.low, "high": fitted.high}
        return measured

    def _rigid(self, into: Path) -> dict[str, Any]:
        source, target = self.pair()
        foreground = self.foreground(target)
        found = register_rigid(source, target, self.config.register, foreground)
        kept = self._keep_better(into, "rigid", found, foreground)
        return kept | self._mirrored("rigid", foreground, found)

    def _affine(self, into: Path) -> dict[str, Any]:
        source, target = self.pair()
        foreground = self.foreground(target)
        start = self.transform("affine") if "rigid" in self.config.steps else None
        found = register_affine(source, target, self.config.register, foreground, start)
        determinant = float(np.linalg.det(found.affine[:3, :3]))
        kept = self._keep_better(into, "affine", found, foreground)
        return kept | {"determinant": determinant} | self._mirrored("affine", foreground)

    def _deform(self, into: Path) -> dict[str, Any]:
        source, target = self.pair()
        foreground = self.foreground(target)
        start = self.transform("deform")
        if not {"rigid", "affine"} & set(self.config.steps):
            self._check_coverage(field_of_view(source, target.shape, target.affine), foreground)
        found = register_deformable(source, target, start, self.config.register, foreground)
        low, high = jacobian_range(found, foreground, target.affine)
        if low <= 0:
            raise DataError(
                self.specimen.name,
                f"the deformation folds space: its Jacobian determinant falls to {low:.3g}",
                "Make it smoother by --register options, or leave out the step deform",
            )
        kept = self._keep_better(into, "deform", found, foreground)
        measured = {"jacobian_min": low, "jacobian_max": high}
        return kept | measured | self._mirrored("deform", foreground)

    def _mirrored(
        self, step: StepName, foreground: NDArray[np.bool_], found: Transform | None = None
    ) -> dict[str, float]:
        """How well the source fits as it is, and with left and right exchanged.

        Both are registered rigidly, and the first registration step measures it: a later one has
        nothing to add.

        Args:
            step: That asks.
            foreground: Where the target counts.
            found: The rigid registration of the source as it is, where it is known.
        """
        if step != self.plan.first_registration:
            return {}
        source, target = self.pair()
        other, config = mirror(source), self.config.register
        found = found or register_rigid(source, target, config, foreground)
        mirrored = register_rigid(other, target, config, foreground)
        scaled, target = self.scaled(source, "source"), self.scaled(target, "target")
        return {
            "information": information(scaled, target, found, foreground),
            "information_mirrored": information(mirror(scaled), target, mirrored, foreground),
        }

    def _keep_better(
        self, into: Path, step: str, found: Transform, foreground: NDArray[np.bool_]
    ) -> dict[str, Any]:
        """Write what a registration step found, or what was there before if that is as good."""
        source, target = self.pair()
        source, target = self.scaled(source, "source"), self.scaled(target, "target")
        before = self.transform(step)
        comparison = compare(source, target, before, found, foreground)
        (found if comparison.kept else before).save(into)
        return asdict(comparison)

    def _resample(self, into: Path) -> dict[str, Any]:
        source, target = self.pair()
        foreground = self.foreground(target)
        placed, inside = place_on_target(source, target, self.transform())
        coverage = self._check_coverage(inside, foreground)
        on_target = {"source": (source, placed)}
        further: dict[str, Any] = {}
        for role in [*self.plan.sources][1:]:
            volume, found, own, further[role] = self._place_further(role, source, target)
            on_target[role] = volume, found
            self._check_coverage(own, foreground, role)
            inside = inside & own
        mask = foreground & inside
        for role, (native, data) in on_target.items():
            low, high = float(native.data.min()), float(native.data.max())
            unit = (data - np.float32(low)) / np.float32(high - low)
            check_varies(self.plan.sources[role], unit, mask, "the mask")
            write_volume(into / f"{role}.nii.gz", target.with_data(data))
        write_volume(into / "mask.nii.gz", target.with_data(mask))
        return {
            "coverage": coverage,
            "source_grid": _grid(source),
            "target_grid": _grid(target),
            **({"contrasts": further} if further else {}),
        }

    def _place_further(
        self, role: Role, first: Volume, target: Volume
    ) -> tuple[Volume, NDArray[np.float32], NDArray[np.bool_], dict[str, Any]]:
        """A contrast after the first one: its own grid, the target's, where it lies, how it moved.

        It is registered rigidly to the first one, if the steps register, and follows that one's
        registration to the target.
        """
        orientation = self.config.preprocess.orientation
        volume, _ = read_pair(self.volume(role), self.volume("target"), orientation)
        measured: dict[str, Any] = {}
        rigid = Transform.identity()
        if self.config.registers:
            leading = self.scaled(first, "source")
            tissue = otsu_foreground(leading.data)
            found = register_rigid(volume, first, self.config.register, tissue)
            comparison = compare(self.scaled(volume, role), leading, rigid, found, tissue)
            rigid = found if comparison.kept else rigid
            measured = asdict(comparison)
        transform = self.transform()
        moved = replace(transform, affine=rigid.affine @ transform.affine)
        placed, inside = place_on_target(volume, target, moved)
        return volume, placed, inside, {**measured, "affine": rigid.affine.tolist()}

    def _check_coverage(
        self, inside: NDArray[np.bool_], foreground: NDArray[np.bool_], role: Role = "source"
    ) -> float:
        """Share of the foreground that a source covers.

        Raises:
            DataError: If it is too small.
        """
        coverage = float((foreground & inside).sum() / foreground.sum())
        least = self.config.preprocess.min_overlap
        if coverage < least:
            raise DataError(
                self.plan.sources[role],
                f"source and target must overlap: it covers {coverage:.0%} of the target's "
                f"foreground, at least {least:.0%} is needed",
                "Check the affines, or that the files belong together"
                + ("" if self.config.registers else "; or register"),
            )
        return coverage

    # Volumes

    def pair(self) -> tuple[Volume, Volume]:
        """The source and the target as they are registered, each on its own grid."""
        orientation = self.config.preprocess.orientation
        return read_pair(self.volume("source"), self.volume("target"), orientation)

    def scaled(self, volume: Volume, role: Role) -> Volume:
        """A volume in [0, 1000], whether or not scaling was one of the steps."""
        if "scale" in self.config.steps:
            return volume
        fitted = fit_intensities(self.volume(role), volume, self.config.preprocess)
        return volume.with_data(fitted.scale(volume.data) * np.float32(SCALED_MAX))

    def foreground(self, target: Volume) -> NDArray[np.bool_]:
        """The specimen's mask, or the target over the threshold."""
        scaled = self.scaled(target, "target")
        unit = scaled.with_data(scaled.data / np.float32(SCALED_MAX))
        return specimen_foreground(self.specimen, unit, self.config.preprocess)


def carried_by_headers(
    mask: NDArray[np.bool_], target: Volume, source: Volume
) -> NDArray[np.bool_]:
    """A mask of the target on the source's grid, as far as their headers align the two."""
    share = resample(target.with_data(mask), source.shape, source.affine, order=1)
    return (share > 0.5) & field_of_view(target, source.shape, source.affine)


def place_on_target(
    source: Volume, target: Volume, transform: Transform
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The source on the target's grid, within its own range of intensities, and where it lies."""
    placed, inside = transform.apply(source, target.shape, target.affine, SPLINE_ORDER)
    low, high = source.data.min(), source.data.max()
    placed = np.clip(placed, low, high)
    placed[~inside] = low
    return placed, inside


def _grid(volume: Volume) -> dict[str, Any]:
    codes = codes_of(volume.header) if volume.header is not None else (0, 2)
    return {
        "shape": list(volume.shape),
        "affine": volume.affine.tolist(),
        "qform_code": codes[0],
        "sform_code": codes[1],
    }
