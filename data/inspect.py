"""One page about prepared data: python -m data.inspect --config cfg/glas.yaml"""

from __future__ import annotations

from utils.command import run_command

import base64
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from data import findings
from data.agreement import Agreement
from data.augment import Augmentation
from data.dataset import at_full_scale, image_array, is_published, largest_of, read_split, same_size, sdf_array
from data.description import read_description
from data.findings import GREY_BINS, SDF_BINS, Facts, Suspicion
from data.images import read_table
from data.prepare import list_archive
from data.recipe import FOLDERS, read_sample
from data.rows import GROUPS, Patch
from report import figures
from report.page import filled
from utils.cli import common_parser, read_config
from utils.config import dump_config
from utils.data_schema import DataConfig
from utils.errors import DataError
from utils.files import write_text
from utils.schema import Config
from utils.shipped import command

PATCHES, PAIRS, RAW = 24, 16, 24
Item = tuple[str, Patch]  # a split and one of its patches
SHOWN = 160  # pixels of a picture on the page


def tables_of(root: str) -> dict[str, Path]:
    """The CSV files that are there, by split."""
    paths = {split: Path(root, f"{split}.csv") for split in FOLDERS}
    return {split: path for split, path in paths.items() if path.is_file()}


def all_patches(data: DataConfig) -> Iterator[Item]:
    """(split, patch) of every row of every CSV file that is there."""
    tables = tables_of(data.root)
    if not tables:
        raise DataError(f"data.root: no CSV files in {data.root}; run `{command('prepare')}` with this config first")
    for split, path in tables.items():
        made_by_hand = data.source == "prepared"  # on either scale
        whole = max(map(largest_of, read_split(data, split)), default=0.0) if made_by_hand else 1.0
        published = is_published(whole, path)
        for patch in read_split(data, split):
            yield split, at_full_scale(patch) if published else patch


def keeping(patches: Iterable[Item], kept: list[Item], count: int, seed: int) -> Iterator[Item]:
    """Hands patches on and keeps a random few (reservoir sampling), so that memory does not grow with their number."""
    rng = np.random.default_rng(seed)
    for seen, item in enumerate(patches, 1):
        if len(kept) < count:
            kept.append(item)
        elif (index := int(rng.integers(seen))) < count:
            kept[index] = item
        yield item


def data_uri(save: Callable[..., None], **options: Any) -> str:
    """What a picture's or figure's `save` writes as PNG."""
    buffer = io.BytesIO()
    save(buffer, format="png", **options)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def chart(draw: Callable[..., None], *drawn: Any) -> str:
    """What `draw` draws of its arguments on axes."""
    figure = Figure(figsize=(5.0, 2.8), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes, *drawn)
    return data_uri(figure.savefig, dpi=100)


def draw_foreground(axes: Axes, table: pd.DataFrame) -> None:
    shares = {str(split): rows["foreground"] for split, rows in table.groupby("split", sort=False)}
    bins = np.linspace(0, max(0.05, table["foreground"].max()), 21)
    axes.hist(list(shares.values()), bins=bins.tolist(), label=list(shares), stacked=True)
    axes.set(xlabel="share of foreground", ylabel="patches")
    axes.legend()


def draw_sdf(axes: Axes, facts: Facts, classes: Sequence[int]) -> None:
    for k, shares in enumerate(facts.sdf):
        axes.stairs(shares, SDF_BINS, fill=len(facts.sdf) == 1, label=f"class {classes[k]}" if classes else None)
    axes.set(xlabel="SDF (negative inside, 1 = truncation)", ylabel="share of pixels", yscale="log")
    if classes:
        axes.legend()


def draw_intensity(axes: Axes, histograms: Sequence[np.ndarray], title: str) -> None:
    """A thin line per picture, a thick one for their mean."""
    centres = (GREY_BINS[:-1] + GREY_BINS[1:]) / 2
    axes.plot(centres, np.transpose(histograms), color="tab:blue", alpha=0.25, linewidth=0.7)
    axes.plot(centres, np.mean(histograms, axis=0), color="black", linewidth=2)
    axes.set(xlabel="grey value", ylabel="share of pixels", title=title, ylim=(0, None))


def raters_figure(agreement: Agreement) -> Figure:
    """Areas of each rater's masks that are not empty, and the mean IoU of each two."""
    figure = Figure(figsize=(7.5, 2.8), layout="constrained")
    areas, pairs = figure.subplots(1, 2, width_ratios=(3, 2))
    marked = [own[own > 0] for own in map(agreement.of_rater, range(agreement.raters))]
    areas.boxplot(marked, positions=range(len(marked)), flierprops={"markersize": 2})
    areas.set(xlabel="rater", ylabel="area in pixels", yscale="log")
    areas.spines[["top", "right"]].set_visible(False)
    values = agreement.pairs()
    pairs.imshow(values, vmin=0, vmax=1, cmap="viridis")
    for i, j in np.ndindex(values.shape):
        pairs.text(
            j, i, f"{values[i, j]:.2f}", ha="center", va="center", color="white" if values[i, j] < 0.6 else "black"
        )
    pairs.set(title="mean IoU", xlabel="rater", xticks=range(len(values)), yticks=range(len(values)))
    return figure


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


