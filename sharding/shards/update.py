"""What a finished set already holds of a cohort: patches that stay, splits, and settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sharding.io.errors import DataError
from sharding.io.storage import Folder
from sharding.shards.config import ShardConfig
from sharding.shards.cut import CutTask, inputs_sha256, part_key
from sharding.shards.manifest import Manifest, SpecimenRecord
from sharding.shards.packing import ByteRange
from sharding.volumes.cohort import Specimen, Split
from sharding.volumes.splits import assign_splits, extend_splits

MAY_DIFFER = ("shard_mb", "fractions")
"""Fields of ShardConfig that may change when a set is updated: no patch depends on them."""


def check_same_config(folder: Folder, old: Manifest, config: ShardConfig) -> None:
    for name, value in vars(config).items():
        before = getattr(old.config, name)
        if name not in MAY_DIFFER and before != value:
            raise DataError(
                folder.url,
                f"{name} must be {before} as in the set, got {value}: patches cut in another way "
                "cannot stand beside the old ones",
                "Give the same value, or shard into another folder",
            )


def choose_splits(
    specimens: Sequence[Specimen], config: ShardConfig, old: Manifest | None
) -> dict[str, Split]:
    """The split of each specimen; an update keeps the set's unless the cohort gives others."""
    if old is None:
        return assign_splits(specimens, config.fractions, config.seed)
    before: dict[str, Split] = {row.name: row.split for row in old.specimens}
    return extend_splits(specimens, before, config.fractions, config.seed)


def known_key(name: str, old: Manifest | None) -> str | None:
    """The key of the patches that the set already holds of a specimen; None if it holds none."""
    record = _record_of(name, old)
    if old is None or record is None:
        return None
    return part_key(name, record.split, record.inputs_sha256, old.config)


def _record_of(name: str, manifest: Manifest | None) -> SpecimenRecord | None:
    rows = manifest.specimens if manifest else ()
    return next((row for row in rows if row.name == name), None)


def check_same_set(
    folder: Folder, old: Manifest, tasks: Sequence[CutTask], skip_failed: bool
) -> Manifest:
    """Return the finished set if this cohort and configuration would give the same one.

    So a command that a batch system runs a second time succeeds.

    Raises:
        DataError: If it is not.
    """
    if skip_failed:
        tasks = [task for task in tasks if task.specimen.name not in old.left_out]
    now = {task.specimen.name: task.split for task in tasks}
    same = now == {row.name: row.split for row in old.specimens}
    if same and old.config == tasks[0].config:
        unchanged = all(_is_unchanged(task) for task in tasks)
        if unchanged:
            return old
    raise DataError(
        folder.url,
        "the folder holds a finished shard set of another cohort or configuration",
        "Give --update to bring it to this cohort, --overwrite to replace it, or another folder",
    )


def _is_unchanged(task: CutTask) -> bool:
    inputs = inputs_sha256(task.specimen)
    return part_key(task.specimen.name, task.split, inputs, task.config) == task.known


def held_record(name: str, old: Manifest | None) -> SpecimenRecord:
    record = _record_of(name, old)
    assert record is not None, name
    return record


def held_ranges(name: str, old: Manifest | None, key: str) -> Iterator[ByteRange]:
    for shard in old.shards if old else ():
        for span in shard.spans:
            if span.specimen == name:
                yield ByteRange(name, span.patches, shard.name, span.offset, span.bytes, key)
