"""F1 over what it costs, and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure


def markdown(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Lines of a table, of rows with the same headings."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (rows[0], *(row.values() for row in rows))]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def f1_over_nfe(table: pd.DataFrame, lines: str, columns: tuple[str, str], title: str, path: Path) -> None:
    """Write a chart with a panel for the mean of the draws and one for single draws.

    table: has a column nfe, the two `columns` of F1, and `lines`, whose values are a line each.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = zip(figure.subplots(1, 2, sharey=True), columns, ("mean of the draws", "single draws"), strict=True)
    for axes, column, name in panels:
        for line, rows in table.groupby(lines, sort=False):
            rows = rows.sort_values("nfe")
            axes.plot(rows["nfe"], rows[column], marker="o", markersize=4, label=str(line))
        axes.set(xscale="log", xlabel="evaluations per draw", ylabel="F1", title=name)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=100)


def f1_over_seconds(table: pd.DataFrame, title: str, path: Path) -> None:
    """Write a chart with a point for the mean of the draws of each system, and a small one for its single draws.

    table: has columns system, f1, single_f1, draws and seconds_per_image.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for number, row in enumerate(table.to_dict("records")):
        colour, x = f"C{number % 10}", row["seconds_per_image"]
        marker = "o" if number < 10 else "D"
        if row["draws"] > 1:
            axes.plot([x, x], [row["single_f1"], row["f1"]], color=colour, linewidth=0.8)
            axes.plot(x, row["single_f1"], marker="_", color=colour)
        axes.plot(x, row["f1"], marker=marker, linestyle="", color=colour, label=row["system"])
    axes.set(xscale="log", xlabel="seconds per image, all draws", ylabel="F1 of the mean; dash: of single draws")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=100)
