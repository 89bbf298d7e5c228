from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evaluation.raters import (
    consensus_dice,
    d_max,
    diversity,
    diversity_ratio,
    fair_diversity,
    fair_ged,
    ged,
    hm_iou,
    iou_matrices,
    iou_matrix,
    ncc,
    rater_ece,
    rater_scores,
    volume_crps,
)


def rows(*masks: str) -> np.ndarray:
    """Masks of one row of pixels: rows("110", "000") is (2, 1, 3)."""
    return np.array([[[pixel == "1" for pixel in mask]] for mask in masks])


EMPTY = rows("0000", "0000", "0000")
STACKS = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4)).flatmap(
    lambda n: st.tuples(arrays(np.bool_, (n[0], *n[2:])), arrays(np.bool_, (n[1], *n[2:])))
)
DRAWS, RATERS = rows("110", "001"), rows("111", "010")  # IoU 2/3 1/2, 1/3 0


def test_ged_by_hand() -> None:
    draws, raters = rows("1100", "0000"), rows("1100", "1000")
    np.testing.assert_allclose(iou_matrix(draws, raters), [[1.0, 0.5], [0.0, 0.0]])
    # 2 (0 + .5 + 1 + 1) / 4 - (0 + 1 + 1 + 0) / 4 - (0 + .5 + .5 + 0) / 4
    assert ged(*iou_matrices(draws, raters)) == pytest.approx(1.25 - 0.5 - 0.25)
    assert ged(*iou_matrices(raters, raters)) == 0
    assert ged(*iou_matrices(EMPTY, EMPTY)) == 0
    # 2 (1/3 + 1/2 + 2/3 + 1) / 4 - (1 + 1) / 4 - (2/3 + 2/3) / 4
    assert ged(*iou_matrices(DRAWS, RATERS)) == pytest.approx(5 / 12)
    assert (diversity(iou_matrix(DRAWS, DRAWS)), diversity(iou_matrix(RATERS, RATERS))) == pytest.approx((1 / 2, 1 / 3))


def test_fair_ged_by_hand_and_for_any_number_of_draws() -> None:
    """2 E d(draw, rater) - d of the only pair of draws - d of the only pair of raters; alone they have no pair."""
    draws, raters = rows("1100", "0000"), rows("1100", "1000")
    assert fair_ged(*iou_matrices(draws, raters)) == pytest.approx(2 * (0 + 0.5 + 1 + 1) / 4 - 1 - 0.5)
    assert fair_ged(*iou_matrices(draws[:1], raters[1:])) == pytest.approx(2 * 0.5)
    assert (fair_diversity(iou_matrix(draws, draws)), fair_diversity(iou_matrix(raters, raters))) == (1, 0.5)
    assert fair_diversity(iou_matrix(draws[:1], draws[:1])) is None
    many = np.random.default_rng(0).random((1600, 1, 6)) < 0.5
    for n in (2, 8):
        values = [fair_ged(*iou_matrices(group, many[:1])) for group in many.reshape(-1, n, 1, 6)]
        whole = fair_ged(*iou_matrices(many, many[:1]))
        assert abs(np.mean(values) - whole) < 4 * np.std(values) / len(values) ** 0.5


def test_iou_of_masks_larger_than_a_block() -> None:
    masks = np.random.default_rng(0).random((3, 300, 301)) < 0.3
    expected = [[(a & b).sum() / (a | b).sum() for b in masks] for a in masks]
    np.testing.assert_allclose(iou_matrix(masks, masks), expected, rtol=1e-12)


def test_hm_iou_finds_the_best_matching_not_the_best_pair() -> None:
    # the best pair, 2/3, leaves 0 to the others; across it is 1/2 + 1/3
    assert hm_iou(iou_matrix(DRAWS, RATERS)) == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert hm_iou(iou_matrix(EMPTY, EMPTY[:2])) == 1


def test_hm_iou_replicates_to_the_least_common_multiple() -> None:
    # Six of each. Three copies of 1100: two meet the two of 1100, one meets 1000 (1/2); of 0011 none meets anything.
    draws, raters = rows("1100", "0011"), rows("1100", "1000", "1000")
    assert hm_iou(iou_matrix(draws, raters)) == pytest.approx((1 + 1 + 1 / 2) / 6)
    # One draw stands for both raters.
    assert hm_iou(iou_matrix(draws[:1], raters[:2])) == pytest.approx(3 / 4)


def test_d_max_by_hand() -> None:
    assert d_max(iou_matrix(DRAWS, RATERS)) == pytest.approx((4 / 5 + 2 / 3) / 2)  # 2 * 2 / (2 + 3), 2 * 1 / (2 + 1)
    assert d_max(iou_matrix(rows("1111", "0000"), EMPTY)) == 1


