"""Image encoders of timm: a feature pyramid, pretrained perhaps, and a way down from its context to every pixel."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import group_norm
from models.unet import Entry, Trunk, pad_to_multiple
from utils.errors import CheckpointError, UsageError, cut
from utils.weights import digest

PYRAMID = "encoder.pyramid."  # what timm's parameters are called in a denoiser
SEED = 7_340_033  # of tensors that are compared; a seed that nobody has made weights with
SOURCE = "source"  # in a state dict the digest of what it leaves out


def timm_pyramid(name: str, pretrained: bool | str = False) -> Any:
    """The network of timm that gives feature maps (B, c, h, w), finest first, of images (B, 3, H, W).

    pretrained: see model.encoder.pretrained. Raises UsageError where there is no timm, no such network, or no weights.
    """
    try:
        import timm
    except ImportError:
        raise UsageError("model.encoder.kind: timm needs timm; install it with: pip install timm") from None
    logging.getLogger("timm").setLevel(logging.ERROR)  # it warns of keys that maps do not need
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"did you mean {near[0]}?" if near else "timm.list_models() has all names"
        raise UsageError(f"model.encoder.name: timm has no {cut(name)}; {hint}")
    where = f"model.encoder.pretrained: {cut(str(pretrained).lower() if pretrained is True else pretrained, 120)}"
    if isinstance(pretrained, str) and not Path(pretrained).is_file():
        raise UsageError(f"{where}: no such file")
    options: dict[str, Any] = {"features_only": True, "pretrained": bool(pretrained)}
    if isinstance(pretrained, str):
        options["pretrained_cfg_overlay"] = {"file": pretrained}
    if (timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()).fixed_input_size:
        options["dynamic_img_size"] = True
    try:
        return timm.create_model(name, **options)
    except Exception as error:  # of timm, of its hub, of a network, of a file
        if not pretrained:
            reason = cut(error, 120)
            raise UsageError(f"model.encoder.name: {name} gives no maps of images of any size ({reason})") from None
        what = f"these are no weights of {name}" if isinstance(pretrained, str) else f"no weights of {name} to be had"
        raise UsageError(f"{where}: {what} ({cut(error, 150)})") from None


def source_weights(name: str, source: bool | str) -> dict[str, Tensor]:
    """Of timm's pyramid; source: see model.encoder.pretrained, not false. Raises UsageError, see `timm_pyramid`."""
    random, other, weights = (_seeded_state(name, *how) for how in ((False, SEED), (False, SEED + 1), (source, SEED)))
    # What the source does not have is as in a random network of the same seed; what no seed changes needs no source.
    absent = [key for key, w in weights.items() if torch.equal(w, random[key]) and not torch.equal(w, other[key])]
    if absent:
        raise UsageError(
            f"model.encoder.pretrained: {cut(source, 120)}: no weights of {name}: {len(absent)} of {len(weights)} "
            f"tensors are absent, {cut(absent[0])} for one"
        )
    return weights


