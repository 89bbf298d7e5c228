"""The embedded data set."""

from __future__ import annotations

import pickle
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.color import rgb2gray
from skimage.filters import threshold_otsu

from data.sources.phantom import draw_sample
from data.sources.record import Sample
from evaluation.metrics import count
from tests.commands import listed
from utils.data_schema import PhantomConfig


@pytest.fixture(scope="module")
def glands() -> list[Sample]:
    return [draw_sample(PhantomConfig(), i) for i in range(60)]


@pytest.fixture(scope="module")
def nuclei() -> list[Sample]:
    return [draw_sample(PhantomConfig(objects="nuclei"), i) for i in range(60)]


def touching(labels: np.ndarray) -> bool:
    pairs = [(labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])]
    return any(((a != b) & (a > 0) & (b > 0)).any() for a, b in pairs)


def test_a_sample_is_its_seed_and_index() -> None:
    one, again = (draw_sample(PhantomConfig(), 5) for _ in range(2))
    with_raters = draw_sample(PhantomConfig(raters=4, train=3), 5)
    for other in (again, with_raters):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.mask, other.mask)
    assert not np.array_equal(one.image, draw_sample(PhantomConfig(), 6).image)
    assert not np.array_equal(one.image, draw_sample(PhantomConfig(seed=1), 5).image)


@pytest.mark.parametrize("objects", ["glands", "nuclei"])
def test_otsu_is_not_enough(objects: str, request: pytest.FixtureRequest) -> None:
    """Thresholding the grey image, either way round, plain or smoothed, stays under F1 0.7."""
    samples = request.getfixturevalue(objects)
    for blur in (0.0, 1.0, 2.0):
        for dark in (True, False):
            scores = []
            for sample in samples:
                grey = gaussian_filter(rgb2gray(sample.image), blur)
                scores.append(count((grey <= threshold_otsu(grey)) == dark, sample.mask).f1)
            assert np.mean(scores) < 0.7


def test_calling_everything_a_gland_is_not_enough(glands: list[Sample]) -> None:
    shares = np.array([sample.mask.mean() for sample in glands])
    assert 0.3 < shares.mean() < 0.5
    assert 0.05 < shares.min() < shares.max() < 0.75


def test_labels_touch_and_agree_with_the_mask(glands: list[Sample], nuclei: list[Sample]) -> None:
    for samples in (glands, nuclei):
        for sample in samples:
            assert sample.instances is not None
            assert sample.instances.dtype == np.uint16
            assert sample.image.dtype == np.uint8
            assert sample.image.shape == (64, 64, 3)
            np.testing.assert_array_equal(sample.instances > 0, sample.mask)
        share = np.mean([touching(sample.instances) for sample in samples if sample.instances is not None])
        assert share > 0.3


def test_stain_varies_between_images(glands: list[Sample]) -> None:
    means = np.array([sample.image.reshape(-1, 3).mean(0) for sample in glands])
    assert (means.std(0) > 6).all()


def test_raters_disagree_about_the_same_objects() -> None:
    overlaps = []
    for i in range(20):
        sample = draw_sample(PhantomConfig(raters=4), i)
        assert len(sample.raters) == 4
        overlaps += [count(a, b).iou for a, b in combinations(sample.raters, 2)]
        assert all(count(rater, sample.mask).f1 > 0.75 for rater in sample.raters)
    assert 0.6 < np.mean(overlaps) < 0.98
    assert np.std(overlaps) > 0.01


@pytest.mark.parametrize("size", [32, 96, 257])
def test_other_sizes(size: int) -> None:
    sample = draw_sample(PhantomConfig(size=size), 0)
    assert sample.image.shape == (size, size, 3)
    assert sample.mask.any()


def test_records_are_split_and_picklable() -> None:
    records = listed("phantom", Path(), phantom={"train": 5, "val": 2, "test": 3}).records
    assert [r.split for r in records] == ["train"] * 5 + ["val"] * 2 + ["test"] * 3
    assert len({r.image_id for r in records}) == 10
    copy = pickle.loads(pickle.dumps(records[7]))
    sample = copy.read()
    assert sample is not None
    np.testing.assert_array_equal(sample.image, draw_sample(PhantomConfig(), 7).image)
