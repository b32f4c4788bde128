"""The plain form of a space: what YAML files hold and JSON records keep.

    loss.lambda_bce: {zero_or_log: [0.01, 4], zero: 0.3}  # zero: share of draws that are 0
    loss.lambda_gradient: {uniform: [0, 3]}
    train.batch_size: {choice: [16, 32]}
    generator.channels: {choice: [[16, 32], [32, 64, 128]]}
    train.seed: {grid: [0, 1, 2]}                         # every value, times everything else

Ranges are `[low, high]`, with a step at the end where the kind starts with q. As in Ray Tune,
integers stop before high unless they have a step. Files may begin with a list `spaces`, see
tune_spaces.named.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from ray import tune
from ray.tune.search.sample import (
    Categorical,
    Domain,
    Float,
    Function,
    Integer,
    LogUniform,
    Quantized,
    Uniform,
)

from tune_spaces.domains import Space, ZeroOrLog, zero_or_log

RANGES: dict[str, Callable[..., Domain]] = {
    "uniform": tune.uniform,
    "quniform": tune.quniform,
    "loguniform": tune.loguniform,
    "qloguniform": tune.qloguniform,
    "randint": tune.randint,
    "qrandint": tune.qrandint,
    "lograndint": tune.lograndint,
    "qlograndint": tune.qlograndint,
    "zero_or_log": zero_or_log,
}
KINDS = (*RANGES, "choice", "grid")

# YAML 1.1 wants a dot and a sign in 1.0e-5 and reads 1e-5 as text.
EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def space_from_plain(mapping: Mapping[str, Any], where: str = "") -> Space:
    """Build the domains that a plain form describes.

    Args:
        mapping: Field to `{kind: arguments}`. Lists in choices become tuples, and text such as
            "1e-5" a number.
        where: The file it was read from, for messages.

    Raises:
        ValueError: Names the file, the field, the rule and the remedy.
    """
    prefix = f"{where}: " if where else ""
    space: Space = {}
    for field, entry in mapping.items():
        if not isinstance(field, str):
            raise ValueError(f"{prefix}{field!r} must be the text of a field; write it in quotes")
        try:
            space[field] = _from_entry(entry)
        except ValueError as error:
            raise ValueError(f"{prefix}{field}: {error}") from None
    return space


def space_to_plain(space: Space) -> dict[str, Any]:
    """The plain form, fit for JSON; `space_from_plain` reads it back.

    Raises:
        ValueError: If a domain has no plain form; names the field and the remedy.
    """
    plain = {}
    for field, domain in space.items():
        try:
            plain[field] = _to_entry(domain)
            _from_entry(plain[field])
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from None
    return plain


def _from_entry(entry: Any) -> Any:
    """The domain of one field."""
    if not isinstance(entry, Mapping):
        wish = entry if isinstance(entry, list) else [entry]
        raise ValueError(f"must be one kind with its arguments, such as {{choice: {wish}}}")
    for key, value in entry.items():
        if key in KINDS or key == "zero":
            continue
        if isinstance(value, Mapping):
            raise ValueError(f"{key} is not a kind of domain; join the names of a field by dots")
        near = difflib.get_close_matches(str(key), (*KINDS, "zero"), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{key} is not a kind of domain{hint} (kinds: {', '.join(KINDS)})")
    kinds = [key for key in entry if key in KINDS]
    if len(kinds) != 1:
        raise ValueError(f"must have exactly one kind, got {kinds} (kinds: {', '.join(KINDS)})")
    kind = kinds[0]
    options = {key: _number(value, False) for key, value in entry.items() if key == "zero"}
    if options and kind != "zero_or_log":
        raise ValueError(f"zero is an option of zero_or_log, not of {kind}; remove it")
    if kind in RANGES:
        return _range(kind, entry[kind], options)
    values = _values(kind, entry[kind])
    return tune.choice(values) if kind == "choice" else tune.grid_search(values)


def _range(kind: str, arguments: Any, options: Mapping[str, float]) -> Domain:
    """A range of numbers; kinds are named as Ray Tune's functions."""
    names = "[low, high, step]" if kind.startswith("q") else "[low, high]"
    if not isinstance(arguments, list | tuple) or len(arguments) != names.count(",") + 1:
        raise ValueError(f"{kind} must have {names}, got {arguments!r}")
    numbers = [_number(value, whole=kind.endswith("randint")) for value in arguments]
    low, high, *steps = numbers
    if not low < high:
        raise ValueError(f"{kind} must have low < high, got {low} and {high}")
    if "log" in kind and low <= 0:
        remedy = "raise it, or search on a linear scale"
        raise ValueError(f"{kind} must have low > 0, got {low}; {remedy}")
    for step in steps:
        if step <= 0:
            raise ValueError(f"{kind} must have a step > 0, got {step}")
        if kind.endswith("randint") and high // step * step < low:
            raise ValueError(f"{kind} must have a multiple of {step} between {low} and {high}")
    try:
        return RANGES[kind](*numbers, **options)
    except ValueError as error:
        if not steps:
            raise
        rule = f"{kind} must have bounds that are multiples of the step {steps[0]}"
        raise ValueError(f"{rule}, got {low} and {high}") from error