def test_ncc_by_hand() -> None:
    draws = rows("110", "100")  # p = 1, 1/2, 0: the draws differ in the middle
    assert ncc(draws, rows("110")) == pytest.approx(1)  # |y - p| = 0, 1/2, 0
    assert ncc(draws, rows("011")) == pytest.approx(-1)  # 1, 1/2, 1
    assert ncc(draws, rows("110", "011")) == pytest.approx(0)
    # p (1 - p) = 0, 1, 0, 0 and |y - p| = 0, 1, 0, 2 (quarters, halves): covariance 1/16, variances 3/16, 11/16
    assert ncc(rows("1100", "1000"), rows("1001")) == pytest.approx(1 / np.sqrt(33))


def test_ncc_is_undefined_where_the_spread_is_the_same_everywhere() -> None:
    assert ncc(rows("110", "110"), rows("100")) is None
    assert ncc(rows("10", "01"), rows("10")) is None
    assert ncc(EMPTY, EMPTY) is None
    assert ncc(np.repeat(rows("100"), 10, 0), rows("010")) is None


@given(STACKS)
def test_ncc_is_that_of_the_papers_cross_entropies(stacks: tuple[np.ndarray, np.ndarray]) -> None:
    draws, raters = stacks

    def entropy(target: np.ndarray, sample: np.ndarray) -> np.ndarray:
        sample = sample.astype(float)
        return -(target * np.log(sample + 1e-8) + (1 - target) * np.log(1 - sample + 1e-8))

    mean = draws.mean(axis=0)
    spread = np.mean([entropy(mean, s) for s in draws], axis=0).ravel()
    value = ncc(draws, raters)
    if value is None:
        assert spread.std() < 1e-6
    else:
        errors = [np.mean([entropy(y, s) for s in draws], axis=0).ravel() for y in raters]
        assert value == pytest.approx(np.mean([np.corrcoef(spread, e)[0, 1] for e in errors]), abs=1e-6)


def test_consensus_dice_leaves_disputed_pixels_out() -> None:
    raters = rows("1100", "1110")
    # hit, missed, disputed, false
    assert consensus_dice(rows("1011")[0], raters) == pytest.approx(2 / (2 + 1 + 1))
    assert consensus_dice(rows("1100")[0], raters) == consensus_dice(rows("1110")[0], raters) == 1


def test_consensus_dice_of_empty_and_disputed() -> None:
    assert consensus_dice(rows("0100")[0], rows("0100", "0000")) == 1  # background is all that they agree on
    assert consensus_dice(rows("0001")[0], rows("0100", "0000")) == 0
    assert consensus_dice(rows("1100")[0], rows("0101", "1010")) is None


def test_calibration_error_by_hand() -> None:
    draws = rows("1100", "1010")  # p = 1, 1/2, 1/2, 0
    assert rater_ece(draws, rows("1100", "1111")) == pytest.approx([0, (1 + 1) / 4])
    assert rater_ece(draws, EMPTY[:1]) == pytest.approx([(1 + 1) / 4])


def test_calibration_bins_are_closed_below() -> None:
    draws, rater = rows("11", "10"), rows("01")  # p = 1, 1/2
    assert rater_ece(draws, rater, bins=2) == pytest.approx([abs(1.5 - 1) / 2])  # one bin for both
    assert rater_ece(draws, rater, bins=3) == pytest.approx([(1 + 0.5) / 2])
    thirds = rows("10", "00", "00")  # p = 1/3, 0, at an edge that floats miss
    assert rater_ece(thirds, rows("01"), bins=3) == pytest.approx([(1 / 3 + 1) / 2])
    with pytest.raises(ValueError, match="bin"):
        rater_ece(draws, rater, bins=0)


def test_volume_crps_by_hand() -> None:
    draws = rows("1000", "0111")  # 1 and 3 pixels: E|x - x'| = 1
    assert volume_crps(draws, rows("1100")) == pytest.approx(1 - 1 / 2)
    assert volume_crps(draws, rows("0001", "1110")) == pytest.approx(1 - 1 / 2)
    assert volume_crps(rows("0000"), rows("1111", "1100")) == 3  # of one draw, the absolute error
    assert volume_crps(EMPTY, EMPTY) == 0


