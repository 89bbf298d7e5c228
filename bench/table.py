"""Train and score a list of systems on the same data, for a table.

    python -m bench.table --protocol bench/protocols/systems_phantom.yaml --output docs/results/systems_phantom

A protocol is a YAML file: a base config, what all its systems share, the systems, seeds and ways to sample. Writes
OUTPUT.csv, a row as soon as it is there, then OUTPUT.md and, where rows differ in evaluations, OUTPUT.png. Runs and
rows that exist already are used again if their config and data are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.charts import f1_over_nfe
from data.preparation import file_hash
from utils.build import denoiser_of
from utils.cli import run_command
from utils.config import dump_config, load_config
from utils.errors import UsageError
from utils.runs import by_time, newest_run, write_text
from utils.schema import Config

ROOT = Path(__file__).resolve().parents[1]


class Entry(BaseModel):
    """A system, or a way to sample: its name, and the keys that it sets."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")
    set: list[str] = []
    config: str | None = None  # of a system, instead of the protocol's
    sample_once: list[str] | None = None  # of a system: the only way it samples


class Protocol(BaseModel):
    """What is compared; `small` holds the keys set besides by --small."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(pattern=r"^[a-z0-9_]+$")
    title: str
    config: str
    set: list[str] = []
    small: list[str] = []
    split: Literal["val", "test"] = "test"
    seeds: list[int] = [0]
    systems: list[Entry] = Field(min_length=1)
    samplings: list[Entry] = Field(min_length=1)


@dataclass(frozen=True)
class Job:
    """One trained network and one way to sample from it."""

    system: str
    seed: int
    sampling: str
    config: str
    training: tuple[str, ...]
    drawing: tuple[str, ...]

    def resolved(self, *, sampled: bool) -> Config:
        """The config it is trained with, or sampled with."""
        return load_config(self.config, [*self.training, *(self.drawing if sampled else ())])


def read_protocol(path: Path) -> Protocol:
    """Raises UsageError if the file is not a protocol."""
    try:
        return Protocol(**yaml.safe_load(path.read_text()))
    except (yaml.YAMLError, TypeError, OSError) as error:
        raise UsageError(f"--protocol {path}: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"--protocol {path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def jobs_of(protocol: Protocol, extra: list[str], small: bool) -> Iterator[Job]:
    """Every system with every seed and way to sample."""
    for seed in protocol.seeds:
        for system in protocol.systems:
            name = f"{protocol.name}{'_small' if small else ''}-{system.name.replace(' ', '_')}-{seed}"
            shared = [*protocol.set, *(protocol.small if small else []), *extra, *system.set]
            training = (*shared, f"name={name}", f"seed={seed}")
            ways = protocol.samplings
            if system.sample_once is not None:
                ways = [Entry(name="one evaluation", set=system.sample_once)]
            for way in ways:
                yield Job(system.name, seed, way.name, system.config or protocol.config, training, tuple(way.set))


def call(script: tuple[str, ...], job: Job, overrides: tuple[str, ...], *more: str) -> None:
    """Run a command. Raises UsageError with its last line if it fails."""
    sets = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, *script, "--config", job.config, "--quiet", *sets, *more]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"{script[-1]}, {job.system}, seed {job.seed}: {last}")


def training_seconds(run: Path, batch: int) -> float:
    """Time in training steps, without validations and checkpoints."""
    table = pd.read_csv(run / "metrics.csv").dropna(subset=["images_per_second"])
    steps = table["step"].diff().fillna(table["step"])
    return float((steps * batch / table["images_per_second"]).sum())


def trained_run(job: Job) -> Path:
    """The finished run of a job, trained now or gone on with if need be."""
    config = job.resolved(sampled=False)
    runs = sorted((path.parent for path in Path("runs", config.name).glob("*/config.yaml")), key=by_time)
    same = [run for run in runs if (run / "config.yaml").read_text() == dump_config(config)]
    if same and (same[-1] / "checkpoints" / f"step_{config.training.steps:08d}.pt").is_file():
        return same[-1]
    begun = bool(same) and (same[-1] / "checkpoints" / "last.pt").is_file()
    call((str(ROOT / "main.py"),), job, job.training, *(["--resume", str(same[-1])] if begun else []))
    return same[-1] if begun else newest_run(config.name)


def key_of(job: Job, split: str) -> dict[str, Any]:
    """What a row is known by."""
    config = job.resolved(sampled=True)
    return {
        "system": job.system,
        "sampling": job.sampling,
        "seed": job.seed,
        "config_hash": hashlib.sha256(dump_config(config).encode()).hexdigest()[:12],
        "data_hash": file_hash(Path(config.data.root) / f"{split}.csv")[:12],
    }


def row_of(job: Job, split: str) -> dict[str, Any]:
    """Train if need be, sample, and read what came out."""
    run = trained_run(job)
    call(
        (str(ROOT / "sample.py"),),
        job,
        (*job.training, *job.drawing, "sampling.animate=false"),
        "--run",
        str(run),
        "--split",
        split,
    )
    folder = max((run / "samples").iterdir(), key=by_time)
    summary = json.loads((folder / "summary.json").read_text())
    environment = json.loads((folder / "environment.json").read_text())
    config = job.resolved(sampled=True)
    return {
        **key_of(job, split),
        "f1": summary["mmse"]["f1"],
        "iou": summary["mmse"]["iou"],
        "single_f1": summary["single"]["f1"],
        "single_iou": summary["single"]["iou"],
        "draws": summary["draws"],
        "nfe": summary["nfe_per_draw"],
        "seconds_per_image": summary["seconds_per_image"],
        "images": summary["images"],
        "parameters": sum(p.numel() for p in denoiser_of(config).parameters()),
        "steps": config.training.steps,
        "training_seconds": training_seconds(run, config.training.batch),
        "commit": environment["commit"],
        "device": environment["device"],
        "folder": str(folder),
    }


def combined(table: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, and the standard deviation of F1 where there are several."""
    means = ["f1", "iou", "single_f1", "single_iou", "draws", "nfe", "seconds_per_image", "training_seconds"]
    groups = table.groupby(["system", "sampling"], sort=False)
    result = groups[means].mean().assign(parameters=groups["parameters"].first(), seeds=groups.size())
    if (groups.size() > 1).any():
        result.insert(1, "f1_std", groups["f1"].std())
    return result.reset_index()


