"""The training steps of k networks of one architecture, one after another and as one step.

Packed networks are either mapped, one network's function by `vmap` over stacked weights, or
grouped, one network of k times the channels whose convolutions have k groups. Only what the
presets of benchmarks.packing need is here: two dimensions, one channel, BatchNorm or no norm, an
unconditional discriminator of plain convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from benchmarks.whole_table import Step
from distsynth.config import RunConfig
from distsynth.losses.generator_loss import GeneratorLoss
from distsynth.models import build_discriminator, build_generator
from distsynth.models.generators.unet import UNet
from distsynth.training.steps import MicroBatch, make_accelerator

WAYS = ("vmap", "groups", "groups, channels last")
"""Of packing."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Mapped(nn.Module):
    """Networks as one function of stacked weights, by vmap."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        weights, buffers = stack_module_state(list(networks))
        self._weights: dict[str, Tensor] = {
            name: nn.Parameter(value.detach()) for name, value in weights.items()
        }
        self._state: dict[str, Tensor] = buffers  # type: ignore[assignment]
        self._network = [deepcopy(networks[0]).to("meta")]  # In a list: none of its weights count.
        self.stacked = nn.ParameterList(self._weights.values())

    def forward(self, *images: Tensor) -> Tensor:
        """(k, batch, 1, *spatial) each -> (k, batch, ...)."""

        def one(weights: dict[str, Tensor], buffers: dict[str, Tensor], *given: Tensor) -> Tensor:
            return functional_call(self._network[0], (weights, buffers), given)

        return torch.vmap(one, randomness="error")(self._weights, self._state, *images)

    def statistics(self) -> list[Tensor]:
        """Running means and variances, (k, channels) each."""
        return [value for name, value in self._state.items() if "running" in name]


class Grouped(nn.Module):
    """Networks as one with k times the channels, in k groups that do not touch."""

    def __init__(self, networks: Sequence[nn.Module], channels_last: bool) -> None:
        super().__init__()
        self.residual = bool(getattr(networks[0], "residual", False))
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        joined = join([network.network for network in networks])  # type: ignore[misc]
        self.network = joined.to(memory_format=self._layout)  # type: ignore[call-overload]
        self.count = len(networks)

    def forward(self, images: Tensor, _source: Tensor | None = None) -> Tensor:
        """(k, batch, 1, *spatial) -> (k, batch, 1, ...)."""
        given = images[:, :, 0].transpose(0, 1).contiguous(memory_format=self._layout)
        found = self.network(given)
        found = found + given if self.residual else found
        return found.transpose(0, 1)[:, :, None]

    def statistics(self) -> list[Tensor]:
        """Running means and variances, (k, channels) each."""
        return [
            value.view(self.count, -1)
            for name, value in self.network.named_buffers()
            if "running" in name
        ]


class GroupedUNet(UNet):
    """A U-Net of k groups: skips are concatenated within each group."""

    groups: int

    def forward(self, source: Tensor) -> Tensor:
        """(batch, k, *spatial) -> (batch, k, *spatial)."""
        features, skips = source, []
        for down in self.down:
            features = down(features)
            skips.append(features)
        skips.pop()
        for up in self.up:
            pair = [part.unflatten(1, (self.groups, -1)) for part in (skips.pop(), up(features))]
            features = torch.cat(pair, dim=2).flatten(1, 2)
        return self.last(features)


class GroupedLinear(nn.Module):
    """k linear layers of one output each."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight[0] for layer in layers]).detach())
        self.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]).detach())

    def forward(self, features: Tensor) -> Tensor:
        """(batch, k * inputs) -> (batch, k)."""
        each = features.unflatten(1, self.weight.shape)
        return (each * self.weight).sum(dim=2) + self.bias


