"""Many images and their masks at one look."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from report.figures import label_map, zoom_of

COLUMNS = 8
GAP = 4  # pixels between an image and its mask; twice that between samples


def contact_sheet(images: Sequence[np.ndarray], labels: Sequence[np.ndarray], classes: int = 1) -> Image.Image:
    """A grid of images, each above its mask.

    images: (H, W) or (H, W, 3) uint8. labels: (H, W), 0 = background, k = the k-th class.
    """
    zoom = zoom_of(images[0].shape, target=96)
    height, width = (zoom * max(image.shape[axis] for image in images) for axis in (0, 1))
    columns = min(COLUMNS, len(images))
    rows = -(-len(images) // columns)
    step_x, step_y = width + 2 * GAP, 2 * height + 3 * GAP
    sheet = Image.new("RGB", (columns * step_x, rows * step_y), "white")
    for i, (image, own) in enumerate(zip(images, labels, strict=True)):
        left, top = GAP + i % columns * step_x, GAP + i // columns * step_y
        for k, pixels in enumerate((image, label_map(own, classes))):
            picture = Image.fromarray(pixels).convert("RGB")
            picture = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
            sheet.paste(picture, (left, top + k * (height + GAP)))
    return sheet
