"""Networks from an image (B, C, H, W) to maps of the same size (B, outputs, H, W), for models/baselines.py.

Two are small changes of the trunk that the denoisers have, so that widths and depths can be made equal; the others are
libraries'.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.unet import Head, Sizes, Trunk

MISSING = "needs segmentation-models-pytorch; install it with: pip install segmentation-models-pytorch"


class AttentionGate(nn.Module):
    """x weighed pixel by pixel by what x and g, (B, channels, H, W) both, say of it (Oktay et al. 2018, eq. 1-2).

    g is up-sampled already, where theirs is coarser.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.of_x = nn.Conv2d(channels, inner, 1, bias=False)
        self.of_g = nn.Conv2d(channels, inner, 1)
        self.weight = nn.Conv2d(inner, 1, 1)

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        return x * torch.sigmoid(self.weight(torch.relu(self.of_x(x) + self.of_g(g))))


class GatedTrunk(Trunk):
    """A trunk whose skip connections pass an attention gate, but for the coarsest, where nothing comes up."""

    def __init__(self, in_channels: int, sizes: Sizes, embedding: int = 0) -> None:
        super().__init__(in_channels, sizes, embedding)
        self.gates = nn.ModuleList(AttentionGate(width) for width in self.widths[:-1])

    def _skip(self, level: int, skip: Tensor, h: Tensor) -> Tensor:
        return self.gates[level](skip, h) if level < len(self.gates) else skip


class TrunkNetwork(nn.Module):
    """A trunk without time, and a convolution to `outputs` channels.

    On a `Trunk` a residual U-Net (Zhang et al. 2018, with group norm), on a `GatedTrunk` an attention U-Net.
    """

    def __init__(self, trunk: Trunk, outputs: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = Head(trunk, outputs)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.trunk(image)[0])


class FCN(nn.Module):
    """torchvision's FCN (Long et al. 2015) on a dilated ResNet with strides up to 8; grey images are given thrice."""

    def __init__(self, backbone: str, image_channels: int, outputs: int, dropout: float) -> None:
        super().__init__()
        from torchvision.models import segmentation  # takes seconds, which no other network needs

        build = getattr(segmentation, f"fcn_{backbone}")
        self.network = build(weights=None, weights_backbone=None, num_classes=outputs, aux_loss=False)
        self.copies = 3 // image_channels
        for module in self.network.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image.repeat(1, self.copies, 1, 1))["out"]


def library_unet(kind: str, backbone: str, image_channels: int, outputs: int, sizes: Sizes) -> nn.Module:
    """U-Net (Ronneberger et al. 2015) or U-Net++ (Zhou et al. 2018) on a ResNet without pretraining.

    sizes: channels and multipliers are those of the decoder, 3 to 5 of them. Raises ImportError where the library is
    absent.
    """
    try:
        import segmentation_models_pytorch as library
    except ImportError:
        raise ImportError(MISSING) from None
    build = {"unet": library.Unet, "unetplusplus": library.UnetPlusPlus}[kind]
    return build(
        backbone,
        encoder_weights=None,
        encoder_depth=len(sizes.multipliers),
        decoder_channels=[sizes.channels * m for m in reversed(sizes.multipliers)],
        in_channels=image_channels,
        classes=outputs,
    )
