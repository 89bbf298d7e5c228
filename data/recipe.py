"""What is done to one raw image: classes, stain, colour, size, SDFs of the whole picture, windows, files."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from data.images import readable, stretch
from data.patches import Window, even_parts, overlapping, random_window
from data.pixel_size import alike, microns_of
from data.sdf import signed_distance
from data.sources.record import Record, Sample, fitting
from data.stain import Stain, StainError, fit_stain, normalise
from utils.data_schema import DataConfig
from utils.errors import DataError
from utils.files import naming

FOLDERS = {"train": "Training_patches", "val": "Validation_patches", "test": "Test_patches"}


@dataclass(frozen=True)
class Written:
    """What became of one image: its CSV rows, or why it cannot be used."""

    rows: tuple[dict[str, str | int], ...] = ()
    notes: tuple[str, ...] = ()
    warning: str | None = None
    problem: str | None = None


def where(record: Record) -> str:
    """The name to complain about."""
    return ", ".join(str(path) for path in record.files[:2]) or record.image_id


def read_sample(record: Record) -> Sample | None:
    """The arrays of one record, all of one size. Raises DataError."""
    with readable(where(record)):
        sample = record.read()
    if sample is None:
        return None
    for labels in sample.maps():
        fitting(labels, sample.image, where(record))
    return sample


def select_classes(sample: Sample, classes: tuple[int, ...] | None) -> Sample:
    """Values that are no class become background. Raises DataError where the archive has no classes."""
    if classes is None:
        return replace(sample, classes=None)
    if sample.classes is None:
        raise DataError("data.classes: this source has objects of one kind only")
    values = np.where(np.isin(sample.classes, classes), sample.classes, 0).astype(np.uint8)
    mask = values > 0
    instances = None if sample.instances is None else np.where(mask, sample.instances, 0).astype(np.uint16)
    return replace(sample, mask=mask, instances=instances, classes=values)


def stain_of(image: np.ndarray, method: str) -> tuple[Stain | None, str | None]:
    """The stains to be exchanged, None for method none; or None and why they cannot be told."""
    if method == "none":
        return None, None
    try:
        return fit_stain(image, method), None
    except StainError as error:
        return None, f"{error}; passed on without stain normalisation"


def with_stain(image: np.ndarray, source: Stain | None, target: Stain | None) -> np.ndarray:
    """The image in the target's stains, or as it is where one of both is not known."""
    return image if source is None or target is None else normalise(image, source, target)


def normalise_stain(image: np.ndarray, method: str, target: Stain | None) -> tuple[np.ndarray, str | None]:
    """The normalised image, or the image as it is and why."""
    source, warning = stain_of(image, method) if target is not None else (None, None)
    return with_stain(image, source, target), warning


