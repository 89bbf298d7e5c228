"""python sample.py --run RUN --input PICTURES --output FOLDER: maps and objects of anybody's images."""

from __future__ import annotations

import errno
import logging
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from typing_extensions import NotRequired, TypedDict

from data.images import SUFFIXES
from data.inputs import PreparedPicture, in_pixels_of
from data.names import unique_names
from data.patches import Window
from data.pictures import SLIDES, Picture, ScaledPicture, openslide
from data.pixel_size import Microns
from evaluation.blocks import Block, block_objects, split_large
from report import figures
from report.layers import ImageLayers
from report.page import render_report
from results.maps import band_writer, instance_writer, map_window
from results.read import read_layers
from results.sampled import write_maps, write_objects, write_records
from results.shards import WAIT, held_share, last_share, refuse_shares, settle_alone
from sampling.segmenter import Segmenter
from sampling.tiled import Tick, costs_of
from utils.config import dump_config
from utils.devices import device_name, peak_memory_mib
from utils.errors import DataError, UsageError, problems_error
from utils.files import naming, whole_folder, write_json, write_text
from utils.locks import held
from utils.reading import read_json
from utils.runs import settle
from utils.share import WHOLE, Share

log = logging.getLogger("sample")

LARGE = 16_000_000  # pixels from which maps go to disk band by band, as pyramids
SIDE = 4000  # longest side of the overlay of a large image, at most
OWN = ("results.csv", "report.html", "settings.json", "environment.json")  # beside the pictures' folders
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no other picture can be written either


@dataclass(frozen=True)
class Input:
    """A picture file, and the name of its folder in the output, which also seeds its draws."""

    path: Path
    key: str


def inputs_of(path: Path) -> list[Input]:
    """The picture, or those of a folder by name. Raises UsageError where there is none, and for slides without
    OpenSlide."""
    suffixes = (*SUFFIXES, *SLIDES)
    if path.is_file():
        paths = [path]
    elif path.is_dir():
        paths = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith("."))
    else:
        raise UsageError(f"--input {path}: no such file or folder")
    if not paths:
        raise UsageError(f"--input {path}: no pictures in it; {', '.join(suffixes)} are read")
    if any(p.suffix.lower() in SLIDES for p in paths):
        openslide()
    # The stem; where several files have it, the whole name.
    stems = Counter(p.stem for p in paths)
    names = [p.stem if stems[p.stem] == 1 else p.name.replace(".", "_") for p in paths]
    return [Input(p, key) for p, key in zip(paths, unique_names(names, OWN), strict=True)]


class Row(TypedDict):
    """result.json, and but for `path` and `stamp`, of the picture's file, a line of results.csv. Pixels are its own,
    which maps of a large one need not have."""

    path: NotRequired[str]  # not in folders of before it was noted, nor is the stamp
    stamp: NotRequired[list[int]]  # its bytes, and when it was changed, in nanoseconds
    image_id: str
    file: str
    height: int
    width: int
    microns_per_pixel: NotRequired[float | None]  # not in folders of before it was read
    map_microns_per_pixel: NotRequired[float | None]
    objects: int | None
    area: int
    area_share: float
    mean_std: float
    draws: int | float
    nfe_per_draw: int | float
    warning: str
    seconds: float


def _predict_small(segmenter: Segmenter, picture: Picture, key: str, folder: Path, tick: Tick) -> dict[str, Any]:
    """The files of an image, as of test images but for what needs a truth."""
    result = segmenter(picture, key, tick)
    write_maps(folder, result.mmse, result.std, result.probability, result.classes, result.first_draws)
    masks = [result.classes == k for k in range(1, len(result.mmse) + 1)]
    figures.outlined(picture.whole(), masks, figures.zoom_of(picture.shape)).save(folder / "overlay.png")
    write_objects(folder, result.instances, result.objects, key, picture.microns)
    return {
        "map_microns_per_pixel": side_of(picture.microns),
        "objects": len(result.objects),
        "area": int(result.mask.sum()),
        "area_share": float(result.mask.mean()),
        "mean_std": float(result.std.max(axis=0).mean()),
        "draws": result.draws,
        "nfe_per_draw": result.nfe_per_draw,
        "warning": result.warning or "",
    }


