"""How near few draws, and one evaluation, come to the mean and std of many draws.

    python -m bench.few_draws --config cfg/dsb2018.yaml --run runs/dsb2018/20261121-131111

Prints, for each way to spread the first noise, the root mean squared error of the mean of few draws (SDF units) against
that of many independent ones of another seed, and its square as a share of independent draws': .5 means that half as
many draws do. Then, of the mean in one evaluation, how far it is from the same mean, the errors and F1 of both, and,
for a network with model.second_moment, the correlation of its std map with that of the draws and the ratio of their
means.
"""

from __future__ import annotations

from utils.command import run_command

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from bench.trained import parser_of, trained_of
from data.scenes import Scene
from evaluation.ensemble import classify
from evaluation.metrics import count_classes, mean_f1
from sampling.drawer import Drawer, drawer_of, whole_draws, whole_moments
from sde.samplers import posterior_mean
from utils.devices import device_name
from utils.errors import UsageError

DESIGNS = ("independent", "antithetic")
COUNTS = (4, 8, 16)
REPEATS = 2  # seeds for each design


def draws_of(drawer: Drawer, scene: Scene, count: int) -> np.ndarray:
    """(count, K, H, W)."""
    return np.stack([draw for _, draw, _ in whole_draws(drawer, [scene], count)])


def squared(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.square(one - two).mean())


def few_draws(drawer: Drawer, scene: Scene, reference: np.ndarray) -> dict[str, float]:
    """Mean squared error of the mean of the first 4, 8 and 16 draws of each design, over seeds."""
    errors = {}
    for design in DESIGNS:
        others = [replace(drawer, seed=drawer.seed + 1 + k, antithetic=design == "antithetic") for k in range(REPEATS)]
        drawn = [draws_of(other, scene, max(COUNTS)) for other in others]
        for n in COUNTS:
            errors[f"{design} {n}"] = float(np.mean([squared(draws[:n].mean(axis=0), reference) for draws in drawn]))
    return errors


def compare_stds(direct: np.ndarray, drawn: np.ndarray, error: np.ndarray) -> dict[str, float]:
    """The std (N,) of one evaluation beside that of many draws and the error of the direct mean, over all pixels."""
    correlations = np.corrcoef([direct, drawn, error])
    return {
        "std_correlation": correlations[0, 1],
        "std_ratio": direct.mean() / drawn.mean(),
        "error_correlation_direct": correlations[0, 2],
        "error_correlation_draws": correlations[1, 2],
    }


def measure(drawer: Drawer, scenes: Sequence[Scene], many: int) -> dict[str, float]:
    """Means over images, root mean squares for what is squared; of the stds what is known of all pixels together."""
    rows, stds = [], []
    for scene in scenes:
        draws = draws_of(drawer, scene, many)
        reference, direct = draws.mean(axis=0), draws_of(replace(drawer, sampler=posterior_mean), scene, 1)[0]
        rows.append({**few_draws(drawer, scene, reference), "rms_difference": squared(direct, reference)})
        truth = scene.target("sdf").mean(axis=0)
        for name, mean in (("direct", direct), ("draws", reference)):
            rows[-1][f"rms_error_{name}"] = squared(mean, truth)
            counts = count_classes(classify(mean, drawer.threshold), scene.labels, len(mean))
            rows[-1][f"f1_{name}"] = mean_f1(counts)
        if drawer.denoiser.second_moment:
            maps = whole_moments(drawer, scene)[1], draws.std(axis=0, ddof=1), np.abs(direct - truth)
            stds.append([values.ravel() for values in maps])
    means = pd.DataFrame(rows).mean()
    result = {str(name): mean if str(name).startswith("f1") else mean**0.5 for name, mean in means.items()}
    return result | (compare_stds(*(np.concatenate(part) for part in zip(*stds, strict=True))) if stds else {})


def main(argv: list[str] | None = None) -> None:
    parser = parser_of("Compare few draws, and one evaluation, with many draws.", images=20)
    parser.add_argument("--draws", type=int, default=128, metavar="N", help="draws to compare with; default: 128")
    args = parser.parse_args(argv)
    trained = trained_of(args)
    if trained is None:
        return
    sampling = trained.config.sampling
    if trained.config.sde.objective == "distribution":
        raise UsageError(
            "the comparison is of draws from noise; with sde.objective: distribution each is one evaluation"
        )
    if args.draws < 2 or sampling.sampler == "mean":
        raise UsageError("the comparison needs --draws of 2 or more and a sampling.sampler that draws, not mean")
    drawer = replace(drawer_of(trained.config, trained.denoiser), antithetic=False)
    result = measure(drawer, trained.scenes, args.draws)
    print(f"{device_name(drawer.device)}, {len(trained.scenes)} images, {sampling.sampler} at {sampling.steps}; "
          f"root mean squared error against {args.draws} draws")  # fmt: skip
    few = {design: [result.pop(f"{design} {n}") for n in COUNTS] for design in DESIGNS}
    for design, errors in few.items():
        columns = zip(COUNTS, errors, few["independent"], strict=True)
        cells = [f"{n:3d} draws {error:.4f} ({(error / plain) ** 2:.2f})" for n, error, plain in columns]
        print(f"{design:12} {'  '.join(cells)}")
    for name, value in result.items():
        print(f"{name:26} {value:.4f}")


if __name__ == "__main__":
    sys.exit(run_command(main))