def _sizes(sizes: Iterable[tuple[int, int]]) -> str:
    known = sorted(set(sizes))
    return ", ".join(f"{h} x {w}" for h, w in known[:6]) + (" ..." if len(known) > 6 else "")


def split_table(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One line for each split."""
    if table.empty:
        return []
    table = table.assign(size=list(zip(table["height"], table["width"], strict=True)))
    lines = table.groupby("split", sort=False).agg(
        images=("image_id", "nunique"), patches=("key", "size"), sizes=("size", _sizes),
        foreground=("foreground", "mean"), least=("foreground", "min"), most=("foreground", "max"),
        agreement=("agreement", "mean"), silent=("silent_raters", "sum"),
    )  # fmt: skip
    return lines.reset_index().to_dict("records")  # type: ignore[return-value]


def find_suspicions(data: DataConfig, facts: Facts) -> list[Suspicion]:
    tables = {split: read_table(path) for split, path in tables_of(data.root).items()}
    leaks = [Suspicion(f"{column}s in two splits", where, grave=True) for column in GROUPS
             if (where := findings.leaking_groups(tables, column))]  # fmt: skip
    found = findings.suspicions(facts.table, data.classes or ())
    if data.representation == "sdf":
        found += findings.shallow_objects(facts.table, data.truncation)
    return leaks + found


def inspect(config: Config, output: Path, pictures: Path | None) -> tuple[list[Suspicion], list[str]]:
    """Write the page; return what is suspicious, and lines about the raters."""
    data = config.data
    kept: list[Item] = []
    agreement = Agreement()
    facts = findings.collect(keeping(agreement.watching(all_patches(data)), kept, PATCHES, config.seed))
    found = find_suspicions(data, facts)
    training = (patch for split, patch in all_patches(data) if split == "train")
    pairs = augmented_pairs(data, config.seed, list(islice(training, 4 * PAIRS))[::4])
    raw, lines = raw_histograms(data), split_table(facts.table)
    after = [facts.greys[key] for key in sorted(facts.greys)]
    charts = [chart(draw_foreground, facts.table), chart(draw_sdf, facts, data.classes or ())] if lines else []
    charts += [chart(draw_intensity, raw, "raw images")] if raw else []
    charts += [chart(draw_intensity, after[:: max(1, len(after) // RAW)], "prepared images")] if after else []
    raters, said = raters_figure(agreement) if agreement.areas else None, agreement.lines()
    gallery = [(f"{split}/{p.key}", p.mask.mean(), data_uri(patch_picture(p).save, optimize=True)) for split, p in kept]
    page = filled(
        Path(__file__).with_name("templates") / "inspect.html",
        name=config.name, root=data.root, lines=lines, suspicions=found, charts=charts, raw=bool(raw),
        raters=any(line["agreement"] == line["agreement"] for line in lines), gallery=gallery, agreement=said,
        raters_chart=data_uri(raters.savefig, dpi=100) if raters else None,
        pairs=data_uri(pairs.save, optimize=True) if pairs else None, settings=dump_config(config),
        described=read_description(Path(data.root)),
    )  # fmt: skip
    write_text(output, page)
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        if pairs is not None:
            pairs.save(pictures / "augmented.png")
        if raters is not None:
            raters.savefig(pictures / "raters.png", dpi=150)
    return found, said


def main(argv: list[str] | None = None) -> None:
    parser = common_parser("Look at prepared data: one HTML page.")
    parser.add_argument("--output", type=Path, metavar="HTML", help="default: inspection.html in data.root")
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="also save the augmented pairs and the chart of raters there"
    )
    args = parser.parse_args(argv)
    config = read_config(args)
    if config is None:
        return
    output = args.output or Path(config.data.root) / "inspection.html"
    found, said = inspect(config, output, args.pictures)
    for line in said:
        print(line)
    for suspicion in found:
        sign = "!!" if suspicion.grave else "--"
        print(f"{sign} {suspicion.what}: {len(suspicion.where)}, such as {suspicion.where[0]}")
    print(f"{'nothing suspicious' if not found else 'to look at'}: {output}")


def run() -> int:
    return run_command(main)


if __name__ == "__main__":
    sys.exit(run())
