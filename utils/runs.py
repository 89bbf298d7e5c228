"""Run folders: runs/<name>/<timestamp>/ and what every run leaves there."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from utils.errors import UsageError, cut
from utils.files import naming, write_json
from utils.reading import read_json
from utils.shipped import command


def new_folder(parent: Path) -> Path:
    """A new folder named by the time; a number is added where two start within a second."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{n}" for n in range(2, 1000))):
        folder = parent / (stamp + suffix)
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise UsageError(f"{parent}: no free folder name for {stamp}")


def settle(folder: Path, settings: Mapping[str, Any], resume: bool, hint: str = "--resume") -> None:
    """Note in a folder of results that is held what they depend on, or with `resume` compare: raises UsageError where
    they were made with anything else. hint: the option that brought it here."""
    settings = plain(settings)
    if not resume:
        write_json(folder / "settings.json", settings)
        return
    before = read_json(folder / "settings.json", dict[str, Any])
    for key in settings:
        if before.get(key) != settings[key]:
            other = f"leave out {hint} for a new folder" if hint == "--resume" else "choose another folder"
            raise UsageError(f"{hint}: {folder} was made with another {key}; {other}")


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As they are read from a file."""
    content: dict[str, Any] = json.loads(json.dumps(settings))
    return content


def folders_with(parent: Path, name: str) -> list[Path]:
    """What `new_folder` has made below `parent` and has a file of this name, from the oldest to the newest."""
    found = [path.parent for path in parent.glob(f"*/{name}") if path.is_file()]
    return sorted(found, key=lambda folder: (folder.name[:15], len(folder.name), folder.name))


def checked_run(run: Path, what: str = "") -> Path:
    """The folder, if it is that of a run. what: named before it. Raises UsageError."""
    if not (run / "config.yaml").is_file():
        raise UsageError(f"{what}{cut(run, 120)} is not a run folder (no config.yaml)")
    return run


def newest_run(name: str, root: Path = Path("runs")) -> Path:
    """The newest run of a config's name. Raises UsageError if there is none."""
    runs = folders_with(root / name, "config.yaml")
    if not runs:
        raise UsageError(f"{root / name}: no run yet; train one with `{command('train')}`, or name one with --run")
    return runs[-1]


class _LogFile(logging.FileHandler):
    """A full disk ends the command with its line, not with a traceback for every line of the log."""

    def handleError(self, record: logging.LogRecord) -> None:
        with naming(Path(self.baseFilename)):
            raise


def log_to_file(run: Path) -> None:
    """Send the log, with times, to run/log.txt too."""
    handler = _LogFile(run / "log.txt")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def checkpoint_path(run: Path, name: str) -> Path:
    """best and last are files of the run; anything else is a path."""
    if name not in ("best", "last"):
        return Path(name)
    path = run / "checkpoints" / f"{name}.pt"
    if name == "best" and not path.is_file() and path.with_name("last.pt").is_file():
        raise UsageError(f"{path}: not validated yet, so there is no best; use --checkpoint last")
    return path