def _predict_large(segmenter: Segmenter, picture: Picture, key: str, folder: Path, tick: Tick) -> dict[str, Any]:
    """Maps as pyramids in the network's pixels, in bounded memory; objects of the MMSE only, as no draw is kept, in
    those of the picture."""
    prepared, classes = segmenter.prepared(picture), segmenter.drawer.denoiser.mask_channels
    kind = segmenter.config.sampling.large_maps
    area, spread = 0, 0.0
    costs: list[tuple[int, float, float]] = []
    with band_writer(folder, prepared.shape, classes, prepared.microns, kind) as write:
        for band in segmenter.bands(prepared, key, tick=tick):
            write(band)
            area += int((band.labels > 0).sum())
            spread += float(band.std.max(axis=0).sum())
            costs.append((len(band.labels), band.draws, band.nfe))
    count = _large_objects(segmenter, picture, prepared, key, folder) if classes == 1 else None
    pixels = prepared.shape[0] * prepared.shape[1]
    _large_overlay(picture, folder, prepared.shape)
    return {
        "map_microns_per_pixel": side_of(prepared.microns),
        "objects": count,
        "area": round(area / pixels * picture.shape[0] * picture.shape[1]),
        "area_share": area / pixels,
        "mean_std": spread / pixels,
        **costs_of(costs),
        "warning": prepared.warning or "",
    }


def _large_objects(segmenter: Segmenter, picture: Picture, prepared: PreparedPicture, key: str, folder: Path) -> int:
    """Labels and tables of the objects in the MMSE map that the folder has; their number."""
    evaluation, records = segmenter.config.evaluation, []
    factors = picture.shape[0] / prepared.shape[0], picture.shape[1] / prepared.shape[1]

    def read(top: int, left: int, height: int, width: int) -> np.ndarray:
        return map_window(folder, "mmse", window=Window(top, left, height, width))

    def found(block: Block) -> None:
        std = map_window(folder, "std", window=Window(block.top, block.left, *block.labels.shape))
        records.extend(block_objects(block, std, factors))

    rule = segmenter.drawer.threshold, evaluation.object_depth, evaluation.object_area
    with instance_writer(folder, prepared.shape, prepared.microns) as write:
        for rows in split_large(read, prepared.shape, *rule, found):
            write(rows)
    write_records(folder, records, key, picture.microns)
    return len(records)


def _large_overlay(picture: Picture, folder: Path, shape: tuple[int, int]) -> None:
    """Picture and mask, made smaller. shape: of the maps."""
    level = max(0, math.ceil(math.log2(max(shape) / SIDE)))
    mask = map_window(folder, "mask", level) > 0
    figures.outlined(ScaledPicture(picture, mask.shape).whole(), [mask], 1).save(folder / "overlay.png")


def side_of(microns: Microns | None) -> float | None:
    """Of a square pixel of this area."""
    return None if microns is None else math.sqrt(microns[0] * microns[1])


def predict_one(segmenter: Segmenter, one: Input, output: Path, tick: Tick = lambda share: None) -> Row:
    """All files of one picture; its line of results.csv. tick: see `TiledDrawer`."""
    begin, stamp = time.perf_counter(), _stamp(one)
    picture = segmenter.open(one.path)
    height, width = picture.shape
    data = segmenter.config.data
    seen, _ = in_pixels_of(picture, data.microns_per_pixel)
    large = data.size is None and max(height * width, seen.shape[0] * seen.shape[1]) > LARGE
    with whole_folder(output / one.key) as folder:
        found = (_predict_large if large else _predict_small)(segmenter, picture, one.key, folder, tick)
        where = {"path": str(one.path.absolute()), "stamp": stamp, "image_id": one.key, "file": one.path.name}
        sizes = {"height": height, "width": width, "microns_per_pixel": side_of(picture.microns)}
        row: Any = {**where, **sizes, **found}
        row["seconds"] = time.perf_counter() - begin
        write_json(folder / "result.json", row)
    return row


def write_report(segmenter: Segmenter, inputs: Sequence[Input], rows: Sequence[Row], output: Path) -> None:
    """report.html of the pictures whose maps are arrays; those of large ones are for a TIFF viewer."""
    paths = {one.key: one.path for one in inputs}
    shown = [row for row in rows if (output / row["image_id"] / "mmse.npy").is_file()]
    if not shown:
        return
    config, draws = segmenter.config, float(np.mean([row["draws"] for row in shown]))
    summary = {
        "images": len(shown),
        "draws": draws,
        "nfe_per_draw": float(np.mean([row["nfe_per_draw"] for row in shown])),
        "sampler": config.sampling.sampler,
        "threshold": segmenter.drawer.threshold,
        "seed": config.seed,
        "device": device_name(segmenter.drawer.device),
        "seconds_per_image": float(np.mean([row["seconds"] for row in shown])),
        "peak_memory_mib": peak_memory_mib(segmenter.drawer.device),
    }

    def layers(key: str) -> ImageLayers:
        return read_layers(output / key, segmenter.open(paths[key]).whole(), draws)

    title = f"{config.name}: {len(shown)} picture{'s' if len(shown) != 1 else ''}"
    write_text(output / "report.html", render_report(title, summary, shown, layers, output, dump_config(config)))


