"""MoNuSeg 2018 (Kumar et al. 2017): H&E tiles and Aperio XML annotations, a polygon for each nucleus.

The archives come in many layouts: `Tissue Images/*.tif` beside `Annotations/*.xml`, both in one folder, one archive in
the other. So tiles are known by their names, and the test tiles too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse
from skimage.draw import polygon

from data.images import picture_shape, read_image, read_labels, readable
from data.sources.record import (
    MOST_OBJECTS,
    Archive,
    Record,
    Sample,
    Split,
    check_shape,
    files_by_stem,
    paint,
    paired,
    raw_folder,
)
from utils.data_schema import DataConfig
from utils.errors import DataError

# The challenge's training archive had 30 tiles at first and has 37 since its test set was published.
EXPECTED: dict[Split, tuple[int, ...]] = {"train": (30, 37), "test": (14,)}
TEST = frozenset({
    "TCGA-2Z-A9J9-01A-01-TS1", "TCGA-44-2665-01B-06-BS6", "TCGA-69-7764-01A-01-TS1", "TCGA-A6-6782-01A-01-BS1",
    "TCGA-AC-A2FO-01A-01-TS1", "TCGA-AO-A0J2-01A-01-BSA", "TCGA-CU-A0YN-01A-02-BSB", "TCGA-EJ-A46H-01A-03-TSC",
    "TCGA-FG-A4MU-01B-01-TS1", "TCGA-GL-6846-01A-01-BS1", "TCGA-HC-7209-01A-01-TS1", "TCGA-HT-8564-01Z-00-DX1",
    "TCGA-IZ-8196-01A-01-BS1", "TCGA-ZF-A9R5-01A-01-TS1"})  # fmt: skip
IMAGES = (".tif", ".tiff", ".png")
TILE = re.compile(r"TCGA-.+", re.DOTALL)
_OF_TEST = re.compile(r"(?<![A-Za-z])test|Test|TEST")  # MoNuSegTestData, test; not latest


@dataclass(frozen=True)
class Region:
    """One closed contour. points: (N, 2) rows and columns, a pixel's centre at whole numbers. hole: cuts out."""

    name: str
    points: np.ndarray
    hole: bool


def read_regions(path: Path) -> list[Region]:
    """The regions of an Aperio XML file, in the file's order.

    Document types are refused, and with them entity bombs and references to other files. Raises DataError, also
    where there is no region.
    """
    with readable(path):
        try:
            elements = parse(path, forbid_dtd=True).iter("Region")
        except DefusedXmlException as error:
            kind = type(error).__name__
            raise DataError(f"{path}: refused, as it declares a document type or entities ({kind})") from None
        except ParseError as error:
            raise DataError(f"{path}: not complete XML ({error})") from None
    regions = []
    for number, element in enumerate(elements, 1):
        name = f"region {element.get('Id') or number}"
        try:
            points = np.array([(float(v.attrib["Y"]), float(v.attrib["X"])) for v in element.iter("Vertex")])
        except (KeyError, ValueError):
            raise DataError(f"{path}: {name} has a vertex without numbers X and Y") from None
        if points.size and not np.isfinite(points).all():
            raise DataError(f"{path}: {name} has a vertex that is not finite")
        regions.append(Region(name, points.reshape(-1, 2), element.get("NegativeROA") == "1"))
    if not 0 < len(regions) <= MOST_OBJECTS:
        raise DataError(f"{path}: {len(regions)} regions; an Aperio annotation has one for each nucleus, 1 to 65,535")
    return regions


def _outside(points: np.ndarray, shape: tuple[int, int]) -> bool:
    low, high = points.min(axis=0), points.max(axis=0)
    return bool((high < -0.5).any() or (low > np.array(shape) - 0.5).any())


def check_inside(regions: Iterable[Region], shape: tuple[int, int], where: str) -> None:
    """Raises DataError for regions that lie wholly outside the picture (H, W)."""
    lost = [region.name for region in regions if len(region.points) and _outside(region.points, shape)]
    if lost:
        names = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        raise DataError(f"{where}: {names} outside the picture of {shape[1]} x {shape[0]}; do the two belong together?")


