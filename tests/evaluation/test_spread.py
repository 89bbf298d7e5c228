"""Scores of draws: of one image by hand, of a run by simulation."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

import evaluation.spread
from evaluation.proper import energy_score, fair_crps, gaussian_crps
from evaluation.raters import fair_ged, ged, iou_matrices
from evaluation.spread import JITTER, SpreadRecord, area_scores, measure_draws, measure_moments, rank_histogram, summary

RANDOM = np.random.default_rng


def masks_of(sdfs: np.ndarray) -> np.ndarray:
    return np.asarray(sdfs.min(axis=1) < 0)


def simulated(images: int, scale: float, n: int = 8, bias: float = 0.0) -> list[SpreadRecord]:
    """Discs whose radius is drawn from one law for the truth and, its spread scaled, for the draws."""
    random, (rows, columns) = RANDOM(0), np.mgrid[:16, :16]
    distance = np.hypot(rows - 8, columns - 8)
    records = []
    for _ in range(images):
        centre = random.uniform(4, 6)
        radii = centre + 0.8 * random.standard_normal(n + 1) * np.array([1.0, *[scale] * n])
        radii[1:] += bias
        sdfs = np.clip((distance - radii[:, None, None]) / 8, -1, 1)[:, None].astype(np.float32)
        records.append(measure_draws(sdfs[1:], sdfs[:1], masks_of(sdfs[:1]), 0.0))
    return records


def test_one_image_by_hand() -> None:
    """Two pixels, two draws: (-.2, .4) and (.2, .8) of a truth (-.2, 1)."""
    draws = np.array([[[[-0.2, 0.4]]], [[[0.2, 0.8]]]])
    truth = np.array([[[[-0.2, 1.0]]]])
    record = measure_draws(draws, truth, masks_of(truth), 0.0)
    assert record.variance == pytest.approx(1.5 * 0.08)
    assert record.squared_error == pytest.approx((0.2**2 + 0.4**2) / 2)
    assert record.fair_crps == pytest.approx((0.2 - 0.2 + 0.4 - 0.2) / 2)
    assert record.fair_crps_band == pytest.approx(0.0)  # the first pixel
    assert record.energy == pytest.approx((0.6 + np.hypot(0.4, 0.2)) / 2 - np.hypot(0.4, 0.4) / 2)
    assert (record.draws, record.areas, record.true_areas, record.pixels) == (2, [1, 0], [1], 2)
    assert record.ged == pytest.approx(2 * 0.5 - 0.5)
    assert record.fair_ged == pytest.approx(2 * 0.5 - 1)
    for std, score in zip(JITTER, record.jitter, strict=True):
        assert score == pytest.approx(gaussian_crps(np.array([0.2, 0.4]), std).mean(), abs=1e-4)
    assert SpreadRecord(**json.loads(json.dumps(asdict(record)))) == record


def test_strips_raters_and_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strip by strip the same; with two raters the mean of what each would give, but for the GED."""
    random = RANDOM(1)
    draws, truths = random.uniform(-1, 1, (5, 2, 9, 7)), random.uniform(-1.3, 1, (2, 2, 9, 7)).clip(-1)
    exact = random.uniform(-1, 1, draws.shape)
    whole = measure_draws(draws, truths, masks_of(truths), 0.0, exact)
    monkeypatch.setattr(evaluation.spread, "STRIP", 5 * 2 * 7 * 2)
    for name, value in asdict(measure_draws(list(draws), truths, masks_of(truths), 0.0, list(exact))).items():
        assert value == pytest.approx(getattr(whole, name))
    single = [measure_draws(draws, truths[k : k + 1], masks_of(truths[k : k + 1]), 0.0) for k in range(2)]
    for name in ("squared_error", "fair_crps", "energy", "true_areas", "jitter"):
        own, one, two = (np.array(getattr(record, name)) for record in (whole, *single))
        assert own == pytest.approx(np.concatenate([one, two]) if name == "true_areas" else (one + two) / 2)
    assert whole.fair_crps == pytest.approx(fair_crps(np.stack([draws] * 2, axis=1), truths).mean())
    other = measure_draws(exact, truths, masks_of(truths), 0.0)
    assert (whole.mask_crps, whole.mask_energy) == pytest.approx((other.fair_crps, other.energy))
    assert other.mask_crps is other.mask_energy is None
    matrices = iou_matrices(masks_of(draws), masks_of(truths))
    assert (whole.ged, whole.fair_ged) == pytest.approx((ged(*matrices), fair_ged(*matrices)))
    with pytest.raises(ValueError, match="one size"):
        measure_draws(draws, truths[:, :1], masks_of(truths), 0.0)


def test_one_draw_is_a_point() -> None:
    draw, truth = RANDOM(2).uniform(-1, 1, (2, 1, 1, 6, 6))
    record = measure_draws(draw, truth, masks_of(truth), 0.0)
    assert (record.variance, record.fair_crps) == pytest.approx((0, np.abs(draw - truth).mean()))
    assert record.energy == pytest.approx(energy_score(draw, truth[0]))
    numbers = summary([record], [np.array([3])], [4])
    assert [numbers["ssr"], numbers["image_area"]["coverage"], numbers["object_area"]["expected"]] == [None] * 3
    assert numbers["object_area"]["crps"] == 1
    assert numbers["skill"] < 0  # noise about it is better


