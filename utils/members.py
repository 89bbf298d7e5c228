"""Deep ensembles: which runs they are made of, and their sampler."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sde.field import FieldNoise
from sde.noise import DrawNoise
from sde.process import Process
from sde.samplers import Callback, Denoise, Noise
from utils.errors import UsageError
from utils.schema import SamplingConfig


@torch.no_grad()
def each_member(denoise: Denoise, process: Process, noise: Noise, *, callback: Callback | None = None) -> Tensor:
    """Draw d is the mean of member d of a `DeepEnsemble`, in one evaluation: it gets the number d in place of noise."""
    assert isinstance(noise, DrawNoise | FieldNoise)
    start = noise()
    numbers = torch.tensor([draw for _, draw in noise.draws], dtype=start.dtype, device=start.device)
    m = denoise(numbers.view(-1, 1, 1, 1).expand_as(start), torch.tensor(process.t_max, dtype=torch.float64))
    if callback is not None:
        callback(m, 0.0)
    return m.float()


def member_checkpoints(sampling: SamplingConfig, path: Path) -> list[Path]:
    """Those of sampling.members: last.pt if `path`, the first member's, is one, else best.pt.

    Raises UsageError for what is no run folder, and for a run that is named twice.
    """
    name = path.name if path.name == "last.pt" else "best.pt"
    seen = {path.resolve().parent.parent}
    for run in map(Path, sampling.members):
        if not (run / "config.yaml").is_file():
            raise UsageError(f"sampling.members: {run} is not a run folder (no config.yaml)")
        if run.resolve() in seen:
            raise UsageError(f"sampling.members: {run} is in the ensemble twice; the run that is sampled is its first")
        seen.add(run.resolve())
    return [Path(run, "checkpoints", name) for run in sampling.members]