def join(networks: Sequence[nn.Module]) -> nn.Module:
    """One network of k groups with the weights of k networks."""
    first, groups = networks[0], len(networks)
    if isinstance(first, nn.Linear):
        return GroupedLinear(networks)  # type: ignore[arg-type]
    joined = deepcopy(first)
    for name, _ in first.named_children():
        setattr(joined, name, join([getattr(network, name) for network in networks]))
    if isinstance(first, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
        for name, _ in first.named_parameters(recurse=False):
            value = torch.cat([getattr(network, name).detach() for network in networks])
            setattr(joined, name, nn.Parameter(value))
        for name, value in first.named_buffers(recurse=False):
            if value.dim():
                setattr(joined, name, value.repeat(groups))
        if isinstance(joined, nn.BatchNorm2d):
            joined.num_features *= groups
        else:
            joined.groups = groups  # type: ignore[union-attr]
            joined.in_channels *= groups  # type: ignore[operator]
            joined.out_channels *= groups  # type: ignore[operator]
    if isinstance(joined, UNet):
        joined.__class__ = GroupedUNet
        joined.groups = groups  # type: ignore[assignment]
    return joined


class Separate:
    """The steps of training, one after another.

    Attributes:
        steps: One a network.
    """

    def __init__(self, config: RunConfig, count: int, batch: int, precision: str) -> None:
        accelerator = make_accelerator(precision, cpu=DEVICE.type == "cpu")
        self.steps = []
        for seed in range(count):
            torch.manual_seed(seed)
            self.steps.append(Step(config, batch, accelerator))

    def __call__(self) -> dict[str, Tensor]:
        """Take them. Losses, (k,) each."""
        found = [step() for step in self.steps]
        return {name: torch.stack([one[name] for one in found]) for name in found[0]}

    def double(self) -> None:
        """Work in double precision from here on."""
        for step in self.steps:
            for learner in step.learners.values():
                learner.raw.double()
            step._pairs = [MicroBatch(p.source.double(), p.target.double()) for p in step._pairs]

    def moments(self, name: str) -> Tensor:
        """Of a network's gradients, (k, weights)."""
        found = [gradients(step.learners[name].optimizer) for step in self.steps]
        return torch.stack([torch.cat([each.flatten() for each in one]) for one in found])

    def statistics(self) -> list[Tensor]:
        """Running means and variances, (k, channels) each."""
        networks = [list(step.learners.values()) for step in self.steps]
        each = [
            [
                value
                for learner in learners
                for name, value in learner.raw.named_buffers()
                if "running" in name
            ]
            for learners in networks
        ]
        return [torch.stack(values) for values in zip(*each, strict=True)]


class Packed:
    """The same steps as one.

    Args:
        config: Of all networks.
        separate: Whose weights and patches to take over; not changed.
        way: One of WAYS.
        precision: "no" or "bf16".
    """

    def __init__(self, config: RunConfig, separate: Separate, way: str, precision: str) -> None:
        batches = [step._pairs[0] for step in separate.steps]
        self.source = torch.stack([batch.source for batch in batches])
        self.target = torch.stack([batch.target for batch in batches])
        self.half = precision == "bf16"
        self.loss = GeneratorLoss(config.loss)
        self.networks: dict[str, Mapped | Grouped] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        rates = {
            "generator": config.optim.lr_generator,
            "discriminator": config.optim.lr_discriminator,
        }
        for name in separate.steps[0].learners:
            networks = [self._copy(config, name, step) for step in separate.steps]
            last = way.endswith("channels last")
            network = Mapped(networks) if way == "vmap" else Grouped(networks, last)
            self.networks[name] = network
            self.optimizers[name] = torch.optim.AdamW(
                network.parameters(),
                lr=rates[name],
                betas=(config.optim.beta1, config.optim.beta2),
                weight_decay=config.optim.weight_decay,
                fused=True,
            )
        self.mixes_batch = config.adversarial and config.discriminator.mixes_batch  # type: ignore[union-attr]

    @staticmethod
    def _copy(config: RunConfig, name: str, step: Step) -> nn.Module:
        size = config.data.sides
        if name == "generator":
            network: nn.Module = build_generator(config.generator, size)
        else:
            network = build_discriminator(config.discriminator, size)
        weights = step.learners[name].raw.state_dict()
        network.to(DEVICE, next(iter(weights.values())).dtype).load_state_dict(weights)
        return network

    def _run(self, name: str, *images: Tensor) -> Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.half):
            output = self.networks[name](*images)
        return output.float() if self.half else output

    def __call__(self) -> dict[str, Tensor]:
        """Take the step. Losses, (k,) each."""
        found: dict[str, Tensor] = {}
        synthetic = self._run("generator", self.source)
        logits = None
        if "discriminator" in self.networks:
            real, fake = self._discriminate(synthetic.detach())
            update = torch.vmap(self.loss.adversarial.discriminator)(real, fake)
            update.sum().backward()
            found["discriminator"] = update.detach()
            self._update("discriminator")
            self.networks["discriminator"].requires_grad_(False)
            logits = self._run("discriminator", synthetic, self.source)
            self.networks["discriminator"].requires_grad_(True)
        given = (synthetic, self.target) + (() if logits is None else (logits,))
        total, terms = torch.vmap(self.loss)(*given)
        total.sum().backward()
        self._update("generator")
        return found | terms | {"generator": total.detach()}

    def _discriminate(self, synthetic: Tensor) -> tuple[Tensor, Tensor]:
        if self.mixes_batch:
            real = self._run("discriminator", self.target, self.source)
            return real, self._run("discriminator", synthetic, self.source)
        images = torch.cat((self.target, synthetic), dim=1)
        sources = torch.cat((self.source, self.source), dim=1)
        real, fake = self._run("discriminator", images, sources).chunk(2, dim=1)
        return real, fake

    def _update(self, name: str) -> None:
        self.optimizers[name].step()
        self.optimizers[name].zero_grad(set_to_none=True)

    def moments(self, name: str) -> Tensor:
        """Of a network's gradients, (k, weights)."""
        count = len(self.source)
        each = gradients(self.optimizers[name])
        return torch.cat([values.reshape(count, -1) for values in each], 1)

    def statistics(self) -> list[Tensor]:
        """Running means and variances, (k, channels) each."""
        return [value for network in self.networks.values() for value in network.statistics()]


def gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """After its first step, a share of the gradients: Adam's first moments."""
    (group,) = optimizer.param_groups
    return [optimizer.state[weight]["exp_avg"] for weight in group["params"]]