def _number(value: Any, whole: bool) -> float:
    """A finite number, whole if it must be; text that reads as one is taken."""
    number = value
    if isinstance(number, str):
        try:
            number = float(number)
        except ValueError:
            number = None
    kind = "a whole number" if whole else "a number"
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise ValueError(f"every argument must be {kind}, got {value!r}")
    if whole and number != int(number):
        raise ValueError(f"every argument must be {kind}, got {value!r}; or use a float kind")
    return int(number) if whole else float(number)


def _values(kind: str, values: Any) -> list[Any]:
    if not isinstance(values, list | tuple) or not values:
        raise ValueError(f"{kind} must have a list of one or more values, got {values!r}")
    return [_value(value) for value in values]


def _value(value: Any) -> Any:
    """A plain value; lists become tuples, and text such as 1e-5 a number."""
    if isinstance(value, list | tuple):
        return tuple(_value(item) for item in value)
    if isinstance(value, str) and EXPONENT.fullmatch(value):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"every value must be finite, got {value}")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"every value must be null, true, false, a number, text or a list of them, got {value!r}"
    )


def _to_entry(domain: Any) -> dict[str, Any]:
    """Inverse of _from_entry."""
    if isinstance(domain, Mapping) and set(domain) == {"grid_search"}:
        return {"grid": _listed(domain["grid_search"])}
    if isinstance(domain, Categorical):
        return {"grid" if domain.is_grid() else "choice": _listed(domain.categories)}
    if isinstance(domain, Function):
        raise ValueError("a function (sample_from) has no plain form; use a choice or a range")
    if not isinstance(domain, Float | Integer):
        raise ValueError(
            f"must be a Ray Tune domain, got {domain!r}; fix a value by a choice of one"
        )

    sampler = domain.get_sampler()
    steps = []
    if isinstance(sampler, Quantized):
        steps = [sampler.q]
        sampler = sampler.sampler
    if isinstance(domain, ZeroOrLog) and not steps:
        return {"zero_or_log": [domain.low, domain.upper], "zero": domain.zero}
    if isinstance(domain, ZeroOrLog) or not isinstance(sampler, Uniform | LogUniform):
        name = f"{'a quantized ' if steps else ''}{type(domain).__name__} drawn {sampler}"
        raise ValueError(f"{name} has no plain form; use uniform, loguniform or zero_or_log")
    whole = isinstance(domain, Integer)
    scale = "log" if isinstance(sampler, LogUniform) else ""
    kind = f"{'q' if steps else ''}{scale}{'randint' if whole else 'uniform'}"
    return {kind: [_number(value, whole) for value in (domain.lower, domain.upper, *steps)]}


def _listed(values: Any) -> list[Any]:
    """Tuples as lists, for JSON; refuses text that would be read back as a number."""
    values = list(values)
    for value in values:
        if isinstance(value, str) and EXPONENT.fullmatch(value):
            raise ValueError(f"{value!r} would be read back as a number; write it as one")
    return [_listed(value) if isinstance(value, list | tuple) else value for value in values]
