from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from ray import tune
from ray.tune.search import Searcher
from searched_points import MIXED, QUANTIZED, WEIGHT, anything, inside

import distsynth.sweep.tuner
from distsynth.errors import ConfigError
from distsynth.presets import preset
from distsynth.sweep.callback import SweepCallback
from distsynth.sweep.folder import SweepFolder, TrialRecord
from distsynth.sweep.hyperparameters import Hyperparameters, Space, draw, invalid
from distsynth.sweep.plan import SweepConfig, SweepPlan
from distsynth.sweep.searcher import (
    TRIES,
    SuggestingSearcher,
    Suggestions,
)
from tune_spaces.domains import zero_or_log
from tune_spaces.plain import RANGES, space_to_plain
from tune_spaces.registry import SPACES

UNET = preset("unet-7")


def hill(hyperparameters: Hyperparameters) -> float:
    """Highest, at 0, for a learning rate of 1e-3, three wide layers and no adversarial term."""
    distance = abs(math.log10(hyperparameters["optim.lr_generator"]) + 3)
    narrow = 0 if hyperparameters["generator.channels"] == (16, 16, 16) else 1
    return -distance - narrow - hyperparameters["loss.lambda_bce"]


def explored(
    space: Space, seed: int, count: int, score: Callable[[Hyperparameters], float]
) -> list[float]:
    suggestions = Suggestions(space, seed, 1)
    scores = []
    for number in range(count):
        hyperparameters = suggestions.ask(str(number), anything)
        scores.append(score(hyperparameters))
        suggestions.tell(str(number), hyperparameters, (scores[-1],))
    return scores


# --- suggestions


@pytest.mark.parametrize("name", SPACES)
def test_suggested_points_can_be_run_and_lie_in_the_space(name):
    space = SPACES[name]()
    suggestions = Suggestions(space, 0, 1)
    for number in range(25):
        hyperparameters = suggestions.ask(
            str(number), lambda hyperparameters: invalid(UNET, hyperparameters)
        )
        assert inside(space, hyperparameters)
        assert invalid(UNET, hyperparameters) is None
        suggestions.tell(str(number), hyperparameters, (float(number % 7),))


def test_values_are_plain_and_of_the_type_of_their_domain():
    hyperparameters = Suggestions(MIXED, 3, 1).ask("a", anything)
    assert type(hyperparameters["generator.channels"]) is tuple
    assert type(hyperparameters["train.batch_size"]) is int
    assert type(hyperparameters["optim.lr_generator"]) is float
    assert type(hyperparameters["loss.lambda_bce"]) is float


def test_weights_are_zero_in_some_suggestions():
    suggestions = Suggestions(WEIGHT, 0, 1)
    drawn = [suggestions.ask(str(n), anything)["loss.lambda_bce"] for n in range(60)]
    assert 3 < drawn.count(0.0) < 30
    assert all(value == 0 or 0.01 <= value <= 4 for value in drawn)


def test_tpe_goes_to_a_weight_of_zero_where_that_is_best():
    scores = explored(WEIGHT, 0, 40, lambda hyperparameters: -hyperparameters["loss.lambda_bce"])
    assert np.mean(np.array(scores[20:]) == 0) > 0.5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tpe_finds_better_points_than_its_first_random_ones(seed):
    scores = explored(MIXED, seed, 50, hill)
    first, later = scores[:10], scores[30:]
    assert max(later) > max(first)
    assert np.mean(later) > np.mean(first) + 0.5


def test_tpe_learns_only_from_what_it_is_told():
    """Of fifty suggestions a few are good by chance; without scores, no more than that."""
    told = explored(MIXED, 0, 50, hill)
    suggestions = Suggestions(MIXED, 0, 1)
    candidates = [suggestions.ask(str(number), anything) for number in range(50)]
    untold = [hill(hyperparameters) for hyperparameters in candidates]
    assert untold[:10] == told[:10]
    assert np.mean(told[30:]) > np.mean(untold[30:]) + 0.5


def test_hyperparameters_that_cannot_be_run_are_not_suggested():
    refused = []

    def valid(hyperparameters: Hyperparameters) -> str | None:
        if hyperparameters["generator.norm"] == "none":
            refused.append(hyperparameters)
            return "no"
        return None

    suggestions = Suggestions(MIXED, 0, 1)
    candidates = [suggestions.ask(str(number), valid) for number in range(20)]
    assert {hyperparameters["generator.norm"] for hyperparameters in candidates} == {"batch"}
    assert refused


