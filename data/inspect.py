"""One page about prepared data: python -m data.inspect --config cfg/glas.yaml"""

from __future__ import annotations

from utils.command import run_command

import base64
import io
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image

from data import findings
from data.augment import Augmentation
from data.dataset import Patch, image_array, read_split, same_size, sdf_array
from data.description import read_description
from data.findings import GREY_BINS, SDF_BINS, Facts, Suspicion
from data.images import read_table
from data.prepare import list_archive
from data.recipe import FOLDERS, read_sample
from report import figures
from report.page import filled
from utils.cli import common_parser, read_config
from utils.config import dump_config
from utils.data_schema import DataConfig
from utils.errors import DataError
from utils.files import write_text
from utils.schema import Config

PATCHES, PAIRS, RAW = 24, 16, 24
SHOWN = 160  # pixels of a picture on the page


def tables_of(root: str) -> dict[str, Path]:
    """The CSV files that are there, by split."""
    paths = {split: Path(root, f"{split}.csv") for split in FOLDERS}
    return {split: path for split, path in paths.items() if path.is_file()}


def all_patches(data: DataConfig) -> Iterator[tuple[str, Patch]]:
    """(split, patch) of every row of every CSV file that is there."""
    tables = tables_of(data.root)
    if not tables:
        raise DataError(f"data.root: no CSV files in {data.root}; run `python -m data.prepare` with this config first")
    for split in tables:
        for patch in read_split(data, split):
            yield split, patch


class Keeper:
    """Hands patches on and keeps a random few (reservoir sampling), so that memory does not grow with their number."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seen, self.kept = count, 0, list[tuple[str, Patch]]()
        self.rng = np.random.default_rng(seed)

    def __call__(self, patches: Iterator[tuple[str, Patch]]) -> Iterator[tuple[str, Patch]]:
        for item in patches:
            self.seen += 1
            if len(self.kept) < self.count:
                self.kept.append(item)
            elif (index := int(self.rng.integers(self.seen))) < self.count:
                self.kept[index] = item
            yield item


def data_uri(picture: Image.Image | Figure) -> str:
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(buffer, format="png", dpi=100)
    else:
        picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _chart() -> tuple[Figure, Any]:
    figure = Figure(figsize=(5.0, 2.8), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def foreground_chart(table: pd.DataFrame) -> str:
    figure, axes = _chart()
    shares = {str(split): rows["foreground"] for split, rows in table.groupby("split", sort=False)}
    bins = np.linspace(0, max(0.05, table["foreground"].max()), 21)
    axes.hist(list(shares.values()), bins=bins.tolist(), label=list(shares), stacked=True)
    axes.set(xlabel="share of foreground", ylabel="patches")
    axes.legend()
    return data_uri(figure)


def sdf_chart(facts: Facts, classes: Sequence[int]) -> str:
    figure, axes = _chart()
    for k, shares in enumerate(facts.sdf):
        axes.stairs(shares, SDF_BINS, fill=len(facts.sdf) == 1, label=f"class {classes[k]}" if classes else None)
    axes.set(xlabel="SDF (negative inside, 1 = truncation)", ylabel="share of pixels", yscale="log")
    if classes:
        axes.legend()
    return data_uri(figure)


def intensity_chart(histograms: Sequence[np.ndarray], title: str) -> str:
    """A thin line per picture, a thick one for their mean."""
    figure, axes = _chart()
    centres = (GREY_BINS[:-1] + GREY_BINS[1:]) / 2
    for histogram in histograms:
        axes.plot(centres, histogram, color="tab:blue", alpha=0.25, linewidth=0.7)
    axes.plot(centres, np.mean(histograms, axis=0), color="black", linewidth=2)
    axes.set(xlabel="grey value", ylabel="share of pixels", title=title, ylim=(0, None))
    return data_uri(figure)


def raw_histograms(data: DataConfig) -> list[np.ndarray]:
    """Grey histograms of a few raw images; none where the archive is not at hand."""
    if data.source == "prepared":
        return []
    try:
        records = list_archive(data).records
        chosen = [records[i] for i in np.unique(np.linspace(0, len(records) - 1, RAW).astype(int))] if records else []
        samples = (read_sample(record) for record in chosen)
        return [findings.grey_histogram(sample.image) for sample in samples if sample is not None]
    except DataError:
        return []


def patch_picture(patch: Patch) -> Image.Image:
    """The image with the contours of its classes, or of each rater."""
    classes = [patch.labels == k for k in range(1, patch.sdf.shape[1] + 1)]
    return figures.outlined(patch.image, patch.raters or classes, figures.zoom_of(patch.labels.shape, SHOWN))


def augmented_pairs(data: DataConfig, seed: int, patches: Sequence[Patch]) -> Image.Image | None:
    """Sixteen training pairs as the network sees them: image, and below it the SDF (of several classes the least)."""
    first = [p for p in patches if p.image.shape == patches[0].image.shape and len(p.sdf) == len(patches[0].sdf)]
    if not first:
        return None
    same_size(first, "train.csv")
    chosen = [first[i % len(first)] for i in range(PAIRS)]
    generator = torch.Generator().manual_seed(seed)
    augment = Augmentation(data.model_copy(update={"sdf_scale": 1.0}))
    image, sdf = augment(torch.from_numpy(image_array(chosen)), torch.from_numpy(sdf_array(chosen)[:, 0]), generator)
    zoom = figures.zoom_of(image.shape[-2:], 128)
    tiles = []
    for pixels, field in zip(image.float().round().byte().numpy(), sdf.numpy(), strict=True):
        picture = np.broadcast_to(pixels, (3, *pixels.shape[1:])).transpose(1, 2, 0)
        below = figures.color_pixels(field.min(axis=0), -1.0, 1.0, "RdBu")
        tiles.append(np.concatenate([picture, below], axis=0))
    rows = [np.concatenate(tiles[i : i + 8], axis=1) for i in range(0, PAIRS, 8)]
    grid = Image.fromarray(np.concatenate(rows, axis=0))
    return grid.resize((grid.width * zoom, grid.height * zoom), Image.Resampling.NEAREST)


def split_table(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One line for each split."""
    lines = []
    for split, rows in table.groupby("split", sort=False):
        sizes = sorted({(int(r.height), int(r.width)) for r in rows.itertuples()})
        lines.append(
            {
                "split": split,
                "images": rows["image_id"].nunique(),
                "patches": len(rows),
                "sizes": ", ".join(f"{h} x {w}" for h, w in sizes[:6]) + (" ..." if len(sizes) > 6 else ""),
                "foreground": rows["foreground"].mean(),
                "least": rows["foreground"].min(),
                "most": rows["foreground"].max(),
                "agreement": rows["agreement"].mean(),
                "silent": int(rows["silent_raters"].sum()),
            }
        )
    return lines


