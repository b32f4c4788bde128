"""Pairs of files found in a folder: the source and the target of each specimen by two patterns.

A file is known by what the wildcards of its pattern stand for. `*_7T.nii.gz` and `*_94T.nii.gz`
pair mouse1_7T.nii.gz with mouse1_94T.nii.gz, for both wildcards stand for "mouse1". Three ways are
tried, and the first that pairs most files is taken:

1. the entities of BIDS names (sub-01_ses-2_run-1_T2w), less those that tell source from target;
2. everything that the wildcards stand for;
3. what the first wildcard stands for, so that dates and scan numbers may differ.

Several pairs of one subject (sessions, runs) stay in one split.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from sharding.io.errors import DataError, list_causes
from sharding.volumes.cohort import SPECIMEN_NAME, Specimen
from sharding.volumes.contrasts import SOURCE, Contrast
from sharding.volumes.formats.registry import is_header, is_volume_folder, stem, stem_of_voxels
from sharding.volumes.splits import assign_splits

ENTITY = re.compile(r"([A-Za-z]+)-([A-Za-z0-9]+)")
Key = tuple[str, ...]


@dataclass(frozen=True)
class Pairing:
    """What two patterns found.

    Attributes:
        specimens: The pairs, by name; of targets alone where no source was asked for. Those of
            subjects with several pairs have a split each.
        left_out: File, relative to the folder -> why it is in no pair.
    """

    specimens: list[Specimen]
    left_out: dict[str, str]


@dataclass(frozen=True)
class _Found:
    """A file, its path below the folder, and what the wildcards of its pattern stand for."""

    path: Path
    below: PurePosixPath
    wildcards: Key

    @property
    def entities(self) -> dict[str, str]:
        """The entities of the whole path, `sub` -> `01`, and the suffix as `suffix`."""
        stem = _stem(self.below.name)
        found = dict(ENTITY.findall("_".join((*self.below.parent.parts, stem))))
        return found | {"suffix": stem.rpartition("_")[2]}


def pair_files(
    folder: Path,
    target: str,
    source: str | Mapping[str, str] | None = None,
    mask: str | None = None,
) -> Pairing:
    """Find the volumes of a cohort.

    Args:
        folder: Where they lie.
        target: Glob below the folder with a wildcard, `*_94T.nii.gz` or `*/ses-94T/**/*_T2w.nii*`.
        source: Glob of the sources; of several contrasts name -> glob. None takes targets alone,
            for simulated sources.
        mask: Glob of the masks, which lie on the grid of the target; not every pair needs one.

    Raises:
        DataError: If the folder does not exist, a pattern is no pattern below it, matches nothing,
            or nothing is paired; says what was found.
    """
    if not folder.is_dir():
        raise DataError(folder, "is not a folder", "Give the folder that holds the scans")
    sources = {"source": source}
    if isinstance(source, Mapping):
        sources = {f"{SOURCE}{name}": pattern for name, pattern in source.items()}
    asked = {"target": target, **sources, "mask": mask}
    found = {
        role: _matches(folder, role, pattern)
        for role, pattern in asked.items()
        if pattern is not None
    }
    _refuse_shared(found)
    keyed = _best_keys(found)
    pairs: dict[Key, dict[str, Path]] = {}
    left_out: dict[str, str] = {}
    for key in dict.fromkeys(key for by_key in keyed.values() for key in by_key):
        files = {role: by_key.get(key, []) for role, by_key in keyed.items()}
        lacking = [role for role in files if role != "mask" and not files[role]]
        several = [role for role, paths in files.items() if len(paths) > 1]
        if not lacking and not several:
            pairs[key] = {role: paths[0] for role, paths in files.items() if paths}
            continue
        why = f"no {lacking[0]}" if lacking else f"several files for its {several[0]}"
        for path in (path for paths in files.values() for path in paths):
            left_out[path.relative_to(folder).as_posix()] = why
    if not pairs:
        raise DataError(
            folder,
            "no files are paired: what the wildcards stand for must be the same for source and "
            f"target, {list_causes(left_out)}",
            'Change the patterns, e.g. --source "*_7T.nii.gz" --target "*_94T.nii.gz"',
        )
    return Pairing(_specimens(folder, pairs), left_out)


def _matches(folder: Path, role: str, pattern: str) -> list[_Found]:
    """Files that a pattern matches, with what its wildcards stand for."""
    path = PurePosixPath(pattern)
    if path.is_absolute() or ".." in path.parts or not re.search(r"[*?\[]", pattern):
        rule = f"must be a pattern below the folder with a wildcard, got {pattern!r}"
        raise DataError(f"--{role}", rule, 'Give one such as "*_7T.nii.gz"')
    regex = _regex(pattern)
    files = _volumes(folder.glob(pattern))
    found = []
    for file in files:
        below = PurePosixPath(file.relative_to(folder).as_posix())
        if match := regex.fullmatch(str(below)):
            texts = (text for text in match.groups() if text is not None)
            found.append(_Found(file, below, tuple(_stem(text) for text in texts)))
    if not found:
        inside = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
        shown = ", ".join(inside[:5]) or "nothing"
        rule = f"the pattern {pattern!r} matches no file; the folder holds {shown}"
        more = f" and {len(inside) - 5} more" if len(inside) > 5 else ""
        raise DataError(folder, rule + more, f"Correct --{role}")
    return found


def _regex(pattern: str) -> re.Pattern[str]:
    """A glob as a regular expression whose groups are its wildcards."""
    parts = []
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[[^]]+\]|.", pattern):
        if token == "**/":
            parts.append("(?:.*/)?")
        elif token == "**":
            parts.append(".*")
        elif token == "*":
            parts.append("([^/]*)")
        elif token == "?":
            parts.append("([^/])")
        elif token.startswith("[") and len(token) > 1:
            parts.append(f"({token.replace('[!', '[^')})")
        else:
            parts.append(re.escape(token))
    return re.compile("".join(parts))


def _stem(name: str) -> str:
    """A name without the ending of a volume."""
    known = stem(name)
    if known != name:
        return known
    return name.rpartition(".")[0] if re.search(r"\.[A-Za-z]{2,4}$", name) else name


def _volumes(paths: Iterable[Path]) -> list[Path]:
    """Files, and folders that are one volume; of a volume in two files only the header."""
    found = sorted(path for path in paths if path.is_file() or is_volume_folder(path))
    folders = {path for path in found if path.is_dir()}
    found = [path for path in found if folders.isdisjoint(path.parents)]
    headers = {path.with_name(stem(path.name)) for path in found if is_header(path)}
    return [p for p in found if is_header(p) or p.with_name(stem_of_voxels(p)) not in headers]


def _refuse_shared(found: Mapping[str, Sequence[_Found]]) -> None:
    """Refuse patterns that match the same file."""
    owners: dict[Path, str] = {}
    for role, files in found.items():
        for file in files:
            if (owner := owners.setdefault(file.path, role)) != role:
                rule = f"the patterns of {owner} and {role} both match this file"
                raise DataError(file.path, rule, "Make them tell the two apart")


def _best_keys(found: Mapping[str, Sequence[_Found]]) -> dict[str, dict[Key, list[Path]]]:
    """Role -> key -> files, by the first way of naming that pairs most."""
    ways = [_by_wildcards(found), _by_first_wildcard(found)]
    if all("sub" in file.entities for files in found.values() for file in files):
        ways.insert(0, _by_entities(found))

    def paired(way: dict[str, dict[Key, list[Path]]]) -> int:
        roles = [by_key for role, by_key in way.items() if role != "mask"]
        shared = set.intersection(*(set(by_key) for by_key in roles))
        return sum(all(len(by_key[key]) == 1 for by_key in roles) for key in shared)

    return max(ways, key=paired)


def _grouped(
    found: Mapping[str, Sequence[_Found]], key: Callable[[_Found], Key]
) -> dict[str, dict[Key, list[Path]]]:
    grouped: dict[str, dict[Key, list[Path]]] = {}
    for role, files in found.items():
        by_key: dict[Key, list[Path]] = defaultdict(list)
        for file in files:
            by_key[key(file)].append(file.path)
        grouped[role] = dict(by_key)
    return grouped


def _by_wildcards(found: Mapping[str, Sequence[_Found]]) -> dict[str, dict[Key, list[Path]]]:
    return _grouped(found, lambda file: tuple(dict.fromkeys(filter(None, file.wildcards))))


def _by_first_wildcard(found: Mapping[str, Sequence[_Found]]) -> dict[str, dict[Key, list[Path]]]:
    return _grouped(found, lambda file: file.wildcards[:1])


def _by_entities(found: Mapping[str, Sequence[_Found]]) -> dict[str, dict[Key, list[Path]]]:
    """By the entities of BIDS names; one that has a single value for a role tells roles apart."""
    values: dict[str, dict[str, set[str]]] = {role: defaultdict(set) for role in found}
    for role, files in found.items():
        for file in files:
            for name, value in file.entities.items():
                values[role][name].add(value)
    names = {name for by_name in values.values() for name in by_name} - {"sub"}
    telling = {
        name
        for name in names
        if any(len(by_name.get(name, set())) < 2 for by_name in values.values())
    }

    def key(file: _Found) -> Key:
        kept = {name: text for name, text in file.entities.items() if name not in telling}
        return tuple(f"{name}-{text}" for name, text in sorted(kept.items(), key=_subject_first))

    return _grouped(found, key)


def _subject_first(entity: tuple[str, str]) -> tuple[bool, str]:
    return entity[0] != "sub", entity[0]


def _specimen(name: str, files: Mapping[str, Path]) -> Specimen:
    contrasts = [
        Contrast(role.removeprefix(SOURCE), file)
        for role, file in files.items()
        if role.startswith(SOURCE)
    ]
    mask = files.get("mask")
    if not contrasts:
        return Specimen(name, files["target"], files.get("source"), mask=mask)
    first, *further = contrasts
    return Specimen(
        name,
        files["target"],
        first.source,
        mask=mask,
        contrast=first.name,
        further=tuple(further),
    )


def _specimens(folder: Path, pairs: Mapping[Key, Mapping[str, Path]]) -> list[Specimen]:
    """The pairs as specimens; those of one subject share a split where there are several."""
    named: dict[str, Specimen] = {}
    subjects: dict[str, str] = {}
    for key, files in pairs.items():
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(part.strip("._-") for part in key))
        if not SPECIMEN_NAME.fullmatch(name) or name in named:
            where = files["target"].relative_to(folder).as_posix()
            rule = f"the wildcards give no name of its own for this specimen, got {name!r}"
            raise DataError(where, rule, "Use patterns whose wildcards hold the specimen's name")
        named[name] = _specimen(name, files)
        entity = re.search(r"sub-([A-Za-z0-9]+)", files["target"].relative_to(folder).as_posix())
        subjects[name] = entity.group() if entity else name
    if len(set(subjects.values())) < len(named):
        people = [replace(next(iter(named.values())), name=name) for name in set(subjects.values())]
        if len(people) >= 3:
            splits = assign_splits(people)
            named = {
                name: replace(row, split=splits[subjects[name]]) for name, row in named.items()
            }
        else:
            rule = f"{len(named)} pairs are of {len(people)} subjects, too few to keep them apart"
            raise DataError(folder, rule, "Add subjects, or write the split column by hand")
    return sorted(named.values(), key=lambda specimen: specimen.name)