@given(STACKS)
def test_volume_crps_is_the_squared_distance_of_distribution_functions(stacks: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = (masks.sum(axis=(1, 2)) for masks in stacks)
    steps = np.arange(stacks[0][0].size)  # both functions are constant between whole numbers
    forecast = (x[:, None] <= steps).mean(axis=0)
    expected = np.mean([((forecast - (v <= steps)) ** 2).sum() for v in y])
    assert volume_crps(*stacks) == pytest.approx(expected, abs=1e-9)


@given(STACKS, st.randoms(use_true_random=False))
def test_scores_have_their_ranges_and_no_order(stacks: tuple[np.ndarray, np.ndarray], random: object) -> None:
    draws, raters = stacks
    scores = rater_scores(draws, raters, counts=())
    n = len(draws)
    for name, value in scores.items():
        if value is None:
            assert name in ("ncc", "consensus_dice") or 1 in (n, len(raters))
        elif name == f"ged_{n}":
            assert -1e-9 <= value <= 2
        elif name == "ncc":
            assert -1 - 1e-9 <= value <= 1 + 1e-9
        elif name == "volume_crps":
            assert 0 <= value <= draws[0].size
        else:
            assert 0 <= value <= 1
    assert scores[f"diversity_{n}"] == pytest.approx(diversity(iou_matrix(draws, draws)))
    backwards = rater_scores(draws[::-1], raters[::-1], counts=())
    for name in set(scores) - {f"ece_rater_{k}" for k in range(1, len(raters) + 1)}:
        assert backwards[name] == pytest.approx(scores[name])


@given(STACKS)
def test_draws_like_the_raters_score_best(stacks: tuple[np.ndarray, np.ndarray]) -> None:
    raters = stacks[1]
    n = len(raters)
    scores = rater_scores(raters, raters)
    assert [scores[f"hm_iou_{n}"], scores[f"d_max_{n}"]] == pytest.approx([1, 1])
    assert scores[f"ged_{n}"] == pytest.approx(0, abs=1e-9)
    assert scores["distance"] == scores["rater_diversity"] == scores[f"diversity_{n}"]
    assert scores["consensus_dice"] in (1, None)


def test_one_draw_and_one_rater() -> None:
    assert rater_scores(rows("1110"), rows("0111")) == pytest.approx({
        "ged_1": 2 * (1 - 1 / 2), "hm_iou_1": 1 / 2, "d_max_1": 2 / 3, "diversity_1": 0, "distance": 1 / 2,
        "rater_diversity": 0, "fair_diversity": None, "fair_rater_diversity": None,
        "ncc": None, "volume_crps": 0, "consensus_dice": 2 / 3,
        "ece_rater_1": (1 + 0 + 1) / 4, "ece_raters": 1 / 2,
    })  # fmt: skip


def test_scores_at_fewer_draws_are_means_over_whole_groups() -> None:
    random = np.random.default_rng(0)
    draws, raters = random.random((5, 4, 4)) < 0.5, random.random((3, 4, 4)) < 0.5
    scores = rater_scores(draws, raters, counts=(2, 7, 2))
    assert [name for name in scores if name.startswith("ged")] == ["ged_2", "ged_5"]
    # The fifth draw is left over.
    first, second, whole = (iou_matrices(own, raters) for own in (draws[:2], draws[2:4], draws))
    assert scores["ged_2"] == pytest.approx((ged(*first) + ged(*second)) / 2)
    assert scores["ged_5"] == pytest.approx(ged(*whole))
    for name, score in (("hm_iou", hm_iou), ("d_max", d_max)):
        assert scores[f"{name}_2"] == pytest.approx((score(first[0]) + score(second[0])) / 2)
        assert scores[f"{name}_5"] == pytest.approx(score(whole[0]))
    assert scores["diversity_2"] == pytest.approx((diversity(first[1]) + diversity(second[1])) / 2)


def test_diversity_ratio_by_hand() -> None:
    three = rows("1100", "1000", "0100")  # 1/2, 1/2, 1: 2/3
    alike = rows("1100", "1100")
    images = [rater_scores(three, rows("1100", "1000")), rater_scores(three, alike), rater_scores(alike, three)]
    # Raters of the second image agree, which counts in the mean: (2/3 + 2/3 + 0) / (1/2 + 0 + 2/3)
    assert diversity_ratio(images) == pytest.approx((4 / 3) / (7 / 6))
    assert diversity_ratio([*images, rater_scores(three[:1], three)]) == pytest.approx((4 / 3) / (7 / 6))
    assert diversity_ratio([rater_scores(three, alike)]) is None
    assert diversity_ratio([{"ged_4": 0.1}]) is None  # of a folder from before


def test_scores_are_json_and_ties_are_background() -> None:
    scores = rater_scores(rows("1100", "1000"), rows("1000", "1000"))
    assert json.loads(json.dumps(scores)) == scores
    assert scores["consensus_dice"] == 1  # the second pixel, in one draw of two, is not in the mask
    assert scores["ece_raters"] == pytest.approx((1 / 2) / 4)


@pytest.mark.parametrize("score", [iou_matrix, iou_matrices, ncc, rater_ece, volume_crps, rater_scores])
def test_other_types_and_shapes_are_refused(score: object) -> None:
    good = rows("110")
    for bad in (good.astype(np.uint8), good[0], good[:0]):
        with pytest.raises(ValueError, match="bool"):
            score(good, bad)  # type: ignore[operator]
        with pytest.raises(ValueError, match="bool"):
            score(bad, good)  # type: ignore[operator]
    with pytest.raises(ValueError, match="size"):
        score(good, rows("1100"))  # type: ignore[operator]


def test_other_counts_and_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        rater_scores(DRAWS, RATERS, counts=(4, 0))
    with pytest.raises(ValueError, match="size"):
        consensus_dice(rows("11")[0], RATERS)
