"""docs/correct.md from its first command to its last, at toy sizes, the correction in napari's viewer model."""

from __future__ import annotations

from utils.command import run_command

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from napari_plugin.session import Session
from tests.commands import ROOT, listed
from tests.test_docs import commands, fences

PAGE = ROOT / "docs" / "correct.md"
SMALLER = {
    "sample": ["--set", "sampling.draws=2", "--device", "cpu", "--quiet"],
    "main": ["--set", "training.steps=2", "--set", "training.batch=2", "--set", "training.warmup=1",
             "--set", "evaluation.draws=2", "--device", "cpu", "--quiet"],
    "data.prepare": ["--set", "data.workers=1", "--quiet"],
    "data.inspect": [],
}  # fmt: skip


def typed(line: str) -> tuple[str, list[str]]:
    """Module and arguments of a command of the page."""
    words = shlex.split(line, comments=True)
    return (words[2], words[3:]) if words[1] == "-m" else (words[1].removesuffix(".py"), words[2:])


def discs(seed: int) -> np.ndarray:
    """Bright nuclei on dark ground, of which more are blurred by noise the larger the seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:100, :110]
    image = np.full(y.shape, 20.0)
    for row, column in ((20, 25), (25, 80), (70, 30), (75, 85)):
        image[(y - row) ** 2 + (x - column) ** 2 < 80] = 150
    return (image + rng.normal(0, 4 + 12 * seed, image.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.slow
def test_the_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, viewer: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_pictures").mkdir()
    for seed, name in enumerate(("clear", "fair", "poor")):
        Image.fromarray(discs(seed)).save(f"my_pictures/{name}.png")
    (config,) = fences(PAGE, "yaml")
    Path("corrected.yaml").write_text(config)
    lines = [line for block in fences(PAGE, "bash") for line in block.splitlines() if line.startswith("python ")]
    assert {typed(line)[0] for line in lines} == {*SMALLER, "napari_plugin.correct"}
    assert set(lines) <= commands(PAGE)
    corrections: dict[str, np.ndarray] = {}
    for line in lines:
        module, words = typed(line)
        if module == "napari_plugin.correct":  # a person takes over
            corrections = corrected_in(viewer, Path(words[0]), Path(words[-1]))
            continue
        command = importlib.import_module(module)
        assert run_command(lambda: command.main([*words, *SMALLER[module]])) == 0, line  # noqa: B023
    table = pd.read_csv("predictions/results.csv").sort_values("look_rank")
    assert list(corrections) == table["image_id"].tolist()[:2]
    archive = listed("folder", Path("corrected"))
    assert archive.problems == []
    for record in archive.records:
        sample = record.read()
        assert sample is not None
        np.testing.assert_array_equal(sample.instances, corrections.pop(record.image_id))  # type: ignore[arg-type]
    assert not corrections
    trained_on = pd.concat([pd.read_csv(f"prepared/corrected/{split}.csv") for split in ("train", "val")])
    assert set(trained_on["image_id"]) == set(table["image_id"][:2])
    assert set(pd.read_csv("again/results.csv")["image_id"]) == set(table["image_id"])
    (run,) = Path("runs/corrected").iterdir()
    begins = re.search(r"begins with .*: (\d+) of (\d+) tensors", (run / "log.txt").read_text())
    assert begins
    assert begins[1] == begins[2]  # the sizes on the page are those of the weights
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["start_from"] == "weights/nuclei.safetensors"


def corrected_in(viewer: Any, results: Path, output: Path) -> dict[str, np.ndarray]:
    """Two pictures of the list, with an object removed and one drawn in each; their labels by name."""
    session, made = Session(viewer, results), {}
    for _ in range(2):
        name = session.next(output)
        assert name is not None
        session.open(name)
        labels = session.labels.data
        labels[labels == labels[labels > 0].min(initial=99)] = 0
        if hasattr(session.labels, "paint"):
            session.labels.paint((45, 55), int(labels.max()) + 1)
        else:
            labels[41:50, 51:60] = labels.max() + 1
        session.save(output)
        made[name] = np.array(session.labels.data)
    return made
