"""A trained denoiser from its checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from models.baselines import StochasticBaseline
from models.build import denoiser_of, placed, warn_of_prior
from models.denoiser import Denoiser
from models.pooled import AS_IT_IS, PooledDraws, views_of
from models.pyramid import PyramidEncoder
from models.uncertainty import DropoutDraws
from utils.checkpoint import check_weights, load_checkpoint
from utils.config import parse_config
from utils.data_schema import DataConfig
from utils.errors import UsageError
from utils.runs import checked_run
from utils.schema import Config
from utils.sections import ONE_PASS, SamplingConfig
from utils.weights import Images

# Config keys that decide what the weights mean: a run's must be those of its training.
MEANING = ("sde.process", "sde.sigma_min", "sde.sigma_max", "sde.beta_min", "sde.beta_max", "sde.input_scale",
           "sde.prediction", "sde.prior_share", "sde.objective",
           "data.color", "data.truncation", "data.sdf_scale", "data.classes", "data.representation")  # fmt: skip


def load_denoiser(config: Config, path: Path, device: torch.device) -> Denoiser:
    """The averaged weights of a checkpoint in the network of the config, as the config's sampler needs it: with
    dropout for mc_dropout, together with its sampling.members if there are any.

    Raises CheckpointError or UsageError if they do not belong together.
    """
    return loaded(config, path, device)[0]


def loaded(config: Config, path: Path, device: torch.device) -> tuple[Denoiser, Images]:
    """The denoiser, and what the checkpoint says of the images it was trained on. See `load_denoiser`."""
    now = config.model_dump()

    def trained(path: Path) -> tuple[Denoiser, Images]:
        """One network."""
        state = load_checkpoint(path)
        with torch.device("meta"):  # a config may ask for any size, the weights have theirs
            check_weights(denoiser_of(config).state_dict(), state["ema"], path)
        model = denoiser_of(config)
        if isinstance(model.encoder, PyramidEncoder) and model.encoder.kept_apart:
            model.encoder.load_source()
        model.load_state_dict(state["ema"])
        before = parse_config(state["config"], path).model_dump()
        for key in MEANING:
            section, name = key.split(".")
            old, new = before[section][name], now[section][name]
            if old != new:
                raise UsageError(f"{path}: trained with {key}: {old!r}; the config says {new!r}")
        return placed(model, device, config.training.channels_last).eval(), state.get("images", {})

    sampling = config.sampling
    model, images = trained(path)
    members = [model, *(trained(other)[0] for other in member_checkpoints(sampling, path))]
    if not config.is_one_pass and sampling.sampler not in ONE_PASS and "size" in images:
        warn_of_prior(model, images["size"])
    for member in members:
        set_draws(member, sampling)
    return drawing(config.data, sampling, members, images.get("size", (1, 1))), images


def drawing(data: DataConfig, sampling: SamplingConfig, members: Sequence[Denoiser], size: Sequence[int]) -> Denoiser:
    """What the sampler draws from.

    members: the networks; one for mc_dropout. size: (H, W) of training images, which sampling.augment goes by.
    """
    if sampling.sampler == "mc_dropout":
        members = [DropoutDraws(members[0])]
    views = views_of(data.flips, data.rotations, size[0] == size[1]) if sampling.augment else AS_IT_IS
    return PooledDraws(members, views) if len(members) * len(views) > 1 else members[0]


def draw_steps(sampling: SamplingConfig) -> int:
    """Evaluations of a distributional denoiser for a draw."""
    return sampling.steps if sampling.sampler == "ancestral" else 1


def set_draws(model: Denoiser, sampling: SamplingConfig) -> None:
    """Whether a distributional denoiser, or a distribution of logits, gives draws or their mean; and with which spread
    a denoiser does: 1 for several evaluations, the first of which is no draw yet."""
    if isinstance(model, StochasticBaseline):
        model.draws = sampling.sampler == "logits"
    model.distribution &= sampling.sampler not in ONE_PASS
    model.rater = sampling.rater
    if draw_steps(sampling) > 1:
        model.spread.fill_(1.0)
    elif sampling.spread != "auto":
        model.spread.fill_(sampling.spread)


def member_checkpoints(sampling: SamplingConfig, path: Path) -> list[Path]:
    """Those of sampling.members: last.pt if `path`, the first member's, is one, else best.pt.

    Raises UsageError for what is no run folder, and for a run that is named twice.
    """
    name = path.name if path.name == "last.pt" else "best.pt"
    seen = {path.resolve().parent.parent}
    for run in map(Path, sampling.members):
        checked_run(run, "sampling.members: ")
        if run.resolve() in seen:
            raise UsageError(f"sampling.members: {run} is in the ensemble twice; the run that is sampled is its first")
        seen.add(run.resolve())
    return [Path(run, "checkpoints", name) for run in sampling.members]
