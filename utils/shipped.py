"""What is shipped: cfg/ and weights/ lie beside the rooms, in the repository and where it is installed."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {"prepare": "python -m data.prepare", "train": "python main.py", "sample": "python sample.py"}


def command(name: str) -> str:
    """What is typed for a command of COMMANDS: in an installed copy segsdf-NAME."""
    return f"segsdf-{name}" if __name__.startswith("segsdf.") else COMMANDS[name]


def _bare(name: Path, folder: str, suffix: str) -> bool:
    """Whether a name has no folder but that of what is shipped, and no other suffix."""
    return name.parent in (Path(), Path(folder)) and name.suffix in ("", suffix)


def _found(name: str | Path, folder: str, suffix: str, where: Path) -> Path:
    path, name = where / name, Path(name)
    shipped = ROOT / folder / f"{name.stem}{suffix}"
    # A folder of pictures called nuclei is no weights; a run may be.
    taken = os.path.exists(path / "config.yaml" if os.path.isdir(path) else path)
    return shipped if _bare(name, folder, suffix) and not taken and os.path.isfile(shipped) else path


def _near(name: Path, folder: str, suffix: str) -> str:
    shipped = sorted(path.stem for path in (ROOT / folder).glob(f"*{suffix}")) if _bare(name, folder, suffix) else []
    near = difflib.get_close_matches(name.stem, shipped, n=1, cutoff=0.5)
    return f"; did you mean {folder}/{near[0]}{suffix}?" if near else ""


def config_file(name: str | Path, where: Path = Path()) -> Path:
    """The file `name`, seen from the folder `where`. Where there is none, glas.yaml, cfg/glas.yaml and glas mean a
    shipped one, if there is one of that name."""
    return _found(name, "cfg", ".yaml", where)


def weights_file(name: str | Path) -> Path:
    """The same for weights: nuclei.safetensors, weights/nuclei.safetensors and nuclei."""
    return _found(name, "weights", ".safetensors", Path())


def near_config(name: str | Path) -> str:
    """The end of an error, "; did you mean cfg/glas.yaml?", where a name that is not found is like a shipped one's."""
    return _near(Path(name), "cfg", ".yaml")


def near_weights(name: str | Path) -> str:
    """The same for weights."""
    return _near(Path(name), "weights", ".safetensors")
