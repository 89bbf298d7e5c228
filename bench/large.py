"""Time and memory of one large picture with all its files, and the share of the bare network's evaluations.

    python -m bench.large --config cfg/quickstart.yaml --size 5000 --set sampling.draws=2
    python -m bench.large --config cfg/quickstart.yaml --size 5000 \\
        --set sde.objective=mean --set model.second_moment=true --set sampling.sampler=mean

A mosaic of phantom tissue and untrained weights: the arithmetic is that of a trained network. Picture and results go to
a temporary folder. Seconds are those of CPUs, so that other work on the machine does not count; on a GPU wall time.
"""

from __future__ import annotations

from utils.command import run_command

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.patches import Window
from data.pictures import Picture
from data.sources.phantom import draw_sample
from models.build import denoiser_of, placed
from results.predicted import Input, predict_one
from sampling.drawer import Drawer, drawer_of
from sampling.segmenter import Segmenter
from sampling.tiled import tiled_of
from utils.cli import common_parser, log_to_console, read_config
from utils.data_schema import PhantomConfig
from utils.devices import choose_device, device_name, peak_memory_mib
from utils.errors import UsageError


class Mosaic(Picture):
    """Phantom tissue of any size, of which only one piece is held."""

    def __init__(self, rgb: bool, size: int, side: int = 128) -> None:
        image = draw_sample(PhantomConfig(size=side), 0).image
        super().__init__(image if rgb else image.mean(axis=2).astype(np.uint8))
        self.shape = size, size

    def read(self, window: Window) -> np.ndarray:
        rows, columns = (
            np.arange(window.top, window.top + window.height),
            np.arange(window.left, window.left + window.width),
        )
        side = len(self._pixels)
        return self._pixels[(rows % side)[:, None], columns % side]


class Counted:
    """The seconds that a drawer's evaluations of the network take."""

    def __init__(self, drawer: Drawer, clock: Callable[[], float]) -> None:
        self.seconds = 0.0
        for name in ("encode", "denoised", "moments"):
            setattr(drawer, name, self._timed(getattr(drawer, name), clock))

    def _timed(self, evaluate: Callable[..., Any], clock: Callable[[], float]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = clock()
            try:
                return evaluate(*args, **kwargs)
            finally:
                self.seconds += clock() - begin

        return timed


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
    segmenter = Segmenter(config, drawer, tiled_of(config.sampling, drawer, args.trained), None)
    mosaic = Mosaic(config.data.color == "rgb", args.size)
    segmenter.open = lambda path: mosaic  # type: ignore[method-assign]
    on_cpu = device.type == "cpu"
    # The files are compressed by threads of their own, beside the network.
    own = time.thread_time if torch.get_num_threads() == 1 else time.process_time
    network = Counted(drawer, own if on_cpu else time.perf_counter)
    before, clock = peak_memory_mib(device), time.process_time if on_cpu else time.perf_counter
    begin = clock()
    with tempfile.TemporaryDirectory() as folder:
        row = predict_one(segmenter, Input(Path("mosaic"), "mosaic"), Path(folder))
        written = sum(path.stat().st_size for path in Path(folder, "mosaic").iterdir())
    seconds = clock() - begin
    draws = "{draws:.4g} draws of {nfe_per_draw:.4g} evaluations".format(**row)
    draws = draws if segmenter.tiles.draws else "moments in one evaluation"
    print(f"{args.size} x {args.size} pixels on {device_name(device)}, tiles of {segmenter.tiles.tile}, {draws}")
    rate, ratio = seconds / args.size**2 * 1e6, seconds / network.seconds
    print(f"{seconds:.0f} s, {rate:.2f} s per million pixels, {ratio:.2f} times the network's {network.seconds:.0f} s")
    print(f"{written / 2**20:.0f} MiB of files, {row['objects']} objects")
    print(f"peak memory {peak_memory_mib(device):.0f} MiB; {before:.0f} MiB before")


if __name__ == "__main__":
    sys.exit(run_command(main))
