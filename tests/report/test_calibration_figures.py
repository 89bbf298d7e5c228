"""Reliability diagram and sparsification curve."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluation.calibration import measure, summary
from report.calibration_figures import rank_histograms, reliability_diagram, sparsification_curve, spread_skill_chart
from tests.pages import SPREAD, image_record


@pytest.mark.parametrize("draw", [reliability_diagram, sparsification_curve, spread_skill_chart])
def test_figures_are_small_pictures_even_without_data(draw: Any) -> None:
    truth, zeros = np.zeros((4, 4), bool), np.zeros((4, 4))
    perfect = measure(zeros + 1, zeros, zeros + 1, zeros, truth, truth)
    for records in ([image_record(0), image_record(1)], [perfect], []):
        file = io.BytesIO()
        draw(json.loads(json.dumps(summary(records)))).savefig(file, dpi=100)
        with Image.open(file) as picture:
            assert picture.size == (440, 360)


def test_figures_show_the_numbers() -> None:
    numbers = summary([image_record(0)])
    axes = reliability_diagram(numbers).axes[0]
    np.testing.assert_allclose(
        np.asarray(axes.lines[1].get_ydata(), float), np.asarray(numbers["reliability_frequency"])
    )
    curves = sparsification_curve(numbers).axes[0].lines
    np.testing.assert_allclose(np.asarray(curves[1].get_ydata(), float), np.asarray(numbers["sparsification_std"]))
    points = spread_skill_chart(numbers).axes[0].lines[1]
    np.testing.assert_allclose(np.asarray(points.get_xdata(), float), np.asarray(numbers["spread_std"]))
    np.testing.assert_allclose(np.asarray(points.get_ydata(), float), np.asarray(numbers["spread_error"]))


def test_ranks_are_bars_where_there_are_enough() -> None:
    images, objects = rank_histograms(SPREAD).axes
    assert [bar.get_height() for bar in images.containers[0]] == SPREAD["image_area"]["ranks"]
    assert not objects.containers
    assert "too few" in objects.get_title()
