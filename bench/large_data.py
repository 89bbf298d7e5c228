"""Memory and speed of training from a packed copy (data/packed.py).

    python -m data.prepare     --config cfg/quickstart.yaml
    python -m bench.large_data --config cfg/quickstart.yaml

Memory: anonymous pages of this process (RssAnon of Linux: what it holds itself, without pages of files, which the
system takes back) after batches at random from made copies of more and more patches; their files are sparse. Speed:
training steps from a packed copy of the prepared data over steps from memory, in turn; the median of the rounds.
"""

from __future__ import annotations

from utils.command import run_command

import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from data.batches import Batches, Mapped
from data.dataset import load_split, same_size
from data.packed import ENTRY, About, Packed, packed
from data.rows import Patch
from training.recorder import Taken
from training.session import build_state, training_step
from utils.cli import common_parser, log_to_console, read_config
from utils.data_schema import DataConfig
from utils.devices import choose_device, device_name
from utils.errors import UsageError

STATUS = Path("/proc/self/status")


def anonymous_mib() -> float:
    """Raises UsageError where the system does not say it."""
    for line in STATUS.read_text().splitlines() if STATUS.is_file() else ():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 2**10
    raise UsageError("bench.large_data: needs Linux, which says how much memory is anonymous")


def made_copy(folder: Path, count: int, size: tuple[int, int], channels: int, raters: int) -> Packed:
    """Patches without foreground, whose files take no room."""
    area = size[0] * size[1]
    name = json.dumps(["patch", "image", "patch.png", ""]).encode()
    index = np.zeros(count, ENTRY)
    index["pixels"], index["maps"] = np.arange(count) * area, np.arange(count) * area * raters
    index["length"], index["height"], index["width"], index["raters"] = len(name), *size, raters
    index.tofile(folder / "index.bin")
    (folder / "names.bin").write_bytes(name)
    (folder / "values.bin").write_bytes(np.ones(1, "<f4").tobytes())
    for file, length in (("images", channels * area), ("labels", area), ("maps", raters * area)):
        with (folder / f"{file}.bin").open("wb") as sparse:
            sparse.truncate(count * length)
    return Packed.opened(folder, About(made_of="", channels=channels, classes=1, codes="|u1", sums={}))


def memory_of(count: int, like: Patch, data: DataConfig, batch: int, batches: int) -> tuple[float, float]:
    """MiB of memory that batches from so many patches take, and milliseconds for each."""
    device, channels = choose_device("cpu"), 3 if like.image.ndim == 3 else 1
    with tempfile.TemporaryDirectory() as folder:
        before = anonymous_mib()
        copy = made_copy(Path(folder), count, same_size([like], "train.csv"), channels, len(like.sdf))
        data = data.model_copy(update={"foreground_share": None})  # there is none
        drawn = Batches(Mapped(copy, data.sdf_scale), batch, 0, device, data)
        begin = time.perf_counter()
        for _ in range(batches):
            drawn.next()
        return anonymous_mib() - before, (time.perf_counter() - begin) / batches * 1e3


def seconds_of(step: Callable[[], Taken], steps: int) -> float:
    begin = time.perf_counter()
    for _ in range(steps):
        losses = step().losses
    losses.cpu()  # waits for the device
    return time.perf_counter() - begin


def main(argv: list[str] | None = None) -> None:
    parser = common_parser("Measure memory and speed of training from a packed copy.")
    counts = [1000, 20_000, 200_000]
    parser.add_argument("--counts", type=int, nargs="+", default=counts, help=f"made patches; default: {counts}")
    parser.add_argument("--batches", type=int, default=200, help="of made patches; default: 200")
    parser.add_argument("--rounds", type=int, default=5, help="of steps; default: 5")
    parser.add_argument("--steps", type=int, default=8, help="a round; default: 8")
    args = parser.parse_args(argv)
    config = read_config(args)
    if config is None:
        return
    if min(args.batches, args.rounds, args.steps, *args.counts) < 1:
        raise UsageError("--counts, --batches, --rounds, --steps: 1 or more are expected")
    log_to_console(args.quiet)
    device = choose_device(args.device)
    ways: list[list[Patch] | Packed] = [load_split(config.data, "train"), packed(config.data, "train")]
    for count in args.counts:
        mib, milliseconds = memory_of(count, ways[0][0], config.data, config.training.batch, args.batches)
        print(f"{count:>9} patches  {mib:8.1f} MiB  {milliseconds:6.2f} ms a batch of {config.training.batch}")
    states = [build_state(config, patches, device) for patches in ways]
    steps = [partial(training_step, state, config.data, config.sde, config.training) for state in states]
    rounds = []
    for _ in range(args.rounds + 1):  # the first one warms up
        rounds.append([seconds_of(step, args.steps) for step in steps])
    held, mapped = np.array(rounds[1:]).T
    ratio = np.median(held / mapped)
    print(f"{device_name(device)}: {args.steps / np.median(held):.2f} steps/s from memory, {ratio:.3f} x that packed")


if __name__ == "__main__":
    sys.exit(run_command(main))
