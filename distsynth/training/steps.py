"""One optimizer step: supervised, or adversarial (section 6.4).

A batch may come in micro-batches. Their gradients are summed into those of the whole batch, so
that accumulation changes the memory taken and nothing else (but the statistics of BatchNorm).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from distsynth.config import OptimConfig
from distsynth.losses.generator_loss import GeneratorLoss
from distsynth.models.spectral import refresh
from distsynth.training.average import WeightAverage
from distsynth.training.batch_norm import over_all_ranks
from distsynth.training.pace import Pace, rate_factor


class MicroBatch(NamedTuple):
    """What a forward sees.

    Attributes:
        source: Standardised, shape (n, channels, *patch_size).
        target: Standardised, shape (n, 1, *patch_size).
        inside: Whether a voxel lies in the specimen's mask, shape of target; None where no loss
            asks for it.
    """

    source: Tensor
    target: Tensor
    inside: Tensor | None = None


Terms = dict[str, Tensor]
"""Loss terms and gradient norms of a step: detached scalars on the device, no synchronisation."""


def make_accelerator(precision: str, cpu: bool) -> Accelerator:
    """The process's accelerator."""
    # Accelerate keeps the first precision and device for good; a process may train several runs.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    return Accelerator(mixed_precision=precision, cpu=cpu)


