"""Files that were damaged on the way: one line that names them, or what they said before; never a traceback."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.dataset import load_split
from data.scenes import scenes_of
from results import compared, summary
from results.read import read_layers
from tests.commands import Workspace, exported, newest, tensors
from training.recorder import COLUMNS, VALIDATION, MetricsFile
from training.state import Saved
from utils.checkpoint import load_checkpoint
from utils.config import load_config
from utils.errors import CheckpointError, ConfigError, DataError, UsageError
from utils.files import write_bytes
from utils.weights import read_header, read_weights

pytestmark = pytest.mark.slow
ODD: list[Any] = [None, [], {}, "", "x" * 10_000, -1, 0, 10**30, 1e308, float("nan"), True, [[[]]], {"a": 1}]


def mutations(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Bytes turned, cut off, left out, doubled or zeroed, as disks and networks do."""
    generator = random.Random(seed)
    for i in range(count):
        at, length = generator.randrange(len(content)), generator.choice([1, 3, 100])
        yield [
            lambda at, n: content[:at] + bytes([content[at] ^ 1 << generator.randrange(8)]) + content[at + 1 :],
            lambda at, n: content[:at],
            lambda at, n: content[:at] + content[at + n :],
            lambda at, n: content[: at + n] + content[at:],
            lambda at, n: content[:at] + bytes(n) + content[at + n :],
        ][i % 5](at, length)


def replaced(tree: Any, count: int, seed: int) -> Iterator[bytes]:
    """JSON in which one value anywhere has become something odd, or is gone."""
    generator, text = random.Random(seed), json.dumps(tree)
    for _ in range(count):
        place = whole = json.loads(text)
        while True:
            key = generator.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], dict | list) or not place[key] or generator.random() < 0.3:
                break
            place = place[key]
        if generator.random() < 0.2:
            del place[key]
        else:
            place[key] = generator.choice(ODD)
        yield json.dumps(whole).encode()


def one_line(path: Path, content: bytes, read: Callable[[], object]) -> object | None:
    """What is read of the damaged file; None where it was refused with a line that names it or its folder."""
    write_bytes(path, content)
    try:
        return read()
    except (CheckpointError, ConfigError, DataError, UsageError) as error:
        line = str(error)
    assert "\n" not in line
    assert len(line) < 1000
    assert path.name in line or path.parent.name in line
    return None


def _same(one: object, two: object) -> bool:
    first, second = tensors(one), tensors(two)
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key]
        for key, value in first.items()
    )


@pytest.mark.parametrize("kind", ["checkpoint", "weights"])
def test_damaged_weights_are_refused_or_the_same(trained: Workspace, kind: str) -> None:
    def read() -> dict[str, Any]:
        if kind == "weights":
            return {**read_weights(path), "header": vars(read_header(path))}
        return load_checkpoint(path, Saved)

    path = exported(trained) if kind == "weights" else trained.run_folder() / "checkpoints" / "last.pt"
    content, whole = path.read_bytes(), read()
    refused = 0
    for damaged in mutations(content, 80, seed=1):
        found = one_line(path, damaged, read)
        refused += found is None
        assert found is None or _same(found, whole)
    assert refused > 60


@pytest.fixture
def sampling(trained: Workspace, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished sampling; its summary can be made again without pictures."""
    assert trained("sample").code == 0
    for name in ("reliability_diagram", "sparsification_curve", "spread_skill_chart", "rank_histograms"):
        monkeypatch.setattr(summary, name, lambda numbers: type("Figure", (), {"savefig": lambda *_, **__: None}))
    monkeypatch.setattr(summary, "render_report", lambda *_: "")
    return newest(trained)


def test_damaged_results_are_refused_or_summed_up(sampling: Path) -> None:
    config = load_config("config.yaml")
    scenes = scenes_of(load_split(config.data, "test", instances=True))
    key = scenes[0].key

    def finish() -> object:
        return summary.finish(sampling, scenes, config, {"split": "test"})

    def layers() -> object:
        return read_layers(sampling / key, scenes[0].image, 3.0, scenes[0])

    def compare() -> object:
        return compared.compare([str(sampling), str(other)], Path("compared"))

    other = Path(shutil.copytree(sampling, "other/sampling"))
    outcomes = []
    kinds: list[tuple[str, int, Callable[[], object]]] = [
        ("scores.json", 30, finish), ("details.json", 30, finish), ("mmse.npy", 20, layers), ("mask.png", 20, layers),
        ("draws.png", 20, layers),
        ("../settings.json", 10, finish), ("../summary.json", 10, compare), ("../metrics.csv", 10, compare),
    ]  # fmt: skip
    for name, count, read in kinds:
        path = sampling / key / name
        content = path.read_bytes()
        trees = replaced(json.loads(content), count, seed=2) if path.suffix == ".json" else iter(())
        for damaged in [*mutations(content, count, seed=3), *trees]:
            outcomes.append(one_line(path.resolve(), damaged, read) is None)
        path.write_bytes(content)
    assert finish() is not None
    assert 0.3 < np.mean(outcomes) < 0.95


def test_damaged_curves_are_refused_or_gone_on_with(trained: Workspace) -> None:
    path = trained.run_folder() / "metrics.csv"
    for damaged in mutations(path.read_bytes(), 60, seed=4):
        one_line(path, damaged, lambda: MetricsFile(path, COLUMNS + VALIDATION, last_step=3))


def test_damaged_results_of_pictures_are_named(trained: Workspace, inbox: Path) -> None:
    words = ["--run", str(trained.run_folder()), "--input", "inbox", "--output", "out", "--resume"]
    assert trained("sample", *words).code == 0
    settings, result = Path("out/settings.json"), Path("out/grey/result.json")
    for path, content in (
        (result, ""),
        (result, '{"file": 3}'),
        (result, "[" * 3000),
        (settings, ""),
        (settings, "[]"),
    ):
        before = path.read_text()
        path.write_text(content)
        assert str(path) in trained.fails("sample", *words)
        path.write_text(before)
