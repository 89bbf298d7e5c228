"""What the report shows of one image: small pictures of its maps, and contours as SVG paths."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from PIL import Image
from skimage.measure import find_contours

from report.figures import CLASS_COLORS, color_pixels

SIDE = 384  # pixels of a picture's longer side, at most
CONTOUR_SIDE = 768
LEVELS = 64  # colours of a map; more are not told apart by eye, and cost bytes
TOLERANCE = 0.35  # pixels that one pass of simplification may move a contour


def _css(color: Iterable[int]) -> str:
    return "#" + "".join(f"{int(part):02x}" for part in color)


def class_color(k: int) -> str:
    """CSS colour of the contours of class k, counted from 0."""
    return _css(CLASS_COLORS[k % len(CLASS_COLORS)])


@dataclass(frozen=True)
class ImageLayers:
    """Arrays of one image. What is None is not shown.

    image: (H, W) or (H, W, 3) uint8. mmse: (K, H, W) of K classes, SDF units. labels: (H, W), 0 = background,
    k = the k-th class. probability: (H, W) in [0, 1], of any class. std: (K, H, W), None where there is a single draw.
    truth, truth_sdf: as labels and mmse; None where no one has drawn it. raters: (R, H, W) bool, the masks of several;
    rater_std: (K, H, W), standard deviation of their SDFs. draws: (D, H, W), labels of some draws.
    """

    image: np.ndarray
    mmse: np.ndarray
    labels: np.ndarray
    probability: np.ndarray | None = None
    std: np.ndarray | None = None
    truth: np.ndarray | None = None
    truth_sdf: np.ndarray | None = None
    raters: np.ndarray | None = None
    rater_std: np.ndarray | None = None
    draws: np.ndarray | None = None

    def maps(self) -> dict[str, np.ndarray]:
        """What there is to show, (H, W), by the key of its layer; of several classes the least MMSE, and the largest
        std and |MMSE - truth|."""
        std, rater_std = (None if own is None else own.max(axis=0) for own in (self.std, self.rater_std))
        error = None if self.truth_sdf is None else np.abs(self.mmse - self.truth_sdf).max(axis=0)
        values = {"image": self.image, "mmse": self.mmse.min(axis=0), "std": std, "rater_std": rater_std,
                  "probability": self.probability, "error": error}  # fmt: skip
        return {key: own for key, own in values.items() if own is not None}


@dataclass(frozen=True)
class Layer:
    """One layer of the viewer: its name, colour map (None for the image itself), and the values of the map's ends.
    raters, draws: the image below the contours of its raters, or of one draw."""

    key: str
    title: str
    cmap: str | None = None
    low: float = 0.0
    high: float = 1.0

    @property
    def gradient(self) -> str:
        """The colour map as CSS colours from low to high."""
        if self.cmap is None:
            return ""
        return ", ".join(_css(color) for color in color_pixels(np.linspace(0, 1, 9), 0, 1, self.cmap))


@dataclass(frozen=True)
class Contour:
    """Borders of one class or rater: an SVG path in half pixels of the image, and its colour."""

    path: str
    color: str


@dataclass(frozen=True)
class Picture:
    """What a card of the report shows: data URIs by the key of their layer, those of `raters` and `draws` empty, since
    they are the image; contours, those of the draws for each draw; size of the image, classes."""

    layers: dict[str, str]
    truth: list[Contour]
    prediction: list[Contour]
    raters: list[Contour]
    draws: list[list[Contour]]
    silent: int  # raters who marked nothing
    width: int
    height: int
    classes: int


def error_scale(images: Iterable[ImageLayers]) -> float:
    """The end of the colour map that stds and error share on the whole page: what 99 % of the pixels of a typical image
    stay below, rounded up to one digit, from 0.05 to 2, the largest error of an SDF in [-1, 1]."""
    tops = []
    for layers in images:
        maps = layers.maps()
        known = [float(np.percentile(maps[key], 99)) for key in ("std", "rater_std", "error") if key in maps]
        tops += [max(known)] if known else []
    top = min(max(float(np.median(tops)) if tops else 1.0, 0.05), 2.0)
    digit = 10.0 ** math.floor(math.log10(top))
    return round(math.ceil(top / digit - 1e-6) * digit, 3)


def layers_of(scale: float) -> list[Layer]:
    """All layers in the order of the slider. scale: of stds and error, see `error_scale`."""
    return [
        Layer("image", "image"),
        Layer("raters", "raters"),
        Layer("draws", "draws"),
        Layer("mmse", "MMSE", "RdBu", -1.0, 1.0),
        Layer("std", "std", "magma", 0.0, scale),
        Layer("rater_std", "raters' std", "magma", 0.0, scale),
        Layer("probability", "probability", "cividis"),
        Layer("error", "error", "magma", 0.0, scale),
    ]


def _reduced(values: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) with a longer side of at most SIDE, by averages over pixels."""
    height, width = values.shape[:2]
    factor = SIDE / max(height, width)
    if factor >= 1:
        return values
    size = max(1, round(width * factor)), max(1, round(height * factor))
    picture = Image.fromarray(values if values.dtype == np.uint8 else values.astype(np.float32))
    return np.asarray(picture.resize(size, Image.Resampling.BOX))


