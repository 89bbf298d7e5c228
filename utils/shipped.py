"""What is shipped: cfg/ and weights/ lie beside the rooms, in the repository and where it is installed."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _found(name: str | Path, folder: str, suffix: str, where: Path) -> Path:
    path, name = where / name, Path(name)
    shipped = ROOT / folder / f"{name.stem}{suffix}"
    means_it = name.parent in (Path(), Path(folder)) and name.suffix in ("", suffix)
    return shipped if means_it and not os.path.exists(path) and os.path.isfile(shipped) else path


def config_file(name: str | Path, where: Path = Path()) -> Path:
    """The file `name`, seen from the folder `where`. Where there is none, glas.yaml, cfg/glas.yaml and glas mean a
    shipped one, if there is one of that name."""
    return _found(name, "cfg", ".yaml", where)


def weights_file(name: str | Path) -> Path:
    """The same for weights: nuclei.safetensors, weights/nuclei.safetensors and nuclei."""
    return _found(name, "weights", ".safetensors", Path())
