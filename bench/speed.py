"""Speed of sampling and training as ratios against the plain way, in one run.

    python -m bench.speed --config cfg/quickstart.yaml

Each way is timed in turn, several rounds, so that a noisy neighbour hits all alike; the median of the per-round ratios
is reported, and the share that its convolutions and products reach of the rate of a large matrix product of the same
type, measured in the same rounds. With --peers, networks of other libraries instead. Random images and untrained
weights: the arithmetic is that of a trained network.
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
from torch.utils._python_dispatch import TorchDispatchMode

from bench.peers import evaluated, operations, parameters_of, peers_of
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
    """Forward and backward of one evaluation of a batch, without dropout, a second draw or the optimiser (--peers has
    whole steps)."""
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


def convolution(device: torch.device) -> Action:
    """Of maps that are large for the device."""
    channels, side = (256, 64) if device.type == "cuda" else (64, 64)
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False).requires_grad_(False)
    layer = layer.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return partial(layer, torch.randn(16, channels, side, side).to(device, memory_format=torch.channels_last))


class Convolutions(TorchDispatchMode):
    """Keeps the convolutions of an action, to do them again without anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Action] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default):
            self.calls.append(partial(func, *args))
        return func(*args, **(kwargs or {}))

    @classmethod
    def of(cls, action: Action) -> Action:
        with cls() as kept:
            action()
        return torch.no_grad()(lambda: [call() for call in kept.calls])


def timed(action: Action, device: torch.device) -> float:
    """Seconds; of the processor where one thread works, so that other programs do not count."""
    if device.type == "cpu" and torch.get_num_threads() == 1:
        begin = time.process_time()
        action()
        return time.process_time() - begin
    wait = partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    begin = time.perf_counter()
    action()
    wait()
    return time.perf_counter() - begin


def compare(
    actions: Mapping[Any, Action], rounds: int, device: torch.device, base: Callable[[Any], Any] | None = None
) -> dict[Any, tuple[float, float]]:
    """Seconds (median) and speed relative to `base` of it, by default the first action (median of the rounds' ratios),
    of each."""
    for action in actions.values():
        action()  # warm up
    seconds = np.array([[timed(action, device) for action in actions.values()] for _ in range(rounds)])
    keys = list(actions)
    of = [0 if base is None else keys.index(base(key)) for key in keys]
    medians, ratios = np.median(seconds, axis=0), np.median(seconds[:, of] / seconds, axis=0)
    return dict(zip(keys, zip(medians.tolist(), ratios.tolist(), strict=True), strict=True))


