"""Pictures of images and their results, drawn with Pillow so that hundreds take seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage.measure import find_contours

MARGIN, TITLE, BAR = 8, 26, 74
GAP = 4  # pixels of a contact sheet between an image and its mask; twice that between samples
TRUTH_COLOR = (255, 255, 255)
# Those of Okabe and Ito, an amber for their orange and yellow: the colour-blind tell them apart, and from white.
CLASS_COLORS = [(255, 196, 0), (86, 180, 233), (213, 94, 0), (0, 158, 115), (204, 121, 167), (0, 114, 178)]


def zoom_of(shape: Sequence[int], target: int = 256, most: int = 2048) -> int:
    """Whole factor that brings the shorter side to about `target` pixels, and the longer one to `most` at most."""
    return max(1, min(round(target / min(shape[:2])), most // max(shape[:2])))


def gray_image(values: np.ndarray) -> Image.Image:
    """(H, W) in [0, 1] as an 8-bit picture of the same size; 255 is 1."""
    return Image.fromarray((np.clip(values, 0.0, 1.0) * 255.0).round().astype(np.uint8))


def _enlarge(pixels: np.ndarray, zoom: int) -> Image.Image:
    image = Image.fromarray(pixels).convert("RGB")
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def _framed(picture: Image.Image, title: str, extra_width: int = 0) -> Image.Image:
    size = (picture.width + 2 * MARGIN + extra_width, picture.height + TITLE + MARGIN)
    canvas = Image.new("RGB", size, "white")
    canvas.paste(picture, (MARGIN, TITLE))
    ImageDraw.Draw(canvas).text((MARGIN, 5), title, fill="black", font=ImageFont.load_default(14))
    return canvas


def _beside(parts: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one height, from left to right."""
    canvas = Image.new("RGB", (sum(part.width for part in parts), parts[0].height), "white")
    left = 0
    for part in parts:
        canvas.paste(part, (left, 0))
        left += part.width
    return canvas


def color_pixels(values: np.ndarray, low: float, high: float, cmap: str) -> np.ndarray:
    """(H, W) values to (H, W, 3) uint8; what lies beyond low and high is cut off."""
    share = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    return (matplotlib.colormaps[cmap](share)[..., :3] * 255).astype(np.uint8)


def color_map(values: np.ndarray, low: float, high: float, cmap: str, title: str, zoom: int) -> Image.Image:
    """(H, W) values with a colour bar from `low` to `high`, both marked."""
    picture = _enlarge(color_pixels(values, low, high, cmap), zoom)
    canvas = _framed(picture, title, BAR)
    ramp = color_pixels(np.linspace(1, 0, picture.height)[:, None], 0.0, 1.0, cmap).repeat(14, axis=1)
    left = picture.width + 2 * MARGIN
    canvas.paste(Image.fromarray(ramp), (left, TITLE))
    draw, small = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for share in (0.0, 0.5, 1.0):
        y = TITLE + (1 - share) * (picture.height - 1)
        draw.line([(left + 14, y), (left + 18, y)], fill="black")
        draw.text((left + 21, y), f"{low + share * (high - low):.2g}", fill="black", font=small, anchor="lm")
    return canvas


def mmse_map(mmse: np.ndarray, zoom: int, title: str = "MMSE (SDF)") -> Image.Image:
    """Mean SDF from -1 (inside, red) to 1 (blue)."""
    return color_map(mmse, -1.0, 1.0, "RdBu", title, zoom)


def std_map(std: np.ndarray, zoom: int) -> Image.Image:
    """Standard deviation from 0 to its largest value in this image."""
    return color_map(std, 0.0, max(float(std.max()), 1e-3), "magma", "std over draws (SDF)", zoom)


