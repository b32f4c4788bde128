"""How the weights are found, whatever the network and its loss."""

from __future__ import annotations

from ray import tune

from tune_spaces.domains import Space, zero_or_log


def recipes() -> Space:
    """Momenta, schedule and warm-up, weight decay, clipping and the average of the weights."""
    return {
        "optim.beta1": tune.choice([0.5, 0.9]),
        "optim.beta2": tune.choice([0.99, 0.999]),
        "optim.schedule": tune.choice(["constant", "linear", "cosine"]),
        "optim.warmup_steps": tune.choice([0, 50, 200]),
        "optim.weight_decay": zero_or_log(1e-5, 1e-1),
        "optim.clip_norm": tune.choice([0.0, 1.0]),
        "optim.average": tune.choice([0.0, 0.99, 0.995, 0.999]),
    }
