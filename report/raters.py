"""Where raters differ and where draws do: a line of pictures for an image, and a sheet of such lines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import uniform_filter

from report.figures import color_pixels, outlined

TILE = 192  # pixels of a picture's side
SIDES = (24, 32, 48, 64, 96)  # pixels of the image that it shows: divisors
CAPTION, BETWEEN, HEAD, FOOT = 20, 6, 24, 30
TITLES = ("raters, a colour each", "as many draws", "std of the draws", "std of the raters")
MOST_STD = 0.5  # of a mask


def window_of(marked: np.ndarray, disputed: np.ndarray) -> tuple[slice, slice]:
    """The part of an image (H, W) to look at: a square of one of SIDES, less where the image ends, with all that is
    marked (bool) and a margin. Where that does not fit it lies where most is `disputed`, any numbers; in the middle of
    the image where nothing is."""
    spans = [np.flatnonzero(marked.any(axis=axis)) for axis in (1, 0)]
    ends = [(s[0], s[-1] + 1) if len(s) else (0, n) for s, n in zip(spans, marked.shape, strict=True)]
    extent = 1.25 * max(high - low for low, high in ends)
    side = next((side for side in SIDES if side >= extent), SIDES[-1])
    centre: Sequence[int] = [(low + high) // 2 for low, high in ends]
    if side < extent and disputed.any():
        around = uniform_filter(disputed.astype(np.float64), side, mode="constant")
        centre = [int(i) for i in np.unravel_index(around.argmax(), around.shape)]
    starts = [max(0, min(c - side // 2, n - side)) for c, n in zip(centre, marked.shape, strict=True)]
    first, second = (slice(start, min(start + side, n)) for start, n in zip(starts, marked.shape, strict=True))
    return first, second


def rater_line(
    name: str, image: np.ndarray, raters: np.ndarray, draws: np.ndarray, stds: Sequence[np.ndarray]
) -> Image.Image:
    """Contours of the raters, contours of as many draws, and the stds of draws and raters in one scale, below a
    caption. image: (H, W) or (H, W, 3) uint8. raters, draws: (R, H, W) and (S, H, W) bool. stds: of all draws' masks
    and of the raters', (H, W) each, in [0, 0.5]."""
    draws = draws[: len(raters)]
    part = window_of(np.asarray(np.concatenate([raters, draws]).any(axis=0)), sum(stds, np.zeros(image.shape[:2])))
    height, width = image[part].shape[:2]
    zoom = TILE // max(height, width)
    contours = [outlined(image[part], [mask[part] for mask in masks], zoom) for masks in (raters, draws)]
    maps = [Image.fromarray(color_pixels(std[part], 0.0, MOST_STD, "magma")) for std in stds]
    maps = [own.resize((width * zoom, height * zoom), Image.Resampling.NEAREST) for own in maps]
    line = Image.new("RGB", (len(TITLES) * (TILE + BETWEEN) + BETWEEN, TILE + CAPTION + BETWEEN), "white")
    for k, own in enumerate((*contours, *maps)):
        left = BETWEEN + k * (TILE + BETWEEN) + (TILE - own.width) // 2
        line.paste(own, (left, CAPTION + (TILE - own.height) // 2))
    marked = ((int(masks.any(axis=(1, 2)).sum()), len(masks)) for masks in (raters, draws))
    words = [
        f"{n - k} of {n} {what} nothing" for (k, n), what in zip(marked, ("raters", "draws"), strict=True) if k < n
    ]
    caption = "; ".join([f"{name}, {height} x {width} pixels", *words])
    ImageDraw.Draw(line).text((BETWEEN, 2), caption, fill="black", font=ImageFont.load_default(13))
    return line


def rater_sheet(lines: Sequence[Image.Image]) -> Image.Image:
    """Lines from `rater_line` below their headings, in two columns where there are more than four, and the scale."""
    columns = 1 if len(lines) <= 4 else 2
    rows = -(-len(lines) // columns)
    width, height = lines[0].size
    step = width + 4 * BETWEEN
    sheet = Image.new("RGB", (columns * step - 4 * BETWEEN, HEAD + rows * height + FOOT), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column in range(columns):
        for k, title in enumerate(TITLES):
            draw.text((column * step + BETWEEN + k * (TILE + BETWEEN), 4), title, fill="black", font=font)
    for i, line in enumerate(lines):
        sheet.paste(line, (i // rows * step, HEAD + i % rows * height))
    left, top = 2 * (TILE + BETWEEN) + BETWEEN, sheet.height - FOOT + 8
    ramp = color_pixels(np.linspace(0, 1, TILE)[None].repeat(12, axis=0), 0.0, 1.0, "magma")
    sheet.paste(Image.fromarray(ramp), (left, top))
    draw.text((left - 6, top + 6), "all agree 0", fill="black", font=font, anchor="rm")
    draw.text((left + TILE + 6, top + 6), f"{MOST_STD} half and half", fill="black", font=font, anchor="lm")
    return sheet
