"""Networks of other libraries for bench.speed, of our sizes. They see image and noisy mask together, so that nothing
of an evaluation can be shared by draws."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.unet import ConditionalUNet, Sizes, Trunk

Build = Callable[..., nn.Module]  # of width, multipliers, channels in and out
WIDTHS = (4, 8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128)


class Plain(nn.Module):
    """Our own U-Net without an image encoder."""

    def __init__(self, width: int, multipliers: Sequence[int], channels: int, out: int) -> None:
        super().__init__()
        sizes = Sizes(width, multipliers, attention=[2 ** (len(multipliers) - 1)])
        self.network = ConditionalUNet(Trunk(channels, sizes, embedding=4 * width), 4 * width, out)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t, [])


def monai_unet(width: int, multipliers: Sequence[int], channels: int, out: int) -> nn.Module:
    from monai.networks.nets import DiffusionModelUNet

    widths = [width * m for m in multipliers]
    return DiffusionModelUNet(2, channels, out, num_res_blocks=1, channels=widths, norm_num_groups=4,
                              attention_levels=[False] * len(widths), num_head_channels=width)  # fmt: skip


class Diffusers(nn.Module):
    """Its UNet2DModel, whose result is in a box."""

    def __init__(self, width: int, multipliers: Sequence[int], channels: int, out: int) -> None:
        from diffusers import UNet2DModel

        super().__init__()
        widths = [width * m for m in multipliers]
        self.network = UNet2DModel(in_channels=channels, out_channels=out, layers_per_block=1, norm_num_groups=4,
                                   block_out_channels=widths, down_block_types=["DownBlock2D"] * len(widths),
                                   up_block_types=["UpBlock2D"] * len(widths), attention_head_dim=width)  # fmt: skip

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t, return_dict=False)[0]


class SMP(nn.Module):
    """U-Net of segmentation_models_pytorch on half of a ResNet-18, without time. width: of its decoder."""

    def __init__(self, width: int, multipliers: Sequence[int], channels: int, out: int) -> None:
        from segmentation_models_pytorch import Unet

        super().__init__()
        self.network = Unet("resnet18", encoder_depth=3, encoder_weights=None, in_channels=channels, classes=out,
                            decoder_channels=(4 * width, 2 * width, width))  # fmt: skip
        self.network.encoder.layer3 = self.network.encoder.layer4 = nn.Identity()  # are not run

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x)


PEERS: dict[str, tuple[str, Build]] = {  # what to install, if anything, and how to build it
    "our U-Net without encoder": ("", Plain),
    "MONAI DiffusionModelUNet": ("monai einops", monai_unet),
    "diffusers UNet2DModel": ("diffusers requests", Diffusers),
    "segmentation_models_pytorch Unet": ("segmentation-models-pytorch", SMP),
}


def parameters_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def operations(action: Callable[[], object]) -> int:
    """Floating-point operations of the convolutions and matrix products of an action."""
    with FlopCounterMode(display=False) as counter:
        action()
    return int(counter.get_total_flops())


def evaluated(model: nn.Module, x: Tensor) -> Any:
    return model(x, torch.full((len(x),), 0.5, device=x.device))


def nearest(build: Callable[[int], nn.Module], wanted: int, size_of: Callable[[nn.Module], int]) -> nn.Module:
    """The network of that width whose size comes nearest to what is wanted, as a ratio."""

    def size(width: int) -> int:
        with torch.device("meta"):
            return size_of(build(width))

    i = bisect_left(WIDTHS, wanted, lo=1, hi=len(WIDTHS) - 1, key=size)
    return build(min(WIDTHS[i - 1 : i + 1], key=lambda width: abs(math.log(size(width) / wanted))))


def peers_of(
    multipliers: Sequence[int], seen: int, out: int, size: int, count: int, work: int
) -> dict[str, nn.Module | str]:
    """Each peer of about `count` parameters, and of about `work` operations in one evaluation of an image (size, size);
    or what has to be installed. seen, out: channels of image and mask together, and of the mask."""
    found: dict[str, nn.Module | str] = {}
    for name, (package, build) in PEERS.items():
        of_width = partial(build, multipliers=multipliers, channels=seen, out=out)

        def flops(model: nn.Module) -> int:
            return operations(partial(evaluated, model.eval(), torch.empty(1, seen, size, size, device="meta")))

        try:
            pair = [nearest(of_width, count, parameters_of), nearest(of_width, work, flops)]
        except ImportError:
            found[name] = package
            continue
        alike = parameters_of(pair[0]) == parameters_of(pair[1])
        kinds = ("both",) if alike else ("parameters", "FLOPs")
        found |= {f"{name}, {kind}": peer for kind, peer in zip(kinds, pair, strict=False)}
    return found
