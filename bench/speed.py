"""Speed of sampling and training as ratios against the plain way, in one run.

    python -m bench.speed --config cfg/quickstart.yaml

Each way is timed in turn, several rounds, so that a noisy neighbour hits all alike; the median of the per-round ratios
is reported, and the share that its convolutions and products reach of the rate of a large matrix product of the same
type, measured in the same rounds. Random images and untrained weights: the arithmetic is that of a trained network.
"""

from __future__ import annotations

from utils.command import run_command

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from data.batches import network_image
from models.build import denoiser_of, placed
from models.denoiser import Denoiser
from sampling.drawer import Drawer, drawer_of
from sampling.loading import drawing, set_draws
from sde.samplers import heun
from utils.cli import common_parser, read_config
from utils.devices import choose_device, device_name, peak_memory_mib
from utils.errors import UsageError
from utils.schema import Config

Action = Callable[[], object]
MATRIX = {"cuda": 8192, "mps": 4096, "cpu": 1536}  # side of the product whose rate is the measure


@dataclass(frozen=True)
class Way:
    """One way to run the network."""

    name: str
    channels_last: bool
    bfloat16: bool
    cached: bool = True
    compiled: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.bfloat16 else torch.float32


class Uncached(Denoiser):
    """Encodes the image at every evaluation, as networks do that concatenate the image to their input."""

    image: torch.Tensor

    def encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        self.image = image
        return super().encode(image)

    def known(self, t: torch.Tensor, features: Sequence[torch.Tensor]) -> None:
        return None

    def forward(self, z: torch.Tensor, t: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor:
        fresh = self.encoder(self.image.repeat_interleave(len(z) // len(self.image), dim=0))
        return super().moments(z, t, [*fresh, *features[len(fresh) :]])[0]


def drawer_for(way: Way, config: Config, device: torch.device) -> Drawer:
    model = denoiser_of(config).eval()
    if not way.cached:
        model.__class__ = Uncached
    placed(model, device, way.channels_last)
    if way.compiled:
        model.encoder.compile()
        model.network.compile()
    sampler = partial(heun, steps=5) if config.sampling.steps > 20 else None
    return replace(drawer_of(config, model, sampler), channels_last=way.channels_last, bfloat16=way.bfloat16)


def train_once(drawer: Drawer, images: torch.Tensor) -> None:
    """Forward and backward of one batch."""
    device, model = drawer.device, drawer.denoiser
    z = torch.randn(len(images), model.mask_channels, *images.shape[-2:], device=device)
    t = torch.rand(len(images), device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=drawer.bfloat16):
        features = model.encode(network_image(images.to(device), drawer.channels_last))
        model(z, t, features).square().mean().backward()
    model.zero_grad(set_to_none=True)


def matrix_product(dtype: torch.dtype, device: torch.device) -> Action:
    """A product of two square matrices that are large for the device."""
    a, b = torch.randn(2, MATRIX[device.type], MATRIX[device.type]).to(device, dtype)
    return lambda: a @ b


def operations(action: Action) -> int:
    """Floating-point operations of the convolutions and matrix products of an action."""
    with FlopCounterMode(display=False) as counter:
        action()
    return int(counter.get_total_flops())


def timed(action: Action, device: torch.device) -> float:
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    begin = time.perf_counter()
    action()
    wait()
    return time.perf_counter() - begin


def compare(actions: Mapping[Any, Action], rounds: int, device: torch.device) -> dict[Any, tuple[float, float]]:
    """Seconds (median) and speed relative to the first action (median of the rounds' ratios) of each."""
    for action in actions.values():
        action()  # warm up
    seconds = np.array([[timed(action, device) for action in actions.values()] for _ in range(rounds)])
    medians, ratios = np.median(seconds, axis=0), np.median(seconds[:, :1] / seconds, axis=0)
    return dict(zip(actions, zip(medians.tolist(), ratios.tolist(), strict=True), strict=True))


def measure(
    title: str, unit: str, count: int, actions: Mapping[Way, Action], rounds: int, device: torch.device
) -> None:
    """Time actions that do `count` units of work each, and print a line for each."""
    products = {dtype: matrix_product(dtype, device) for dtype in {way.dtype: None for way in actions}}
    # What is compiled does the same work, but cannot be counted.
    work = {way.cached: operations(action) for way, action in actions.items() if not way.compiled}
    results = compare({**actions, **products}, rounds, device)
    for way in actions:
        (seconds, ratio), (product, _) = results[way], results[way.dtype]
        rate = 2 * MATRIX[device.type] ** 3 / product
        share = work[way.cached] / seconds / rate
        print(f"{title:9} {way.name:42} {count / seconds:9.2f} {unit:9} {ratio:6.2f} x {share:7.1%} of "
              f"{rate / 1e12:.3g} TFLOP/s", flush=True)  # fmt: skip


def ways_of(compiled: bool) -> list[Way]:
    """From the plain way on, a change at a time."""
    ways = [
        Way("plain", channels_last=False, bfloat16=False, cached=False),
        Way("cached features", channels_last=False, bfloat16=False),
        Way("cached, channels_last", channels_last=True, bfloat16=False),
        Way("cached, channels_last, bfloat16", channels_last=True, bfloat16=True),
    ]
    fast = [replace(way, name=f"{way.name}, compiled", compiled=True) for way in ways[2:]]
    return ways + (fast if compiled else [])


def draws_in_one_evaluation(config: Config, image: torch.Tensor, rounds: int, device: torch.device) -> None:
    """Time many draws of a distributional denoiser, in one view of the image and in all, against few draws of 10
    evaluations of the same network as a diffusion model, and print the ratios."""
    many, few, steps = 128, 8, 10
    mean = {"objective": "mean", "prior_share": 0.25}
    plain = {"sampler": "ancestral", "augment": False, "spread": 1.25}
    ways = {
        f"{few} draws of {steps} evaluations": (few, mean, {**plain, "steps": steps}),
        f"{many} draws of 1, one view": (many, {}, plain),
        f"{many} draws of 1, all views": (many, {}, {**plain, "augment": True}),
    }
    actions: dict[str, Action] = {}
    for name, (draws, sde, sampling) in ways.items():
        parts = {"sde": config.sde.model_copy(update=sde), "sampling": config.sampling.model_copy(update=sampling)}
        own = config.model_copy(update=parts)
        network = placed(denoiser_of(own), device, config.training.channels_last).eval()
        set_draws(network, own.sampling)
        drawer = drawer_of(own, drawing(own.data, own.sampling, [network], image.shape[-2:]))
        actions[name] = partial(lambda drawer, draws: list(drawer(image, ["image"], draws)), drawer, draws)
    for name, (seconds, ratio) in compare(actions, rounds, device).items():
        print(f"{name:40} {seconds:9.2f} s {ratio:6.2f} x", flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = common_parser("Measure speed against the plain way.")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds; default: 5")
    parser.add_argument("--size", type=int, default=64, help="height and width; default: 64")
    parser.add_argument("--draws", type=int, default=8, help="draws of the one image; default: 8")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile, which needs a C++ compiler")
    args = parser.parse_args(argv)
    config = read_config(args)
    if config is None:
        return
    if config.model.kind != "conditional":
        kind = config.model.kind
        raise UsageError(f"model.kind: {kind} has no image encoder, whose cached features this bench is about")
    if min(args.rounds, args.size, args.draws) < 1:
        raise UsageError("--rounds, --size and --draws must be at least 1")
    device = choose_device(args.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32  # products as convolutions
    channels = 3 if config.data.color == "rgb" else 1
    shape = (config.training.batch, channels, args.size, args.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    drawers = {way: drawer_for(way, config, device) for way in ways_of(args.compile)}
    print(f"{device_name(device)}, torch {torch.__version__}, {args.size}x{args.size}, median of {args.rounds} rounds")

    def draw(drawer: Drawer) -> list[tuple[int, torch.Tensor]]:
        return list(drawer(images[:1], ["image"], args.draws))

    sampling = {way: partial(draw, drawer) for way, drawer in drawers.items()}
    measure("sampling", "draws/s", args.draws, sampling, args.rounds, device)
    # Caching plays no part in a training step.
    training = {way: partial(train_once, drawers[way], images) for way in drawers if way.cached}
    measure("training", "images/s", len(images), training, args.rounds, device)
    if config.sde.objective == "distribution":
        draws_in_one_evaluation(config, images[:1], args.rounds, device)
    print(f"peak memory {peak_memory_mib(device):.0f} MiB")


if __name__ == "__main__":
    sys.exit(run_command(main))
