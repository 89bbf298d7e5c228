"""The one-line API."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from sampling.segmenter import Result, Segmenter, image_of
from tests.commands import TINY, Workspace, newest, sets, shake_checkpoint
from tests.pictures import picture


def test_the_api_of_one_line_gives_the_same(trained: Workspace, inbox: Path) -> None:
    assert trained("sample", "--input", "inbox", "--output", "again").code == 0
    result = Segmenter.from_run(trained.run_folder())(inbox / "grey.png", key="grey")
    assert isinstance(result, Result)
    np.testing.assert_allclose(result.mmse[0], np.load("again/grey/mmse.npy"), atol=1e-5)
    np.testing.assert_allclose(result.std[0], np.load("again/grey/std.npy"), atol=1e-5)
    assert result.mask.shape == (40, 56)
    assert result.draws == 3
    from_array = Segmenter.from_run(trained.run_folder())(picture(40, 56), key="grey")
    np.testing.assert_allclose(from_array.mmse, result.mmse, atol=1e-5)
    with pytest.raises(ValueError, match="uint8"):
        Segmenter.from_run(trained.run_folder())(np.zeros((4, 4)))


def test_an_array_is_seen_through_the_window_as_a_file_is(trained: Workspace, inbox: Path) -> None:
    segmenter, windowed = (Segmenter.from_run(trained.run_folder()) for _ in range(2))
    data = segmenter.config.data.model_copy(update={"window": (20.0, 120.0)})
    windowed.config = segmenter.config.model_copy(update={"data": data})
    results = [windowed(source, key="a").mmse for source in (inbox / "grey.png", picture(40, 56))]
    np.testing.assert_allclose(results[0], results[1], atol=1e-5)
    assert np.abs(results[0] - segmenter(picture(40, 56), key="a").mmse).max() > 1e-3


@pytest.mark.parametrize("size", ["null", "[24, 40]"])
def test_resizing_goes_both_ways(workspace: Workspace, size: str) -> None:
    options = ["--set", f"data.size={size}"]
    assert workspace("prepare", *options).code == 0
    assert workspace("main", *options).code == 0
    result = Segmenter.from_run(workspace.run_folder())(picture(50, 61))
    assert result.mmse.shape == (1, 50, 61)
    assert result.instances.shape == result.probability.shape == (50, 61)


def test_a_raw_picture_gives_what_prepare_and_sample_give(workspace: Workspace) -> None:
    """The same image id has the same draws, whichever way the image comes."""
    raw, rng = workspace.path / "raw", np.random.default_rng(0)
    y, x = np.mgrid[:48, :40]
    for i in range(6):
        disc = (y - rng.uniform(12, 36)) ** 2 + (x - rng.uniform(12, 28)) ** 2 < 80
        image = np.where(disc[..., None], (200, 80, 90), (60, 120, 160)) + rng.normal(0, 8, (48, 40, 3))
        for part, pixels in (("images", image.clip(0, 255)), ("masks", disc * 255)):
            (raw / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(raw / part / f"disc{i}.png")
    data = {"source": "folder", "raw": "raw", "root": "prepared", "size": [32, 32], "truncation": 6, "workers": 1}
    training = {**TINY["training"], "batch": 2, "steps": 2}  # type: ignore[dict-item]
    Path("config.yaml").write_text(yaml.safe_dump({**TINY, "data": data, "training": training}))
    for command in ("prepare", "main"):
        result = workspace(command)
        assert result.code == 0, result.err
    shake_checkpoint(workspace.run_folder())
    assert workspace("sample", "--set", "sampling.animate=false").code == 0
    segmenter = Segmenter.from_run(workspace.run_folder(), device="cpu")
    folders = [path for path in newest(workspace).iterdir() if path.is_dir()]
    assert folders
    for folder in folders:
        prepared = segmenter.prepared(segmenter.open(raw / "images" / f"{folder.name}.png"))
        (band,) = segmenter.bands(prepared, folder.name)
        np.testing.assert_allclose(band.mmse[0], np.load(folder / "mmse.npy"), atol=1e-4)
        np.testing.assert_allclose(band.std[0], np.load(folder / "std.npy"), atol=1e-4)
        assert band.std.max() > 0.01
        probability = np.asarray(Image.open(folder / "probability.png"))
        assert np.abs(band.probability * 255 - probability).max() < 1


@pytest.mark.parametrize("moments", ["false", "true"])
def test_the_direct_mean_takes_one_evaluation(trained: Workspace, moments: str) -> None:
    options = ["sde.prior_share=0.5", f"model.second_moment={moments}"]
    assert trained("main", *sets(options)).code == 0
    mean = ["sampling.sampler=mean"]
    segmenter = Segmenter.from_run(trained.run_folder(), device="cpu", overrides=mean)
    evaluated: list[str] = []
    for name in ("encoder", "network"):
        getattr(segmenter.drawer.denoiser, name).register_forward_hook(lambda *_, name=name: evaluated.append(name))
    result = segmenter(np.zeros((32, 32), np.uint8))
    assert evaluated == ["encoder", "network"]
    assert (result.draws, result.nfe_per_draw) == (1, 1)


def test_the_draws_that_were_made_are_reported(trained: Workspace) -> None:
    auto = ["sampling.draws=auto", "sampling.standard_error=10", "sampling.most_draws=9"]
    segmenter = Segmenter.from_run(trained.run_folder(), device="cpu", overrides=auto)
    image = np.random.default_rng(0).integers(0, 255, (90, 32), dtype=np.uint8)
    assert segmenter(image).draws == 4
    segmenter.tiles.memory = 1
    assert len(list(segmenter.bands(segmenter.prepared(image_of(image)), "a"))) > 1
    assert (segmenter(image).draws, segmenter(image).nfe_per_draw) == (4, 5)
