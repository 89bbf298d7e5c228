"""Weights of a run as a small file to give away: python -m utils.export --run RUN --output weights/NAME.safetensors"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from utils.checkpoint import load_checkpoint
from utils.cli import run_command
from utils.config import parse_config
from utils.errors import UsageError
from utils.loading import checkpoint_path
from utils.runs import write_bytes
from utils.weights import SUFFIX, Header, halved, weights_bytes


def portable(config: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    """The config without the folders of one machine, under the name of the weights; checked as any config."""
    source = config["data"]["source"]
    folders = {"raw": None if source in ("phantom", "prepared") else f"raw/{source}", "root": f"prepared/{name}"}
    target = config["data"]["stain_target"]
    folders["stain_target"] = Path(target).name if target else None
    changed = {**config, "name": name, "data": {**config["data"], **folders}}
    return parse_config(changed, path).model_dump(mode="json")


def commit_of(run: Path) -> str:
    """That a run was trained at."""
    path = run / "environment.json"
    return str(json.loads(path.read_text())["commit"]) if path.is_file() else "unknown"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the averaged weights of a run as safetensors.")
    parser.add_argument("--run", required=True, metavar="RUN", help="a run folder")
    parser.add_argument("--checkpoint", default="best", metavar="best|last|PATH", help="default: best")
    parser.add_argument("--output", required=True, metavar="FILE", help=f"NAME{SUFFIX}")
    parser.add_argument(
        "--licence", required=True, metavar="TEXT", help="of the data, and what it means for the weights"
    )
    parser.add_argument("--full", action="store_true", help="float32 instead of half precision")
    args = parser.parse_args(argv)
    run, output = Path(args.run), Path(args.output)
    if output.suffix != SUFFIX:
        raise UsageError(f"--output {output}: must end in {SUFFIX}")
    path = checkpoint_path(run, args.checkpoint)
    state = load_checkpoint(path, needs=("config", "ema", "images", "step"))
    header = Header(
        portable(state["config"], output.stem, path), state["images"], args.licence, commit_of(run), state["step"]
    )
    content = weights_bytes(state["ema"] if args.full else halved(state["ema"]), header)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(output, content)
    print(f"{output}: step {header.step}, {len(content) / 2**20:.1f} MiB")


if __name__ == "__main__":
    sys.exit(run_command(main))
