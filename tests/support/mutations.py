"""Values and files that were right once: what a fuzzer makes of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 2**31, 2**63, 10**400, 1e308, -0.0, float("inf"), float("nan")])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", "0", "../x", "/etc/passwd", "\0", "ä", "a" * 300, "=1+1"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(node: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys and positions that lead to each part of nested dictionaries and lists."""
    items = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list | tuple)
        else ()
    )
    for key, value in items:
        yield (*place, key)
        yield from places(value, (*place, key))


@st.composite
def mutated(draw: st.DrawFn, right: Any, most: int = 3) -> Any:
    """Nested values in which a few parts are replaced, left out, renamed or repeated."""
    node = copy.deepcopy(right)
    for _ in range(draw(st.integers(1, most))):
        found = list(places(node))
        if not found:
            return draw(values)
        *outer, last = draw(st.sampled_from(found))
        inside = node
        for key in outer:
            inside = inside[key]
        what = draw(st.sampled_from(["replace", "replace", "remove", "rename", "deepen"]))
        if isinstance(inside, tuple):
            continue
        if what == "replace":
            inside[last] = draw(values)
        elif what == "remove":
            del inside[last]
        elif what == "rename" and isinstance(inside, dict):
            inside[draw(st.text(max_size=8))] = inside.pop(last)
        elif what == "rename":
            inside.append(copy.deepcopy(inside[last]))
        else:
            for _ in range(draw(st.sampled_from([1, 5, 40]))):
                inside[last] = [inside[last]]
    return node


@st.composite
def damaged(draw: st.DrawFn, right: bytes, start: int = 0, end: int | None = None) -> bytes:
    """Bytes of which a few between two places are others, or which are cut short."""
    content = bytearray(right)
    last = (len(content) if end is None else end) - 1
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(start, last))
        piece = draw(st.binary(min_size=1, max_size=4))
        content[at : at + len(piece)] = piece
    if draw(st.integers(0, 9)) == 0:
        del content[draw(st.integers(0, len(content))) :]
    return bytes(content)
