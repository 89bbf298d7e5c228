"""Checkpoints that are whole or absent, and are read without running code."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, ConfigDict, Field, InstanceOf
from torch import Tensor
from typing_extensions import NotRequired, TypedDict

from utils.errors import CheckpointError, cut
from utils.files import whole_file
from utils.reading import Plain, checked, damaged
from utils.weights import SUFFIX, Images, read_weights

FORMAT = 1


def save_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """`path` is the old file or the new one, never a part, and is on the disk when this returns.

    Raises CheckpointError if the disk is full or not writable; the previous file is untouched then.
    """
    try:
        with whole_file(path, sync=True) as temporary, temporary.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
    except OSError as error:
        kept = f"; the previous {path.name} is whole" if path.exists() else ""
        raise CheckpointError(f"{error.filename}: could not be saved ({error.strerror}){kept}") from None


def link_checkpoint(source: Path, path: Path) -> None:
    """Give the file `source` a second name, atomically; a copy where the file system has no hard links."""
    try:
        with whole_file(path, sync=True) as temporary:
            try:
                os.link(source, temporary)
            except OSError:
                shutil.copyfile(source, temporary)
    except OSError as error:
        raise CheckpointError(f"{path}: could not be saved ({error.strerror})") from None


def _dense(tensor: Tensor) -> Tensor:
    """Sparse and expanded ones may take any memory later."""
    if tensor.layout != torch.strided or tensor.untyped_storage().nbytes() < tensor.nbytes or tensor.is_meta:
        raise ValueError("a tensor with all its values is expected")
    return tensor


Dense = Annotated[InstanceOf[Tensor], AfterValidator(_dense)]


class Weights(TypedDict):
    """What every use of a checkpoint needs. images: absent in old ones."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    config: Plain
    ema: dict[str, Dense]
    images: NotRequired[Images]
    step: NotRequired[Annotated[int, Field(ge=0)]]


def load_checkpoint(path: Path, kind: Any = Weights) -> Any:
    """The state of a checkpoint on the host: `kind`, a TypedDict, says what of it is read.

    Raises CheckpointError if the file is absent, damaged, of another program or shape, or holds code.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    content = read_weights(path) if path.suffix == SUFFIX else _unpickled(path)
    return checked(content, kind, path, CheckpointError)


def _unpickled(path: Path) -> dict[str, Any]:
    with damaged(path, CheckpointError):
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
            size = sum(entry.file_size for entry in entries)
            if size > path.stat().st_size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise CheckpointError(f"{path}: refused, it would unpack to {size / 2**20:.0f} MiB")
            if wrong := file.testzip():  # torch itself looks at none of the checksums
                raise CheckpointError(f"{path}: damaged: {cut(wrong)} has another checksum than when written")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            raise CheckpointError(f"{path}: refused, it holds more than tensors and plain values (code)") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of this program (format {FORMAT})")
    return state


def check_weights(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: Path) -> None:
    """Raises CheckpointError where weights are not those of a model, whose state is `own`, or not finite."""
    problems = [f"missing {key}" for key in own if key not in weights]
    problems += [f"unexpected {key}" for key in weights if key not in own]
    problems += [
        f"{key} is {tuple(weights[key].shape)}, the model has {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    if problems:
        shown = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
        raise CheckpointError(f"{path}: of another architecture: {cut(shown, 400)}")
    for key, w in weights.items():
        if not torch.isfinite(w).all():
            raise CheckpointError(f"{path}: {key} is not finite; the training went wrong, or the file did")
