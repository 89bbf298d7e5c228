"""Several processes of torchrun that train one network: each sees its part of every batch.

All draw the random numbers of the whole batch and keep those of their part (`utils/share.py`), so that any number of
processes takes the steps of one, up to rounding.
"""

from __future__ import annotations

from utils.command import StopFlag

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from models.denoiser import Denoiser
from models.layers import Dropout
from models.pyramid import PyramidEncoder
from training.losses import Losses, loss_of
from training.recorder import Taken
from utils.devices import choose_device, own_device
from utils.errors import UsageError, cut
from utils.share import WHOLE, Share, torchrun_share

TIMEOUT = timedelta(days=1)  # the others wait while one validates; torchrun sees by itself who is lost
LOST = re.compile(r"gloo|NCCL|connection (closed|reset|refused)|broken pipe|timed out", re.IGNORECASE)


class LossModule(nn.Module):
    """`loss_of` as the forward pass of a module, which is what DistributedDataParallel looks after."""

    def __init__(self, model: Denoiser) -> None:
        super().__init__()
        self.model = model

    def forward(self, *arguments: Any) -> Losses:
        return loss_of(self.model, *arguments)


class SharedDropout(Dropout):
    """Drops in a part of a batch what one process would drop there."""

    def __init__(self, p: float, share: Share) -> None:
        super().__init__(p)
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        # The numbers follow from the layout, too.
        last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        layout = torch.channels_last if last else torch.contiguous_format
        shape = (len(x) * self.share.count, *x.shape[1:])
        ones = torch.ones(shape, dtype=x.dtype, device=x.device).contiguous(memory_format=layout)
        return x * self.share.of(super().forward(ones))


@dataclass(frozen=True)
class Team:
    """The processes of a training, one by default. share: the part of this one; the first writes what is written."""

    share: Share = WHOLE

    @property
    def leads(self) -> bool:
        return self.share.rank == 0

    def prepared(self, model: Denoiser) -> Denoiser:
        """The model, whose layers that look at more than an element of a batch, or draw numbers, see the whole one.

        Raises UsageError for batch norms on a CPU.
        """
        if self.share.count == 1:
            return model
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in model.modules()):
            if next(model.parameters()).device.type == "cpu":
                raise UsageError("this model has batch norms, which several processes share on GPUs only; use one")
            if isinstance(model.encoder, PyramidEncoder):  # no other part of such a model has any
                model.encoder.share_norms()
            else:
                model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Dropout) and child.p > 0:
                    setattr(module, name, SharedDropout(child.p, self.share))
        return model

    def losses_of(self, model: Denoiser) -> Callable[..., Losses]:
        """`loss_of` this model. Backward, all processes get the mean of their gradients."""
        if self.share.count == 1:
            return partial(loss_of, model)
        # Which parameters have no gradient depends on config and step: sde.mean_first, say.
        warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")
        parallel = nn.parallel.DistributedDataParallel
        return parallel(LossModule(model), find_unused_parameters=True, broadcast_buffers=False)

    def mean(self, losses: Tensor) -> Tensor:
        """Its mean over processes is the mean of all losses, of which each may have another number."""
        if self.share.count == 1:
            return losses.mean()
        total = torch.tensor(len(losses))
        torch.distributed.all_reduce(total)
        return losses.sum() * (self.share.count / int(total))

    def read(self, steps: Sequence[Taken]) -> list[Taken]:
        """Steps on the host, with the losses of all processes: here the host waits for the device."""
        if not steps:
            return []
        counts = [len(step.losses) for step in steps]
        own = [torch.cat(part).cpu().split(counts) for part in ([s.losses for s in steps], [s.t for s in steps])]
        norms = torch.stack([step.norm for step in steps]).cpu()
        parts: list[Any] = [own]
        if self.share.count > 1:
            parts = [None] * self.share.count
            torch.distributed.all_gather_object(parts, own)
        losses, times = ([torch.cat(pieces) for pieces in zip(*(p[i] for p in parts), strict=True)] for i in (0, 1))
        read = zip(steps, losses, times, norms, strict=True)
        return [step._replace(losses=each, t=t, norm=norm) for step, each, t, norm in read]

    def stopped(self, stop: StopFlag) -> bool:
        """Whether a signal has come to any process; then to all of them."""
        if self.share.count == 1:
            return stop()
        number = torch.tensor(stop.number or 0)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
        # One that comes during the exchange is for the next time.
        stop.number = int(number) or stop.number
        return int(number) > 0


ALONE = Team()


@contextmanager
def joined(device: str, batch: int) -> Iterator[tuple[Team, torch.device]]:
    """The team that torchrun has started, or one process, and this one's device.

    batch: images of all processes in a step. Raises UsageError where they cannot be shared out, before anything starts,
    and when another process is lost.
    """
    share = torchrun_share()
    rank, count = share.rank, share.count
    if count == 1:
        yield ALONE, choose_device(device)
        return
    if batch % count:
        raise UsageError(
            f"training.batch: {batch} cannot be shared out to {count} processes; use a multiple of {count}"
        )
    own = own_device(device)
    if rank:
        logging.disable()
    try:
        # Gloo for what is on the host, too, so that who waits for the first process keeps no GPU busy.
        backends = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
        torch.distributed.init_process_group(backends, timeout=TIMEOUT)
        yield Team(share), own
    except RuntimeError as error:
        if not LOST.search(str(error)):
            raise
        raise UsageError(
            f"process {rank} has lost another one of {count} ({cut(error)}); --resume goes on from the last checkpoint"
        ) from None
    torch.distributed.destroy_process_group()
