"""What several test files share: a tiny experiment and its commands, small networks, pictures, known laws."""

from __future__ import annotations

from utils.command import run_command

import base64
import csv
import io
import json
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor, nn

import main as training_command
import sample as sampling_command
from data import inspect as inspect_command
from data import prepare as prepare_command
from data.dataset import Patch
from data.patches import Window
from data.sdf import signed_distance
from data.sources import glas
from data.sources.record import Archive, Record, Sample
from evaluation import calibration
from evaluation.comparison import Run
from evaluation.ensemble import Ensemble
from evaluation.metrics import count
from evaluation.object_scores import object_scores
from models.baselines import Baseline, build_baseline
from models.denoiser import Denoiser, build_denoiser
from models.unet import Sizes
from report.layers import ImageLayers
from report.page import render_report
from sampling.drawer import Drawer
from sampling.sampler import Sampler
from sampling.tiled import TiledDrawer
from sde.noise import DrawNoise
from sde.process import VE, Process
from sde.samplers import Denoise, ancestral, posterior_mean
from utils import export
from utils.checkpoint import load_checkpoint
from utils.config import parse_config
from utils.data_schema import DataConfig
from utils.schema import Config
from utils.weights import SUFFIX

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = ROOT.parent / "shared" / "data"


# Commands.


TINY = {
    "name": "tiny",
    "data": {
        "source": "phantom",
        "root": "prepared",
        "truncation": 6,
        "workers": 1,
        "phantom": {"train": 8, "val": 2, "test": 3, "size": 32},
    },
    "model": {"channels": 8, "multipliers": [1, 2], "encoder": {"channels": 8, "multipliers": [1, 2]}},
    "sde": {"sigma_min": 0.01, "sigma_max": 10, "weighting": "edm"},
    "training": {
        "steps": 6,
        "batch": 3,
        "learning_rate": 1e-3,
        "warmup": 2,
        "log_every": 2,
        "checkpoint_every": 3,
        "validate_every": 3,
    },
    "sampling": {"sampler": "heun", "steps": 5, "draws": 3, "max_batch": 4},
    "evaluation": {"images": 2, "draws": 1, "steps": 3},
}


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "prepare": prepare_command.main,
    "inspect": inspect_command.main,
    "main": training_command.main,
    "sample": sampling_command.main,
}


@dataclass
class Result:
    code: int
    out: str
    err: str


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """Writes past `room` bytes of a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@dataclass
class Workspace:
    """A folder with config.yaml, in which commands run as a user would type them."""

    path: Path
    capture: pytest.CaptureFixture[str]

    def __call__(self, command: str, *arguments: str, config: str = "config.yaml") -> Result:
        self.capture.readouterr()
        shared = [] if "--compare" in arguments else ["--config", config, "--device", "cpu"]  # it goes alone
        code = run_command(lambda: COMMANDS[command]([*shared, "--quiet", *arguments]))
        captured = self.capture.readouterr()
        return Result(code, captured.out, captured.err)

    def run_folder(self) -> Path:
        return sorted((self.path / "runs" / "tiny").iterdir())[-1]

    def fails(self, command: str, *arguments: str, config: str = "config.yaml") -> str:
        """Run a command that must end with exit code 2 and one line of error; return the line."""
        result = self(command, *arguments, config=config)
        assert result.code == 2
        lines = result.err.strip().splitlines()
        assert len(lines) == 1, result.err
        assert lines[0].startswith("error: ")
        return lines[0]


def section(
    source: str = "prepared", raw: Path = Path("raw"), root: Path = Path("unused"), **options: Any
) -> DataConfig:
    """The data section of a config."""
    return DataConfig.model_validate({"source": source, "raw": str(raw), "root": str(root), **options})


def listed(source: str, raw: Path, **options: Any) -> Archive:
    """What an archive lists."""
    return prepare_command.list_archive(section(source, raw, **options))


def trained_in(folder: Path, config: Mapping[str, object]) -> Path:
    """The folder, with prepared data and a finished run of a config."""
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(config)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in ("prepare", "main"):
            arguments = ["--config", "config.yaml", "--device", "cpu", "--quiet"]
            assert run_command(lambda c=command, a=arguments: COMMANDS[c](a)) == 0  # type: ignore[misc]
    return folder


def joint_config() -> dict[str, object]:
    return {
        **TINY,
        "model": {"kind": "joint", "channels": 8, "multipliers": [1, 2]},
        "sde": {"sigma_min": 0.01, "sigma_max": 10, "weighting": "edm", "clean_share": 0.25},
    }


def sets(overrides: Iterable[str]) -> list[str]:
    """The words of --set for each of them."""
    return [part for override in overrides for part in ("--set", override)]


SIZES = ["model.channels=8", "model.multipliers=[1,2,2]"]


MASK = [*SIZES, "data.representation=binary", "sampling.sampler=mean"]


RESUNET = [*MASK, "model.kind=resunet", "model.dropout=0.2"]


UNET = [*MASK, "model.kind=unet", "model.backbone=resnet18"]


REGRESSION = ["sde.prior_share=1", "model.dropout=0.2", "sampling.sampler=mean"]


DROPOUT = ["sampling.sampler=mc_dropout", "sampling.draws=3"]


def newest(owner: Workspace | Path, kind: str = "samples") -> Path:
    """The newest folder of a kind, samples or generated, of a run folder or of a workspace's newest run."""
    run = owner.run_folder() if isinstance(owner, Workspace) else owner
    return max((run / kind).iterdir(), key=lambda p: (p.name[:15], len(p.name), p.name))


