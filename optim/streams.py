"""Independent work in parallel: on CUDA on several streams, each driven by a host thread of its own.

A factorisation is a sequence of small kernels, for some of which the host waits: one at a time leaves most of the
device idle.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from threading import local
from typing import TypeVar

import torch

WORKERS = {"cuda": 8}  # host threads by type of device; elsewhere one item comes after another

T = TypeVar("T")
_OWN = local()  # stream: a thread's, if it works for a CUDA device


def at_once(work: Callable[[T], None], items: Sequence[T], device: torch.device) -> None:
    """work(item) for every item, several at a time where WORKERS has the device.

    work must write its results into tensors of its item that were made on the caller's stream, which waits for all
    work. Temporary tensors are made and freed on the thread's own stream, so that nothing needs record_stream.

    Raises: the exception of the first item that has one, after all threads have finished.
    """
    workers = WORKERS.get(device.type, 1)
    if min(workers, len(items)) < 2:
        for item in items:
            work(item)
        return
    main, used = _current_stream(device), list[torch.cuda.Stream]()
    has_grad, is_cast = torch.is_grad_enabled(), torch.is_autocast_enabled(device.type)
    cast_to = torch.get_autocast_dtype(device.type)

    def task(item: T) -> None:
        # Threads begin with torch's defaults.
        cast = torch.autocast(device.type, cast_to, enabled=is_cast)
        with torch.set_grad_enabled(has_grad), cast, _beside(main, used):
            work(item)

    threads = _threads(device, workers)
    tasks = [threads.submit(task, item) for item in items]
    try:
        wait(tasks, return_when=FIRST_EXCEPTION)
    finally:
        for each in tasks:
            each.cancel()
        wait(tasks)
        if main is not None:
            for stream in used:
                main.wait_stream(stream)
    for each in tasks:  # which were begun in this order: one that failed comes before those that never were
        each.result()


@cache
def _threads(device: torch.device, workers: int) -> ThreadPoolExecutor:
    """The threads for a device. They and their streams stay, as do the workspaces that cuBLAS keeps for each pair."""
    if device.type == "cuda":
        # The first factorisation loads a library, which in torch 2.13 threads cannot do at once:
        # https://github.com/pytorch/pytorch/issues/90613
        torch.linalg.inv(torch.ones(1, 1, device=device))
    return ThreadPoolExecutor(workers, "refresh", _begin_thread, (device,))


def _begin_thread(device: torch.device) -> None:
    if device.type == "cuda":
        _OWN.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # unannotated


def _current_stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


@contextmanager
def _beside(main: torch.cuda.Stream | None, used: list[torch.cuda.Stream]) -> Iterator[None]:
    """On this thread's stream and its device, after what main was given before; notes the stream in used."""
    if main is None:
        yield
        return
    stream: torch.cuda.Stream = _OWN.stream
    used.append(stream)
    stream.wait_stream(main)
    with torch.cuda.stream(stream):
        yield
