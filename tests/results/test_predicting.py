"""Predictions on anybody's images, as a user types them and by the one-line API."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image

from data.inputs import PreparedPicture, TiledPicture, open_picture
from data.patches import Window
from results import predicted as predicting
from results import sampled as results
from sampling.segmenter import Result, Segmenter
from tests.conftest import Workspace
from utils.config import load_config
from utils.locks import held

FILES = {"mmse.npy", "std.npy", "probability.png", "mask.png", "overlay.png", "mmse.png", "std.png", "instances.png",
         "objects.csv", "objects.geojson", "result.json"}  # fmt: skip


def picture(height: int, width: int, channels: int = 0, seed: int = 0) -> np.ndarray:
    """Blobs, uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    pixels = np.full((height, width), 60.0)
    for _ in range(4):
        row, column = rng.uniform(0, height), rng.uniform(0, width)
        pixels[(y - row) ** 2 + (x - column) ** 2 < 40] = 190
    pixels += rng.normal(0, 5, pixels.shape)
    image = pixels.clip(0, 255).astype(np.uint8)
    return np.repeat(image[..., None], channels, axis=2) if channels else image


@pytest.fixture
def inbox(trained: Workspace) -> Path:
    """A folder of good pictures of several formats and sizes."""
    folder = trained.path / "inbox"
    folder.mkdir()
    Image.fromarray(picture(40, 56)).save(folder / "grey.png")
    Image.fromarray(picture(32, 32, 3)).save(folder / "colour.jpg")
    Image.fromarray(picture(90, 70, 3)).save(folder / "large.bmp")
    tifffile.imwrite(folder / "deep.tif", picture(33, 47).astype(np.uint16) * 200)
    return folder


def predict(workspace: Workspace, *more: str, output: str = "out") -> Callable[[], tuple[int, str]]:
    run = str(workspace.run_folder())
    result = workspace("sample", "--run", run, "--input", "inbox", "--output", output, *more)
    return lambda: (result.code, result.err)


def test_every_picture_gets_its_maps_in_its_own_size(trained: Workspace, inbox: Path) -> None:
    assert predict(trained)() == (0, "")
    table = pd.read_csv("out/results.csv", dtype={"image_id": str})
    assert sorted(table["image_id"]) == ["colour", "deep", "grey", "large"]
    page = Path("out/report.html").read_text()
    assert all(name in page for name in table["image_id"])
    assert re.search(r"\bnan\b", page.split("<script")[0].lower()) is None
    assert sorted(table["look_rank"]) == [1, 2, 3, 4]
    assert table.loc[table["look_rank"] == 1, "mean_std"].item() == table["mean_std"].max()
    for _, row in table.iterrows():
        folder = Path("out") / row["image_id"]
        assert {p.name for p in folder.iterdir()} == FILES
        mmse = np.load(folder / "mmse.npy")
        assert mmse.shape == (row["height"], row["width"])
        assert mmse.dtype == np.float32
        mask = np.asarray(Image.open(folder / "mask.png")) > 0
        np.testing.assert_array_equal(mask, mmse < 0.03)
        assert mask.sum() == row["area"]
        assert (
            np.asarray(Image.open(folder / "instances.png")).max()
            == row["objects"]
            == len(pd.read_csv(folder / "objects.csv"))
        )


def test_the_api_of_one_line_gives_the_same(trained: Workspace, inbox: Path) -> None:
    assert predict(trained, output="again")()[0] == 0
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


def test_a_test_image_is_predicted_as_it_was_sampled(trained: Workspace) -> None:
    """By the direct mean, which needs no noise: the picture of the archive and the prepared one are the same here."""
    options = ["--set", "sde.prior_share=0.5", "--set", "sampling.sampler=mean"]
    assert trained("main", *options).code == 0
    assert trained("sample", *options).code == 0
    folder = sorted((trained.run_folder() / "samples").iterdir())[-1]
    segmenter = Segmenter.from_run(trained.run_folder())
    for key in pd.read_csv(folder / "metrics.csv", dtype=str)["image_id"]:
        result = segmenter(trained.path / "prepared" / "Test_patches" / f"{key}.png")
        np.testing.assert_allclose(result.mmse[0], np.load(folder / key / "mmse.npy"), atol=1e-5)


@pytest.mark.parametrize("size", ["null", "[24, 40]"])
def test_resizing_goes_both_ways(workspace: Workspace, size: str) -> None:
    options = ["--set", f"data.size={size}"]
    assert workspace("prepare", *options).code == 0
    assert workspace("main", *options).code == 0
    result = Segmenter.from_run(workspace.run_folder())(picture(50, 61))
    assert result.mmse.shape == (1, 50, 61)
    assert result.instances.shape == result.probability.shape == (50, 61)


