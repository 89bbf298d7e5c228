"""A denoiser as one graph from grey levels to SDFs, which other programs run without this one (results/graph_files.py).

All that depends on t alone is a constant of the graph; batch, height and width are free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.images import PERCENTILES
from models.baselines import OnePass
from models.build import threshold_of
from models.denoiser import Denoiser
from models.latent import CELLS, CHANNELS, PLACES, at_levels
from models.pooled import AS_IT_IS, PooledDraws, seen, unseen, views_of
from models.unet import pad_to_multiple
from sampling.loading import draw_steps, loaded
from sde.noise import draw_seed
from utils.errors import UsageError
from utils.schema import Config
from utils.sections import SamplingConfig, SDEConfig

LUMA = (19595 / 65536, 38470 / 65536, 7471 / 65536)  # ITU-R 601, as Pillow has it
PERIOD = 32  # cells after which the noise that a graph holds repeats itself; its maps are of single pixels


@dataclass(frozen=True)
class Preparation:
    """What a graph does to pictures (B, 1 or 3, H, W), float32 0 .. 255, before the network sees them.

    grey: colours become grey levels, otherwise grey levels become colours. stretch: as data.stretch, each picture by
    itself, without rounding.
    """

    grey: bool = True
    stretch: bool = False

    def __call__(self, image: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) in [-1, 1]."""
        image = image.expand(-1, 3, -1, -1)
        if self.grey:
            image = (image * torch.tensor(LUMA).view(3, 1, 1)).sum(dim=1, keepdim=True)
        if self.stretch:
            ranked = image.flatten(1).sort(dim=1).values
            low, high = (_percentile(ranked, percent).view(-1, 1, 1, 1) for percent in PERCENTILES)
            image = 255.0 * ((image - low) / (high - low).clamp_min(1e-6)).clamp(0.0, 1.0)
        return image / 127.5 - 1.0


