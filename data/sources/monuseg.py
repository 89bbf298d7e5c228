"""MoNuSeg 2018 (Kumar et al. 2017): H&E tiles and Aperio XML annotations, a polygon for each nucleus.

Training archive: `Tissue Images/*.tif` beside `Annotations/*.xml`; test archive: `.tif` and `.xml` in one folder.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse
from skimage.draw import polygon

from data.images import read_image, read_labels, readable
from data.sources.record import MOST_OBJECTS, Archive, Record, Sample, Split, files_by_stem, paint, paired, raw_folder
from utils.data_schema import DataConfig
from utils.errors import DataError

# The challenge's training archive had 30 tiles at first and has 37 since its test set was published.
EXPECTED: dict[Split, tuple[int, ...]] = {"train": (30, 37), "test": (14,)}
IMAGES = (".tif", ".tiff", ".png")


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


def fill_regions(regions: Iterable[Region], shape: tuple[int, int], where: str) -> tuple[np.ndarray, list[str]]:
    """Instance labels (H, W) uint16 and notes on what had to be decided.

    A pixel belongs to the polygon that its centre lies in, of several to the smallest. Raises DataError for regions
    that lie wholly outside the picture.
    """
    pixels: list[tuple[np.ndarray, np.ndarray]] = []
    holes, thin = np.zeros(shape, bool), 0
    lost = [region.name for region in regions if len(region.points) and _outside(region.points, shape)]
    if lost:
        names = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        raise DataError(f"{where}: {names} outside the picture of {shape[1]} x {shape[0]}; do the two belong together?")
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


def _list_folder(images: Path, split: Split, problems: list[str], max_pixels: int) -> list[Record]:
    """Annotations lie in a folder beside that of the training tiles, those of test tiles beside their pictures."""
    annotations = images.with_name("Annotations") if split == "train" else images
    masks = (images.parent if split == "train" else images) / "Binary Masks"
    pictures, binaries = files_by_stem(images, IMAGES, problems), files_by_stem(masks, IMAGES, problems)
    outlines = files_by_stem(annotations, (".xml",), problems)
    outlines = {stem: path for stem, path in binaries.items() if stem in pictures} | outlines
    result = []
    for stem in paired(pictures, outlines, f"annotation {annotations.name}/*.xml", problems):
        files, patient = (pictures[stem], outlines[stem]), "-".join(stem.split("-")[:3])
        read = partial(read_sample, *files, max_pixels)
        result.append(Record(stem, split, patient, read, files, {"patient": patient}))
    return result


def records(data: DataConfig) -> Archive:
    """All tiles below data.raw: folders `Tissue Images` are for training, of image and XML side by side for test.

    Raises DataError where there is neither.
    """
    raw = raw_folder(data, "the unpacked MoNuSeg archives")
    problems: list[str] = []
    found: list[Record] = []
    folders = [raw, *sorted(path for path in raw.rglob("*") if path.is_dir() and not path.name.startswith("."))]
    for folder in folders:
        if folder.name == "Tissue Images":
            found += _list_folder(folder, "train", problems, data.max_pixels)
        elif folder.name not in ("Annotations", "Binary Masks") and any(folder.glob("*.xml")):
            found += _list_folder(folder, "test", problems, data.max_pixels)
    if not found and not problems:
        raise DataError(f"{raw}: neither a folder 'Tissue Images' nor one with .tif and .xml side by side in it")
    seen: dict[str, Record] = {}
    for record in found:
        if record.image_id in seen:
            problems.append(f"{record.files[0]}: the same image as {seen[record.image_id].files[0]}")
        seen[record.image_id] = record
    counts = {split: sum(r.split == split for r in found) for split in EXPECTED}
    if not data.allow_partial and any(counts[split] not in allowed for split, allowed in EXPECTED.items()):
        problems.append(
            f"{raw}: expected 30 or 37 training and 14 test tiles; found {counts['train']} and {counts['test']}; "
            "data.allow_partial: true goes on with what there is"
        )
    return Archive(list(seen.values()), problems)
