"""The state of a training: all that must be saved so that an interrupted run goes on bit for bit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import NotRequired

from data.batches import Batches
from data.dataset import DataState, data_change
from models.denoiser import Denoiser
from models.pyramid import PYRAMID, SOURCE
from training.losses import Generators
from training.parallel import ALONE, Team
from utils.checkpoint import Dense, Weights, check_weights, link_checkpoint, load_checkpoint, save_checkpoint
from utils.config import load_config
from utils.errors import CheckpointError, UsageError
from utils.reading import damaged, read_json
from utils.runs import checkpoint_path
from utils.schema import Config
from utils.sections import EMAConfig, TrainingConfig
from utils.weights import Images


def ema_decay(ema: EMAConfig, n: int) -> float:
    """Decay of the n-th average: n = 1 for the first step after the start."""
    if ema.kind == "power":  # Karras et al. 2024, eq. 3
        return (1.0 - 1.0 / (n + 1)) ** (ema.gamma + 1.0)
    return min(ema.decay, (1.0 + n) / (10.0 + n))


class Average:
    """The moving average of a model, running statistics of batch norms included; it begins as the model is.

    module: what has the averages. count: of the models in them.
    """

    def __init__(self, model: Denoiser, ema: EMAConfig) -> None:
        self.module, self.ema, self.count = deepcopy(model).requires_grad_(False), ema, 1
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        self._means, self._now = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        self._counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """With the model as it is now."""
        torch._foreach_lerp_(self._means, self._now, 1.0 - ema_decay(self.ema, self.count))
        for own, other in self._counters:
            own.copy_(other)
        self.count += 1


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def learning_rate_factor(training: TrainingConfig, step: int) -> float:
    """Share of the peak learning rate at optimiser step 0, 1, ...: linear warm-up, then constant or cosine to 0."""
    if step < training.warmup:
        return (step + 1) / (training.warmup + 1)
    if training.schedule == "constant":
        return 1.0
    progress = (step - training.warmup) / max(1, training.steps - training.warmup)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def optimizer_of(training: TrainingConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Of all parameters; those of timm's network learn at training.encoder_rate of the rate, if that is not 1."""
    parameters: Any = model.parameters()
    if training.encoder_rate != 1.0:
        named = [(name.startswith(PYRAMID), p) for name, p in model.named_parameters()]
        parameters = [
            {"params": [p for slow, p in named if not slow]},
            {"params": [p for slow, p in named if slow], "lr": training.learning_rate * training.encoder_rate},
        ]
    fused = next(model.parameters()).device.type == "cuda" or None  # one kernel for all tensors
    if training.optimizer == "adam":
        return torch.optim.Adam(parameters, training.learning_rate, fused=fused)
    return torch.optim.AdamW(parameters, training.learning_rate, weight_decay=training.weight_decay, fused=fused)


class Saved(Weights):
    """A checkpoint to go on from, see `TrainingState.state_dict`. since_row, device: absent in old ones."""

    model: dict[str, Dense]
    best: NotRequired[float]
    best_f1: float
    averaged: int
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    batches: dict[str, Dense]
    generators: dict[str, Dense | list[Dense]]
    since_row: NotRequired[dict[str, float]]
    device: NotRequired[str]