BAD: dict[str, Callable[[Path], object]] = {
    "empty.png": lambda p: p.write_bytes(b""),
    "noise.png": lambda p: p.write_bytes(os.urandom(300)),
    "truncated.png": lambda p: p.write_bytes((p.parent / "grey.png").read_bytes()[:400]),
    "animated.tif": lambda p: tifffile.imwrite(p, np.zeros((3, 20, 20), np.uint8), photometric="minisblack"),
    "nan.tif": lambda p: tifffile.imwrite(p, np.full((20, 20), np.nan, np.float32)),
    "nan.npy": lambda p: np.save(p, np.full((20, 20), np.nan)),
}


def test_bad_pictures_have_a_line_each_and_the_others_are_done(trained: Workspace, inbox: Path) -> None:
    for name, make in BAD.items():
        make(inbox / name)
    code, err = predict(trained)()
    assert code == 2
    for name in BAD:
        assert sum(name in line for line in err.splitlines()) == 1, name
    assert "Traceback" not in err
    assert sorted(pd.read_csv("out/results.csv")["image_id"]) == ["colour", "deep", "grey", "large"]
    assert not [p for p in Path("out").iterdir() if p.name.startswith(".")]
    assert not (Path("out") / "noise").exists()


@pytest.mark.parametrize("shape", [(1, 1), (1, 200), (7, 3), (20, 20, 4)])
def test_odd_pictures_are_predicted(trained: Workspace, shape: tuple[int, ...]) -> None:
    (trained.path / "inbox").mkdir()
    Image.fromarray(np.full(shape, 90, np.uint8)).save(trained.path / "inbox" / "a.png")
    assert predict(trained)() == (0, "")
    assert np.load("out/a/mmse.npy").shape == shape[:2]


def test_nothing_to_read_and_nowhere_to_write(trained: Workspace, inbox: Path) -> None:
    run = ["--run", str(trained.run_folder())]
    (trained.path / "nothing").mkdir()
    assert "no pictures" in trained.fails("sample", *run, "--input", "nothing", "--output", "out")
    assert "absent" in trained.fails("sample", *run, "--input", "absent", "--output", "out")
    assert "needs --output" in trained.fails("sample", *run, "--input", "inbox", "--resume")
    assert not (trained.path / "predictions").exists()
    assert "--input" in trained.fails("sample", *run, "--output", "out")
    assert not (trained.path / "out").exists()
    assert predict(trained)()[0] == 0
    assert "--overwrite" in trained.fails("sample", *run, "--input", "inbox", "--output", "out")
    (trained.path / "mine").mkdir()
    (trained.path / "mine" / "thesis.txt").write_text("precious")
    assert "thesis" not in trained.fails("sample", *run, "--input", "inbox", "--output", "mine")
    assert "not written here" in trained.fails("sample", *run, "--input", "inbox", "--output", "mine", "--overwrite")
    assert (trained.path / "mine" / "thesis.txt").read_text() == "precious"
    assert predict(trained, "--overwrite", "--set", "sampling.draws=2")()[0] == 0
    assert (pd.read_csv("out/results.csv")["draws"] == 2).all()


