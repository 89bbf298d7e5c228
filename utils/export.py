"""A trained network to give away: python -m utils.export --run RUN --output weights/NAME.safetensors --licence TEXT"""

from __future__ import annotations

from utils.command import importing, run_command

import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
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
from utils.shipped import weights_file
from utils.weights import SUFFIX, Header, halved, read_header, weights_bytes

FREE = ("sampling.", "evaluation.", "data.raw=", "data.root=")  # what may change after the training
SUFFIXES = {"safetensors": SUFFIX, "onnx": ".onnx", "torchscript": ".pt", "bioimageio": ".zip"}
OTHERS = ("onnx", "torchscript", "bioimageio")
GOES_WITH = {"--full": ("safetensors",), "--draws": OTHERS, "--stretch": OTHERS[:2], "--input": ("bioimageio",),
             "--author": ("bioimageio",)}  # fmt: skip
TO_PASS_ON = ("safetensors", "bioimageio")  # formats in which networks reach others, who must know what they may do
MOST_DRAWS = 128


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
    if isinstance(file := config["model"]["encoder"]["pretrained"], str):
        config["model"]["encoder"]["pretrained"] = Path(file).name
    if data["stain_target"] is not None:
        data["stain_target"] = Path(data["stain_target"]).name
    return override_config({**config, "name": name, "data": data}, path, overrides)


def option_errors(args: Any, given: set[str]) -> None:
    """Raises UsageError for options that do not go together."""
    suffix = SUFFIXES[args.format]
    if args.output is not None and Path(args.output).suffix != suffix:
        raise UsageError(f"--output {args.output}: must end in {suffix} with --format {args.format}")
    if (args.run is None) == (args.weights is None):
        raise UsageError("--run or --weights is needed, and not both")
    if args.weights is not None and args.output is None:
        raise UsageError(f"--weights needs --output, which ends in {suffix}")
    if args.run is not None and args.licence is None and args.format in TO_PASS_ON:
        raise UsageError(
            f"--run needs --licence with --format {args.format}, of the data and what it means for weights"
        )
    for option, formats in GOES_WITH.items():
        if option in given and args.format not in formats:
            raise UsageError(f"{option} goes with --format {', '.join(formats)}")
    if args.format == "bioimageio" and not {"--input", "--author"} <= given:
        raise UsageError("--format bioimageio needs --input, a picture for the package, and --author")
    if "--checkpoint" in given and args.run is None:
        raise UsageError("--checkpoint goes with --run")
    if args.draws is not None and not 1 <= args.draws <= MOST_DRAWS:
        raise UsageError(f"--draws {args.draws}: must be 1 to {MOST_DRAWS}")


def read_source(args: Any) -> tuple[Path, dict[str, Any], Header]:
    """The checkpoint or weights that the arguments name: its path, state, and header with the config of the output."""
    licence, commit = args.licence or "not stated", None
    if args.weights is not None:
        path = weights_file(args.weights)
        header = read_header(path)
        licence, commit = args.licence or header.licence, header.commit
    else:
        path = checkpoint_path(Path(args.run), args.checkpoint)
        with suppress(OSError, UsageError):
            commit = read_json(Path(args.run) / "environment.json", dict[str, Any]).get("commit")
    state = load_checkpoint(path)
    if not {"images", "step"} <= state.keys():
        raise UsageError(f"{path}: does not say what images it was trained on; train again")
    config = portable(state["config"], Path(args.output).stem, path, args.overrides).model_dump(mode="json")
    return path, state, Header(config, state["images"], licence, commit or "unknown", state["step"])


def main(argv: list[str] | None = None) -> None:
    parser = Parser("Write the averaged weights of a run as safetensors, or the network as a file that other programs "
                    "run without this one. docs/export.md says what it takes and gives.")  # fmt: skip
    parser.add_argument("--run", metavar="RUN", help="a run folder")
    parser.add_argument("--checkpoint", default="best", metavar="best|last|PATH", help="of the run; default: best")
    parser.add_argument("--weights", metavar="FILE", help=f"weights ({SUFFIX}) instead of a run")
    parser.add_argument("--output", metavar="FILE", help="its stem is the name of the network; it ends in "
                        + ", ".join(SUFFIXES.values()) + ", as the format asks for; default: in the run folder, under "
                        "the name of the run")  # fmt: skip
    parser.add_argument("--format", choices=tuple(SUFFIXES), default="safetensors", help="safetensors (default): for "
                        "this program; onnx, torchscript: one graph; bioimageio: a package for the BioImage Model Zoo "
                        "with both of them")  # fmt: skip
    parser.add_argument("--licence", metavar="TEXT", help="of the data and what it means for weights; default: that of "
                        "--weights; safetensors and bioimageio of a run need it")  # fmt: skip
    parser.add_argument("--full", action="store_true", help="safetensors: float32 instead of half precision")
    parser.add_argument("--draws", type=int, metavar="N", help="other formats: mean, std and probability of N draws in "
                        "one graph, with their noise; bioimageio: 16 where a draw is one evaluation; default: a draw "
                        "for a noise that is given, or the mean")  # fmt: skip
    parser.add_argument("--stretch", action="store_true", help="onnx, torchscript: the stretch of data.stretch is in "
                        "the graph, for whole pictures; default: whoever runs it stretches, as for tiles")  # fmt: skip
    parser.add_argument("--input", metavar="PICTURE", help="bioimageio: its middle goes into the package, to test and "
                        "show it")  # fmt: skip
    parser.add_argument("--author", action="append", default=[], metavar="NAME", help="bioimageio: who made the "
                        "weights; once for each")  # fmt: skip
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE",
                        help="another way to sample than the run's; sampling.sampler=mean: the mean alone")  # fmt: skip
    args = parser.parse_args(argv)
    option_errors(args, parser.given(args))
    if args.output is None:
        args.output = str(Path(args.run, Path(args.run).resolve().parent.name + SUFFIXES[args.format]))
    path, state, header = read_source(args)
    if args.format != "safetensors":
        with importing():  # by name, as what the command needs lies on higher floors, in a package where installed
            networks = import_module(f"{(__package__ or '').removesuffix('utils')}results.networks")
        networks.write_network(args, path, header)
        return
    output = Path(args.output)
    content = weights_bytes(state["ema"] if args.full else halved(state["ema"]), header)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(output, content)
    print(f"{output}: step {header.step}, {len(content) / 2**20:.1f} MiB")


def run() -> int:
    return run_command(main)


if __name__ == "__main__":
    sys.exit(run())
