"""Paired differences of runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evaluation.comparison import Run, compare_runs, paired_difference
from tests.pages import SPREAD, SUMMARY, scored_run

FIRST = scored_run("first", {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5})


SECOND = scored_run("second", {"d": 0.5, "c": 0.4, "b": 0.7, "a": 0.8}, {**SUMMARY, "nfe_per_draw": 100})


def test_difference_by_hand() -> None:
    d = paired_difference(np.array([0.5, 0.5, 0.5, 0.5]), np.array([0.8, 0.7, 0.4, 0.5]))
    assert d.mean == pytest.approx(0.1)
    assert (d.images, d.better, d.worse, d.equal) == (4, 0.5, 0.25, 0.25)
    # Ranks +4 +3 -2, the zero's 1 dropped. Of the 8 choices of signs two have 2 or less below zero, and two above.
    assert d.p == pytest.approx(4 / 8)


def test_wilcoxon_of_a_clear_difference() -> None:
    first = np.linspace(0.2, 0.7, 10)
    assert paired_difference(first, first + np.linspace(0.01, 0.1, 10)).p == pytest.approx(2 / 2**10)
    assert paired_difference(first, first + 0.1).p == pytest.approx(2 / 2**10)  # all tied


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        change = random.normal(0.02, 0.1, 40)
        d = paired_difference(np.zeros(40), change)
        assert d.low is not None
        assert d.high is not None
        covered += d.low <= 0.02 <= d.high
        assert d.high - d.low == pytest.approx(2 * 1.96 * change.std() / np.sqrt(40), rel=0.15)
    assert 88 <= covered <= 99


@given(
    st.integers(2, 8).flatmap(
        lambda n: st.tuples(*[arrays(np.float64, n, elements=st.integers(0, 1000).map(lambda k: k / 1000))] * 2)
    )
)
@settings(max_examples=40)
def test_difference_is_finite_ordered_and_reverses(pair: tuple[np.ndarray, np.ndarray]) -> None:
    d, back = paired_difference(*pair), paired_difference(*pair[::-1])
    assert d.better + d.worse + d.equal == pytest.approx(1)
    assert [back.mean, back.better, back.worse] == pytest.approx([-d.mean, d.worse, d.better])
    assert None not in (d.low, d.high, d.p)
    change = pair[1] - pair[0]
    assert change.min() - 1e-9 <= d.low <= d.high <= change.max() + 1e-9  # type: ignore[operator]
    assert 0 <= d.p <= 1  # type: ignore[operator]
    assert back.p == pytest.approx(d.p)
    assert d == paired_difference(*pair)  # the seed is fixed


def test_images_of_one_patient_count_once() -> None:
    """Four copies of each patient's image say no more than one; taken alone they would halve the interval."""
    change = np.random.default_rng(0).normal(0.02, 0.1, 30)
    once, patients = paired_difference(np.zeros(30), change), np.repeat([f"{k:02}" for k in range(30)], 4)
    copies = np.zeros(120), np.repeat(change, 4)
    again, alone = paired_difference(*copies, groups=patients), paired_difference(*copies)
    assert (again.images, again.groups, alone.groups) == (120, 30, 120)
    assert [again.mean, again.low, again.high, again.p] == pytest.approx([once.mean, once.low, once.high, once.p])
    assert alone.high - alone.low == pytest.approx((once.high - once.low) / 2, rel=0.1)  # type: ignore[operator]


@pytest.mark.slow
def test_interval_over_patients_covers_the_mean_as_often_as_it_says() -> None:
    """Patients of 1 to 9 images that differ more between than within them."""
    random = np.random.default_rng(1)
    covered, alone = 0, 0
    for _ in range(100):
        patients = np.repeat(np.arange(30), random.integers(1, 10, 30))
        change = random.normal(0.02, 0.1, 30)[patients] + random.normal(0, 0.03, len(patients))
        d, own = (paired_difference(np.zeros(len(change)), change, groups=g) for g in (patients, None))
        covered += d.low <= 0.02 <= d.high  # type: ignore[operator]
        alone += own.low <= 0.02 <= own.high  # type: ignore[operator]
    assert 85 <= covered <= 99
    assert alone < 75


def test_one_patient_has_no_interval() -> None:
    d = paired_difference(np.zeros(3), np.array([0.1, 0.2, 0.3]), groups=np.array(["a", "a", "a"]))
    assert (d.images, d.groups, d.low, d.high, d.p) == (3, 1, None, None, None)
    assert d.mean == pytest.approx(0.2)


def test_runs_are_compared_over_patients_and_the_note_says_so() -> None:
    first, second = (Run(run.name, run.rows.assign(group=["p", "p", "q", "q"]), run.summary)
                     for run in (FIRST, SECOND))  # fmt: skip
    comparison = compare_runs([first, second])
    assert comparison.differences[0]["f1"].groups == 2
    assert "4 images of 2 patients" in " ".join(comparison.notes)
    assert compare_runs([FIRST, SECOND]).differences[0]["f1"].groups == 4


