"""Maps as OME-Zarr, read as napari's plugin does."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from results import predicted as predicting
from results.maps import band_writer, instance_writer, map_window
from tests.commands import Workspace
from tests.results.test_tiff import random_bands

ZARR = ["--set", "sampling.large_maps=zarr"]


@pytest.fixture
def library() -> Any:
    return pytest.importorskip("zarr", minversion="3", reason="needs zarr: pip install 'zarr>=3'")


def written(folder: Path, classes: int = 1, microns: tuple[float, float] | None = (0.5, 0.25)) -> tuple[Path, Any]:
    """A store of one random band, and the band."""
    (band,) = random_bands((701, 1100), classes, [701])
    with band_writer(folder, (701, 1100), classes, microns, "zarr") as write:
        write(band)
    return folder / "maps.zarr", band


@pytest.mark.parametrize("classes", [1, 2])
def test_the_store_has_maps_and_labels(library: Any, tmp_path: Path, classes: int) -> None:
    path, band = written(tmp_path, classes)
    assert [p.name for p in tmp_path.iterdir()] == ["maps.zarr"]
    group = library.open_group(path, mode="r")
    expected = np.concatenate([band.mmse, band.std, band.probability[None]])
    np.testing.assert_array_equal(group["0"][:], expected)
    assert [group[str(level)].shape for level in range(3)] == [
        (2 * classes + 1, 701, 1100), (2 * classes + 1, 351, 550), (2 * classes + 1, 176, 275)]  # fmt: skip
    np.testing.assert_allclose(group["1"][:, 3, 4], expected[:, 6:8, 8:10].mean(axis=(1, 2)), atol=1e-6)
    names = ["mask"] if classes == 1 else ["mask", "classes"]
    assert group["labels"].attrs["labels"] == names
    np.testing.assert_array_equal(group["labels/mask/0"][:], band.labels > 0)
    np.testing.assert_array_equal(group["labels/mask/1"][:], (band.labels > 0)[::2, ::2])
    if classes > 1:
        np.testing.assert_array_equal(group["labels/classes/0"][:], band.labels)
    shown = [channel["label"] for channel in group.attrs["omero"]["channels"]]
    assert shown[:: classes * 2] == (["mmse", "probability"] if classes == 1 else ["mmse of class 1", "probability"])


def test_it_is_ome_zarr_0_4(library: Any, tmp_path: Path) -> None:
    path, _ = written(tmp_path)
    content = json.loads((path / ".zattrs").read_text())["multiscales"][0]
    assert content["version"] == "0.4"
    assert [(axis["name"], axis["type"], axis.get("unit")) for axis in content["axes"]] == [
        ("c", "channel", None), ("y", "space", "micrometer"), ("x", "space", "micrometer")]  # fmt: skip
    scales = [d["coordinateTransformations"][0]["scale"] for d in content["datasets"]]
    assert scales[0] == [1, 0.5, 0.25]
    assert scales[1] == pytest.approx([1, 0.5 * 701 / 351, 0.5])
    assert json.loads((path / "0" / ".zarray").read_text())["dimension_separator"] == "/"
    assert json.loads((path / "0" / ".zarray").read_text())["compressor"]["id"] == "zlib"
    assert (path / "0" / "0" / "2" / "1").is_file()


def test_ome_zarr_reads_it(library: Any, tmp_path: Path) -> None:
    """What napari's plugin is given."""
    reader = pytest.importorskip("ome_zarr.reader", reason="needs ome-zarr: pip install ome-zarr")
    from ome_zarr.io import parse_url

    path, band = written(tmp_path)
    labels = np.cumsum(np.ones((701, 1100), int), axis=0) * (band.labels > 0)
    with instance_writer(tmp_path, (701, 1100), (0.5, 0.25)) as write:
        write(labels)
    nodes = list(reader.Reader(parse_url(path))())
    image = nodes[0]
    assert [level.shape for level in image.data] == [(3, 701, 1100), (3, 351, 550), (3, 176, 275)]
    np.testing.assert_array_equal(np.asarray(image.data[0][0]), band.mmse[0])
    assert image.metadata["channel_names"] == ["mmse", "std", "probability"]
    found = {node.zarr.basename(): np.asarray(node.data[0]) for node in nodes[1:] if node.data}
    np.testing.assert_array_equal(found["instances"], labels)
    np.testing.assert_array_equal(found["mask"], band.labels > 0)


def test_its_metadata_are_valid(library: Any, tmp_path: Path) -> None:
    models = pytest.importorskip("ome_zarr_models.v04", reason="needs ome-zarr-models: pip install ome-zarr-models")
    path, band = written(tmp_path)
    with instance_writer(tmp_path, (701, 1100)) as write:
        write(band.labels > 0)
    image = models.Image.from_zarr(library.open_group(path, mode="r"))
    assert set(image.labels.attributes.labels) == {"mask", "instances"}


def test_maps_are_read_back(library: Any, tmp_path: Path) -> None:
    _, band = written(tmp_path, microns=None)
    for name in ("mmse", "std"):
        np.testing.assert_array_equal(map_window(tmp_path, name), getattr(band, name)[0])
    np.testing.assert_array_equal(map_window(tmp_path, "mask", 1), (band.labels > 0)[::2, ::2])


def test_rows_must_make_up_the_image(library: Any, tmp_path: Path) -> None:
    (band,) = random_bands((10, 30), 1, [10])
    with pytest.raises(ValueError, match="10 of 11 rows"), band_writer(tmp_path, (11, 30), kind="zarr") as write:
        write(band)


def test_a_large_picture_gets_a_store_instead_of_tiff(
    library: Any, trained: Workspace, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "LARGE", 2000)
    for path in inbox.iterdir():
        if path.stem != "large":
            path.unlink()
    words = ["--run", str(trained.run_folder()), "--input", "inbox"]
    assert trained("sample", *words, "--output", "tiff").code == 0
    assert trained("sample", *words, "--output", "zarr", *ZARR).code == 0
    files = [{p.name for p in (Path(o) / "large").iterdir()} for o in ("tiff", "zarr")]
    assert files[0] - files[1] == {"mmse.tif", "std.tif", "probability.tif", "mask.tif", "instances.tif"}
    assert files[1] - files[0] == {"maps.zarr"}
    group = library.open_group("zarr/large/maps.zarr", mode="r")
    assert group["labels"].attrs["labels"] == ["mask", "instances"]
    for name in ("mmse", "std", "mask"):
        a, b = (map_window(Path(o) / "large", name) for o in ("tiff", "zarr"))
        np.testing.assert_array_equal(a > 0 if name == "mask" else a, b)
    tables = [pd.read_csv(Path(o) / "large" / "objects.csv") for o in ("tiff", "zarr")]
    pd.testing.assert_frame_equal(*tables)
    assert Path("tiff/large/overlay.png").read_bytes() == Path("zarr/large/overlay.png").read_bytes()


def test_without_zarr_nothing_begins(trained: Workspace, inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zarr", None)
    words = ["--run", str(trained.run_folder()), "--input", "inbox", "--output", "out"]
    assert "pip install 'zarr>=3'" in trained.fails("sample", *words, *ZARR)
    assert not Path("out").exists()