def measure(
    title: str, unit: str, count: int, actions: Mapping[Way, Action], rounds: int, device: torch.device
) -> None:
    """Time actions that do `count` units of work each, and print a line for each."""
    products = {dtype: matrix_product(dtype, device) for dtype in {way.dtype: None for way in actions}}
    # What is compiled does the same work, but cannot be counted.
    work = {way.cached: operations(action) for way, action in actions.items() if not way.compiled}
    results = compare({**actions, **products, "convolution": convolution(device)}, rounds, device)
    layer = operations(convolution(device)) / results["convolution"][0]
    for way in actions:
        (seconds, ratio), (product, _) = results[way], results[way.dtype]
        rate = 2 * MATRIX[device.type] ** 3 / product
        share = work[way.cached] / seconds / rate
        print(f"{title:9} {way.name:42} {count / seconds:9.2f} {unit:9} {ratio:6.2f} x {share:7.1%} of "
              f"{rate / 1e12:.3g} TFLOP/s", flush=True)  # fmt: skip
    print(f"{title:9} a convolution of float32 reaches {layer / 1e12:.3g} TFLOP/s")


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
    """Time many draws of a distributional denoiser, in one view of the image and in all, against few draws of 14
    evaluations of the same network as a diffusion model (DPM-Solver++ SDE), and print the ratios."""
    many, few, steps = 128, 8, 14
    mean = {"objective": "mean", "prior_share": 0.25}
    plain = {"sampler": "ancestral", "augment": False, "spread": 1.25}
    solver = {"sampler": "dpm_solver", "stochastic": True}
    ways = {
        f"{few} draws of {steps} evaluations": (few, mean, {**plain, **solver, "steps": steps}),
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


@torch.no_grad()
def evaluate_once(model: Denoiser, images: torch.Tensor) -> torch.Tensor:
    return model.direct_moments(model.features(images), images.shape[-2:])[0]


def compare_peers(
    model: Denoiser, drawer: Drawer, multipliers: Sequence[int], images: torch.Tensor, draws: int, rounds: int
) -> None:
    """Time a training step (forward and backward), one evaluation, and draws of one image in batches, of our network
    and of peers, which run as a whole for each draw; print how many times as long they take as ours, and how much of
    our time the same convolutions take on their own."""
    device, masks = drawer.device, model.mask_channels
    x = network_image(images.to(device), channels_last=True)
    size = images.shape[-1]
    once = drawer.at_once((size, size)) or drawer.max_batch
    work = operations(partial(evaluate_once, model.eval(), x[:1]))
    rows: dict[str, tuple[torch.nn.Module, list[Action]]] = {}

    def add(name: str, model: torch.nn.Module, evaluate: Callable[[torch.Tensor], Any], draw: Action) -> None:
        def step() -> None:
            model.train()
            evaluate(x).square().mean().backward()
            model.zero_grad(set_to_none=True)

        @torch.no_grad()
        def one() -> None:
            model.eval()
            evaluate(x[:once])

        rows[name] = model, [step, one, draw]

    def ours(x: torch.Tensor) -> torch.Tensor:
        return model.direct_moments(model.features(x), x.shape[-2:])[0]

    add("ours", model, ours, lambda: list(drawer(images[:1], ["image"], draws)))
    for name, peer in peers_of(multipliers, x.shape[1] + masks, masks, size, parameters_of(model), work).items():
        if isinstance(peer, str):
            print(f"{name}: left out, it needs pip install {peer}")
            continue
        peer = peer.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

        def evaluate(x: torch.Tensor, peer: torch.nn.Module = peer) -> Any:
            return evaluated(peer, torch.cat([x, x.new_zeros((len(x), masks, *x.shape[2:]))], dim=1))

        @torch.no_grad()
        def draw(peer: torch.nn.Module = peer, evaluate: Callable[[torch.Tensor], Any] = evaluate) -> None:
            peer.eval()
            for part in x[:1].expand(draws, -1, -1, -1).split(once):
                evaluate(part)

        add(name, peer, evaluate, draw)
    first = next(iter(rows))
    actions = {(name, i): action for name, (_, three) in rows.items() for i, action in enumerate(three)}
    alone = {("alone", i): Convolutions.of(actions[first, i]) for i in range(3)}
    results = compare({**actions, **alone}, rounds, device, base=lambda key: (first, key[1]))
    kinds = (f"training step of {len(x)}", f"evaluation of {len(x[:once])}", f"{draws} draws")
    print(f"{'':46}{'M params':>9}{'GFLOP':>7}" + "".join(f"{kind:>24}" for kind in kinds))
    for name, (peer, _) in rows.items():
        seen = x[:1, :1].expand(-1, x.shape[1] + masks, -1, -1)
        flops = work if peer is model else operations(partial(evaluated, peer.eval(), seen))
        cells = [f"{results[name, i][0] * 1e3:14.1f} ms {1 / results[name, i][1]:4.2f} x" for i in range(3)]
        print(f"{name:46}{parameters_of(peer) / 1e6:9.2f}{flops / 1e9:7.2f}" + "".join(cells))
    shares = [f"{1 / results['alone', i][1]:14.0%}{'':10}" for i in range(3)]
    print(f"{'our convolutions on their own, of the time':62}" + "".join(shares), flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = common_parser("Measure speed against the plain way.")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds; default: 5")
    parser.add_argument("--size", type=int, default=64, help="height and width; default: 64")
    parser.add_argument("--draws", type=int, default=8, help="draws of the one image; default: 8")
    parser.add_argument("--peers", action="store_true", help="against networks of other libraries instead")
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
    print(f"{device_name(device)}, torch {torch.__version__}, {args.size}x{args.size}, median of {args.rounds} rounds")
    if args.peers:
        # As a regression, which is what peers do in a step; draws by the config.
        regression = {"prior_share": 1, "objective": "mean"}
        model = placed(
            denoiser_of(config.model_copy(update={"sde": config.sde.model_copy(update=regression)})), device, True
        )
        one = {"sampler": "ancestral", "steps": 1, "augment": False, "spread": 1.25}
        own = config.model_copy(update={"sampling": config.sampling.model_copy(update=one)})
        network = placed(denoiser_of(own), device, True).eval()
        set_draws(network, own.sampling)
        return compare_peers(
            model, drawer_of(own, network), config.model.encoder.multipliers, images, args.draws, args.rounds
        )
    drawers = {way: drawer_for(way, config, device) for way in ways_of(args.compile)}

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