def test_equal_runs_and_rounding_are_no_difference() -> None:
    scores = np.array([0.1, 0.2, 0.7])
    d = paired_difference(scores, scores + np.array([1e-16, -1e-12, 0]))
    assert (d.mean, d.low, d.high, d.p, d.equal) == (0, 0, 0, 1, 1)
    shifted = paired_difference(scores, scores + 0.1)  # the same everywhere up to rounding: nothing to resample
    assert [shifted.mean, shifted.low, shifted.high] == pytest.approx([0.1, 0.1, 0.1])


def test_one_image_has_no_interval() -> None:
    d = paired_difference(np.array([0.25]), np.array([0.5]))
    assert (d.mean, d.low, d.high, d.p) == (0.25, None, None, None)


@pytest.mark.parametrize(("first", "second"), [([0.1], [0.1, 0.2]), ([], []), ([[0.1]], [[0.1]])])
def test_unpaired_scores_are_refused(first: list[float], second: list[float]) -> None:
    with pytest.raises(ValueError, match="paired"):
        paired_difference(np.array(first), np.array(second))
    with pytest.raises(ValueError, match="finite"):
        paired_difference(np.array([0.1, 0.2]), np.array([0.1, np.nan]))


def test_images_are_paired_by_name_not_by_row() -> None:
    comparison = compare_runs([FIRST, SECOND])
    assert comparison.means[1]["f1"] == pytest.approx(0.6)
    assert comparison.costs[1] == {"draws": 8, "nfe_per_draw": 100, "seconds_per_image": 1.5}
    (differences,) = comparison.differences
    assert {score: d.mean for score, d in differences.items()} == pytest.approx(
        {"f1": 0.1, "iou": 0.05, "single_f1": 0.1, "single_iou": 0.025}
    )
    assert comparison.images.loc["a", ("f1", "second")] == 0.8
    assert comparison.notes == []


def test_differences_are_over_shared_images() -> None:
    other = scored_run("other", {"b": 0.9, "c": 0.7, "x": 0.1})
    comparison = compare_runs([FIRST, SECOND, other])
    d = comparison.differences[1]["f1"]
    assert [d.images, d.mean] == pytest.approx([2, 0.3])
    assert comparison.counts == [4, 4, 3]
    assert comparison.means[2]["f1"] == pytest.approx(1.7 / 3)
    assert list(comparison.images.index) == ["a", "b", "c", "d", "x"]
    assert np.isnan(comparison.images.loc["x", ("f1", "first")])
    (note,) = comparison.notes
    assert "other has 3 images and first has 4; 2 are in both" in note


def test_numbers_as_image_names_and_other_devices() -> None:
    one, two = scored_run("one", {"1": 0.5, "2": 0.6}), scored_run("two", {"1": 0.5, "2": 0.6}, {"device": "cuda"})
    two.rows["image_id"] = two.rows["image_id"].astype(int)
    comparison = compare_runs([one, two])
    assert comparison.differences[0]["f1"].equal == 1
    assert comparison.costs[1] == {"draws": None, "nfe_per_draw": None, "seconds_per_image": None}
    (note,) = comparison.notes
    assert "cpu; cuda" in note


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="two runs"):
        compare_runs([FIRST])
    with pytest.raises(ValueError, match="same name: first, first"):
        compare_runs([FIRST, FIRST])
    with pytest.raises(ValueError, match="other and first have no image in common"):
        compare_runs([FIRST, scored_run("other", {"x": 0.5})])
    twice = Run("twice", pd.concat([FIRST.rows, FIRST.rows[1:2]]), {})
    with pytest.raises(ValueError, match="twice: image b is there twice"):
        compare_runs([FIRST, twice])
    with pytest.raises(ValueError, match="bare: its metrics have no column iou, single_f1"):
        compare_runs([FIRST, Run("bare", FIRST.rows.drop(columns=["iou", "single_f1"]), {})])
    with pytest.raises(ValueError, match="none: no images"):
        compare_runs([FIRST, Run("none", FIRST.rows[:0], {})])
    holes = Run("holes", FIRST.rows.assign(iou=[0.1, np.nan, 0.2, 0.3]), {})
    with pytest.raises(ValueError, match="holes: image b has no iou"):
        compare_runs([FIRST, holes])


def test_scores_of_draws_are_compared_where_all_runs_have_them_and_less_is_better() -> None:
    first, second = (
        Run(run.name, run.rows.assign(fair_crps=run.rows["f1"] / 10, energy=crps), {**SUMMARY, "spread": SPREAD})
        for run, crps in ((FIRST, 0.3), (SECOND, [0.3, np.nan, 0.2, 0.1]))
    )
    comparison = compare_runs([first, second])
    assert list(comparison.scores) == ["f1", "iou", "single_f1", "single_iou", "fair_crps"]  # an energy is missing
    d = comparison.differences[0]["fair_crps"]
    assert [d.mean, d.better, d.worse, d.equal] == pytest.approx([0.01, 0.25, 0.5, 0.25])
    assert comparison.spread[0] == {"ssr": 0.61, "image_coverage": 0.4, "object_coverage": 0.55, "expected": 0.778}
    old = compare_runs([first, SECOND])  # a sampling of before
    assert "fair_crps" not in old.scores
    assert (old.spread[0]["ssr"], old.spread[1]["ssr"]) == (0.61, None)
    assert compare_runs([FIRST, SECOND]).spread == [{}, {}]
