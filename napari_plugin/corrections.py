"""Labels that a person has corrected, as a folder that cfg/folder.yaml trains on: images/ and labels/, or of several
classes masks/, with equal stems."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.images import read_image
from data.names import safe_name
from data.sources.record import fitting, number_labels
from utils.errors import UsageError
from utils.files import whole_file

KINDS = ("labels", "masks")


def corrected(folder: Path) -> set[str]:
    """The names of the pictures that a folder has corrections of."""
    return {path.stem for kind in KINDS for path in (folder / kind).glob("[!.]*")}


def _check_labels(name: str, labels: np.ndarray, classes: bool) -> None:
    most = 255 if classes else np.inf
    if labels.ndim != 2 or labels.dtype.kind not in "ui" or labels.min(initial=0) < 0 or labels.max(initial=0) > most:
        kind = "classes, whole numbers from 0 to 255" if classes else "labels, whole numbers from 0 on"
        raise UsageError(f"{name}: {labels.dtype} of shape {labels.shape}; {kind}, of one picture are expected")


def _check_pixels(name: str, pixels: np.ndarray) -> np.ndarray:
    colours = pixels.ndim == 3 and pixels.shape[2] in (3, 4)
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or colours):
        raise UsageError(f"{name}: {pixels.dtype} of shape {pixels.shape}; an image of 8 bits is expected, or one that "
                         "was opened from a file")  # fmt: skip
    return pixels[..., :3] if colours else pixels


def write_correction(folder: Path, name: str, image: Path | np.ndarray, labels: np.ndarray, *, classes: bool = False,
                     replace: bool = False) -> Path:  # fmt: skip
    """Write a picture and its labels (H, W), 0 = background; both or, where anything goes wrong, neither of them.

    image: a file, which is copied as it is, or (H, W), (H, W, 3) or (H, W, 4) uint8. classes: the labels are class
    values, up to 255, for masks/ and data.classes, and no numbers of objects for labels/. replace: a correction of
    that name, which is refused otherwise. Returns the file of the labels. Raises UsageError or DataError with one line,
    or OSError.
    """
    _check_labels(name, labels, classes)
    name = safe_name(name)
    pixels = read_image(image, deep=True) if isinstance(image, Path) else _check_pixels(name, image)
    fitting(labels, pixels, name)
    kind = KINDS[classes]
    if (folder / KINDS[not classes]).is_dir():
        raise UsageError(f"{folder}: has {KINDS[not classes]}/, and {kind}/ does not go with it; choose another folder")
    target = folder / kind / f"{name}.png"
    picture = folder / "images" / (name + (image.suffix if isinstance(image, Path) else ".png"))
    if name in corrected(folder) and not replace:
        raise UsageError(f"{target}: is there already; replace it, or choose another folder")
    if picture.is_file() and not replace and not np.array_equal(read_image(picture, deep=True), pixels):
        raise UsageError(f"{picture}: another picture of this name; replace it, or choose another folder")
    if others := [path for path in (folder / "images").glob("[!.]*") if path.stem == name and path != picture]:
        raise UsageError(f"{others[0]}: another picture of this name; choose another folder")
    numbers = labels.astype(np.uint8) if classes else number_labels(labels, target)
    for path in (picture, target):
        path.parent.mkdir(parents=True, exist_ok=True)
    with (
        whole_file(target) as of_labels,
        whole_file(picture) as of_image,
    ):  # the labels come last: they say that it is done
        Image.fromarray(numbers).save(of_labels)
        if isinstance(image, Path):
            shutil.copyfile(image, of_image)
        else:
            Image.fromarray(pixels).save(of_image)
    return target


def save_layers(image: Any, labels: Any, folder: Path, *, replace: bool = False) -> Path:
    """`write_correction` of napari's image and labels layers.

    The picture is the file that the image layer was opened from, or its pixels where there is none.
    """
    if image is None or labels is None:
        raise UsageError("an image layer and a labels layer are needed; open results, or add them")
    source = image.metadata.get("file", image.source.path)
    file = Path(source) if source and Path(source).is_file() else None
    name = image.metadata.get("picture") or image.name
    of = np.asarray(image.data) if file is None else file
    classes = bool(labels.metadata.get("classes"))
    return write_correction(folder, name, of, np.asarray(labels.data), classes=classes, replace=replace)
