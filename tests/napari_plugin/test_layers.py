"""Results as layers: what is read, in which order, and what is damaged or gone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml
from PIL import Image

from napari_plugin.layers import LayerData, get_reader, map_layers, object_features, picture_layers, ranked
from results.maps import band_writer, instance_writer
from sampling.tiled import Band
from tests.commands import ROOT, newest
from utils.errors import DataError, UsageError

MAPS = ["mean", "std", "probability", "draws", "objects"]


def by_name(layers: list[LayerData]) -> dict[str, tuple[np.ndarray, dict[str, Any], str]]:
    return {attributes["name"]: (data, attributes, kind) for data, attributes, kind in layers}


def run_of(work: Path) -> Path:
    return next((work / "runs" / "tiny").iterdir())


def test_a_picture_opens_with_its_maps_draws_and_objects(work: Path) -> None:
    folder = work / "predictions" / "grey"
    layers = picture_layers(folder)
    assert [attributes["name"] for _, attributes, _ in layers] == ["grey", *MAPS]
    found = by_name(layers)
    np.testing.assert_array_equal(found["grey"][0], np.asarray(Image.open("pictures/grey.png")))
    np.testing.assert_array_equal(found["mean"][0], np.load(folder / "mmse.npy"))
    np.testing.assert_array_equal(found["std"][0], np.load(folder / "std.npy"))
    objects, attributes, kind = found["objects"]
    assert kind == "labels"
    np.testing.assert_array_equal(objects, np.asarray(Image.open(folder / "instances.png")))
    assert attributes["features"]["index"].tolist() == list(range(1, objects.max() + 1))
    # Contours of the draws lie inside of them, and where they are is the probability's support.
    draws = np.asarray(Image.open(folder / "draws.png")).reshape(-1, 40, 56)
    contours = found["draws"][0]
    assert contours.shape == draws.shape == (3, 40, 56)
    assert contours.any()
    assert not contours[draws == 0].any()
    assert (found["probability"][0][contours.any(axis=0)] > 0).all()


def test_the_first_to_look_at_comes_first(work: Path) -> None:
    table = pd.read_csv("predictions/results.csv").sort_values("look_rank")
    assert ranked(Path("predictions")) == table["image_id"].tolist()
    shutil.rmtree(work / "predictions" / table["image_id"].iloc[0])
    assert ranked(Path("predictions")) == table["image_id"].tolist()[1:]
    samples = newest(run_of(work))
    scores = pd.read_csv(samples / "metrics.csv", dtype={"image_id": str}).sort_values("mean_std", ascending=False)
    assert ranked(samples) == scores["image_id"].tolist()


def test_names_that_lead_out_of_the_folder_are_not_followed(work: Path) -> None:
    table = pd.read_csv("predictions/results.csv")
    table.loc[0, "image_id"] = "../predictions/grey"
    table.to_csv("predictions/results.csv", index=False)
    assert len(ranked(Path("predictions"))) == 2


def test_a_sample_of_a_data_set_has_the_truth_below_what_is_corrected(work: Path) -> None:
    samples = newest(run_of(work))
    name = ranked(samples)[0]
    layers = picture_layers(samples / name)
    assert [attributes["name"] for _, attributes, _ in layers] == [name, *MAPS[:-1], "truth", "objects"]
    mask = np.asarray(Image.open(work / "prepared" / "Test_patches" / f"{name}_mask.png")) > 0
    truth = by_name(layers)["truth"][0] > 0
    assert truth.any()
    assert not truth[~mask].any()


def test_a_picture_that_has_moved_is_left_out_or_found(work: Path, tmp_path: Path) -> None:
    folder = work / "predictions" / "deep"
    row = json.loads((folder / "result.json").read_text())
    assert Path(row["path"]).is_file()
    assert "path" not in pd.read_csv("predictions/results.csv")
    row["path"] = str(tmp_path / "gone" / "deep.tif")
    (folder / "result.json").write_text(json.dumps(row))
    with pytest.warns(UserWarning, match=r"left out: .*gone/deep\.tif: no such file"):
        layers = picture_layers(folder)
    assert [attributes["name"] for _, attributes, _ in layers] == MAPS
    for where in (work / "pictures", work / "pictures" / "deep.tif"):
        assert picture_layers(folder, where)[0][1]["metadata"]["file"] == str(work / "pictures" / "deep.tif")
    with pytest.warns(UserWarning, match=r"\(40, 56\) pixels, where .*deep is of \(33, 47\)"):
        picture_layers(folder, work / "pictures" / "grey.png")
    del row["path"]  # a folder of before it was noted
    (folder / "result.json").write_text(json.dumps(row))
    assert len(picture_layers(folder, work / "pictures")) == 6


@pytest.mark.parametrize(
    ("name", "content"),
    [("mmse.npy", b"x"), ("instances.png", b"x"), ("instances.png", None), ("objects.csv", b"label\n1\n"),
     ("probability.png", None), ("result.json", b"{}"), ("draws.png", b"\x89PNG")],
)  # fmt: skip
def test_damaged_results_are_one_line(work: Path, name: str, content: bytes | None) -> None:
    path = work / "predictions" / "grey" / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises((UsageError, DataError, OSError), match="grey") as caught:
        picture_layers(work / "predictions" / "grey")
    assert "\n" not in str(caught.value)


def test_streamed_maps_open_too(work: Path) -> None:
    folder = work / "predictions" / "grey"
    whole = by_name(picture_layers(folder))
    for name in ("mmse", "std"):
        tifffile.imwrite(folder / f"{name}.tif", np.load(folder / f"{name}.npy"))
    for name in ("probability", "mask", "instances"):
        tifffile.imwrite(folder / f"{name}.tif", np.asarray(Image.open(folder / f"{name}.png")).astype(np.uint8))
    for name in ("instances.png", "draws.png", "mmse.npy"):
        (folder / name).unlink()
    streamed = by_name(picture_layers(folder))
    assert list(streamed) == ["grey", *MAPS[:3], "objects"]
    for name, (data, *_) in streamed.items():
        np.testing.assert_array_equal(data, whole[name][0])
    row = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**row, "height": 20_000, "width": 20_000}))
    with pytest.raises(UsageError, match="more than 100 megapixels"):
        picture_layers(folder)


@pytest.mark.parametrize("kind", ["tiff", "zarr"])
@pytest.mark.parametrize("classes", [1, 2])
def test_maps_of_a_large_picture_open_as_they_are_written(work: Path, kind: str, classes: int) -> None:
    """Of a picture that was drawn in half of its resolution, on which they lie."""
    if kind == "zarr":
        pytest.importorskip("zarr", minversion="3", reason="needs zarr: pip install 'zarr>=3'")
    folder, shape = work / "predictions" / "grey", (20, 28)
    rng = np.random.default_rng(0)
    mmse, std = rng.random((2, classes, *shape), np.float32)
    labels, probability = rng.integers(0, 1 + classes, shape, np.uint8), rng.integers(0, 256, shape) / np.float32(255)
    objects = rng.integers(0, 9, shape)
    for name in ("mmse.npy", "std.npy", "mask.png", "probability.png", "instances.png", "draws.png"):
        (folder / name).unlink()
    with band_writer(folder, shape, classes, kind=kind) as write:
        write(Band(0, mmse, std, probability, labels, 1, 1.0))
    if classes == 1:
        with instance_writer(folder, shape) as write_rows:
            write_rows(objects)
    layers = by_name(picture_layers(folder))
    last, expected = ("objects", objects) if classes == 1 else ("classes", labels)
    assert list(layers) == ["grey", *MAPS[:3], last]
    np.testing.assert_array_equal(layers["mean"][0], mmse.min(axis=0))
    np.testing.assert_array_equal(layers["std"][0], std.max(axis=0))
    np.testing.assert_allclose(layers["probability"][0], probability, atol=1e-6)
    np.testing.assert_array_equal(layers[last][0], expected)
    assert "scale" not in layers["grey"][1]
    for name in (*MAPS[:3], last):  # the middle of the first pixel is that of the picture's first four
        assert layers[name][1]["scale"] == [2.0, 2.0]
        assert layers[name][1]["translate"] == [0.5, 0.5]


def test_a_damaged_store_is_one_line(work: Path) -> None:
    pytest.importorskip("zarr", minversion="3", reason="needs zarr: pip install 'zarr>=3'")
    folder = work / "predictions" / "grey"
    (folder / "maps.zarr").mkdir()
    with pytest.raises((UsageError, OSError), match=r"maps\.zarr") as caught:
        picture_layers(folder)
    assert "\n" not in str(caught.value)


def test_of_several_classes_these_are_corrected() -> None:
    rng = np.random.default_rng(0)
    mmse, std = rng.normal(size=(2, 2, 9, 7)).astype(np.float32)
    classes = rng.integers(0, 3, (9, 7))
    objects = pd.DataFrame(columns=["label", "area", "probability", "area_mean", "area_std", "mean_std"], dtype=float)
    layers = map_layers(mmse, std, std[0], classes, np.zeros((9, 7), int), objects, classes[None])
    assert [attributes["name"] for _, attributes, _ in layers] == [*MAPS, "classes"]
    np.testing.assert_array_equal(layers[-1][0], classes)
    np.testing.assert_array_equal(layers[0][0], mmse.min(axis=0))
    np.testing.assert_array_equal(layers[1][0], std.max(axis=0))


def test_an_object_shows_its_interval_or_that_none_is_known() -> None:
    known = {"label": 2, "area": 3, "probability": 0.2, "area_mean": 2.0, "area_low": 0.0, "area_high": 6.25,
             "mean_std": 0.1}  # fmt: skip
    table = object_features(pd.DataFrame([known])).set_index("index")
    assert table.loc[2].to_dict() == {"area": 3, "area_low": 0.0, "area_high": 6.2, "probability": 0.2, "mean_std": 0.1}
    before = {key: value for key, value in known.items() if key not in ("area_low", "area_high")}
    assert object_features(pd.DataFrame([before])).loc[0, ["area_low", "area_high"]].isna().all()


def test_the_reader_takes_results_and_nothing_else(work: Path) -> None:
    first = ranked(Path("predictions"))[0]
    for path, name in (("predictions", first), ("predictions/results.csv", first), ("predictions/deep", "deep")):
        read = get_reader(path)
        assert read is not None
        assert read(path)[0][1]["name"] == name
    for other in ("pictures", "runs", "pictures/grey.png", "nowhere", ["predictions", "predictions"]):
        assert get_reader(other) is None  # type: ignore[arg-type]


def test_the_manifest_names_what_is_there() -> None:
    manifest = yaml.safe_load((ROOT / "napari_plugin" / "napari.yaml").read_text())
    project = (ROOT / "pyproject.toml").read_text()
    name = manifest["name"]
    assert f'\nname = "{name}"\n' in project  # npe2 refuses another one
    assert re.search(
        rf'^\[project.entry-points."napari.manifest"\]\n{name} = "segsdf.napari_plugin:napari.yaml"$', project, re.M
    )
    contributed = manifest["contributions"]
    commands = {command["id"]: command["python_name"] for command in contributed["commands"]}
    used = [entry["command"] for kind in ("readers", "widgets") for entry in contributed[kind]]
    assert sorted(used) == sorted(commands)
    for where in commands.values():
        module, _, function = where.removeprefix("segsdf.").partition(":")
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        assert re.search(rf"^def {function}\(", source, re.MULTILINE)
