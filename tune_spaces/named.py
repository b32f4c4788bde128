"""Spaces as a user asks for them: by name, and as YAML files in the plain form.

    spaces: [learning-rates]            # start from these, by name
    loss.lambda_gradient: {uniform: [0, 3]}

See tune_spaces.plain for the entries.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from tune_spaces.domains import Space
from tune_spaces.plain import space_from_plain
from tune_spaces.registry import known_spaces, one_space


def named_space(names_or_paths: Sequence[str], centre: Mapping[str, float] | None = None) -> Space:
    """Merge spaces; where two speak of one field, the later wins.

    Args:
        names_or_paths: Keys of tune_spaces.registry.SPACES, and paths of YAML files (`.yaml`,
            `.yml`).
        centre: Dotted field to the learning rate in the middle of its range, where a space that
            is named searches it; None takes the paper's ranges.

    Raises:
        ValueError: If there is no such space, with a suggestion, or a file is at fault.
    """
    if not names_or_paths:
        raise ValueError(f"a search needs at least one space ({known_spaces()})")
    space: Space = {}
    for name in names_or_paths:
        is_file = name.lower().endswith((".yaml", ".yml"))
        space.update(read_space(name, centre) if is_file else one_space(name, centre))
    return space


def read_space(path: str | Path, centre: Mapping[str, float] | None = None) -> Space:
    """Read a YAML file of a plain space.

    A list `spaces` names spaces to start from; the entries beside it add to them or override them.

    Args:
        path: The file.
        centre: As for `named_space`.

    Raises:
        ValueError: Names the file, the field, the rule and the remedy.
    """
    where = str(path)
    try:
        return _space(_read_yaml(Path(path), where), where, centre)
    except RecursionError:
        raise ValueError(
            f"{where}: must not be nested this deeply; a space has three levels"
        ) from None


def _space(values: Any, where: str, centre: Mapping[str, float] | None) -> Space:
    """The space of a file's values."""
    if not isinstance(values, dict) or not values:
        raise ValueError(
            f"{where}: must map fields to domains, such as train.batch_size: {{choice: [16, 32]}}"
        )
    names = values.pop("spaces", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{where}: spaces must be a list of names, such as [learning-rates], got {names!r}"
        )
    space: Space = {}
    for name in names:
        try:
            space.update(one_space(name, centre))
        except ValueError as error:
            raise ValueError(f"{where}: spaces: {error}") from None
    return {**space, **space_from_plain(values, where)}


def _read_yaml(path: Path, where: str) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: must be a readable text file: {error}") from None
    except RecursionError:
        raise ValueError(f"{where}: must not be nested this deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: must be valid YAML: {error}") from None


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe types without aliases, which can stand for any number of values.

    A field that stands twice is refused; YAML would take the last.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node that is written out in its place."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise ComposerError(None, None, "write the values of an alias out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping whose keys differ."""
        lines: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                continue
            if key in lines:
                raise ConstructorError(
                    None, None, f"{key} stands in lines {lines[key]} and {line}; keep one", None
                )
            lines[key] = line
        return super().construct_mapping(node, deep)
