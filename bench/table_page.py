"""The page of `bench.table`: OUTPUT.md, and OUTPUT.png where rows differ in cost."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bench.charts import f1_over_nfe, f1_over_seconds, markdown
from bench.protocol import Protocol
from evaluation.comparison import LEAST
from utils.files import write_text

AT = 16  # draws at which scores against raters are shown that depend on their number
RATERS = ("fair_diversity", "fair_rater_diversity", "diversity_ratio", "ncc", "consensus_dice", "volume_crps")
MEANS = (*(f"{name}_{AT}" for name in ("ged", "hm_iou", "d_max")), *RATERS,
         "f1", "iou", "single_f1", "single_iou", "aji", "pq", "ause", "ece", "ged", "ssr", "image_coverage",
         "object_coverage", "expected", "lost", *LEAST, "skill", "draws", "nfe", "seconds_per_image",
         "training_seconds")  # fmt: skip
LEGEND = """
F1 and IoU: means over images, of the mask of the mean of the draws, and of single draws. AJI: aggregated Jaccard
index, PQ: panoptic quality of the objects. AUSE: area between the sparsification curves by std and by true error,
of SDFs or, where these are drawn, of masks, which do not compare; ECE: expected calibration error of the share of
draws that call a pixel foreground; both need draws. GED: squared, at all draws, IoU of two empty masks 1, diagonal
pairs included. SSR: adjusted ratio of the draws' spread to the error of their mean, 1 is right. Images inside,
objects inside: share of true areas within the range of the draws', and what is right; lost: share of objects and
draws without a match, whose area counts as 0. Fair CRPS (SDF, per pixel), energy score (SDF in 8 x 8 means) and
fair GED do not depend on the number of draws and are least for true draws; of a single draw they are its error.
Mask CRPS, mask energy: the same of the SDFs of the draws' masks, whatever draws are. Skill: share of the CRPS saved
against the same mean with one std at all pixels. GED 16, HM-IoU 16, D_max 16: at 16 draws, at all where there are
fewer, which GED punishes; matched IoU, and best Dice for each rater. Diversity: mean 1 - IoU of two different draws
/ of two different raters, and their ratio, 1 is right for a network that knows as much as raters. NCC of where
draws differ with where they differ from the raters; Dice where all raters agree; CRPS of the area, pixels. NFE:
evaluations of the network per draw; one that all draws share counts once. Seconds per image are of all draws, on a
machine that other work shared; training time is that of the optimiser's steps."""


def short_command(words: Sequence[str]) -> str:
    """The command without --output and without the folders of one machine."""
    kept, skip = [], False
    for word in words:
        if not skip and word != "--output" and not word.startswith("--output="):
            kept.append(re.sub(r"(^|=)[/~].*", r"\1...", word))
        skip = word == "--output"
    return f"python -m bench.table {shlex.join(kept)}"


def images_of(source: str, split: str, ids: Sequence[str]) -> str:
    """How many images of which split: of GlaS, whether test B is among them."""
    if source != "glas" or split != "test":
        return f"{source}, {split} split ({len(ids)})"
    return f"test A and B ({len(ids)})" if any(name.startswith("testB") for name in ids) else f"test A ({len(ids)})"


