"""report.html: one self-contained page per sampling run."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from PIL import Image

TEMPLATES = Path(__file__).with_name("templates")


def _data_uri(path: Path) -> str:
    """The picture inside the page, as a palette PNG; a GIF as it is."""
    if path.suffix == ".gif":
        return "data:image/gif;base64," + base64.b64encode(path.read_bytes()).decode()
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").quantize(160).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def render_report(
    title: str,
    summary: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    folder: Path,
    settings: str,
) -> str:
    """The page as text.

    rows: one mapping per image with image_id, f1, iou, single_f1, mean_std; its pictures are read from
    folder/<image_id>/panel.png. settings: the resolved config as YAML.
    """
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    animation = folder / "trajectory.gif"
    return environment.get_template("report.html").render(
        title=title,
        summary=summary,
        rows=[{**row, "panel": _data_uri(folder / str(row["image_id"]) / "panel.png")} for row in rows],
        animation=_data_uri(animation) if animation.is_file() else None,
        settings=settings,
    )
