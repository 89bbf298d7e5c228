"""python sample.py --compare RUN1 RUN2 ...: which samplings are meant, and what is written about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from evaluation.comparison import Run, compare_runs, render_comparison, to_csv, to_text
from utils.errors import UsageError
from utils.runs import by_time, new_folder, write_text


def sampled_folder(name: str) -> Path:
    """A folder with summary.json: the given one, or the newest sampling of the test images of a run."""
    path = Path(name)
    if (path / "summary.json").is_file():
        return path
    if not path.is_dir():
        raise UsageError(f"--compare {name}: no such folder")
    done = [p.parent for p in path.glob("samples/*/summary.json")]
    done = [p for p in done if json.loads((p / "summary.json").read_text()).get("split", "test") == "test"]
    if not done:
        raise UsageError(f"--compare {name}: not sampled yet; run sample.py --run {name} first")
    return max(done, key=by_time)


def _run(folder: Path) -> Run:
    rows = pd.read_csv(folder / "metrics.csv", dtype={"image_id": str})
    parts = folder.resolve().parts
    # runs/<name>/<time>/samples/<id>
    name = "/".join(p for p in parts[-4:] if p != "samples") if len(parts) > 4 else str(folder)
    return Run(name, rows, json.loads((folder / "summary.json").read_text()))


def _truth(folder: Path) -> str | None:
    """What identifies the images and masks that a sampling was scored on."""
    path = folder / "settings.json"
    settings = json.loads(path.read_text()) if path.is_file() else {}
    return settings.get("test data") or settings.get("val data")


def compare(names: Sequence[str], output: Path) -> str:
    """Write page and table into a new folder below `output`; return the text for the terminal.

    Raises UsageError for folders that are none, or that cannot be compared.
    """
    folders = [sampled_folder(name) for name in names]
    try:
        comparison = compare_runs([_run(folder) for folder in folders])
    except ValueError as error:
        raise UsageError(f"--compare: {error}") from None
    if len({_truth(folder) for folder in folders}) > 1:
        comparison.notes.append("The runs were scored on different prepared data, so their truths may differ.")
    folder = new_folder(output)
    write_text(folder / "compare.csv", to_csv(comparison))
    write_text(folder / "compare.html", render_comparison(comparison))
    return f"{to_text(comparison)}\n\npage: {folder / 'compare.html'}"
