"""Draw segmentations of the test images: python sample.py --config cfg/glas.yaml"""

from __future__ import annotations

from utils.command import StopFlag, importing, run_command

import logging
import sys
from pathlib import Path
from typing import Any

from utils.cli import common_parser, log_to_console, read_config, shown
from utils.config import override_config
from utils.errors import UsageError
from utils.runs import checked_run
from utils.schema import Config
from utils.shipped import weights_file

log = logging.getLogger("sample")

NEEDS = {"--output": "--input", "--overwrite": "--input", "--count": "--generate"}
APART = {
    "--input": {"--generate", "--split"},
    "--generate": {"--split", "--shard"},
    "--weights": {"--config", "--run", "--checkpoint"},  # they have their own
}


def config_of(args: Any) -> Config | None:
    """That of --config, --weights or --run. Raises UsageError where none is named, or the weights' and another."""
    if args.weights:
        with importing():
            from utils.weights import read_header

        args.weights = path = weights_file(args.weights)
        header = read_header(path)
        log.info("%s: %s", path, header.licence)
        return shown(override_config(header.config, path, args.overrides), args)
    return read_config(args, checked_run(Path(args.run), "--run ") if args.run else None)


def check_options(given: set[str]) -> None:
    """Raises UsageError for options that do not go together."""
    for option, owner in NEEDS.items():
        if option in given and owner not in given:
            raise UsageError(f"{option} goes with {owner}")
    for option, others in APART.items():
        if option in given and given & others:
            raise UsageError(f"leave out {', '.join(sorted(given & others))}, which {option} does not go with")
    if "--compare" in given and (others := given - {"--compare", "--quiet"}):
        raise UsageError(f"leave out {', '.join(sorted(others))}; --compare goes alone")


def main(argv: list[str] | None = None) -> None:
    parser = common_parser("Draw segmentations of the test images and score them.", config_of="--run or --weights")
    parser.add_argument("--run", metavar="RUN", help="a run folder; default: the newest run of the config's name")
    parser.add_argument("--checkpoint", default="best", metavar="best|last|PATH", help="default: best")
    parser.add_argument("--weights", metavar="FILE", help="weights with their config (weights/) instead of a run")
    parser.add_argument("--split", choices=("val", "test"), help="of the data set; default: test")
    parser.add_argument("--resume", action="store_true", help="go on with the newest, interrupted sampling of the run")
    parser.add_argument("--shard", metavar="I/N", help="be the I-th of N processes that share the images, I from 1 "
                        "on; the same command for each I")  # fmt: skip
    parser.add_argument("--input", metavar="PATH", help="predict on a picture, or a folder of them, instead")
    parser.add_argument("--output", metavar="FOLDER", help="where the results of --input go; default: "
                        "predictions/<time>")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace results in --output")
    parser.add_argument("--compare", nargs="+", metavar="RUN", help="put sampled runs side by side instead")
    parser.add_argument("--generate", choices=("pairs", "images"), help="with model.kind: joint, instead of "
                        "segmentations: pairs of image and mask, or images for the test masks")  # fmt: skip
    parser.add_argument("--count", type=int, metavar="N", help="how many to generate; default: 64 pairs, or an image "
                        "for each test mask")  # fmt: skip
    args = parser.parse_args(argv)
    check_options(parser.given(args))
    args.split = args.split or "test"
    if args.compare:
        with importing():
            from results.compared import compare
        print(compare(args.compare, Path("runs/comparisons")))
        return
    log_to_console(args.quiet)
    config = config_of(args)
    if config is None:
        return
    with importing():
        from results.modes import carry_out
    carry_out(config, args, StopFlag())


def run() -> int:
    return run_command(main)


if __name__ == "__main__":
    sys.exit(run())
