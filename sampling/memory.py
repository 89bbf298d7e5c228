"""Batches that shrink until they fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import torch

from utils.errors import UsageError, is_out_of_memory

log = logging.getLogger("memory")

T = TypeVar("T")


class Batched(Protocol):
    """Whoever says how many elements are evaluated at once."""

    max_batch: int


def batches(
    owner: Batched, count: int, evaluate: Callable[[slice], T], most: int | None = None
) -> Iterator[tuple[slice, T]]:
    """Yield (part, evaluate(part)) for consecutive parts of range(count), owner.max_batch or `most` elements at most.

    Where memory does not suffice, owner.max_batch becomes half of the part's size, for good, and the part is done
    again; so `evaluate` must start anew on each call. Raises UsageError where one element alone does not fit.
    """
    start = 0
    while start < count:
        size = min(owner.max_batch, most or count, count - start)
        part = slice(start, start + size)
        try:
            result = evaluate(part)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
        else:
            yield part, result
            start += size
            continue
        # Out of the handler, as the error holds on to the tensors of the failed evaluation.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if size == 1:
            raise UsageError(f"out of memory with a single element at once ({reason}); try smaller images or tiles")
        owner.max_batch = size // 2
        log.warning("out of memory with %d at once; going on with sampling.max_batch %d", size, owner.max_batch)
