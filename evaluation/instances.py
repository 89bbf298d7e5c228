"""Objects of an SDF, and what the draws say of each: whether it exists, how large it is, where its border lies."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import find_objects, label
from scipy.sparse import csr_array
from scipy.sparse.csgraph import minimum_spanning_tree
from skimage.measure import approximate_polygon, find_contours
from skimage.segmentation import watershed

from evaluation.conformal import central_ranks
from evaluation.object_scores import check_labels, contingency

INTERVAL = 0.9  # of the draws' areas
SIMPLIFY = 0.25  # pixels; the contours of different pixels keep sqrt(1/2) apart, so simplified ones cannot cross
Polygon = list[np.ndarray]  # rings (n, 2) of x, y: the outer one, then holes


def _descend(values: np.ndarray, pixels: np.ndarray, width: int) -> np.ndarray:
    """For each pixel the one at which steepest descent from it ends; on level ground the way is up or left."""
    lowest, target = values[pixels], pixels.copy()
    for step in (-width, -1):
        level = values[pixels + step] == lowest
        target[level] = pixels[level] + step
    for step in (-width, -1, 1, width):
        lower = values[pixels + step] < lowest
        target[lower] = pixels[lower] + step
        lowest = np.minimum(lowest, values[pixels + step])
    following = np.arange(values.size)
    while not np.array_equal(following[pixels], target):
        following[pixels] = target
        target = following[target]
    return target


def _saddles(
    values: np.ndarray, pixels: np.ndarray, basins: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The lowest passes that join all basins, from the lowest up: the two basins (E,) and (E,) of each, heights (E,).

    basins: the basin of every pixel, -1 in the background.
    """
    near = np.concatenate([pixels, pixels])
    far = np.concatenate([pixels + 1, pixels + width])
    border = (basins[far] >= 0) & (basins[near] != basins[far])
    near, far = near[border], far[border]
    heights = np.maximum(values[near], values[far])
    order = np.argsort(heights, kind="stable")
    count = int(basins.max()) + 1
    one, two = basins[near[order]], basins[far[order]]
    codes, first = np.unique(np.minimum(one, two) * count + np.maximum(one, two), return_index=True)
    # Ranks from 1 instead of heights: no two are equal, and none is 0, which a sparse matrix takes for no edge.
    graph = csr_array((first + 1, (codes // count, codes % count)), shape=(count, count))
    tree = minimum_spanning_tree(graph).tocoo()
    passes = np.argsort(tree.data)
    ranks = tree.data[passes].astype(np.int64) - 1
    return tree.row[passes], tree.col[passes], heights[order][ranks]


def _merge(minima: np.ndarray, one: np.ndarray, two: np.ndarray, heights: np.ndarray, depth: float) -> np.ndarray:
    """For each basin the one it belongs to, after those that lie less than depth below their pass have joined."""
    parent, least = list(range(len(minima))), minima.tolist()

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j, height in zip(one.tolist(), two.tolist(), heights.tolist(), strict=True):
        a, b = root(i), root(j)
        if least[a] > least[b]:
            a, b = b, a
        if height - least[b] < depth:
            parent[b] = a
    return np.array([root(i) for i in range(len(parent))])


def _split(sdf: np.ndarray, foreground: np.ndarray, depth: float) -> np.ndarray:
    values = np.pad(np.where(foreground, sdf, np.inf), 1, constant_values=np.inf)
    width = values.shape[1]
    values = values.ravel()
    pixels = np.flatnonzero(values < np.inf)
    labels = np.zeros(values.size, np.int32)
    if len(pixels):
        lowest, basin = np.unique(_descend(values, pixels, width), return_inverse=True)
        basins = np.full(values.size, -1)
        basins[pixels] = basin
        merged = _merge(values[lowest], *_saddles(values, pixels, basins, width), depth)
        labels[pixels] = np.unique(merged, return_inverse=True)[1][basin] + 1
    return labels.reshape(-1, width)[1:-1, 1:-1]


def split_objects(sdf: np.ndarray, threshold: float, depth: float | None, minimum_area: int = 0) -> np.ndarray:
    """Objects of an SDF (H, W) by watershed: labels (H, W) int32, 1 .. n, 0 = background.

    The foreground is where the SDF is below the threshold; pixels are neighbours by their sides (4-connectivity). The
    markers are the minima at least `depth` deep (h-minima, depth in SDF units), and the lowest point of every
    connected part, however shallow. With depth None or 0 the connected parts are the objects. Objects of fewer than
    minimum_area pixels are left out.

    The flooding is done on basins instead of pixels: those of all minima are joined over their lowest passes until no
    minimum lies less than depth below its pass, the dynamics of a minimum (Grimaud 1992). That takes a tenth of the
    time and gives the same objects; single pixels of the line between two of them can go to the other side.
    Raises ValueError for values that are not finite, another shape, or a negative depth.
    """
    if sdf.ndim != 2 or not np.isfinite(sdf).all():
        raise ValueError(f"the SDF must be a 2-d array of finite values, not of shape {sdf.shape}")
    if depth is not None and not depth >= 0:
        raise ValueError(f"depth must not be negative, but is {depth}")
    foreground = sdf < threshold
    labels = _split(sdf, foreground, depth) if depth else label(foreground)[0].astype(np.int32)
    kept = np.bincount(labels.ravel(), minlength=1) >= minimum_area
    kept[0] = False
    return (np.cumsum(kept) * kept).astype(np.int32)[labels]


class DrawObjects:
    """The objects of the draws of one image, split by one rule and kept compressed.

    A noisy draw of 1000x1000 pixels and 500 objects takes about 120 KB, 128 of them 15 MB.
    """

    def __init__(self, threshold: float, depth: float | None, minimum_area: int = 0) -> None:
        self.threshold, self.depth, self.minimum_area = threshold, depth, minimum_area
        self._packed: list[bytes] = []
        self.foreground = np.zeros((0, 0), np.int32)  # number of draws that have an object at the pixel; (H, W)

    def __len__(self) -> int:
        return len(self._packed)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Labels (H, W) int32 of one draw after the other."""
        for packed in self._packed:
            yield np.frombuffer(zlib.decompress(packed), np.int32).reshape(self.foreground.shape)

    def add(self, sdf: np.ndarray) -> np.ndarray:
        """Take in the SDF (H, W) of one draw; return its labels (H, W) int32. Raises ValueError for another shape."""
        if self._packed and sdf.shape != self.foreground.shape:
            raise ValueError(f"draw is {sdf.shape}, those before {self.foreground.shape}")
        labels = split_objects(sdf, self.threshold, self.depth, self.minimum_area)
        if not self._packed:
            self.foreground = np.zeros(labels.shape, np.int32)
        self.foreground += labels > 0
        self._packed.append(zlib.compress(labels.tobytes(), 1))
        return labels


@dataclass(frozen=True, eq=False)
class ObjectRecord:
    """One object, and what the draws say of it. Lengths are in pixels.

    centroid: row, column. bbox: top, left, bottom, right, the last two exclusive.
    probability: share of draws with an object that has an IoU above 0.5 with this one; nan where no draw was kept.
    area_mean, area_std: of those objects (n - 1 in the denominator, 0 for a single one; nan where no draw has any).
    area_low, area_high: ends of the central 90 % interval of the areas over all draws, 0 in those without such an
    object, see `central_ranks`; nan where no draw was kept.
    mean_std: mean standard deviation of the SDF inside, if it was given.
    contour, inner, outer: polygons in x, y from the top-left corner of the image, so that the centre of its first pixel
    is (0.5, 0.5). At least 95 % of the draws have foreground inside the inner ones, which can be none at all, and at
    least 5 % inside the outer ones: pixel by pixel, the band between them is one of 90 %.
    """

    label: int
    area: int
    equivalent_diameter: float
    centroid: tuple[float, float]
    bbox: tuple[int, int, int, int]
    probability: float
    area_mean: float
    area_std: float
    area_low: float
    area_high: float
    mean_std: float | None
    contour: list[Polygon]
    inner: list[Polygon]
    outer: list[Polygon]


def signed_area(ring: np.ndarray) -> float:
    """Area of a closed ring (n, 2) of x, y, positive if counterclockwise where y points up."""
    x, y = ring[:, 0], ring[:, 1]
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2


def polygons(region: np.ndarray, top: int = 0, left: int = 0) -> list[Polygon]:
    """Contours of a region (H, W) bool whose first pixel is (top, left) of the image, a polygon for each part.

    Rings are closed, simplified by at most a quarter of a pixel, and wind as RFC 7946 asks: the outer one has a
    positive `signed_area` and holes a negative one. They pass between pixel centres and so cut convex corners by 1/8 of
    a pixel: a single pixel is a diamond of area 1/2.
    """
    parts, _ = label(region)
    result = []
    for i, (rows, columns) in enumerate(find_objects(parts), start=1):
        padded = np.pad(parts[rows, columns] == i, 1).astype(np.float64)
        rings = []
        for contour in find_contours(padded, 0.5):
            # Half a pixel from centre to corner, minus 1 for the padding.
            ring = approximate_polygon(contour, SIMPLIFY)[:, ::-1] - 0.5
            rings.append(ring + np.array([left + columns.start, top + rows.start]))
        rings.sort(key=lambda ring: abs(signed_area(ring)), reverse=True)
        signs = [1, *[-1] * (len(rings) - 1)]
        result.append([r if signed_area(r) * sign > 0 else r[::-1] for r, sign in zip(rings, signs, strict=True)])
    return result


def matched_areas(labels: np.ndarray, draws: DrawObjects, count: int) -> np.ndarray:
    """Area of the match of each of `count` objects in each draw, nan without one; (D, count). labels: 1 .. count."""
    areas = np.full((len(draws), count), np.nan)
    for row, drawn in zip(areas, draws, strict=True):
        table = contingency(labels, drawn)
        row[table.truth[table.matches]] = table.prediction_areas[table.prediction[table.matches]]
    return areas


def plain_objects(labels: np.ndarray, std: np.ndarray | None = None) -> list[ObjectRecord]:
    """Objects of labels (H, W), 0 = background, by rising label; what is of their draws is nan or empty.

    std: (H, W) standard deviation of the SDF over draws, for `mean_std`. Raises ValueError for another shape or type.
    """
    check_labels(labels)
    if std is not None and std.shape != labels.shape:
        raise ValueError(f"std are {std.shape}, labels {labels.shape}")
    records = []
    for value, slices in enumerate(find_objects(labels), start=1):
        if slices is None:
            continue
        inside, top, left = labels[slices] == value, slices[0].start, slices[1].start
        rows, columns = np.nonzero(inside)
        records.append(
            ObjectRecord(
                label=value,
                area=len(rows),
                equivalent_diameter=math.sqrt(4 * len(rows) / math.pi),
                centroid=(float(rows.mean()) + top, float(columns.mean()) + left),
                bbox=(top, left, slices[0].stop, slices[1].stop),
                probability=math.nan,
                area_mean=math.nan,
                area_std=math.nan,
                area_low=math.nan,
                area_high=math.nan,
                mean_std=None if std is None else float(std[slices][inside].mean()),
                contour=polygons(inside, top, left),
                inner=[],
                outer=[],
            )
        )
    return records


def describe_objects(labels: np.ndarray, draws: DrawObjects, std: np.ndarray | None = None) -> list[ObjectRecord]:
    """What the draws say of each object of labels; see `plain_objects`.

    So that the band of an object does not run into its neighbours, the pixels that 5 % of the draws have are divided
    among the objects by a watershed on the number of draws; those that no object reaches belong to none.
    Raises ValueError without draws, or for another shape or type.
    """
    check_labels(labels)
    if len(draws) == 0:
        raise ValueError("no draws yet")
    if draws.foreground.shape != labels.shape:
        raise ValueError(f"draws are {draws.foreground.shape}, labels {labels.shape}")
    plain = plain_objects(labels, std)
    areas = matched_areas(labels, draws, len(plain))
    often, wide = draws.foreground * 20 >= 19 * len(draws), draws.foreground * 20 >= len(draws)
    basins = watershed(-draws.foreground, labels.astype(np.int32), mask=wide | (labels > 0))
    extents = find_objects(basins)
    low, high, _ = central_ranks(len(draws), INTERVAL)
    records = []
    for record, sizes in zip(plain, areas.T, strict=True):
        matched, ordered = sizes[np.isfinite(sizes)], np.sort(np.nan_to_num(sizes))
        mean = float(matched.mean()) if len(matched) else math.nan
        extent = extents[record.label - 1]
        basin, corner = basins[extent] == record.label, (extent[0].start, extent[1].start)
        records.append(
            replace(
                record,
                probability=len(matched) / len(sizes),
                area_mean=mean,
                area_std=float(matched.std(ddof=1)) if len(matched) > 1 else 0.0 * mean,  # nan where the mean is
                area_low=float(ordered[low - 1]),
                area_high=float(ordered[high - 1]),
                inner=polygons(basin & often[extent], *corner),
                outer=polygons(basin & wide[extent], *corner),
            )
        )
    return records


def in_larger_pixels(
    record: ObjectRecord, factors: tuple[float, float], corner: tuple[int, int] = (0, 0), before: int = 0
) -> ObjectRecord:
    """The object of a part of an image in the pixels of the whole in another resolution.

    corner: of the part, in its own pixels. factors: pixels of the whole in the height and width of one. before: is
    added to the label.
    """
    (down, across), (top, left) = factors, corner
    shift = np.array([left, top])
    row, column = record.centroid
    first, second, bottom, right = record.bbox

    def moved(shape: list[Polygon]) -> list[Polygon]:
        return [[(ring + shift) * (across, down) for ring in polygon] for polygon in shape]

    return replace(
        record,
        label=record.label + before,
        area=round(record.area * down * across),
        equivalent_diameter=record.equivalent_diameter * math.sqrt(down * across),
        centroid=((row + top + 0.5) * down - 0.5, (column + left + 0.5) * across - 0.5),
        bbox=(
            math.floor((first + top) * down),
            math.floor((second + left) * across),
            math.ceil((bottom + top) * down),
            math.ceil((right + left) * across),
        ),
        contour=moved(record.contour),
        inner=moved(record.inner),
        outer=moved(record.outer),
        **{name: getattr(record, name) * down * across for name in ("area_mean", "area_std", "area_low", "area_high")},
    )


def objects_of(mmse: np.ndarray, std: np.ndarray, objects: DrawObjects) -> tuple[np.ndarray, list[ObjectRecord]]:
    """Labels (H, W) of the MMSE's objects, of any class, and what the draws say of them."""
    labels = split_objects(mmse.min(axis=0), objects.threshold, objects.depth, objects.minimum_area)
    return labels, describe_objects(labels, objects, std.max(axis=0))