def test_moments_are_a_normal_distribution() -> None:
    random = RANDOM(3)
    std = random.uniform(0.1, 0.4, (1, 200, 200))
    mean = random.uniform(-0.5, 0.5, std.shape)
    truth = (mean + std * random.standard_normal(std.shape))[None]
    numbers = summary([measure_moments(mean.astype(np.float32), std.astype(np.float32), truth)], [], [])
    assert numbers["ssr"] == pytest.approx(1, abs=0.02)
    draws = mean + std * random.standard_normal((30, *std.shape))
    assert numbers["fair_crps"] == pytest.approx(fair_crps(draws, truth[0]).mean(), rel=0.01)
    assert numbers["skill"] > 0.02  # its std differs from pixel to pixel as it should
    assert [numbers["energy"], numbers["fair_ged"], numbers["image_area"]["coverage"]] == [None] * 3


def test_true_draws_are_told_from_others() -> None:
    """SSR 1, coverage as expected and even ranks for the true spread only; the scores are least for it."""
    true, alike, wide, biased = (
        summary(records, [], [])
        for records in (simulated(300, 1), simulated(300, 0.4), simulated(300, 2), simulated(300, 1, bias=-1))
    )
    assert true["ssr"] == pytest.approx(1, abs=0.1)
    assert true["image_area"]["expected"] == pytest.approx(7 / 9)
    assert true["image_area"]["coverage"] == pytest.approx(7 / 9, abs=0.07)
    assert true["image_area"]["p"] > 0.01
    assert alike["ssr"] < 0.5
    assert wide["ssr"] > 1.5
    ends = [numbers["image_area"]["ranks"][0] + numbers["image_area"]["ranks"][-1] for numbers in (alike, wide)]
    assert ends[0] > 120  # 67 of 300 would be right
    assert ends[1] < 30
    assert biased["image_area"]["ranks"][-1] > 100
    for other in (alike, wide, biased):
        assert other["image_area"]["p"] < 1e-4
        for score in ("fair_crps", "fair_crps_band", "energy", "fair_ged"):
            assert other[score] > true[score]
    assert alike["image_area"]["crps"] > true["image_area"]["crps"]
    assert alike["ged"] - true["ged"] < alike["fair_ged"] - true["fair_ged"]  # the usual one likes alike draws more


def test_skill_against_the_best_jitter_of_other_images() -> None:
    records = simulated(40, 1)
    numbers = summary(records, [], [])
    reference = np.mean([record.jitter for record in records], axis=0)
    assert numbers["jitter_of"] == "these images"
    assert numbers["skill"] == pytest.approx(1 - numbers["fair_crps"] / reference.min())
    assert 0 < numbers["skill"] < 1
    other = summary(records, [], [], simulated(5, 3))
    assert other["jitter_of"] == "validation"
    assert other["jitter"] in JITTER
    assert other["skill"] >= numbers["skill"]


def test_lost_objects_and_their_areas_by_hand() -> None:
    numbers = summary(simulated(2, 1), [np.array([0, 0, 4, 6]), np.array([9, 9, 9, 9])], [5, 10])["object_area"]
    assert (numbers["cases"], numbers["lost"], numbers["coverage"], numbers["expected"]) == (2, 0.25, 0.5, 0.6)
    assert numbers["crps"] == pytest.approx(((5 + 5 + 1 + 1) / 4 - 22 / 12 + 1) / 2)
    assert (numbers["ranks"], numbers["p"]) == ([], None)  # too few for a histogram


def test_ranks_by_hand() -> None:
    draws = np.array([1.0, 2.0, 3.0])
    numbers = rank_histogram([draws] * 20, [0.5] * 4 + [1.5] * 8 + [2.5] * 4 + [3.5] * 4)
    assert numbers["ranks"] == [4, 8, 4, 4]
    assert (numbers["chi_square"], numbers["degrees_of_freedom"]) == (pytest.approx((9 + 3) / 5), 3)
    tied: dict[str, Any] = rank_histogram([np.zeros(3)] * 400, [0.0] * 400)  # empty images: any rank
    assert min(tied["ranks"]) > 20
    assert tied["p"] > 0.01


@pytest.mark.parametrize("n", [3, 8, 16, 64])
def test_p_of_true_draws_is_small_as_often_as_it_says(n: int) -> None:
    """Also where areas are whole numbers of few pixels, so that many are tied, and differ from image to image."""
    random = RANDOM(n)
    small = 0
    for seed in range(200):
        areas = random.poisson(random.uniform(0, 9, (80, 1)), (80, n + 1))
        small += rank_histogram(areas[:, 1:], areas[:, 0], seed)["p"] < 0.1  # type: ignore[arg-type]
    assert 8 <= small <= 34  # 20, std 4.2


def test_images_with_other_numbers_of_draws() -> None:
    """draws: auto. Nothing is said of ranges where one of them has a single draw."""
    random = RANDOM(5)
    drawn = [random.standard_normal(n) for n in [4, 9] * 200]
    numbers = area_scores(drawn, random.standard_normal(400).tolist())
    assert numbers["expected"] == pytest.approx((3 / 5 + 8 / 10) / 2)
    assert numbers["coverage"] == pytest.approx(numbers["expected"], abs=0.08)
    assert len(numbers["ranks"]) == 5
    assert area_scores([*drawn, np.zeros(1)], [0.0] * 401)["coverage"] is None
