"""Figures of a run's calibration, drawn from the numbers of `calibration.summary` and `spread.summary`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

SIZE = (4.4, 3.6)  # inches; 440 x 360 pixels at dpi=100


def reliability_diagram(numbers: Mapping[str, Any]) -> Figure:
    """Frequency of foreground over its probability, on the diagonal if calibrated; a dot's area grows with its share of
    the pixels."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    p, frequency = numbers["reliability_probability"], numbers["reliability_frequency"]
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    axes.plot(p, frequency, color="C0", linewidth=1)
    sizes = [12 + 150 * share**0.5 for share in numbers["reliability_share"]]
    axes.scatter(p, frequency, s=sizes, color="C0", alpha=0.7)
    known = numbers["ece"] is not None
    axes.set_title(f"ECE {numbers['ece']:.4f}, Brier {numbers['brier']:.4f}" if known else "no pixels")
    axes.set(xlabel="share of draws that say foreground", ylabel="share that is foreground")
    axes.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), aspect="equal")
    axes.grid(alpha=0.3)
    return figure


def sparsification_curve(numbers: Mapping[str, Any]) -> Figure:
    """Mean error of what is left when the most uncertain pixels go, and the oracle's; AUSE is the area between."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    removed = numbers["sparsification_removed"]
    own, oracle = numbers["sparsification_std"], numbers["sparsification_oracle"]
    axes.axhline(1.0, color="0.6", linestyle="--", linewidth=1, label="random order")
    axes.plot(removed, own, color="C0", label="largest std first")
    axes.plot(removed, oracle, color="C1", label="largest error first")
    axes.fill_between(removed, oracle, own, color="C0", alpha=0.15)
    axes.set(xlabel="share of pixels removed", ylabel="mean error / that of all", xlim=(0, 1), ylim=(0, None))
    known = numbers["ause"] is not None
    axes.set_title(f"AUSE {numbers['ause']:.4f}, random {numbers['ause_random']:.4f}" if known else "no error")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def spread_skill_chart(numbers: Mapping[str, Any]) -> Figure:
    """Error of the mean over the std of the draws, on the diagonal if the draws are true; a dot's area grows with its
    share of the pixels."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    std, error = numbers["spread_std"], numbers["spread_error"]
    top = 1.08 * max([*std, *error, 0.01])
    axes.plot([0, top], [0, top], color="0.6", linestyle="--", linewidth=1)
    axes.plot(std, error, color="C0", linewidth=1)
    axes.scatter(std, error, s=[12 + 150 * share**0.5 for share in numbers["spread_share"]], color="C0", alpha=0.7)
    axes.set(xlabel="std of the draws (SDF units)", ylabel="root mean square error", xlim=(0, top), ylim=(0, top))
    axes.set(title="above the line: too alike" if std else "no spread", aspect="equal")
    axes.grid(alpha=0.3)
    return figure


def rank_histograms(numbers: Mapping[str, Any]) -> Figure:
    """Ranks of true areas among the draws' areas: on the dashed line if the draws are true, 95 % of the bars in the
    shade; a valley where they are too alike."""
    figure = Figure(figsize=(2 * SIZE[0], SIZE[1]), layout="constrained")
    panels = zip(figure.subplots(1, 2), ("image_area", "object_area"), ("images", "objects"), strict=True)
    for axes, key, name in panels:
        ranks, p = numbers[key]["ranks"], numbers[key]["p"]
        axes.set_title(f"areas of {numbers[key]['cases']} {name}: " + (f"p = {p:.2g}" if ranks else "too few"))
        axes.set(xlabel="share of the draws below the truth", ylabel=name, xlim=(0, 1))
        if ranks:
            mean, width = sum(ranks) / len(ranks), 1 / len(ranks)
            chance = 1.96 * (mean * (1 - width)) ** 0.5
            axes.axhspan(mean - chance, mean + chance, color="0.6", alpha=0.2, linewidth=0)
            axes.axhline(mean, color="0.4", linestyle="--", linewidth=1)
            axes.bar([(k + 0.5) * width for k in range(len(ranks))], ranks, 0.92 * width, color="C0", alpha=0.7)
            axes.set_ylim(0, 1.1 * max(*ranks, mean + chance))
    return figure
