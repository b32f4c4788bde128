"""Hyperparameters that Optuna suggests: TPE over the scores of finished trials."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import LogUniform

from distsynth.errors import ConfigError
from distsynth.sweep.folder import TrialRecord
from distsynth.sweep.hyperparameters import Hyperparameters, Space, plain

TRIES = 100
"""Suggestions in a row that may make no valid configuration."""
MAXIMIZE = optuna.study.StudyDirection.MAXIMIZE
PRIMITIVE = (str, int, float, bool, type(None))


class Suggestions:
    """An Optuna study over a space.

    All of its state is in the records of the trials: a study built from them has the same
    observations. Its random numbers continue from the number of suggestions that were drawn.

    Args:
        space: Dotted field to domain.
        seed: The seed of the sampler.
        objectives: How many scores a trial has; all are maximised.
        drawn: Number of suggestions that this search has drawn before, with or without a score.
    """

    def __init__(self, space: Space, seed: int, objectives: int, drawn: int = 0) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._distributions = distributions(space)
        with warnings.catch_warnings():
            # constant_liar is marked experimental.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=seed + drawn, n_startup_trials=10, constant_liar=True
            )
        self._study = optuna.create_study(sampler=sampler, directions=[MAXIMIZE] * objectives)
        self._asked: dict[str, optuna.trial.Trial] = {}

    def observe(self, hyperparameters: Hyperparameters, scores: tuple[float, ...] | None) -> None:
        """Add a trial that has ended; one without scores has failed."""
        self._study.add_trial(frozen(self._space, self._distributions, hyperparameters, scores))

    def ask(self, name: str, valid: Callable[[Hyperparameters], str | None]) -> Hyperparameters:
        """The next hyperparameters.

        Raises:
            ConfigError: If no suggestion makes a valid configuration.
        """
        reason = None
        for _ in range(TRIES):
            trial = self._study.ask(self._distributions)
            hyperparameters = decode(self._space, trial.params)
            reason = valid(hyperparameters)
            if reason is None:
                self._asked[name] = trial
                return hyperparameters
            self._study.tell(trial, state=TrialState.FAIL)
        raise ConfigError(
            f"optuna found no hyperparameters that make a valid configuration: {reason}"
        )

    def tell(
        self, name: str, hyperparameters: Hyperparameters, scores: tuple[float, ...] | None
    ) -> None:
        """Report the outcome of a trial; one without scores has failed."""
        trial = self._asked.pop(name, None)
        if trial is None:
            self.observe(hyperparameters, scores)
        elif scores is None:
            self._study.tell(trial, state=TrialState.FAIL)
        else:
            self._study.tell(trial, list(scores))


class SuggestingSearcher(Searcher):
    """Gives Ray Tune the suggestions of a study.

    Args:
        suggestions: The study.
        first: Trials to run before any is suggested: interrupted ones, presets.
        create: Makes the record of the next suggestion; None when there are enough trials.
        outcome: A trial's scores, None if it failed.
        valid: Why hyperparameters make no valid configuration; None if they do.
    """

    def __init__(
        self,
        suggestions: Suggestions,
        first: Iterable[TrialRecord],
        create: Callable[[Callable[[str], Hyperparameters]], TrialRecord | None],
        outcome: Callable[[str], tuple[Hyperparameters, tuple[float, ...] | None]],
        valid: Callable[[Hyperparameters], str | None],
    ) -> None:
        super().__init__()
        self._suggestions, self._valid = suggestions, valid
        self._first, self._create, self._outcome = list(first), create, outcome
        self._names: dict[str, str] = {}

    def suggest(self, trial_id: str) -> Any:
        """The configuration of the next trial, as Tune hands it to the trainable."""
        if self._first:
            record = self._first.pop(0)
        else:
            found = self._create(lambda name: self._suggestions.ask(name, self._valid))
            if found is None:
                return Searcher.FINISHED
            record = found
        self._names[trial_id] = record.name
        return {"trial": {"name": record.name, "hyperparameters": record.hyperparameters}}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Report the outcome to the study."""
        del result, error
        name = self._names.pop(trial_id, None)
        if name is not None:
            self._suggestions.tell(name, *self._outcome(name))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """TPE learns from finished trials alone."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: the records of the trials are the state."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the records of the trials are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study is built again from the records of the trials."""


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Optuna's form of a space; values that are not plain ones are named by their JSON."""
    found: dict[str, BaseDistribution] = {}
    for name, domain in space.items():
        if hasattr(domain, "categories"):
            found[name] = CategoricalDistribution([_key(option) for option in domain.categories])
        elif step := _step(domain):
            # By the number of the step: Optuna counts steps from the lower bound, Ray from 0.
            log = isinstance(domain.get_sampler().sampler, LogUniform)
            low = math.ceil(domain.lower / step - 1e-9)
            high = math.floor(domain.upper / step + 1e-9)
            found[name] = IntDistribution(low, high, log=log)
        else:
            found[name] = OptunaSearch.convert_search_space({name: domain})[name]
    return found


def decode(space: Space, params: Mapping[str, Any]) -> Hyperparameters:
    """Hyperparameters from Optuna's form of them."""
    hyperparameters: Hyperparameters = {}
    for name, value in params.items():
        domain = space[name]
        if hasattr(domain, "categories"):
            hyperparameters[name] = next(plain(o) for o in domain.categories if _key(o) == value)
        elif step := _step(domain):
            hyperparameters[name] = plain(domain.cast(value * step))
        else:
            hyperparameters[name] = plain(domain.cast(value))
    return hyperparameters


def encode(space: Space, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters in Optuna's form."""
    params = {}
    for name, domain in space.items():
        value = hyperparameters[name]
        if hasattr(domain, "categories"):
            params[name] = _key(value)
        elif step := _step(domain):
            params[name] = round(value / step)
        else:
            # Optuna cannot hold a zero on a logarithmic scale.
            params[name] = domain.raw(value) if hasattr(domain, "raw") else value
    return params


def frozen(
    space: Space,
    known: dict[str, BaseDistribution],
    hyperparameters: Mapping[str, Any],
    scores: tuple[float, ...] | None,
) -> FrozenTrial:
    """A finished trial as Optuna keeps it."""
    return create_trial(
        params=encode(space, hyperparameters),
        distributions=known,
        values=list(scores) if scores is not None else None,
        state=TrialState.FAIL if scores is None else TrialState.COMPLETE,
    )


def importances(
    space: Space, scored: Iterable[tuple[Hyperparameters, float]], seed: int = 0
) -> dict[str, float]:
    """How much of the variance of the score each field explains (fANOVA), the largest first.

    Returns:
        Field to share, summing to 1; empty for fewer than four trials or equal scores.
    """
    known = distributions(space)
    rows = list(scored)
    candidates = {repr(encode(space, hyperparameters)) for hyperparameters, _ in rows}
    if len(rows) < 4 or len(candidates) < 2 or len({score for _, score in rows}) < 2:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=MAXIMIZE)
    for hyperparameters, score in rows:
        study.add_trial(frozen(space, known, hyperparameters, (score,)))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in found.items()}


def _step(domain: Any) -> Any:
    """The step of a range that has one, else None."""
    return getattr(domain.get_sampler(), "q", None)


def _key(option: Any) -> Any:
    option = plain(option)
    return option if isinstance(option, PRIMITIVE) else json.dumps(option)