class Learner:
    """A network with what trains it: AdamW, learning rates, a loss scaler of its own.

    Each network has its own scaler: with a shared one, an overflow in one network would halve the
    scale of the other, and two updates a step would double its pace of growth.

    Attributes:
        network: The network as prepared by Accelerate, wrapped for DDP where there are ranks.
        raw: The same network without the wrapper.
        average: The running average of its weights; None without one.
        mixes_batch: Whether its output for a patch depends on the others of the batch.
    """

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float,
        config: OptimConfig,
        pace: Pace,
        accelerator: Accelerator,
        average: float = 0.0,
    ) -> None:
        if accelerator.num_processes > 1:
            network = over_all_ranks(network, accelerator.device)
        self.network: nn.Module = accelerator.prepare_model(network)
        if isinstance(self.network, DistributedDataParallel):
            # Two forwards before one backward, of target and synthetic through the discriminator,
            # would find BatchNorm's statistics changed in place if each forward broadcast them.
            # Set here, because torch deprecates the argument of the same name.
            self.network.broadcast_buffers = False
        self.raw: nn.Module = accelerator.unwrap_model(self.network)
        self.mixes_batch = any(isinstance(part, _BatchNorm) for part in self.raw.modules())
        self.average = WeightAverage(self.raw, average) if average else None
        self.optimizer = torch.optim.AdamW(
            self.raw.parameters(),
            lr=learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            # All of a step in one pass over the weights.
            fused=accelerator.device.type in ("cpu", "cuda"),
        )
        self.scaler = torch.amp.GradScaler(  # type: ignore[attr-defined]
            accelerator.device.type, enabled=accelerator.mixed_precision == "fp16"
        )
        self._accelerator = accelerator
        self._config, self._pace, self._base = config, pace, learning_rate

    @property
    def evaluated(self) -> nn.Module:
        """The network that validates and predicts: with averaged weights, if there are any."""
        return self.average.network if self.average else self.raw

    def synchronised(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Ranks exchange gradients in the backward of the last micro-batch only."""
        return contextlib.nullcontext() if last else self._accelerator.no_sync(self.network)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """No gradient reaches the parameters; it still flows through the network."""
        self.raw.requires_grad_(False)
        try:
            yield
        finally:
            self.raw.requires_grad_(True)

    def in_float32(self, *inputs: Tensor) -> Tensor:
        """The output in float32, without autocast, DDP's wrapper and torch.compile.

        A penalty differentiates twice, which half precision spoils and the compiler does not
        support. Ranks exchange its gradients too, if one backward serves it and a forward of
        `network`: they are added to the same weights.
        """
        with torch.autocast(self._accelerator.device.type, enabled=False):
            return type(self.raw).forward(self.raw, *inputs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss."""
        self.scaler.scale(loss).backward()

    def update(self, step: int) -> Tensor:
        """Take one optimizer step.

        Args:
            step: Number of this step in the run, from 0; sets the learning rate.

        Returns:
            The gradient norm before clipping, a scalar on the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self.scaler.unscale_(self.optimizer)
        gradients = [weight.grad for weight in self.raw.parameters() if weight.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self._config.clip_norm:
            nn.utils.clip_grads_with_norm_(self.raw.parameters(), self._config.clip_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        refresh(self.raw)
        if self.average:
            self.average.update(self.raw, step)
        self.optimizer.zero_grad(set_to_none=True)
        return norm.detach()

    @property
    def last_rate(self) -> float:
        """Learning rate of the last update."""
        return self.optimizer.param_groups[0]["lr"]

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step that is taken now."""
        return self._base * rate_factor(self._config, self._pace, step)

    def start_with(self, weights: Mapping[str, Tensor]) -> None:
        """Take over weights; the average starts with them too."""
        self.raw.load_state_dict(weights)
        if self.average:
            self.average.network.load_state_dict(weights)

    def state_dict(self) -> dict[str, Any]:
        """Network, its average if there is one, optimizer and scaler."""
        average = {"average": self.average.network.state_dict()} if self.average else {}
        return average | {
            "network": self.raw.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of state_dict; learning rates follow the configuration, not the state."""
        self.start_with(state["network"])
        if self.average:
            self.average.network.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def supervised_step(
    generator: Learner, loss: GeneratorLoss, micro_batches: Sequence[MicroBatch], step: int
) -> Terms:
    """Update the generator from the pairs alone."""
    share = 1 / len(micro_batches)
    totals: Terms = {}
    for number, (source, target, inside) in enumerate(micro_batches, start=1):
        with generator.synchronised(last=number == len(micro_batches)):
            synthetic = generator.network(source)
            total, terms = loss(
                synthetic, target, source=source, generator=generator.raw, inside=inside
            )
            generator.backward(total * share)
        _add(totals, {**terms, "generator": total}, share)
    totals["grad_norm/generator"] = generator.update(step)
    return totals


def adversarial_step(
    generator: Learner,
    discriminator: Learner,
    loss: GeneratorLoss,
    micro_batches: Sequence[MicroBatch],
    step: int,
    shares: Tensor | None = None,
    with_generator: bool = True,
) -> Terms:
    """Update the discriminator (eq. 1), then the generator against the new one (eq. 5).

    With one micro-batch the generator's forward serves both updates. With several it is computed
    again for its own update: keeping every graph would save no memory.

    Args:
        generator: Updated second.
        discriminator: Updated first.
        loss: The loss of both.
        micro_batches: This rank's part of the batch.
        step: Number of this step in the run, from 0.
        shares: One for each patch of this rank, see interpolation_shares; for a gradient penalty.
        with_generator: Whether the generator learns in this step.
    """
    share = 1 / len(micro_batches)
    single = len(micro_batches) == 1 and with_generator
    totals: Terms = {}
    synthetic = None
    weight = loss.penalty.weight_at(step) if loss.penalty else 0.0
    parts = [None] * len(micro_batches) if shares is None else shares.chunk(len(micro_batches))
    for number, (source, target, _) in enumerate(micro_batches, start=1):
        with torch.set_grad_enabled(single):
            synthetic = generator.network(source) if single else generator.raw(source)
        with discriminator.synchronised(last=number == len(micro_batches)):
            logits = _discriminate(discriminator, source, target, synthetic.detach())
            update = loss.adversarial.discriminator(*logits)
            terms, total = {"discriminator": update}, update
            if loss.penalty and weight:
                score = partial(_score, discriminator, source)
                terms["penalty"] = loss.penalty(
                    score, target, synthetic.detach(), parts[number - 1]
                )
                total = update + weight * terms["penalty"]
            discriminator.backward(total * share)
        _add(totals, terms, share)
    totals["grad_norm/discriminator"] = discriminator.update(step)
    if not with_generator:
        return totals

    with discriminator.frozen():
        for number, batch in enumerate(micro_batches, start=1):
            with generator.synchronised(last=number == len(micro_batches)):
                if not single or synthetic is None:
                    synthetic = generator.network(batch.source)
                total, terms = _adversarial_loss(loss, generator, discriminator, batch, synthetic)
                generator.backward(total * share)
            _add(totals, {**terms, "generator": total}, share)
    totals["grad_norm/generator"] = generator.update(step)
    return totals


def interpolation_shares(seed: int, step: int, batch_size: int) -> Tensor:
    """How much of the target is in each interpolated patch of a batch, for a gradient penalty.

    They depend on nothing but the arguments: a resumed run draws the same, and so do any number of
    ranks and micro-batches.

    Args:
        seed: Of the run.
        step: Number of the step in the run, from 0.
        batch_size: Patches over all ranks.

    Returns:
        Shape (batch_size,), uniform in [0, 1).
    """
    drawn = np.random.default_rng([seed, step, batch_size]).random(batch_size, np.float32)
    return torch.from_numpy(drawn)


def _discriminate(
    discriminator: Learner, source: Tensor, target: Tensor, synthetic: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits of target and synthetic, in one pass unless BatchNorm would mix their statistics."""
    if discriminator.mixes_batch:
        return discriminator.network(target, source), discriminator.network(synthetic, source)
    images, sources = torch.cat((target, synthetic)), torch.cat((source, source))
    real_logits, fake_logits = discriminator.network(images, sources).chunk(2)
    return real_logits, fake_logits


def _adversarial_loss(
    loss: GeneratorLoss,
    generator: Learner,
    discriminator: Learner,
    batch: MicroBatch,
    synthetic: Tensor,
) -> tuple[Tensor, Terms]:
    """The generator's loss, with the discriminator's logits and, where a term asks, features."""
    source, target, inside = batch
    features = None
    if loss.compares_features:
        with torch.no_grad():
            _, real = discriminator.raw(target, source, True)
        logits, fake = discriminator.raw(synthetic, source, True)
        features = fake, real
    else:
        logits = discriminator.raw(synthetic, source)
    return loss(
        *(synthetic, target, logits),
        features=features,
        source=source,
        generator=generator.raw,
        inside=inside,
    )


def _score(discriminator: Learner, source: Tensor, images: Tensor) -> Tensor:
    """Logits of images in float32, for a penalty."""
    return discriminator.in_float32(images, source)


def _add(totals: Terms, terms: Terms, share: float) -> None:
    for name, value in terms.items():
        part = value.detach().float() * share
        totals[name] = totals[name] + part if name in totals else part
