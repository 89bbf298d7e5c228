"""Validation and test sets cut from training images, by group and stratum, fixed by a seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from data.sources.record import Record, Split
from utils.errors import DataError


def _choose_groups(records: Sequence[Record], fraction: float, rng: np.random.Generator) -> set[str]:
    """Whole groups with about `fraction` of the images, at least one group unless that would be all of them."""
    sizes = Counter(record.group for record in records)
    if len(sizes) < 2:
        return set()
    target = max(1, round(fraction * len(records)))
    names = sorted(sizes)
    order = [names[i] for i in rng.permutation(len(names))]
    chosen: set[str] = set()
    for name in order:
        if sum(sizes[g] for g in chosen) + sizes[name] <= target:
            chosen.add(name)
    return chosen or {min(order, key=lambda g: sizes[g])}


def cut_split(records: Sequence[Record], split: Split, fraction: float, seed: int) -> list[Record]:
    """Move whole groups of the training split to `split` until about `fraction` of every stratum is there.

    Nothing is moved where the archive has that split already, or for fraction 0. Raises DataError if all images
    belong to one group.
    """
    training = [r for r in records if r.split == "train"]
    if fraction == 0 or not training or any(r.split == split for r in records):
        return list(records)
    rng = np.random.default_rng(seed)
    first = {r.group: r.stratum for r in reversed(training)}  # a group over two strata counts for its first
    chosen: set[str] = set()
    for stratum in sorted(set(first.values())):
        chosen |= _choose_groups([r for r in training if first[r.group] == stratum], fraction, rng)
    if not chosen:
        raise DataError(
            "the training images are all of one patient or group: no split can be cut; set validation_fraction: 0 "
            "and test_fraction: 0"
        )
    return [replace(r, split=split) if r.split == "train" and r.group in chosen else r for r in records]
