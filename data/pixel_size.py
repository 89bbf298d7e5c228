"""The size of a picture's pixels, as its file states it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import tifffile
from defusedxml.ElementTree import fromstring

TIFF = (".tif", ".tiff")
TOLERANCE = 0.05  # relative difference of pixel sizes that scanners of one magnification have
COARSEST = 25.0  # micrometres; what is above, 72 dpi for one, is meant for a printer
UNITS = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "\\u00B5m": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "mm": 1e3,
         "cm": 1e4, "m": 1e6}  # fmt: skip
MICROMETRE = 5  # tifffile's number

Microns = tuple[float, float]  # height and width of a pixel in micrometres


def plausible(height: float, width: float) -> Microns | None:
    """The size, or None for what no microscope has."""
    good = all(math.isfinite(side) and 0 < side <= COARSEST for side in (height, width))
    return (float(height), float(width)) if good else None


def alike(microns: Microns, wanted: float) -> bool:
    """Whether pixels are of the wanted height and width, up to TOLERANCE."""
    return all(abs(side / wanted - 1) <= TOLERANCE for side in microns)


def slide_microns(properties: Mapping[str, str]) -> Microns | None:
    """Of OpenSlide's properties."""
    with suppress(KeyError, ValueError):
        return plausible(float(properties["openslide.mpp-y"]), float(properties["openslide.mpp-x"]))
    return None


def tiff_microns(file: tifffile.TiffFile) -> Microns | None:
    """Of the full resolution: by OME-XML, ImageJ's description, or resolution tags with a unit, whichever is first;
    None where nothing is stated, or what is stated is damaged."""
    with suppress(Exception):  # a damaged tag is no reason not to read the pixels
        page: Any = file.pages[0]
        if file.ome_metadata:
            return _ome_microns(file.ome_metadata)
        if (unit := (file.imagej_metadata or {}).get("unit")) is not None:
            across, down = page.get_resolution()
            return plausible(UNITS[unit] / down, UNITS[unit] / across)
        if page.tags.valueof("ResolutionUnit", default=1) != 1 and "XResolution" in page.tags:
            across, down = page.get_resolution(MICROMETRE)
            return plausible(1 / down, 1 / across)
    return None


def _ome_microns(text: str) -> Microns | None:
    pixels = next(element for element in fromstring(text).iter() if element.tag.endswith("}Pixels"))
    height, width = (
        float(pixels.attrib[f"PhysicalSize{axis}"]) * UNITS[pixels.attrib.get(f"PhysicalSize{axis}Unit", "µm")]
        for axis in "YX"
    )
    return plausible(height, width)


def microns_of(path: Path) -> Microns | None:
    """Of any picture file; other formats than TIFF state none."""
    if path.suffix.lower() in TIFF:
        with suppress(Exception), tifffile.TiffFile(path) as file:
            return tiff_microns(file)
    return None
