"""Splits: fractions, the seed, a cohort's own splits, and those that an update keeps."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.io.errors import DataError
from sharding.volumes.cohort import SPLITS, Specimen
from sharding.volumes.splits import assign_splits, extend_splits, split_sizes


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(44, (31, 9, 4)), (3, (1, 1, 1)), (4, (2, 1, 1)), (5, (3, 1, 1)), (10, (7, 2, 1))],
)
def test_split_sizes(count, sizes):
    assert split_sizes(count, (0.7, 0.2, 0.1)) == sizes


FRACTIONS = st.tuples(*[st.integers(1, 100)] * 3).map(
    lambda parts: tuple(part / sum(parts) for part in parts)
)


@given(st.integers(3, 500), FRACTIONS)
def test_no_split_is_empty_and_none_is_far_from_its_share(count, fractions):
    sizes = split_sizes(count, fractions)
    assert sum(sizes) == count
    assert min(sizes) >= 1
    for size, fraction in zip(sizes, fractions, strict=True):
        assert abs(size - fraction * count) <= 2


def test_there_may_be_no_test_split():
    assert split_sizes(10, (0.8, 0.2, 0.0)) == (8, 2, 0)
    assert split_sizes(2, (0.5, 0.5, 0.0)) == (1, 1, 0)
    halves = assign_splits(specimens(None, ["a", "b"]), (0.5, 0.5, 0))
    assert set(halves.values()) == {"train", "val"}


@pytest.mark.parametrize(
    "fractions", [(0.7, 0.2), (0.7, 0.2, 0.2), (0.8, 0.0, 0.2), (1.2, -0.1, -0.1)]
)
def test_fractions_that_are_no_shares_are_refused(fractions):
    with pytest.raises(ValueError, match=r"of sum 1|must be positive"):
        split_sizes(10, fractions)


NAMES = st.lists(st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True), min_size=3, unique=True)


def specimens(tmp, names, splits=None):
    splits = splits or [None] * len(names)
    return [Specimen(name, tmp, None, split) for name, split in zip(names, splits, strict=True)]


@given(NAMES, st.integers(0, 1000), st.randoms(use_true_random=False))
def test_splits_partition_the_specimens_whatever_their_order(names, seed, random):
    cohort = specimens(None, names)
    splits = assign_splits(cohort, seed=seed)
    assert sorted(splits) == sorted(names)
    sizes = Counter(splits.values())
    assert tuple(sizes[split] for split in SPLITS) == split_sizes(len(names), (0.7, 0.2, 0.1))
    random.shuffle(cohort)
    assert assign_splits(cohort, seed=seed) == splits


def test_the_seed_draws_the_split():
    cohort = specimens(None, [f"s{index:02d}" for index in range(44)])
    drawn = [assign_splits(cohort, seed=seed) for seed in range(3)]
    assert drawn[0] != drawn[1] != drawn[2]
    assert Counter(drawn[1].values()) == {"train": 31, "val": 9, "test": 4}


@given(st.lists(st.sampled_from(SPLITS), min_size=3, max_size=9), st.integers(0, 9))
def test_the_cohorts_own_split_is_kept(splits, seed):
    names = [f"s{index}" for index in range(len(splits))]
    cohort = specimens(None, names, splits)
    if {"train", "val"} <= set(splits):
        assert assign_splits(cohort, seed=seed) == dict(zip(names, splits, strict=True))
    else:
        with pytest.raises(DataError, match=r"no specimen is in the split .* Put at least one"):
            assign_splits(cohort, seed=seed)


def test_a_half_filled_split_column_is_refused(refused):
    cohort = specimens(None, ["a", "b", "c", "d"], ["train", None, "val", "test"])
    with refused("b", "some specimens .* have a split and this one has none", "all or leave it"):
        assign_splits(cohort)


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_specimens_than_splits_are_refused(refused, count):
    with refused("cohort", f"{count} specimens cannot fill 3 splits", "Add specimens"):
        assign_splits(specimens(None, ["a", "b"][:count]))


@given(NAMES, st.data(), st.integers(0, 9), FRACTIONS)
def test_specimens_keep_their_splits_and_new_ones_fill_what_is_missing(names, data, seed, shares):
    cohort = specimens(None, names)
    before = data.draw(
        st.dictionaries(st.sampled_from([*names, "gone"]), st.sampled_from(SPLITS)), "before"
    )
    known = {name: split for name, split in before.items() if name in names}
    sizes = dict(zip(SPLITS, split_sizes(len(names), shares), strict=True))
    held = Counter(known.values())
    try:
        splits = extend_splits(cohort, before, shares, seed)
    except DataError as error:
        # Nothing new is there to fill it.
        assert "no specimen is in the split" in error.rule
        assert len(known) > len(names) - sum(not held[split] for split in SPLITS)
        return
    assert splits == extend_splits(cohort[::-1], before, shares, seed), "whatever their order"
    assert sorted(splits) == sorted(names)
    assert known.items() <= splits.items()
    found = Counter(splits.values())
    for split in SPLITS:
        assert found[split] <= max(sizes[split], held[split]), "no split is filled beyond its share"
    if all(held[split] <= sizes[split] for split in SPLITS):
        assert found == sizes


@given(st.integers(0, 9))
def test_step_by_step_the_shares_are_those_of_the_whole(seed):
    names = [f"s{index:02d}" for index in range(44)]
    splits = {}
    for count in (3, 10, 11, 30, 44):
        before = splits
        splits = extend_splits(specimens(None, names[:count]), before, (0.7, 0.2, 0.1), seed)
        assert before.items() <= splits.items()
        found = Counter(splits.values())
        assert tuple(found[split] for split in SPLITS) == split_sizes(count, (0.7, 0.2, 0.1))


def test_which_new_specimen_goes_where_is_drawn_by_the_seed():
    cohort = specimens(None, [f"s{index:02d}" for index in range(44)])
    before = assign_splits(cohort[:5])
    drawn = [extend_splits(cohort, before, seed=seed) for seed in range(3)]
    assert drawn[0] != drawn[1] != drawn[2]


def test_without_any_known_specimen_splits_are_assigned_as_ever():
    cohort = specimens(None, ["a", "b", "c", "d"])
    for before in ({}, {"z": "train"}):
        assert extend_splits(cohort, before, seed=3) == assign_splits(cohort, seed=3)


def test_the_cohorts_own_split_goes_before_the_old_one(refused):
    cohort = specimens(None, ["a", "b", "c"], ["val", "train", "test"])
    before = {"a": "train", "b": "val"}
    assert extend_splits(cohort, before) == {"a": "val", "b": "train", "c": "test"}
    half = specimens(None, ["a", "b", "c"], ["val", "train", None])
    with refused("c", "some specimens .* have a split and this one has none", "all or leave"):
        extend_splits(half, before | {"c": "test"})


def test_a_split_that_is_emptied_is_refused(refused):
    before = {"a": "train", "b": "val", "c": "test", "d": "train"}
    with refused("cohort", "no specimen is in the split val", "at least one in each"):
        extend_splits(specimens(None, ["a", "c", "d"]), before)
