"""Where a command runs: the device of --device, its name and memory, and what else a result depends on."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import distributions
from typing import Any

import torch
from torch import Tensor

from utils.errors import UsageError, cut
from utils.shipped import ROOT

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-image", "pandas", "pydantic", "pillow")


def choose_device(name: str) -> torch.device:
    """The torch device of --device; auto prefers CUDA, then MPS. Raises UsageError if it is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # meta has no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {cut(name)}: not usable here ({cut(error, 150)}); try auto or cpu") from None
    return device


def own_device(name: str) -> torch.device:
    """As `choose_device`, of one of several processes that torchrun has started on a machine: a GPU for each."""
    own = int(os.environ["LOCAL_RANK"])
    if name in ("auto", "cuda") and torch.cuda.is_available():
        if own >= (there := torch.cuda.device_count()):
            raise UsageError(f"process {own} of this machine finds {there} GPUs; use --nproc-per-node {there}")
        torch.cuda.set_device(own)
        return torch.device("cuda", own)
    device = choose_device("cpu" if name == "auto" else name)
    if device.type != "cpu":
        raise UsageError(f"--device {cut(name)}: with several processes it is cpu, or cuda, a GPU for each")
    return device


def device_name(device: torch.device) -> str:
    """A name to print beside a timing."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type} ({platform.processor() or platform.machine()}, {torch.get_num_threads()} threads)"


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """Where the device can fetch it from by itself, if it is CUDA's and the tensor on the host."""
    return tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device. What comes from the host does not wait there for the work that the device still has."""
    return pinned(tensor, device).to(device, non_blocking=device.type not in ("cpu", "mps"))


def peak_memory_mib(device: torch.device) -> float:
    """The most memory used so far: of the GPU where there is one, of the process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _commit() -> str | None:
    if (noted := ROOT / "COMMIT").is_file():  # installed; a repository around it is another one
        return noted.read_text() or None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def environment(device: torch.device) -> dict[str, Any]:
    """What a result depends on besides the config."""
    return {
        "command": sys.argv,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device_name(device),
        "packages": {name: next((d.version for d in distributions(name=name)), None) for name in PACKAGES},
    }
