"""The conditional NCSN++-style U-Net: one trunk, used twice.

`ImageEncoder` runs the trunk on the image once and hands its feature pyramid to `ConditionalUNet`, which runs the
trunk on the noisy mask at every evaluation. The expensive part of a sampling run is thereby paid once per image.
A second noise, if any, enters on the way up, so that draws of one noisy mask share the way down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import (
    RESCALE,
    FourierEmbedding,
    JoiningBlock,
    ResidualBlock,
    SelfAttention,
    group_norm,
    small_init,
    zero_init,
)


@dataclass(frozen=True)
class Sizes:
    """Of a `Trunk`.

    channels, multipliers: level i has channels * multipliers[i] channels at 1 / 2^i of the finest level's size.
    blocks: residual blocks per level, each way.
    attention: down-sampling factors (1, 2, 4, ...) of the finest level whose levels attend to all positions after each
    block.
    unshuffle: side of the blocks of pixels that are channels of the finest level (Shi et al. 2016, backwards).
    """

    channels: int
    multipliers: Sequence[int]
    blocks: int = 1
    attention: Sequence[int] = ()
    dropout: float = 0.0
    unshuffle: int = 1

    @property
    def scales(self) -> list[int]:
        """Side of a pixel of each level, in pixels of the image."""
        return [self.unshuffle * 2**i for i in range(len(self.multipliers))]


class Entry(nn.Conv2d):
    """A map (B, in_channels, H, W) to the finest level of a trunk, of blocks of side x side pixels."""

    def __init__(self, in_channels: int, width: int, side: int) -> None:
        super().__init__(in_channels * side**2, width, 3, padding=1)
        self.side = side

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pixel_unshuffle(input, self.side))


class Head(nn.Sequential):
    """The finest map of a trunk to (B, outputs, H, W), 0 at first."""

    def __init__(self, trunk: Trunk, outputs: int) -> None:
        width, side = trunk.widths[0], trunk.scales[0]
        last = zero_init(nn.Conv2d(width, outputs * side**2, 3, padding=1))
        super().__init__(group_norm(width), nn.SiLU(), last)
        self.side = side

    def forward(self, input: Tensor) -> Tensor:
        return F.pixel_shuffle(super().forward(input), self.side)


class Level(nn.Module):
    """The blocks of one resolution, on the way down and up again."""

    def __init__(self, down: nn.ModuleList, up: nn.ModuleList, attention: nn.ModuleList) -> None:
        super().__init__()
        self.down, self.up, self.attention = down, up, attention


class Trunk(nn.Module):
    """A U-Net from (B, in_channels, H, W), multiples of the coarsest scale, to one feature map per resolution, finest
    first.

    embedding: width of the time embedding, 0 for none. latent: channels of the second noise at each level, if any.
    """

    def __init__(self, in_channels: int, sizes: Sizes, embedding: int = 0, latent: Sequence[int] = ()) -> None:
        super().__init__()
        self.widths, self.blocks = [sizes.channels * m for m in sizes.multipliers], sizes.blocks
        self.scales = sizes.scales
        self.entry = Entry(in_channels, self.widths[0], sizes.unshuffle)

        def block(c_in: int, c_out: int, resample: str | None = None, dropout: float = sizes.dropout) -> ResidualBlock:
            return ResidualBlock(c_in, c_out, embedding=embedding, resample=resample, dropout=dropout)

        # Units dropped after the second noise would make draws differ in training only.
        late = 0.0 if latent else sizes.dropout

        def joint(width: int) -> ResidualBlock:
            return JoiningBlock(width, embedding=embedding) if latent else block(2 * width, width)

        self.levels = nn.ModuleList()
        self.shrink = nn.ModuleList()
        self.grow = nn.ModuleList()
        for i, width in enumerate(self.widths):
            attends = 2**i in sizes.attention
            self.levels.append(
                Level(
                    nn.ModuleList(block(width, width) for _ in range(self.blocks)),
                    nn.ModuleList(joint(width) for _ in range(self.blocks)),
                    nn.ModuleList(SelfAttention(width) if attends else nn.Identity() for _ in range(2 * self.blocks)),
                )
            )
            if i + 1 < len(self.widths):
                self.shrink.append(block(width, self.widths[i + 1], "down"))
                self.grow.append(block(self.widths[i + 1], width, "up", late))
        self.inject = nn.ModuleList(
            small_init(nn.Conv2d(channels, width, 1, bias=False))
            for channels, width in zip(latent, self.widths, strict=False)
        )

    def forward(
        self, x: Tensor, embedding: Tensor | None = None, features: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """features: one map per level with the level's shape, added on the way down."""
        return self.up(self.down(x, embedding, features), embedding)

    def down(self, x: Tensor, embedding: Tensor | None, features: Sequence[Tensor] | None) -> list[Tensor]:
        """What the blocks of the way up need of the way down, finest first, as many maps per level as it has blocks;
        and the last map, where the way up begins."""
        h = self.entry(x)
        skips: list[Tensor] = []
        for i, module in enumerate(self.levels):
            level = cast(Level, module)
            if features is not None:
                h = (h + features[i]) * RESCALE
            ways = zip(level.down, list(level.up)[::-1], level.attention[: len(level.down)], strict=True)
            for block, joining, attention in ways:
                h = attention(block(h, embedding))
                skips.append(cast(ResidualBlock, joining).of_skip(h))
            if i < len(self.shrink):
                h = self.shrink[i](h, embedding)
        return [*skips, h]

    def up(
        self, skips: Sequence[Tensor], embedding: Tensor | None, latent: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """latent: the second noise at each level, (B, channels, h, w), finest first; None is 0 everywhere."""
        *skips, h = skips
        maps: list[Tensor] = []
        for i in reversed(range(len(self.levels))):
            level = cast(Level, self.levels[i])
            if latent is not None:
                h = self.inject[i](latent[i]).add_(h)
            for block, attention in zip(level.up, level.attention[len(level.down) :], strict=True):
                h = attention(cast(ResidualBlock, block).join(h, self._skip(i, skips.pop(), h), embedding))
            maps.append(h)
            if i > 0:
                h = self.grow[i - 1](h, embedding)
        return maps[::-1]

    def _skip(self, level: int, skip: Tensor, h: Tensor) -> Tensor:
        """What of a skip connection meets h, the map that comes up to its level."""
        return skip


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until both sizes are multiples of `multiple`."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")


