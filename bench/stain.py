"""What stain normalisation does to real images: colour spread, structure, time.

    python -m bench.stain "raw/monuseg/Training/Tissue Images" raw/glas --limit 30 --picture docs/stain.png

Prints, for each folder and method, the spread of the images' mean colours before and after, the structural similarity
of the grey images, and the CPU time per image. The picture shows phantom tissue, which is free of licences, and the
mean colours of the real images as dots.
"""

from __future__ import annotations

from utils.command import run_command

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure, SubFigure
from PIL import Image
from skimage.metrics import structural_similarity

from data.images import SUFFIXES, read_image
from data.sources.phantom import draw_sample
from data.stain import METHODS, Stain, StainError, central_stain, fit_stain, normalise
from utils.cli import Parser
from utils.data_schema import PhantomConfig
from utils.errors import DataError

_ANNOTATION = re.compile(r"_(anno|mask|label)s?$")


@dataclass
class Effect:
    """Pictures before and after, and how long an image took, in CPU time: cores may be busy."""

    before: list[np.ndarray]
    after: list[np.ndarray]
    seconds_per_image: float

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean colours (N, 3) before and after."""
        return tuple(np.array([i.reshape(-1, 3).mean(0) for i in x]) for x in (self.before, self.after))  # type: ignore[return-value]

    def similarity(self) -> float:
        """Mean SSIM of the grey images, brightness and contrast of each brought to the same."""
        return float(np.mean([_ssim(a, b) for a, b in zip(self.before, self.after, strict=True)]))


def _grey(image: np.ndarray) -> np.ndarray:
    grey = np.asarray(Image.fromarray(image).convert("L"), np.float64)
    return (grey - grey.mean()) / (grey.std() + 1e-9)


def _ssim(before: np.ndarray, after: np.ndarray) -> float:
    a, b = _grey(before), _grey(after)
    return float(structural_similarity(a, b, data_range=float(np.ptp(a))))


def measure(images: Sequence[np.ndarray], method: str) -> Effect:
    """All images normalised to the most typical of them; those without enough tissue stay as they are."""
    begin = time.process_time()
    stains: list[Stain | None] = []
    for image in images:
        try:
            stains.append(fit_stain(image, method))
        except StainError as error:
            print(f"  left as it is: {error}")
            stains.append(None)
    known = [stain for stain in stains if stain is not None]
    target = known[central_stain(known)]
    after = [i if s is None else normalise(i, s, target) for i, s in zip(images, stains, strict=True)]
    return Effect(list(images), after, (time.process_time() - begin) / len(images))


def load_folder(folder: Path, limit: int) -> list[np.ndarray]:
    """Up to `limit` colour images, evenly chosen, annotations left out. Raises DataError if there is none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    paths = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES and not _ANNOTATION.search(p.stem)]
    if not paths:
        raise DataError(f"{folder}: no images")
    chosen = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, limit).astype(int))]
    return [image for path in chosen if (image := read_image(path)).ndim == 3]


def report(name: str, method: str, effect: Effect) -> None:
    before, after = (m.std(axis=0) for m in effect.means())
    print(
        f"{name:16} {len(effect.before):3d} images {method:9} spread of mean R, G, B "
        f"{before.round(1).tolist()} -> {after.round(1).tolist()} ({after.mean() / before.mean():.2f} x)  "
        f"SSIM {effect.similarity():.3f}  {effect.seconds_per_image:.3f} CPU s per image"
    )


def draw_pictures(subfigure: SubFigure, effect: Effect, shown: int = 6) -> None:
    axes = subfigure.subplots(2, shown)
    for row, (title, images) in enumerate((("before", effect.before), ("after", effect.after))):
        for axis, image in zip(axes[row], images, strict=False):
            axis.imshow(image)
            axis.set(xticks=[], yticks=[])
        axes[row, 0].set_ylabel(title)
    subfigure.suptitle("phantom tissue, Vahadane")


def draw_means(subfigure: SubFigure, effects: dict[str, Effect]) -> None:
    axes = subfigure.subplots(1, len(effects), squeeze=False)[0]
    for axis, (name, effect) in zip(axes, effects.items(), strict=True):
        for colors, marker, label in zip(effect.means(), "o^", ("before", "after"), strict=True):
            dots = {"c": colors / 255, "marker": marker, "edgecolors": "black", "s": 60}
            axis.scatter(colors[:, 1], colors[:, 0], label=label, **dots)
        axis.set(xlabel="mean green", ylabel="mean red", title=f"{name}, {len(effect.before)} images")
        axis.legend()


def picture(phantom: Effect, effects: dict[str, Effect], path: Path) -> None:
    """Phantom tissue before and after; mean colours of the real images as dots in their colour."""
    figure = Figure(figsize=(12, 6.8 if effects else 3.6), layout="constrained")
    parts = figure.subfigures(2 if effects else 1, 1, squeeze=False)[:, 0]
    draw_pictures(parts[0], phantom)
    if effects:
        draw_means(parts[1], effects)
    figure.savefig(path, dpi=90)


def main(argv: list[str] | None = None) -> None:
    parser = Parser("Measure stain normalisation.")
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="folders of H&E images")
    parser.add_argument("--limit", type=int, default=30, help="images of each folder; default: 30")
    parser.add_argument("--picture", type=Path, help="write a picture there")
    args = parser.parse_args(argv)
    phantom = [draw_sample(PhantomConfig(size=160), i).image for i in range(12)]
    folders = {folder.name: load_folder(folder, args.limit) for folder in args.folders}
    drawn: dict[str, Effect] = {}
    for name, images in {"phantom": phantom, **folders}.items():
        for method in METHODS:
            effect = measure(images, method)
            report(name, method, effect)
            if method == "vahadane":
                drawn[name] = effect
    if args.picture:
        picture(drawn.pop("phantom"), drawn, args.picture)


if __name__ == "__main__":
    sys.exit(run_command(main))
