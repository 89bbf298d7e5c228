"""Augmentation of image and SDF together, in batches and on their device.

Flips and 90-degree turns keep an SDF exactly. Zoom, rotation and elastic deformation do not: the deformed mask gets
its SDF computed anew. Intensities change the image only. Random numbers come from one generator on the host, so that
all devices see the same changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from utils.data_schema import DataConfig
from utils.devices import moved

# Optical density of haematoxylin, eosin and what is left over (Ruifrok & Johnston 2001), unit vectors.
STAINS = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776))
Pair = tuple[Tensor, Tensor]
ELASTIC_SPACING = 16  # pixels between the random displacements of an elastic deformation


@dataclass(frozen=True)
class Augmentation:
    """The changes that data.flips, data.rotations and data.augment ask for."""

    data: DataConfig

    def __call__(self, image: Tensor, sdf: Tensor, generator: Generator) -> Pair:
        """Changed copies of image (B, C, H, W) in [0, 255], as float32 unless nothing but symmetries is asked for,
        and sdf (B, K, H, W), or (B, R, K, H, W) of R raters, who are changed alike. generator: on the host."""
        data, most = self.data, self.data.augment
        image, sdf = random_symmetry(image, sdf, generator, flips=data.flips, rotations=data.rotations)
        if most.scale or most.rotate or most.elastic:
            image, sdf = self._deform(image.float(), sdf, generator)
        if any((most.brightness, most.contrast, most.gamma, most.blur, most.noise, most.stain)):
            image = self._intensity(image.float(), generator)
        return image, sdf

    def _deform(self, image: Tensor, sdf: Tensor, generator: Generator) -> Pair:
        most, truncation = self.data.augment, self.data.truncation
        grid, zoom = random_grid(image, generator, scale=most.scale, rotate=most.rotate, elastic=most.elastic)
        step = self.data.sdf_scale / truncation  # SDF of one pixel
        maps = sdf.reshape(-1, *sdf.shape[-3:]) / step
        places, zooms = (x.repeat_interleave(len(maps) // len(image), dim=0) for x in (grid, zoom))
        return _warp(image, grid), deform_sdf(maps, places, zooms, truncation).view(sdf.shape) * step

    def _intensity(self, image: Tensor, generator: Generator) -> Tensor:
        most, count, device = self.data.augment, image.shape[0], image.device

        def uniform(limit: float) -> Tensor:
            values = (2 * torch.rand(count, generator=generator) - 1) * limit
            return moved(values, device).view(-1, 1, 1, 1)

        if most.stain:
            image = jitter_stain(image, torch.cat([uniform(most.stain), uniform(most.stain)], dim=1))
        if most.contrast or most.brightness:
            mean = image.mean(dim=(1, 2, 3), keepdim=True)
            image = mean + (image - mean) * (1 + uniform(most.contrast)) + 255 * uniform(most.brightness)
        if most.gamma:
            image = 255 * (image.clamp(0, 255) / 255) ** torch.exp(uniform(math.log1p(most.gamma)))
        if most.blur:
            sigma = (2 * torch.rand(count, generator=generator) - 1).abs() * most.blur
            image = gaussian_blur(image, sigma.view(-1, 1, 1, 1))
        if most.noise:
            white = moved(torch.randn(image.shape, generator=generator), device)
            image = image + 255 * uniform(1.0).abs() * most.noise * white
        return image.clamp(0, 255)


def random_symmetry(image: Tensor, sdf: Tensor, generator: Generator, *, flips: bool, rotations: bool) -> Pair:
    """Random flips and 90-degree turns, each pair alike: they are exact for an SDF.

    image (B, C, H, W) and sdf (B, ..., H, W); generator on the host. Turns by 90 degrees need H = W; other pictures are
    turned by 180.
    """
    moves: list[Callable[[Tensor], Tensor]] = []
    if flips:
        moves += [lambda x: x.flip(-1), lambda x: x.flip(-2)]
    if rotations and image.shape[-1] == image.shape[-2]:
        moves += [lambda x: x.rot90(1, (-2, -1))]
    if rotations:
        moves += [lambda x: x.rot90(2, (-2, -1))]
    for move in moves:
        flag = moved(torch.rand(len(image), generator=generator) < 0.5, image.device)
        image, sdf = (torch.where(flag.view(-1, *[1] * (x.ndim - 1)), move(x), x) for x in (image, sdf))
    return image, sdf


def jitter_stain(image: Tensor, change: Tensor) -> Tensor:
    """Haematoxylin and eosin, told apart by fixed stain vectors, times 1 + change (Tellez et al. 2018).

    image: (B, 3, H, W) in [0, 255]; change: (B, 2, 1, 1).
    """
    on_host = torch.tensor(STAINS)
    stains, inverse = moved(on_host, image.device), moved(torch.linalg.inv(on_host), image.device)
    density = -torch.log(image.clamp(min=1) / 255)
    amounts = torch.einsum("bchw,cs->bshw", density, inverse)
    factors = torch.cat([1 + change, torch.ones_like(change[:, :1])], dim=1)
    return 255 * torch.exp(-torch.einsum("bshw,sc->bchw", amounts * factors, stains))


def gaussian_blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Each image (B, C, H, W) with its own standard deviation in pixels, (B, 1, 1, 1); borders are reflected.

    sigma: on the host, as the largest one decides the size of the kernel.
    """
    batch, channels, height, width = image.shape
    reach = min(max(1, math.ceil(3 * float(sigma.max()))), height - 1, width - 1)
    offsets = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / moved(sigma, image.device).view(-1, 1).clamp(min=1e-3)) ** 2)
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    x = F.pad(image, (reach, reach, reach, reach), mode="reflect").reshape(1, batch * channels, height + 2 * reach, -1)
    x = F.conv2d(x, kernel[:, None, :, None], groups=batch * channels)
    return F.conv2d(x, kernel[:, None, None, :], groups=batch * channels).view(image.shape)