def _seeded_state(name: str, source: bool | str, seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(timm_pyramid(name, source).state_dict())


@dataclass(frozen=True)
class Pretrained:
    """Of `PyramidEncoder`. name: in timm. source: of its weights, see model.encoder.pretrained. frozen: its parameters
    and running statistics stay as they are."""

    name: str = "resnet18"
    source: bool | str = False
    frozen: bool = False


class PyramidEncoder(nn.Module):
    """The image (B, in_channels, H, W) in [-1, 1] to one feature map for each level of the conditional network.

    The maps of timm are projected to `channels` and added up from the coarsest to the finest (Lin et al. 2017); a few
    convolutions give the levels that are finer than those of timm. Sizes may be any. A grey image is shown in all three
    colours, and images get the mean and std that timm's weights were trained with.

    Weights are random until `load_source`. What is frozen and has a source is left out of the state dict, which has a
    digest of it; the source has to be loaded before the state. Raises UsageError, see `timm_pyramid`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, in_channels: int, pretrained: Pretrained, channels: int, trunk: Trunk) -> None:
        super().__init__()
        self.name, self.source, self.frozen = pretrained.name, pretrained.source, pretrained.frozen
        name = self.name
        self.pyramid = timm_pyramid(name)
        reductions: list[int] = self.pyramid.feature_info.reduction()
        if any(reduction & (reduction - 1) for reduction in reductions):
            raise UsageError(f"model.encoder.name: maps of {name} are 1/{reductions[-1]} of the size, no power of 2")
        first, self.factor = trunk.scales[0], trunk.scales[-1]
        self.first, found = int(math.log2(first)), [int(math.log2(reduction)) for reduction in reductions]
        # By level, the last one; none finer than the network's, if there are others.
        self.index = {level: i for i, level in enumerate(found) if level >= min(self.first, max(found))}
        self.stride = max(*reductions, self.factor)
        config = self.pyramid.pretrained_cfg
        for key, usual in (("mean", 0.5), ("std", 0.5)):
            values = torch.tensor(config.get(key) or [usual] * 3).view(1, 3, 1, 1)
            self.register_buffer(key, values, persistent=False)
        counts = self.pyramid.feature_info.channels()
        self.lateral = nn.ModuleDict(
            {
                str(level): nn.Sequential(group_norm(counts[i]), nn.Conv2d(counts[i], channels, 1))
                for level, i in self.index.items()
            }
        )
        self.stem = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, stride=2) if i else Entry(in_channels, channels, first)
            for i in range(min(self.index) - self.first)
        )
        self.project = nn.ModuleList(
            nn.Sequential(group_norm(channels), nn.SiLU(), nn.Conv2d(channels, width, 1)) for width in trunk.widths
        )
        self.channels_at_end = getattr(self.pyramid, "output_fmt", "NCHW") == "NHWC"
        self.digest = torch.zeros(32, dtype=torch.uint8)
        self.register_state_dict_post_hook(_leave_out)
        self.register_load_state_dict_pre_hook(_put_in)
        if self.frozen:
            self.pyramid.requires_grad_(False)
        self._check_maps()
        self.train()

    @property
    def kept_apart(self) -> bool:
        """Whether the state dict leaves timm's weights out."""
        return self.frozen and self.source is not False

    def load_source(self) -> None:
        """Take timm's weights from where they are, if anywhere. Raises UsageError."""
        if self.source is False:
            return
        weights = source_weights(self.name, self.source)
        self.pyramid.load_state_dict(weights)
        self.digest = torch.tensor(list(bytes.fromhex(digest({}, weights))), dtype=torch.uint8)

    def share_norms(self) -> None:
        """Turn timm's batch norms into those that several processes share, with the activations in them, which torch's
        own function leaves out."""
        import timm

        self.pyramid = timm.layers.norm_act.convert_sync_batchnorm(self.pyramid)

    def train(self, mode: bool = True) -> PyramidEncoder:
        super().train(mode)
        if self.frozen:
            self.pyramid.eval()
        return self

    def forward(self, image: Tensor) -> list[Tensor]:
        padded = pad_to_multiple(image, self.stride)
        maps = self._maps((padded.expand(-1, 3, -1, -1) * 0.5 + 0.5 - self.mean) / self.std)
        inputs = {level: self.lateral[str(level)](maps[i]) for level, i in self.index.items()}
        x = padded
        for level, convolution in enumerate(self.stem, start=self.first):
            inputs[level] = x = F.silu(convolution(x))
        coarsest = max(inputs)
        levels = {coarsest: inputs[coarsest]}
        for level in reversed(range(self.first, coarsest)):
            above = F.interpolate(levels[level + 1], scale_factor=2.0)
            levels[level] = above + inputs[level] if level in inputs else above
        for level in range(coarsest + 1, self.first + len(self.project)):
            levels[level] = F.avg_pool2d(levels[level - 1], 2)
        rows, columns = (-(-size // self.factor) * self.factor for size in image.shape[-2:])
        return [
            project(levels[level])[..., : rows >> level, : columns >> level]
            for level, project in enumerate(self.project, start=self.first)
        ]

    def _maps(self, image: Tensor) -> list[Tensor]:
        maps = self.pyramid(image)
        return [x.permute(0, 3, 1, 2) for x in maps] if self.channels_at_end else list(maps)

    @torch.no_grad()
    def _check_maps(self) -> None:
        """Raises UsageError where timm gives anything but maps (B, c, h, w) of the sizes it says."""
        self.eval()
        size = 2 * self.stride
        try:
            maps = self._maps(torch.zeros(1, 3, size, size))
            shapes = {level: tuple(maps[i].shape[1:]) for level, i in self.index.items()}
        except Exception as error:  # of any network
            raise UsageError(f"model.encoder.name: {self.name} cannot encode {size}x{size} ({cut(error)})") from None
        counts = self.pyramid.feature_info.channels()
        for level, i in self.index.items():
            if shapes[level] != (expected := (counts[i], size >> level, size >> level)):
                raise UsageError(f"model.encoder.name: {self.name} gives a map {shapes[level]}, not {expected}")


def _leave_out(encoder: Any, state: dict[str, Any], prefix: str, _: object) -> None:
    if encoder.kept_apart:
        for key in [key for key in state if key.startswith(f"{prefix}pyramid.")]:
            del state[key]
        state[prefix + SOURCE] = encoder.digest


def _put_in(encoder: Any, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Raises CheckpointError if the rest was trained with other weights of timm."""
    if encoder.kept_apart:
        if not torch.equal(state.pop(prefix + SOURCE).cpu(), encoder.digest.cpu()):
            raise CheckpointError(
                f"model.encoder.pretrained: {cut(encoder.source, 120)}: other weights than those of the training"
            )
        own: Mapping[str, Tensor] = encoder.pyramid.state_dict()
        state.update({f"{prefix}pyramid.{key}": w for key, w in own.items()})