def data_uri(picture: Image.Image, most: int) -> str:
    """A WebP of at most `most` characters: without loss if that fits, else lossy, else smaller."""
    options = ({"lossless": True, "quality": 50, "method": 2}, {"quality": 85}, {"quality": 50})
    for option in options:
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", **option)
        text = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
        if len(text) <= most or max(picture.size) < 16:
            return text
    return data_uri(picture.resize([math.ceil(n / 2) for n in picture.size], Image.Resampling.BOX), most)


def _colored(values: np.ndarray, layer: Layer) -> Image.Image:
    if layer.cmap is None:
        return Image.fromarray(_reduced(values)).convert("RGB")
    share = (_reduced(values) - layer.low) / (layer.high - layer.low)
    levels = np.rint(np.clip(share, 0, 1) * (LEVELS - 1)) / (LEVELS - 1)
    return Image.fromarray(color_pixels(levels, 0.0, 1.0, layer.cmap))


def _simplified(points: np.ndarray, closed: bool) -> np.ndarray:
    """Corners (n, 2) without those that lie near the line between their neighbours; three passes over every other."""
    for shift in (1, 2, 1):
        if len(points) < (8 if closed else 3):
            break
        before, after = np.roll(points, 1, axis=0), np.roll(points, -1, axis=0)
        chord, own = after - before, points - before
        away = np.abs(chord[:, 0] * own[:, 1] - chord[:, 1] * own[:, 0]) / np.maximum(np.hypot(*chord.T), 1e-9)
        idle = away <= 2 * TOLERANCE  # in half pixels
        idle[shift - 1 :: 2] = False
        idle[[0, -1]] = False
        points = points[~idle]
    return points


def _rings(mask: np.ndarray, step: int) -> str:
    """The path of all borders of mask (H, W) bool, whose pixels are `step` wide; open where it leaves the image."""
    parts = []
    for contour in find_contours(np.pad(mask, 1, mode="edge").astype(np.float64), 0.5):
        # In half pixels all corners are whole numbers; half a pixel from centre to corner, minus 1 for the padding.
        points = np.rint((contour[:, ::-1] - 0.5) * 2 * step).astype(np.int64)
        points = np.clip(points, 0, [2 * step * n for n in mask.shape[::-1]])
        closed = bool((points[0] == points[-1]).all())
        points = _simplified(points[:-1] if closed else points, closed)
        moves = " ".join(f"{x} {y}" for x, y in np.diff(points, axis=0))
        parts.append(f"M{points[0, 0]} {points[0, 1]}l{moves}{'z' if closed else ''}".replace(" -", "-"))
    return "".join(parts)


def outline(mask: np.ndarray, most: int) -> str:
    """Borders of mask (H, W) bool as an SVG path in half pixels, of at most `most` characters.

    A mask of noise has too many borders to show: it is taken at every second pixel until they fit.
    """
    step = 1
    while True:
        edges = int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum())
        if edges <= 1.5 * most and max(mask.shape) <= CONTOUR_SIDE:
            path = _rings(mask, step)
            if len(path) <= most:
                return path
        mask, step = mask[::2, ::2], 2 * step


def _contours(labels: np.ndarray, classes: int, most: int) -> list[Contour]:
    """Of every class; the path of one that is not there is empty."""
    return [Contour(outline(labels == k + 1, most // classes), class_color(k)) for k in range(classes)]


def draw_picture(own: ImageLayers, layers: Sequence[Layer], most: int) -> Picture:
    """The pictures of one image in about `most` characters: what one layer does not need is left to others."""
    classes = len(own.mmse)
    truth, prediction = (
        [] if labels is None else [contour for contour in _contours(labels, classes, most // 8) if contour.path]
        for labels in (own.truth, own.labels)
    )
    masks = () if own.raters is None else own.raters
    raters = [Contour(outline(mask, most // 4 // len(masks)), class_color(k)) for k, mask in enumerate(masks)]
    stack = () if own.draws is None else own.draws
    draws = [_contours(labels, classes, most // 4 // len(stack)) for labels in stack]
    left = most - sum(len(contour.path) for contour in chain(truth, prediction, raters, *draws))
    maps = own.maps()
    shown = [layer for layer in layers if layer.key in maps]
    uris: dict[str, str] = {}
    for layer in reversed(shown):
        uris[layer.key] = data_uri(_colored(maps[layer.key], layer), left // (len(shown) - len(uris)))
        left -= len(uris[layer.key])
    height, width = own.labels.shape
    if raters:
        uris["raters"] = ""
    if draws:
        uris["draws"] = ""
    ordered = {layer.key: uris[layer.key] for layer in layers if layer.key in uris}
    silent = sum(not mask.any() for mask in masks)
    return Picture(ordered, truth, prediction, raters, draws, silent, width, height, classes)
