"""One network of masks and images, p(m, x): each has a time of its own, so that either one can be the condition.

Bao et al. 2023 (UniDiffuser): with independent times one network holds the joint distribution (both times equal), both
conditionals (one time at the data) and both marginals (one time at the prior).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.denoiser import Denoiser, batch_times, rows, scaling
from models.unet import ConditionalUNet, Sizes, Trunk
from sde.process import Process


class JointDenoiser(Denoiser):
    """Posterior means of mask and image, E[m | z_m, z_x] and E[x | z_m, z_x].

    As a `Denoiser` it is that of masks given a clean image, which is its one feature.
    sizes: of the network from (z_m, z_x) (B, K + C, H, W) and their noise conditions (B, 2) to (B, K + C, H, W).
    sigma_image: root mean square of images in [-1, 1] over the training data; kept in the state dict.
    """

    sigma_image: Tensor

    def __init__(
        self,
        process: Process,
        prediction: str,
        image_channels: int,
        mask_channels: int,
        sizes: Sizes,
        sigma_data: float = 0.5,
        sigma_image: float = 0.5,
    ) -> None:
        both, width = mask_channels + image_channels, 4 * sizes.channels
        network = ConditionalUNet(Trunk(both, sizes, embedding=width), width, both, conditions=2)
        super().__init__(process, prediction, nn.Identity(), network, mask_channels, sigma_data)
        self.image_channels = image_channels
        self.register_buffer("sigma_image", torch.tensor(float(sigma_image)))

    def joint(self, z_m: Tensor, t_m: Tensor, z_x: Tensor, t_x: Tensor) -> tuple[Tensor, Tensor]:
        """E[m | z_m, z_x] (B, K, H, W) and E[x | z_m, z_x] (B, C, H, W), float32.

        z_m = alpha(t_m) m + sigma(t_m) eps, z_x likewise at t_x; both times are scalars or (B,).
        """
        inputs, skips, outs, noises = [], [], [], []
        for z, t, sigma in ((z_m, t_m, self.sigma_data), (z_x, t_x, self.sigma_image)):
            t = batch_times(t, z)
            c = scaling(self.prediction, self.process, t, sigma.to(t.dtype))
            inputs.append(rows(c.inp) * z)
            skips.append(rows(c.skip) * z)
            outs.append(rows(c.out))
            noises.append(c.noise.float())
        raw = self.network(torch.cat(inputs, dim=1), torch.stack(noises, dim=1), []).float()
        raw_m, raw_x = raw.split([z_m.shape[1], z_x.shape[1]], dim=1)
        return skips[0] + outs[0] * raw_m, skips[1] + outs[1] * raw_x

    def clean(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Masks or images as a condition: their z, without noise, and its time t_min."""
        t = torch.tensor(self.process.t_min, dtype=torch.float64)
        return data * float(self.process.alpha(t)), t

    @property
    def floats_per_pixel(self) -> float:
        return self.image_channels

    def features(self, image: Tensor) -> list[Tensor]:
        """What evaluations know of images (B, C, H, W) in [-1, 1]: the images."""
        return [image]

    def moments(self, z: Tensor, t: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """E[m | z_t = z, x] for z (B, K, H, W) and t a scalar or (B,); no variance."""
        return self.joint(z, t, *self.clean(features[0]))[0], None

    def image(self, z: Tensor, t: Tensor, m: Tensor) -> Tensor:
        """E[x | z_t = z, m], (B, C, H, W), for z (B, C, H, W), t a scalar or (B,), and masks m (B, K, H, W)."""
        return self.joint(*self.clean(m), z, t)[1]

    def pair(self, z: Tensor, t: Tensor) -> Tensor:
        """E[(m, x) | z_t = z], (B, K + C, H, W), for z of that shape and t a scalar or (B,): both at one time."""
        z_m, z_x = z.split([self.mask_channels, self.image_channels], dim=1)
        return torch.cat(self.joint(z_m, t, z_x, t), dim=1)
