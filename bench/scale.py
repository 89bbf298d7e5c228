"""What several processes cost: bytes of a training step between them, and images a second of 1, 2, ... processes.

    python -m data.prepare --config cfg/quickstart.yaml
    python -m bench.scale --config cfg/quickstart.yaml --processes 1 2

Every process has the same share of a batch that grows with their number (weak scaling): a ratio of N would be perfect.
The trainings stay in runs/scale.
"""

from __future__ import annotations

from utils.command import run_command

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch

from bench.charts import markdown
from models.build import denoiser_of
from utils.cli import common_parser, read_config
from utils.errors import UsageError, cut
from utils.runs import newest_run

ROOT = Path(__file__).resolve().parents[1]
RUNNER = ("-m", "torch.distributed.run", "--standalone")


def images_per_second(processes: int, words: list[str]) -> float:
    """Median over the later half of the steps."""
    start = [sys.executable, *RUNNER, f"--nproc-per-node={processes}"] if processes > 1 else [sys.executable]
    # As torchrun does for several: one thread each.
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    ended = subprocess.run([*start, str(ROOT / "main.py"), *words], capture_output=True, text=True, env=environment)
    if ended.returncode:
        errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        raise UsageError(f"{processes} processes: {cut(errors[0] if errors else ended.stderr, 300)}")
    speeds = pd.read_csv(newest_run("scale") / "metrics.csv")["images_per_second"].dropna()
    return float(speeds.iloc[len(speeds) // 2 :].median())


def main(argv: list[str] | None = None) -> None:
    parser = common_parser("Measure what several processes of a training cost.")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2], help="to compare; default: 1 2")
    parser.add_argument("--batch", type=int, default=8, help="images of each process in a step; default: 8")
    parser.add_argument("--steps", type=int, default=40, help="of each training; default: 40")
    args = parser.parse_args(argv)
    config = read_config(args)
    if config is None:
        return
    for option, values in (("batch", [args.batch]), ("steps", [args.steps]), ("processes", args.processes)):
        if min(values, default=1) < 1:
            raise UsageError(f"--{option} {' '.join(map(str, values))}: 1 or more are expected")
    with torch.device("meta"):
        count = sum(p.numel() for p in denoiser_of(config).parameters())
    print(f"{config.name}: {count / 1e6:.2f} M parameters, all-reduce of {4 * count / 2**20:.1f} MiB a step\n")
    shared = ["--config", args.config, "--device", args.device, "--quiet"]
    constant = [f"training.steps={args.steps}", "training.log_every=1", f"training.validate_every={args.steps + 1}"]
    constant += ["sde.mean_first=0"] if config.sde.objective == "distribution" else []
    speeds: list[float] = []
    rows = []
    for processes in args.processes:
        own = [*args.overrides, *constant, "name=scale", f"training.batch={args.batch * processes}"]
        speeds.append(images_per_second(processes, [*shared, *(word for value in own for word in ("--set", value))]))
        rows.append({"processes": str(processes), "batch": str(args.batch * processes),
                     "images a second": f"{speeds[-1]:.3g}", "ratio": f"{speeds[-1] / speeds[0]:.2f}"})  # fmt: skip
    if rows:
        print("\n".join(markdown(rows)))


if __name__ == "__main__":
    sys.exit(run_command(main))
