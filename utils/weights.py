"""Weights to give away: averaged weights only, as safetensors, with what is needed to use them in the header."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from utils.errors import CheckpointError

SUFFIX = ".safetensors"
FORMAT = "generative-segmentation-sdf 1"


@dataclass(frozen=True)
class Header:
    """What the file says besides the weights.

    config: the resolved config, as a mapping. images: size and stains of the training images. licence: of data and
    weights, one line. commit, step: what they were trained with, and how long.
    """

    config: dict[str, Any]
    images: dict[str, Any]
    licence: str
    commit: str
    step: int


def halved(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and convolutions in float16; vectors and numbers, which are few, as they are."""
    return {name: w.half() if w.ndim > 1 and w.is_floating_point() else w for name, w in weights.items()}


def weights_bytes(weights: Mapping[str, Tensor], header: Header) -> bytes:
    """The file."""
    texts = {
        "format": FORMAT,
        "config": json.dumps(header.config),
        "images": json.dumps(header.images),
        "licence": header.licence,
        "commit": header.commit,
        "step": str(header.step),
    }
    return save({name: w.contiguous() for name, w in weights.items()}, texts)


def read_header(path: Path) -> Header:
    """Raises CheckpointError for files that are absent, damaged or of another program."""
    with _opened(path) as file:
        return _header(file.metadata() or {}, path)


def read_weights(path: Path) -> dict[str, Any]:
    """As a checkpoint of a training: config, ema (float32) and images. Raises CheckpointError, see `read_header`."""
    with _opened(path) as file:
        header = _header(file.metadata() or {}, path)
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    floats = {name: w.float() if w.dtype == torch.float16 else w for name, w in weights.items()}
    return {"config": header.config, "ema": floats, "images": header.images, "step": header.step}


def _header(texts: Mapping[str, str], path: Path) -> Header:
    if texts.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not weights of this program (format {FORMAT})")
    try:
        config, images = json.loads(texts["config"]), json.loads(texts["images"])
        header = Header(config, images, texts["licence"], texts["commit"], int(texts["step"]))
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: its header is damaged ({type(error).__name__}: {error})") from None
    if not (isinstance(config, dict) and isinstance(images, dict)):
        raise CheckpointError(f"{path}: its header is damaged (config and images are mappings)")
    return header


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if path.suffix != SUFFIX:
        raise CheckpointError(f"{path}: weights end in {SUFFIX}")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file of weights")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file ({error})") from None