class TrainingState:
    """Denoiser, its average, optimiser, schedule, data order and generators.

    images: what predictions on other images need to know of the training images. since_row: sums over the steps that
    no row of metrics.csv speaks of yet, see `Recorder`. team: of processes that are in the same state.
    """

    def __init__(
        self, model: Denoiser, training: TrainingConfig, batches: Batches, seed: int, images: Images, team: Team = ALONE
    ) -> None:
        self.model, self.batches, self.seed, self.images, self.team = model, batches, seed, images, team
        self.losses_of = team.losses_of(model)
        self.average = Average(model, training.ema)
        self.optimizer = optimizer_of(training, model)
        self.schedule = LambdaLR(self.optimizer, lambda step: learning_rate_factor(training, step))
        self.device = next(model.parameters()).device
        times, noise = (torch.Generator(where).manual_seed(seed) for where in ("cpu", self.device))
        self.generators = Generators(times, noise, team.share)
        self.step = 0
        self.start: list[str] = []  # what the log says of the weights it began with
        self.best = math.inf  # least is best
        self.best_f1 = -1.0  # of the best checkpoint
        self.since_row: Counter[str] = Counter()

    def is_finite(self) -> bool:
        """Whether all weights and their averages are."""
        tensors = [x for model in (self.model, self.average.module) for x in _tensors(model) if x.is_floating_point()]
        return bool(torch.stack([torch.isfinite(x).all() for x in tensors]).all())

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, to be read with weights_only=True."""
        cuda = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        return {
            "step": self.step,
            "best": self.best,
            "best_f1": self.best_f1,
            "images": self.images,
            "model": self.model.state_dict(),
            "ema": self.average.module.state_dict(),
            "since_row": dict(self.since_row),
            "averaged": self.average.count,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "batches": self.batches.state_dict(),
            "device": self.device.type,
            "generators": {
                "times": self.generators.times.get_state(),
                "noise": self.generators.noise.get_state(),
                "torch": torch.get_rng_state(),
                "cuda": cuda,
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`; weights of another architecture must have been refused before.

        From a CPU to a GPU or back, the noise begins anew, by seed and step, as their generators differ.
        """
        self.step, self.best_f1 = state["step"], state["best_f1"]
        self.best = state.get("best", -self.best_f1)
        self.since_row = Counter(state.get("since_row"))
        self.model.load_state_dict(state["model"])
        self.average.module.load_state_dict(state["ema"])
        self.average.count = state["averaged"]
        # Rates and the like are those of the config, which may have changed.
        saved = zip(self.optimizer.param_groups, state["optimizer"]["param_groups"], strict=True)
        groups = [{**own, "params": group["params"]} for own, group in saved]
        self.optimizer.load_state_dict({**state["optimizer"], "param_groups": groups})
        for parameter, moments in self.optimizer.state.items():
            if any(isinstance(m, Tensor) and m.shape not in ((), parameter.shape) for m in moments.values()):
                raise ValueError("the optimizer's moments are of another shape than the weights")
        self.schedule.load_state_dict({**state["schedule"], "base_lrs": self.schedule.base_lrs})
        rates = zip(self.optimizer.param_groups, self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        for group, base, factor in rates:
            group["lr"] = base * factor(self.schedule.last_epoch)
        self.batches.load_state_dict(state["batches"])
        generators = state["generators"]
        self.generators.times.set_state(generators["times"])
        if state.get("device", "cuda" if generators["cuda"] else "cpu") == self.device.type:
            self.generators.noise.set_state(generators["noise"])
        else:
            self.generators.noise.manual_seed(self.seed + self.step)
        torch.set_rng_state(generators["torch"])
        if generators["cuda"] and self.device.type == "cuda":
            torch.cuda.set_rng_state(generators["cuda"][0], self.device)  # old checkpoints have those of all GPUs


def weights_to_start_from(path: Path) -> tuple[dict[str, Tensor], Path]:
    """Averaged weights and their file; path: see training.start_from. Raises UsageError or CheckpointError."""
    file = checkpoint_path(path, "best") if path.is_dir() else path
    return load_checkpoint(file)["ema"], file


# What belongs to the images of a training, and to what its state dict leaves out.
_OWN = ("sigma_data", "sigma_image", f"encoder.{SOURCE}")


def start_from(model: Denoiser, path: Path) -> list[str]:
    """Take over all weights that have the name and shape of the model's own; the rest keeps its start.

    path: see training.start_from. Returns lines that say what was not taken over. Raises CheckpointError where no
    matrix or convolution fits, or where one that does is not finite.
    """
    weights, file = weights_to_start_from(path)
    own = {key: w for key, w in model.state_dict().items() if key not in _OWN}
    weights = {key: w for key, w in weights.items() if key not in _OWN}
    fits = {key: w for key, w in weights.items() if key in own and w.shape == own[key].shape}
    if not any(w.ndim > 1 for w in fits.values()):
        check_weights(own, weights, file)
        raise CheckpointError(f"{file}: no weights of it fit this network")
    check_weights({key: own[key] for key in fits}, fits, file)
    model.load_state_dict({**model.state_dict(), **fits})
    kept = {key: own[key].numel() for key in own if key not in fits}
    shapes = [
        f"{key} {tuple(weights[key].shape)}, here {tuple(own[key].shape)}" if key in weights else f"{key}, not in it"
        for key in kept
    ]
    count = sum(w.numel() for w in fits.values())
    lines = [f"begins with {file}: {len(fits)} of {len(own)} tensors, {count / 1e6:.3g} M numbers"]
    if kept:
        lines.append(f"{len(kept)} tensors, {sum(kept.values()) / 1e6:.3g} M numbers, keep their start: {_few(shapes)}")
    if unused := [key for key in weights if key not in own]:
        lines.append(f"{len(unused)} tensors of {file} have no place here: {_few(unused)}")
    return lines


def _few(names: Sequence[str]) -> str:
    return "; ".join(names[:4]) + (f"; and {len(names) - 4} more" if len(names) > 4 else "")


def save_state(state: TrainingState, config: Config, folder: Path, *, best: bool) -> None:
    """Write step_XXXXXXXX.pt, name it best.pt if it is, and last.pt, and drop numbered files beyond training.keep.

    Raises UsageError, and writes nothing, if weights are not finite.
    """
    if not state.is_finite():
        raise UsageError(f"step {state.step}: weights are not finite; {last_good(folder)}")
    path = folder / f"step_{state.step:08d}.pt"
    save_checkpoint({"config": config.model_dump(mode="json"), **state.state_dict()}, path)
    if best:  # before last.pt, which already says that this is the best so far
        link_checkpoint(path, folder / "best.pt")
    link_checkpoint(path, folder / "last.pt")
    for old in sorted(folder.glob("step_*.pt"))[: -config.training.keep]:
        old.unlink()


def last_good(folder: Path) -> str:
    """The checkpoint to go back to, for an error."""
    last = folder / "last.pt"
    return f"last good checkpoint: {last if last.exists() else 'none'}"


# What may differ between a run and its continuation.
_FREE = {"name", "training", "sampling", "evaluation"}


def checked_resume(run: Path, config: Config, data: DataState, state: TrainingState) -> None:
    """Load last.pt of a run into `state`; a run that was killed before its first checkpoint begins anew.

    data: the `data_state` of now.

    Raises UsageError if the run was made with other data, model, process, seed or encoder_rate, CheckpointError if its
    checkpoint cannot be used.
    """
    before, now = load_config(run / "config.yaml").model_dump(), config.model_dump()
    fixed = {section: (before[section], now[section]) for section in before if section not in _FREE}
    # It decides on the groups of the optimiser.
    fixed["training.encoder_rate"] = before["training"]["encoder_rate"], now["training"]["encoder_rate"]
    for key, (was, new) in fixed.items():
        if was != new:
            raise UsageError(f"--resume {run}: {_difference(key, was, new)}")
    path = run / "checkpoints" / "last.pt"
    if not path.is_file() and len(list(path.parent.glob("step_*.pt"))) < 2:
        return
    if change := data_change(read_json(run / "environment.json", DataState), data):
        raise UsageError(f"--resume {run}: {change}; its training cannot go on with other data")
    saved = load_checkpoint(path, Saved)
    for weights in (saved["model"], saved["ema"]):
        check_weights(state.model.state_dict(), weights, path)
    with damaged(path, CheckpointError):
        state.load_state_dict(saved)
    if before["evaluation"] != now["evaluation"]:
        state.best = math.inf  # by another measure


def _difference(key: str, before: Any, now: Any) -> str:
    if isinstance(before, dict):
        inner = next(name for name in before if before[name] != now[name])
        return _difference(f"{key}.{inner}", before[inner], now[inner])
    return f"{key} was {before!r} in that run and is {now!r} now"