def test_a_space_of_points_that_cannot_be_run_is_given_up():
    asked = []

    def valid(hyperparameters: Hyperparameters) -> str:
        asked.append(hyperparameters)
        return "loss must be more"

    rule = "optuna found no hyperparameters that make a valid configuration: loss must be more"
    with pytest.raises(ConfigError, match=rule):
        Suggestions(MIXED, 0, 1).ask("a", valid)
    assert len(asked) == TRIES


def test_a_failed_trial_teaches_nothing_and_stops_nothing():
    suggestions = Suggestions(MIXED, 0, 1)
    for number in range(15):
        hyperparameters = suggestions.ask(str(number), anything)
        suggestions.tell(
            str(number), hyperparameters, None if number % 2 else (hill(hyperparameters),)
        )
        suggestions.observe(hyperparameters, None)
    assert inside(MIXED, suggestions.ask("next", anything))


def observations(count: int, seed: int = 0) -> list[TrialRecord]:
    rng = np.random.default_rng(seed)
    return [TrialRecord(f"{number:05d}", draw(MIXED, rng)) for number in range(count)]


def rebuilt(records: list[TrialRecord], seed: int = 5) -> Suggestions:
    suggestions = Suggestions(MIXED, seed, 1, len(records))
    for record in records:
        suggestions.observe(record.hyperparameters, (hill(record.hyperparameters),))
    return suggestions


@pytest.mark.parametrize("count", [0, 3, 25])
def test_the_same_observations_give_the_same_suggestions(count):
    records = observations(count)
    one, two = rebuilt(records), rebuilt(records)
    suggested = [one.ask(str(number), anything) for number in range(4)]
    assert [two.ask(str(number), anything) for number in range(4)] == suggested
    assert rebuilt(records, seed=6).ask("0", anything) != suggested[0]
    assert len({repr(hyperparameters) for hyperparameters in suggested}) == 4


def test_random_numbers_go_on_from_the_points_that_were_drawn():
    """Else a sweep that is resumed early would try its first suggestions again."""
    first = Suggestions(MIXED, 5, 1)
    drawn = [first.ask(str(number), anything) for number in range(3)]
    second = rebuilt(
        [TrialRecord(str(number), hyperparameters) for number, hyperparameters in enumerate(drawn)]
    )
    assert not [
        hyperparameters
        for n in range(3)
        if (hyperparameters := second.ask(str(n), anything)) in drawn
    ]


def test_telling_of_a_trial_that_was_not_asked_for_is_an_observation():
    records = observations(25)
    told = Suggestions(MIXED, 5, 1, len(records))
    for record in records:
        told.tell(record.name, record.hyperparameters, (hill(record.hyperparameters),))
    assert told.ask("a", anything) == rebuilt(records).ask("a", anything)


def test_several_objectives_are_searched_together():
    """The front of x and 1 - x is everywhere; away from it the third field costs both."""
    space = {
        "loss.lambda_recon": tune.uniform(0, 1),
        "loss.lambda_gradient": zero_or_log(0.01, 4),
    }
    suggestions = Suggestions(space, 0, 2)
    candidates = []
    for number in range(60):
        hyperparameters = suggestions.ask(str(number), anything)
        x, cost = hyperparameters["loss.lambda_recon"], hyperparameters["loss.lambda_gradient"]
        suggestions.tell(str(number), hyperparameters, (x - cost, 1 - x - cost))
        candidates.append(hyperparameters)
    late = candidates[30:]
    costs = [hyperparameters["loss.lambda_gradient"] for hyperparameters in candidates]
    assert np.mean(costs[30:]) < np.mean(costs[:10])
    recon = [hyperparameters["loss.lambda_recon"] for hyperparameters in late]
    assert min(recon) < 0.25
    assert max(recon) > 0.75


def test_an_objective_that_is_missing_stops_no_search():
    suggestions = Suggestions(MIXED, 0, 2)
    for number in range(20):
        hyperparameters = suggestions.ask(str(number), anything)
        second = -math.inf if number % 3 == 0 else hill(hyperparameters)
        suggestions.tell(str(number), hyperparameters, (hill(hyperparameters), second))
    assert inside(MIXED, suggestions.ask("next", anything))


