"""The second noise xi of a distributional denoiser: white noise in cells of several sizes, at every level of a trunk.

Fine cells let an edge vary, coarse ones an object, and the last, which holds any image, what its annotator did all over
it. What a pixel sees follows from the draw and the pixel's place in the image, so that tiles which overlap agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from sde.field import BLOCK, FieldNoise
from utils.devices import moved
from utils.share import WHOLE, Share

IMAGE = 1 << 30  # the side of a cell that holds any image
CELLS = (1, 4, 16, 64, IMAGE)  # pixels a side
PLACES = CELLS[-2]  # of an image among the cells, along each side
CHANNELS = 2  # of each

Window = tuple[int, int, int, int]  # top, left, height, width in cells


def latent_channels(scales: Sequence[int]) -> list[int]:
    """At levels of a trunk, finest first, whose pixels have these sides: smaller cells are not seen there."""
    return [CHANNELS * sum(cell >= scale for cell in CELLS) for scale in scales]


def _finest(
    field: Callable[[int, Window], Tensor], corner: tuple[int, int], size: Sequence[int], scale: int
) -> list[Tensor]:
    """xi of a window (H, W) for each size of cells from `scale` on, at every scale-th pixel, (B, CHANNELS, h, w).

    field: cell size and window of cells to (B, CHANNELS, height, width). corner: of the window in the image, in pixels.
    """
    parts: list[Tensor] = []
    for cell in (cell for cell in CELLS[:-1] if cell >= scale):
        (top, left), (bottom, right) = (
            [place // cell for place in corner],
            [(place + length - 1) // cell for place, length in zip(corner, size, strict=True)],
        )
        part = field(cell, (top, left, bottom - top + 1, right - left + 1))
        if cell > 1:
            rows, columns = (
                moved((torch.arange(0, length, scale) + place) // cell - first, part.device)
                for place, length, first in zip(corner, size, (top, left), strict=True)
            )
            part = part.index_select(3, columns).index_select(2, rows)
        parts.append(part)
    # One cell, also where a view of the image begins left of or above 0.
    parts.append(field(IMAGE, (0, 0, 1, 1)).expand(-1, -1, *(len(range(0, length, scale)) for length in size)))
    return parts


def at_levels(finest: Tensor, scales: Sequence[int], scale: int = 1) -> list[Tensor]:
    """xi at levels whose pixels have the sides `scales`, from that at pixels of side `scale`, (B, channels, H, W)."""
    steps = [side // scale for side in scales]
    return [finest[:, -count:, ::step, ::step] for step, count in zip(steps, latent_channels(scales), strict=True)]


def random_latent(
    count: int,
    size: Sequence[int],
    scales: Sequence[int],
    places: Generator,
    noise: Generator,
    device: torch.device,
    share: Share = WHOLE,
) -> list[Tensor]:
    """For a training step: xi of `count` windows (H, W) at levels whose pixels have the sides `scales`, all at one
    random place of an endless image.

    places: on the host. noise: on the device. share: the part of a batch that these windows are.
    """
    top, left = torch.randint(PLACES, (2,), generator=places).tolist()

    def field(cell: int, window: Window) -> Tensor:
        return share.normal((count, CHANNELS, *window[2:]), noise, device)

    return at_levels(torch.cat(_finest(field, (top, left), size, scales[0]), dim=1), scales, scales[0])


def latent_of(
    seeds: Sequence[int], corners: Sequence[tuple[int, int]], t: float, size: Sequence[int], scales: Sequence[int]
) -> list[Tensor]:
    """For sampling: xi of the evaluation at t at levels whose pixels have the sides `scales`, on the host, for draws
    with these seeds.

    corners: of the windows (H, W) in their images, in pixels. Each draw's cells begin elsewhere, as in training: at one
    place for all, their borders would show in the standard deviation.
    """

    def one(seed: int, corner: tuple[int, int]) -> Tensor:
        shift = divmod(seed % PLACES**2, PLACES)
        corner = corner[0] + shift[0], corner[1] + shift[1]

        def field(cell: int, window: Window) -> Tensor:
            return FieldNoise(seed, [(f"xi {cell} {t!r}", 0)], CHANNELS, window, block=max(1, BLOCK // cell))()

        return torch.cat(_finest(field, corner, size, scales[0]), dim=1)

    return at_levels(torch.cat([one(*draw) for draw in zip(seeds, corners, strict=True)]), scales, scales[0])
