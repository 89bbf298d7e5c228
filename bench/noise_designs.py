"""How far the mean of few draws is from the mean of many, for each way to spread the first noise.

    python -m bench.noise_designs --config cfg/quickstart.yaml --run runs/quickstart/20261121-131111

Prints the root mean squared error of the MMSE map (SDF units) against the mean of many draws of another seed, and its
square as a share of independent draws': .5 means that half as many draws do. The posterior mean at t = 1, one
evaluation, is measured against the same reference.
"""

from __future__ import annotations

from utils.command import run_command

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bench.trained import parser_of, trained_of
from data.scenes import Scene
from sampling.drawer import Drawer, drawer_of, whole_draws
from sde.samplers import posterior_mean
from utils.runs import device_name

DESIGNS = ("independent", "antithetic")
COUNTS = (4, 8, 16)
REPEATS = 2  # seeds for each design


def draws_of(drawer: Drawer, scene: Scene, count: int) -> np.ndarray:
    """(count, K, H, W)."""
    return np.stack([draw for _, draw, _ in whole_draws(drawer, [scene], count)])


def squared_errors(drawer: Drawer, scene: Scene, reference: np.ndarray) -> list[float]:
    """Mean squared error of the mean of the first 4, 8 and 16 draws, over seeds."""
    totals = np.zeros(len(COUNTS))
    for repeat in range(REPEATS):
        draws = draws_of(replace(drawer, seed=drawer.seed + 1 + repeat), scene, max(COUNTS))
        totals += [float(np.square(draws[:n].mean(axis=0) - reference).mean()) for n in COUNTS]
    return (totals / REPEATS).tolist()


def measure(drawer: Drawer, scenes: Sequence[Scene], many: int) -> tuple[dict[str, np.ndarray], float]:
    """Mean squared errors for each design, (len(COUNTS),), and that of the posterior mean in one evaluation."""
    designs: dict[str, list[list[float]]] = {design: [] for design in DESIGNS}
    direct = []
    for scene in scenes:
        reference = draws_of(drawer, scene, many).mean(axis=0)
        direct.append(np.square(draws_of(replace(drawer, sampler=posterior_mean), scene, 1)[0] - reference).mean())
        for design, errors in designs.items():
            errors.append(squared_errors(replace(drawer, antithetic=design == "antithetic"), scene, reference))
    return {design: np.mean(errors, axis=0) for design, errors in designs.items()}, float(np.mean(direct))


def main(argv: list[str] | None = None) -> None:
    parser = parser_of("Compare ways to spread the noise of few draws.", images=20)
    parser.add_argument("--many", type=int, default=128, metavar="N", help="draws of the reference; default: 128")
    args = parser.parse_args(argv)
    trained = trained_of(args)
    if trained is None:
        return
    config, scenes = trained.config, trained.scenes
    drawer = replace(drawer_of(config, trained.denoiser), antithetic=False)
    errors, direct = measure(drawer, scenes, args.many)
    print(f"{device_name(drawer.device)}, {len(scenes)} images, {config.sampling.sampler} at {config.sampling.steps}; "
          f"root mean squared error against {args.many} draws")  # fmt: skip
    for design in DESIGNS:
        cells = [
            f"{n:3d} draws {error**0.5:.4f} ({error / plain:.2f})"
            for n, error, plain in zip(COUNTS, errors[design], errors["independent"], strict=True)
        ]
        print(f"{design:12} {'  '.join(cells)}")
    print(f"posterior mean, one evaluation: {direct**0.5:.4f}")


if __name__ == "__main__":
    sys.exit(run_command(main))
