"""Train and score a list of systems on the same data, for a table.

    python -m bench.table --protocol glas64 --set data.raw=/path/to/GlaS

A protocol is a YAML file, or the name of one in bench/protocols: a base config, what all its systems share, the
systems, seeds and ways to sample. Writes OUTPUT.csv, a row as soon as it is there, then OUTPUT.md and OUTPUT.png. Runs
and rows that exist already are used again if their config and data are the same, and what was interrupted goes on.
"""

from __future__ import annotations

from utils.command import run_command

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.protocol import Job, Protocol, Training, jobs_of, read_protocol
from bench.table_page import AT, RATERS, images_of, write_page
from data.description import data_hash
from evaluation.comparison import spread_of
from models.build import denoiser_of
from results.sampled import settings_of
from utils.cli import Parser
from utils.config import load_config
from utils.errors import ConfigError, UsageError
from utils.files import write_text
from utils.reading import read_json
from utils.runs import folders_with, newest_run

ROOT = Path(__file__).resolve().parents[1]
GRACE = 120  # seconds that a command has to save after it was told to stop


class TimeUp(Exception):
    """--seconds are over; what was begun is saved."""


def stop(process: subprocess.Popen[str]) -> None:
    """Ask a command once to save and end, and wait; end it where it takes longer than GRACE."""
    process.terminate()
    try:
        process.communicate(timeout=GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


class Commands:
    """Runs the commands of the toolkit until a deadline.

    seconds: from now; infinity for no deadline.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def __call__(self, script: Sequence[str], training: Training, *more: str, keys: Sequence[str] = ()) -> None:
        """Run a command on the config of a training; `keys` are set besides.

        Raises UsageError with its last line if it fails, TimeUp once it has saved at the deadline.
        """
        sets = [part for override in training.sets(keys) for part in ("--set", override)]
        command = [sys.executable, *script, "--config", training.config, "--quiet", *sets, *more]
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeUp
        # In a session of its own: a signal from the terminal reaches it once, through `stop`.
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
        )
        try:
            _, errors = process.communicate(timeout=None if left == float("inf") else left)
        except subprocess.TimeoutExpired:
            stop(process)
            if process.returncode != 0:
                raise TimeUp from None
            return
        except BaseException:
            stop(process)
            raise
        if process.returncode:
            last = (errors.strip().splitlines() or ["no message"])[-1]
            raise UsageError(f"{Path(script[-1]).name}, {training.resolved().name}: {last}")


def training_seconds(run: Path, batch: int) -> float:
    """Time in training steps, without validations and checkpoints."""
    table = pd.read_csv(run / "metrics.csv").dropna(subset=["images_per_second"])
    steps = table["step"].diff().fillna(table["step"])
    return float((steps * batch / table["images_per_second"]).sum())


def is_same(run: Path, training: Training) -> bool:
    """Whether a run is of this training, on the data that are there now. Keys that came since have their defaults."""
    config = training.resolved()
    try:
        if load_config(run / "config.yaml") != config:
            return False
    except ConfigError:
        return False
    data = read_json(run / "environment.json", dict[str, Any]).get("data")
    return data in (None, data_hash(Path(config.data.root), "train"))


def trained_run(training: Training, call: Commands) -> Path:
    """The finished run of a training: of before, gone on with, or made now."""
    config = training.resolved()
    same = [run for run in folders_with(Path("runs", config.name), "environment.json") if is_same(run, training)]
    if same and (same[-1] / "checkpoints" / f"step_{config.training.steps:08d}.pt").is_file():
        return same[-1]
    begun = bool(same) and (same[-1] / "checkpoints" / "last.pt").is_file()
    call([str(ROOT / "main.py")], training, *(["--resume", str(same[-1])] if begun else []))
    return same[-1] if begun else newest_run(config.name)


def key_of(job: Job, split: str) -> dict[str, Any]:
    """What a row is known by."""
    config = job.resolved()
    # Without defaults: a key that comes later with one changes nothing. Nor does it matter where the archive lies.
    settings = config.model_dump(mode="json", exclude_defaults=True, exclude={"data": {"raw"}})
    told = json.dumps(settings, sort_keys=True)
    digest, root = hashlib.sha256(told.encode()).hexdigest(), Path(config.data.root)
    key = {"split": split, "system": job.system, "sampling": job.sampling, "seed": job.seed, "config_hash": digest[:12]}
    return key | ({"data_hash": data_hash(root, split)[:12]} if root.is_dir() else {})


def sampled_folder(job: Job, run: Path, members: Sequence[Path], split: str, call: Commands) -> Path:
    """The samples of a run: of before, gone on with, or made now."""
    keys = (*job.sampled(members), "sampling.animate=false")
    config = job.training.resolved(keys)
    settings = json.loads(json.dumps(settings_of(config, run / "checkpoints" / "best.pt", split)))
    before = folders_with(run / "samples", "settings.json")
    same = [folder for folder in before if read_json(folder / "settings.json", dict[str, Any]) == settings]
    for folder in same:
        if (folder / "summary.json").is_file():
            return folder
    resume = ["--resume"] if same and same[-1] == before[-1] else []
    call([str(ROOT / "sample.py")], job.training, "--run", str(run), "--split", split, *resume, keys=keys)
    return folders_with(run / "samples", "settings.json")[-1]


def rater_columns(raters: dict[str, float | None], draws: float) -> dict[str, float | None]:
    """Of the `raters` of a summary.json: scores that depend on the number of draws at AT of them, or at all where there
    are fewer."""
    return {
        **{f"{name}_{AT}": raters.get(f"{name}_{min(AT, draws)}") for name in ("ged", "hm_iou", "d_max")},
        **{name: raters.get(name) for name in RATERS},
    }


def scores_of(summary: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a summary.json that a table shows; None for what is not defined."""
    uncertainty, draws = summary["uncertainty"], summary["draws"]
    return {
        **{name: summary["mmse"][name] for name in ("f1", "iou")},
        **{f"single_{name}": summary["single"][name] for name in ("f1", "iou")},
        **{name: summary["objects"][name] for name in ("aji", "pq")},
        # One draw has a std of 0 everywhere.
        **{name: uncertainty[name] if draws > 1 else None for name in ("ause", "ece")},
        "ged": summary.get("raters", {}).get(f"ged_{draws}"),
        **rater_columns(summary.get("raters", {}), draws),
        **spread_of(summary),
        "draws": draws,
        "nfe": summary["nfe_per_draw"],
        **{name: summary[name] for name in ("seconds_per_image", "images", "threshold")},
    }


def row_of(job: Job, split: str, call: Commands) -> dict[str, Any]:
    """Train if need be, sample, and read what came out."""
    run, *members = [trained_run(training, call) for training in (job.training, *job.others)]
    folder = sampled_folder(job, run, members, split, call)
    environment = read_json(folder / "environment.json", dict[str, Any])
    config = job.training.resolved()
    seconds = [training_seconds(path, config.training.batch) for path in (run, *members)]
    return {
        **key_of(job, split),
        "scored_on": images_of(config.data.source, split, pd.read_csv(folder / "metrics.csv")["image_id"].astype(str)),
        **scores_of(read_json(folder / "summary.json", dict[str, Any])),
        "parameters": len(seconds) * sum(p.numel() for p in denoiser_of(config).parameters()),
        "steps": config.training.steps,
        "training_seconds": sum(seconds),
        **{name: environment[name] for name in ("commit", "device")},
        "folder": str(folder),
    }


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Of an OUTPUT.csv; none where it is absent."""
    if not path.is_file():
        return []
    texts = dict.fromkeys(("system", "sampling", "config_hash", "data_hash", "commit"), str)  # may look like numbers
    rows = pd.read_csv(path, dtype=texts)  # type: ignore[arg-type]
    if "split" not in rows:  # of before it was noted
        on = rows.get("scored_on", pd.Series("", rows.index))
        rows.insert(0, "split", np.where(on == "", "", np.where(on.str.contains(", val split"), "val", "test")))
    return rows.to_dict("records")  # type: ignore[return-value]


def known_rows(jobs: Sequence[Job], rows: Sequence[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    """The rows of these jobs that are there, in their order. Where the data are not, any data's will do."""
    found = []
    for job in jobs:
        key = key_of(job, split)
        found += [row for row in rows if all(row.get(name) == value for name, value in key.items())][:1]
    return found


def fill(jobs: Sequence[Job], rows: list[dict[str, Any]], split: str, path: Path, call: Commands) -> None:
    """Add the rows of `jobs` that are missing, to `rows` and to the CSV file, one by one. Raises TimeUp."""
    for job in jobs:
        row = next(iter(known_rows([job], rows, split)), None)
        if row is None:
            if not Path(job.resolved().data.root).is_dir():
                call(["-m", "data.prepare"], job.training)
            row = row_of(job, split, call)
            rows.append(row)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, pd.DataFrame(rows).to_csv(index=False))
        print(f"{job.system}, seed {job.seed}, {job.sampling}: F1 {row['f1']:.4f}, single {row['single_f1']:.4f}, "
              f"{row['nfe']:.4g} evaluations", flush=True)  # fmt: skip


