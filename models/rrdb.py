"""FlowSDF's image encoder: residual-in-residual dense blocks (Wang et al. 2018, ESRGAN) at full resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import group_norm
from models.unet import Entry, Trunk, pad_to_multiple

RESIDUAL = 0.2  # share of every block's output


class DenseBlock(nn.Module):
    """Five 3x3 convolutions, each of which sees all before it; the sum with the input, (B, channels, H, W)."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels + i * growth, growth if i < 4 else channels, 3, padding=1) for i in range(5)
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for convolution in self.convolutions[:-1]:
            maps.append(F.leaky_relu(convolution(torch.cat(maps, dim=1)), 0.2))
        return x + RESIDUAL * self.convolutions[-1](torch.cat(maps, dim=1))


class RRDB(nn.Module):
    """Three dense blocks and their sum with the input."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(DenseBlock(channels, growth) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return x + RESIDUAL * self.blocks(x)


class RRDBEncoder(nn.Module):
    """The image (B, in_channels, H, W) in [-1, 1] to one feature map for each level of the conditional network.

    All of it is computed at the resolution of that network's finest level; coarser ones get means of it. The published
    code adds the finest map to the network's input only.
    """

    def __init__(self, in_channels: int, channels: int, blocks: int, trunk: Trunk) -> None:
        super().__init__()
        self.stride = trunk.scales[-1]
        self.entry = Entry(in_channels, channels, trunk.scales[0])
        self.trunk = nn.Sequential(*(RRDB(channels, max(4, channels // 2)) for _ in range(blocks)))
        self.exit = nn.Conv2d(channels, channels, 3, padding=1)
        self.project = nn.ModuleList(
            nn.Sequential(group_norm(channels), nn.SiLU(), nn.Conv2d(channels, width, 1)) for width in trunk.widths
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        first = self.entry(pad_to_multiple(image, self.stride))
        h = first + self.exit(self.trunk(first))
        maps = []
        for project in self.project:
            maps.append(project(h))
            h = F.avg_pool2d(h, 2) if len(maps) < len(self.project) else h
        return maps
