"""Processes that share the work on many images."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from utils.errors import Unfinished

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """How many this process may use: a job of a cluster has fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def pool_of(workers: int) -> Iterator[Executor]:
    """Processes that do not outlive an exception and leave Ctrl-C to this one; for one worker, a thread of it. Raises
    Unfinished where one is killed."""
    pool: Executor = ThreadPoolExecutor(1)
    if workers > 1:  # spawned, as forking a process that runs torch's threads can hang
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))
    with pool:
        try:
            yield pool
        except BrokenProcessPool:
            raise Unfinished(
                "a process was killed, perhaps for its memory; the same command goes on, data.workers: 1 takes least"
            ) from None
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def in_order(pool: Executor, work: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """`work` of each item, in their order; unlike `Executor.map`, no more than `ahead` items or results are held."""
    running: deque[Future[R]] = deque()
    for item in items:
        running.append(pool.submit(work, item))
        if len(running) >= ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()
