"""report.html: one self-contained page per sampling run."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from json import loads
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from report import scores as report_scores
from report.layers import ImageLayers, class_color, draw_picture, error_scale, layers_of

TEMPLATES = Path(__file__).with_name("templates")
PICTURES = 24_000_000  # characters of all pictures together; the rest of a page of 80 images is below 1 MB
USUAL = 80  # images that share them; fewer do not get more
ANIMATION = 2_000_000  # bytes; a larger one is linked

IMAGE_FILES = ("mmse.npy", "std.npy", "draws.npz", "draws.png", "mask.png", "classes.png", "probability.png",
               "mask_std.png", "instances.png", "instances.tif", "objects.csv", "objects.geojson", "panel.png",
               "overlay.png", "raters.png", "details.json")  # fmt: skip

RUN_FILES = ("results.csv", "metrics.csv", "summary.json", "calibration.json", "settings.json", "environment.json",
             "rank_histograms.png", "spread_skill.png", "reliability.png", "sparsification.png", "raters.png",
             "trajectory.gif")  # fmt: skip


def filled(template: Path, **values: Any) -> str:
    """The text of an HTML template with these values, escaped."""
    loader = FileSystemLoader(template.parent)
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": report_scores.number, "axis": axis}
    return environment.get_template(template.name).render(values)


def axis(values: Sequence[float]) -> tuple[float, float]:
    """Both ends of an axis that holds the values, two different ones at least: round numbers, as are its quarters."""
    low, high = min(values), max(values)
    unit = 10.0 ** math.floor(math.log10((high - low) / 4))
    steps = (k * unit for k in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12, 15, 20))
    step = next(step for step in steps if math.floor(low / step) * step + 4 * step >= high)
    left = math.floor(low / step) * step
    return left, left + 4 * step


def _present(folder: Path, names: Sequence[str]) -> list[str]:
    return [name for name in names if (folder / name).is_file()]


def _animation(path: Path) -> tuple[str, int, int] | None:
    """A GIF inside the page, if it is small, with its width and height."""
    if not path.is_file() or path.stat().st_size > ANIMATION:
        return None
    with Image.open(path) as gif:
        return "data:image/gif;base64," + base64.b64encode(path.read_bytes()).decode(), *gif.size


def render_report(
    title: str,
    summary: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    layers: Callable[[str], ImageLayers],
    folder: Path,
    settings: str,
) -> str:
    """The page as text.

    summary: as in summary.json; needs draws, nfe_per_draw, sampler and threshold. Without `mmse` (no truth) or
    uncertainty, objects, raters the page has no such part.
    rows: of each image image_id, and whatever of `report_scores.COLUMNS` is known.
    layers: arrays of the image of that image_id; called twice for each, so that not all are in memory.
    folder: where the page will lie. Links go to the files that are there, curves come from its calibration.json.
    settings: the resolved config as YAML.
    """
    names = [str(row["image_id"]) for row in rows]
    shown = layers_of(error_scale(layers(name) for name in names))
    most = PICTURES // max(len(rows), USUAL)
    pictures = [draw_picture(layers(name), shown, most) for name in names]
    files = [_present(folder / name, IMAGE_FILES) for name in names]
    used = {key for picture in pictures for key in picture.layers}
    curves = folder / "calibration.json"
    count = max((picture.classes for picture in pictures), default=1)
    classes = list(summary.get("mmse", {}).get("classes", range(1, count + 1))) if count > 1 else []
    return filled(
        TEMPLATES / "report.html",
        title=title,
        summary=summary,
        headline=report_scores.headline(summary),
        classes=report_scores.class_scores(summary),
        main_color=class_color(0),
        class_colors=[(name, class_color(k)) for k, name in enumerate(classes)],
        rater_colors=[class_color(k) for k in range(max((len(picture.raters) for picture in pictures), default=0))],
        spread=report_scores.spread(summary),
        uncertainty=report_scores.uncertainty(summary),
        risk=report_scores.risk_sentence(summary),
        objects=report_scores.objects(summary),
        raters=report_scores.raters(summary),
        curves=loads(curves.read_text()) if "uncertainty" in summary and curves.is_file() else None,
        columns={key: name for key, name in report_scores.COLUMNS.items() if any(key in row for row in rows)},
        layers=[layer for layer in shown if layer.key in used],
        cards=[{"row": r, "picture": p, "files": f} for r, p, f in zip(rows, pictures, files, strict=True)],
        files=_present(folder, RUN_FILES),
        animation=_animation(folder / "trajectory.gif"),
        settings=settings,
    )
