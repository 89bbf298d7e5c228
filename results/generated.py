"""Samples of a joint model: pairs of image and mask, or images for masks that are given.

A generated folder is prepared data itself (README, "Prepared data"): train.csv and test.csv list all samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from data.batches import representation_of
from data.dataset import load_split, read_split
from data.images import read_image
from evaluation.ensemble import classify
from models.joint import JointDenoiser
from report.figures import contact_sheet
from results.read import read_map
from sampling.drawer import Drawer, groups
from utils.data_schema import DataConfig
from utils.errors import UsageError
from utils.files import naming, write_array, write_json, write_text

PAIRS = 64  # by default
SHOWN = 64  # on the contact sheet


@dataclass(frozen=True)
class Request:
    """One sample to be made.

    name: stem of its files. owner: what seeds its noise. size: (H, W). m: the mask that is given, (K, H, W) in the
    units of the process; None for a pair.
    """

    name: str
    owner: tuple[str, int]
    size: tuple[int, int]
    m: Tensor | None = None


def check_generation(kind: str, sampler: str, count: int | None) -> None:
    """Raises UsageError where a model of that kind, sampled so, cannot generate."""
    if kind != "joint":
        raise UsageError(f"--generate: needs model.kind: joint, a network of masks and images; not {kind}")
    if sampler == "mean":
        raise UsageError("--generate: sampling.sampler: mean makes no samples; use another")
    if count is not None and count < 1:
        raise UsageError(f"--count {count}: at least 1 is expected")


def pair_requests(data: DataConfig, count: int | None) -> list[Request]:
    """Pairs of the size that the network was trained on."""
    first = next(read_split(data, "train"))
    size = data.crop or (first.labels.shape[0], first.labels.shape[1])
    return [Request(f"pair_{i:04d}", ("pair", i), size) for i in range(count or PAIRS)]


def image_requests(data: DataConfig, count: int | None) -> list[Request]:
    """An image for each test mask, and further ones for as many as `count` goes round; of several raters, in turn."""
    patches = load_split(data, "test")
    requests = []
    for i in range(count or len(patches)):
        patch, draw = patches[i % len(patches)], i // len(patches)
        sdf = torch.from_numpy(patch.sdf[draw % len(patch.sdf)]) * data.sdf_scale
        size = (sdf.shape[-2], sdf.shape[-1])
        owner = (f"image of {patch.key}", draw)
        requests.append(Request(f"{patch.key}_{draw}", owner, size, representation_of(sdf, data)))
    return requests


def generated(drawer: Drawer, batch: Sequence[Request]) -> tuple[Tensor, Tensor]:
    """Masks (B, K, H, W) in SDF units and images (B, C, H, W) in [-1, 1] on the host; requests of one size and kind."""
    model = drawer.denoiser
    assert isinstance(model, JointDenoiser)
    owners = [request.owner for request in batch]
    given = [request.m for request in batch if request.m is not None]
    if given:
        m = torch.stack(given).to(drawer.device)
        x = drawer.run(
            partial(drawer.evaluate, partial(model.image, m=m)), owners, (model.image_channels, *batch[0].size)
        )
    else:
        channels = model.mask_channels + model.image_channels
        both = drawer.run(partial(drawer.evaluate, model.pair), owners, (channels, *batch[0].size))
        m, x = both.split([model.mask_channels, model.image_channels], dim=1)
    return m.float().cpu() / drawer.sdf_scale, x.float().cpu()


def pixels_of(image: Tensor) -> np.ndarray:
    """(C, H, W) in [-1, 1] to (H, W) or (H, W, 3) uint8."""
    values = ((image + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    return values[0] if len(values) == 1 else values.transpose(1, 2, 0)


def mask_values(data: DataConfig) -> tuple[int, ...]:
    """Pixel values of background and classes in a mask's file."""
    return (0, *(data.classes or (255,)))


def _write(folder: Path, name: str, sdf: np.ndarray, image: np.ndarray, threshold: float, data: DataConfig) -> None:
    """The files of one sample, the SDF last: it says that the others are there."""
    labels = classify(sdf, threshold)
    sdf = sdf.clip(-1.0, 1.0)  # prepared SDFs stay in there
    with naming(folder):
        Image.fromarray(image).save(folder / "images" / f"{name}.png")
        Image.fromarray(np.array(mask_values(data), np.uint8)[labels]).save(folder / "masks" / f"{name}.png")
        write_array(folder / "sdf" / f"{name}.npy", sdf if data.classes else sdf[0])


def write_samples(drawer: Drawer, requests: Sequence[Request], data: DataConfig, folder: Path) -> Iterator[int]:
    """Make and write all requests but those that are done; yields the number of samples of each batch."""
    for part in ("images", "masks", "sdf"):
        (folder / part).mkdir(exist_ok=True)
    for batch in groups(requests, drawer.max_batch, lambda request: request.size, lambda _: 1):
        if not all((folder / "sdf" / f"{request.name}.npy").is_file() for request in batch):
            for request, sdf, image in zip(batch, *generated(drawer, batch), strict=True):
                _write(folder, request.name, sdf.numpy(), pixels_of(image), drawer.threshold, data)
        yield len(batch)


def _write_tables(folder: Path, requests: Sequence[Request], data: DataConfig) -> None:
    """train.csv and test.csv, each with all samples."""
    rows = []
    for name in (request.name for request in requests):
        mask = f"masks/{name}.png"
        row = {"filename": f"images/{name}.png", "maskname": mask, "maskdtname": f"sdf/{name}.npy", "image_id": name}
        rows.append(row | {"classname": mask} if data.classes else row)
    text = pd.DataFrame(rows).to_csv(index=False)
    for split in ("train", "test"):
        write_text(folder / f"{split}.csv", text)


def finish_samples(
    folder: Path, requests: Sequence[Request], data: DataConfig, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """sheet.png, tables and summary.json from the files of all samples; returns the summary."""
    shares: list[float] = []
    images: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    for request in requests:
        mask = read_map(folder / "masks" / f"{request.name}.png", request.size)
        shares.append(float((mask > 0).mean()))
        if len(images) < SHOWN:
            images.append(read_image(folder / "images" / f"{request.name}.png"))
            masks.append(np.argmax([mask == value for value in mask_values(data)], axis=0))
    _write_tables(folder, requests, data)
    contact_sheet(images, masks, data.channels).save(folder / "sheet.png")
    foreground = {"foreground": float(np.mean(shares)), "foreground_std": float(np.std(shares))}
    summary = {"samples": len(requests), **facts, **foreground}
    write_json(folder / "summary.json", summary)
    return summary