def random_grid(image: Tensor, generator: Generator, *, scale: float, rotate: float, elastic: float) -> Pair:
    """Where each pixel of the deformed image comes from, (B, H, W, 2) as (x, y) in pixels, and the zoom (B, 1, 1, 1).

    A similarity about the centre, and displacements of up to about `elastic` pixels, drawn at most every 16 pixels and
    smooth between. They stay under a quarter of their spacing: nothing folds.
    """
    batch, _, height, width = image.shape

    def uniform(most: float) -> Tensor:
        return (2 * torch.rand(batch, generator=generator) - 1) * most

    zoom, angle = torch.exp(uniform(math.log1p(scale))), torch.deg2rad(uniform(rotate))
    cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    matrix = torch.stack([torch.stack([cosine, -sine], 1), torch.stack([sine, cosine], 1)], 1)
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2])
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.einsum("bij,hwj->bhwi", matrix, torch.stack([x, y], dim=-1) - centre) + centre
    if elastic:
        nodes = [math.ceil((length - 1) / ELASTIC_SPACING) + 1 for length in (height, width)]
        most = [(length - 1) / max(1, n - 1) / 4 for length, n in zip((height, width), nodes, strict=True)]
        moves = torch.randn(batch, 2, *nodes, generator=generator) * elastic / 2
        limit = torch.tensor(most[::-1]).view(1, 2, 1, 1)  # x, y
        moves = moves.clamp(-limit, limit)
        field = F.interpolate(moves, (height, width), mode="bicubic", align_corners=True)
        grid = grid + field.permute(0, 2, 3, 1)
    return moved(grid, image.device), moved(zoom, image.device).view(-1, 1, 1, 1)


def _warp(x: Tensor, grid: Tensor) -> Tensor:
    """Bilinear values of x (B, C, H, W) at pixel positions (B, H, W, 2); beyond the border x is mirrored."""
    size = moved(torch.tensor([x.shape[-1], x.shape[-2]]), x.device)
    return F.grid_sample(x, (2 * grid + 1) / size - 1, mode="bilinear", padding_mode="reflection", align_corners=False)


def deform_sdf(sdf: Tensor, grid: Tensor, zoom: Tensor, truncation: float) -> Tensor:
    """The truncated SDF, in pixels, of deformed masks (B, K, H, W), given those of the masks.

    The old SDF gives the new mask with smooth borders and, times the zoom, the distance to objects beyond the picture
    that the new mask cannot know of; all else comes from the new mask.
    """
    warped = _warp(sdf, grid)
    mask = warped <= 0.5  # the border runs half-way between the object's last pixel, 0, and the next one, 1
    if sdf.shape[1] > 1:  # interpolated classes may overlap by a fraction of a pixel
        nearest = warped.argmin(dim=1, keepdim=True)
        mask &= torch.arange(sdf.shape[1], device=sdf.device).view(1, -1, 1, 1) == nearest
    distance = truncated_distance(mask, truncation)
    beyond = warped.abs() * zoom.clamp(min=1)  # times a zoom below 1, truncated distances would end in a step
    distance = torch.where(_border_band(sdf, truncation), torch.minimum(distance, beyond), distance)
    return torch.where(mask, -distance, distance)


def _border_band(x: Tensor, width: float) -> Tensor:
    """(H, W) bool: pixels whose distance from the picture's border is less than their truncation."""
    places = [torch.arange(length, device=x.device) for length in x.shape[-2:]]
    rows, columns = ((at < width) | (at >= len(at) - width) for at in places)
    return rows[:, None] | columns


def truncated_distance(mask: Tensor, truncation: float) -> Tensor:
    """Distance in pixels to the nearest boundary pixel of masks (..., H, W), at most `truncation`; float32.

    The same as `data.sdf` gives, but in batches and on any device: squared distances first along columns, then along
    rows. The picture's border is no object border.
    """
    outside = ~mask
    boundary = torch.zeros_like(mask)
    boundary[..., 1:, :] |= outside[..., :-1, :]
    boundary[..., :-1, :] |= outside[..., 1:, :]
    boundary[..., :, 1:] |= outside[..., :, :-1]
    boundary[..., :, :-1] |= outside[..., :, 1:]
    boundary &= mask
    far = truncation**2
    squared = torch.where(boundary, 0.0, far)
    for axis in (-2, -1):
        squared = _lower_envelope(squared, axis, math.ceil(truncation))
    return squared.sqrt()


def _lower_envelope(squared: Tensor, axis: int, reach: int) -> Tensor:
    """min over d in -reach .. reach of squared[i + d] + d^2, along an axis."""
    length = squared.shape[axis]
    best = squared.clone()
    for d in range(1, min(reach, length - 1) + 1):
        ahead, behind = squared.narrow(axis, d, length - d), squared.narrow(axis, 0, length - d)
        best.narrow(axis, 0, length - d).copy_(torch.minimum(best.narrow(axis, 0, length - d), ahead + d * d))
        best.narrow(axis, d, length - d).copy_(torch.minimum(best.narrow(axis, d, length - d), behind + d * d))
    return best
