"""Objects as files that other programs open: GeoJSON for QuPath, label images."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.pixel_size import Microns
from evaluation.instances import ObjectRecord, Polygon
from evaluation.object_scores import check_labels
from results.tiff import write_tiff
from utils.files import whole_file, write_text

OBJECT_COLOR, INNER_COLOR, OUTER_COLOR = (255, 196, 0), (0, 158, 230), (213, 94, 0)


def _geometry(shape: Sequence[Polygon]) -> dict[str, Any]:
    rings = [[ring.round(3).tolist() for ring in polygon] for polygon in shape]
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings[0]}
    return {"type": "MultiPolygon", "coordinates": rings}


def _feature(
    image: str, shape: Sequence[Polygon], kind: str, name: str, number: int, color: tuple[int, int, int]
) -> dict[str, Any]:
    classification = {"name": name, "color": list(color)}
    properties = {"objectType": kind, "name": f"{name} {number}", "classification": classification}
    own = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{image}/{name}/{number}"))
    return {"type": "Feature", "id": own, "geometry": _geometry(shape), "properties": properties}


def _measurements(record: ObjectRecord, microns: Microns | None) -> dict[str, float]:
    """QuPath takes numbers only: what is not known is left out."""
    areas = {
        "Area": record.area,
        "Area mean": record.area_mean,
        "Area std": record.area_std,
        "Area 90% low": record.area_low,
        "Area 90% high": record.area_high,
    }
    values: dict[str, float | None] = {f"{name} px^2": area for name, area in areas.items()}
    values["Equivalent diameter px"] = record.equivalent_diameter
    if microns is not None:
        pixel = microns[0] * microns[1]
        values |= {f"{name} µm^2": area * pixel for name, area in areas.items()}
        values["Equivalent diameter µm"] = record.equivalent_diameter * math.sqrt(pixel)
    values |= {"Probability": record.probability, "Mean std SDF": record.mean_std}
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def feature_collection(
    records: Sequence[ObjectRecord], image: str = "", microns: Microns | None = None
) -> dict[str, Any]:
    """GeoJSON of the objects, as QuPath 0.4 and later open it.

    image: its name, which the ids (UUIDs) are made of, so that those of two images differ and those of an image stay.
    microns: height and width of a pixel, for areas in square micrometres too.

    Each object is a detection, of which QuPath shows many thousands and lists the measurements, with the
    classification Object. The borders that 95 % and 5 % of the draws enclose follow as annotations, classified "Object
    inner band" and "Object outer band" so that they can be hidden; an object that has no inner border has no such
    feature. Coordinates are pixels x, y from the top-left corner of the image, QuPath's own. Outer rings have a
    positive area in x, y as RFC 7946 asks; on a screen, where y points down, they run clockwise.
    """
    features = [_feature(image, r.contour, "detection", "Object", r.label, OBJECT_COLOR) for r in records]
    for feature, record in zip(features, records, strict=True):
        feature["properties"]["measurements"] = _measurements(record, microns)
    for record in records:
        for side, shape, color in (("inner", record.inner, INNER_COLOR), ("outer", record.outer, OUTER_COLOR)):
            if shape:
                features.append(_feature(image, shape, "annotation", f"Object {side} band", record.label, color))
    return {"type": "FeatureCollection", "features": features}


def write_geojson(path: Path, records: Sequence[ObjectRecord], image: str = "", microns: Microns | None = None) -> None:
    """Replace a file by the `feature_collection` of the objects."""
    write_text(path, json.dumps(feature_collection(records, image, microns), allow_nan=False) + "\n")


def write_labels(path: Path, labels: np.ndarray, microns: Microns | None = None) -> None:
    """Replace a label image by labels (H, W), integers >= 0; the suffix says the format.

    .tif, .tiff: an OME-TIFF pyramid of uint16, or uint32 where a label is above 65,535, with the pixel size. .png: 16
    bit.
    Raises ValueError for another suffix, shape or type, and for labels that the format has no room for.
    """
    check_labels(labels)
    suffix, largest = path.suffix.lower(), int(labels.max(initial=0))
    if suffix not in (".tif", ".tiff", ".png"):
        raise ValueError(f"{path.name}: label images are .tif, .tiff or .png")
    most = 2**16 - 1 if suffix == ".png" else 2**32 - 1
    if largest > most:
        raise ValueError(f"{path.name}: label {largest} does not fit, {suffix[1:]} holds up to {most}")
    values = labels.astype(np.uint16 if largest < 2**16 else np.uint32)
    with whole_file(path) as temporary:
        if suffix == ".png":
            Image.fromarray(values).save(temporary)
        else:
            write_tiff(temporary, values, microns)
