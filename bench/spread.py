"""Are draws as wide as they should be? Every config's sampler on a posterior that is known.

    python -m bench.spread --picture docs/results/spread.png

A perfect denoiser of a toy posterior stands in the network's place; process, image size, scale of m, sampler, grid and
steps are the config's. Prints, as Markdown: the draws' std over the right one, by the frequency of the modes; the law
of draws from two kinds of masks; and both for some samplers over their evaluations.
"""

from __future__ import annotations

from utils.command import run_command

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.special import ndtr
from scipy.stats import kstest
from torch import Tensor

from bench.charts import markdown
from models.build import process_of
from sampling.sampler import sampler_of
from sde.process import Process
from sde.samplers import Denoise
from utils.cli import Parser
from utils.config import load_config
from utils.data_schema import DataConfig
from utils.errors import UsageError
from utils.schema import Config
from utils.sections import ONE_PASS, SamplingConfig

ROOT = Path(__file__).resolve().parents[1]
EDGES = (1, *(2**k for k in range(1, 9)))  # of the bands, in half periods a side; the first holds the image's mean
SHARE, APART = 0.3, 2.5  # of the masks of the first kind; the kinds from their mean, in std of an image's mean
SAMPLERS: dict[str, dict[str, Any]] = {
    "ancestral": {"sampler": "ancestral"},
    "DPM-Solver++(2M) SDE": {"sampler": "dpm_solver", "stochastic": True},
    "DPM-Solver++(2M)": {"sampler": "dpm_solver"},
    "ancestral, distributional denoiser": {"sampler": "ancestral"},
}
NFE = (1, 3, 5, 10, 14, 20, 50)


def side_of(data: DataConfig) -> int:
    """Pixels a side of the largest image that the network sees whole."""
    own = data.phantom.size if data.source == "phantom" else 128
    return max(data.test_patch or data.crop or data.size or (own,))


def rms_of(data: DataConfig) -> float:
    """Root mean square of m: of SDFs of GlaS and MoNuSeg .5 to .6 at 15 pixels, of nuclei .9 at 4."""
    rms = 1.0 if data.representation == "binary" else 0.6 if data.truncation > 4 else 0.9
    return rms * data.sdf_scale


def modes_of(side: int) -> Tensor:
    """Frequencies of an image's modes in half periods a side, ascending, (side^2,)."""
    axis = torch.arange(side, dtype=torch.float32)
    return torch.hypot(axis[:, None], axis[None]).flatten().sort().values


def bands_of(modes: Tensor) -> Tensor:
    """The number of each mode's band."""
    return torch.bucketize(modes, torch.tensor(EDGES), right=True)