def transform_image(pixels: np.ndarray, data: DataConfig, *, stretched: bool = True) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8 in the colour and size of the data. stretched: stretch it if the data say so."""
    image = Image.fromarray(pixels).convert("L" if data.color == "grey" else "RGB")
    if data.stretch and stretched:
        image = Image.fromarray(stretch(np.asarray(image), None))
    if data.size is None:
        return np.asarray(image)
    height, width = data.size
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=None))


def transform(sample: Sample, data: DataConfig) -> Sample:
    """Colour and size; labels are sampled at pixel centres, images averaged."""
    image = transform_image(sample.image, data)
    if data.size is None:
        return replace(sample, image=image)
    height, width = data.size

    def nearest(labels: np.ndarray) -> np.ndarray:
        rows = ((np.arange(height) + 0.5) * labels.shape[0] / height).astype(int)
        columns = ((np.arange(width) + 0.5) * labels.shape[1] / width).astype(int)
        return labels[rows[:, None], columns]

    return replace(
        sample,
        image=image,
        mask=nearest(sample.mask),
        instances=None if sample.instances is None else nearest(sample.instances),
        raters=tuple(nearest(rater) for rater in sample.raters),
        classes=None if sample.classes is None else nearest(sample.classes),
    )


def windows_of(shape: tuple[int, ...], record: Record, data: DataConfig) -> list[Window]:
    """Where an image (height, width) of this split is cut; ValueError if it is too small for that."""
    height, width = shape
    if record.split == "train" and data.patch is not None:
        stride = data.stride or (max(1, data.patch[0] // 2), max(1, data.patch[1] // 2))
        return overlapping((height, width), data.patch, stride)
    if record.split != "train" and data.crop is not None:
        digest = hashlib.sha256(f"{data.split_seed}\0{record.image_id}".encode()).digest()
        return [random_window((height, width), data.crop, np.random.default_rng(list(digest[:8])))]
    if record.split != "train" and data.test_patch is not None:
        return even_parts((height, width), data.test_patch)
    return [Window(0, 0, height, width)]


class _PatchWriter:
    """Files of the patches of one image; SDFs are those of the whole picture."""

    def __init__(self, sample: Sample, record: Record, root: Path, data: DataConfig) -> None:
        self.sample, self.record, self.root = sample, record, root
        self.raters = [signed_distance(rater, data.truncation) for rater in sample.raters]
        if sample.classes is None or data.classes is None:
            self.sdf = signed_distance(sample.mask, data.truncation)
        else:
            self.sdf = np.stack([signed_distance(sample.classes == value, data.truncation) for value in data.classes])

    def _png(self, pixels: np.ndarray, name: str) -> str:
        if pixels.dtype == np.bool_:
            pixels = pixels.astype(np.uint8) * 255
        Image.fromarray(np.ascontiguousarray(pixels)).save(self.root / name)
        return name

    def _npy(self, array: np.ndarray, name: str) -> str:
        np.save(self.root / name, np.ascontiguousarray(array))
        return name

    def write(self, window: Window, stem: str) -> dict[str, str | int]:
        """The files of one window and their CSV row."""
        sample, part = self.sample, window.slices
        row: dict[str, str | int] = {
            "filename": self._png(sample.image[part], f"{stem}.png"),
            "maskname": self._png(sample.mask[part], f"{stem}_mask.png"),
            "maskdtname": self._npy(self.sdf[(..., *part)], f"{stem}_sdf.npy"),
            "image_id": self.record.image_id,
            **asdict(window),
        }
        if sample.instances is not None:
            row["instancename"] = self._png(sample.instances[part].astype(np.uint16), f"{stem}_instances.png")
        if sample.classes is not None:
            row["classname"] = self._png(sample.classes[part], f"{stem}_classes.png")
        if sample.raters:
            names = [f"{stem}_rater{k}" for k in range(len(sample.raters))]
            masks = zip(sample.raters, names, strict=True)
            row["raternames"] = ";".join(self._png(mask[part], f"{name}.png") for mask, name in masks)
            sdfs = zip(self.raters, names, strict=True)
            row["raterdtnames"] = ";".join(self._npy(sdf[part], f"{name}_sdf.npy") for sdf, name in sdfs)
        return {**row, **self.record.attributes}


def check_microns(record: Record, wanted: float | None) -> None:
    """Raises DataError for a training image that states pixels of another size than the config does."""
    stated = microns_of(record.files[0]) if record.files and wanted is not None else None
    if stated is not None and wanted is not None and not alike(stated, wanted):
        raise DataError(
            f"{record.files[0]}: states pixels of {max(stated):.4g} micrometres, data.microns_per_pixel is {wanted:g}; "
            "resize it together with its mask"
        )


def write_image(record: Record, root: Path, data: DataConfig, target: Stain | None = None) -> Written:
    """Write the patches of one record below root. A DataError is returned, so that others can be found as well."""
    try:
        sample = read_sample(record)
        if sample is None:
            return Written()
        sample = select_classes(sample, data.classes)
        image, warning = normalise_stain(sample.image, data.stain, target)
        sample = transform(replace(sample, image=image), data)
        windows = windows_of(sample.mask.shape, record, data)
    except (ValueError, MemoryError) as error:
        named = any(str(path) in str(error) for path in record.files)
        return Written(problem=str(error) if named else f"{where(record)}: {error}")
    stem = f"{FOLDERS[record.split]}/{record.image_id}"
    with naming(root / stem):
        writer = _PatchWriter(sample, record, root, data)
        rows = [writer.write(w, stem if len(windows) == 1 else f"{stem}_{w.top}_{w.left}") for w in windows]
    return Written(tuple(rows), sample.notes, warning)
