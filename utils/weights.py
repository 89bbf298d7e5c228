"""Weights to give away: averaged weights only, as safetensors, with what is needed to use them in the header."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Len
from pydantic import ConfigDict, Field, FiniteFloat, Json
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from typing_extensions import TypedDict

from utils.errors import CheckpointError, cut
from utils.reading import checked
from utils.shipped import near_weights

SUFFIX = ".safetensors"
FORMAT = "generative-segmentation-sdf 1"

log = logging.getLogger(__name__)


class StainTarget(TypedDict):
    """The stain that all images were normalised to, see `data.stain.Stain`."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    matrix: Annotated[list[Annotated[list[FiniteFloat], Len(3, 3)]], Len(2, 2)]
    strength: Annotated[list[FiniteFloat], Len(2, 2)]


class Images(TypedDict, total=False):
    """What predictions need to know of the training images. size: [height, width]."""

    size: Annotated[list[Annotated[int, Field(gt=0, le=100_000)]], Len(2, 2)]
    stain_target: StainTarget | None


@dataclass(frozen=True)
class Header:
    """What the file says besides the weights.

    config: the resolved config, as a mapping. images: size and stains of the training images. licence: of data and
    weights, one line. commit, step: what they were trained with, and how long.
    """

    config: Json[dict[str, Any]]  # texts in the file
    images: Json[Images]
    licence: str
    commit: str
    step: Json[int]


def halved(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and convolutions in float16; vectors and numbers, which are few, as they are."""
    return {name: w.half() if w.ndim > 1 and w.is_floating_point() else w for name, w in weights.items()}


def digest(texts: Mapping[str, str], weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of all that the file says."""
    found = hashlib.sha256(json.dumps(sorted(texts.items())).encode())
    for name, w in sorted(weights.items()):
        found.update(f"{name} {w.dtype} {tuple(w.shape)}".encode())
        found.update(w.contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def weights_bytes(weights: Mapping[str, Tensor], header: Header) -> bytes:
    """The file."""
    parts = {name: part if isinstance(part, str) else json.dumps(part) for name, part in vars(header).items()}
    texts = {"format": FORMAT, **parts}
    return save({name: w.contiguous() for name, w in weights.items()}, {**texts, "sha256": digest(texts, weights)})


def read_header(path: Path) -> Header:
    """Raises CheckpointError for files that are absent, damaged or of another program."""
    with _opened(path) as file:
        return _header(file.metadata() or {}, path)


def read_weights(path: Path) -> dict[str, Any]:
    """As a checkpoint of a training: config, ema (float32) and images. Raises CheckpointError, see `read_header`."""
    with _opened(path) as file:
        texts = file.metadata() or {}
        header = _header(texts, path)
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
    said = texts.pop("sha256", None)
    if said is None:
        log.info("%s: has no checksum, so damage would not be seen", path)
    elif said != digest(texts, weights):
        raise CheckpointError(f"{path}: damaged: its SHA-256 is another than the one in its header")
    floats = {name: w.float() if w.dtype == torch.float16 else w for name, w in weights.items()}
    return {"config": header.config, "ema": floats, "images": header.images, "step": header.step}


def _header(texts: Mapping[str, str], path: Path) -> Header:
    if texts.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not weights of this program (format {FORMAT})")
    header: Header = checked(json.dumps(dict(texts)).encode(), Header, path, CheckpointError)
    return replace(header, licence=cut(header.licence, 1000))  # it is shown on a terminal


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file of weights{near_weights(path)}")
    if path.suffix != SUFFIX:
        raise CheckpointError(f"{path}: weights end in {SUFFIX}")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file ({error})") from None
