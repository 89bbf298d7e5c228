"""python sample.py --run RUN --input PICTURES --output FOLDER: maps and objects of anybody's images."""

from __future__ import annotations

import errno
import logging
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
import tifffile
from typing_extensions import NotRequired, TypedDict

from data.images import SUFFIXES
from data.inputs import Picture
from data.names import unique_names
from data.patches import Window
from evaluation.instances import plain_objects, split_large
from report import figures
from report.layers import ImageLayers
from report.page import render_report
from results.sampled import read_layers, write_maps, write_objects
from results.shards import WAIT, held_share, last_share, settle_alone
from results.tiff import band_writer
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

LARGE = 16_000_000  # pixels from which maps go to disk band by band, as tiled TIFF
OBJECTS = 200_000_000  # pixels up to which the objects of a large image are told apart
SIDE = 2000  # longest side of the overlay of a large image, about
BLOCK = 512  # rows that are read at once for it
OWN = ("results.csv", "report.html", "settings.json", "environment.json")  # beside the pictures' folders
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no other picture can be written either


@dataclass(frozen=True)
class Input:
    """A picture file, and the name of its folder in the output, which also seeds its draws."""

    path: Path
    key: str


def inputs_of(path: Path) -> list[Input]:
    """The picture, or those of a folder by name. Raises UsageError where there is none."""
    suffixes = (*SUFFIXES, ".svs")
    if path.is_file():
        paths = [path]
    elif path.is_dir():
        paths = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith("."))
    else:
        raise UsageError(f"--input {path}: no such file or folder")
    if not paths:
        raise UsageError(f"--input {path}: no pictures in it; {', '.join(suffixes)} are read")
    # The stem; where several files have it, the whole name.
    stems = Counter(p.stem for p in paths)
    names = [p.stem if stems[p.stem] == 1 else p.name.replace(".", "_") for p in paths]
    return [Input(p, key) for p, key in zip(paths, unique_names(names, OWN), strict=True)]


class Row(TypedDict):
    """result.json, and but for `path`, of the picture, a line of results.csv."""

    path: NotRequired[str]  # not in folders of before it was noted
    image_id: str
    file: str
    height: int
    width: int
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
    result = segmenter(picture.whole(), key, tick)
    write_maps(folder, result.mmse, result.std, result.probability, result.classes, result.first_draws)
    masks = [result.classes == k for k in range(1, len(result.mmse) + 1)]
    figures.outlined(picture.whole(), masks, figures.zoom_of(picture.shape)).save(folder / "overlay.png")
    write_objects(folder, result.instances, result.objects)
    return {
        "objects": len(result.objects),
        "area": int(result.mask.sum()),
        "area_share": float(result.mask.mean()),
        "mean_std": float(result.std.max(axis=0).mean()),
        "draws": result.draws,
        "nfe_per_draw": result.nfe_per_draw,
        "warning": result.warning or "",
    }


def _predict_large(segmenter: Segmenter, picture: Picture, key: str, folder: Path, tick: Tick) -> dict[str, Any]:
    """Maps as tiled TIFF, in bounded memory; objects of the MMSE only, as no draw is kept."""
    prepared, classes = segmenter.prepared(picture), segmenter.drawer.denoiser.mask_channels
    area, spread = 0, 0.0
    costs: list[tuple[int, float, float]] = []
    with band_writer(folder, prepared.shape, classes) as write:
        for band in segmenter.bands(prepared, key, tick=tick):
            write(band)
            area += int((band.labels > 0).sum())
            spread += float(band.std.max(axis=0).sum())
            costs.append((len(band.labels), band.draws, band.nfe))
    pixels = prepared.shape[0] * prepared.shape[1]
    count = None
    if pixels <= OBJECTS and classes == 1:
        evaluation, mmse = segmenter.config.evaluation, tifffile.imread(folder / "mmse.tif")
        labels = split_large(mmse, segmenter.drawer.threshold, evaluation.object_depth, evaluation.object_area)
        del mmse
        write_objects(folder, labels, plain_objects(labels, tifffile.imread(folder / "std.tif")), large=True)
        count = int(labels.max(initial=0))
    _large_overlay(picture, folder)
    return {
        "objects": count,
        "area": area,
        "area_share": area / pixels,
        "mean_std": spread / pixels,
        **costs_of(costs),
        "warning": prepared.warning or "",
    }


def _large_overlay(picture: Picture, folder: Path) -> None:
    """Every n-th pixel of image and mask."""
    step = max(1, max(picture.shape) // SIDE)
    mask = tifffile.imread(folder / "mask.tif")[::step, ::step] > 0
    height, width = picture.shape
    # Many rows at a time: a tiled file decodes a whole row of tiles for a single one.
    block = step * max(1, BLOCK // step)
    tops = range(0, height, block)
    rows = [picture.read(Window(top, 0, min(block, height - top), width))[::step, ::step] for top in tops]
    figures.outlined(np.concatenate(rows), [mask], 1).save(folder / "overlay.png")


def predict_one(segmenter: Segmenter, one: Input, output: Path, tick: Tick = lambda share: None) -> Row:
    """All files of one picture; its line of results.csv. tick: see `TiledDrawer`."""
    begin = time.perf_counter()
    picture = segmenter.open(one.path)
    height, width = picture.shape
    large = height * width > LARGE and segmenter.config.data.size is None
    with whole_folder(output / one.key) as folder:
        found = (_predict_large if large else _predict_small)(segmenter, picture, one.key, folder, tick)
        where = {"path": str(one.path.absolute()), "image_id": one.key, "file": one.path.name}
        row: Any = {**where, "height": height, "width": width, **found}
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
    table = pd.DataFrame(rows).drop(columns="path", errors="ignore")
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
            for path in output.iterdir():
                if (path / "result.json").is_file():
                    (path / "result.json").unlink()  # first: without it no half of the folder is taken for the whole
                    shutil.rmtree(path)
        settle_alone(output, settings, resume)
        yield


def _done(one: Input, output: Path) -> Row | None:
    """What an interrupted command has written of a picture, if it was this one."""
    path = output / one.key / "result.json"
    row: Row | None = read_json(path, Row) if path.is_file() else None
    return row if row and row["file"] == one.path.name else None


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
