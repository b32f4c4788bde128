from __future__ import annotations

import io
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lab import SHAPE, SMALL, make_lab, rows
from webdataset.tariterators import group_by_keys, tar_file_expander

from distsynth.config import DataConfig
from distsynth.data.loader import (
    ALONE,
    PatchDataset,
    Rank,
    TrainingBatches,
    epoch_order,
    exact_plan,
    training_plan,
    validation_batches,
)
from distsynth.data.standardiser import Standardiser
from distsynth.errors import ConfigError
from sharding.io.errors import DataError
from sharding.shards.records import QUANTUM, quantise
from sharding.shards.shard_set import ShardSet
from sharding.shards.write import write_shards
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.pair import prepare_pair

SHARDS = st.lists(st.integers(1, 30), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def shards(shard_folder):
    return ShardSet(shard_folder)


def batches(shards, epoch=0, start=0, batch_size=16, seed=1, workers=0, window=64, rank=ALONE):
    config = DataConfig(patch_size=(16, 16), workers=workers, shuffle_shards=window)
    loader = TrainingBatches(shards, config, batch_size, seed, rank)
    found = list(loader.epoch(epoch, start))
    assert len(found) == loader.steps - start
    return found


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def identity(found):
    """Patches by what tells them apart: specimen, location and voxels."""
    return [
        (*where.tolist(), source.numpy().tobytes())
        for batch in found
        for where, source in zip(batch.where, batch.source, strict=True)
    ]


@given(counts=SHARDS, seed=st.integers(0, 99), epoch=st.integers(0, 9), window=st.integers(1, 9))
def test_an_epoch_is_a_permutation_mixed_within_windows_of_shards(counts, seed, epoch, window):
    order = epoch_order(counts, seed, epoch, window)
    assert sorted(order.tolist()) == list(range(sum(counts)))
    assert np.array_equal(order, epoch_order(counts, seed, epoch, window))
    owner = np.repeat(np.arange(len(counts)), counts)[order]
    place = 0
    while place < len(order):
        ahead = sum(
            len(set(owner[place:end])) <= window for end in range(place + 1, len(order) + 1)
        )
        opened = sorted(set(owner[place : place + ahead].tolist()))
        assert ahead == sum(counts[shard] for shard in opened)
        assert len(opened) <= window
        place += ahead


@given(
    counts=SHARDS,
    ranks=st.integers(1, 6),
    share=st.integers(1, 9),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 9),
    window=st.integers(1, 9),
)
def test_ranks_partition_the_global_batches_exactly(counts, ranks, share, seed, epoch, window):
    total, batch_size = sum(counts), share * ranks
    order = epoch_order(counts, seed, epoch, window)
    plans = [training_plan(order, batch_size, rank, ranks) for rank in range(ranks)]
    assert {plan.shape for plan in plans} == {(total // batch_size, share)}
    used = np.concatenate([plan.ravel() for plan in plans])
    assert len(set(used.tolist())) == len(used) == total - total % batch_size
    whole = training_plan(order, batch_size, 0, 1)
    assert np.array_equal(np.concatenate(plans, axis=1), whole)
    assert np.array_equal(whole.ravel(), order[: len(used)])


def test_epochs_and_seeds_differ_in_order_and_in_what_they_leave_out():
    left_out = set()
    orders = set()
    for seed in (0, 1):
        for epoch in range(5):
            order = epoch_order([20, 20, 13], seed, epoch, 2)
            orders.add(tuple(order.tolist()))
            left_out.add(frozenset(order[48:].tolist()))
    assert len(orders) == len(left_out) == 10


@given(count=st.integers(0, 200), batch_size=st.integers(1, 40), ranks=st.integers(1, 9))
def test_exact_plan_covers_each_patch_once(count, batch_size, ranks):
    plans = [exact_plan(count, batch_size, rank, ranks) for rank in range(ranks)]
    flat = [patch for plan in plans for index in plan for patch in index.tolist()]
    assert flat == list(range(count))
    sizes = [sum(map(len, plan)) for plan in plans]
    assert max(sizes) - min(sizes) <= 1
    assert all(0 < len(index) <= batch_size for plan in plans for index in plan)


def test_patches_are_those_of_the_shards_as_webdataset_reads_them(shards):
    read = {"source": [], "target": [], "where": []}
    names = [row.name for row in shards.manifest.specimens]
    assert len(shards.shards("train")) > 1
    for shard in shards.shards("train"):
        # Not by wds.WebDataset, which leaves its files open.
        with shards.path(shard).open("rb") as stream:
            members = tar_file_expander([{"url": shard.name, "stream": stream}])
            for record in group_by_keys(members):
                for name, parts in read.items():
                    parts.append(np.load(io.BytesIO(record[f"{name}.npy"])))
                index = names.index(record["__key__"].rpartition("-")[0].replace("+", "."))
                read["where"][-1] = np.insert(read["where"][-1], 0, index, axis=1)
    expected = {name: np.concatenate(parts) for name, parts in read.items()}
    dataset = PatchDataset(shards, "train")
    assert len(dataset) == len(expected["where"]) == shards.manifest.patches("train")
    order = np.random.default_rng(0).permutation(len(dataset))
    batch = dataset[order]
    assert np.array_equal(batch.source.numpy(), expected["source"][order])
    assert np.array_equal(batch.target[:, 0].numpy(), expected["target"][order])
    assert np.array_equal(batch.where.numpy(), expected["where"][order])
    assert batch.source.dtype == torch.uint16


@pytest.mark.parametrize("neighbours", [1, 2])
def test_neighbouring_slices_are_channels(neighbours, tmp_path):
    lab = make_lab(tmp_path)
    config = replace(SMALL, neighbours=neighbours, axes=(0, 2), dense_axes=(1, 2))
    write_shards(rows(lab), lab / "deep", config, workers=1)
    write_shards(rows(lab), lab / "flat", replace(config, neighbours=0), workers=1)
    deep, flat = ShardSet(lab / "deep"), ShardSet(lab / "flat")
    files = {row.name: row for row in rows(lab)}
    records = deep.manifest.specimens
    volumes = [
        quantise(prepare_pair(files[row.name], PreprocessConfig()).source_scaled) for row in records
    ]
    edges = 0
    for split in ("train", "val", "test"):
        everything = np.arange(deep.manifest.patches(split))
        batch = PatchDataset(deep, split)[everything]
        assert batch.source.shape == (len(everything), 1 + 2 * neighbours, 8, 8)
        assert batch.target.shape == (len(everything), 1, 8, 8)
        # Slice by slice, from the volume.
        for (index, axis, *corner), source in zip(batch.where.tolist(), batch.source, strict=True):
            for channel, patch in enumerate(source.numpy()):
                place = corner[axis] + channel - neighbours
                inside = min(max(place, 0), SHAPE[axis] - 1)
                edges += inside != place
                plane = np.take(volumes[index], inside, axis)
                x, y = (corner[dim] for dim in range(3) if dim != axis)
                np.testing.assert_array_equal(patch, plane[x : x + 8, y : y + 8])
        # The same patches as without, whatever the shards they lie in.
        alone = PatchDataset(flat, split)[everything]
        assert _by_place(batch, neighbours) == _by_place(alone, 0)
    assert edges


def _by_place(batch, middle):
    return sorted(
        (where.tolist(), source[middle].numpy().tobytes(), target.numpy().tobytes())
        for where, source, target in zip(batch.where, batch.source, batch.target, strict=True)
    )


def test_a_batch_mixes_specimens_though_no_record_does(shards):
    blocks = [block for shard in shards.shards("train") for block in shards.read(shard)]
    assert len({block.specimen for block in blocks}) == 3
    mixed = [len(set(batch.where[:, 0].tolist())) for batch in batches(shards)]
    assert min(mixed) == 3


def test_an_epoch_reads_each_patch_once_and_leaves_out_the_rest(shards):
    everything = identity([PatchDataset(shards, "train")[np.arange(120)]])
    assert len(set(everything)) == 120
    found = identity(batches(shards, batch_size=32))
    assert len(found) == len(set(found)) == 96
    assert set(found) < set(everything)
    other = identity(batches(shards, epoch=1, batch_size=32))
    assert set(other) != set(found)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(shards, workers):
    config = DataConfig(patch_size=(16, 16), workers=workers)
    loader = TrainingBatches(shards, config, 16, seed=1)
    for epoch, start in ((0, 0), (1, 3)):
        assert_same(list(loader.epoch(epoch, start)), batches(shards, epoch, start))


def test_an_abandoned_epoch_leaves_nothing_behind(shards):
    config = DataConfig(patch_size=(16, 16), workers=1)
    loader = TrainingBatches(shards, config, 16, seed=1)
    next(iter(loader.epoch(0)))
    assert_same(list(loader.epoch(1)), batches(shards, 1))


@pytest.mark.parametrize("start", [0, 1, 6, 7])
def test_starting_at_a_step_gives_the_tail_of_the_epoch(shards, start):
    assert_same(batches(shards, start=start), batches(shards)[start:])


@pytest.mark.parametrize("ranks", [2, 4])
def test_shares_of_the_ranks_make_the_batches_of_one_process(shards, ranks):
    shares = [batches(shards, rank=Rank(rank, ranks)) for rank in range(ranks)]
    whole = batches(shards)
    for step, batch in enumerate(whole):
        for part in range(3):
            together = torch.cat([share[step][part] for share in shares])
            assert torch.equal(together, batch[part])


def test_a_small_window_and_few_open_shards_lose_nothing(shards, monkeypatch):
    monkeypatch.setattr("distsynth.data.dataset.OPEN_SHARDS", 1)
    found = identity(batches(shards, batch_size=8, window=1))
    assert len(set(found)) == 120


@pytest.mark.parametrize(
    ("batch_size", "ranks", "message"),
    [
        (16, 3, "divisible by the 3 ranks, got 16"),
        (128, 1, "<= the 120 training patches .*, got 128: use a smaller batch or more data"),
        (121, 121, "<= the 120 training patches .*, got 121"),
    ],
)
def test_batches_that_do_not_fit_are_refused(shards, batch_size, ranks, message):
    with pytest.raises(ConfigError, match=r"^train\.batch_size must be " + message):
        TrainingBatches(shards, DataConfig(), batch_size, seed=0, rank=Rank(0, ranks))


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_draws_nothing_from_the_global_random_state(shards, workers):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    numpy_before = np.random.get_state()[1].copy()  # noqa: NPY002
    batches(shards, workers=workers)
    list(validation_batches(shards, "val", np.arange(20), 8, workers))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


@pytest.mark.parametrize("ranks", [1, 3])
def test_validation_batches_are_the_chosen_patches_in_order(shards, ranks):
    dataset = PatchDataset(shards, "val")
    chosen = np.random.default_rng(0).permutation(len(dataset))[:-7]
    parts = [
        batch
        for rank in range(ranks)
        for batch in validation_batches(shards, "val", chosen, 16, 0, Rank(rank, ranks))
    ]
    expected = dataset[chosen]
    for part in range(3):
        assert torch.equal(torch.cat([batch[part] for batch in parts]), expected[part])


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_numbers_of_a_specimens_patches_are_those_the_manifest_says(shards, split):
    owner = PatchDataset(shards, split)[np.arange(shards.manifest.patches(split))].where[:, 0]
    numbers = shards.manifest.patch_numbers(split)
    for index, row in enumerate(shards.manifest.specimens):
        if row.split == split:
            assert np.array_equal(numbers[row.name], np.flatnonzero(owner.numpy() == index))
    assert sum(map(len, numbers.values())) == len(owner)


def test_standardiser_is_the_intensity_transform_of_each_specimen(shards):
    batch = PatchDataset(shards, "train")[np.arange(0, 120, 3)]
    source, target = Standardiser(shards.manifest, torch.device("cpu"))(batch)
    assert source.dtype == torch.float32
    specimens = batch.where[:, 0].tolist()
    assert len(set(specimens)) == 3
    for row, index in enumerate(specimens):
        record = shards.manifest.specimens[index]
        for found, stored, transform in (
            (source, batch.source, record.source),
            (target, batch.target, record.target),
        ):
            scaled = stored[row].numpy().astype(np.float32) / QUANTUM
            expected = transform.standardise_scaled(scaled)
            np.testing.assert_allclose(found[row].numpy(), expected, rtol=1e-6, atol=1e-6)


def test_a_shard_that_changed_after_opening_is_found_when_read(shard_folder, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(shard_folder, folder)
    shards = ShardSet(folder)
    path = shards.path(shards.shards("train")[0])
    path.write_bytes(path.read_bytes()[:2048])
    with pytest.raises(DataError, match=path.name):
        PatchDataset(shards, "train")[np.arange(3)]


def loader_of(shards, resident, batch_size=16, **more):
    config = DataConfig(patch_size=(16, 16), resident=resident, **more)
    return TrainingBatches(shards, config, batch_size, seed=1)


@pytest.mark.parametrize("workers", [0, 1])
def test_patches_kept_in_memory_are_those_that_are_streamed(shards, workers):
    kept = loader_of(shards, "auto", workers=workers)
    streamed = loader_of(shards, "never", workers=workers)
    assert kept.resident
    assert not streamed.resident
    for epoch, start in ((3, 5), (0, 0), (1, 2)):
        found = list(kept.epoch(epoch, start))
        assert_same(found, list(streamed.epoch(epoch, start)))
        assert found[0].source.dtype == torch.uint16
        assert found[0].where.dtype == torch.int32


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_that_keep_patches_in_memory_have_the_same_shares(shards, ranks):
    for rank in range(ranks):
        config = DataConfig(patch_size=(16, 16), resident="never")
        streamed = TrainingBatches(shards, config, 16, 1, Rank(rank, ranks))
        assert_same(batches(shards, rank=Rank(rank, ranks)), list(streamed.epoch(0)))


def test_shards_are_read_once_and_no_worker_starts_when_patches_are_kept(shards, monkeypatch):
    read, seen = ShardSet.read, []

    def spy(self, shard):
        seen.append(shard.name)
        return read(self, shard)

    monkeypatch.setattr(ShardSet, "read", spy)
    monkeypatch.setattr("distsynth.data.loader.DataLoader.__iter__", None)
    loader = loader_of(shards, "auto", workers=2)
    for epoch in range(3):
        list(loader.epoch(epoch))
    assert seen == [shard.name for shard in shards.shards("train")]


def test_patches_that_are_kept_have_been_read_before_the_first_step(shards, tmp_path):
    """So that a budget in time does not pay for it."""
    copied = ShardSet(shutil.copytree(shards.folder.local, tmp_path / "copied"))
    loader = loader_of(copied, "auto")
    waiting = loader.epoch(0)
    shutil.rmtree(tmp_path / "copied")
    assert_same(list(waiting), batches(shards))


def test_a_batch_that_is_changed_leaves_the_patches_in_memory_alone(shards):
    loader = loader_of(shards, "auto")
    for batch in loader.epoch(0):
        for part in batch:
            part.zero_()
    assert_same(list(loader.epoch(0)), batches(shards))


def test_a_split_too_large_for_the_memory_is_streamed(shards, monkeypatch):
    size = PatchDataset(shards, "train").bytes
    assert size == 120 * (2 * 2 * 16 * 16 + 5 * 4)
    for room, fits in ((size, True), (size - 1, False)):
        monkeypatch.setattr("distsynth.data.loader.keepable_bytes", lambda *_, r=room: r)
        loader = loader_of(shards, "auto")
        assert loader.resident is fits
        assert_same(list(loader.epoch(0)), batches(shards))


def test_standardising_in_place_leaves_the_stored_patches_alone(shards):
    batch = PatchDataset(shards, "train")[np.arange(30)]
    before = [part.clone() for part in batch]
    found = Standardiser(shards.manifest, torch.device("cpu"))(batch)
    again = Standardiser(shards.manifest, torch.device("cpu"))(batch)
    assert_same([batch, found], [before, again])
    # To the bit what the steps give one by one.
    for stored, role, value in zip(batch, ("source", "target"), found, strict=False):
        records = [getattr(shards.manifest.specimens[n], role) for n in batch.where[:, 0].tolist()]
        mean, std = (
            torch.tensor([getattr(row, name) for row in records]).view(-1, 1, 1, 1)
            for name in ("mean", "std")
        )
        assert torch.equal(value, (stored.float() / QUANTUM - mean) / std)
