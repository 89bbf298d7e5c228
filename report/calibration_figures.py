"""Figures of a run's calibration, drawn from the numbers of `calibration.summary`."""

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
