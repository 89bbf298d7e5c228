from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import gaussian_filter, generate_binary_structure, label
from skimage.morphology import h_minima, local_minima, reconstruction
from skimage.segmentation import watershed

from evaluation.instances import DrawObjects, describe_objects, polygons, signed_area, split_objects
from evaluation.object_scores import object_scores


def disc(row: float, column: float, radius: float, size: int = 40, truncation: float = 10.0) -> np.ndarray:
    """SDF of a disc, in truncated units."""
    y, x = np.mgrid[:size, :size]
    return np.clip((np.hypot(y - row, x - column) - radius) / truncation, -1, 1)


def twins() -> np.ndarray:
    """Two discs of radius 8, 12 pixels apart: minima near -0.8, pass at -0.2."""
    return np.minimum(disc(20, 13, 8), disc(20, 25, 8))


def packed(*sdfs: np.ndarray, depth: float | None = 0.1) -> DrawObjects:
    draws = DrawObjects(0.0, depth)
    for sdf in sdfs:
        draws.add(sdf)
    return draws


def test_touching_discs_are_split_at_their_waist() -> None:
    labels = split_objects(twins(), 0.0, 0.1)
    assert labels.dtype == np.int32
    assert set(np.unique(labels)) == {0, 1, 2}
    np.testing.assert_array_equal(labels > 0, twins() < 0)
    assert labels[20, 13] != labels[20, 25]
    for columns, centre in ((slice(0, 19), 13), (slice(20, None), 25)):  # column 19 is equally near to both
        half = labels[:, columns]
        assert set(half[half > 0]) == {labels[20, centre]}


@pytest.mark.parametrize(("depth", "objects"), [(None, 1), (0, 1), (0.5, 2), (0.59, 2), (0.61, 1)])
def test_depth_decides_about_a_waist(depth: float | None, objects: int) -> None:
    """The minima lie 0.6 below the pass."""
    assert split_objects(twins(), 0.0, depth).max() == objects


def test_minimum_exactly_as_deep_as_asked_is_an_object() -> None:
    row = np.array([[-0.5, -0.25, -0.75]])
    assert split_objects(row, 0.0, 0.25).max() == 2
    assert split_objects(row, 0.0, 0.2501).max() == 1


def test_shallow_object_stays() -> None:
    sdf = disc(10, 10, 6)
    sdf[30, 30] = -0.01
    assert split_objects(sdf, 0.0, 0.3)[30, 30] > 0
    assert split_objects(sdf, 0.0, 0.3).max() == 2
    assert split_objects(sdf, 0.0, 0.3, minimum_area=1).max() == 2
    without = split_objects(sdf, 0.0, 0.3, minimum_area=2)
    assert (without[30, 30], without.max()) == (0, 1)


def test_flat_and_empty_and_full() -> None:
    assert not split_objects(np.ones((5, 6)), 0.0, 0.1).any()
    np.testing.assert_array_equal(split_objects(-np.ones((5, 6)), 0.0, 0.1), np.ones((5, 6)))
    assert split_objects(-np.ones((1, 1)), 0.0, 0.1).tolist() == [[1]]
    assert split_objects(np.ones((0, 4)), 0.0, 0.1).shape == (0, 4)


def test_pixels_that_meet_at_a_corner_are_apart() -> None:
    sdf = np.where(np.eye(3, dtype=bool), -1.0, 1.0)
    for depth in (None, 0.1):
        assert split_objects(sdf, 0.0, depth).max() == 3


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.25, 0.45]), st.sampled_from([0.0, 1.0, 2.0]), st.booleans())
def test_objects_are_those_of_the_h_minima(seed: int, depth: float, smooth: float, flat: bool) -> None:
    """On random fields, with plateaus or not: an object for each regional minimum of the reconstruction of sdf + depth.

    scikit-image's own h_minima counts minima of equal height apart, whatever lies between them.
    """
    field = gaussian_filter(np.random.default_rng(seed).normal(size=(24, 30)), smooth)
    sdf = field / np.abs(field).max()
    if flat:
        sdf = np.maximum(sdf, -0.5).round(1)
    labels = split_objects(sdf, 0.1, depth)
    foreground = sdf < 0.1
    np.testing.assert_array_equal(labels > 0, foreground)
    assert set(np.unique(labels)) - {0} == set(range(1, labels.max() + 1))
    walled = np.pad(np.where(foreground, sdf, 9.0), 1, constant_values=9.0)
    filled = reconstruction(walled + depth, walled, method="erosion", footprint=generate_binary_structure(2, 1))
    markers, count = label(local_minima(filled, connectivity=1)[1:-1, 1:-1] & foreground)
    assert labels.max() == count
    deepest = [labels.flat[np.where(markers == m, sdf, 9.0).argmin()] for m in range(1, count + 1)]
    assert sorted(deepest) == list(range(1, count + 1))
    for value in range(1, labels.max() + 1):
        assert label(labels == value)[1] == 1