def truth(workspace: Workspace, key: str) -> np.ndarray:
    """The mask of a test image, bool."""
    return np.asarray(Image.open(workspace.path / "prepared" / "Test_patches" / f"{key}_mask.png")) > 0


def content(folder: Path) -> dict[str, bytes]:
    """All result files but for timings."""
    skipped = {"summary.json", "metrics.csv", "scores.json", "report.html", "environment.json"}
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in skipped
    }


def rows(run: Path) -> list[dict[str, str]]:
    """metrics.csv of a run."""
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def tensors(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of a nested checkpoint."""
    if isinstance(tree, dict):
        items = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list | tuple):
        items = [(str(i), value) for i, value in enumerate(tree)]
    else:
        return {prefix: tree}
    return {name: leaf for key, value in items for name, leaf in tensors(value, f"{prefix}.{key}").items()}


def same_state(first: Path, second: Path) -> None:
    """Weights, average, optimiser, schedule, order and generators are equal bit for bit."""
    states = [
        tensors({k: v for k, v in load_checkpoint(p).items() if k not in ("config", "best_f1")})
        for p in (first, second)
    ]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        other = states[1][key]
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other, key


def shake_checkpoint(run: Path, seed: int = 0, scale: float = 0.05) -> None:
    """Give the short-trained weights of best.pt something to say, as after a long training."""
    path = run / "checkpoints" / "best.pt"
    state = load_checkpoint(path)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in state["ema"].items():
        if tensor.ndim and "running" not in name:
            tensor += scale * torch.randn(tensor.shape, generator=generator)
    path.unlink()  # a link to another name of the same file
    torch.save(state, path)


def exported(workspace: Workspace, *more: str, name: str = "given") -> Path:
    path = Path("weights", name + SUFFIX)
    run = str(workspace.run_folder())
    words = ["--run", run, "--output", str(path), "--licence", "made up, free to use", *more]
    assert run_command(lambda: export.main(words)) == 0
    return path


def sampled(workspace: Workspace, *words: str) -> Result:
    """sample.py without --config."""
    workspace.capture.readouterr()
    code = run_command(lambda: sampling_command.main(["--device", "cpu", "--quiet", *words]))
    captured = workspace.capture.readouterr()
    return Result(code, captured.out, captured.err)


# Networks.


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


# One small config of each kind of network and objective.


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
    "distribution": {"sde": {**_DRAWS, "overlap": 0.5}, "sampling": {**_ONE, "augment": True, "spread": 1.25}},
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


# Pictures, archives, records.


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def read(record: Record) -> Sample:
    sample = record.read()
    assert sample is not None
    return sample


def colours(height: int = 40, width: int = 50) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def picture(height: int, width: int, channels: int = 0, seed: int = 0) -> np.ndarray:
    """Blobs, uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    pixels = np.full((height, width), 60.0)
    for _ in range(4):
        row, column = rng.uniform(0, height), rng.uniform(0, width)
        pixels[(y - row) ** 2 + (x - column) ** 2 < 40] = 190
    pixels += rng.normal(0, 5, pixels.shape)
    image = pixels.clip(0, 255).astype(np.uint8)
    return np.repeat(image[..., None], channels, axis=2) if channels else image


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


def fake_glas(folder: Path, suffix: str = "bmp", counts: dict[str, int] | None = None) -> Path:
    """The official archive's layout with small pictures: four patients, one of them in the test set only."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"]
    for part, number in (counts or glas.EXPECTED).items():
        for i in range(1, number + 1):
            labels = np.zeros((20, 30), np.uint8)
            labels[3:12, 4:15], labels[5:18, 20:28] = 1, 2
            Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(folder / f"{part}_{i}.{suffix}")
            Image.fromarray(labels).save(folder / f"{part}_{i}_anno.{suffix}")
            rows.append(f"{part}_{i}, {i % 7 if part == 'train' else 99}, {'benign' if i % 2 else 'malignant'}, x")
    (folder / "Grade.csv").write_text("\n".join(rows) + "\n")
    return folder


def image_record(seed: int, classes: int = 1, draws: int = 8) -> calibration.ImageRecord:
    """An image of random draws around a random truth."""
    rng = np.random.default_rng(seed)
    sdf = rng.uniform(-1, 1, (classes, 12, 10)).astype(np.float32)
    spread = rng.uniform(0.05, 0.8, sdf.shape)
    centre = sdf + spread * rng.normal(size=sdf.shape)
    ensemble = Ensemble(sdf.shape, 0.03)  # type: ignore[arg-type]
    for _ in range(draws):
        ensemble.add((centre + spread * rng.normal(size=sdf.shape)).astype(np.float32))
    truth = np.where(sdf.min(axis=0) < 0.03, sdf.argmin(axis=0) + 1, 0)
    return calibration.measure(ensemble.mmse, ensemble.std, sdf, ensemble.probability, ensemble.labels, truth)


SUMMARY = {"draws": 8, "nfe_per_draw": 9, "seconds_per_image": 1.5, "device": "cpu"}


def scored_run(name: str, f1: Mapping[str, float], summary: Mapping[str, object] = SUMMARY) -> Run:
    """A scored_run with these F1; its other scores follow from them."""
    rows = [
        {"image_id": image, "f1": value, "iou": value / 2, "single_f1": value - 0.1, "single_iou": value / 4}
        for image, value in f1.items()
    ]
    return Run(name, pd.DataFrame(rows), summary)


def disc_layers(seed: int, size: int = 24, classes: int = 1, draws: int = 6, first: int = 0) -> ImageLayers:
    """A disc of each class, and draws whose radius differs; a larger seed makes them worse. first: how many are
    kept to be looked at."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]

    def sdf(k: int, radius: float) -> np.ndarray:
        centre = size * (k + 1) / (classes + 1)
        inside = np.hypot(rows - size / 2, columns - centre) < radius
        return signed_distance(inside, 6.0)

    radius = size / (3 * classes)
    truth_sdf = np.stack([sdf(k, radius) for k in range(classes)])
    shift = 0.1 * radius * seed
    stack = np.stack(
        [[sdf(k, radius + shift + rng.normal(0, 0.1 * radius)) for k in range(classes)] for _ in range(draws)]
    )

    def labels(maps: np.ndarray) -> np.ndarray:
        return np.where(maps.min(axis=0) < 0.03, maps.argmin(axis=0) + 1, 0).astype(np.uint8)

    mmse = stack.mean(axis=0)
    probability = np.mean([labels(draw) > 0 for draw in stack], axis=0)
    image = (120 + 60 * truth_sdf.min(axis=0) + rng.normal(0, 8, (size, size))).clip(0, 255).astype(np.uint8)
    spread = stack.std(axis=0, ddof=1) if draws > 1 else None
    kept = np.stack([labels(draw) for draw in stack[:first]]) if first else None
    return ImageLayers(image, mmse, labels(mmse), probability, spread, labels(truth_sdf), truth_sdf, draws=kept)


def row_of(name: str, layers: ImageLayers) -> dict[str, Any]:
    assert layers.truth is not None
    counts = count(layers.labels > 0, layers.truth > 0)
    spread = 0.0 if layers.std is None else float(layers.std.mean())
    scores = object_scores(layers.truth, layers.labels)
    return {"image_id": name, "f1": counts.f1, "iou": counts.iou, "single_f1": counts.f1 - 0.02, "mean_std": spread,
            "aji": scores["aji"], "pq": scores["pq"], "objects": 1, "true_objects": 1}  # fmt: skip


SPREAD: dict[str, Any] = {
    "images": 3, "ssr": 0.61, "fair_crps": 0.0617, "fair_crps_band": 0.0821, "energy": 0.613, "ged": 0.144,
    "fair_ged": 0.131, "skill": 0.043, "jitter": 0.0858, "jitter_of": "validation",
    "image_area": {"cases": 60, "coverage": 0.4, "expected": 0.778, "crps": 0.011,
                   "ranks": [20, 6, 4, 2, 0, 4, 1, 7, 16], "chi_square": 56.7, "degrees_of_freedom": 8, "p": 2e-9},
    "object_area": {"cases": 3, "coverage": 0.55, "expected": 0.778, "crps": 33.2, "ranks": [], "chi_square": None,
                    "degrees_of_freedom": None, "p": None, "lost": 0.08},
}  # fmt: skip


def example(folder: Path, names: list[str], layers: Callable[[int], ImageLayers] = disc_layers, **changes: Any) -> str:
    """A page of these images, and the files that it links to in `folder`; changes of the summary."""
    images = {name: layers(seed) for seed, name in enumerate(names)}
    rows = [row_of(name, own) for name, own in images.items()]
    records = []
    for own in images.values():
        assert own.truth is not None
        assert own.truth_sdf is not None
        assert own.probability is not None
        std = np.zeros_like(own.mmse) if own.std is None else own.std
        records.append(calibration.measure(own.mmse, std, own.truth_sdf, own.probability, own.labels, own.truth))
    numbers = calibration.summary(records, 6)
    (folder / "calibration.json").write_text(json.dumps(numbers))
    for name in names:
        (folder / name).mkdir()
        (folder / name / "mmse.npy").write_bytes(b"")
    f1 = float(np.mean([row["f1"] for row in rows]))
    scores = {"f1": f1, "iou": f1 - 0.1, "f1_std": 0.05, "f1_pooled": f1, "iou_pooled": f1 - 0.1}
    summary = {
        "images": len(rows), "draws": 6, "nfe_per_draw": 9, "sampler": "heun", "threshold": 0.03, "split": "test",
        "mmse": scores, "single": {**scores, "f1": f1 - 0.02}, "seconds_per_image": 1.25, "peak_memory_mib": 300.0,
        "device": "cpu", "checkpoint": "runs/x/best.pt", "seed": 0,
        "objects": {"aji": 0.8, "pq": 0.7, "dq": 0.9, "sq": 0.78, "f1": 0.9, "dice": 0.85, "hausdorff": 2.5,
                    "area_interval": {"objects": 3, "level": 0.9, "coverage": 0.6, "expected": 0.71, "width": 0.1}},
        "spread": SPREAD,
        "uncertainty": {k: v for k, v in numbers.items() if not isinstance(v, list)} | {"risk_control": None},
    }  # fmt: skip
    return render_report("tiny: images", summary | changes, rows, images.__getitem__, folder, "name: tiny\n")


def decoded(uri: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))) as image:
        return np.asarray(image.convert("RGB"))


TWO_SYSTEMS = """
name: two
title: Two systems
config: config.yaml
set: [sampling.draws=2]
small: [training.steps=2]
systems:
  - {name: regression, set: [sde.prior_share=1, sampling.sampler=mean], sample_once: []}
  - {name: VE, set: []}
samplings:
  - {name: mean, set: [sampling.sampler=mean]}
  - {name: heun 5, set: []}
"""


# Laws that are known.


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


def write_svs(path: Path, pixels: np.ndarray, microns: float) -> None:
    """A slide as Aperio's scanners write it, with a thumbnail and a level a quarter as large. pixels: (H, W, 3)."""
    height, width = pixels.shape[:2]
    about = "Aperio Image Library v11.2.1 \r\n"
    details = f"{about}{width}x{height} [0,0 {width}x{height}] (240x240) |AppMag = 40|MPP = {microns:.4f}"
    options: dict[str, Any] = {"photometric": "rgb", "compression": "adobe_deflate", "metadata": None}
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, tile=(240, 240), description=details, **options)
        file.write(pixels[::8, ::8], description=f"{about}thumbnail", rowsperstrip=16, **options)
        file.write(pixels[::4, ::4], tile=(240, 240), description=details, subfiletype=1, **options)
