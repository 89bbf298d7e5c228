"""Neither a training step nor a draw makes the host wait for the device: shown on `meta`, which has no values."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sampling.drawer import Drawer, drawer_of, image_tensor
from sampling.loading import drawing, set_draws
from tests.networks import disc_patches, each_system, system
from training.session import build_state, training_step
from utils.schema import Config

META = torch.device("meta")
# What reads values, whose results or errors depend on them.
READERS = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_linalg_check_errors",
           "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave", "lift_fresh")  # fmt: skip


class Waits(AssertionError):
    """An operation that a GPU would make the host wait for."""


class NoWaiting(TorchDispatchMode):
    """Raises where the host would read from the device, or copy to it without `non_blocking`."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, options = function.overloadpacket.__name__, kwargs or {}
        tensors = [x for x in tree_leaves((args, options)) if isinstance(x, Tensor)]
        there = any(x.is_meta for x in tensors)
        if there and name in READERS:
            raise Waits(name)
        places = args[1] if name in ("index", "index_put", "index_put_") and args[0].is_meta else ()
        if any(x is not None and (not x.is_meta or x.dtype == torch.bool) for x in places):
            raise Waits(name)
        if name in ("_to_copy", "copy_"):
            source, target = (args[1], args[0].device) if name == "copy_" else (args[0], options.get("device"))
            blocking = not (options.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
            if source.is_meta and target is not None and target.type == "cpu":
                raise Waits(f"{name} to the host")
            if not source.is_meta and target == META and blocking:
                raise Waits(f"{name} from the host")
        return function(*args, **options)


class AnyGenerator(torch.Generator):
    """Of the host, whatever device is asked for."""

    def __new__(cls, device: object = None) -> AnyGenerator:
        return super().__new__(cls)

    def __init__(self, device: object = None) -> None:
        super().__init__()


@pytest.fixture(autouse=True)
def meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `meta` lacks and a GPU has."""
    monkeypatch.setattr(torch, "Generator", AnyGenerator)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


@pytest.mark.parametrize(
    "reads",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x[0] > 0),
        lambda x: x[x > 0],
        lambda x: x[torch.tensor([1])],
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: x + torch.tensor([1.0, 2.0], device=META),
        lambda x: x + torch.tensor([1.0, 2.0]).to(META),
        lambda x: torch.linalg.inv(torch.outer(x, x)),
    ],
    ids=["item", "bool", "mask", "index", "copy", "list", "new", "move", "inverse"],
)
def test_what_waits_is_seen(reads: Callable[[Tensor], object]) -> None:
    x = torch.ones(2, device=META)
    with NoWaiting(), pytest.raises(Waits):
        reads(x)


def check_step(config: Config) -> None:
    """The second of two steps, as the first one sets up the optimiser."""
    state = build_state(config, disc_patches(color=config.data.color), META)
    with NoWaiting():
        for _ in range(2):
            taken = training_step(state, config.data, config.sde, config.training)
    assert taken.number == 2
    assert taken.losses.is_meta
    with NoWaiting(), pytest.raises(Waits):
        state.team.read([taken])


@pytest.mark.parametrize("name", each_system())
def test_a_training_step_does_not_wait(name: str) -> None:
    check_step(system(name))


def test_no_augmentation_waits() -> None:
    augment = {"brightness": 0.1, "contrast": 0.1, "gamma": 0.1, "blur": 1.0, "noise": 0.1, "stain": 0.1, "scale": 0.1,
               "rotate": 10.0, "elastic": 2.0}  # fmt: skip
    check_step(system("mean", data={"color": "rgb", "rotations": True, "crop": [24, 24], "augment": augment}))


def meta_drawer(config: Config) -> Drawer:
    model = build_state(config, disc_patches(), torch.device("cpu")).average.module.eval()
    set_draws(model, config.sampling)
    return drawer_of(config, drawing(config.data, config.sampling, [model], (32, 32)).to(META))


def check_draws(config: Config) -> None:
    """From images on the host to draws on the device, two of each of two images."""
    drawer, images = meta_drawer(config), image_tensor(disc_patches(2))
    with torch.no_grad(), NoWaiting():
        features = drawer.encode(images)
        owners = [(key, draw) for key in "ab" for draw in range(2)]
        identities = [drawer.identity(*owner) for owner in owners]
        own = drawer.denoiser.of_draws(features, torch.tensor([0, 0, 1, 1]), identities)
        draws = drawer.run(partial(drawer.denoised, features=own), owners, (1, 32, 32))
    assert draws.is_meta
    assert draws.shape == (4, 1, 32, 32)


@pytest.mark.parametrize("name", each_system())
def test_draws_do_not_wait(name: str) -> None:
    check_draws(system(name))


@pytest.mark.parametrize(
    "sampling",
    [
        {"sampler": "pc", "steps": 4},
        {"sampler": "euler_maruyama"},
        {"sampler": "ancestral", "variance": "large"},
        {"sampler": "ddim", "eta": 0.5},
        {"sampler": "euler"},
        {"sampler": "heun", "noise": "antithetic"},
        {"sampler": "dpm_solver"},
    ],
    ids=lambda sampling: sampling["sampler"],
)
def test_no_sampler_waits(sampling: dict[str, Any]) -> None:
    check_draws(system("mean", sampling={"steps": 3, "stochastic": False, **sampling}))