@pytest.mark.parametrize("seed", range(4))
def test_borders_are_those_of_a_flooding(seed: int) -> None:
    """scikit-image floods pixel by pixel from the h-minima."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(size=(120, 120)), 4)
    sdf = field / np.abs(field).max() + rng.normal(0, 0.01, field.shape)
    foreground, cross = sdf < 0.1, generate_binary_structure(2, 1)
    markers, count = label(h_minima(np.where(foreground, sdf, 9.0), 0.1, footprint=cross) * foreground)
    scores = object_scores(watershed(sdf, markers, mask=foreground), split_objects(sdf, 0.1, 0.1))
    assert count > 15
    assert scores["dq"] == 1
    assert scores["dice"] > 0.99


def test_values_that_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="finite"):
        split_objects(np.array([[np.nan, 0.0]]), 0.0, 0.1)
    with pytest.raises(ValueError, match="2-d"):
        split_objects(np.zeros((1, 2, 2)), 0.0, 0.1)
    with pytest.raises(ValueError, match="depth"):
        split_objects(np.zeros((2, 2)), 0.0, -0.1)


def test_draws_come_back_as_they_were_split() -> None:
    first, second = twins(), disc(20, 20, 5)
    draws = packed(first, second)
    assert len(draws) == 2
    for labels, sdf in zip(draws, (first, second), strict=True):
        np.testing.assert_array_equal(labels, split_objects(sdf, 0.0, 0.1))
    np.testing.assert_array_equal(draws.foreground, (first < 0).astype(int) + (second < 0))
    with pytest.raises(ValueError, match="draw is"):
        draws.add(np.zeros((3, 3)))


def test_probability_and_area_of_an_object_that_comes_and_goes() -> None:
    """Left disc in all four draws, with radius 8, 8, 9, 9; the right one in one draw, and once too small to match."""
    nothing = np.ones((40, 40))
    draws = packed(
        np.minimum(disc(12, 12, 8), disc(30, 30, 5)),
        disc(12, 12, 8),
        np.minimum(disc(12, 12, 9), disc(30, 30, 2)),
        np.minimum(disc(12, 12, 9), nothing),
    )
    labels = split_objects(np.minimum(disc(12, 12, 8), disc(30, 30, 5)), 0.0, 0.1)
    std = np.where(labels == 1, 0.25, 0.5)
    one, two = describe_objects(labels, draws, std)
    small, large = (disc(12, 12, 8) < 0).sum(), (disc(12, 12, 9) < 0).sum()
    assert (one.label, two.label) == (1, 2)
    assert one.area == small
    assert one.equivalent_diameter == pytest.approx(np.sqrt(4 * small / np.pi))
    assert one.centroid == pytest.approx((12, 12))
    assert one.bbox == (5, 5, 20, 20)
    assert (one.probability, one.mean_std) == (1.0, 0.25)
    assert one.area_mean == pytest.approx((small + large) / 2)
    assert one.area_std == pytest.approx(np.std([small, small, large, large], ddof=1))
    assert (two.probability, two.area_std, two.mean_std) == (0.25, 0.0, 0.5)
    assert two.area_mean == two.area
    assert describe_objects(labels, draws)[0].mean_std is None


def test_object_of_no_draw() -> None:
    labels = split_objects(disc(20, 20, 6), 0.0, 0.1)
    (record,) = describe_objects(labels, packed(np.ones((40, 40))))
    assert record.probability == 0
    assert np.isnan([record.area_mean, record.area_std]).all()
    assert (record.inner, record.outer) == ([], [])
    assert len(record.contour) == 1


def test_two_halves_of_an_object_do_not_match_it() -> None:
    """Each covers half of it exactly, and a match needs more."""
    sdf = np.minimum(disc(20, 13, 8), disc(20, 26, 8))
    (record,) = describe_objects(split_objects(sdf, 0.0, None), packed(sdf, depth=0.1))
    assert record.probability == 0


def test_band_holds_ninety_percent() -> None:
    """Radii 5.5 to 14.5, 20 draws: 19 reach the second smallest disc, all but none the largest."""
    radii = 5.5 + np.arange(20) * 0.5
    draws = packed(*[disc(20, 20, r) for r in radii])
    (record,) = describe_objects(split_objects(disc(20, 20, 10), 0.0, 0.1), draws)
    (inner,), (outer,) = record.inner, record.outer
    for ring, radius in ((inner[0], radii[1]), (outer[0], radii[-1])):
        assert signed_area(ring) == pytest.approx((disc(20, 20, radius) < 0).sum(), rel=0.04)
        np.testing.assert_allclose(np.hypot(*(ring - 20.5).T), radius, atol=1.0)


def test_bands_of_neighbours_do_not_mix() -> None:
    """The objects touch in a few draws; the outer bands divide the pixels of these draws, half each."""
    apart = np.minimum(disc(14, 13, 6), disc(25, 26, 6))
    touching = np.minimum(disc(14, 13, 10), disc(25, 26, 10))
    records = describe_objects(split_objects(apart, 0.0, 0.1), packed(*[apart] * 15, *[touching] * 5))
    areas = [signed_area(record.outer[0][0]) for record in records]
    assert areas[0] == pytest.approx(areas[1], rel=0.05)
    assert sum(areas) == pytest.approx((touching < 0).sum(), rel=0.05)
    assert min(areas) > 1.5 * signed_area(records[0].contour[0][0])


def test_gaps_between_labels_are_kept() -> None:
    labels = np.zeros((6, 6), np.int64)
    labels[1:3, 1:3], labels[4:, 4:] = 3, 7
    records = describe_objects(labels, packed(np.where(labels > 0, -1.0, 1.0)))
    assert [(r.label, r.area, r.probability) for r in records] == [(3, 4, 1.0), (7, 4, 1.0)]
    assert describe_objects(np.zeros((6, 6), int), packed(np.ones((6, 6)))) == []


def test_descriptions_need_draws_of_one_shape() -> None:
    labels = np.ones((4, 4), int)
    with pytest.raises(ValueError, match="no draws"):
        describe_objects(labels, DrawObjects(0.0, 0.1))
    with pytest.raises(ValueError, match="draws are"):
        describe_objects(labels, packed(np.ones((4, 5))))
    with pytest.raises(ValueError, match="std are"):
        describe_objects(labels, packed(np.ones((4, 4))), np.ones((4, 5)))
    with pytest.raises(ValueError, match="integer"):
        describe_objects(np.ones((4, 4)), packed(np.ones((4, 4))))


def test_single_pixel_is_a_diamond_about_its_centre() -> None:
    ((ring,),) = polygons(np.ones((1, 1), bool), top=3, left=5)
    assert {tuple(point) for point in ring} == {(5.0, 3.5), (6.0, 3.5), (5.5, 3.0), (5.5, 4.0)}
    assert signed_area(ring) == 0.5


def test_hole_is_an_inner_ring() -> None:
    region = np.ones((9, 9), bool)
    region[3:6, 3:6] = False
    ((outside, hole),) = polygons(region)
    assert signed_area(outside) == 81 - 4 / 8
    assert signed_area(hole) == -(9 - 4 / 8)


@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_polygons_of_any_region(region: np.ndarray) -> None:
    """Valid, closed, one for each connected part, and around the centres of the region's pixels and of no others."""
    shapely = pytest.importorskip("shapely")
    found = polygons(region)
    assert len(found) == label(region)[1]
    shapes = [shapely.Polygon(rings[0], rings[1:]) for rings in found]
    for rings, shape in zip(found, shapes, strict=True):
        assert all((ring[0] == ring[-1]).all() for ring in rings)
        assert [np.sign(signed_area(ring)) for ring in rings] == [1, *[-1] * (len(rings) - 1)]
        assert shape.is_valid
    y, x = np.mgrid[: region.shape[0], : region.shape[1]] + 0.5
    union = shapely.union_all(shapes)
    np.testing.assert_array_equal(shapely.contains_xy(union, x.ravel(), y.ravel()), region.ravel())
    assert abs(union.area - region.sum()) <= 0.5 * region.sum()
