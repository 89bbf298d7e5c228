"""python sample.py --compare RUN1 RUN2 ...: which samplings are meant, and what is written about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from typing_extensions import TypedDict

from evaluation.comparison import COSTS, LEAST, RESAMPLES, SCORES, SPREAD, Comparison, Run, compare_runs
from report.page import TEMPLATES, filled
from results.read import Settings, read_metrics
from utils.errors import UsageError
from utils.files import write_text
from utils.reading import read_json
from utils.runs import folders_with, new_folder
from utils.shipped import command

Area = TypedDict("Area", {"coverage": float | None, "expected": float | None}, total=False)  # noqa: UP013


class Spread(TypedDict, total=False):
    """What is read here of its `spread`."""

    ssr: float | None
    image_area: Area
    object_area: Area
    fair_ged: float | None


class Summary(TypedDict, total=False):
    """What is read here of a summary.json."""

    split: str
    device: str
    draws: int | float
    nfe_per_draw: int | float
    seconds_per_image: float
    spread: Spread | None


def sampled_folder(name: str) -> Path:
    """A folder with summary.json: the given one, or the newest sampling of the test images of a run."""
    path = Path(name)
    if (path / "summary.json").is_file():
        return path
    if not path.is_dir():
        raise UsageError(f"--compare {name}: no such folder")
    done = folders_with(path / "samples", "summary.json")
    done = [p for p in done if read_json(p / "summary.json", Summary).get("split", "test") == "test"]
    if not done:
        raise UsageError(f"--compare {name}: not sampled yet; run `{command('sample')} --run {name}` first")
    return done[-1]


def _run(folder: Path) -> Run:
    rows = read_metrics(folder / "metrics.csv", SCORES)
    parts = folder.resolve().parts
    # runs/<name>/<time>/samples/<id>
    name = "/".join(p for p in parts[-4:] if p != "samples") if len(parts) > 4 else str(folder)
    return Run(name, rows, read_json(folder / "summary.json", Summary))


def _truth(folder: Path) -> str | None:
    """What identifies the images and masks that a sampling was scored on."""
    path = folder / "settings.json"
    settings: Settings = read_json(path, Settings) if path.is_file() else {}
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


def to_csv(comparison: Comparison) -> str:
    """A line a run: images, costs, means, and difference_<score>_<what> against the first, whose own are empty."""
    rows: list[dict[str, Any]] = []
    for k, name in enumerate(comparison.names):
        rows.append({"run": name, "images": comparison.counts[k], **comparison.costs[k], **comparison.means[k]})
        rows[-1] |= comparison.spread[k]
        for score, difference in comparison.differences[k - 1].items() if k else ():
            rows[-1] |= {f"difference_{score}_{what}": value for what, value in vars(difference).items()}
    return pd.DataFrame(rows).to_csv(index=False)


def _aligned(lines: Sequence[Sequence[str]], left: int) -> str:
    """Columns of equal width, two spaces apart; the first `left` are flush left, the others flush right."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    padded = [
        [cell.ljust(w) if k < left else cell.rjust(w) for k, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _cost(name: str, value: float | None) -> str:
    return _number(value, ".2f" if name == "seconds_per_image" else "g")


def _p(value: float | None) -> str:
    return "< 0.0001" if value is not None and value < 1e-4 else _number(value, ".4f")


def to_text(comparison: Comparison) -> str:
    """Two aligned tables for the terminal, and the notes."""
    titles = [SPREAD[name] for name in comparison.spread[0]]
    runs = [["run", "images", *COSTS.values(), *comparison.scores.values(), *titles]]
    columns = comparison.names, comparison.counts, comparison.costs, comparison.means, comparison.spread
    for name, count, costs, means, spread in zip(*columns, strict=True):
        cells = [_cost(*item) for item in costs.items()] + [f"{mean:.4f}" for mean in means.values()]
        runs.append([name, str(count), *cells, *(_number(value, ".3f") for value in spread.values())])
    pairs = [[f"minus {comparison.names[0]}", "score", "mean", "95 % from", "to", "better", "worse", "equal", "p"]]
    for name, differences in zip(comparison.names[1:], comparison.differences, strict=True):
        for score, d in differences.items():
            interval = [_number(value, "+.4f") for value in (d.mean, d.low, d.high)]
            shares = [f"{share:.0%}" for share in (d.better, d.worse, d.equal)]
            pairs.append([name, comparison.scores[score], *interval, *shares, _p(d.p)])
    return "\n\n".join([_aligned(runs, 1), _aligned(pairs, 2), *comparison.notes])


def _intervals(comparison: Comparison) -> list[dict[str, Any]]:
    """Lines of the page's table of differences; start, end and point are percent of the width of its little chart.
    good: the sign of a difference that is better."""
    lines = []
    for score, title in comparison.scores.items():
        column = [differences[score] for differences in comparison.differences]
        reach = max(abs(x) for d in column for x in (d.mean, d.low, d.high) if x is not None) or 1.0
        for k, d in enumerate(column, start=2):
            start, point, end = (50.0 + 48.0 * (d.mean if x is None else x) / reach for x in (d.low, d.mean, d.high))
            chart = {"start": start, "point": point, "end": end, "good": -1 if score in LEAST else 1}
            lines.append({"run": k, "score": title, **chart, **vars(d)})
    return lines


def render_comparison(comparison: Comparison, title: str = "Comparison of runs") -> str:
    """A self-contained HTML page: runs, differences with their intervals, and every image."""
    images = comparison.images.astype(object).where(comparison.images.notna(), None)
    rows = [
        (image, {score: [images.loc[image, (score, name)] for name in comparison.names] for score in comparison.scores})
        for image in images.index
    ]
    return filled(
        TEMPLATES / "compare.html", title=title, comparison=comparison, scores=comparison.scores, spread=SPREAD,
        costs=COSTS, cost=_cost, p=_p, lines=_intervals(comparison), rows=rows, resamples=RESAMPLES,
    )  # fmt: skip
