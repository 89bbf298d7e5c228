"""The one-line API."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sampling.segmenter import Result, Segmenter
from tests.helpers import Workspace, picture


def test_the_api_of_one_line_gives_the_same(trained: Workspace, inbox: Path) -> None:
    assert trained("sample", "--input", "inbox", "--output", "again").code == 0
    result = Segmenter.from_run(trained.run_folder())(inbox / "grey.png", key="grey")
    assert isinstance(result, Result)
    np.testing.assert_allclose(result.mmse[0], np.load("again/grey/mmse.npy"), atol=1e-5)
    np.testing.assert_allclose(result.std[0], np.load("again/grey/std.npy"), atol=1e-5)
    assert result.mask.shape == (40, 56)
    assert result.draws == 3
    from_array = Segmenter.from_run(trained.run_folder())(picture(40, 56), key="grey")
    np.testing.assert_allclose(from_array.mmse, result.mmse, atol=1e-5)
    with pytest.raises(ValueError, match="uint8"):
        Segmenter.from_run(trained.run_folder())(np.zeros((4, 4)))


def test_a_test_image_is_predicted_as_it_was_sampled(trained: Workspace) -> None:
    """By the direct mean, which needs no noise: the picture of the archive and the prepared one are the same here."""
    options = ["--set", "sde.prior_share=0.5", "--set", "sampling.sampler=mean"]
    assert trained("main", *options).code == 0
    assert trained("sample", *options).code == 0
    folder = sorted((trained.run_folder() / "samples").iterdir())[-1]
    segmenter = Segmenter.from_run(trained.run_folder())
    for key in pd.read_csv(folder / "metrics.csv", dtype=str)["image_id"]:
        result = segmenter(trained.path / "prepared" / "Test_patches" / f"{key}.png")
        np.testing.assert_allclose(result.mmse[0], np.load(folder / key / "mmse.npy"), atol=1e-5)


@pytest.mark.parametrize("size", ["null", "[24, 40]"])
def test_resizing_goes_both_ways(workspace: Workspace, size: str) -> None:
    options = ["--set", f"data.size={size}"]
    assert workspace("prepare", *options).code == 0
    assert workspace("main", *options).code == 0
    result = Segmenter.from_run(workspace.run_folder())(picture(50, 61))
    assert result.mmse.shape == (1, 50, 61)
    assert result.instances.shape == result.probability.shape == (50, 61)
