"""Time and memory of one large image, by tiles.

    python -m bench.large --config cfg/quickstart.yaml --size 5000 --set sampling.draws=2
    python -m bench.large --config cfg/quickstart.yaml --size 5000 \\
        --set sde.objective=mean --set model.second_moment=true --set sampling.sampler=mean

A mosaic of phantom tissue and untrained weights: the arithmetic is that of a trained network. The maps are written as
TIFF to a temporary folder.
"""

from __future__ import annotations

from utils.command import run_command

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from data.patches import Window
from data.sources.phantom import draw_sample
from models.build import denoiser_of, placed
from results.maps import band_writer
from sampling.drawer import drawer_of
from sampling.tiled import costs_of, tiled_of
from utils.cli import common_parser, log_to_console, read_config
from utils.data_schema import PhantomConfig
from utils.devices import choose_device, device_name, peak_memory_mib
from utils.errors import UsageError


class Mosaic:
    """Phantom tissue of any size, (C, H, W) uint8, of which only one piece is held."""

    def __init__(self, rgb: bool, side: int = 128) -> None:
        image = draw_sample(PhantomConfig(size=side), 0).image
        self.piece = image.transpose(2, 0, 1) if rgb else image.mean(axis=2).astype(np.uint8)[None]

    def __call__(self, window: Window) -> np.ndarray:
        side = self.piece.shape[-1]
        rows = np.arange(window.top, window.top + window.height) % side
        columns = np.arange(window.left, window.left + window.width) % side
        return self.piece[:, rows[:, None], columns]


def main(argv: list[str] | None = None) -> None:
    parser = common_parser("Measure time and memory of one large image.")
    parser.add_argument("--size", type=int, default=5000, help="height and width in pixels; default: 5000")
    help_text = "side of a tile if sampling.tile is null; default: 128"
    parser.add_argument("--trained", type=int, default=128, help=help_text)
    args = parser.parse_args(argv)
    config = read_config(args)
    if config is None:
        return
    if args.size < 1 or args.trained < 1:
        raise UsageError(f"--size {args.size}, --trained {args.trained}: 1 or more are expected")
    log_to_console(args.quiet)
    device = choose_device(args.device)
    torch.manual_seed(config.seed)
    denoiser = placed(denoiser_of(config), device, config.training.channels_last).eval()
    drawer = drawer_of(config, denoiser)
    tiled = tiled_of(config.sampling, drawer, args.trained)
    before, begin, bands = peak_memory_mib(device), time.perf_counter(), []
    shape = args.size, args.size
    with tempfile.TemporaryDirectory() as folder:
        with band_writer(Path(folder), shape, denoiser.mask_channels) as write:
            for band in tiled(Mosaic(config.data.color == "rgb"), shape, "mosaic"):
                write(band)
                bands.append((len(band.labels), band.draws, band.nfe))
        written = sum(path.stat().st_size for path in Path(folder).iterdir())
    seconds = time.perf_counter() - begin
    draws = "{draws:.4g} draws of {nfe_per_draw:.4g} evaluations".format(**costs_of(bands))
    draws = f"{len(bands)} bands, {draws if tiled.draws else 'moments in one evaluation'}"
    rate = seconds / args.size**2 * 1e6
    print(f"{args.size} x {args.size} pixels on {device_name(device)}, tiles of {tiled.tile}, {draws}")
    print(f"{seconds:.0f} s, {rate:.2f} s per million pixels, {written / 2**20:.0f} MiB of TIFF")
    print(f"peak memory {peak_memory_mib(device):.0f} MiB; {before:.0f} MiB before")


if __name__ == "__main__":
    sys.exit(run_command(main))
