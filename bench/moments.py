"""Mean and std in one evaluation against those of many draws.

    python -m bench.moments --config cfg/quickstart.yaml --run runs/quickstart/20261121-131111

Prints how far the direct mean is from the mean of many draws (root mean square, SDF units), the F1 of both, and, for a
network with model.second_moment, the correlation of its std map with that of the draws and the ratio of their means.
"""

from __future__ import annotations

from utils.command import run_command

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bench.trained import parser_of, trained_of
from data.scenes import Scene
from evaluation.ensemble import Ensemble, classify
from evaluation.metrics import count_classes, mean_f1
from sampling.drawer import Drawer, drawer_of, whole_draws, whole_moments
from sde.samplers import posterior_mean
from utils.errors import UsageError
from utils.runs import device_name


def f1_of(mmse: np.ndarray, scene: Scene, threshold: float) -> float:
    return mean_f1(count_classes(classify(mmse, threshold), scene.labels, len(mmse)))


def against_draws(drawer: Drawer, scenes: Sequence[Scene], draws: int) -> dict[str, float]:
    """Means over images, but for the correlation and the ratio, which are over all pixels."""
    rows, stds = [], []
    for scene in scenes:
        ensemble = Ensemble((drawer.denoiser.mask_channels, *scene.shape), drawer.threshold)
        for _, draw, _ in whole_draws(drawer, [scene], draws):
            ensemble.add(draw)
        mean = next(whole_draws(replace(drawer, sampler=posterior_mean), [scene], 1))[1]
        truth = scene.sdf
        rows.append({
            "rms_difference": float(np.square(mean - ensemble.mmse).mean()),
            "rms_error_direct": float(np.square(mean - truth).mean()),
            "rms_error_draws": float(np.square(ensemble.mmse - truth).mean()),
            "f1_direct": f1_of(mean, scene, drawer.threshold),
            "f1_draws": f1_of(ensemble.mmse, scene, drawer.threshold),
        })  # fmt: skip
        if drawer.denoiser.second_moment:
            stds.append((whole_moments(drawer, scene)[1].ravel(), ensemble.std.ravel(), np.abs(mean - truth).ravel()))
    result = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    result |= {name: value**0.5 for name, value in result.items() if name.startswith("rms")}
    if stds:
        direct, drawn, error = (np.concatenate(part) for part in zip(*stds, strict=True))
        result["std_correlation"] = float(np.corrcoef(direct, drawn)[0, 1])
        result["std_ratio"] = float(direct.mean() / drawn.mean())
        result["error_correlation_direct"] = float(np.corrcoef(direct, error)[0, 1])
        result["error_correlation_draws"] = float(np.corrcoef(drawn, error)[0, 1])
    return result


def main(argv: list[str] | None = None) -> None:
    parser = parser_of("Compare the direct mean and variance with those of many draws.", images=20)
    parser.add_argument("--draws", type=int, default=128, metavar="N", help="draws to compare with; default: 128")
    args = parser.parse_args(argv)
    trained = trained_of(args)
    if trained is None:
        return
    config = trained.config
    if args.draws < 2 or config.sampling.sampler == "mean":
        raise UsageError("the comparison needs --draws of 2 or more and a sampling.sampler that draws, not mean")
    drawer = drawer_of(config, trained.denoiser)
    print(f"{device_name(drawer.device)}, {len(trained.scenes)} images, {args.draws} draws by "
          f"{config.sampling.sampler} at {config.sampling.steps}")  # fmt: skip
    for name, value in against_draws(drawer, trained.scenes, args.draws).items():
        print(f"{name:26} {value:.4f}")


if __name__ == "__main__":
    sys.exit(run_command(main))
