"""Checkpoints that are whole or absent, and are read without running code."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import CheckpointError
from utils.files import whole_file
from utils.weights import SUFFIX, read_weights

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


def load_checkpoint(path: Path, needs: Sequence[str] = ()) -> dict[str, Any]:
    """The state of a checkpoint on the host, tensors and plain values only.

    needs: keys without which it is of no use.
    Raises CheckpointError if the file is absent, truncated, of another program or holds code.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    if path.suffix == SUFFIX:
        return read_weights(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(f"{path}: refused, it holds more than tensors and plain values (code)") from None
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path}: truncated or not a checkpoint ({(str(error) or type(error).__name__).splitlines()[0][:120]})"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of this program (format {FORMAT})")
    absent = [key for key in needs if key not in state]
    if absent:
        raise CheckpointError(f"{path}: an incomplete checkpoint, without {', '.join(absent)}")
    return state


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict strictly. Raises CheckpointError naming the keys that do not fit."""
    own = module.state_dict()
    problems = [f"missing {key}" for key in own if key not in weights]
    problems += [f"unexpected {key}" for key in weights if key not in own]
    problems += [
        f"{key} is {tuple(weights[key].shape)}, the model has {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    if problems:
        shown = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else "")
        raise CheckpointError(f"{path}: of another architecture: {shown}")
    module.load_state_dict(dict(weights))
