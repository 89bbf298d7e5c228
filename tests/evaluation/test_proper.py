from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import evaluation.proper
from evaluation.proper import energy_score, fair_crps, gaussian_crps, pooled, spread_skill

NUMBERS = st.floats(-100, 100)
ENSEMBLES = st.integers(1, 6).flatmap(lambda n: arrays(np.float64, (n, 3), elements=NUMBERS))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_crps_by_hand() -> None:
    """Draws 0, 1, 3 of a truth 2: mean error (2 + 1 + 1) / 3, mean difference of pairs (1 + 3 + 2) / 3."""
    assert fair_crps(np.array([3.0, 0.0, 1.0]), np.array(2.0)) == pytest.approx(4 / 3 - 2 / 2)
    assert fair_crps(np.array([[3.0, 5.0]]), np.array([2.0, 7.0])) == pytest.approx([1, 2])  # one draw
    assert fair_crps(np.full((4, 1), 2.5), np.array([2.0])) == pytest.approx([0.5])


@given(ENSEMBLES, arrays(np.float64, 3, elements=NUMBERS), st.randoms())
def test_crps_is_the_sum_over_pairs_in_any_order(draws: np.ndarray, truth: np.ndarray, random: object) -> None:
    n = len(draws)
    pairs = np.abs(draws[:, None] - draws).sum(axis=(0, 1)) / max(1, 2 * n * (n - 1))
    scores = fair_crps(draws, truth)
    assert scores == pytest.approx(np.abs(draws - truth).mean(axis=0) - pairs, abs=1e-9)
    random.shuffle(order := list(range(n)))  # type: ignore[attr-defined]
    assert fair_crps(draws[order], truth) == pytest.approx(scores, abs=1e-9)