def label_map(labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels (H, W) as pixels: black and white for one class, (H, W, 3) colours for several."""
    if classes == 1:
        return (labels > 0).astype(np.uint8) * 255
    colors = [CLASS_COLORS[k % len(CLASS_COLORS)] for k in range(classes)]
    return np.array([(0, 0, 0), *colors], np.uint8)[labels]


def outlined(
    image: np.ndarray, masks: Sequence[np.ndarray], zoom: int, truth: Sequence[np.ndarray] = ()
) -> Image.Image:
    """The image with the contours of the truth in white, and above them that of each mask in a colour of its own."""
    picture = _enlarge(image, zoom)
    draw = ImageDraw.Draw(picture)
    colors = [*[TRUTH_COLOR] * len(truth), *(CLASS_COLORS[k % len(CLASS_COLORS)] for k in range(len(masks)))]
    for mask, color in zip((*truth, *masks), colors, strict=True):
        for contour in find_contours(np.pad(mask, 1, mode="edge").astype(float), 0.5):
            # The centre of pixel (0, 0) lies at half a zoomed pixel; minus 1 for the padding.
            draw.line([(float((x - 0.5) * zoom), float((y - 0.5) * zoom)) for y, x in contour], fill=color, width=2)
    return picture


def overlay(image: np.ndarray, truth: np.ndarray, labels: np.ndarray, zoom: int, classes: int = 1) -> Image.Image:
    """The image with the contours of truth (white) and prediction (yellow; of several classes, each its own)."""
    true, predicted = ([own == k for k in range(1, classes + 1)] for own in (truth, labels))
    return outlined(image, predicted, zoom, true)


def panel(
    image: np.ndarray, truth: np.ndarray, mmse: np.ndarray, std: np.ndarray, labels: np.ndarray, f1: float, zoom: int
) -> Image.Image:
    """Image, truth, MMSE, std, mask and overlay side by side.

    truth, labels: (H, W), 0 = background. mmse, std: (K, H, W); of several classes the least mean and the largest
    std are shown.
    """
    classes = len(mmse)
    title = "truth white, mask yellow" if classes == 1 else "truth white, classes coloured"
    parts = [
        _framed(_enlarge(image, zoom), "image"),
        _framed(_enlarge(label_map(truth, classes), zoom), "truth"),
        mmse_map(mmse.min(axis=0), zoom),
        std_map(std.max(axis=0), zoom),
        _framed(_enlarge(label_map(labels, classes), zoom), f"mask of the MMSE, F1 {f1:.3f}"),
        _framed(overlay(image, truth, labels, zoom, classes), title),
    ]
    return _beside(parts)


def contact_sheet(images: Sequence[np.ndarray], labels: Sequence[np.ndarray], classes: int = 1) -> Image.Image:
    """A grid, eight in a row, of images (H, W) or (H, W, 3) uint8, each above its labels (H, W), 0 = background."""
    zoom = zoom_of(images[0].shape, target=96)
    height, width = (zoom * max(image.shape[axis] for image in images) for axis in (0, 1))
    columns = min(8, len(images))
    step_x, step_y = width + 2 * GAP, 2 * height + 3 * GAP
    sheet = Image.new("RGB", (columns * step_x, -(-len(images) // columns) * step_y), "white")
    for i, (image, own) in enumerate(zip(images, labels, strict=True)):
        left, top = GAP + i % columns * step_x, GAP + i // columns * step_y
        sheet.paste(_enlarge(image, zoom), (left, top))
        sheet.paste(_enlarge(label_map(own, classes), zoom), (left, top + height + GAP))
    return sheet


def trajectory(frames: Iterable[tuple[float, np.ndarray]], threshold: float, path: Path, most: int = 40) -> None:
    """A GIF of (noise level, SDF (H, W)) iterates and their masks, from noise to the draw."""
    frames = list(frames)
    chosen = [frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, min(most, len(frames))).astype(int))]
    zoom = zoom_of(chosen[0][1].shape)
    pictures = []
    for sigma, sdf in chosen:
        left = mmse_map(sdf, zoom, f"SDF, noise {sigma:.3g}")
        right = _framed(_enlarge((sdf < threshold).astype(np.uint8) * 255, zoom), "mask")
        pictures.append(_beside([left, right]).quantize(128, dither=Image.Dither.NONE))
    durations = [max(100, 4000 // len(pictures))] * (len(pictures) - 1) + [2500]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0)