def markdown(protocol: Protocol, table: pd.DataFrame, command: str) -> str:
    """The page: what was done, and a row for each system and way to sample."""
    rows = combined(table)
    shown = {"parameters": ".3g", "draws": ".4g", "nfe": ".4g", "seeds": "d", "seconds_per_image": ".2f",
             "training_seconds": ".0f"}  # fmt: skip
    lines = [f"# {protocol.title}", "", f"`{command}`", ""]
    lines += [f"{protocol.split} split, {table['images'].iloc[0]} images; seeds {sorted(set(table['seed']))}; "
              f"{', '.join(sorted(set(table['device'])))}; commit {', '.join(sorted(set(map(str, table['commit']))))}; "
              f"data {', '.join(sorted(set(table['data_hash'])))}.", ""]  # fmt: skip
    lines += ["| " + " | ".join(rows.columns) + " |", "|" + "---|" * len(rows.columns)]
    for row in rows.to_dict("records"):
        cells = [v if isinstance(v, str) else format(v, shown.get(str(name), ".4f")) for name, v in row.items()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train and score the systems of a protocol.")
    parser.add_argument("--protocol", required=True, metavar="YAML", help="a file of bench/protocols, or its name")
    parser.add_argument("--output", metavar="PATH", help="without its ending; default: docs/results/<name>")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE",
                        help="override one key of all systems")  # fmt: skip
    parser.add_argument("--split", choices=("val", "test"), help="default: the protocol's")
    parser.add_argument("--small", action="store_true", help="the protocol's small form, for CPUs")
    args = parser.parse_args(argv)
    path = Path(args.protocol)
    if not path.suffix:
        path = Path(__file__).parent / "protocols" / f"{args.protocol}.yaml"
    protocol = read_protocol(path)
    protocol = protocol.model_copy(update={"split": args.split or protocol.split})
    output = Path(args.output or f"docs/results/{protocol.name}{'_small' if args.small else ''}")
    done = pd.read_csv(output.with_suffix(".csv")) if output.with_suffix(".csv").is_file() else pd.DataFrame()
    rows = done.to_dict("records")
    current = []
    for job in jobs_of(protocol, args.overrides, args.small):
        if not Path(job.resolved(sampled=False).data.root).is_dir():
            call(("-m", "data.prepare"), job, job.training)
        key = key_of(job, protocol.split)
        row = next((row for row in rows if all(row.get(name) == value for name, value in key.items())), None)
        if row is None:
            row = row_of(job, protocol.split)
            rows.append(row)
        current.append(row)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output.with_suffix(".csv"), pd.DataFrame(rows).to_csv(index=False))
        print(f"{job.system}, seed {job.seed}, {job.sampling}: F1 {row['f1']:.4f}, single {row['single_f1']:.4f}, "
              f"{row['nfe']} evaluations", flush=True)  # fmt: skip
    table = pd.DataFrame(current)
    write_text(output.with_suffix(".csv"), table.to_csv(index=False))
    command = " ".join(["python -m bench.table", *(sys.argv[1:] if argv is None else argv)])
    write_text(output.with_suffix(".md"), markdown(protocol, table, command))
    if table["nfe"].nunique() > 1:
        first = combined(table).drop_duplicates(["system", "nfe"])  # of several ways at one cost
        f1_over_nfe(first, "system", ("f1", "single_f1"), protocol.title, output.with_suffix(".png"))
    print(f"table: {output.with_suffix('.md')}")


if __name__ == "__main__":
    sys.exit(run_command(main))
