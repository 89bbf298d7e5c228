"""Predictions on slides, and in which pixels their results are, as a user types them."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from results import predicted as predicting
from tests.commands import Workspace
from tests.pictures import picture, write_svs

needs_openslide = pytest.mark.skipif(
    find_spec("openslide") is None, reason="needs OpenSlide: pip install openslide-python openslide-bin"
)
HALF = ["--set", "data.microns_per_pixel=0.5"]


def predict(workspace: Workspace, *more: str, output: str = "out") -> str:
    """Of all in inbox/; the errors."""
    run = str(workspace.run_folder())
    result = workspace("sample", "--run", run, "--input", "inbox", "--output", output, *more)
    for name in ("results.csv", "report.html"):  # only what is there is named
        assert (f"{output}/{name}" in result.out) == (Path(output) / name).is_file() or result.code
    assert (result.code == 0) == (result.err == "")
    return result.err


def row_of(name: str, output: str = "out") -> dict[str, Any]:
    return dict(json.loads((Path(output) / name / "result.json").read_text()))


def outer_rings(name: str, output: str = "out") -> np.ndarray:
    """(n, 2) x, y of all objects."""
    features = json.loads((Path(output) / name / "objects.geojson").read_text())["features"]
    shapes = [f["geometry"]["coordinates"] for f in features if f["geometry"]["type"] == "Polygon"]
    return np.concatenate([np.array(shape[0]) for shape in shapes])


@pytest.fixture
def slide(trained: Workspace, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Of 0.25 micrometres a pixel, four pixels of which are one of `picture`; predicted band by band."""
    (trained.path / "inbox").mkdir()
    pixels = np.kron(picture(140, 180, 3), np.ones((2, 2, 1), np.uint8))
    write_svs(trained.path / "inbox" / "a.svs", pixels, 0.25)
    monkeypatch.setattr(predicting, "LARGE", 2000)
    return pixels