# --- Optuna's form


@pytest.mark.parametrize("kind", QUANTIZED)
def test_suggestions_keep_to_the_steps_of_a_domain(kind):
    domain = RANGES[kind](*QUANTIZED[kind])
    space = {"loss.lambda_recon": domain}
    rng = np.random.default_rng(0)
    possible = {round(draw(space, rng)["loss.lambda_recon"], 9) for _ in range(500)}
    suggestions = Suggestions(space, 0, 1)
    for number in range(15):
        hyperparameters = suggestions.ask(str(number), anything)
        suggestions.tell(str(number), hyperparameters, (float(number),))
        assert round(hyperparameters["loss.lambda_recon"], 9) in possible
    suggestions.observe(draw(space, rng), (1.0,))


# --- as Ray Tune asks


def test_known_trials_come_first_and_then_suggested_ones():
    suggestions = Suggestions(WEIGHT, 0, 1)
    first = [TrialRecord("00003", {"loss.lambda_bce": 0.5})]
    made = []

    def create(ask: Callable[[str], Hyperparameters]) -> TrialRecord | None:
        if len(made) == 2:
            return None
        made.append(TrialRecord(f"0000{4 + len(made)}", ask(f"0000{4 + len(made)}")))
        return made[-1]

    searcher = SuggestingSearcher(suggestions, first, create, lambda _: ({}, None), anything)
    found = [searcher.suggest(name) for name in ("t1", "t2", "t3", "t4")]
    assert found[0] == {"trial": {"name": "00003", "hyperparameters": {"loss.lambda_bce": 0.5}}}
    assert found[1:3] == [
        {"trial": {"name": row.name, "hyperparameters": row.hyperparameters}} for row in made
    ]
    assert found[3] == Searcher.FINISHED
    assert len(first) == 1


def test_outcomes_are_told_once_whatever_tune_reports():
    told = []

    class Recording(Suggestions):
        def tell(self, name, hyperparameters, scores):
            told.append((name, hyperparameters, scores))

    outcomes = {"00000": ({"loss.lambda_bce": 0.5}, (1.0,)), "00001": ({}, None)}
    first = [TrialRecord(name, hyperparameters) for name, (hyperparameters, _) in outcomes.items()]
    suggestions = Recording(WEIGHT, 0, 1)
    searcher = SuggestingSearcher(
        suggestions, first, lambda _: None, lambda name: outcomes[name], anything
    )
    searcher.suggest("t1")
    searcher.suggest("t2")
    searcher.on_trial_result("t1", {"score": 99.0})
    searcher.on_trial_complete("t1", {"score": 99.0})
    searcher.on_trial_complete("t1")
    searcher.on_trial_complete("t2", error=True)
    searcher.on_trial_complete("unknown")
    assert told == [("00000", {"loss.lambda_bce": 0.5}, (1.0,)), ("00001", {}, None)]


def test_nothing_of_a_searcher_needs_to_be_saved(tmp_path):
    searcher = SuggestingSearcher(
        Suggestions(WEIGHT, 0, 1), [], lambda _: None, lambda _: ({}, None), anything
    )
    searcher.save_to_dir(str(tmp_path))
    searcher.save(str(tmp_path / "state"))
    searcher.restore(str(tmp_path / "state"))
    assert not list(tmp_path.iterdir())


def test_a_sweep_interrupted_before_any_trial_ended_suggests_other_hyperparameters(
    tmp_path, monkeypatch
):
    plan = SweepPlan(
        "lambdas",
        "id",
        UNET,
        space_to_plain(MIXED),
        SweepConfig(trials=8, search="optuna"),
    )
    calls = 4

    def some(folder, plan, callback, trials, searcher, *rest):  # noqa: ARG001
        for number in range(calls):
            searcher.suggest(f"t{number}")

    monkeypatch.setattr(distsynth.sweep.tuner, "fit", some)
    folder = SweepFolder(tmp_path)
    folder.write_plan(plan)
    for calls in (4, 9):  # noqa: B007
        callback = SweepCallback(folder, plan, folder.records())
        distsynth.sweep.tuner.search(folder, plan, MIXED, callback)
    candidates = [record.hyperparameters for record in folder.records().values()]
    assert len(candidates) == 8
    assert len({repr(sorted(hyperparameters.items())) for hyperparameters in candidates}) == 8


# --- what matters
