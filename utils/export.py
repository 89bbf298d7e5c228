"""Weights of a run as a small file to give away: python -m utils.export --run RUN --output weights/NAME.safetensors"""

from __future__ import annotations

from utils.command import run_command

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from utils.checkpoint import load_checkpoint
from utils.cli import Parser
from utils.config import override_config, parse_config
from utils.errors import UsageError
from utils.files import write_bytes
from utils.reading import read_json
from utils.runs import checkpoint_path
from utils.schema import Config
from utils.weights import SUFFIX, Header, halved, weights_bytes

FREE = ("sampling.", "evaluation.", "data.raw=", "data.root=")  # what may change after the training


def portable(config: dict[str, Any], name: str, path: Path, overrides: Sequence[str] = ()) -> Config:
    """The config under the name of the weights, without folders of one machine, with other keys for sampling.

    Raises ConfigError for keys that do not exist, UsageError for those of the training.
    """
    for override in overrides:
        if not override.startswith(FREE):
            raise UsageError(f"--set {override}: the training is done; only {', '.join(FREE)} may change")
    config = parse_config(config, path).model_dump(mode="json")
    if config["sampling"]["members"]:
        raise UsageError(f"{path}: sampling.members: an ensemble is not one file; export a run that is sampled alone")
    data, source = dict(config["data"]), config["data"]["source"]
    for key, usual in (("raw", f"raw/{source}"), ("root", f"prepared/{name}")):
        if data[key] is not None and Path(data[key]).is_absolute():
            data[key] = usual
    if (start := config["training"]["start_from"]) is not None:
        config["training"]["start_from"] = Path(start).name
    if data["stain_target"] is not None:
        data["stain_target"] = Path(data["stain_target"]).name
    return override_config({**config, "name": name, "data": data}, path, overrides)


def main(argv: list[str] | None = None) -> None:
    parser = Parser("Write the averaged weights of a run as safetensors.")
    parser.add_argument("--run", required=True, metavar="RUN", help="a run folder")
    parser.add_argument("--checkpoint", default="best", metavar="best|last|PATH", help="default: best")
    parser.add_argument("--output", required=True, metavar="FILE", help=f"NAME{SUFFIX}")
    parser.add_argument("--licence", required=True, metavar="TEXT", help="of the data and what it means for weights")
    parser.add_argument("--full", action="store_true", help="float32 instead of half precision")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE",
                        help="another way to sample than the run's")  # fmt: skip
    args = parser.parse_args(argv)
    run, output = Path(args.run), Path(args.output)
    if output.suffix != SUFFIX:
        raise UsageError(f"--output {output}: must end in {SUFFIX}")
    path = checkpoint_path(run, args.checkpoint)
    state = load_checkpoint(path)
    if not {"images", "step"} <= state.keys():
        raise UsageError(f"{path}: does not say what images it was trained on; train again")
    config = portable(state["config"], output.stem, path, args.overrides).model_dump(mode="json")
    commit = None
    with suppress(OSError, UsageError):
        commit = read_json(run / "environment.json", dict[str, Any]).get("commit")
    header = Header(config, state["images"], args.licence, commit or "unknown", state["step"])
    content = weights_bytes(state["ema"] if args.full else halved(state["ema"]), header)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(output, content)
    print(f"{output}: step {header.step}, {len(content) / 2**20:.1f} MiB")


def run() -> int:
    return run_command(main)


if __name__ == "__main__":
    sys.exit(run())
