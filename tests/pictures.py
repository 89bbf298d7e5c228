"""Pictures, archives and records made for tests."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from data.sources import glas
from data.sources.record import Record, Sample


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


def decoded(uri: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))) as image:
        return np.asarray(image.convert("RGB"))


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
