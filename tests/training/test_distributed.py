from __future__ import annotations

import pytest
import torch
from tiny_runs import (
    ADVERSARIAL,
    BATCH_NORM,
    batch_norm_of_a_share,
    launch,
    losses,
    run,
    run_and_keep,
    run_failing,
    run_killed,
    same,
    tensors,
    tiny_config,
)

from distsynth.runs.checkpoint import load_checkpoint
from distsynth.runs.folder import BEST, LAST
from sharding.shards.config import ShardConfig
from sharding.shards.write import write_shards
from sharding.volumes.cohort import read_cohort

pytestmark = pytest.mark.slow

RECIPE = {
    "optim.average": 0.9,
    "optim.warmup_steps": 3,
    "optim.weight_decay": 0.01,
    "augment.flips": (0, 1),
    "augment.noise": 0.1,
    "train.minutes": 60.0,
    "generator.intensity_map": True,
}
KINDS = {"supervised": {}, "adversarial": ADVERSARIAL, "recipe": RECIPE}
FULL = ADVERSARIAL | BATCH_NORM


def assert_close_runs(left, right):
    for one, other in zip(losses(left), losses(right), strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6, nan_ok=True)
    one, other = tensors(left), tensors(right)
    assert one.keys() == other.keys()
    for name, value in one.items():
        if torch.is_tensor(value):
            torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [1, 3])
def test_two_ranks_do_what_one_does(kind, parts, shard_folder, tmp_path):
    more = {"train.accumulation": parts, "loss.recon": "l2"}
    config = tiny_config(shard_folder, KINDS[kind], more)
    for ranks in (1, 2):
        codes = launch(run, config, tmp_path / str(ranks), ranks=ranks, log=tmp_path / "log")
        assert codes == [0] * ranks
    assert_close_runs(tmp_path / "1", tmp_path / "2")
    assert len(load_checkpoint(tmp_path / "2" / LAST).random) == 2


def test_two_ranks_with_batch_norm_lose_what_one_does(shard_folder, tmp_path):
    config = tiny_config(shard_folder, FULL, {"train.log_every": 1})
    for ranks in (1, 2):
        codes = launch(run, config, tmp_path / str(ranks), ranks=ranks, log=tmp_path / "log")
        assert codes == [0] * ranks
    # Validation is left out: the gradient of a bias before BatchNorm is zero but for rounding, of
    # which Adam makes whole steps. The batch's mean takes them away again, the running mean later.
    one, two = (
        [
            {name: value for name, value in row.items() if name.startswith("train/")}
            for row in losses(tmp_path / str(ranks))
        ]
        for ranks in (1, 2)
    )
    assert len([row for row in one if row]) == 10
    for left, right in zip(one, two, strict=True):
        assert left == pytest.approx(right, rel=1e-5, abs=1e-5)


def test_batch_norm_over_two_ranks_is_that_of_one_process(tmp_path):
    assert launch(batch_norm_of_a_share, 1, tmp_path / "1", log=tmp_path / "log") == [0]
    codes = launch(batch_norm_of_a_share, 2, tmp_path / "2", ranks=2, log=tmp_path / "log")
    assert codes == [0, 0]
    whole = torch.load(tmp_path / "1-0")
    shares = [torch.load(tmp_path / f"2-{rank}") for rank in (0, 1)]
    for name in ("output", "input gradient"):
        joined = torch.cat([share[name] for share in shares])
        torch.testing.assert_close(joined, whole[name], rtol=1e-5, atol=1e-5)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        for share in shares:
            torch.testing.assert_close(share[name], whole[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("every", [0, 2])
def test_ranks_with_batch_norm_end_with_the_same_numbers(every, shard_folder, tmp_path):
    config = tiny_config(shard_folder, FULL, {"train.checkpoint_every": every})
    codes = launch(run_and_keep, config, tmp_path, ranks=2, log=tmp_path / "log")
    assert codes == [0, 0]
    one, other = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in (0, 1))
    compared = 0
    for learner in one:
        for name, value in one[learner]["network"].items():
            assert torch.equal(value, other[learner]["network"][name]), name
            compared += 1
    assert compared == 20
    saved = load_checkpoint(tmp_path / LAST).learners["generator"]["network"]
    assert same(saved, one["generator"]["network"])


@pytest.mark.parametrize("kind", ["supervised", "batch norm"])
@pytest.mark.parametrize(("every", "step"), [(2, 4), (0, 7)])
def test_two_ranks_killed_and_resumed_end_as_if_never_killed(
    kind, every, step, shard_folder, tmp_path
):
    more = {"train.checkpoint_every": every, "train.log_every": 3}
    config = tiny_config(shard_folder, FULL if kind == "batch norm" else {}, more)
    assert launch(run, config, tmp_path / "whole", ranks=2, log=tmp_path / "log") == [0, 0]
    run_dir = tmp_path / "run"
    codes = launch(run_killed, config, run_dir, "step", step, ranks=2, log=tmp_path / "killed")
    assert codes == [-9, -9]
    assert launch(run, config, run_dir, True, ranks=2, log=tmp_path / "resumed") == [0, 0]
    for file in (LAST, BEST):
        assert same(tensors(run_dir, file), tensors(tmp_path / "whole", file))
    assert losses(run_dir) == losses(tmp_path / "whole")


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_rank_ends_both(rank, shard_folder, tmp_path):
    config = tiny_config(shard_folder)
    codes = launch(run_failing, config, tmp_path, rank, 3, ranks=2, log=tmp_path / "log")
    assert all(code != 0 for code in codes)
    assert "this rank breaks" in (tmp_path / f"log-{rank}").read_text()


@pytest.mark.parametrize("fault", ["shards", "ranks", "accumulation", "exists"])
def test_an_error_before_training_ends_both_with_its_message(fault, shard_folder, tmp_path):
    config = tiny_config(shard_folder)
    run_dir = tmp_path / "run"
    if fault == "shards":
        config = tiny_config(tmp_path / "nowhere")
        message = "no shard set here"
    elif fault == "ranks":
        config = tiny_config(shard_folder, {"train.batch_size": 9})
        message = "train.batch_size must be divisible by the 2 ranks, got 9"
    elif fault == "accumulation":
        config = tiny_config(shard_folder, {"train.accumulation": 8})
        message = "a divisor of the 12 patches that each of 2 ranks has in a batch, got 8"
    else:
        run_dir.mkdir()
        (run_dir / "config.json").write_text("{}")
        message = "the folder holds a run already"
    assert launch(run, config, run_dir, ranks=2, log=tmp_path / "log") == [1, 1]
    for rank in (0, 1):
        assert message in (tmp_path / f"log-{rank}").read_text()


def test_a_rank_without_any_validation_patch_does_not_hang(phantom_cohort, tmp_path):
    """A block as large as the volume is the only one: the second rank has none to evaluate."""
    shape = (40, 36, 32)
    shards = ShardConfig(patch_size=shape, stride=32, patches_per_specimen=2, block=2)
    write_shards(read_cohort(phantom_cohort), tmp_path / "shards", shards, workers=1)
    more = {"data.patch_size": shape, "stitch.stride": 32, "train.batch_size": 2}
    config = tiny_config(tmp_path / "shards", more, {"generator.channels": (2,)})
    for ranks in (1, 2):
        codes = launch(run, config, tmp_path / str(ranks), ranks=ranks, log=tmp_path / "log")
        assert codes == [0] * ranks
    assert_close_runs(tmp_path / "1", tmp_path / "2")