def results_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """look_rank: 1 for the image with the largest mean std, the first that a person should look at."""
    table = pd.DataFrame(rows).drop(columns=["path", "stamp"], errors="ignore")
    ranks = table["mean_std"].rank(ascending=False, method="first").astype(int)
    table.insert(table.columns.get_loc("mean_std") + 1, "look_rank", ranks)  # type: ignore[arg-type]
    # A spreadsheet takes what begins like this for a formula, and runs it.
    table["file"] = ["'" + name if name[0] in "=+-@\t\r" else name for name in table["file"]]
    return table


@contextmanager
def open_output(
    output: Path, settings: Mapping[str, Any], overwrite: bool, resume: bool, share: Share = WHOLE
) -> Iterator[None]:
    """Hold an empty folder, or with `resume` one made with the same settings; or a share of either one. Raises
    UsageError for others' files."""
    known, what = output / "settings.json", f"--output {output}"
    if output.exists() and not output.is_dir():
        raise UsageError(f"{what}: is not a folder")
    if share.count > 1:
        with held(output / ".lock", what, WAIT), naming(output):
            if not known.is_file() and any(path for path in output.iterdir() if not path.name.startswith(".")):
                raise UsageError(f"{what}: holds files that were not written here; choose another folder")
            settle(output, settings, known.is_file(), "--output")
        with held_share(output, share), naming(output):
            yield
        return
    with held(output / ".lock", what), naming(output):
        resume = resume and known.is_file()
        if not resume and any(path for path in output.iterdir() if not path.name.startswith(".")):
            if not overwrite:
                raise UsageError(f"--output {output}: exists and is not empty; --overwrite replaces results in it")
            if not known.is_file():
                raise UsageError(f"--output {output}: holds files that were not written here; choose another folder")
            refuse_shares(output)
            for path in output.iterdir():
                if (path / "result.json").is_file():
                    (path / "result.json").unlink()  # first: without it no half of the folder is taken for the whole
                    shutil.rmtree(path)
        settle_alone(output, settings, resume)
        yield


def _stamp(one: Input) -> list[int]:
    """Another one after the picture's file was replaced; empty where it is gone."""
    with suppress(OSError):
        status = one.path.stat()
        return [status.st_size, status.st_mtime_ns]
    return []


def _done(one: Input, output: Path) -> Row | None:
    """What an interrupted command has written of a picture, if it was this one."""
    path = output / one.key / "result.json"
    row: Row | None = read_json(path, Row) if path.is_file() else None
    if row is None or row["file"] != one.path.name:
        return None
    return None if "stamp" in row and _stamp(one) not in ([], row["stamp"]) else row


def predict(
    segmenter: Segmenter,
    inputs: list[Input],
    output: Path,
    stopped: Callable[[], None],
    progress: Tick,
    share: Share = WHOLE,
) -> list[Row] | None:
    """Predict on every picture of a share that is not done yet; results.csv and report at the end, if all shares are
    done, else None.

    stopped: raises to end early. progress: is told how many pictures more are done, or shares of one. Raises DataError
    with a line for each picture that could not be predicted on; the others are done by then, those of all shares.
    Raises OSError where no other could be written either.
    """
    rows: list[Row] = []
    problems = []

    def write_table() -> None:
        if rows:
            write_text(output / "results.csv", results_table(rows).to_csv(index=False))

    try:
        for one in inputs[share.rank :: share.count]:
            stopped()
            left = 1.0

            def told(part: float) -> None:
                nonlocal left
                left -= part
                progress(part)

            try:
                rows.append(_done(one, output) or predict_one(segmenter, one, output, told))
            except (DataError, OSError, ValueError, MemoryError, RuntimeError) as error:
                if isinstance(error, OSError) and error.errno in FULL:
                    raise
                text = " ".join(str(error).split()) or type(error).__name__
                problems.append(text if str(one.path) in text else f"{one.path}: {text}")
            progress(left)
    except BaseException:
        if share.count == 1:
            with suppress(OSError):
                write_table()
        raise
    with last_share(output, share, problems) as of_all:
        if of_all is None:
            for problem in problems:
                log.warning("%s", problem)
            return None
        if share.count > 1:
            rows = [row for one in inputs if (row := _done(one, output))]
        write_table()
        if rows:
            write_report(segmenter, inputs, rows, output)
    if of_all:
        raise problems_error("--input", of_all)
    return rows