def chosen(jobs: Sequence[Job], names: Sequence[str], protocol: Protocol) -> list[Job]:
    """Those of the systems of --only, in its order. Raises UsageError for others."""
    known = [system.name for system in protocol.systems]
    for name in names:
        if name not in known:
            raise UsageError(f"--only {name}: no such system; {', '.join(known)}")
    return [job for name in names or known for job in jobs if job.system == name]


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("Train and score the systems of a protocol.")
    parser.add_argument("--protocol", required=True, metavar="YAML", help="a file of bench/protocols, or its name")
    parser.add_argument("--output", metavar="PATH", help="without its ending; default: docs/results/<name>, with the "
                        "split where it is not the protocol's")  # fmt: skip
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE",
                        help="override one key of all systems")  # fmt: skip
    parser.add_argument("--split", choices=("val", "test"), help="default: the protocol's")
    parser.add_argument("--small", action="store_true", help="the protocol's small form, for CPUs")
    parser.add_argument("--only", nargs="+", default=[], metavar="SYSTEM", help="only these; other rows stay")
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="N",
                        help="stop by then, with all saved; the same command goes on")  # fmt: skip
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    protocol = read_protocol(args.protocol)
    split = args.split or protocol.split
    suffix = f"{'' if split == protocol.split else f'_{split}'}{'_small' if args.small else ''}"
    output = Path(args.output or f"docs/results/{protocol.name}{suffix}")
    path = output.with_suffix(".csv")
    rows = read_rows(path)
    jobs = list(jobs_of(protocol, args.overrides, args.small))
    wanted = chosen(jobs, args.only, protocol)
    unfinished = False
    try:
        fill(wanted, rows, split, path, Commands(args.seconds))
    except TimeUp:
        unfinished = True
    current = known_rows(jobs, rows, split)
    if current:
        others = [row for row in rows if row["split"] != split]
        write_text(path, pd.DataFrame(rows if args.only else [*others, *current]).to_csv(index=False))
        words = sys.argv[1:] if argv is None else argv
        print(write_page(protocol, args.small, pd.DataFrame(current), words, output))
    if unfinished:
        print(f"{len(known_rows(wanted, rows, split))} of {len(wanted)} rows; time is up, the same command goes on")


if __name__ == "__main__":
    sys.exit(run_command(main))