class ImageEncoder(nn.Module):
    """The image (B, in_channels, H, W) in [-1, 1] to one feature map for each level of the conditional network."""

    def __init__(self, trunk: Trunk, widths: Sequence[int]) -> None:
        super().__init__()
        if len(trunk.widths) < len(widths):
            raise ValueError(f"the encoder has {len(trunk.widths)} resolutions, the network needs {len(widths)}")
        self.trunk = trunk
        self.stride = trunk.scales[-1]
        self.project = nn.ModuleList(
            nn.Sequential(group_norm(c), nn.SiLU(), nn.Conv2d(c, width, 1))
            for c, width in zip(trunk.widths, widths, strict=False)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = self.trunk(pad_to_multiple(image, self.stride))
        return [project(x) for project, x in zip(self.project, maps, strict=False)]


class ConditionalUNet(nn.Module):
    """What is noisy (B, C, H, W), its noise conditions and image features to (B, out_channels, H, W).

    The noise conditions are (B,), or (B, conditions) where parts of the input have a noise of their own. Without image
    features, everything is in the input. Sizes that the down-sampling does not divide are padded and cropped back.
    raters: how many annotators it knows apart on the way up (`up`), 0 for none.
    """

    def __init__(
        self, trunk: Trunk, embedding: int, out_channels: int = 1, conditions: int = 1, raters: int = 0
    ) -> None:
        super().__init__()
        self.raters = raters
        self.trunk = trunk
        self.out_channels = out_channels
        self.embedding = FourierEmbedding(embedding, conditions=conditions)
        self.head = Head(trunk, out_channels)
        if raters:  # all alike at first
            self.as_rater = nn.Embedding.from_pretrained(torch.zeros(raters, embedding), freeze=False)

    def forward(self, z: Tensor, noise_condition: Tensor, features: Sequence[Tensor]) -> Tensor:
        return self.up(self.down(z, noise_condition, features), noise_condition, z.shape[-2:])

    def padded(self, features: Sequence[Tensor]) -> tuple[int, int]:
        """Height and width of the images, with what was added to them, that have these features."""
        height, width = features[0].shape[-2:]
        return self.trunk.scales[0] * height, self.trunk.scales[0] * width

    def down(self, z: Tensor, noise_condition: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """The half of an evaluation that all draws of z share."""
        if features:
            # They are those of the padded image: they set the size.
            rows, columns = self.padded(features)
            z = F.pad(z, (0, columns - z.shape[-1], 0, rows - z.shape[-2]), mode="replicate")
        else:
            z = pad_to_multiple(z, self.trunk.scales[-1])
        return self.trunk.down(z, self.embedding(noise_condition), features or None)

    def up(
        self,
        skips: Sequence[Tensor],
        noise_condition: Tensor,
        size: Sequence[int],
        latent: Sequence[Tensor] | None = None,
        raters: Tensor | None = None,
    ) -> Tensor:
        """The other half, (B, out_channels, H, W); size: (H, W). latent: see `Trunk.up`. raters: (B,), of those
        that the network knows apart, as whom to draw; None for all."""
        embedding = self.embedding(noise_condition)
        if raters is not None:
            embedding = embedding + self.as_rater(raters)
        maps = self.trunk.up(skips, embedding, latent)
        return self.head(maps[0])[..., : size[0], : size[1]]