def _percentile(ranked: Tensor, percent: float) -> Tensor:
    """(B) of numbers (B, N) in rising order, by a graph that leaves N free."""
    place = (torch.as_tensor(ranked.shape[1]) - 1) * round(10 * percent)  # in thousandths
    below = place // 1000
    pair = ranked.index_select(1, torch.stack([below, (place + 999) // 1000]))
    return pair[:, 0] + (pair[:, 1] - pair[:, 0]) * ((place - 1000 * below) / 1000.0)


class MeanGraph(nn.Module):
    """The direct mean: image (B, 1 or 3, H, W), float32 grey levels or colours 0 .. 255, to sdf (B, K, H, W) in SDF
    units.

    denoiser: direct, or one of a single pass. views: of the image, whose means are averaged (models/pooled.py).
    """

    inputs: ClassVar[list[str]] = ["image"]
    outputs: ClassVar[list[str]] = ["sdf"]
    noise: Tensor

    prepared: Preparation = Preparation()

    def __init__(self, denoiser: Denoiser, sdf_scale: float, views: Sequence[int] = AS_IT_IS) -> None:
        super().__init__()
        self.denoiser, self.sdf_scale, self.views = denoiser, sdf_scale, views
        self.one_pass = isinstance(denoiser, OnePass)
        if not self.one_pass:
            self.scaling = denoiser.end_scaling()
            self.register_buffer("noise", self.scaling.noise.float())
            self.spread = float(denoiser.spread)

    @property
    def stride(self) -> int:
        """Other heights and widths are padded by the last row and column to multiples of this."""
        return int(cast(Any, self.denoiser if self.one_pass else self.denoiser.encoder).stride)

    def forward(self, image: Tensor) -> Tensor:
        image = self.prepared(image)
        means = [unseen(self.mean(seen(image, view)), view) for view in self.views]
        return torch.stack(means).mean(dim=0) / self.sdf_scale

    def mean(self, image: Tensor) -> Tensor:
        """Of images in [-1, 1]."""
        if self.one_pass:
            return self.denoiser.features(image)[-1]
        features = self.denoiser.features(image)
        return self.up(self.down(features), image.shape[-2:])

    def down(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The way down at t_max, where z is 0."""
        side = self.denoiser.network.trunk.scales[0]
        z = torch.zeros_like(features[0][:, :1]).expand(-1, self.denoiser.mask_channels * side**2, -1, -1)
        return self.denoiser.network.down(F.pixel_shuffle(z, side), self.noise, features)

    def up(
        self,
        skips: Sequence[Tensor],
        size: Sequence[int],
        latent: Sequence[Tensor] | None = None,
        rater: Tensor | None = None,
    ) -> Tensor:
        """m (B, K, H, W) of xi, or the direct mean."""
        raw = self.denoiser.network.up(skips, self.noise, size, latent, rater).float()
        return self.denoiser.mask_of(raw, torch.zeros_like(raw[:, : self.denoiser.mask_channels]), self.scaling)

    def latent(self, xi: Tensor) -> list[Tensor]:
        return at_levels(xi, self.denoiser.network.trunk.scales)


class DrawGraph(MeanGraph):
    """A draw: image as for the mean, and xi (B, channels, H, W), noise in cells of models/latent.py, to sdf.

    xi = 0 gives the direct mean; (1, channels, 1, 1) is taken for all images and pixels. rater: as whom to draw, where
    the network knows raters apart.
    """

    inputs: ClassVar[list[str]] = ["image", "xi"]

    def __init__(self, denoiser: Denoiser, sdf_scale: float, rater: int | None = None) -> None:
        super().__init__(denoiser, sdf_scale)
        self.rater = None if rater is None else torch.tensor([rater])

    def forward(self, image: Tensor, xi: Tensor) -> Tensor:  # type: ignore[override]
        image = self.prepared(image)
        size, skips = image.shape[-2:], self.down(self.denoiser.features(image))
        xi = xi + torch.zeros_like(image[:, :1])
        m = self.up(skips, size, self.latent(pad_to_multiple(xi, self.stride)), self.rater)
        if self.spread != 1.0:
            mean = self.up(skips, size)
            m = mean + self.spread * (m - mean)
        return m / self.sdf_scale


class DrawsGraph(MeanGraph):
    """Mean and std (B, K, H, W) of draws in SDF units, and probability (B, 1, H, W), the share of them that call a
    pixel foreground, whose least SDF is below the threshold.

    The noise is in the graph: draw i has one field, the same for every image, that follows from seed and i. Draws take
    turns at views and raters.
    """

    outputs: ClassVar[list[str]] = ["mean", "std", "probability"]

    def __init__(
        self, denoiser: Denoiser, sdf_scale: float, views: Sequence[int], threshold: float, draws: int, seed: int
    ) -> None:
        super().__init__(denoiser, sdf_scale, views)
        self.threshold, self.draws = threshold, draws
        generators = [torch.Generator().manual_seed(draw_seed(seed, "graph", i)) for i in range(draws)]
        shape = (len(CELLS), CHANNELS, PERIOD, PERIOD)
        self.fields = nn.ParameterList(torch.randn(shape, generator=g) for g in generators).requires_grad_(False)
        self.corners = [torch.randint(PLACES, (2,), generator=g).tolist() for g in generators]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        sdf = self.drawn(image)
        mean = sdf.mean(dim=0)
        std = ((sdf - mean).square().sum(dim=0) / max(1, self.draws - 1)).sqrt()
        inside = sdf.amin(dim=2, keepdim=True) < self.threshold
        return mean, std, inside.float().mean(dim=0)

    def drawn(self, image: Tensor) -> Tensor:
        """All draws (draws, B, K, H, W) in SDF units, in the order of the views."""
        image = self.prepared(image)
        means, drawn = [], []
        for k, view in enumerate(self.views):
            own = seen(image, view)
            features, size = self.denoiser.features(own), own.shape[-2:]
            skips = self.down(features)
            means.append(unseen(self.up(skips, size), view))
            for i in range(k, self.draws, len(self.views)):
                drawn.append(unseen(self.up(skips, size, self.noise_of(i, features[0]), self.rater(i)), view))
        centre = torch.stack(means).mean(dim=0)
        return (centre + self.spread * (torch.stack(drawn) - centre)) / self.sdf_scale

    def noise_of(self, draw: int, finest: Tensor) -> list[Tensor]:
        """xi at each level, for images whose finest features these are."""
        parts, size = [], self.denoiser.size_of([finest])
        for field, cell in zip(self.fields[draw].unbind(), CELLS, strict=True):
            for dim, (length, corner) in enumerate(zip(size, self.corners[draw], strict=True)):
                field = field.index_select(dim + 1, (torch.arange(length) + corner) // cell % PERIOD)
            parts.append(field)
        return self.latent(torch.cat(parts).expand(finest.shape[0], -1, -1, -1))

    def rater(self, draw: int) -> Tensor | None:
        if not (raters := self.denoiser.network.raters):
            return None
        number = draw + draw // len(self.views)  # as models/pooled.py counts
        return torch.tensor([number % raters if self.denoiser.rater is None else self.denoiser.rater])


def draws_in_one(sde: SDEConfig, sampling: SamplingConfig) -> bool:
    """Whether a draw is one evaluation of the network."""
    return sde.objective == "distribution" and sampling.sampler == "ancestral" and draw_steps(sampling) == 1


def graph_of(config: Config, path: Path, draws: int | None, stretch: bool = False) -> MeanGraph:
    """The graph of a checkpoint or weights: draws where one evaluation is one, otherwise the direct mean.

    draws: mean, std and probability of so many. stretch: see `Preparation`. Raises UsageError where the network has
    neither draws nor mean, CheckpointError for a damaged file.
    """
    sampling = config.sampling
    in_one = draws_in_one(config.sde, sampling)
    if draws is not None and not in_one:
        raise UsageError(f"{path}: --draws: {draws} is for networks whose draws take one evaluation")
    if not in_one:
        config = config.model_copy(update={"sampling": sampling.model_copy(update={"sampler": "mean"})})
    denoiser, images = loaded(config, path, torch.device("cpu"))
    member = denoiser.members[0] if isinstance(denoiser, PooledDraws) else denoiser
    if not (isinstance(member, OnePass) or member.direct):
        raise UsageError(
            f"{path}: a draw takes many evaluations, and sde.prior_share: 0 trains no direct mean to export"
        )
    member = member.to(memory_format=torch.contiguous_format).requires_grad_(False)  # type: ignore[call-overload]
    size, data, scale = images.get("size", (0, 1)), config.data, config.data.sdf_scale
    views = views_of(data.flips, data.rotations, size[0] == size[1]) if sampling.augment else AS_IT_IS
    if draws is not None:
        graph: MeanGraph = DrawsGraph(member, scale, views, threshold_of(config), draws, config.seed)
    elif not in_one:
        graph = MeanGraph(member, scale, views)
    elif member.network.raters and sampling.rater is None:
        raise UsageError(f"{path}: tells raters apart; say as whom to draw, --set sampling.rater=0, or take --draws")
    else:
        graph = DrawGraph(member, scale, sampling.rater)
    graph.prepared = Preparation(data.color == "grey", stretch)
    return graph.eval()