def find_suspicions(data: DataConfig, facts: Facts) -> list[Suspicion]:
    tables = {split: read_table(path) for split, path in tables_of(data.root).items()}
    leaks = findings.leaking_groups(tables, "patient")
    found = findings.suspicions(facts.table, data.classes or ())
    if data.representation == "sdf":
        found += findings.shallow_objects(facts.table, data.truncation)
    return [Suspicion("patients in two splits", leaks, grave=True), *found] if leaks else found


def inspect(config: Config, output: Path, pictures: Path | None) -> list[Suspicion]:
    """Write the page; return what is suspicious."""
    data, keeper = config.data, Keeper(PATCHES, config.seed)
    facts = findings.collect(keeper(all_patches(data)))
    found = find_suspicions(data, facts)
    training = (patch for split, patch in all_patches(data) if split == "train")
    pairs = augmented_pairs(data, config.seed, list(islice(training, 4 * PAIRS))[::4])
    described = read_description(Path(data.root))
    raw = raw_histograms(data)
    after = [facts.greys[key] for key in sorted(facts.greys)]
    charts = [foreground_chart(facts.table), sdf_chart(facts, data.classes or ())] if len(facts.table) else []
    charts += [intensity_chart(raw, "raw images")] if raw else []
    charts += [intensity_chart(after[:: max(1, len(after) // RAW)], "prepared images")] if after else []
    page = filled(
        Path(__file__).with_name("templates") / "inspect.html",
        name=config.name,
        root=data.root,
        lines=split_table(facts.table) if len(facts.table) else [],
        raters=bool(len(facts.table)) and bool(facts.table["agreement"].notna().any()),
        suspicions=found,
        charts=charts,
        raw=bool(raw),
        gallery=[(f"{split}/{p.key}", p.mask.mean(), data_uri(patch_picture(p))) for split, p in keeper.kept],
        pairs=data_uri(pairs) if pairs else None,
        described=described,
        notes=described.get("notes", {}),
        settings=dump_config(config),
    )
    write_text(output, page)
    if pictures is not None and pairs is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        pairs.save(pictures / "augmented.png")
    return found


def main(argv: list[str] | None = None) -> None:
    parser = common_parser("Look at prepared data: one HTML page.")
    parser.add_argument("--output", type=Path, metavar="HTML", help="default: inspection.html in data.root")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="also save the augmented pairs there")
    args = parser.parse_args(argv)
    config = read_config(args)
    if config is None:
        return
    output = args.output or Path(config.data.root) / "inspection.html"
    found = inspect(config, output, args.pictures)
    for suspicion in found:
        sign = "!!" if suspicion.grave else "--"
        print(f"{sign} {suspicion.what}: {len(suspicion.where)}, such as {suspicion.where[0]}")
    print(f"{'nothing suspicious' if not found else 'to look at'}: {output}")


if __name__ == "__main__":
    sys.exit(run_command(main))
