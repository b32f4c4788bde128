from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_runs import tiny_config

import distsynth as ds
from distsynth.errors import ConfigError
from distsynth.evaluation.folds import NAME
from distsynth.metrics.results import RESULTS_FILE
from distsynth.training.loop import train
from sharding.io.errors import DataError
from sharding.shards.write import write_shards
from sharding.volumes.cohort import read_cohort
from sharding.volumes.splits import fold_splits


@pytest.mark.parametrize("folds", [2, 3, 4])
def test_each_specimen_validates_once_and_trains_otherwise(folds, phantom_cohort):
    specimens = read_cohort(phantom_cohort)
    specimens[2] = replace(specimens[2], split="test")
    seen = []
    for fold in range(1, folds + 1):
        dealt = fold_splits(specimens, folds, fold)
        assert [row.name for row in dealt] == [row.name for row in specimens]
        assert dealt[2].split == "test"
        seen += [row.name for row in dealt if row.split == "val"]
        assert sum(row.split == "train" for row in dealt) >= 4 - len(seen)
        again = fold_splits(specimens[::-1], folds, fold)
        assert {row.name: row.split for row in again} == {row.name: row.split for row in dealt}
    assert sorted(seen) == sorted(row.name for row in specimens if row.split != "test")
    for wrong in ((1, 1), (5, 1), (2, 3), (2, 0)):
        with pytest.raises(DataError, match="folds must be from 2 to the 4 specimens outside"):
            fold_splits(specimens, *wrong)


@pytest.mark.long
@pytest.mark.slow
def test_all_folds_are_evaluated_as_one(phantom_cohort, small_shards, tmp_path):
    specimens = read_cohort(phantom_cohort)
    runs = []
    for fold in (1, 2):
        shards, run = tmp_path / f"fold-{fold}", tmp_path / f"run-{fold}"
        write_shards(fold_splits(specimens, 2, fold), shards, small_shards, workers=1)
        train(tiny_config(shards, {"train.epochs": 1}), run)
        runs.append(run)
    found = ds.evaluate(runs, specimens, tmp_path / "out", folds=True)
    assert sorted(found.specimens) == sorted(row.name for row in specimens)
    assert set(found.results[NAME]) == set(found.results["cubic"]) == set(found.specimens)
    assert found.training == 3
    assert (tmp_path / "out" / RESULTS_FILE).is_file()
    alone = ds.evaluate(runs[1], specimens, split="val")
    for name in alone.specimens:
        assert found.results[NAME][name] == pytest.approx(
            alone.results[runs[1].name][name], nan_ok=True
        )
    with pytest.raises(ConfigError, match="validated two of the models"):
        ds.evaluate(dict.fromkeys("ab", ds.load_predictor(runs[0])), specimens, folds=True)
