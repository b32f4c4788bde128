"""Whether two search spaces are alike."""

from __future__ import annotations

from typing import Any

from ray.tune.search.sample import Domain


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two spaces are alike: the same domains with the same samplers."""

    def parts(domain: Any) -> Any:
        if not isinstance(domain, Domain):
            return domain
        own = {key: value for key, value in vars(domain).items() if key != "sampler"}
        sampler = domain.get_sampler()
        inner = vars(sampler).get("sampler")
        return type(domain), own, type(sampler), vars(sampler).get("q"), type(inner)

    return list(first) == list(second) and all(
        parts(first[field]) == parts(second[field]) for field in first
    )