def combined(table: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, and the standard deviation of F1 where there are several. Rows of before some column was
    measured have none there."""
    table = table.reindex(columns=[*table.columns, *(name for name in MEANS if name not in table)])
    groups = table.groupby(["system", "sampling"], sort=False)
    result = groups[list(MEANS)].mean().assign(parameters=groups["parameters"].first(), seeds=groups.size())
    result["f1_std"] = groups["f1"].std()
    return result.reset_index()


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _pair(first: float, second: float) -> str:
    return f"{first:.3f} / {second:.3f}"


def cells_of(row: dict[str, Any]) -> dict[str, str]:
    """A line of the table, by its headings; empty where a number is not defined."""
    f1 = f" ± {row['f1_std']:.3f}" if row["f1_std"] == row["f1_std"] else ""

    def known(name: str) -> str:
        return "" if pd.isna(row[name]) else f"{row[name]:.3f}"

    def inside(name: str) -> str:
        return "" if pd.isna(row[name]) else f"{row[name]:.2f} ({row['expected']:.2f})"

    def alike() -> str:
        if pd.isna(row["diversity_ratio"]):
            return ""
        pair = _pair(row["fair_diversity"], row["fair_rater_diversity"])
        return f"{pair} ({row['diversity_ratio']:.2f})"

    return {
        "system": row["system"],
        "sampling": row["sampling"],
        "F1 / IoU of the mean": _pair(row["f1"], row["iou"]) + f1,
        "of single draws": _pair(row["single_f1"], row["single_iou"]) if row["draws"] > 1 else "",
        **{name.upper(): known(name) for name in ("aji", "pq", "ause", "ece", "ged", "ssr")},
        "images inside": inside("image_coverage"),
        "objects inside": inside("object_coverage"),
        "lost": known("lost"),
        "fair CRPS": known("fair_crps"),
        "energy": known("energy"),
        "mask CRPS": known("mask_crps"),
        "mask energy": known("mask_energy"),
        "fair GED": known("fair_ged"),
        "skill": known("skill"),
        **{
            f"{title} {AT}": known(f"{name}_{AT}")
            for name, title in (("ged", "GED"), ("hm_iou", "HM-IoU"), ("d_max", "D_max"))
        },
        "diversity of draws / raters": alike(),
        "NCC": known("ncc"),
        "consensus Dice": known("consensus_dice"),
        "area CRPS": known("volume_crps"),
        "draws x NFE": f"{row['draws']:.4g} x {row['nfe']:.4g}",
        "s per image": f"{row['seconds_per_image']:.2f}",
        "parameters": f"{row['parameters'] / 1e6:.1f} M",
        "training": _duration(row["training_seconds"]),
        "seeds": str(row["seeds"]),
    }


def markdown_table(rows: pd.DataFrame) -> list[str]:
    """Lines of the table; columns that are empty or say nothing are left out."""
    lines = [cells_of(row) for row in rows.to_dict("records")]
    columns = [name for name in lines[0] if any(line[name] for line in lines)]
    if len({line["system"] for line in lines}) == len(lines):
        columns.remove("sampling")
    if "GED" in columns and all(line["GED"] == line[f"GED {AT}"] for line in lines):
        columns.remove("GED")
    return markdown([{name: line[name] for name in columns} for line in lines])


def facts_of(table: pd.DataFrame) -> str:
    """What a row depends on besides its config."""

    def all_of(column: str) -> str:
        return ", ".join(sorted({str(value) for value in table[column]}))

    return (
        f"{all_of('scored_on')}; seeds {all_of('seed')}; {all_of('device')}; commit {all_of('commit')}; "
        f"data {all_of('data_hash')}; config hashes, thresholds and run folders are in the CSV file beside this page."
    )


def write_page(protocol: Protocol, small: bool, table: pd.DataFrame, words: Sequence[str], output: Path) -> str:
    """Write the page and its chart; returns the table as text. small: its small form. words: of the command."""
    title = f"{protocol.title}: the small form, which only shows that all of them run" if small else protocol.title
    rows = combined(table)
    shown = markdown_table(rows)
    lines = [f"# {title}", "", f"`{short_command(words)}`", "", facts_of(table)]
    lines += ["", *shown, "", LEGEND.strip()]
    if protocol.notes:
        lines += ["", *(f"- {note}" for note in protocol.notes)]
    lines += ["", "Any row again: the same command with `--only` and the name of its system."]
    chart = output.with_suffix(".png")
    if rows["sampling"].nunique() > 2:
        first = rows.drop_duplicates(["system", "nfe"])  # of several ways at one cost
        f1_over_nfe(first, "system", ("f1", "single_f1"), title, chart)
    elif len(rows) > 1:
        f1_over_seconds(rows, title, chart)
    if chart.is_file():
        lines += ["", f"![F1 and what it costs]({chart.name})"]
    write_text(output.with_suffix(".md"), "\n".join(lines) + "\n")
    return "\n".join([*shown, f"table: {output.with_suffix('.md')}"])
