"""Weights to give away: read, used without a run, and those that are kept here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sampling.segmenter import Segmenter
from tests.commands import ROOT, Workspace, exported, newest, sampled
from utils.weights import SUFFIX, Header, halved, read_header, read_weights, weights_bytes

KEPT = sorted((ROOT / "weights").glob(f"*{SUFFIX}"))


def summary_of(name: str) -> dict[str, dict[str, float]]:
    (path,) = Path("runs", name).glob("*/samples/*/summary.json")
    return json.loads(path.read_text())


@pytest.mark.slow
def test_weights_score_as_the_run_they_come_from(trained: Workspace) -> None:
    config = ["--set", "sampling.animate=false"]
    full, half = exported(trained, "--full", name="full"), exported(trained, name="half")
    assert half.stat().st_size < 0.7 * full.stat().st_size
    assert trained("sample", *config).code == 0
    for path in (full, half):
        assert sampled(trained, "--weights", str(path), *config).code == 0
    own, same, near = (summary_of(name) for name in ("tiny", "weights/full", "weights/half"))
    assert same["mmse"] == own["mmse"]
    assert same["single"] == own["single"]
    assert near["mmse"]["f1"] == pytest.approx(own["mmse"]["f1"], abs=0.02)
    (folder,) = Path("runs/weights/full").glob("*/samples/*")
    shutil.rmtree(folder / "phantom_0010")
    assert sampled(trained, "--weights", str(full), *config, "--resume").code == 0
    assert (folder / "phantom_0010" / "mmse.npy").is_file()


def test_weights_predict_where_there_is_nothing_else(trained: Workspace, tmp_path: Path) -> None:
    path = exported(trained).rename(tmp_path / "given.safetensors")
    for name in ("runs", "prepared", "weights"):
        shutil.rmtree(name)
    Path("config.yaml").unlink()
    Path("pictures").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 36), np.uint8)).save("pictures/one.png")
    assert sampled(trained, "--weights", str(path), "--input", "pictures").code == 0
    (output,) = Path("predictions").iterdir()
    assert pd.read_csv(output / "results.csv")["image_id"].tolist() == ["one"]
    segmenter = Segmenter.from_weights(path, device="cpu", overrides=["sampling.draws=3"])
    result = segmenter(output.parent.parent / "pictures/one.png", key="one")
    np.testing.assert_array_equal(result.mmse[0], np.load(output / "one" / "mmse.npy"))
    assert not Path("runs").exists()


def test_half_precision_keeps_what_is_not_a_matrix() -> None:
    weights = {
        "a": torch.full((2, 2), 0.1),
        "b": torch.full((2,), 0.1),
        "c": torch.tensor(0.1),
        "n": torch.ones(2, 2).long(),
    }
    types = {name: w.dtype for name, w in halved(weights).items()}
    assert types == {"a": torch.float16, "b": torch.float32, "c": torch.float32, "n": torch.int64}


def test_weights_without_a_checksum_are_used_and_a_licence_is_a_line(
    trained: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = exported(trained)
    _rewrite(path, sha256=None, licence="free\x1b[31m\nred")
    assert read_header(path).licence == "free [31m red"
    assert read_weights(path)["ema"].keys() == load_file(path).keys()
    assert "has no checksum" in caplog.text


def test_a_file_of_another_name_is_refused_by_its_name(trained: Workspace) -> None:
    path = exported(trained).rename("given.bin")
    assert "weights end in .safetensors" in sampled(trained, "--weights", str(path)).err


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    weights = {"a": torch.randn(3, 4).T, "b": torch.tensor(0.5), "n": torch.arange(3)}
    header = Header({"name": "x"}, {"size": [8, 8]}, "free", "abc", 7)
    path = tmp_path / "x.safetensors"
    path.write_bytes(weights_bytes(weights, header))
    assert read_header(path) == header
    state = read_weights(path)
    assert all(torch.equal(state["ema"][name], w) for name, w in weights.items())


def _other_tensors(path: Path) -> None:
    save_file({"w": torch.zeros(2)}, path)


def _rewrite(path: Path, **changes: str | None) -> None:
    """The same weights under another header; None leaves a text out."""
    with safe_open(path, "pt") as file:
        texts = {**file.metadata(), **changes}
    save_file(load_file(path), path, {name: text for name, text in texts.items() if text is not None})


def _many_channels(path: Path) -> str:
    config = read_header(path).config
    return json.dumps(config | {"model": config["model"] | {"channels": 1024}})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "damaged or not a safetensors file"),
        (lambda path: path.write_text("hello"), "damaged or not a safetensors file"),
        (_other_tensors, "not weights of this program"),
        (lambda path: _rewrite(path, images=None), "damaged, or not of this program"),
        (lambda path: _rewrite(path, config="{"), "damaged, or not of this program"),
        (lambda path: _rewrite(path, images="null"), "damaged, or not of this program"),
        (lambda path: _rewrite(path, step="3.5"), "damaged, or not of this program"),
        (lambda path: _rewrite(path, images='{"size": null}'), "images.size"),
        (lambda path: _rewrite(path, images='{"size": [8, 8], "stain_target": 3}'), "images.stain_target"),
        (lambda path: _rewrite(path, config='{"a":' * 100_000), "recursion limit"),
        (lambda path: _rewrite(path, licence="\x1b[31mfree"), "its SHA-256 is another"),
        (lambda path: _rewrite(path, sha256=None, config=_many_channels(path)), "of another architecture"),
        (lambda path: path.unlink(), "no such file of weights"),
    ],
)
def test_files_that_are_no_weights(trained: Workspace, damage: Callable[[Path], object], message: str) -> None:
    path = exported(trained)
    damage(path)
    Path("pictures").mkdir()
    result = sampled(trained, "--weights", str(path), "--input", "pictures")
    assert result.code == 2
    assert message in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not Path("predictions").exists()


@pytest.mark.parametrize("more", [["--config", "config.yaml"], ["--run", "runs/tiny"], ["--checkpoint", "last"]])
def test_weights_go_alone(trained: Workspace, more: list[str]) -> None:
    result = sampled(trained, "--weights", str(exported(trained)), *more)
    assert result.code == 2
    assert f"leave out {more[0]}" in result.err


def test_scoring_without_the_data_leaves_no_run(trained: Workspace) -> None:
    path = exported(trained)
    shutil.rmtree("prepared")
    assert sampled(trained, "--weights", str(path)).code == 2
    assert not Path("runs/weights").exists()


@pytest.mark.slow
def test_samples_of_weights_hide_no_training(trained: Workspace) -> None:
    path = exported(trained, name="tiny")
    assert sampled(trained, "--weights", str(path), "--set", "sampling.draws=1").code == 0
    run = trained.run_folder()
    assert trained("sample", "--set", "sampling.draws=1").code == 0
    assert trained.run_folder() == run
    assert (newest(run) / "summary.json").is_file()


def test_weights_of_another_truncation_are_refused(trained: Workspace) -> None:
    path = exported(trained)
    assert trained("prepare", "--set", "data.truncation=3").code == 0
    assert "prepared with data.truncation: 3.0" in sampled(trained, "--weights", str(path)).err
    result = sampled(trained, "--weights", str(path), "--set", "data.truncation=3")
    assert result.code == 2
    assert "trained with data.truncation: 6.0; the config says 3.0" in result.err


def dots(*, light: bool, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """A blurred, noisy picture of round nuclei, and their mask."""
    rng, (y, x) = np.random.default_rng(3), np.mgrid[:size, :size]
    distance = np.full((size, size), np.inf)
    for row in range(20, size, 36):
        for column in range(20, size, 36):
            distance = np.minimum(distance, np.hypot(y - row, x - column) - rng.uniform(7, 11))
    level = 1 / (1 + np.exp(distance)) * 120
    image = (25 + level if light else 220 - level) + rng.normal(0, 3, distance.shape)
    return image.clip(0, 255).astype(np.uint8), distance < 0


def test_four_kinds_of_objects_are_kept() -> None:
    assert [path.stem for path in KEPT] == ["cfos", "glas", "lidc", "nuclei"]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_kept_weights_are_small_and_have_a_card(path: Path) -> None:
    card = path.with_suffix(".md").read_text()
    header = read_header(path)
    assert path.stat().st_size <= 16 * 2**20
    for heading in ("Data", "Licence", "Protocol", "Scores", "Intended use", "Limits"):
        assert f"\n## {heading}\n" in card
    assert header.commit in card
    with safe_open(path, "pt") as file:
        assert len(file.metadata()["sha256"]) == 64
    assert read_weights(path)["step"] == header.step
    assert "/" not in str(header.config["data"]["stain_target"])


@pytest.mark.parametrize("light", [True, False])
def test_kept_nuclei_weights_find_nuclei(light: bool) -> None:
    path = ROOT / "weights" / "nuclei.safetensors"
    segmenter = Segmenter.from_weights(path, device="cpu", overrides=["sampling.draws=4"])
    image, mask = dots(light=light)
    result = segmenter(image)
    both = (result.mask & mask).sum()
    assert 2 * both / (result.mask.sum() + mask.sum()) > 0.85
    assert len(result.objects) == 9
