"""Draws of several networks, or of one that sees each image turned and flipped, behind the interface of a denoiser."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from models.baselines import OnePass
from models.denoiser import Denoiser, Draw, numbers_of
from utils.devices import moved

AS_IT_IS = (0,)  # the only view
PIXELS = 2**17  # of a batch on a CPU, so that its maps stay in the caches (docs/results/speed.md)


def views_of(flips: bool, rotations: bool, square: bool) -> tuple[int, ...]:
    """In which a network has seen its training images, square or not, by data.flips and data.rotations; see `seen`."""
    views = [0]
    if flips:
        views += [1, 2]
    if flips or rotations:
        views += [3]
    if rotations and square:
        views += [4, 7, 5, 6] if flips else [5, 6]
    return tuple(views)


def seen(x: Tensor, view: int) -> Tensor:
    """(..., H, W) flipped left to right (bit 1 of the view), flipped upside down (bit 2), then transposed (bit 4)."""
    if dims := [dim for bit, dim in ((1, -1), (2, -2)) if view & bit]:
        x = x.flip(dims)
    return x.transpose(-1, -2) if view & 4 else x


def unseen(x: Tensor, view: int) -> Tensor:
    """The inverse of `seen`."""
    return seen(x.transpose(-1, -2) if view & 4 else x, view & 3)


def seen_draw(draw: Draw, size: Sequence[int], view: int) -> Draw:
    """Where a tile (H, W) of a draw lies in the view of the endless plane that the image is part of."""
    top = -(draw.top + size[0]) if view & 2 else draw.top
    left = -(draw.left + size[1]) if view & 1 else draw.left
    top, left = (left, top) if view & 4 else (top, left)
    return draw._replace(top=top, left=left)


class PooledDraws(OnePass):
    """Draws of networks that were trained apart, each seeing the image in several views, taken in turn.

    Draw i is one of member i modulo their number M (a deep ensemble, Lakshminarayanan et al. 2017, where a network has
    but its mean to give), in view i // M modulo their number (test-time augmentation, Wang et al. 2019).
    The centre of distributional draws is the mean of the direct means of all views of a member.

    members: of one process and representation, in evaluation mode.
    """

    def __init__(self, members: Sequence[Denoiser], views: Sequence[int] = AS_IT_IS) -> None:
        first = members[0]
        super().__init__(first.process, nn.ModuleList(members), first.mask_channels, first.sigma_data)
        self.members, self.views = list(members), list(views)
        self._parts = [(member, view) for member in members for view in views]
        self.shared = sum(member.shared for member, _ in self._parts)
        self.eval()

    @property
    def means(self) -> int:
        return len(self._parts)

    @property
    def floats_per_pixel(self) -> float:
        return sum(member.floats_per_pixel for member, _ in self._parts)

    def features(self, image: Tensor) -> list[Tensor]:
        """What evaluations of all members know of the images, member by member and view by view."""
        known: list[Tensor] = []
        for member in self.members:
            each = self._encoded(member, image)
            if len(each) > 1 and member.distribution and member.direct:
                means = [unseen(features[-1], view) for features, view in zip(each, self.views, strict=True)]
                centre = torch.stack(means).mean(dim=0)
                for features, view in zip(each, self.views, strict=True):
                    features[-1] = seen(centre, view)
            known += [x for features in each for x in features]
        return known

    def _encoded(self, member: Denoiser, image: Tensor) -> list[list[Tensor]]:
        """What a member knows of small images in views of the same shape is found at once."""
        upright = [view for view in self.views if not view & 4]
        lying = [view for view in self.views if view & 4]
        square = image.shape[-1] == image.shape[-2]
        found: dict[int, list[Tensor]] = {}
        for views in [self.views] if square else [upright, lying]:
            count = max(1, PIXELS // (image.numel() // image.shape[1]))
            for some in (views[k : k + count] for k in range(0, len(views), count)):
                together = member.encode(torch.cat([seen(image, view) for view in some]))
                found |= zip(some, map(list, zip(*(x.split(len(image)) for x in together), strict=True)), strict=True)
        return [found[view] for view in self.views]

    def part_of(self, number: int) -> int:
        turn, member = divmod(number, len(self.members))
        return member * len(self.views) + turn % len(self.views)

    def centre(self, features: Sequence[Tensor]) -> Tensor:
        """Of the first member."""
        return next(self._by_part(features))[2][-1]

    def of_draws(self, features: Sequence[Tensor], rows: Tensor, draws: Sequence[Draw]) -> list[Tensor]:
        """Those of each member in each view, one after the other; then the draws as integers (B, 4)."""
        numbers, own = numbers_of(draws), []
        for (member, view, part), chosen in zip(self._by_part(features), self._taken(numbers), strict=True):
            size = member.size_of(part)
            size = size[::-1] if view & 4 else size
            theirs = [seen_draw(self._numbered(draws[i], member), size, view) for i in chosen.tolist()]
            own += member.of_draws(part, rows[chosen], theirs)
        return [*own, numbers]

    def known(self, t: Tensor, features: Sequence[Tensor]) -> Tensor | None:
        *features, numbers = features
        found = [(member.known(t, part), view) for member, view, part in self._by_part(features)]
        means = [unseen(mean, view) for mean, view in found if mean is not None]
        return self._joined(means, numbers) if len(means) == len(found) else None

    def moments(self, z: Tensor, t: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """D(z, t) of each draw's member in its view, (B, K, H, W), at a scalar t; no variance."""
        *features, numbers = features
        found = []
        for (member, view, part), chosen in zip(self._by_part(features), self._taken(numbers), strict=True):
            own = z[moved(chosen, z.device)]
            found.append(unseen(member(seen(own, view), t, part), view) if len(own) else own)
        return self._joined(found, numbers), None

    def _by_part(self, features: Sequence[Tensor]) -> Iterator[tuple[Denoiser, int, list[Tensor]]]:
        """Each member in each view, and what it knows."""
        each = len(features) // len(self._parts)
        for k, (member, view) in enumerate(self._parts):
            yield member, view, list(features[k * each : (k + 1) * each])

    def _numbered(self, draw: Draw, member: Denoiser) -> Draw:
        """As a member counts, which takes its raters in turn: these must not go round in step with the parts."""
        raters = getattr(member.network, "raters", 0) or 1
        return draw._replace(number=draw.number + draw.number // math.lcm(len(self._parts), raters))

    def _taken(self, numbers: Tensor) -> list[Tensor]:
        """Which of the draws (B, 4) each part makes."""
        part = torch.tensor([self.part_of(number) for number in numbers[:, 1].tolist()])
        return [torch.nonzero(part == k)[:, 0] for k in range(len(self._parts))]

    def _joined(self, found: Sequence[Tensor], numbers: Tensor) -> Tensor:
        """What the parts have found, in the order of the draws."""
        order = torch.cat(self._taken(numbers)).argsort()
        return torch.cat(list(found))[moved(order, found[0].device)]