def fill_regions(regions: Sequence[Region], shape: tuple[int, int], where: str) -> tuple[np.ndarray, list[str]]:
    """Instance labels (H, W) uint16 and notes on what had to be decided.

    A pixel belongs to the polygon that its centre lies in, of several to the smallest. Raises DataError for regions
    that lie wholly outside the picture.
    """
    pixels: list[tuple[np.ndarray, np.ndarray]] = []
    holes, thin = np.zeros(shape, bool), 0
    check_inside(regions, shape, where)
    for region in regions:
        rows, columns = polygon(region.points[:, 0], region.points[:, 1], shape) if len(region.points) > 2 else ((), ())
        if len(rows) == 0:
            thin += 1
        elif region.hole:
            holes[rows, columns] = True
        else:
            pixels.append((np.asarray(rows), np.asarray(columns)))
    labels, claims = paint(pixels, shape)
    labels[holes] = 0
    notes = []
    contested = int(np.count_nonzero(claims > 1))
    if contested:
        count = sum(bool((claims[rows, columns] > 1).any()) for rows, columns in pixels)
        notes.append(f"{count} regions overlap in {contested} pixels; the smallest keeps them")
    if thin:
        notes.append(f"{thin} regions hold no pixel centre and are left out")
    covered = len(pixels) - len(np.unique(labels[labels > 0]))
    if covered:
        notes.append(f"{covered} regions lie wholly under smaller ones and are left out")
    return labels, notes


def read_sample(image: Path, annotation: Path, max_pixels: int) -> Sample:
    """annotation: the XML file, or the binary mask where there is none."""
    rgb = read_image(image, max_pixels)
    if annotation.suffix.lower() == ".xml":
        labels, notes = fill_regions(read_regions(annotation), rgb.shape[:2], str(annotation))
        return Sample(rgb, labels > 0, labels, notes=tuple(notes))
    mask = read_labels(annotation, max_pixels) > 0
    return Sample(rgb, mask, notes=(f"no XML: {annotation.parent.name}/{annotation.name} is used, without instances",))


def check_files(image: Path, annotation: Path, max_pixels: int) -> None:
    """Raises what `read_sample` would of annotations that cannot be read or are of another size."""
    shape = picture_shape(image, max_pixels)
    if annotation.suffix.lower() == ".xml":
        check_inside(read_regions(annotation), shape, str(annotation))
    else:
        check_shape(picture_shape(annotation, max_pixels), shape, annotation)


def _by_stem(folders: Iterable[Path], suffixes: tuple[str, ...], problems: list[str]) -> dict[str, Path]:
    """The tiles' files of these suffixes, wherever they lie; one that is there twice goes into `problems`."""
    found: dict[str, Path] = {}
    for folder in folders:
        for stem, path in files_by_stem(folder, suffixes, problems, TILE).items():
            if stem in found:
                problems.append(f"{path}: the same tile as {found[stem]}")
            found[stem] = path
    return found


def _split_of(tile: Path, raw: Path) -> Split:
    return "test" if tile.stem in TEST or _OF_TEST.search(str(tile.parent.relative_to(raw))) else "train"


def _check_counts(raw: Path, found: Sequence[Record]) -> list[str]:
    """The official split is complete."""
    counts = {split: sum(r.split == split for r in found) for split in EXPECTED}
    if all(counts[split] in allowed for split, allowed in EXPECTED.items()):
        return []
    lacking = sorted(TEST - {r.image_id for r in found}) if counts["test"] else []
    which = f" (no {', '.join(lacking)})" if lacking else ""
    hint = "data.allow_partial: true goes on with what there is"
    hint += "" if counts["test"] else ", and data.test_fraction: 0.2 holds out test tiles by patient"
    return [
        f"{raw}: expected 30 or 37 training and 14 test tiles; found {counts['train']} and {counts['test']}{which}; "
        f"{hint}"
    ]


def records(data: DataConfig) -> Archive:
    """All tiles in data.raw or below, `TCGA-*`, each with the XML of its name or else the mask of its name in a folder
    of masks. Of the test set are the official test tiles, and what lies in a folder called so.

    Raises DataError where there is none.
    """
    raw = raw_folder(data, "the unpacked MoNuSeg archives")
    problems: list[str] = []
    folders = [raw, *sorted(path for path in raw.rglob("*") if path.is_dir() and not path.name.startswith("."))]
    masks = [folder for folder in folders[1:] if "mask" in folder.name.lower()]
    pictures = _by_stem([folder for folder in folders if folder not in masks], IMAGES, problems)
    annotations = _by_stem(masks, IMAGES, problems) | _by_stem(folders, (".xml",), problems)
    if not pictures and not annotations:
        packed = ", ".join(sorted(path.name for path in raw.glob("*.zip")))
        hint = f"; unpack {packed}" if packed else ""
        raise DataError(f"{raw}: no tiles TCGA-*.tif with their TCGA-*.xml in it or below{hint}")
    found = []
    for stem in paired(pictures, annotations, "annotation (.xml, or a picture in Binary Masks/)", problems):
        files, patient = (pictures[stem], annotations[stem]), "-".join(stem.split("-")[:3])
        read, check = partial(read_sample, *files, data.max_pixels), partial(check_files, *files, data.max_pixels)
        split = _split_of(files[0], raw)
        found.append(Record(stem, split, patient, read, files, {"patient": patient}, check=check))
    return Archive(found, problems if data.allow_partial else [*_check_counts(raw, found), *problems])