@dataclass(frozen=True)
class Toy:
    """m ~ share N(mean + offset, std^2) + (1 - share) N(mean - offset, std^2).

    Its elements are modes of an image, the coefficients of an orthonormal DCT, where noise stays white; given the kind
    of mask they are independent. mean, std, offset: (n,).
    """

    mean: Tensor
    std: Tensor
    offset: Tensor
    share: float = SHARE

    def denoiser(self, process: Process, generator: torch.Generator | None = None, direct: bool = False) -> Denoise:
        """E[m | z_t], or with a generator draws of p(m | z_t): the perfect distributional denoiser.

        At t_max that one, and one that learns the direct mean, sees nothing of z, as in training.
        """

        def denoise(z: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
            if (generator is not None or direct) and process.at_end(t):
                alpha = 0.0
            variance = (alpha * self.std) ** 2 + sigma**2  # of z, given the kind
            rest = z - alpha * self.mean
            first = torch.sigmoid(self.log_odds(rest, alpha * self.offset, variance))
            if generator is not None:
                first = torch.bernoulli(first, generator=generator)
            centre = (2 * first - 1) * self.offset
            m = self.mean + centre + alpha * self.std**2 / variance * (rest - alpha * centre)
            if generator is None:
                return m
            return m + self.std * sigma / variance.sqrt() * torch.randn(m.shape, generator=generator)

        return denoise

    def log_odds(self, rest: Tensor, offset: Tensor, variance: Tensor) -> Tensor:
        """log p(first kind) / p(second) of deviations from the mean (..., n), (..., 1)."""
        return math.log(self.share / (1 - self.share)) + (2 * offset / variance * rest).sum(dim=-1, keepdim=True)


@dataclass(frozen=True)
class Known:
    """A config's sampler on a posterior that is known."""

    config: Config

    def toy(self, modes: Tensor, apart: float = 0.0) -> Toy:
        """What is not known of shapes in an image of the config's size.

        The image's mean has a std of 8 % of the root mean square (30 % for a joint model, which has no image),
        and higher modes one that falls with a power of the frequency, as in GlaS's masks warped by 2 pixels, down to
        single pixels. The two kinds differ in the lowest 64 modes.
        """
        size = side_of(self.config.data) * rms_of(self.config.data)
        falling = (1 + modes) ** (-1.0 if self.config.data.representation == "binary" else -1.25)
        signs = torch.randn((len(modes), 2), generator=torch.Generator().manual_seed(0)).sign().T
        signs[:, 0] = 1.0  # background outweighs objects, and the first kind has the less of them
        std = (0.3 if self.config.model.kind == "joint" else 0.08) * size
        towards = torch.where(torch.arange(len(modes)) < 64, signs[0] * falling, 0.0)
        return Toy(0.5 * size * signs[1] * falling, std * falling, apart * std * towards / towards.norm())

    def draws(self, toy: Toy, count: int) -> Tensor:
        """(count, n) by the config's sampler and a perfect denoiser of its objective."""
        distributional = self.config.sde.objective == "distribution"
        process, generator = process_of(self.config.sde), torch.Generator().manual_seed(0)
        denoise = toy.denoiser(process, generator if distributional else None, self.config.sde.prior_share > 0)
        shape = (count, 1, 1, len(toy.std))
        sampler = sampler_of(self.config.sampling)
        return sampler(denoise, process, lambda: torch.randn(shape, generator=generator))[:, 0, 0]

    def spread(self, samples: int) -> tuple[list[float], list[float]]:
        """The draws' std over the right one, and their mean over the right one, of each band of modes.

        samples: numbers for each band at least. Modes of small bands are repeated for it, as far as the corrector's
        norms over the whole image hardly notice: it has 4 % more modes at most.
        """
        modes = modes_of(side_of(self.config.data))
        copies = (len(modes) / 128 / torch.bincount(bands_of(modes))).ceil().long()
        modes = modes.repeat_interleave(copies[bands_of(modes)])
        bands, toy = bands_of(modes), self.toy(modes)
        draws = self.draws(toy, math.ceil(128 * samples / side_of(self.config.data) ** 2) + 1)
        power, mean = draws.var(dim=0) / toy.std**2, draws.mean(dim=0) / toy.mean
        each = [bands == band for band in bands.unique()]
        return [power[band].mean().sqrt().item() for band in each], [mean[band].mean().item() for band in each]

    def law(self, count: int) -> dict[str, float]:
        """Of draws of two kinds of masks: the share of the first, the std within a kind and of all over the right ones,
        and the Kolmogorov-Smirnov distance from the right law, all along the line between the kinds."""
        modes = modes_of(side_of(self.config.data))
        modes = torch.cat([modes[:64], modes[64 :: max(1, len(modes) // 1024)]])
        toy = self.toy(modes, APART)
        rest = self.draws(toy, count) - toy.mean
        first = toy.log_odds(rest, toy.offset, toy.std**2)[:, 0] > 0
        apart = float(toy.offset.norm())
        along = toy.offset / apart
        own, x = float((along * toy.std).norm()), (rest @ along).double()
        kinds = [kind - kind.mean() for kind in (x[first], x[~first]) if len(kind)]
        whole = math.sqrt(4 * SHARE * (1 - SHARE) * apart**2 + own**2)
        distance = kstest(
            x.numpy(), lambda v: SHARE * ndtr((v - apart) / own) + (1 - SHARE) * ndtr((v + apart) / own)
        ).statistic
        return {
            "share": first.double().mean().item(),
            "within": torch.cat(kinds).std().item() / own,
            "all": x.std().item() / whole,
            "distance": float(distance),
        }


def configs_of(paths: Sequence[Path]) -> list[Config]:
    """Those given, or all of cfg/ that start from noise. Raises UsageError for a given one that does not."""
    found = [load_config(path) for path in paths or sorted((ROOT / "cfg").glob("*.yaml"))]
    drawn = [config for config in found if not config.is_one_pass and config.sampling.sampler not in ONE_PASS]
    if paths and len(drawn) < len(found):
        names = ", ".join(config.name for config in found if config not in drawn)
        raise UsageError(f"--configs: {names}: draws do not start from noise, there is no sampler to measure")
    return drawn


def chart(spreads: dict[str, list[float]], samplers: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Write a picture: each config's ratios by band, and the least and most of each sampler over its evaluations."""
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for number, (name, ratios) in enumerate(spreads.items()):
        left.plot(2.0 ** np.arange(len(ratios)), ratios, marker="os^"[number // 10], markersize=4, label=name)
    for name, pairs in samplers.items():
        least, most = zip(*pairs, strict=True)
        (line,) = right.plot(NFE, least, marker="o", markersize=4, label=name)
        right.plot(NFE, most, marker="o", markersize=4, color=line.get_color())
        right.fill_between(NFE, least, most, color=line.get_color(), alpha=0.15)
    left.set(xscale="log", yscale="log", xlabel="frequency below, half periods a side", title="configs as shipped")
    right.set(xscale="log", xlabel="evaluations per draw", title="least and most of all modes", ylim=(0.05, 2))
    left.set_ylabel("std of draws over the right one")
    for axes in (left, right):
        axes.axhspan(0.9, 1.1, color="0.85", zorder=0)
        axes.legend(fontsize=7, ncols=4 if axes is left else 2, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    figure.savefig(path, dpi=100)


def main(argv: list[str] | None = None) -> None:
    parser = Parser("Measure the spread of draws where the right one is known.")
    parser.add_argument("--configs", nargs="+", type=Path, default=[], metavar="YAML", help="default: all of cfg/")
    parser.add_argument("--samples", type=int, default=16384, metavar="N", help="numbers for each band of modes")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="where to draw it; default: nowhere")
    args = parser.parse_args(argv)
    if args.samples < 2:
        raise UsageError(f"--samples {args.samples}: 2 or more are expected")
    if args.picture and (args.picture.suffix != ".png" or not args.picture.parent.is_dir()):
        raise UsageError(f"--picture {args.picture}: a .png file in a folder that is there is expected")
    configs = configs_of(args.configs)

    bands = ["mean", *(f"< {edge}" for edge in EDGES[1:]), f">= {EDGES[-1]}"]
    spreads, rows, laws = {}, [], []
    for config in configs:
        spreads[config.name], means = Known(config).spread(args.samples)
        ratios = spreads[config.name]
        own = {"config": config.name, "sampler": f"{config.sampling.sampler} {config.sampling.steps}"}
        cells = [f"{ratio:.2f}" for ratio in ratios] + [""] * (len(bands) - len(ratios))
        rows.append({**own, **dict(zip(bands, cells, strict=True)), "mean / right": f"{means[0]:.2f}"})
        laws.append({**own, **{name: f"{v:.2f}" for name, v in Known(config).law(args.samples // 8).items()}})
    print("\n".join(markdown(rows)), end="\n\n")
    print("\n".join(markdown(laws)), end="\n\n")

    shown = next((config for config in configs if config.name == "quickstart"), configs[0])
    samplers: dict[str, list[tuple[float, float]]] = {name: [] for name in SAMPLERS}
    rows = []
    for name, keys in SAMPLERS.items():
        cells = []
        for nfe in NFE:
            sde = shown.sde.model_copy(update={"objective": "distribution" if "distributional" in name else "mean"})
            config = shown.model_copy(update={"sde": sde, "sampling": SamplingConfig(**keys, steps=nfe)})
            ratios = Known(config).spread(args.samples // 4)[0]
            law = Known(config).law(args.samples // 8)
            samplers[name].append((min(ratios), max(ratios)))
            cells.append(f"{min(ratios):.2f} to {max(ratios):.2f}; {law['share']:.2f}")
        rows.append({f"{shown.name}: sampler": name, **dict(zip(map(str, NFE), cells, strict=True))})
    print("\n".join(markdown(rows)))
    if args.picture:
        chart(spreads, samplers, args.picture)


if __name__ == "__main__":
    sys.exit(run_command(main))
