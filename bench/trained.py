"""What the benches of trained networks have in common: a run, its denoiser and the images to measure on."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from data.dataset import Split
from data.scenes import Scenes, scenes_of
from models.denoiser import Denoiser
from sampling.loading import load_denoiser
from utils.cli import Parser, common_parser, read_config
from utils.devices import choose_device
from utils.errors import UsageError
from utils.runs import checked_run, checkpoint_path, newest_run
from utils.schema import Config


@dataclass(frozen=True)
class Trained:
    config: Config
    run: Path
    checkpoint: Path
    denoiser: Denoiser
    scenes: Scenes


def parser_of(description: str, images: int = 0) -> Parser:
    """images: the default of --images; 0 for all."""
    parser = common_parser(description)
    parser.add_argument("--run", metavar="RUN", help="a run folder; default: the newest run of the config's name")
    parser.add_argument("--checkpoint", default="best", metavar="best|last|PATH", help="default: best")
    parser.add_argument("--split", default="val", choices=("val", "test"), help="default: val")
    help_text = f"the first N images, 0 for all; default: {images or 'all'}"
    parser.add_argument("--images", type=int, default=images, metavar="N", help=help_text)
    return parser


def trained_of(args: argparse.Namespace) -> Trained | None:
    """What the arguments name; None where --print-config was all.

    Raises UsageError for a run that is not there or a number that makes no sense.
    """
    config = read_config(args)
    if config is None:
        return None
    run = checked_run(Path(args.run), "--run ") if args.run else newest_run(config.name)
    if args.images < 0:
        raise UsageError(f"--images {args.images}: 0 or more are expected")
    scenes = scenes_of(Split(config.data, args.split))
    checkpoint = checkpoint_path(run, args.checkpoint)
    denoiser = load_denoiser(config, checkpoint, choose_device(args.device))
    return Trained(config, run, checkpoint, denoiser, scenes[: args.images or None])
