from __future__ import annotations

import json
import uuid
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from evaluation.instances import DrawObjects, ObjectRecord, describe_objects, in_larger_pixels, split_objects
from results.exports import feature_collection, write_geojson, write_labels


def ring_and_disc() -> np.ndarray:
    """SDF of a ring with a hole, radii 5 and 12, and of a disc of radius 6."""
    y, x = np.mgrid[:50, :60]
    ring = np.abs(np.hypot(y - 15, x - 16) - 8.5) - 3.5
    return np.clip(np.minimum(ring, np.hypot(y - 35, x - 45) - 6) / 10, -1, 1)


def records(draw: np.ndarray | None = None) -> list[ObjectRecord]:
    sdf = ring_and_disc()
    draws = DrawObjects(0.0, None)
    draws.add(sdf if draw is None else draw)
    return describe_objects(split_objects(sdf, 0.0, None), draws)


def test_geojson_has_what_qupath_reads(tmp_path: Path) -> None:
    write_geojson(tmp_path / "objects.geojson", records())
    assert [path.name for path in tmp_path.iterdir()] == ["objects.geojson"]
    content = json.loads((tmp_path / "objects.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    features = content["features"]
    names = [f["properties"]["classification"]["name"] for f in features]
    assert names == ["Object", "Object", *["Object inner band", "Object outer band"] * 2]
    first = features[0]
    assert (first["type"], first["geometry"]["type"]) == ("Feature", "Polygon")
    assert (first["properties"]["objectType"], first["properties"]["name"]) == ("detection", "Object 1")
    assert first["properties"]["classification"]["color"] == [255, 196, 0]
    area = int((split_objects(ring_and_disc(), 0.0, None) == 1).sum())
    assert first["properties"]["measurements"] == {
        "Area px^2": area,
        "Equivalent diameter px": pytest.approx(np.sqrt(4 * area / np.pi)),
        "Probability": 1.0,
        "Area mean px^2": area,
        "Area std px^2": 0.0,
        "Area 90% low px^2": area,
        "Area 90% high px^2": area,
    }
    assert {f["properties"]["objectType"] for f in features[2:]} == {"annotation"}


def test_geometry_lies_on_the_pixels() -> None:
    """The exterior and the hole, read back, enclose the object's pixels."""
    shapely = pytest.importorskip("shapely.geometry")
    found = records()
    for record, feature in zip(found, feature_collection(found)["features"], strict=False):
        shape = shapely.shape(feature["geometry"])
        assert shape.is_valid
        assert shape.exterior.is_ccw
        assert shape.area == pytest.approx(record.area, rel=0.05)
        row, column = record.centroid
        assert (shape.centroid.x, shape.centroid.y) == pytest.approx((column + 0.5, row + 0.5), abs=0.1)
    assert len(found[0].contour[0]) == 2


def test_unknown_values_and_borders_are_left_out() -> None:
    features = feature_collection(records(np.ones((50, 60))))["features"]
    assert len(features) == 2
    for feature in features:
        assert feature["properties"]["measurements"]["Probability"] == 0
        assert "Area mean px^2" not in feature["properties"]["measurements"]
    json.dumps(features, allow_nan=False)


def test_object_in_several_parts_is_a_multipolygon() -> None:
    labels = np.array([[4, 4, 0, 4]])
    draws = DrawObjects(0.0, None)
    draws.add(np.where(labels > 0, -1.0, 1.0))
    feature, *_ = feature_collection(describe_objects(labels, draws))["features"]
    assert feature["geometry"]["type"] == "MultiPolygon"
    assert len(feature["geometry"]["coordinates"]) == 2


def test_ids_are_uuids_that_stay_and_differ_between_images() -> None:
    first, again, other = ([f["id"] for f in feature_collection(records(), name)["features"]] for name in "aab")
    assert first == again
    assert len({uuid.UUID(one) for one in first + other}) == len(first) + len(other)


def test_sizes_in_micrometres_are_those_of_the_pixels() -> None:
    values = feature_collection(records(), "a", (0.5, 0.25))["features"][0]["properties"]["measurements"]
    for name, value in values.items():
        if name.endswith("px^2"):
            assert values[name.replace("px", "µm")] == pytest.approx(value / 8)
    diameter = values["Equivalent diameter µm"]
    assert np.pi / 4 * diameter**2 == pytest.approx(values["Area µm^2"])


def test_the_interval_is_that_of_the_draws() -> None:
    """Of 19 draws from the least to the largest area; a draw without the object counts as 0."""
    y, x = np.mgrid[:60, :60]
    radii = np.linspace(9, 11, 18)
    draws, areas = DrawObjects(0.0, None), []
    for radius in radii:
        draws.add((np.hypot(y - 30, x - 30) - radius) / 10)
        areas.append(float((np.hypot(y - 30, x - 30) < radius).sum()))
    (record,) = describe_objects(split_objects((np.hypot(y - 30, x - 30) - 10) / 10, 0.0, None), draws)
    assert (record.area_low, record.area_high) == (min(areas), max(areas))
    draws.add(np.ones((60, 60)))
    (record,) = describe_objects(split_objects((np.hypot(y - 30, x - 30) - 10) / 10, 0.0, None), draws)
    assert (record.area_low, record.area_high) == (0, max(areas))


def test_objects_of_a_resized_image_lie_where_they_do_in_the_image() -> None:
    labels = np.zeros((30, 40), int)
    labels[4:10, 6:16] = 1
    draws = DrawObjects(0.0, None)
    draws.add(np.where(labels > 0, -1.0, 1.0))
    small = describe_objects(labels, draws)[0]
    large = in_larger_pixels(small, (2.0, 3.0))
    assert (large.area, large.area_high, large.bbox) == (360, 360, (8, 18, 20, 48))
    assert large.centroid == (13.5, 32.5)  # of pixels 8 to 19, and 18 to 47
    np.testing.assert_allclose(large.contour[0][0], small.contour[0][0] * (3, 2))


def test_no_objects(tmp_path: Path) -> None:
    write_geojson(tmp_path / "none.geojson", [])
    assert json.loads((tmp_path / "none.geojson").read_text()) == {"type": "FeatureCollection", "features": []}


@pytest.mark.parametrize(("largest", "dtype"), [(0, np.uint16), (65535, np.uint16), (65536, np.uint32)])
def test_label_tiff(tmp_path: Path, largest: int, dtype: type) -> None:
    labels = np.zeros((300, 400), np.int32)
    labels[3:9, 4:20] = largest
    write_labels(tmp_path / "labels.tif", labels)
    read = tifffile.imread(tmp_path / "labels.tif")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, labels)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.tif"]
    assert (tmp_path / "labels.tif").stat().st_size < labels.size  # compressed


def test_label_png_has_sixteen_bits(tmp_path: Path) -> None:
    labels = np.arange(70 * 900).reshape(70, 900) + 2535
    write_labels(tmp_path / "instances.png", labels)
    with Image.open(tmp_path / "instances.png") as image:
        assert image.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(image), labels)


def test_labels_that_no_file_can_hold_leave_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "instances.png"
    write_labels(path, np.ones((2, 2), int))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"instances\.png: label 65536 does not fit"):
        write_labels(path, np.array([[65536]]))
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match=r"\.tif"):
        write_labels(tmp_path / "labels.bmp", np.ones((2, 2), int))
    with pytest.raises(ValueError, match="integer"):
        write_labels(path, np.ones((2, 2)))
