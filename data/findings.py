"""What a careful person looks for in a prepared folder before training on it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.ndimage import label, minimum

from data.rows import Patch

SDF_BINS = np.linspace(-1, 1, 41)
GREY_BINS = np.linspace(0, 256, 65)
SHALLOW = 0.5  # depth of a usual object below which the background outweighs it
OUTLIER = 4.0  # how many times larger or smaller than the median a picture has to be to stand out


def grey_histogram(image: np.ndarray) -> np.ndarray:
    """Shares of grey values (64 bins over 0 .. 255) of an image (H, W) or (H, W, 3) uint8."""
    grey = image if image.ndim == 2 else image.mean(axis=2)
    return np.histogram(grey, GREY_BINS)[0] / grey.size


@dataclass
class Facts:
    """One row per patch in `table`, and histograms.

    sdf: shares of SDF values per class, over all patches. greys: a histogram per patch.
    """

    table: pd.DataFrame
    sdf: np.ndarray
    greys: dict[str, np.ndarray] = field(default_factory=dict)


def _agreement(raters: Sequence[np.ndarray]) -> float:
    """Mean IoU over pairs of raters; 1 for two empty masks; NaN without raters."""
    pairs = [(a, b) for i, a in enumerate(raters) for b in raters[i + 1 :]]
    ious = [(a & b).sum() / (a | b).sum() if (a | b).any() else 1.0 for a, b in pairs]
    return float(np.mean(ious)) if ious else float("nan")


def _touches_all_borders(mask: np.ndarray) -> bool:
    """Whether one connected object does, as the background of a picture does in an inverted mask."""
    components, _ = label(mask)
    edges = (components[0], components[-1], components[:, 0], components[:, -1])
    return bool(set.intersection(*(set(edge.tolist()) for edge in edges)) - {0})


def object_depth(patch: Patch) -> float:
    """How deep the SDF is in the middle of an object, in units of the truncation: the median of its connected
    objects, 1 where it is truncated; NaN without objects."""
    sdf = patch.sdf.min(axis=(0, 1))
    components, count = label(sdf <= 0)
    return float(np.median(-minimum(sdf, components, range(1, count + 1)))) if count else float("nan")


def describe(patch: Patch, split: str) -> dict[str, object]:
    """The row of one patch."""
    mask, image = patch.mask, patch.image
    return {
        "split": split,
        "key": patch.key,
        "image_id": patch.image_id,
        "height": mask.shape[0],
        "width": mask.shape[1],
        "foreground": float(mask.mean()),
        "hash": hashlib.sha256(image.tobytes() + repr(image.shape).encode()).hexdigest(),
        "spread": float(image.std()),
        "empty": not any(m.any() for m in patch.raters or (mask,)),
        "framed": _touches_all_borders(mask),
        "depth": object_depth(patch),
        "agreement": _agreement(patch.raters),
        "silent_raters": sum(not rater.any() for rater in patch.raters),
        "classes": ",".join(str(k) for k in np.unique(patch.labels[mask])),
    }


def collect(patches: Iterable[tuple[str, Patch]]) -> Facts:
    """Facts of (split, patch) pairs, one patch in memory at a time."""
    rows, greys = [], {}
    sdf: np.ndarray | None = None
    for split, patch in patches:
        rows.append(describe(patch, split))
        greys[f"{split}/{patch.key}"] = grey_histogram(patch.image)
        counts = np.stack([np.histogram(channel, SDF_BINS)[0] for channel in patch.sdf.swapaxes(0, 1)])
        sdf = counts if sdf is None else sdf + counts
    if sdf is None:
        return Facts(pd.DataFrame(rows), np.zeros((1, len(SDF_BINS) - 1)))
    return Facts(pd.DataFrame(rows), sdf / sdf.sum(axis=1, keepdims=True), greys)


@dataclass(frozen=True)
class Suspicion:
    """Something to look at. grave: results will be wrong if it is what it looks like."""

    what: str
    where: list[str]
    grave: bool = False


def _names(rows: pd.DataFrame) -> list[str]:
    return [f"{row.split}/{row.key}" for row in rows.itertuples()]


def _twins(table: pd.DataFrame) -> list[Suspicion]:
    """The same picture more than once, and images that are in two splits."""
    across: list[str] = []
    within: list[str] = []
    for _, same in table.groupby("hash"):
        if len(same) > 1 and same["spread"].max() >= 1:
            (across if same["split"].nunique() > 1 else within).append(" = ".join(_names(same)))
    splits = table.groupby("image_id")["split"].nunique()
    shared = [str(name) for name in splits.index[splits > 1]]
    return [
        Suspicion("the same picture in two splits", across, grave=True),
        Suspicion("parts of one image in two splits", shared, grave=True),
        Suspicion("the same picture twice in a split", within),
    ]


def _never(table: pd.DataFrame, classes: Sequence[int]) -> list[Suspicion]:
    training = table[table["split"] == "train"]["classes"].str.split(",")
    seen = {k for cell in training for k in cell}
    lacking = [f"class {value}" for k, value in enumerate(classes, 1) if str(k) not in seen]
    return [Suspicion("classes that no training image has", lacking, grave=True)]


def suspicions(table: pd.DataFrame, classes: Sequence[int] = ()) -> list[Suspicion]:
    """All that is worth a look, gravest first; kinds that were not found are left out. classes: class values."""
    if table.empty:
        return [Suspicion("no images at all", ["train.csv, val.csv, test.csv"], grave=True)]
    area = table["height"] * table["width"]
    ratio = area / area.median()
    rules: list[tuple[str, Callable[[pd.DataFrame], pd.Series]]] = [
        ("constant images", lambda t: t["spread"] < 1),
        ("empty masks", lambda t: t["empty"]),
        ("masks that fill the picture", lambda t: t["foreground"] == 1),
        ("one object touches every border, as in an inverted mask", lambda t: t["framed"] & (t["foreground"] < 1)),
        ("sizes far from the others'", lambda t: (ratio > OUTLIER) | (ratio < 1 / OUTLIER)),
    ]
    found = _twins(table) + (_never(table, classes) if classes else [])
    found += [Suspicion(what, _names(table[rule(table)])) for what, rule in rules]
    counts = Counter(table["split"])
    found.append(Suspicion("splits without images", [s for s in ("train", "val", "test") if not counts[s]]))
    return sorted((s for s in found if s.where), key=lambda s: not s.grave)


def shallow_objects(table: pd.DataFrame, truncation: float) -> list[Suspicion]:
    """Whether the truncation, in pixels, is far larger than the objects of the training patches."""
    training = table[table["split"] == "train"] if len(table) else table
    depth = training["depth"].median() if len(training) else float("nan")
    if not depth < SHALLOW:  # NaN without objects
        return []
    pixels = depth * truncation
    better = max(2, round(pixels / 3))  # docs/data.md, "Truncation"
    if better >= truncation:
        return []
    advice = f"{pixels:.1f} pixels deep in the middle; try data.truncation: {better}"
    return [Suspicion(f"objects too small for data.truncation: {truncation:g}, so that the background outweighs them",
                      [advice])]  # fmt: skip


def leaking_groups(tables: dict[str, pd.DataFrame], column: str) -> list[str]:
    """Values of a column (a patient) that stand in more than one split."""
    owners: dict[str, set[str]] = {}
    for split, table in tables.items():
        for value in table[column].unique() if column in table else ():
            if value:
                owners.setdefault(str(value), set()).add(split)
    return [f"{value} ({', '.join(sorted(splits))})" for value, splits in sorted(owners.items()) if len(splits) > 1]
