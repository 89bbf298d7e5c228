"""Small networks, one config of each kind, and laws whose denoiser is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.patches import Window
from data.rows import Patch
from data.sdf import signed_distance
from models.baselines import Baseline, build_baseline
from models.denoiser import Denoiser, build_denoiser
from models.unet import Sizes
from sampling.drawer import Drawer
from sampling.sampler import Sampler
from sampling.tiled import TiledDrawer
from sde.noise import DrawNoise
from sde.process import VE, Process
from sde.samplers import Denoise, ancestral, posterior_mean
from utils.config import parse_config
from utils.schema import Config


def shake(module: nn.Module) -> None:
    """Leave the zero initialisation, as training does."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter.device)


def noise(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small_denoiser(
    process: Process | None = None, sizes: Sizes | None = None, encoder: Sizes | None = None, **changes: object
) -> Denoiser:
    torch.manual_seed(0)
    sizes, encoder = sizes or Sizes(8, (1, 2), attention=(2,)), encoder or Sizes(8, (1, 2, 2), attention=(4,))
    return build_denoiser(process or VE(), "edm", 1, 1, sizes, encoder, **changes)  # type: ignore[arg-type]


def direct_denoiser(
    prediction: str = "edm", process: Process | None = None, unshuffle: int = 1, **changes: object
) -> Denoiser:
    torch.manual_seed(0)
    sizes, options = Sizes(8, [1, 2], unshuffle=unshuffle), {"direct": True, **changes}
    model = build_denoiser(process or VE(), prediction, 1, 1, sizes, sizes, **options)  # type: ignore[arg-type]
    shake(model)
    return model.eval()


LIBRARY = {"unet": "segmentation_models_pytorch", "unetplusplus": "segmentation_models_pytorch"}


def small_baseline(kind: str, *, image_channels: int = 1, mask_channels: int = 1, dropout: float = 0.0) -> Baseline:
    if kind in LIBRARY:
        pytest.importorskip(LIBRARY[kind])
    torch.manual_seed(0)
    sizes, backbone = Sizes(8, [1, 2, 2], dropout=dropout), "resnet50" if kind == "fcn" else "resnet18"
    return build_baseline(VE(), kind, image_channels, mask_channels, sizes, backbone)


class Pixelwise(Denoiser):
    """m ~ N(x, spread^2) at every pixel on its own, x being the image in [-1, 1]: the denoiser is known."""

    mask_channels, floats_per_pixel, std = 1, 1.0, 0.3

    def __init__(self) -> None:
        super().__init__(VE(0.01, 5.0), "x", nn.Identity(), nn.Identity(), second_moment=True)  # type: ignore[arg-type]

    def features(self, image: Tensor) -> list[Tensor]:
        return [image[:, :1]]

    def forward(self, z: Tensor, t: Tensor, features: Sequence[Tensor]) -> Tensor:
        variance = self.process.sigma(t).item() ** 2
        return features[0] + self.std**2 / (self.std**2 + variance) * (z - features[0])

    def direct_moments(self, features: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor]:
        return features[0], torch.full_like(features[0], self.std**2)


def tiled(model: Denoiser, draws: int, sampler: Sampler | None = None, **changes: object) -> TiledDrawer:
    sampler = sampler or partial(ancestral, steps=5)
    cpu = torch.device("cpu")
    drawer = Drawer(model, sampler, 3, 16, 1.0, 0.0, cpu, channels_last=False, bfloat16=False)
    options = {"tile": 32, "overlap": 0.25, "memory": 2**34, **changes}
    return TiledDrawer(drawer, draws=draws, **options)  # type: ignore[arg-type]


def maps(tiled: TiledDrawer, image: np.ndarray) -> list[np.ndarray]:
    """MMSE, std, probability and labels of the whole, after a look at how the bands follow each other."""
    asked: list[Window] = []

    def read(window: Window) -> np.ndarray:
        asked.append(window)
        return np.ascontiguousarray(image[(slice(None), *window.slices)])

    bands = list(tiled(read, image.shape[1:], "image"))  # type: ignore[arg-type]
    ends = np.cumsum([len(band.labels) for band in bands]).tolist()
    assert [band.top for band in bands] == [0, *ends[:-1]]
    assert ends[-1] == image.shape[1]
    assert max(window.height for window in asked) < image.shape[1] or len(bands) == 1
    names = ("mmse", "std", "probability", "labels")
    return [np.concatenate([getattr(band, name) for band in bands], axis=-2) for name in names]


_TRUNK = {"channels": 8, "multipliers": [1, 2]}
_DRAWS = {"process": "vp", "objective": "distribution", "prior_share": 1.0}
_ONE = {"sampler": "ancestral", "steps": 1}
_BASELINE: dict[str, Any] = {"data": {"representation": "binary"}, "sampling": {"sampler": "mean"}}
_LOGITS: dict[str, Any] = {"data": {"representation": "binary"}, "sampling": {"sampler": "logits"}}
_RATERS = {"raters": "all"}
SYSTEMS: dict[str, dict[str, Any]] = {
    "mean": {"model": {"attention": [2]}, "sampling": {"sampler": "dpm_solver", "stochastic": True, "steps": 4}},
    "rrdb": {"model": {"encoder": {"kind": "rrdb", "channels": 8}}},
    "timm": {"model": {"encoder": {"kind": "timm", "name": "resnet10t", "channels": 8}}},
    "second moment": {
        "model": {"second_moment": True},
        "sde": {"process": "vp", "prior_share": 0.5},
        "training": {"noises": 2},
    },
    "both": {"sde": {"process": "cosine", "prediction": "both", "input_scale": 0.1}},
    "distribution": {
        "sde": {**_DRAWS, "mask_weight": 0.3, "overlap": 0.5},
        "sampling": {**_ONE, "augment": True, "spread": 1.25},
    },
    "raters": {"data": _RATERS, "sde": _DRAWS, "sampling": _ONE},
    "told raters": {"model": {"raters": 2}, "sde": {**_DRAWS, "prior_share": 0.5}, "sampling": {**_ONE, "steps": 3}},
    "dropout": {"model": {"dropout": 0.2}, "sde": {"prior_share": 1.0}, "sampling": {"sampler": "mc_dropout"}},
    "joint": {"model": {"kind": "joint"}, "sde": {"clean_share": 0.25}},
    "ssn": {"model": {"kind": "ssn", "rank": 2}, **_LOGITS},
    "prob_unet": {"model": {"kind": "prob_unet"}, **_LOGITS},
    "resunet": {"model": {"kind": "resunet"}, **_BASELINE},
    "attention_unet": {"model": {"kind": "attention_unet"}, **_BASELINE},
    "unet": {"model": {"kind": "unet", "backbone": "resnet18", "multipliers": [1, 1, 2]}, **_BASELINE},
    "unetplusplus": {"model": {"kind": "unetplusplus", "backbone": "resnet18", "multipliers": [1, 1, 2]}, **_BASELINE},
    "fcn": {"model": {"kind": "fcn"}, **_BASELINE},
}
LIBRARIES = {**LIBRARY, "timm": "timm", "fcn": "torchvision"}
QUICK = ("mean", "distribution", "joint", "ssn")


def each_system() -> list[Any]:
    """To parametrize a test; most of them are slow together."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SYSTEMS]


def system(name: str, **sections: Mapping[str, object]) -> Config:
    """The config of one of SYSTEMS, or a skip where its library is absent; `sections`: keys set besides."""
    if name in LIBRARIES:
        pytest.importorskip(LIBRARIES[name])
    tree: dict[str, Any] = {
        "name": "any",
        "data": {"root": "nowhere", "truncation": 4},
        "model": {**_TRUNK, "encoder": dict(_TRUNK)},
        "sde": {"sigma_min": 0.01, "weighting": "edm"},
        "sampling": {"sampler": "heun", "steps": 3},
        "training": {"batch": 4, "learning_rate": 1e-3},
    }
    for changes in (SYSTEMS[name], sections):
        for section, keys in changes.items():
            tree[section] = {**tree[section], **keys}
    if tree["model"].get("kind", "conditional") != "conditional":
        del tree["model"]["encoder"]
        if tree["model"]["kind"] == "fcn":
            tree["model"] = {"kind": "fcn"}
    if tree["sde"].get("process", "ve") != "ve":
        del tree["sde"]["sigma_min"]
    return parse_config(tree, Path("any.yaml"))


def disc_patches(count: int = 4, size: int = 32, raters: int = 2, color: str = "grey") -> list[Patch]:
    """Bright discs on noise; every rater's is larger than that of the one before."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    patches = []
    for i in range(count):
        distance = np.hypot(y - rng.uniform(10, size - 10), x - rng.uniform(10, size - 10))
        masks = [distance < 6 + rater for rater in range(raters)]
        image = (90 + 80 * masks[0] + rng.normal(0, 12, (size, size))).clip(0, 255).astype(np.uint8)
        sdf = np.stack([signed_distance(mask, 4.0)[None] for mask in masks]).astype(np.float32)
        pixels = np.repeat(image[..., None], 3, axis=2) if color == "rgb" else image
        patches.append(Patch(str(i), str(i), f"{i}.png", pixels, sdf, masks[0].astype(np.uint8)))
    return patches


def blurred(height: int, width: int) -> np.ndarray:
    """(1, H, W) uint8, blobs of some 10 pixels."""
    noise = torch.randn(1, 1, height // 8 + 2, width // 8 + 2, generator=torch.Generator().manual_seed(1))
    smooth = F.interpolate(noise, (height, width), mode="bicubic")[0]
    return (127.5 + 60 * smooth).clamp(0, 255).to(torch.uint8).numpy()


def in_tiles_and_whole(model: Denoiser) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Four one-pass draws (K, 80, 80) of one image in overlapping tiles, and the same without."""
    image = blurred(80, 80)

    def drawn(tile: int) -> list[np.ndarray]:
        draws: list[np.ndarray] = []
        list(tiled(model, 4, posterior_mean, overlap=0.5, tile=tile)(lambda _: image, (80, 80), "image", draws.append))
        return draws

    return drawn(32), drawn(128)


MEAN = torch.tensor([0.3, -0.4])
COVARIANCE = torch.tensor([[0.30, 0.12], [0.12, 0.20]])


def draws_of(seed: int, count: int, shape: tuple[int, ...]) -> DrawNoise:
    return DrawNoise(seed, [("image", d) for d in range(count)], shape)


def gaussian_denoiser(process: Process, mean: Tensor = MEAN, covariance: Tensor = COVARIANCE) -> Denoise:
    """E[m | z] for two channels with N(mean, covariance), pixels independent."""

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = process.alpha(t).item(), process.sigma(t).item()
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(2))
        centre = mean.view(1, 2, 1, 1)
        columns = gain.to(z).T[:, None, :, None, None]  # a matrix product may round as the batch is large
        return centre + sum(g * c for g, c in zip(columns, (z - alpha * centre).split(1, dim=1), strict=True))

    return denoise


def mixture_denoiser(process: Process, weights: Tensor, means: Tensor, std: float) -> Denoise:
    """E[m | z] for independent pixels from a mixture of Gaussians of one width."""

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = process.alpha(t).item(), process.sigma(t).item()
        total = (alpha * std) ** 2 + sigma**2
        z = z[..., None]
        log_weight = torch.log(weights) - (z - alpha * means) ** 2 / (2 * total)
        inner = means + alpha * std**2 / total * (z - alpha * means)
        return (torch.softmax(log_weight, dim=-1) * inner).sum(-1)

    return denoise
