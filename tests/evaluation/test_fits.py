"""Fitted baselines are kept: found again for the same data alone, whole or not at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_runs import start

import distsynth.evaluation.fits
from distsynth.evaluation.baselines import IntensityMap, NeighbourhoodRegression, fitted_baselines
from distsynth.evaluation.fits import FOLDER, fingerprint, kept_baselines
from distsynth.evaluation.pairs import prepared_pairs
from distsynth.runs.data_record import DataRecord
from sharding.io.errors import DataError
from sharding.shards.shard_set import ShardSet
from sharding.volumes.cohort import read_cohort
from sharding.volumes.volume import read_volume, write_volume


@pytest.fixture(scope="module")
def data(shard_folder):
    return DataRecord.of(ShardSet(shard_folder).manifest)


@pytest.fixture
def training(phantom_cohort, data):
    return [row for row in read_cohort(phantom_cohort) if data.split_of(row.name) == "train"]


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """The folder of the fits."""
    monkeypatch.setenv("DISTSYNTH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / FOLDER


def states(fitted):
    return {
        f"{each.name}/{name}": values for each in fitted for name, values in each.state().items()
    }


def same(left, right):
    one, other = states(left), states(right)
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def no_fitting(*_):
    raise AssertionError("fitted again")


def test_a_kept_fit_is_that_of_the_pairs(training, data, kept, monkeypatch):
    first = kept_baselines(training, data)
    assert same(first, fitted_baselines(prepared_pairs(training, data)))
    assert [file.name for file in kept.iterdir()] == [f"{fingerprint(training, data)}.npz"]
    monkeypatch.setattr(distsynth.evaluation.fits, "fitted_baselines", no_fitting)
    again = kept_baselines(training, data)
    assert same(first, again)
    (pair,) = prepared_pairs(training[:1], data)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.predict(pair), other.predict(pair))


def test_what_a_fit_depends_on_is_in_its_fingerprint(training, data, tmp_path, monkeypatch):
    before = fingerprint(training, data)
    volume = read_volume(training[0].source)
    changed = volume.data.copy()
    changed[3, 4, 5] += 1
    write_volume(tmp_path / "changed.nii.gz", replace(volume, data=changed))
    other = [replace(training[0], source=tmp_path / "changed.nii.gz"), *training[1:]]
    clipped = replace(data.preprocess, clip_percentiles=(1.0, 99.0))
    found = [
        fingerprint(other, data),
        fingerprint(training[::-1], data),
        fingerprint(training[1:], data),
        fingerprint(training, replace(data, preprocess=clipped)),
    ]
    monkeypatch.setattr(NeighbourhoodRegression, "ridge", 1e-3)
    found.append(fingerprint(training, data))
    assert len({before, *found}) == 1 + len(found)


def test_names_and_places_of_files_do_not_matter(training, data, tmp_path):
    copied = tmp_path / "elsewhere.nii.gz"
    copied.write_bytes(training[0].source.read_bytes())
    moved = [replace(training[0], name="other", source=copied), *training[1:]]
    assert fingerprint(moved, data) == fingerprint(training, data)


@pytest.mark.parametrize("damage", ["cut", "objects", "other arrays", "not finite"])
def test_a_damaged_fit_is_said_and_made_anew(damage, training, data, kept, caplog):
    first = kept_baselines(training, data)
    (file,) = kept.iterdir()
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:400])
    elif damage == "objects":
        np.savez(file, **{name: np.array([{}]) for name in states(first)})
    elif damage == "other arrays":
        np.savez(file, **{name: values[..., :-1] for name, values in states(first).items()})
    else:
        np.savez(file, **{name: values * np.nan for name, values in states(first).items()})
    assert same(kept_baselines(training, data), first)
    assert "is no kept fit" in caplog.text
    caplog.clear()
    assert same(kept_baselines(training, data), first)
    assert "is no kept fit" not in caplog.text


def test_without_a_place_to_keep_it_a_fit_still_serves(
    training, data, tmp_path, monkeypatch, caplog
):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DISTSYNTH_CACHE", str(tmp_path / "file"))
    assert [each.name for each in kept_baselines(training, data)] == [
        IntensityMap.name,
        NeighbourhoodRegression.name,
    ]
    assert "not kept for later" in caplog.text


def test_two_processes_may_fit_the_same(training, data, kept, tmp_path):
    environment = {"DISTSYNTH_CACHE": str(kept.parent)}
    processes = [
        start(kept_baselines, training, data, environment=environment, log=tmp_path / f"log-{n}")
        for n in range(2)
    ]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [file.name for file in kept.iterdir()] == [f"{fingerprint(training, data)}.npz"]


def test_pairs_come_in_order_and_a_bad_one_in_its_turn(training, data, tmp_path):
    (tmp_path / "bad.nii.gz").write_bytes(b"nothing")
    rows = [training[0], replace(training[1], source=tmp_path / "bad.nii.gz"), training[2]]
    pairs = prepared_pairs(rows, data)
    assert next(pairs).name == training[0].name
    with pytest.raises(DataError, match=r"bad\.nii\.gz"):
        next(pairs)
    assert [pair.name for pair in prepared_pairs(training, data)] == [row.name for row in training]
    assert list(prepared_pairs([], data)) == []
