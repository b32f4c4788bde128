"""BatchNorm over the whole batch, whatever the number of ranks that share it.

PyTorch's SyncBatchNorm does this on GPUs and refuses tensors on a CPU. These layers take its place
there, with the same parameters and buffers under the same names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm


def over_all_ranks(network: nn.Module, device: torch.device) -> nn.Module:
    """A network whose BatchNorm layers take their statistics over the batches of all ranks.

    Args:
        network: Its layers are replaced in place.
        device: Where it is trained.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            # The layer keeps its parameters, buffers and place, and normalises otherwise.
            module.__class__ = RankedBatchNorm
    return network


class RankedBatchNorm(_BatchNorm):
    """BatchNorm over the batches of all ranks, which must be of one size."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of spatial dims."""

    def forward(self, input: Tensor) -> Tensor:
        """(batch, channels, *spatial) -> the same shape."""
        if not self.training:
            return super().forward(input)
        dims = [dim for dim in range(input.dim()) if dim != 1]
        images = input.float()
        own_variance, own_mean = torch.var_mean(images, dims, correction=0)
        # In double precision the difference of squares is as accurate as single precision needs.
        moments = torch.stack((own_mean, own_variance)).double()
        moments = torch.stack((moments[0], moments[1] + moments[0].square()))
        moments = _SumOverRanks.apply(moments) / torch.distributed.get_world_size()
        mean, variance = moments[0], moments[1] - moments[0].square()
        self._remember(mean.detach(), variance.detach(), input.numel() // input.shape[1])
        scale = (variance + self.eps).rsqrt() * self.weight
        shift = self.bias - mean * scale
        shape = [1, -1] + [1] * (input.dim() - 2)
        return (images * scale.float().view(shape) + shift.float().view(shape)).to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor, own_count: int) -> None:
        """Bring the running statistics nearer to those of this batch."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        count = own_count * torch.distributed.get_world_size()
        unbiased = variance * (count / max(count - 1, 1))
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)
        self.num_batches_tracked.add_(1)


class _SumOverRanks(Function):
    """The sum of a tensor over all ranks; so is the gradient, as the ranks' losses are summed."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        del ctx
        total = value.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        del ctx
        total = gradient.clone()
        torch.distributed.all_reduce(total)
        return total
