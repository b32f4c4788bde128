"""Binary regression trees as plain arrays.

Predicting walks them with numpy. To rebuild scikit-learn's own trees would take its private node
layout, which changes between its versions and follows whatever a file says through memory, to be a
tenth faster.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ARRAYS = ("feature", "right", "number", "starts")
"""Fields of Trees that are arrays."""
CHUNK = 2**14
"""Rows that walk a tree together: their features and places stay in a core's cache."""


@dataclass(frozen=True, eq=False)
class Trees:
    """Binary trees, node by node in preorder: the left child of node i is node i + 1.

    Attributes:
        feature: int8, shape (nodes,): column that a split looks at, -1 for a leaf.
        right: int32, shape (nodes,): right child, counted from the tree's root; a leaf's own
            place.
        number: float32, shape (nodes,): a row goes left if its feature is at most a split's
            number; a leaf's number is its value.
        starts: int64, shape (trees + 1,): first node of each tree, then the number of nodes.
        base: Added to the sum of the leaves.
        divisor: By which that sum is divided first: 1, or the number of trees for their mean.
    """

    feature: NDArray[np.int8]
    right: NDArray[np.int32]
    number: NDArray[np.float32]
    starts: NDArray[np.int64]
    base: float
    divisor: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __call__(self, features: NDArray[np.float32], depth: int) -> NDArray[np.float32]:
        """Predict rows, shape (rows, features), through trees of at most this depth."""
        out = np.zeros(len(features), np.float32)
        for low in range(0, len(features), CHUNK):
            rows = features[low : low + CHUNK]
            flat, places = rows.ravel(), np.arange(len(rows)) * rows.shape[1]
            total = out[low : low + CHUNK]
            # In the order of the trees, whatever the threads: the sum is rounded.
            for first, end in itertools.pairwise(self.starts):
                total += self._walk(slice(first, end), flat, places, depth)
        return (out / self.divisor + self.base).astype(np.float32)

    def _walk(
        self, tree: slice, flat: NDArray[np.float32], places: NDArray[np.intp], depth: int
    ) -> NDArray[np.float32]:
        """Value of the leaf that each row comes to; a leaf leads to itself."""
        feature, number = self.feature[tree].astype(np.intp), self.number[tree]
        left = np.arange(len(feature)) + (feature >= 0)
        children = np.stack([self.right[tree], left], axis=1).ravel()
        column = np.maximum(feature, 0)
        node = np.zeros(len(places), np.intp)
        for _ in range(depth):
            value = flat.take(places + column.take(node))
            node = children.take(2 * node + (value <= number.take(node)))
        return number.take(node)


def pack(trees: Sequence[Sequence[NDArray[Any]]], base: float = 0.0, divisor: int = 1) -> Trees:
    """Trees from (feature, left, right, threshold, value) of each; a leaf's feature is below 0.

    Thresholds are rounded down to float32, which leaves every comparison of a float32 as it was;
    values are rounded to float32.

    Raises:
        ValueError: If a tree is not in preorder.
    """
    features, rights, numbers = [], [], []
    for feature, left, right, threshold, value in trees:
        places, leaf = np.arange(len(feature)), feature < 0
        if (left != places + 1)[~leaf].any():
            raise ValueError("the left child of a node must follow it")
        features.append(np.where(leaf, -1, feature).astype(np.int8))
        rights.append(np.where(leaf, places, right).astype(np.int32))
        numbers.append(np.where(leaf, value.ravel().astype(np.float32), _floor(threshold)))
    starts = np.cumsum([0, *map(len, features)], dtype=np.int64)
    feature, right, number = (np.concatenate(parts) for parts in (features, rights, numbers))
    return Trees(feature, right, number, starts, base, divisor)


def check_trees(trees: Trees, count: int, most: int, features: int) -> None:
    """Check what a file says before it is followed.

    Args:
        trees: To check.
        count: Trees that there must be.
        most: Depth that none may exceed.
        features: Columns that splits look at.

    Raises:
        ValueError: Unless every node is reached once, by the rules.
    """
    sizes = {trees.feature.shape, trees.right.shape, trees.number.shape}
    kinds = [getattr(trees, name).dtype for name in ARRAYS]
    starts = trees.starts
    if kinds != [np.int8, np.int32, np.float32, np.int64] or starts.shape != (count + 1,):
        raise ValueError("its arrays have other types or shapes")
    if starts[0] or (np.diff(starts) < 1).any() or sizes != {(starts[-1],)}:
        raise ValueError("its arrays have other lengths than its trees")
    if not np.isfinite(trees.number).all() or not np.isfinite(trees.base) or trees.divisor < 1:
        raise ValueError("a number is not finite")
    if not ((trees.feature >= -1) & (trees.feature < features)).all():
        raise ValueError("a split looks at no feature")
    for first, end in itertools.pairwise(starts):
        feature, right = trees.feature[first:end], trees.right[first:end]
        level, seen = np.zeros(1, np.int64), 0
        reached = np.zeros(end - first, bool)
        for depth in range(most + 1):
            if level.min() < 0 or level.max() >= len(reached):
                raise ValueError("a node leads out of its tree")
            reached[level] = True
            seen += len(level)
            leaf = feature[level] < 0
            if (right[level[leaf]] != level[leaf]).any() or seen > len(reached):
                raise ValueError("its nodes are not trees")
            splits = level[~leaf]
            if not len(splits):
                break
            if depth == most:
                raise ValueError(f"a tree is deeper than {most}")
            level = np.concatenate([splits + 1, right[splits]])
        if seen != len(reached) or not reached.all():
            raise ValueError("its nodes are not trees")


def _floor(threshold: NDArray[np.float64]) -> NDArray[np.float32]:
    """The largest float32 that is not above each threshold."""
    near = threshold.astype(np.float32)
    return np.where(near > threshold, np.nextafter(near, np.float32(-np.inf)), near)