def test_crps_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 far from zero loses nothing, and a block that is not full is taken too."""
    draws, truth = (1e4 + normal(0, 5, 2, 3, 7)).astype(np.float32), (1e4 + normal(1, 2, 3, 7)).astype(np.float32)
    whole = fair_crps(draws, truth)
    monkeypatch.setattr(evaluation.proper, "BLOCK", 4)
    assert whole.shape == (2, 3, 7)
    np.testing.assert_array_equal(fair_crps(draws, truth), whole)
    np.testing.assert_allclose(fair_crps(draws.astype(np.float64), truth.astype(np.float64)), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(8, 16), (10, 13), (3, 20), (1, 1)])
def test_pooling_keeps_the_mean(size: tuple[int, int]) -> None:
    values = normal(2, 2, *size)
    means = pooled(values)
    assert means.shape == (2, min(8, size[0]), min(8, size[1]))
    assert means.mean(axis=(1, 2)) == pytest.approx(values.mean(axis=(1, 2)))


def test_pooling_by_hand() -> None:
    """Three pixels into two areas of one and a half."""
    assert pooled(np.array([[0.0, 3.0, 6.0]]), 2) == pytest.approx(np.array([[1.0, 5.0]]))
    assert pooled(np.arange(16.0).reshape(4, 4), 2) == pytest.approx(np.array([[2.5, 4.5], [10.5, 12.5]]))


def test_energy_by_hand() -> None:
    """Constant maps of two classes: distances to the truth 5, 0, of each other 5, times the root of the cells."""
    draws = np.ones((2, 2, 16, 16)) * np.array([[3.0, 4.0], [0.0, 0.0]])[:, :, None, None]
    truth = np.zeros((2, 16, 16))
    assert energy_score(draws, truth) == pytest.approx(8 * (2.5 - 2.5))
    assert energy_score(draws[:1], truth) == pytest.approx(8 * 5)
    assert energy_score(draws, truth, cells=1) == pytest.approx(0)
    assert energy_score(draws, truth + 3, cells=4) == pytest.approx(4 * ((1 + 18**0.5) / 2 - 2.5))


@given(st.permutations(range(5)))
def test_energy_does_not_depend_on_the_order(order: list[int]) -> None:
    draws, truth = normal(3, 5, 1, 9, 9), normal(4, 1, 9, 9)
    assert energy_score(draws[order], truth) == pytest.approx(energy_score(draws, truth))


@pytest.mark.parametrize("score", ["crps", "energy"])
def test_expectation_is_the_same_for_any_number_of_draws(score: str) -> None:
    """4,000 draws of 8 truths, scored two, five and forty at a time; the means differ by chance only."""
    draws, truths = normal(5, 4000, 1, 2, 2), 1 + normal(6, 8, 1, 2, 2)

    def of(n: int) -> np.ndarray:
        groups = draws.reshape(-1, n, 1, 2, 2)
        scored = [
            [fair_crps(group, y).mean() if score == "crps" else energy_score(group, y) for group in groups[:100]]
            for y in truths
        ]
        return np.mean(scored, axis=0)

    few, some, many = of(2), of(5), of(40)
    for other in (few, some):
        error = np.hypot(other.std() / len(other) ** 0.5, many.std() / len(many) ** 0.5)
        assert abs(other.mean() - many.mean()) < 4 * error


@pytest.mark.slow
@pytest.mark.parametrize("score", ["crps", "energy"])
def test_the_true_distribution_wins(score: str) -> None:
    """Against draws shrunken and inflated about their mean, and against shifted ones, also with four draws."""
    truths, draws = normal(7, 2000, 1, 2, 2), normal(8, 2000, 4, 1, 2, 2)

    def of(changed: np.ndarray) -> np.ndarray:
        pairs = zip(changed, truths, strict=True)
        return np.array([fair_crps(x, y).mean() if score == "crps" else energy_score(x, y) for x, y in pairs])

    true = of(draws)
    for other in (0.0 * draws, 0.5 * draws, 1.6 * draws, draws + 0.5):
        more = of(other) - true
        assert more.mean() > 3 * more.std() / len(more) ** 0.5


def test_energy_sees_how_pixels_go_together() -> None:
    """Draws with the right spread at every pixel, but their pixels independent where the true ones move as one."""
    truths, together = normal(9, 2000, 1, 1, 1) * np.ones((2, 2)), normal(10, 2000, 6, 1, 1, 1) * np.ones((2, 2))
    single = normal(11, 2000, 6, 1, 2, 2)
    for score, differs in ((lambda x, y: fair_crps(x, y).mean(), False), (energy_score, True)):
        more = np.array([score(a, y) - score(b, y) for a, b, y in zip(single, together, truths, strict=True)])
        assert (more.mean() > 4 * more.std() / len(more) ** 0.5) == differs


@pytest.mark.parametrize("n", [2, 5, 30])
def test_spread_of_true_draws_is_their_skill(n: int) -> None:
    draws, truth = normal(12, n, 20000), normal(13, 20000)
    variance, error = draws.var(axis=0, ddof=1).sum(), ((draws.mean(axis=0) - truth) ** 2).sum()
    assert spread_skill(variance, error, n) == pytest.approx(1, abs=0.03)
    assert spread_skill(variance / 4, error, n) == pytest.approx(0.5, abs=0.015)


def test_no_ratio_of_one_draw_or_without_error() -> None:
    assert spread_skill(0.0, 3.0, 1) is None
    assert spread_skill(1.0, 0.0, 4) is None
    assert spread_skill(2.0, 3.0, 2) == pytest.approx(1)


def test_crps_of_a_normal_distribution_is_that_of_its_draws() -> None:
    draws = 0.3 * normal(16, 40000, 1)
    for error in (-0.4, 0.0, 0.1, 3.0):
        assert gaussian_crps(np.array(error), 0.3) == pytest.approx(fair_crps(draws, np.array([error])), abs=0.01)
    assert gaussian_crps(np.array([-0.4, 0.0]), np.zeros(2)) == pytest.approx([0.4, 0])


def test_other_packages_agree() -> None:
    """scoringrules and, in its form that is not fair, properscoring."""
    draws, truth = normal(14, 6, 4, 4), normal(15, 4, 4)
    scoringrules, properscoring = pytest.importorskip("scoringrules"), pytest.importorskip("properscoring")
    theirs = scoringrules.crps_ensemble(truth, draws, m_axis=0, estimator="fair")
    np.testing.assert_allclose(fair_crps(draws, truth), theirs, atol=1e-12)
    own = np.abs(draws[:, None] - draws).sum(axis=(0, 1)) / 2
    theirs = properscoring.crps_ensemble(truth, draws, axis=0)
    np.testing.assert_allclose(fair_crps(draws, truth) + own / (6 * 5) - own / 36, theirs, atol=1e-12)
    np.testing.assert_allclose(gaussian_crps(truth, 0.3), scoringrules.crps_normal(truth, 0, 0.3), atol=1e-12)
    theirs = scoringrules.es_ensemble(truth.ravel(), draws.reshape(6, -1), estimator="fair")
    assert energy_score(draws[:, None], truth[None]) == pytest.approx(float(theirs))


@pytest.mark.parametrize("score", [fair_crps, energy_score])
def test_other_shapes_are_refused(score: object) -> None:
    for draws, truth in (((0, 1, 4, 4), (1, 4, 4)), ((2, 1, 4, 4), (1, 4, 5)), ((4, 4), (1, 4, 4))):
        with pytest.raises(ValueError, match="expected"):
            score(np.zeros(draws), np.zeros(truth))  # type: ignore[operator]
