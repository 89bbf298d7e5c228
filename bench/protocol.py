"""What `bench.table` compares: a YAML file of systems, seeds and ways to sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from utils.config import effective, load_config
from utils.errors import UsageError
from utils.schema import Config

FOLDER = Path(__file__).parent / "protocols"
MEMBER_SEEDS = 1000  # between the seeds of an ensemble's members
SMALL = (  # what --small sets in every protocol: the embedded data, a few steps
    "data.source=phantom",
    "data.size=null",
    "data.stain=none",
    "data.test_patch=null",
    "data.phantom.train=16",
    "data.phantom.val=4",
    "data.phantom.test=4",
    "data.phantom.size=48",
    "training.steps=20",
    "training.validate_every=20",
    "training.checkpoint_every=20",
    "training.batch=4",
    "training.warmup=2",
)


class Entry(BaseModel):
    """A way to sample: its name, and the keys that it sets."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+-]*$")
    set: list[str] = []


class System(Entry):
    """A network and its training; or, with `network`, another way to sample those of the system of that name."""

    config: str | None = None  # instead of the protocol's
    sample_once: list[str] | None = None  # the only way it samples
    network: str | None = None
    small: list[str] = []  # with --small, besides the protocol's
    members: int = Field(1, ge=1, le=20)  # with `network`: so many, with seeds of their own, are a deep ensemble
    seeds: list[int] | None = Field(None, min_length=1)  # instead of the protocol's: of an ensemble sampled once, say

    @model_validator(mode="after")
    def _network_needed(self) -> System:
        if self.network is None and self.members > 1:
            raise ValueError("members: needs network, the system whose networks they are")
        if self.network is not None and (self.config is not None or self.sample_once is not None):
            raise ValueError("network: has a config of its own and is sampled with `set`")
        return self


class Protocol(BaseModel):
    """What is compared; `small` holds what --small sets besides SMALL, `notes` what a reader of the table must know."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(pattern=r"^[a-z0-9_]+$")
    title: str
    config: str
    set: list[str] = []
    small: list[str] = []
    notes: list[str] = []
    split: Literal["val", "test"] = "test"
    seeds: list[int] = Field([0], min_length=1)
    systems: list[System] = Field(min_length=1)
    samplings: list[Entry] = Field(min_length=1)

    @model_validator(mode="after")
    def _networks_known(self) -> Protocol:
        trained = [system.name for system in self.systems if system.network is None]
        for system in self.systems:
            if system.network is not None and system.network not in trained:
                raise ValueError(f"systems: {system.name}: network: {system.network} is none of {', '.join(trained)}")
        return self

    def trained(self, system: System) -> System:
        """The system whose networks `system` samples: often itself."""
        return next((s for s in self.systems if s.name == system.network), system)


@dataclass(frozen=True)
class Training:
    """A network to train: its config, and the keys set besides."""

    config: str
    overrides: tuple[str, ...]

    def sets(self, more: Sequence[str] = ()) -> list[str]:
        """What is to be set of the keys, many of which are shared by systems that have no use for them."""
        return effective(self.config, [*self.overrides, *more])

    def resolved(self, more: Sequence[str] = ()) -> Config:
        """Its config; with `more` keys, the one it is sampled with."""
        return load_config(self.config, self.sets(more))


@dataclass(frozen=True)
class Job:
    """One way to sample one network, or an ensemble of it and `others`."""

    system: str
    seed: int
    sampling: str
    training: Training
    drawing: tuple[str, ...]
    others: tuple[Training, ...] = ()

    def sampled(self, members: Sequence[object] | None = None) -> tuple[str, ...]:
        """The keys of the sampling. members: run folders of the others; None: their names stand for them."""
        if not self.others:
            return self.drawing
        names = [training.resolved().name for training in self.others] if members is None else members
        return (*self.drawing, f"sampling.members=[{', '.join(map(str, names))}]")

    def resolved(self) -> Config:
        """The config it is sampled with."""
        return self.training.resolved(self.sampled())


def read_protocol(name: str) -> Protocol:
    """A file, or one of bench/protocols by its name. Raises UsageError if it is not a protocol."""
    path = Path(name) if Path(name).suffix else FOLDER / f"{name}.yaml"
    try:
        return Protocol(**yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, TypeError, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--protocol {path}: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first: Any = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "systems"
        raise UsageError(f"--protocol {path}: {where}: {first['msg'].removeprefix('Value error, ')}") from None


def jobs_of(protocol: Protocol, extra: Sequence[str], small: bool) -> Iterator[Job]:
    """Every system with every seed and way to sample."""
    stem = f"{protocol.name}{'_small' if small else ''}"
    for override in extra:
        if override.split("=")[0].strip() in ("name", "seed"):
            raise UsageError(f"--set {override}: the protocol decides on name and seed")

    def last(system: System) -> tuple[str, ...]:
        if not small:
            return tuple(extra)
        return (*SMALL, f"data.root=prepared/{stem}", *protocol.small, *system.small, *extra)

    def training(system: System, seed: int) -> Training:
        name = f"{stem}-{system.name.replace(' ', '_').replace('+', 'plus')}-{seed}"
        return Training(
            system.config or protocol.config,
            (*protocol.set, *system.set, *last(system), f"name={name}", f"seed={seed}"),
        )

    several = [system.seeds or protocol.seeds for system in protocol.systems]
    for seed in dict.fromkeys(chain(protocol.seeds, *several)):
        for system in (system for system, seeds in zip(protocol.systems, several, strict=True) if seed in seeds):
            own = system.sample_once if system.network is None else system.set
            ways = protocol.samplings if own is None else [Entry(name="its own", set=own)]
            source = protocol.trained(system)
            others = [training(source, seed + MEMBER_SEEDS * k) for k in range(1, system.members)]
            for way in ways:
                yield Job(system.name, seed, way.name, training(source, seed), (*way.set, *last(source)), tuple(others))