def test_a_full_disk_ends_it_with_one_line(trained: Workspace, inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = results.write_objects

    def full(folder: Path, *rest: object) -> None:
        if "grey" in folder.name:
            raise OSError(28, "No space left on device")
        write(folder, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(predicting, "write_objects", full)
    assert predict(trained)() == (2, "error: out/grey: No space left on device\n")
    assert sorted(p.name for p in Path("out").iterdir()) == ["colour", "deep", "results.csv", "settings.json"]
    assert len(pd.read_csv("out/results.csv")) == 2
    monkeypatch.setattr(predicting, "write_objects", write)
    assert predict(trained, "--resume")()[0] == 0
    assert len(pd.read_csv("out/results.csv")) == 4
    assert "another seed" in trained.fails("sample", "--run", str(trained.run_folder()), "--input", "inbox",
                                           "--output", "out", "--resume", "--set", "seed=5")  # fmt: skip


@pytest.mark.parametrize(
    ("names", "readable"),
    [
        (["x(1).png", "x[1].png"], []),
        (["a b.png", "a_b.png"], ["a_b"]),
        (["図.png", "像.png", "é.png", "ü.png"], ["図", "像", "é", "ü"]),
        (["a.png", "a.bmp", "b.png"], ["a_png", "a_bmp", "b"]),
        (["results.csv.png", "report.html.png", "=1+1.png"], []),
    ],
)
def test_every_picture_is_predicted_whatever_its_name(
    trained: Workspace, names: list[str], readable: list[str]
) -> None:
    (trained.path / "inbox").mkdir()
    for seed, name in enumerate(names):
        Image.fromarray(picture(16, 16, seed=seed)).save(trained.path / "inbox" / name)
    assert predict(trained)() == (0, "")
    table = pd.read_csv("out/results.csv", dtype={"image_id": str})
    assert sorted(name.removeprefix("'") for name in table["file"]) == sorted(names)
    assert not table["file"].str.startswith("=").any()
    assert table["image_id"].is_unique
    assert set(readable) <= set(table["image_id"])
    assert len({np.load(f"out/{key}/mmse.npy").tobytes() for key in table["image_id"]}) == len(names)


def test_an_output_is_held_and_leftovers_do_not_block_it(trained: Workspace, inbox: Path) -> None:
    Path("out").mkdir()
    Path("out/.7.settings.json").touch()  # of a process that was killed at its first file
    assert predict(trained)()[0] == 0
    assert not list(Path("out").glob(".*"))
    words = ["--run", str(trained.run_folder()), "--input", "inbox", "--output", "out"]
    with held(Path("out/.lock"), "this test"):
        for more in ("--overwrite", "--resume"):
            assert f"out is in use by process {os.getpid()} on" in trained.fails("sample", *words, more)
    assert predict(trained, "--overwrite")()[0] == 0


def test_large_pictures_are_streamed(trained: Workspace, inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same maps as in one piece, as tiled TIFF."""
    assert predict(trained)()[0] == 0
    monkeypatch.setattr(predicting, "LARGE", 2000)
    assert predict(trained, output="streamed")()[0] == 0
    folder = Path("streamed") / "large"
    assert {p.name for p in folder.iterdir()} == {"mmse.tif", "std.tif", "probability.tif", "mask.tif", "instances.tif",
                                                  "overlay.png", "result.json"}  # fmt: skip
    np.testing.assert_allclose(tifffile.imread(folder / "mmse.tif"), np.load("out/large/mmse.npy"), atol=1e-5)
    np.testing.assert_array_equal(
        tifffile.imread(folder / "instances.tif"), np.asarray(Image.open("out/large/instances.png"))
    )
    rows = [json.loads((Path(o) / "large/result.json").read_text()) for o in ("out", "streamed")]
    assert rows[0]["mean_std"] == pytest.approx(rows[1]["mean_std"], rel=1e-4)
    assert rows[0]["objects"] == rows[1]["objects"]


def test_pyramids_are_read_region_by_region(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 411, 3), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "slide.tif") as file:
        file.write(pixels, tile=(64, 48), photometric="rgb", subifds=1, compression="adobe_deflate")
        file.write(pixels[::2, ::2], tile=(64, 48), photometric="rgb", subfiletype=1)
    opened = open_picture(tmp_path / "slide.tif")
    assert isinstance(opened, TiledPicture)
    assert opened.shape == (300, 411)
    for window in (Window(0, 0, 300, 411), Window(63, 47, 2, 2), Window(299, 410, 1, 1), Window(128, 0, 64, 411)):
        np.testing.assert_array_equal(opened.read(window), pixels[window.slices])


def test_windows_of_a_large_picture_are_prepared_as_the_whole(
    trained: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data import inputs
    from data.preparation import prepare_options_of

    config = load_config("config.yaml", ["data.stretch=true"])
    pixels = picture(300, 200, 3)
    whole = PreparedPicture(inputs.Picture(pixels), prepare_options_of(config.data), None)
    monkeypatch.setattr(inputs, "WHOLE", 100)
    parts = PreparedPicture(inputs.Picture(pixels), prepare_options_of(config.data), None)
    window = Window(17, 30, 100, 90)
    difference = whole.planes(window).astype(int) - parts.planes(window)
    assert whole.planes(window).shape == (1, 100, 90)
    assert np.abs(difference).max() <= 6  # the range is measured on most pixels only


def test_old_checkpoints_that_cannot_predict_say_so(trained: Workspace, inbox: Path) -> None:
    path = trained.run_folder() / "checkpoints" / "best.pt"
    state = torch.load(path, weights_only=True)
    del state["images"]
    torch.save(state, path)
    run = str(trained.run_folder())
    assert "train again" in trained.fails("sample", "--run", run, "--input", "inbox", "--output", "out")
    assert not (trained.path / "out").exists()