@pytest.mark.slow
@needs_openslide
def test_a_slide_is_predicted_in_the_pixels_of_the_network(
    trained: Workspace, slide: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openslide

    read: list[int] = []
    whole = openslide.OpenSlide.read_region

    def watched(self: Any, place: Any, level: int, size: tuple[int, int]) -> Image.Image:
        read.append(size[0] * size[1])
        return whole(self, place, level, size)

    monkeypatch.setattr(openslide.OpenSlide, "read_region", watched)
    assert predict(trained, *HALF) == ""
    assert read
    assert {path.suffix for path in Path("out/a").iterdir()} == {".tif", ".png", ".csv", ".geojson", ".json"}

    # The same as of the picture in the network's pixels.
    resized = Image.fromarray(slide).resize((180, 140), Image.Resampling.BILINEAR)
    Path("inbox/a.svs").unlink()
    resized.save("inbox/a.png")
    assert predict(trained, output="plain") == ""
    maps = [tifffile.imread(Path(o) / "a/mmse.tif") for o in ("out", "plain")]
    np.testing.assert_allclose(maps[0], maps[1], atol=0.05)
    rows = [row_of("a", o) for o in ("out", "plain")]
    assert (rows[0]["height"], rows[0]["width"]) == (280, 360)
    assert (rows[0]["microns_per_pixel"], rows[0]["map_microns_per_pixel"]) == (0.25, 0.5)
    assert (rows[1]["microns_per_pixel"], rows[1]["map_microns_per_pixel"]) == (None, None)
    assert rows[0]["area"] == pytest.approx(4 * rows[1]["area"], rel=0.02)
    assert rows[0]["objects"] == rows[1]["objects"] > 0

    # Objects are in the slide's pixels, sizes also in micrometres.
    tables = [pd.read_csv(Path(o) / "a/objects.csv") for o in ("out", "plain")]
    np.testing.assert_allclose(tables[0]["area_um2"], tables[0]["area"] / 16)
    assert "area_um2" not in tables[1]
    assert tables[0]["area"].sum() == pytest.approx(4 * tables[1]["area"].sum(), rel=0.02)
    ends = [outer_rings("a", o).max(axis=0) for o in ("out", "plain")]
    np.testing.assert_allclose(ends[0], 2 * ends[1], atol=2)
    with tifffile.TiffFile("out/a/mask.tif") as file:
        assert 'PhysicalSizeX="0.5"' in str(file.ome_metadata)
        assert file.pages[0].get_resolution("CENTIMETER") == (20000, 20000)  # type: ignore[union-attr]


@needs_openslide
def test_large_slides_are_never_whole_in_memory(
    trained: Workspace, slide: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data import inputs, pictures

    monkeypatch.setattr(inputs, "WHOLE", 1000)
    monkeypatch.setattr(inputs, "PROBE", 16)
    monkeypatch.setattr(pictures, "AT_ONCE", 64)
    sizes: list[int] = []
    read = pictures.SlidePicture.read

    def watched(self: Any, window: Any) -> np.ndarray:
        sizes.append(window.height * window.width)
        return read(self, window)

    monkeypatch.setattr(pictures.SlidePicture, "read", watched)
    assert predict(trained, *HALF) == ""
    assert max(sizes) <= 80 * 80


@pytest.mark.slow
def test_small_pictures_get_their_own_pixels_back(trained: Workspace) -> None:
    (trained.path / "inbox").mkdir()
    pixels = np.kron(picture(40, 56), np.ones((2, 2), np.uint8))
    options: dict[str, Any] = {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(trained.path / "inbox" / "a.tif", pixels, **options)
    Image.fromarray(pixels).save(trained.path / "inbox" / "b.png")
    assert predict(trained, *HALF) == ""
    for name in "ab":
        assert np.load(f"out/{name}/mmse.npy").shape == (80, 112)
        assert np.asarray(Image.open(f"out/{name}/mask.png")).shape == (80, 112)
    assert not np.array_equal(np.load("out/a/mmse.npy"), np.load("out/b/mmse.npy"))
    table = pd.read_csv("out/results.csv", keep_default_na=False).set_index("image_id")
    assert table.loc["a", "map_microns_per_pixel"] == "0.25"
    assert table.loc["a", "warning"] == ""
    assert "does not state the size of its pixels" in table.loc["b", "warning"]
    values = json.loads(Path("out/a/objects.geojson").read_text())["features"][0]["properties"]["measurements"]
    assert values["Area µm^2"] == pytest.approx(values["Area px^2"] / 16)


def test_pixels_that_are_too_coarse_cost_a_line(trained: Workspace) -> None:
    (trained.path / "inbox").mkdir()
    options: dict[str, Any] = {"resolution": (2000, 2000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(trained.path / "inbox" / "a.tif", picture(40, 56), **options)
    err = predict(trained, *HALF)
    assert err.count("\n") == 1
    assert "a.tif: pixels of 5 micrometres, where the network's (data.microns_per_pixel) have 0.5" in err
    assert not Path("out/a").exists()


def test_without_openslide_nothing_begins(trained: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (trained.path / "inbox").mkdir()
    Image.fromarray(picture(40, 56)).save(trained.path / "inbox" / "a.png")
    (trained.path / "inbox" / "b.ndpi").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "openslide", None)
    run = str(trained.run_folder())
    line = trained.fails("sample", "--run", run, "--input", "inbox", "--output", "out")
    assert "pip install openslide-python openslide-bin" in line
    assert not Path("out").exists()


def test_the_size_of_pixels_does_not_go_with_a_size_of_pictures(trained: Workspace) -> None:
    run = ["--run", str(trained.run_folder()), "--input", "inbox", "--set", "data.size=[32, 32]"]
    assert "microns_per_pixel: 0.5 does not go with data.size" in trained.fails("sample", *run, *HALF)


def test_training_images_of_other_pixels_are_refused(workspace: Workspace) -> None:
    options: dict[str, Any] = {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}
    for folder in ("images", "masks"):
        (workspace.path / "raw" / folder).mkdir(parents=True)
        for name in "abcdefgh":
            mask = (picture(40, 56) > 128).astype(np.uint8) * 255
            tifffile.imwrite(workspace.path / "raw" / folder / f"{name}.tif", mask, **options)
    raw = ["--set", "data.source=folder", "--set", "data.raw=raw"]
    line = workspace("prepare", *raw, *HALF).err
    assert "a.tif: states pixels of 0.25 micrometres, data.microns_per_pixel is 0.5; resize it" in line
    assert not (workspace.path / "prepared").exists()
    assert workspace("prepare", *raw, "--set", "data.microns_per_pixel=0.25").code == 0
