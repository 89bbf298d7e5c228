"""F1 over evaluations per draw."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure


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
